# SPDX-License-Identifier: Apache-2.0
"""JSON lines on standard error in the shape that the EPP's logs have: ts, level, logger, msg, then the rest.

Nothing here is global: a logger is made once and handed on. Bodies and credentials are never handed to it.
"""

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


def decision_log(
    logger: Logger, form: str, level: str, stream: BinaryIO | None = None
) -> Callable[[DecisionLine], None]:
    """What writes a DecisionLine.

    The one line that every request writes: as JSON it is encoded as a struct, since the chain of processors costs as much
    as the decision (`make bench` holds the budget); on a console it takes the way of all lines.
    """
    if logging.getLevelNamesMapping()[level.upper()] > logging.INFO:
        return lambda _: None
    if form != "json":
        return lambda line: logger.info(
            line.msg, **{k: v for k, v in msgspec.to_builtins(line).items() if k not in _OWN}
        )
    write, encode = (stream or sys.stderr.buffer).write, msgspec.json.Encoder().encode
    flush = (stream or sys.stderr.buffer).flush

    def log(line: DecisionLine) -> None:
        now = time.time()
        line.ts = f"{_second(int(now))}.{int(now % 1 * 1e6):06d}Z"
        write(encode(line) + b"\n")
        flush()

    return log


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
        chain = [*shared, structlog.dev.ConsoleRenderer(timestamp_key="ts", colors=stream.isatty())]
        sink = structlog.WriteLogger(io.TextIOWrapper(stream, write_through=True))
    wrapper = structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()])
    bound: Logger = structlog.wrap_logger(sink, processors=chain, wrapper_class=wrapper, cache_logger_on_first_use=True)
    return bound
