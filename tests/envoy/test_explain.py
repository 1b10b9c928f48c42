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
    HEADER: {"destination": "", "headers": {"x-owned-by": "vllm"}, "rerouted": True},
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


@pytest.mark.parametrize("mode", BodyMode)
def test_a_stripped_body_is_shown_however_it_comes(mode: BodyMode) -> None:
    request = HttpRequest("POST", PATH, body=b'{"engine": "vllm", "n": 1}')
    assert explained(request, policy_=policy("body: {strip: true}\n"), body=mode).body == '{ "n": 1}'


def test_the_engine_gets_what_is_behind_the_part_that_is_stripped() -> None:
    request = HttpRequest("POST", PATH, body=b'{"engine": "vllm", "n": 1, "m": 2}', truncated_at=22)
    found = explained(request, policy_=policy("body: {strip: true}\n"))
    assert (found.body, found.truncated, found.owner) == ('{ "n": 1, "m": 2}', True, "vllm")


@pytest.mark.parametrize("mode", BodyMode)
def test_a_body_that_goes_on_as_it_came_is_not_shown(mode: BodyMode) -> None:
    assert explained(msgspec.structs.replace(ASKED, truncated_at=5), body=mode).body == ""


CUTS: dict[str, tuple[int | None, tuple[str, str, bool]]] = {
    "all of it": (None, ("restrict", "owner-matched", False)),
    "as long as the body": (len(BODY), ("restrict", "owner-matched", False)),
    "a byte less": (len(BODY) - 1, ("restrict", "owner-matched", True)),
    "before the owner": (5, ("passthrough", "owner-absent", True)),
    "nothing": (0, ("passthrough", "owner-absent", True)),
}


@pytest.mark.parametrize(("at", "expected"), CUTS.values(), ids=CUTS)
def test_a_body_ends_where_the_buffer_does(at: int | None, expected: tuple[str, str, bool]) -> None:
    found = explained(msgspec.structs.replace(ASKED, truncated_at=at))
    assert (found.decision, found.reason, found.truncated) == expected


def test_a_body_that_streams_has_no_buffer_to_end_in() -> None:
    found = explained(msgspec.structs.replace(ASKED, truncated_at=5), body=BodyMode.STREAM)
    assert (found.reason, found.truncated) == ("owner-matched", False)


def test_a_body_that_is_too_large_is_told() -> None:
    found = explained(ASKED, policy_=policy("body: {maxBytes: 17}\n"), body=BodyMode.STREAM)
    error = {
        "message": "the body is larger than 17 bytes",
        "type": "invalid_request_error",
        "param": None,
        "code": "body_too_large",
    }
    assert (found.decision, found.reason, found.status) == ("reject", "body-too-large", 413)
    assert json.loads(found.body) == {"error": error}


REROUTED = {
    "header": (HEADER, "", True),
    "asked for": (BEFORE, "promote: {header: x-engine, reroute: true}\n", True),
    "not asked for": (BEFORE, "promote: {header: x-engine}\n", False),
    "refused": (BEFORE, "promote: {header: x-engine, reroute: true}\nmodels: [{model: '*', allow: [tgi]}]\n", False),
}


@pytest.mark.parametrize(("attachment", "text", "rerouted"), REROUTED.values(), ids=REROUTED)
def test_a_route_that_is_chosen_anew_is_told(attachment: Attachment, text: str, rerouted: bool) -> None:  # noqa: FBT001
    found = explained(ASKED, attachment, policy_=policy(text))
    assert (found.rerouted, ("route", "chosen anew") in found.facts()) == (rerouted, rerouted)


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
