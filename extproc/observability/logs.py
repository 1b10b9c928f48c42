# SPDX-License-Identifier: Apache-2.0
"""JSON lines on standard error in the shape that the EPP's logs have: ts, level, logger, msg, then the rest.

Nothing here is global: a logger is made once and handed on. Bodies and credentials are never handed to it.
"""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import BinaryIO

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger, Processor

Logger = FilteringBoundLogger
Defer = Callable[[float, Callable[[], None]], object]


class DecisionLine(msgspec.Struct, kw_only=True):
    """The line that each decision writes, in its order; `microseconds` is our own work, waiting left out."""

    ts: str = ""
    level: str = "info"
    logger: str = "extproc"
    msg: str = "decision"
    request_id: str = msgspec.field(name="x-request-id")
    attachment: str
    decision: str
    reason: str
    owner: str
    owners: tuple[str, ...]
    model: str
    endpoints: int
    destination: str
    microseconds: int


class DecisionLog:
    """Writes DecisionLines.

    The one line that every request writes: as JSON it is encoded as a struct and lines are written together, since a chain
    of processors and a system call each cost as much as the decision (`make bench` holds the budget). On a console it takes
    the way of all lines.
    """

    def __init__(self, logger: Logger, form: str, level: str, defer: Defer, stream: BinaryIO | None = None) -> None:
        """`defer(seconds, callback)` is the loop's; a line is held for at most a hundredth of a second."""
        self._logger = logger
        self._json = form == "json"
        self._silent = logging.getLevelNamesMapping()[level.upper()] > logging.INFO
        self._sink = stream or sys.stderr.buffer
        self._encode = msgspec.json.Encoder().encode
        self._defer = defer
        self._lines: list[bytes] = []

    def __call__(self, line: DecisionLine) -> None:
        """Write the line, now or soon."""
        if self._silent:
            return
        if not self._json:
            fields = {name: value for name, value in msgspec.to_builtins(line).items() if name not in _OWN}
            self._logger.info(line.msg, **fields)
            return
        now = time.time()
        line.ts = f"{_second(int(now))}.{int(now % 1 * 1e6):06d}Z"
        self._lines.append(self._encode(line) + b"\n")
        if len(self._lines) == 1:
            self._defer(_HELD, self.flush)

    def flush(self) -> None:
        """Write what is held. A sink that cannot be written to loses lines; it does not stop the server."""
        lines, self._lines = self._lines, []
        with contextlib.suppress(OSError):
            self._sink.write(b"".join(lines))
            self._sink.flush()


_HELD = 0.01
_AGAIN = 60.0
"""Seconds for which a library's words are not repeated."""
_REMEMBERED = 256
_OWN = ("ts", "level", "msg")


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def make_logger(form: str, level: str, stream: BinaryIO | None = None) -> Logger:
    """A logger that writes each line at once to `stream` (standard error if None), as `json` or for a `console`."""
    stream = stream or sys.stderr.buffer
    shared: list[Processor] = [structlog.processors.add_log_level, structlog.processors.TimeStamper("iso", key="ts")]
    chain: list[Processor]
    sink: structlog.BytesLogger | structlog.WriteLogger
    if form == "json":
        encode = msgspec.json.Encoder(enc_hook=str).encode
        chain = [*shared, structlog.processors.format_exc_info, structlog.processors.EventRenamer("msg")]
        chain.append(structlog.processors.JSONRenderer(serializer=lambda event, **_: encode(event)))
        sink = structlog.BytesLogger(stream)
    else:
        # Where rich is installed, tracebacks would show the values of variables, and with them headers and bodies.
        plain = structlog.dev.plain_traceback
        chain = [
            *shared,
            structlog.dev.ConsoleRenderer(timestamp_key="ts", colors=stream.isatty(), exception_formatter=plain),
        ]
        sink = structlog.WriteLogger(io.TextIOWrapper(stream, write_through=True))
    wrapper = structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()])
    bound: Logger = structlog.wrap_logger(sink, processors=chain, wrapper_class=wrapper, cache_logger_on_first_use=True)
    return bound


class Relay(logging.Handler):
    """What a library says with `logging`, as lines of ours: no tracebacks, and nothing again before a minute has passed."""

    def __init__(
        self,
        logger: Logger,
        library: str = "",
        called: str = "",
        words: Callable[[logging.LogRecord], str] = logging.LogRecord.getMessage,
    ) -> None:
        """`library` is the name that it logs under, "" for all that have no relay of their own.

        `called` is what it is called in our lines ("": as it calls itself), `words` gives the text of one.
        """
        super().__init__(logging.WARNING)
        self._to = logger
        self._theirs = logging.getLogger(library)
        self._called = called
        self._words = words
        self._said: dict[tuple[str, str], float] = {}

    def attach(self) -> None:
        """Take what it says."""
        self._theirs.handlers, self._theirs.propagate = [self], False

    def detach(self) -> None:
        """Whatever it still says is for nobody."""
        self._theirs.handlers = [logging.NullHandler()]

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, if it is news."""
        now = time.monotonic()
        key = (record.name, str(record.msg))
        if now - self._said.get(key, -_AGAIN) < _AGAIN:
            return
        if len(self._said) >= _REMEMBERED:  # some libraries put addresses into what they say
            self._said.clear()
        self._said[key] = now
        error = {"error": str(record.exc_info[1])} if record.exc_info else {}
        self._to.log(record.levelno, self._words(record), logger=self._called or record.name, **error)
