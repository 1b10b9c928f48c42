# SPDX-License-Identifier: Apache-2.0
"""The endpoints file and the loop that reads a file again."""

import asyncio
import os
from pathlib import Path

import pytest

from extproc.discovery.file import WatchedFile, parse_address, parse_endpoints
from extproc.policy.document import DocumentError
from extproc.policy.types import Endpoint, Model, Pool

FULL = b"""
pools:
- namespace: team-a
  name: chat
  endpoints:
  - name: llama-vllm-0
    address: 127.0.0.1:8001
    labels: {llm-d.ai/engine-type: vllm, llm-d.ai/role: decode}
    models: [meta-llama/Llama-3.2-1B-Instruct, {id: lora, created: 7, max_model_len: 4096}]
  - name: llama-sglang-0
    address: "[0:0:0:0:0:0:0:1]:8002"
    models: []
    ready: false
- name: empty
"""


def test_every_key_reaches_its_endpoint() -> None:
    assert parse_endpoints(FULL) == {
        Pool("team-a", "chat"): (
            Endpoint(
                name="llama-vllm-0",
                namespace="team-a",
                address="127.0.0.1",
                port=8001,
                labels={"llm-d.ai/engine-type": "vllm", "llm-d.ai/role": "decode"},
                role="decode",
                models=(Model("meta-llama/Llama-3.2-1B-Instruct"), Model("lora", 7, 4096)),
            ),
            Endpoint("llama-sglang-0", "team-a", "::1", 8002, models=(), ready=False),
        ),
        Pool("default", "empty"): (),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the document is empty"),
        (b"pools: []", "line 1, pools: Expected `array` of length >= 1"),
        (b"pools:\n- name: a\n  colour: red", "line 3, pools[0]: Object contains unknown field `colour`"),
        (b"pools:\n- name: a\n- name: a", "line 3, pools[1].name: the pool `default/a` stands twice"),
        (
            b"pools:\n- name: a\n  endpoints:\n  - name: x\n    address: here:80",
            "line 5, pools[0].endpoints[0].address: `here:80` is not ip:port or [v6]:port",
        ),
        (
            b"pools:\n- name: a\n  endpoints:\n  - {name: x, address: '127.0.0.1:1'}\n  - {name: x, address: '127.0.0.1:2'}",
            "line 5, pools[0].endpoints[1].name: the endpoint `x` stands twice in its pool",
        ),
        (
            b"pools:\n- name: a\n  endpoints:\n  - {name: x, address: '127.0.0.1:1'}\n  - {name: y, address: '127.0.0.1:1'}",
            "line 5, pools[0].endpoints[1].address: `127.0.0.1:1` stands twice in its pool",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(text: bytes, message: str) -> None:
    with pytest.raises(DocumentError) as raised:
        parse_endpoints(text)

    assert str(raised.value) == message


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:80", "[127.0.0.1]:80", "host:80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not ip:port|has no port"):
        parse_address(text)


class TestWatchedFile:
    """Reading a file again."""

    async def test_a_change_is_applied_without_being_told(self, tmp_path: Path) -> None:
        path = tmp_path / "policy.yaml"
        path.write_bytes(b"one")
        seen: list[bytes] = []
        told = asyncio.Event()
        file = WatchedFile(path, seen.append)
        file.load()

        watcher = asyncio.create_task(file.watch(lambda _file, _error: told.set()))
        path.write_bytes(b"two")
        await asyncio.wait_for(told.wait(), 10)
        watcher.cancel()

        assert seen == [b"one", b"two"]

    async def test_a_bad_file_keeps_the_last_good_one_and_is_told_once(self, tmp_path: Path) -> None:
        path = tmp_path / "endpoints.yaml"
        path.write_bytes(b"pools: [{name: a}]")
        errors: list[str | None] = []
        told = asyncio.Event()
        held: list[object] = []

        def on_load(_file: WatchedFile, error: str | None) -> None:
            errors.append(error)
            told.set()

        file = WatchedFile(path, lambda text: held.append(parse_endpoints(text)))
        file.load()
        watcher = asyncio.create_task(file.watch(on_load))
        path.write_bytes(b"")
        await asyncio.wait_for(told.wait(), 10)
        told.clear()
        path.write_bytes(b"pools: [{name: b}]")
        await asyncio.wait_for(told.wait(), 10)
        watcher.cancel()

        assert (errors, held) == (
            ["the document is empty", None],
            [{Pool("default", "a"): ()}, {Pool("default", "b"): ()}],
        )

    def test_a_missing_file_is_a_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentError, match="No such file or directory"):
            WatchedFile(tmp_path / "none", lambda _: None).load()

    def test_a_missing_file_that_is_optional_is_an_empty_one(self, tmp_path: Path) -> None:
        path = tmp_path / "routing.yaml"
        seen: list[bytes] = []
        file = WatchedFile(path, seen.append, optional=True)
        news = [file.load(), file.load()]
        path.write_bytes(b"one")
        news.append(file.load())
        path.unlink()
        news += [file.load(), file.load()]

        assert (seen, news) == ([b"", b"one", b""], [True, False, True, True, False])

    def test_an_optional_file_that_cannot_be_read_is_an_error_all_the_same(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentError, match="it is not a file"):
            WatchedFile(tmp_path, lambda _: None, optional=True).load()


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(DocumentError, match=r"^it is not a file$"):
        WatchedFile(tmp_path / "pipe", lambda _: None).load()
