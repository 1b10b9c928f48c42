# SPDX-License-Identifier: Apache-2.0
"""A dry run: an HTTP request taken through a real Session as Envoy would, and what came of it, step by step."""

import msgspec

from extproc.envoy import names
from extproc.envoy.binding import Binding
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.responses import Attachment, Replies
from extproc.envoy.session import Session
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Answer, Reject, Restrict, Snapshot, Step


class HttpRequest(msgspec.Struct, frozen=True):
    """A request as a client sends it: `path` with its query, header names in lower case, the whole body."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Explanation(msgspec.Struct, frozen=True):
    """What was decided and why; `endpoints` is what the EPP may choose from, `destination` what was written."""

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
    status: int
    body: str
    steps: tuple[Step, ...]

    def facts(self) -> list[tuple[str, str]]:
        """What is worth a line each, in reading order."""
        facts = [
            ("asked for", ", ".join(self.owners) or "no owner"),
            ("named by", self.named_by),
            ("model", self.model),
            ("body read", "yes" if self.asked_body else "no"),
            ("owner", self.owner),
            ("endpoints", ", ".join(self.endpoints)),
            ("destination", self.destination),
            ("status", str(self.status or "")),
            ("body", self.body),
        ]
        return [(name, value) for name, value in facts if value]

    def to_json(self) -> str:
        """One JSON object and a line end."""
        return msgspec.json.encode(self).decode() + "\n"


def explain(request: HttpRequest, binding: Binding, snapshot: Snapshot, policy: PolicyConfig) -> Explanation:
    """Take the request through a session and say what it came to."""
    replies = Replies(snapshot, policy)
    session = Session(binding, lambda: replies, lambda: 0)
    head = pb.ProcessingRequest(protocol_config=pb.ProtocolConfiguration())
    given = dict(request.headers)
    headers = [(":method", request.method), (":path", request.path), *request.headers]
    if request.body and names.CONTENT_TYPE not in given:
        headers.append((names.CONTENT_TYPE, names.JSON))
    for name, value in headers:
        head.request_headers.headers.headers.append(pb.HeaderValue(key=name, raw_value=value.encode()))
    head.request_headers.end_of_stream = not request.body
    sent = session.receive(head)
    if not session.done:
        body = pb.HttpBody(body=request.body, end_of_stream=True)
        sent = session.receive(pb.ProcessingRequest(request_body=body))
    outcome = session.outcome
    assert outcome is not None
    answer = pb.ProcessingResponse.FromString(sent[0]).immediate_response
    decision = outcome.reply.decision
    return Explanation(
        attachment=Attachment(outcome.attachment).value,
        decision=type(decision).__name__.lower(),
        reason=outcome.reply.reason.value,
        asked_body=outcome.asked_body,
        owners=outcome.request.owners,
        named_by=outcome.request.param,
        model=outcome.request.model,
        owner=outcome.reply.owner,
        endpoints=tuple(e.destination for e in decision.endpoints) if isinstance(decision, Restrict) else (),
        destination=outcome.destination,
        status=answer.status.code if isinstance(decision, Reject | Answer) else 0,
        body=answer.body.decode() if isinstance(decision, Reject | Answer) else "",
        steps=decision.steps,
    )
