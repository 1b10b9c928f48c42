# SPDX-License-Identifier: Apache-2.0
"""The event streams, over real HTTP."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from extproc.demo.client import send
from extproc.demo.processes import Server
from extproc.observability.logs import make_logger
from extproc.server import live as module
from extproc.server.listener import HttpServer
from extproc.server.live import AGAIN, HEARTBEAT, STREAMS, Live

Reader = asyncio.StreamReader


class Site:
    """Views that a test changes, their streams, and a server."""

    def __init__(self, views: dict[str, Callable[[], object]] | None = None) -> None:
        self.values: dict[str, object] = {"one": {"a": 1}, "two": [2]}
        self.looks = 0
        self.log = io.BytesIO()
        self.live = Live(
            views or {"one": self.one, "two": lambda: self.values["two"]}, make_logger("json", "info", self.log)
        )
        self.http = HttpServer(Starlette(routes=[self.live.route()]), "127.0.0.1", 0, self.live.end)

    def one(self) -> object:
        self.looks += 1
        return self.values["one"]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.log.getvalue().splitlines()]


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Site]:
    task = asyncio.create_task(site.http.run_until_stopped())
    try:
        yield site
    finally:
        site.http.should_exit = True
        await task


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(Site()) as found:
        yield found


@asynccontextmanager
async def events(port: int, method: str = "GET") -> AsyncIterator[Reader]:
    """The body of `/events`, chunk after chunk."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} /events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-type: text/event-stream; charset=utf-8\r\n" in head
    assert b"cache-control: no-store\r\n" in head
    try:
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


async def chunk(reader: Reader) -> str:
    """The next one; "" is the end."""
    size = int(await reader.readline(), 16)
    return (await reader.readexactly(size + 2))[:-2].decode()


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not wanted():  # noqa: ASYNC110 - it is the server's to say, and it says it to nobody
            await asyncio.sleep(0.01)


async def test_who_comes_is_told_everything_and_then_only_what_has_changed(site: Site) -> None:
    async with events(site.http.port) as reader:
        first = await chunk(reader)
        site.values["two"] = [3]
        site.live.look()
        second = await chunk(reader)
        site.values["one"] = {"a": 1}  # another object that says the same
        site.live.look()
        site.values["two"] = [4]
        site.live.look()
        third = await chunk(reader)

    assert first == 'event: one\ndata: {"a":1}\n\nevent: two\ndata: [2]\n\n'
    assert (second, third) == ("event: two\ndata: [3]\n\n", "event: two\ndata: [4]\n\n")


async def test_all_streams_are_told_by_one_look(site: Site) -> None:
    async with events(site.http.port) as one, events(site.http.port) as other:
        first = [await chunk(reader) for reader in (one, other)]
        site.values["one"] = "text"
        site.live.look()
        second = [await chunk(reader) for reader in (one, other)]

    assert first[0] == first[1]
    assert second == ['event: one\ndata: "text"\n\n'] * 2
    assert site.looks == 2


async def test_a_stream_without_news_says_now_and_then_that_it_is_there(site: Site) -> None:
    async with events(site.http.port) as reader:
        await chunk(reader)
        for _ in range(HEARTBEAT):
            site.live.look()
            await asyncio.sleep(0.01)  # its turn to see that there was nothing
        said = await chunk(reader)

    assert said == ": still here\n\n"


async def test_a_stream_ends_after_some_minutes_with_word_that_the_next_may_be_asked_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with events(site.http.port) as lasting:
        await chunk(lasting)
        monkeypatch.setattr(module, "LASTS", 0.0)
        async with events(site.http.port) as reader:
            await chunk(reader)
            site.live.look()
            said = [await chunk(reader), await chunk(reader)]
            await until(lambda: site.live.open == 1)
        site.values["two"] = [3]
        site.live.look()
        other = await chunk(lasting)

    assert said == [AGAIN.decode(), ""]
    assert other == "event: two\ndata: [3]\n\n"


async def test_it_looks_by_itself_while_somebody_is_there_and_not_else(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INTERVAL", 0.01)
    job = asyncio.create_task(site.live.run())
    await asyncio.sleep(0.1)
    before = site.looks
    async with events(site.http.port) as reader:
        await chunk(reader)
        site.values["two"] = []
        said = await chunk(reader)
    job.cancel()

    assert (before, said) == (0, "event: two\ndata: []\n\n")


async def test_one_stream_too_many_is_refused_until_another_has_ended(site: Site) -> None:
    async with events(site.http.port):
        async with asyncio.TaskGroup() as group:
            leave = asyncio.Event()

            async def stay() -> None:
                async with events(site.http.port) as reader:
                    await chunk(reader)
                    await leave.wait()

            for _ in range(STREAMS - 1):
                group.create_task(stay())
            await until(lambda: site.live.open == STREAMS)
            refused = await send(site.http.port, "GET", "/events")
            leave.set()
        await until(lambda: site.live.open == 1)
        async with events(site.http.port) as reader:
            again = await chunk(reader)

    message = "16 event streams are open: close a page, or wait"
    error = {"message": message, "type": "service_unavailable", "param": None, "code": "too_many_streams"}
    assert (refused.status, refused.json()) == (503, {"error": error})
    assert again.startswith("event: one\n")


async def test_only_the_head_of_a_stream_takes_no_place(site: Site) -> None:
    async with events(site.http.port, "HEAD"):
        assert site.live.open == 0


async def test_a_view_that_fails_is_logged_once_and_the_others_go_on() -> None:
    values: list[Any] = [{"fine": 1}, {"fine": 2}]

    def broken() -> object:
        raise ValueError("no")

    async with (
        serving(Site({"broken": broken, "unencodable": lambda: "\ud800", "fine": lambda: values[0]})) as site,
        events(site.http.port) as reader,
    ):
        first = await chunk(reader)
        del values[0]
        site.live.look()
        second = await chunk(reader)

    assert (first, second) == ('event: fine\ndata: {"fine":1}\n\n', 'event: fine\ndata: {"fine":2}\n\n')
    assert [(line["msg"], line["view"]) for line in site.lines] == [
        ("a view of the page fails", "broken"),
        ("a view of the page fails", "unencodable"),
    ]


async def test_a_server_that_stops_ends_its_streams_and_waits_for_nobody(site: Site) -> None:
    async with events(site.http.port) as reader:
        await chunk(reader)
        site.http.should_exit = True
        last = await chunk(reader)
        await until(lambda: site.live.open == 0)

    assert last == ""


async def test_a_client_that_reads_nothing_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALLED", 0.1)
    numbers = iter(range(1_000_000))
    async with serving(Site({"long": lambda: f"{next(numbers)}" + "x" * 1_000_000})) as site:
        client = socket.create_connection(("127.0.0.1", site.http.port))
        client.sendall(b"GET /events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        await until(lambda: site.live.open == 1)

        def gone() -> bool:
            site.live.look()
            return site.live.open == 0

        await until(gone)
        client.close()

    assert [line["msg"] for line in site.lines] == ["a client that reads nothing was cut off"]


@pytest.mark.slow
async def test_the_program_ends_while_pages_are_open_and_one_of_them_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    members = [
        f"{{name: e{n}, address: '127.0.0.1:{n}', models: [{'m' * 200}], labels: {{a: b}}}}" for n in range(1, 999)
    ]
    path.write_text(f"pools: [{{name: chat, endpoints: [{', '.join(members)}]}}]\n")
    async with Server("--endpoints-file", str(path)) as server:
        with socket.create_connection(("127.0.0.1", server.admin_port)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            for _ in range(200):  # pipelined: more answers than the sockets between hold
                deaf.sendall(b"GET /endpointz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            async with events(server.admin_port) as reader:
                first = await chunk(reader)
                server.terminate()
                rest = await asyncio.wait_for(reader.read(), 20)
                code = await asyncio.wait_for(server.wait(), 20)

    assert first.startswith("event: overview\ndata: ")
    assert (rest.endswith(b"0\r\n\r\n"), code) == (True, 0)
