# SPDX-License-Identifier: Apache-2.0
"""Inference engines as far as a router sees them: the OpenAI paths and the metrics of vLLM and of SGLang, no model.

Every answer says in its headers who gave it and what arrived, so that a test can tell whether the way there changed it.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, Self

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from extproc.demo.client import LOOPBACK
from extproc.policy.pick import Load

Kind = Literal["vllm", "sglang"]
Handler = Callable[[Request], Awaitable[Response]]

MAX_MODEL_LEN: Final[dict[Kind, int]] = {"vllm": 8192, "sglang": 4096}
"""What an engine of a kind promises, in tokens; they differ so that a list of both shows whose entry it is."""

_METRICS: Final[dict[Kind, tuple[str, str, str]]] = {
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    "sglang": ("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"),
}
_IDLE: Final = Load(0, 0.0)
_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@dataclass(frozen=True)
class Simulated:
    """An engine: its name, its kind, the model that it serves, and its port (0 while it has none, or wants a free one).

    `host` is an address of this machine's own, 127.x.y.z: engines on different ones can share a port, as pods do.
    """

    name: str
    kind: Kind
    model: str
    port: int = 0
    host: str = LOOPBACK

    def __post_init__(self) -> None:
        """Raise ValueError if the host could be reached from another machine."""
        if not ipaddress.IPv4Address(self.host).is_loopback:
            raise ValueError(f"`{self.host}` is not of this machine alone: 127.x.y.z")

    @property
    def address(self) -> str:
        """`ip:port`."""
        return f"{self.host}:{self.port}"


def engine(kind: Kind, model: str, name: str, load: Callable[[], Load | None] = lambda: _IDLE) -> Starlette:
    """An application that answers as `kind` does for `model`; it is `name` that `x-served-by` says.

    `load()` is what its metrics say at that moment; None: there are none.
    """
    simulator = _Engine(kind, model, name, load)
    routes = [
        Route("/v1/models", simulator.witnessed(simulator.models), methods=["GET"]),
        Route("/v1/chat/completions", simulator.witnessed(simulator.chat), methods=["POST"]),
        Route("/v1/completions", simulator.witnessed(simulator.completions), methods=["POST"]),
        Route("/health", simulator.witnessed(simulator.health), methods=["GET"]),
        Route("/metrics", simulator.witnessed(simulator.metrics), methods=["GET"]),
        Route("/{path:path}", simulator.witnessed(simulator.anything), methods=_METHODS),
    ]
    return Starlette(routes=routes)


class _Engine:
    def __init__(self, kind: Kind, model: str, name: str, load: Callable[[], Load | None]) -> None:
        self.kind = kind
        self.model = model
        self.name = name
        self.load = load
        self.created = int(time.time())
        self.running = 0

    def witnessed(self, handler: Handler) -> Handler:
        """The handler, its answers marked with who answered and what arrived."""

        async def marked(request: Request) -> Response:
            body = await request.body()
            response = await handler(request)
            response.headers["x-served-by"] = self.name
            response.headers["x-body-sha256"] = hashlib.sha256(body).hexdigest()
            response.headers["x-body-bytes"] = str(len(body))
            response.headers["x-seen-headers"] = ",".join(sorted(request.headers.keys()))
            response.headers["x-content-length"] = request.headers.get("content-length", "-")
            return response

        return marked

    async def models(self, _: Request) -> Response:
        entry = {"id": self.model, "object": "model", "created": self.created, "owned_by": self.kind}
        return JSONResponse({"object": "list", "data": [entry | {"max_model_len": MAX_MODEL_LEN[self.kind]}]})

    async def health(self, _: Request) -> Response:
        return Response()

    async def metrics(self, _: Request) -> Response:
        if (load := self.load()) is None:
            return Response(status_code=404)
        figures = zip(_METRICS[self.kind], (self.running, *load), strict=True)
        label = f'{{model_name="{self.model}"}}'
        return PlainTextResponse("".join(f"# TYPE {name} gauge\n{name}{label} {value}\n" for name, value in figures))

    async def anything(self, request: Request) -> Response:
        return JSONResponse({"served_by": self.name, "method": request.method, "path": request.url.path})

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, "chat.completion")

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, "text_completion")

    async def _generate(self, request: Request, kind: str) -> Response:
        try:
            asked = msgspec.json.decode(await request.body())
        except msgspec.DecodeError as error:
            return _error(400, "BadRequestError", f"the body is not JSON: {error}", None)
        if not isinstance(asked, dict):
            return _error(400, "BadRequestError", "the body must be a JSON object", None)
        model = asked.get("model", self.model)
        if model != self.model:
            return _error(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
        words = f"{self.name} says hello .".split()
        if asked.get("stream"):
            return StreamingResponse(self._stream(kind, words), media_type="text/event-stream")
        usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)}
        choice = _choice(kind, "message", " ".join(words)) | {"finish_reason": "stop"}
        return JSONResponse(self._document(kind, [choice]) | {"usage": usage})

    async def _stream(self, kind: str, words: list[str]) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            chunk = "chat.completion.chunk" if kind == "chat.completion" else kind
            for number, word in enumerate(words, 1):
                reason = "stop" if number == len(words) else None
                choice = _choice(kind, "delta", word + " ") | {"finish_reason": reason}
                yield b"data: " + msgspec.json.encode(self._document(chunk, [choice])) + b"\n\n"
                await asyncio.sleep(0)
            yield b"data: [DONE]\n\n"
        finally:
            self.running -= 1

    def _document(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": "sim-1", "object": kind, "created": self.created, "model": self.model, "choices": choices}


def _choice(kind: str, field: str, text: str) -> dict[str, Any]:
    if kind == "text_completion":
        return {"index": 0, "text": text}
    return {"index": 0, field: {"role": "assistant", "content": text}}


def _error(status: int, kind: str, message: str, param: str | None) -> Response:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)


class _Server(uvicorn.Server):
    """uvicorn inside a loop that is not its own: signals are for whoever owns the loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's handlers alone."""
        yield


def _listener(host: str, port: int) -> socket.socket:
    # Its protocol is spelt out: asyncio turns Nagle's algorithm off only where it reads TCP, and `create_server` says 0.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A port that was wanted may still have connections of an engine that is gone.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


class Engines:
    """Engines that serve while the context is open, each at its host and port, or at a free port if it wants 0.

    Goes in: what they shall be. `endpoints` is the same list with the ports that they got.
    """

    def __init__(self, wanted: Iterable[Simulated]) -> None:
        """Nothing listens yet."""
        self.endpoints = list(wanted)
        self._loads: dict[str, Load | None] = dict.fromkeys((each.name for each in self.endpoints), _IDLE)
        self._servers: list[_Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Listen at all ports; a connection made from here on is answered. Raises OSError if a port is not to be had."""
        listeners: list[socket.socket] = []
        try:
            for wanted in self.endpoints:
                listeners.append(_listener(wanted.host, wanted.port))  # noqa: PERF401 - those before a failure are closed
        except OSError:
            for listener in listeners:
                listener.close()
            raise
        for number, (wanted, listener) in enumerate(zip(self.endpoints, listeners, strict=True)):
            app = engine(wanted.kind, wanted.model, wanted.name, partial(self._loads.__getitem__, wanted.name))
            # `ws="none"`: an upgrade is answered as the ordinary request that it also is.
            config = uvicorn.Config(
                app, lifespan="off", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
            )
            config.load()
            server = _Server(config)
            self.endpoints[number] = replace(wanted, port=listener.getsockname()[1])
            self._servers.append(server)
            self._tasks.append(asyncio.create_task(server.serve(sockets=[listener])))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Answer what is open, then close all ports."""
        for server in self._servers:
            server.should_exit = True
        await asyncio.gather(*self._tasks)

    def load(self, name: str, *, waiting: float = 0, kv_cache: float = 0.0) -> None:
        """Set what the metrics of the engine with that name say from now on. Raises KeyError if there is none."""
        if name not in self._loads:
            raise KeyError(name)
        self._loads[name] = Load(waiting, kv_cache)

    def silence(self, name: str) -> None:
        """Leave the engine with that name without metrics from now on. Raises KeyError if there is none."""
        if name not in self._loads:
            raise KeyError(name)
        self._loads[name] = None
