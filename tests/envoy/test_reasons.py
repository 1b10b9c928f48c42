# SPDX-License-Identifier: Apache-2.0
"""Each reason comes with the decisions that its meaning names, and with no other: a request for each."""

from typing import Any

import pytest

from extproc.envoy.binding import Attachment, Binding, BodyMode
from extproc.envoy.explain import HttpRequest, explain
from extproc.policy.types import MEANINGS, STATUS, Pool, Reason
from tests.builders import CHAT, DUPLEX, QWEN, endpoint, headers, policy, session, snapshot

BEFORE, PICKER = Attachment.BEFORE, Attachment.PICKER
PATH = "/v1/completions"
WORLD = snapshot(
    endpoint(1, "vllm"),
    endpoint(2, "sglang"),
    endpoint(3, "tgi", ready=False),
    endpoint(4, "vllm", (QWEN,)),
    old=(endpoint(5, "vllm", address="fd00::5"),),
)
OLD = Pool("default", "old")
ANY = '{"owned_by": "*"}'
PASSES = "whenUnknown: {action: passthrough}\nwhenUnknownModel: {action: passthrough}\n"


def ask(body: str = "{}", path: str = PATH, method: str = "POST", **more: Any) -> HttpRequest:
    return HttpRequest(method, path, body=body.encode(), **more)


def owner(name: str) -> HttpRequest:
    return ask(f'{{"owned_by": "{name}"}}')


CASES: list[tuple[str, str, Attachment, str, HttpRequest, dict[str, Any]]] = [
    ("owner-matched", "restrict", BEFORE, "", owner("vllm"), {}),
    ("owner-preferred", "restrict", BEFORE, "whenAbsent: {action: prefer, owners: [vllm]}\n", ask(), {}),
    ("owner-drawn", "restrict", BEFORE, "whenAbsent: {action: split, weights: {vllm: 1}}\n", ask(), {}),
    ("owner-fallback", "restrict", BEFORE, "whenUnready: {action: fallback, owners: [vllm]}\n", owner("tgi"), {}),
    ("owner-allowed", "restrict", BEFORE, "models: [{model: '*', allow: [vllm]}]\n", owner("*"), {}),
    ("model-matched", "restrict", BEFORE, "", ask(f'{{"model": "{QWEN}"}}'), {}),
    ("owner-absent", "passthrough", BEFORE, "", ask(), {}),
    ("owner-absent", "restrict", PICKER, "", ask(), {}),
    ("owner-any", "passthrough", BEFORE, "", ask(ANY), {}),
    ("owner-any", "restrict", PICKER, "", ask(ANY), {}),
    ("owner-unknown", "passthrough", BEFORE, PASSES, owner("nobody"), {}),
    ("owner-unknown", "restrict", PICKER, PASSES, owner("nobody"), {}),
    ("model-unknown", "passthrough", BEFORE, "", ask('{"model": "none"}'), {}),
    ("model-unknown", "restrict", BEFORE, PASSES, ask('{"model": "none", "owned_by": "vllm"}'), {}),
    ("path-not-interpreted", "passthrough", BEFORE, "", ask(path="/metrics"), {}),
    ("path-not-interpreted", "restrict", PICKER, "", ask(path="/metrics"), {}),
    ("not-a-pool", "passthrough", BEFORE, "", ask(cluster="outbound|80||web.default.svc"), {"pool": None}),
    ("hint-without-body", "restrict", BEFORE, "", ask("", f"{PATH}?owned_by=vllm"), {}),
    ("hint-ipv6", "restrict", BEFORE, "", owner("vllm"), {"pool": OLD}),
    ("models-listed", "answer", BEFORE, "", ask("", "/v1/models", "GET"), {}),
    ("owner-malformed", "reject", BEFORE, "", owner("not one"), {}),
    ("owner-required", "reject", BEFORE, "whenAbsent: {action: reject}\n", ask(), {}),
    ("rejected-by-policy", "reject", BEFORE, "models: [{model: '*', allow: [vllm]}]\n", owner("sglang"), {}),
    ("owner-not-found", "reject", BEFORE, "", owner("nobody"), {}),
    ("model-not-found", "reject", BEFORE, "", ask('{"model": "none", "owned_by": "vllm"}'), {}),
    ("body-truncated", "reject", BEFORE, "whenTruncated: {action: reject}\n", ask(truncated_at=1), {}),
    ("body-too-large", "reject", BEFORE, "body: {maxBytes: 1}\n", ask(), {"body": BodyMode.STREAM}),
    ("no-ready-endpoint", "reject", BEFORE, "", owner("tgi"), {}),
    ("pool-unknown", "passthrough", BEFORE, "", ask(), {"pool": None}),
    ("pool-unknown", "reject", BEFORE, "", ask(), {"pool": Pool("default", "none")}),
]


@pytest.mark.parametrize(
    ("reason", "decision", "attachment", "text", "request_", "binding"), CASES, ids=[f"{c[0]}, {c[1]}" for c in CASES]
)
def test_a_request_comes_to_the_reason(  # noqa: PLR0917 - a row of the table
    reason: str, decision: str, attachment: Attachment, text: str, request_: HttpRequest, binding: dict[str, Any]
) -> None:
    found = explain(request_, Binding(attachment, **({"pool": CHAT} | binding)), WORLD, policy(text))

    assert (found.reason, found.decision) == (reason, decision)
    assert found.status == (STATUS[Reason(reason)] if decision == "reject" else 200 if decision == "answer" else 0)


def test_a_body_that_does_not_come_is_the_reason_of_a_refusal() -> None:
    one = session()
    one.receive(headers(mode=DUPLEX))
    one.expire()

    assert one.outcome is not None
    assert (one.outcome.reply.reason, type(one.outcome.reply.decision).__name__) == (Reason.BODY_TIMEOUT, "Reject")


def test_every_meaning_has_a_request_for_each_of_its_decisions() -> None:
    shown = {(reason, decision) for reason, decision, *_ in CASES} | {("body-timeout", "reject")}
    named = {(reason.value, decision) for reason, meaning in MEANINGS.items() for decision in meaning.decisions}

    assert named - shown == {("model-required", "reject")}  # nothing gives it yet
    assert shown <= named


def test_the_meanings_stand_in_the_order_of_the_reasons() -> None:
    assert list(MEANINGS) == list(Reason)
    assert {reason for reason, meaning in MEANINGS.items() if "reject" in meaning.decisions} == set(STATUS)
