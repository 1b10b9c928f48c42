# SPDX-License-Identifier: Apache-2.0
"""`GET /events`: what the page shows, as server-sent events.

    views --> look, once a second --> a frame for each view --> every stream that has not sent this one yet

Each view is sent at once to who comes, and again whenever it has changed. It is encoded once, for all streams, and
nobody looks while nobody is there. A stream ends after some minutes with an event `again`, and the page asks for the next
at once: who may see it is checked at the beginning, and a token that was replaced must not be good for ever.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from extproc.observability.logs import Logger
from extproc.server.answers import problem

STREAMS: Final = 16
"""How many may be open at once: each is a browser tab of an operator's."""
HEARTBEAT: Final = 15
"""Looks without news after which a comment is sent, so that both ends and what is between them know of each other."""
LASTS: Final = 300.0
"""Seconds after which a stream ends and has to be asked for again."""
AGAIN: Final = b"event: again\ndata: null\n\n"
"""What such a stream ends with."""

_INTERVAL: Final = 1.0
"""Seconds between two looks."""
_STALLED: Final = 30.0
"""Seconds after which a client that reads nothing has lost its place."""
_STREAM: Final = {"cache-control": "no-store"}


class Live:
    """The open event streams of one process."""

    def __init__(self, views: Mapping[str, Callable[[], object]], logger: Logger) -> None:
        """`views` by the names of their events; one that returns the identical object as before has not changed."""
        self.open = 0
        self._views = views
        self._logger = logger.bind(logger="live")
        self._seen: dict[str, object] = {}
        self._frames: dict[str, bytes] = {}
        self._failing: set[str] = set()
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._looked = asyncio.Event()
        self._ended = False

    def route(self) -> Route:
        """`/events`."""
        return Route("/events", self, methods=["GET"])

    async def run(self) -> None:
        """Look once a second while somebody is there, for ever."""
        while True:
            await asyncio.sleep(_INTERVAL)
            if self.open:
                self.look()

    def end(self) -> None:
        """End all streams at once, for good: an HTTP server that stops waits for its answers to end."""
        self._ended = True
        self._wake()

    def look(self) -> None:
        """See what has changed and wake all streams. A view that fails is logged and stays as it was."""
        for name, view in self._views.items():
            try:
                found = view()
                if found is self._seen.get(name):
                    continue
                frame = b"event: %b\ndata: %b\n\n" % (name.encode(), self._encode(found))
            except Exception:
                # Whatever it is: a page that shows too little must not end a server that serves.
                if name not in self._failing:
                    self._logger.exception("a view of the page fails", view=name)
                self._failing.add(name)
                continue
            self._failing.discard(name)
            self._seen[name] = found
            if frame != self._frames.get(name):
                self._frames[name] = frame
        self._wake()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for the stream; 503 in the shape of our errors if there are too many."""
        if self.open >= STREAMS:
            await _too_many()(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            await Response(media_type="text/event-stream", headers=_STREAM)(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(_STALLED):
                await send(message)

        if not self.open:
            self.look()
        self.open += 1
        try:
            stream = StreamingResponse(self._stream(), media_type="text/event-stream", headers=_STREAM)
            await stream(scope, receive, send_in_time)
        except TimeoutError:
            self._logger.info("a client that reads nothing was cut off")
        finally:
            self.open -= 1

    async def _stream(self) -> AsyncIterator[bytes]:
        sent: dict[str, bytes] = {}
        quiet = 0
        ends = time.monotonic() + LASTS
        while not self._ended:
            looked = self._looked  # taken before the frames are: a look while they are on their way is not missed
            news = [frame for name, frame in self._frames.items() if frame is not sent.get(name)]
            sent = dict(self._frames)
            quiet = 0 if news else quiet + 1
            if news:
                yield b"".join(news)
            elif quiet == HEARTBEAT:
                quiet = 0
                yield b": still here\n\n"
            await looked.wait()
            if time.monotonic() >= ends:
                yield AGAIN
                return

    def _wake(self) -> None:
        looked, self._looked = self._looked, asyncio.Event()
        looked.set()


def _too_many() -> Response:
    message = f"{STREAMS} event streams are open: close a page, or wait"
    return problem(503, "too_many_streams", message, headers={"retry-after": "5"})
