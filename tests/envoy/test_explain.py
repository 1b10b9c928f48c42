# SPDX-License-Identifier: Apache-2.0
"""A dry run: what it shows is what the session did."""

import json
from typing import Any

import msgspec
import pytest

from extproc.envoy.binding import Attachment, Binding, BodyMode
from extproc.envoy.explain import Explanation, HttpRequest, explain
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Snapshot, Step
from tests.builders import CHAT, DEFAULT, DEST, PLAIN, attempts, endpoint, policy, snapshot

BEFORE, AFTER, PICKER, HEADER = Attachment.BEFORE, Attachment.AFTER, Attachment.PICKER, Attachment.HEADER
V1, V2, S1 = "10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"
PATH = "/v1/chat/completions"
BODY = b'{"engine": "vllm"}'
ASKED = HttpRequest("POST", PATH, body=BODY)
STEPS = (Step("pool default/chat", 3, 3), Step("owner vllm", 3, 2))


def explained(
    request: HttpRequest,
    attachment: Attachment = BEFORE,
    world: Snapshot = PLAIN,
    policy_: PolicyConfig = DEFAULT,
    **binding: Any,
) -> Explanation:
    return explain(request, Binding(attachment, **({"pool": CHAT} | binding)), world, policy_)


WHOLE = Explanation(
    attachment="before",
    decision="restrict",
    reason="owner-matched",
    asked_body=True,
    owners=("vllm",),
    named_by="engine",
    model="",
    owner="vllm",
    endpoints=(V1, V2),
    destination=attempts(V1, V2),
    correction="",
    headers={},
    status=0,
    body="",
    steps=STEPS,
)
BY_ATTACHMENT: dict[Attachment, dict[str, Any]] = {
    BEFORE: {},
    AFTER: {"correction": "narrowed", "destination": attempts(V2, V1), "headers": {DEST: attempts(V2, V1)}},
    PICKER: {"headers": {DEST: attempts(V1, V2)}},
    HEADER: {"destination": "", "headers": {"x-owned-by": "vllm"}},
}


@pytest.mark.parametrize("attachment", Attachment)
def test_what_each_attachment_does_is_told_whole(attachment: Attachment) -> None:
    request = msgspec.structs.replace(ASKED, pick=f"{S1},{V2}" if attachment is AFTER else "")
    expected = msgspec.structs.replace(WHOLE, attachment=attachment.value, **BY_ATTACHMENT[attachment])
    assert explained(request, attachment) == expected


@pytest.mark.parametrize("attachment", Attachment)
def test_a_body_that_streams_is_told_alike(attachment: Attachment) -> None:
    request = msgspec.structs.replace(ASKED, pick=f"{S1},{V2}" if attachment is AFTER else "")
    assert explained(request, attachment, body=BodyMode.STREAM) == explained(request, attachment)


PICKS: dict[str, tuple[str, str, str]] = {
    "kept": (V2, attempts(V2, V1), "kept"),
    "narrowed": (f"{S1},{V2}", attempts(V2, V1), "narrowed"),
    "rewritten": (S1, attempts(V1, V2), "rewritten"),
    "none": ("", attempts(V1, V2), "epp-bypassed"),
}


@pytest.mark.parametrize(("pick", "destination", "correction"), PICKS.values(), ids=PICKS)
def test_what_becomes_of_a_pick_is_told(pick: str, destination: str, correction: str) -> None:
    request = HttpRequest("POST", PATH, (("x-owned-by", "vllm"),), pick=pick)
    found = explained(request, AFTER)
    assert (found.destination, found.correction, found.headers) == (destination, correction, {DEST: destination})


def test_a_pick_that_passes_is_told() -> None:
    found = explained(HttpRequest("POST", PATH, (("x-owned-by", "*"),), pick=S1), AFTER)
    assert (found.decision, found.destination, found.correction) == ("passthrough", S1, "kept")


CLUSTERS: dict[str, tuple[str, tuple[str, str, str]]] = {
    "a pool's": (
        "outbound|54321||chat-ip-31e06f7d.default.svc.cluster.local",
        ("restrict", "hint-without-body", attempts(V1)),
    ),
    "no pool's": ("outbound|80||web.default.svc.cluster.local", ("passthrough", "not-a-pool", "")),
    "an unknown pool's": ("outbound|54321||chat-ip-31e06f7d.prod.svc.cluster.local", ("reject", "pool-unknown", "")),
    "nothing": ("", ("passthrough", "pool-unknown", "")),
}


@pytest.mark.parametrize(("cluster", "expected"), CLUSTERS.values(), ids=CLUSTERS)
def test_where_the_route_leads_is_taken_into_account(cluster: str, expected: tuple[str, str, str]) -> None:
    world = snapshot(endpoint(1, "vllm", None), other=(endpoint(2, "vllm", None),))
    request = HttpRequest("POST", PATH, (("x-owned-by", "vllm"),), cluster=cluster)
    found = explained(request, world=world, pool=None)
    assert (found.decision, found.reason, found.destination) == expected


def test_a_refusal_is_shown_as_the_client_sees_it() -> None:
    found = explained(HttpRequest("POST", PATH, (("x-owned-by", "nobody"),), BODY))
    assert (found.status, found.asked_body, found.endpoints, found.headers) == (404, False, (), {})
    assert json.loads(found.body)["error"]["code"] == "owner_not_found"


def test_a_list_of_models_is_shown_as_the_client_sees_it() -> None:
    found = explained(HttpRequest("GET", "/v1/models"), world=snapshot(endpoint(1, "vllm", ("m",))))
    assert (found.decision, found.status, json.loads(found.body)["data"][0]["id"]) == ("answer", 200, "m")


def test_a_stripped_body_is_shown_as_the_engine_sees_it() -> None:
    found = explained(ASKED, policy_=policy("body: {strip: true}\n"))
    assert (found.body, found.status, found.headers) == ("{}", 0, {})


def test_what_is_promoted_is_shown() -> None:
    found = explained(ASKED, policy_=policy("promote: {header: x-engine, model: x-model}\n"))
    assert found.headers == {"x-engine": "vllm"}


def test_a_type_that_is_given_is_not_replaced_by_json() -> None:
    request = HttpRequest("POST", PATH, (("content-type", "text/plain"),), BODY)
    assert explained(request).asked_body is False


def test_facts_are_what_is_worth_a_line() -> None:
    found = explained(msgspec.structs.replace(ASKED, pick=f"{S1},{V2}"), AFTER)
    assert found.facts() == [
        ("asked for", "vllm"),
        ("named by", "engine"),
        ("body read", "yes"),
        ("owner", "vllm"),
        ("endpoints", f"{V1}, {V2}"),
        ("destination", attempts(V2, V1)),
        ("EPP's pick", "narrowed"),
        ("headers set", f"{DEST}: {attempts(V2, V1)}"),
    ]


def test_the_object_has_every_field() -> None:
    found = explained(ASKED)
    assert msgspec.json.decode(found.to_json(), type=Explanation, strict=True) == found
    assert set(json.loads(found.to_json())) == set(Explanation.__struct_fields__)
