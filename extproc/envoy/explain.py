# SPDX-License-Identifier: Apache-2.0
"""A dry run: an HTTP request taken through a real Session as Envoy would, and what came of it, step by step."""

from collections.abc import Sequence

import msgspec

from extproc.envoy import names
from extproc.envoy.binding import Binding, BodyMode
from extproc.envoy.messages import struct
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import Replies
from extproc.envoy.session import Session
from extproc.policy.config import PolicyConfig
from extproc.policy.pick import NO_LOADS, Loads
from extproc.policy.types import Answer, Reject, Restrict, Snapshot, Step


class HttpRequest(msgspec.Struct, frozen=True):
    """A request as a client sends it: `path` with its query, header names in lower case, the whole body.

    `pick` is the EPP's, as `after` finds it (`ip:port,ip:port`); `cluster` is where the route leads, as Envoy calls it.
    `truncated_at` is how many bytes of a body fit into Envoy's buffer where it does not stream it, None for all of them.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    pick: str = ""
    cluster: str = ""
    truncated_at: int | None = None

    @property
    def prefix(self) -> bytes:
        """What of the body fits into Envoy's buffer."""
        return self.body[: self.truncated_at]


class Explanation(msgspec.Struct, frozen=True):
    """What was decided and why; `endpoints` is what may be chosen from, `destination` what was written.

    `truncated` says that the body ended in Envoy's buffer before it was read to its end. `correction` is what became of the
    EPP's pick, `headers` the request headers that are set, `rerouted` whether the route is chosen anew by them; `body` is
    what the client gets if we answer, else what the engine gets if it is not what the client sent.
    """

    attachment: str
    decision: str
    reason: str
    asked_body: bool
    owners: tuple[str, ...]
    named_by: str
    model: str
    owner: str
    endpoints: tuple[str, ...]
    destination: str
    correction: str
    headers: dict[str, str]
    status: int
    body: str
    steps: tuple[Step, ...]
    truncated: bool = False
    rerouted: bool = False

    def facts(self) -> list[tuple[str, str]]:
        """What is worth a line each, in reading order."""
        facts = [
            ("asked for", ", ".join(self.owners) or "no owner"),
            ("named by", self.named_by),
            ("model", self.model),
            ("body read", "no" if not self.asked_body else "in part" if self.truncated else "yes"),
            ("owner", self.owner),
            ("endpoints", ", ".join(self.endpoints)),
            ("destination", self.destination),
            ("EPP's pick", self.correction),
            ("headers set", ", ".join(f"{name}: {value}" for name, value in self.headers.items())),
            ("route", "chosen anew" if self.rerouted else ""),
            ("status", str(self.status or "")),
            ("body", self.body.strip()),
        ]
        return [(name, value) for name, value in facts if value]

    def to_json(self) -> str:
        """One JSON object and a line end."""
        return msgspec.json.encode(self).decode() + "\n"


def explain(
    request: HttpRequest, binding: Binding, snapshot: Snapshot, policy: PolicyConfig, loads: Loads = NO_LOADS
) -> Explanation:
    """Take the request through a session and say what it came to; `loads` are the engines' figures, if there are any."""
    replies = Replies(snapshot, policy)
    session = Session(binding, lambda: replies, lambda: 0, lambda: loads)
    sent = session.receive(_head(request))
    if not session.done:
        sent += session.receive(_body(request, binding))
    outcome = session.outcome
    assert outcome is not None
    said = [pb.ProcessingResponse.FromString(message) for message in sent]
    parts = [part for message in said for part in (message.request_headers.response, message.request_body.response)]
    decision = outcome.reply.decision
    answer = said[-1].immediate_response
    ours = isinstance(decision, Reject | Answer)
    return Explanation(
        attachment=outcome.attachment.value,
        decision=type(decision).__name__.lower(),
        reason=outcome.reply.reason.value,
        asked_body=outcome.asked_body,
        owners=outcome.request.owners,
        named_by=outcome.request.param,
        model=outcome.request.model,
        owner=outcome.reply.owner,
        endpoints=tuple(e.destination for e in decision.endpoints) if isinstance(decision, Restrict) else (),
        destination=outcome.destination,
        correction=outcome.correction or "",
        headers={
            option.header.key: option.header.raw_value.decode()
            for part in parts
            for option in part.header_mutation.set_headers
        },
        status=answer.status.code if ours else 0,
        body=answer.body.decode() if ours else _changed(request, parts),
        steps=decision.steps,
        truncated=outcome.request.truncated,
        rerouted=not ours and any(part.clear_route_cache for part in parts),
    )


def _body(request: HttpRequest, binding: Binding) -> pb.ProcessingRequest:
    """The message with the body: all of it if it streams, else what fits into Envoy's buffer."""
    whole = binding.body is BodyMode.STREAM or request.prefix == request.body
    body = request.body if whole else request.prefix
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=whole))


def _changed(request: HttpRequest, parts: Sequence[pb.CommonResponse]) -> str:
    """The body that the engine gets, "" if it is the client's."""
    said = [part.body_mutation for part in parts if part.HasField("body_mutation")]
    body = b"".join(mutation.body or mutation.streamed_response.body for mutation in said)
    if any(mutation.body for mutation in said):  # Envoy sends what did not fit behind it
        body += request.body.removeprefix(request.prefix)
    return "" if body == request.body else body.decode(errors="replace")


def _head(request: HttpRequest) -> pb.ProcessingRequest:
    """The first message that Envoy would send."""
    head = pb.ProcessingRequest(protocol_config=pb.ProtocolConfiguration())
    headers = [(":method", request.method), (":path", request.path), *request.headers]
    if request.body and names.CONTENT_TYPE not in dict(request.headers):
        headers.append((names.CONTENT_TYPE, names.JSON))
    if request.pick:
        headers.append((names.DESTINATION, request.pick))
        picked = struct({names.DESTINATION: request.pick})
        head.metadata_context.filter_metadata[names.DESTINATION_NAMESPACE].CopyFrom(picked)
    if request.cluster:
        head.attributes[names.ATTRIBUTES].CopyFrom(struct({names.CLUSTER: request.cluster}))
    for name, value in headers:
        head.request_headers.headers.headers.append(pb.HeaderValue(key=name, raw_value=value.encode()))
    head.request_headers.end_of_stream = not request.body
    return head
