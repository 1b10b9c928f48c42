# SPDX-License-Identifier: Apache-2.0
"""Decision -> bytes: whole messages, the cache, the hint that an earlier filter gave."""

import json
from typing import Any

import msgspec
import pytest

from extproc.envoy import responses
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.responses import Attachment, Phase, Replies, body_frames, compose
from extproc.policy.decide import decide
from extproc.policy.types import (
    STATUS,
    InferenceRequest,
    Model,
    Pool,
    Reason,
    Rewrites,
    Scope,
    Snapshot,
    SubsetHint,
    reject,
)
from tests.builders import (
    CHAT,
    LLAMA,
    body_goes_on,
    destination,
    endpoint,
    frame,
    goes_on,
    hint,
    parsed,
    policy,
    said,
    snapshot,
)

BEFORE, PICKER = Attachment.BEFORE, Attachment.PICKER
DEFAULT = policy()
V1, V2, S1 = endpoint(1, "vllm"), endpoint(2, "vllm"), endpoint(3, "sglang")
WORLD = snapshot(V1, V2, S1)
V6 = endpoint(6, "v6", address="fd00::6")
KEY = "x-gateway-destination-endpoint-subset"


def asking(*owners: str, model: str = "", **more: Any) -> InferenceRequest:
    given = {"scope": Scope(CHAT), "method": "POST", "path": "/v1/x", "param": "x-owned-by" if owners else ""} | more
    return InferenceRequest(owners=owners, model=model, **given)


def reply(  # what a reply depends on
    request: InferenceRequest,
    *,
    world: Snapshot = WORLD,
    policy_: Any = DEFAULT,
    attachment: Attachment = BEFORE,
    phase: Phase = Phase.HEADERS,
    bodiless: bool = False,
    rotation: int = 0,
) -> pb.ProcessingResponse:
    made = compose(decide(request, world, policy_), request, policy_, attachment, phase, bodiless=bodiless)
    return pb.ProcessingResponse.FromString(made.message(rotation, attachment, phase, policy_.destinations)[0])


TO = Scope(CHAT, destination=True)
ONE, TWO = "10.0.0.1:8000", "10.0.0.2:8000"
BOTH = f"{ONE},{TWO}"
MATCHED = said("vllm", LLAMA, "owner-matched", 2, BOTH)


def test_before_writes_the_hint_the_guard_and_our_namespace() -> None:
    expected = goes_on(hint(ONE, TWO) | destination(BOTH) | MATCHED)
    assert reply(asking("vllm", model=LLAMA)) == expected


def test_at_the_body_the_headers_are_left_alone() -> None:
    expected = body_goes_on(hint(ONE, TWO) | destination(BOTH) | MATCHED)
    assert reply(asking("vllm", model=LLAMA), phase=Phase.BODY) == expected


def test_without_the_guard_no_destination_is_written() -> None:
    expected = goes_on(hint(ONE, TWO) | said("vllm", LLAMA, "owner-matched", 2, ""))
    assert reply(asking("vllm", model=LLAMA), policy_=policy("guard: false\n")) == expected


@pytest.mark.parametrize("phase", [Phase.HEADERS, Phase.BODY])
def test_picker_writes_header_and_metadata_alike(phase: Phase) -> None:
    metadata = destination(BOTH) | said("vllm", LLAMA, "owner-matched", 2, "")
    build = goes_on if phase is Phase.HEADERS else body_goes_on
    expected = build(metadata, sets={"x-gateway-destination-endpoint": BOTH})
    assert reply(asking("vllm", model=LLAMA, scope=TO), attachment=PICKER, phase=phase) == expected


DECISIONS = {
    "restriction": asking("vllm"),
    "passing through": asking(),
    "refusal": asking("nobody"),
    "model list": asking(method="GET", path="/v1/models"),
}


@pytest.mark.parametrize("request_", DECISIONS.values(), ids=DECISIONS)
def test_every_decision_says_all_of_our_namespace(request_: InferenceRequest) -> None:
    found = set(reply(request_).dynamic_metadata["owned_by"])
    assert found == {"owner", "model", "reason", "endpoints", "guard"}


def test_passing_through_writes_nothing_but_our_namespace() -> None:
    message = reply(asking())
    assert sorted(message.dynamic_metadata.fields) == ["owned_by"]
    message.ClearField("dynamic_metadata")
    expected = goes_on({})
    expected.ClearField("dynamic_metadata")
    assert message == expected


def test_a_long_model_is_cut_in_the_metadata() -> None:
    message = reply(asking("vllm", model="m" * 500), policy_=policy("match: {models: any}\n"))
    assert message.dynamic_metadata["owned_by"]["model"] == "m" * 128


def test_no_more_destinations_than_the_policy_says() -> None:
    message = reply(asking("vllm"), policy_=policy("destinations: 1\n"), rotation=1)
    assert dict(message.dynamic_metadata["envoy.lb"]) == {"x-gateway-destination-endpoint": TWO}
    assert list(message.dynamic_metadata["envoy.lb.subset_hint"][KEY]) == [ONE, TWO]


def test_the_guard_names_only_who_decodes() -> None:
    prefill = endpoint(4, "vllm", role="prefill")
    message = reply(asking("vllm"), world=snapshot(V1, prefill))
    expected = goes_on(hint(ONE, "10.0.0.4:8000") | destination(ONE) | said("vllm", "", "owner-matched", 2, ONE))
    assert message == expected


def test_where_nobody_decodes_there_is_no_guard() -> None:
    message = reply(asking("vllm"), world=snapshot(endpoint(4, "vllm", role="prefill")))
    assert message == goes_on(hint("10.0.0.4:8000") | said("vllm", "", "owner-matched", 1, ""))


def test_ipv6_endpoints_are_guarded_but_not_hinted() -> None:
    expected = goes_on(destination("[fd00::6]:8000") | said("v6", "", "hint-ipv6", 1, "[fd00::6]:8000"))
    assert reply(asking("v6"), world=snapshot(V6)) == expected


def test_of_both_families_only_ipv4_is_hinted() -> None:
    message = reply(asking("vllm"), world=snapshot(V1, endpoint(6, "vllm", address="fd00::6")))
    guard = f"{ONE},[fd00::6]:8000"
    assert message == goes_on(hint(ONE) | destination(guard) | said("vllm", "", "owner-matched", 2, guard))


def test_picker_names_ipv6_in_brackets() -> None:
    message = reply(asking("v6", scope=TO), world=snapshot(V6), attachment=PICKER)
    assert message.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == "[fd00::6]:8000"


def test_a_hint_without_a_body_says_so() -> None:
    expected = goes_on(hint(ONE, TWO) | destination(BOTH) | said("vllm", "", "hint-without-body", 2, BOTH))
    assert reply(asking("vllm"), bodiless=True) == expected


def refused(status: int, reason: str, error: dict[str, Any], *more: tuple[str, str]) -> dict[str, Any]:
    return {
        "status": status,
        "headers": [("content-type", b"application/json"), ("x-owned-by-reason", reason.encode())]
        + [(name, value.encode()) for name, value in more],
        "body": {"error": error},
        "details": f"owned_by_{error['code']}",
        "metadata": reason,
    }


def immediate(message: pb.ProcessingResponse) -> dict[str, Any]:
    answer = message.immediate_response
    assert message.WhichOneof("response") == "immediate_response"
    assert not answer.headers.remove_headers
    return {
        "status": answer.status.code,
        "headers": [(option.header.key, option.header.raw_value) for option in answer.headers.set_headers],
        "body": json.loads(answer.body),
        "details": answer.details,
        "metadata": message.dynamic_metadata["owned_by"]["reason"],
    }


def error(code: str, message: str, param: str | None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


T1 = endpoint(5, "tgi", ready=False)
ERRORS: dict[str, tuple[InferenceRequest, dict[str, Any]]] = {
    "unknown owner": (
        asking("nobody"),
        refused(404, "owner-not-found", error("owner_not_found", "no endpoint is `nobody`", "x-owned-by")),
    ),
    "unknown model": (
        asking("vllm", model="x"),
        refused(404, "model-not-found", error("model_not_found", "no endpoint serves the model `x`", "model")),
    ),
    "none ready": (
        asking("tgi"),
        refused(
            503,
            "no-ready-endpoint",
            error("no_ready_endpoint", "no endpoint of `tgi` is ready", "x-owned-by", "service_unavailable"),
            ("retry-after", "1"),
        ),
    ),
    "unknown pool": (
        asking("vllm", scope=Scope(Pool("default", "gone"))),
        refused(
            503,
            "pool-unknown",
            error("pool_unknown", "the pool of this route is not known", None, "service_unavailable"),
            ("retry-after", "1"),
        ),
    ),
}


@pytest.mark.parametrize(("request_", "expected"), ERRORS.values(), ids=ERRORS)
def test_a_refusal_is_an_openai_error(request_: InferenceRequest, expected: dict[str, Any]) -> None:
    assert immediate(reply(request_, world=snapshot(V1, T1))) == expected


@pytest.mark.parametrize("reason", STATUS, ids=str)
@pytest.mark.parametrize("attachment", Attachment)
def test_every_refusal_has_its_status_and_reason(reason: Reason, attachment: Attachment) -> None:
    made = compose(reject(reason, "no"), asking(), DEFAULT, attachment, Phase.HEADERS, bodiless=False)
    answer = immediate(pb.ProcessingResponse.FromString(made.prefix))
    code = reason.value.replace("-", "_")
    retry = [("retry-after", "1")] if STATUS[reason] == 503 else []
    kind = "service_unavailable" if STATUS[reason] == 503 else "invalid_request_error"
    assert answer == refused(STATUS[reason], reason.value, error(code, "no", None, kind), *retry)
    assert made.final


def test_the_model_list_is_openais() -> None:
    world = snapshot(msgspec.structs.replace(V1, models=(Model("a", 7, 4096),)), endpoint(3, "sglang", ("a",)))
    message = reply(asking(method="GET", path="/v1/models"), world=world)
    assert message.immediate_response.status.code == 200
    assert json.loads(message.immediate_response.body) == {
        "object": "list",
        "data": [
            {"id": "a", "object": "model", "created": 0, "owned_by": "sglang"},
            {"id": "a", "object": "model", "created": 7, "owned_by": "vllm", "max_model_len": 4096},
        ],
    }


def test_one_model_is_openais() -> None:
    message = reply(asking(method="GET", path=f"/v1/models/{LLAMA}"))
    expected = {"id": LLAMA, "object": "model", "created": 0, "owned_by": "sglang"}
    assert json.loads(message.immediate_response.body) == expected


def test_a_list_for_clients_shows_no_header_of_ours() -> None:
    message = reply(asking(method="GET", path="/v1/models"))
    found = [option.header.key for option in message.immediate_response.headers.set_headers]
    assert found == ["content-type"]


EVERY = [
    asking("vllm", model=LLAMA),
    asking("nobody"),
    asking("tgi"),
    asking(model="x"),
    asking("vllm", model="x"),
    asking(),
    asking("vllm", scope=Scope(CHAT, destination=True, hint=SubsetHint(frozenset({"10.0.0.9"})))),
    asking(method="GET", path="/v1/models"),
    asking(method="GET", path="/v1/models/x"),
    asking("vllm", scope=Scope(Pool("default", "gone"))),
]


@pytest.mark.parametrize("request_", EVERY, ids=range(len(EVERY)))
@pytest.mark.parametrize("attachment", Attachment)
def test_no_client_sees_the_address_of_a_pod(request_: InferenceRequest, attachment: Attachment) -> None:
    message = reply(request_, world=snapshot(V1, V2, S1, T1), attachment=attachment)
    seen = message.immediate_response.SerializeToString()
    assert b"10.0.0." not in seen
    assert b"pod-" not in seen


def header_values(message: Any) -> list[pb.HeaderValue]:
    found = [message] if isinstance(message, pb.HeaderValue) else []
    for descriptor, value in message.ListFields():
        if descriptor.message_type and descriptor.message_type.file is pb.DESCRIPTOR:
            for inner in value if descriptor.is_repeated else [value]:
                found += header_values(inner)
    return found


@pytest.mark.parametrize("request_", EVERY, ids=range(len(EVERY)))
@pytest.mark.parametrize("attachment", Attachment)
def test_only_raw_values_are_set(request_: InferenceRequest, attachment: Attachment) -> None:
    message = reply(request_, world=snapshot(V1, V2, S1, T1), attachment=attachment)
    assert all(header.raw_value and not header.value for header in header_values(message))


def test_the_rotation_is_even_over_the_endpoints() -> None:
    endpoints = [endpoint(n, "vllm") for n in range(1, 6)]
    firsts: dict[str, int] = {}
    for rotation in range(20):
        message = reply(asking("vllm"), world=snapshot(*endpoints), rotation=rotation)
        first = message.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"].split(",")[0]
        firsts[first] = firsts.get(first, 0) + 1
    assert firsts == {e.destination: 4 for e in endpoints}


def ask_all(replies: Replies, requests: list[InferenceRequest]) -> int:
    for request in requests:
        replies.reply(request, BEFORE, Phase.HEADERS, bodiless=False)
    return replies._kept.cache_info().currsize


KNOWN = [asking("vllm"), asking("sglang", model=LLAMA), asking("vllm", "sglang"), asking(), asking("vllm", "*")]
UNKNOWN = {
    "owner": [asking(f"o{n}") for n in range(9)],
    "model": [asking("vllm", model=f"m{n}") for n in range(9)],
    "owner beside a known one": [asking("vllm", f"o{n}") for n in range(9)],
    "path": [asking("vllm", path=f"/p{n}", interpreted=False) for n in range(9)],
    "model path": [asking(method="GET", path=f"/v1/models/{n}") for n in range(9)],
    "pool": [asking("vllm", scope=Scope(Pool("default", f"p{n}"))) for n in range(9)],
    "hint": [asking("vllm", scope=Scope(CHAT, hint=SubsetHint(frozenset({f"10.0.0.{n}"})))) for n in range(9)],
    "truncated": [asking(f"o{n}", truncated=True) for n in range(9)],
}


def test_known_names_are_kept_once() -> None:
    assert ask_all(Replies(WORLD, DEFAULT), KNOWN * 3) == len(KNOWN)


@pytest.mark.parametrize("requests", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_names_are_never_kept(requests: list[InferenceRequest]) -> None:
    assert ask_all(Replies(WORLD, DEFAULT), requests) == 0


REWRITES = {CHAT: Rewrites({"chat": (LLAMA,)}, ("other",))}
REWRITTEN = Snapshot(1, WORLD.pools, WORLD.endpoints, REWRITES)


def test_rewritten_names_are_kept_and_those_that_any_name_becomes_are_not() -> None:
    requests = [asking("vllm", model="chat")] * 3 + [asking("vllm", model=f"m{n}") for n in range(9)]
    assert ask_all(Replies(REWRITTEN, DEFAULT), requests) == 1


def test_a_name_that_is_final_does_not_share_the_reply_of_one_that_is_rewritten() -> None:
    replies = Replies(REWRITTEN, DEFAULT)
    both = [asking("vllm", model="chat"), asking("vllm", model="chat", fixed_model=True)]
    reasons = [replies.reply(each, BEFORE, Phase.HEADERS, bodiless=False).reason for each in both]

    assert reasons == [Reason.OWNER_MATCHED, Reason.MODEL_NOT_FOUND]


def test_requests_that_differ_in_what_does_not_matter_share_a_reply() -> None:
    requests = [asking("vllm", path=f"/v1/{n}", method=method) for n in range(3) for method in ("POST", "PUT")]
    assert ask_all(Replies(WORLD, DEFAULT), requests) == 1


def test_unknown_models_are_not_kept_with_their_destinations_either() -> None:
    free = policy("match: {models: any}\n")
    replies = Replies(WORLD, free)
    responses._destination.cache_clear()
    for number in range(9):
        request = asking("vllm", model=f"unknown-{number}")
        replies.reply(request, BEFORE, Phase.HEADERS, bodiless=False).message(0, BEFORE, Phase.HEADERS, 3)
    assert responses._destination.cache_info().currsize == 0


FRAMES = {
    "empty, the end": (b"", True, [(b"", True)]),
    "empty, not the end": (b"", False, [(b"", False)]),
    "small": (b"abc", True, [(b"abc", True)]),
    "exactly one": (bytes(62_000), True, [(bytes(62_000), True)]),
    "one byte more": (bytes(62_000) + b"x", True, [(bytes(62_000), False), (b"x", True)]),
    "not the end": (bytes(125_000), False, [(bytes(62_000), False), (bytes(62_000), False), (bytes(1_000), False)]),
}


@pytest.mark.parametrize(("data", "ends", "expected"), FRAMES.values(), ids=FRAMES)
def test_a_body_goes_on_in_frames_of_62000(
    data: bytes,
    ends: bool,  # noqa: FBT001 - a column
    expected: list[tuple[bytes, bool]],
) -> None:
    assert parsed(body_frames(data, end=ends)) == [frame(piece, ends=last) for piece, last in expected]
