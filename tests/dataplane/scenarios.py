# SPDX-License-Identifier: Apache-2.0
"""What is asked of a whole chain, by the tests of the Envoy that is installed and by the table of all Envoys in use.

A scenario puts an Envoy on a stage, sends requests through it, and counts what came of them.
"""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import h11
import msgspec

from extproc.demo.bootstrap import Bodies, Plan, Route
from tests.dataplane.exchange import Framing, Request, exchange
from tests.dataplane.stage import MODEL, Stage
from tests.fakes.backend import FIRST, LAST

JSON = ("content-type", "application/json")
CHAT = "/v1/chat/completions"
AT_ONCE = 32
_SEEN = 1_048_576
"""How much of a body is seen at least, in bytes: the listener's buffer."""


@dataclass
class Tally:
    """Of `requests`: those that another engine answered, those whose body or answer did not arrive as it was sent (cut, as
    a rule; or twice), those without a 2xx, by status."""

    requests: int = 0
    wrong_engine: int = 0
    changed: int = 0
    failed: Counter[int] = field(default_factory=Counter)

    @property
    def verdict(self) -> str:
        """In a word: `holds`, or the worst that happened, or the statuses that came instead."""
        if self.changed:
            return "changes bodies"
        if self.wrong_engine:
            return "leaks"
        return ", ".join(map(str, sorted(self.failed))) or "holds"


@dataclass(frozen=True)
class Sent:
    """A request and the engine that must answer it ("" if any may)."""

    request: Request
    owner: str


async def send_all(port: int, everything: Iterable[Sent]) -> Tally:
    """Send all of it, so many at once, and count."""
    tally, limit = Tally(), asyncio.Semaphore(AT_ONCE)

    async def one(sent: Sent) -> None:
        async with limit:
            tally.requests += 1
            try:
                async with asyncio.timeout(30), exchange(port, sent.request) as answer:
                    whole = await answer.rest()
            except (OSError, TimeoutError, h11.ProtocolError, AssertionError):
                tally.changed += 1
                return
            if not 200 <= answer.status < 300:
                tally.failed[answer.status] += 1
                return
            tally.wrong_engine += not answer.headers["x-served-by"].startswith(sent.owner)
            digest = hashlib.sha256(sent.request.body or b"").hexdigest()
            tally.changed += whole != FIRST + LAST or answer.headers["x-body-sha256"] != digest

    await asyncio.gather(*(one(sent) for sent in everything))
    return tally


def chats(
    count: int, *, sizes: tuple[int, ...] = (100, 2_000, 100_000), framing: Framing = "content-length"
) -> list[Sent]:
    """Chat requests that name either engine in every way there is, the same ones each time."""
    chance = random.Random(1)
    places = ["header", "query", "first key"]
    if max(sizes) < _SEEN:  # else a key that is the last one may not be seen
        places.append("last key")
    return [
        chat(
            chance.choice(("vllm", "sglang")),
            chance.choice(places),
            chance.choice(sizes),
            framing,
        )
        for _ in range(count)
    ]


def chat(owner: str, place: str, size: int = 100, framing: Framing = "content-length") -> Sent:
    """A chat request that names its owner in one place; `size` is that of its prompt, in bytes."""
    said = {"owned_by": owner}
    fields = (said if place == "first key" else {}) | {"model": MODEL, "prompt": "p" * size}
    body = msgspec.json.encode(fields | (said if place == "last key" else {}))
    headers = (JSON, ("x-owned-by", owner)) if place == "header" else (JSON,)
    path = f"{CHAT}?owned_by={owner}" if place == "query" else CHAT
    return Sent(Request("POST", path, headers, body, framing), owner)


def gets(count: int) -> list[Sent]:
    """Requests without a body, for one engine and the other."""
    owners = [("vllm", "sglang")[number % 2] for number in range(count)]
    return [Sent(Request("GET", "/v1/responses/1", (("x-owned-by", owner),), None), owner) for owner in owners]


async def chain(stage: Stage, sent: list[Sent], *, before: bool = True, after: bool = True, retries: int = 2) -> Tally:
    """`before`, the stand-in and `after`, or fewer of them, with the two retries that are Istio's default."""
    ours = stage.server.grpc_port
    plan = Plan(
        endpoints=stage.pool,
        before_port=ours if before else None,
        picker_port=stage.epp.port,
        after_port=ours if after else None,
        retries=retries,
    )
    return await send_all((await stage.envoy(plan)).port, sent)


async def picker(stage: Stage, sent: list[Sent]) -> Tally:
    """Our server as the pool's picker, as Istio sets it up: it ends its stream before the answer."""
    plan = Plan(endpoints=stage.pool, picker_port=stage.server.grpc_port)
    return await send_all((await stage.envoy(plan)).port, sent)


async def header(stage: Stage, sent: list[Sent]) -> Tally:
    """`header`, and a route for each owner."""
    routes = tuple(Route(owner, stage.engine(owner), headers=(("x-owned-by", owner),)) for owner in ("vllm", "sglang"))
    plan = Plan(endpoints=stage.pool, routes=routes, header_port=stage.server.grpc_port)
    return await send_all((await stage.envoy(plan)).port, sent)


async def streamed(stage: Stage, sent: list[Sent]) -> Tally:
    """`before` with `x-owned-by-body: stream`, and the stand-in."""
    plan = Plan(
        endpoints=stage.pool, before_port=stage.server.grpc_port, picker_port=stage.epp.port, bodies=Bodies.STREAM
    )
    return await send_all((await stage.envoy(plan)).port, sent)


@dataclass(frozen=True)
class Guarded:
    """An EPP that is not there: its cluster is empty, or its port refuses; what became of GETs and of POSTs."""

    without_body: Tally
    with_body: Tally


async def guard(stage: Stage, refusing: int | None) -> Guarded:
    """`before`, and an EPP's filter that fails open; `refusing` is a port that nobody listens at, None an empty cluster."""
    plan = Plan(
        endpoints=stage.pool,
        before_port=stage.server.grpc_port,
        picker_port=refusing,
        picker_empty=refusing is None,
        picker_failure_mode_allow=True,
        retries=2,
    )
    port = (await stage.envoy(plan)).port
    return Guarded(await send_all(port, gets(24)), await send_all(port, chats(24)))


async def own_answer(stage: Stage, epp_port: int, request: Request) -> tuple[int, str]:
    """The status and the reason of an answer that is ours, with the EPP's filter behind us."""
    plan = Plan(endpoints=stage.pool, before_port=stage.server.grpc_port, picker_port=epp_port)
    async with exchange((await stage.envoy(plan)).port, request) as answer:
        body = await answer.rest()
    if not body:
        return answer.status, ""
    told: Callable[..., str] = answer.headers.get
    return answer.status, told("x-owned-by-reason", msgspec.json.decode(body).get("object", ""))
