# SPDX-License-Identifier: Apache-2.0
"""The ext_proc service: one coroutine per stream, a Session inside, and one log line per decision.

A clean end without an answer means "continue" to Envoy, even when it fails closed (facts/envoy.md 5): whatever goes
wrong here aborts the stream instead.
"""

import asyncio
import itertools
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import grpc

from extproc.envoy import names
from extproc.envoy.binding import Binding, ProtocolError
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import Replies
from extproc.envoy.session import Outcome, Session
from extproc.observability.logs import DecisionLine, Logger
from extproc.observability.metrics import Metrics
from extproc.policy.config import PolicyConfig
from extproc.policy.pick import Loads
from extproc.policy.types import Restrict, Snapshot

if TYPE_CHECKING:
    from extproc.observability.tracing import Trace, Tracing

LONG_HINT = 200
"""More entries than this in a hint are worth a word (design section 4): Envoy sends them with every message."""

_NOTHING = b""
"""What is returned where nobody is there any more to receive it."""

_FEW = 2
"""The headers answer and one frame: what is longer is so long on its way that an engine may refuse it before its end."""
_PATIENCE = 0.02
"""Seconds for which such an answer is waited for before the end of a long body is handed on: little beside
what an engine needs to read one."""

Context = grpc.aio.ServicerContext[pb.ProcessingRequest, bytes]


class ExternalProcessor:
    """Answers Envoy's streams from the current snapshot and policy."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it is joined to
        self,
        binding: Binding,
        snapshot: Callable[[], Snapshot],
        policy: Callable[[], PolicyConfig],
        logger: Logger,
        decisions: Callable[[DecisionLine], None],
        metrics: Metrics,
        loads: Callable[[], Loads],
        tracing: "Tracing | None" = None,
    ) -> None:
        """`binding` is what the flags say of streams that do not say it themselves; `loads` the engines' figures.

        `tracing` makes a span for each decision, None makes none.
        """
        self.open_streams = 0
        self.longest_hint = 0
        self._binding = binding
        self._snapshot = snapshot
        self._policy = policy
        self._logger = logger
        self._log_decision = decisions
        self._metrics = metrics
        self._loads = loads
        self._tracing = tracing
        self._replies = Replies(snapshot(), policy())
        self._rotation = itertools.count().__next__
        self._warned = -1
        metrics.streams.set_function(lambda: self.open_streams)

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc.aio server is given."""
        # To grpc.aio a method that streams its answers ends with a message of its own, sent later than the last answer;
        # one that returns its last answer sends both in one piece. On the wire they are the same.
        process: grpc.RpcMethodHandler[pb.ProcessingRequest, bytes] = grpc.stream_unary_rpc_method_handler(
            self.process, request_deserializer=pb.ProcessingRequest.FromString, response_serializer=None
        )
        return grpc.method_handlers_generic_handler(names.SERVICE, {names.METHOD: process})

    def world(self) -> Replies:
        """The replies of the current snapshot and policy."""
        snapshot, policy = self._snapshot(), self._policy()
        if self._replies.snapshot is not snapshot or self._replies.policy is not policy:
            self._replies = Replies(snapshot, policy)
        return self._replies

    async def process(self, _requests: object, context: Context) -> bytes:
        """One stream, that is one HTTP request; the last answer is what it returns."""
        self.open_streams += 1
        trace = self._tracing.begin(context.invocation_metadata() or ()) if self._tracing is not None else None
        try:
            return await self._process(context, trace)
        except ProtocolError as error:
            self._failed("protocol", trace)
            self._logger.warning("protocol error", error=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception:
            if context.cancelled() or context.done():
                return _NOTHING
            self._failed("internal", trace)
            self._logger.exception("internal error")
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")
        finally:
            self.open_streams -= 1

    async def _process(self, context: Context, trace: "Trace | None") -> bytes:
        binding = self._binding.with_metadata(context.invocation_metadata() or ())
        session = Session(binding, self.world, self._rotation, self._loads)
        try:
            return await self._converse(session, _Stream(context, session), trace)
        finally:
            if session.begun and session.outcome is None:
                self._metrics.undecided.inc()

    async def _converse(self, session: Session, stream: "_Stream", trace: "Trace | None") -> bytes:
        spent = 0.0
        told = False
        while (message := await stream.read()) is not grpc.aio.EOF:
            started = perf_counter()
            replies = session.receive(message) if message is not None else session.expire()
            spent += perf_counter() - started
            last = replies.pop() if session.done else None
            await stream.write(replies, ends=last is not None)
            if not told and session.outcome is not None:
                told = True
                self._tell(session.outcome, spent, trace)
            if session.served:
                self._metrics.served.labels(_served(session)).inc()
                session.served = ""
            if last is not None:
                if stream.early is None:
                    return last
                session.reopen()
                await stream.write([last], ends=False)
        return _NOTHING

    def _failed(self, cause: str, trace: "Trace | None") -> None:
        """Count and trace a stream that is aborted."""
        self._metrics.stream_errors.labels(cause).inc()
        if trace is not None:
            trace.failed(cause)

    def _tell(self, outcome: Outcome, spent: float, trace: "Trace | None") -> None:
        """Count, trace and log a decision."""
        reply, request = outcome.reply, outcome.request
        line = DecisionLine(
            request_id=outcome.request_id[:128],
            attachment=outcome.attachment,
            decision=type(reply.decision).__name__.lower(),
            reason=reply.reason,
            owner=reply.owner,
            owners=request.owners,
            model=request.model[:128],
            endpoints=len(reply.decision.endpoints) if isinstance(reply.decision, Restrict) else 0,
            destination=outcome.destination,
            microseconds=round(spent * 1e6),
        )
        exemplar = trace.decided(line, asked_body=outcome.asked_body) if trace is not None else None
        self._metrics.decided(line.attachment, line.decision, line.reason, line.owner, exemplar)
        self._metrics.decision_duration.observe(spent, exemplar)
        if outcome.correction is not None:
            self._metrics.picks.labels(outcome.correction).inc()
            if outcome.outside:
                self._metrics.picks_outside_hint.inc()
        if outcome.asked_body:
            self._metrics.request_body.observe(outcome.body_bytes)
            if request.truncated:
                self._metrics.truncated.inc()
            if request.mismatch:
                self._metrics.mismatches.inc()
        if reply.hinted > LONG_HINT:
            self._long_hint(reply.hinted)
        self._log_decision(line)

    def _long_hint(self, entries: int) -> None:
        self._metrics.long_hints.inc()
        generation = self._snapshot().generation
        self.longest_hint = entries if self._warned != generation else max(self.longest_hint, entries)
        if self._warned != generation:
            self._warned = generation
            self._logger.warning(
                "long hint", entries=entries, advice="a pool per engine and the `header` attachment keep hints short"
            )


class _Stream:
    """A stream's two directions; `early` is a message that came while its last answers were written."""

    def __init__(self, context: Context, session: Session) -> None:
        self.early: Any = None  # the stubs do not know that a read can give EOF
        self._context = context
        self._session = session
        self._expires = 0.0  # one deadline for the whole body: a client that sends byte by byte must not move it

    async def read(self) -> Any:
        """Envoy's next message, grpc.aio.EOF, or None when it has not come in time."""
        if self.early is not None:
            message, self.early = self.early, None
            return message
        if (seconds := self._session.deadline) is None:
            return await self._context.read()
        self._expires = self._expires or asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(self._expires):
                return await self._context.read()
        except TimeoutError:
            return None

    async def write(self, replies: list[bytes], *, ends: bool) -> None:
        """Write answers; if the stream then `ends`, see whether Envoy says something meanwhile.

        What it says then is that the engine has answered a request that is still on its way to it, with a 401 or a 413.
        Ending our stream would cut that answer's body, which is on its way to us.
        """
        reading = None
        if ends and replies and self._session.whole_answer:
            reading = asyncio.ensure_future(self._context.read())
        for reply in replies:
            await self._context.write(reply)
        if reading is None:
            return
        if len(replies) > _FEW:
            await asyncio.wait({reading}, timeout=_PATIENCE)
        if reading.done():
            self.early = reading.result()
        reading.cancel()


def _served(session: Session) -> str:
    """Whether the endpoint that served is the one that we named first, a later one, or none of ours."""
    named = session.outcome.destination.split(",") if session.outcome else []
    if session.served not in named:
        return "other"
    return "first" if session.served == named[0] else "next"
