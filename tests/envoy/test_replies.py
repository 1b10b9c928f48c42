# SPDX-License-Identifier: Apache-2.0
"""Decision -> reply: what each attachment says, what differs from request to request, and what is kept."""

import json
from collections import Counter
from typing import Any

import pytest

from extproc.envoy import replies as replies_module
from extproc.envoy.binding import Attachment
from extproc.envoy.messages import Phase
from extproc.envoy.metadata import Pick
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import Moment, Replies, Turn, compose
from extproc.policy.decide import decide
from extproc.policy.pick import Correction, Load
from extproc.policy.types import (
    STATUS,
    InferenceRequest,
    PassThrough,
    Pool,
    Reason,
    Restrict,
    Rewrites,
    Scope,
    Snapshot,
    SubsetHint,
    reject,
)
from tests.builders import (
    CHAT,
    DEST,
    LLAMA,
    SPOOFABLE,
    asking,
    attempts,
    before,
    body_goes_on,
    destination,
    endpoint,
    goes_on,
    hint,
    picked,
    policy,
    said,
    snapshot,
)

BEFORE, AFTER, PICKER, HEADER = Attachment.BEFORE, Attachment.AFTER, Attachment.PICKER, Attachment.HEADER
DEFAULT = policy()
V1, V2, S1 = endpoint(1, "vllm"), endpoint(2, "vllm"), endpoint(3, "sglang")
WORLD = snapshot(V1, V2, S1)
V6 = endpoint(6, "v6", address="fd00::6")
KEY = "x-gateway-destination-endpoint-subset"


def reply(  # what a reply depends on
    request: InferenceRequest,
    *,
    world: Snapshot = WORLD,
    policy_: Any = DEFAULT,
    attachment: Attachment = BEFORE,
    phase: Phase = Phase.HEADERS,
    bodiless: bool = False,
    moment: Moment = Moment(),  # noqa: B008 - it is a value
) -> pb.ProcessingResponse:
    decision = decide(request, world, policy_)
    made = compose(decision, request, Replies(world, policy_), Turn(attachment, phase, bodiless))
    spoken = made.message(Turn(attachment, phase), policy_.destinations, moment)
    return pb.ProcessingResponse.FromString(spoken.text)


TO = Scope(CHAT, destination=True)
BEHIND = Scope(CHAT, destination=True, chosen=True)
FRONT = Scope(CHAT, union=True, promotes=True)
SCOPES = {BEFORE: Scope(CHAT), AFTER: BEHIND, PICKER: TO, HEADER: FRONT}
ONE, TWO = "10.0.0.1:8000", "10.0.0.2:8000"
BOTH, TURNED = attempts(ONE, TWO), attempts(TWO, ONE)
BUILD = {Phase.HEADERS: goes_on, Phase.BODY: body_goes_on}


def gone(phase: Phase, attachment: Attachment) -> tuple[str, ...]:
    """What only a gateway may say goes where the client still may have said it."""
    return SPOOFABLE if phase is Phase.HEADERS and attachment is not AFTER else ()


SAID: dict[Attachment, tuple[dict[str, Any], dict[str, str]]] = {
    # the metadata and the headers of a request for vllm and a model
    BEFORE: (before("vllm", LLAMA, ONE, TWO), {}),
    AFTER: (destination(BOTH) | said("vllm", LLAMA, "owner-matched", 2, None), {DEST: BOTH}),
    PICKER: (picked("vllm", LLAMA, ONE, TWO), {DEST: BOTH}),
    HEADER: (said("vllm", LLAMA, "owner-matched", 2), {"x-owned-by": "vllm", "x-gateway-model-name": LLAMA}),
}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("attachment", Attachment)
def test_what_each_attachment_says(attachment: Attachment, phase: Phase) -> None:
    metadata, sets = SAID[attachment]
    expected = BUILD[phase](
        metadata,
        sets=sets,
        removes=gone(phase, attachment),
        reroute=attachment is HEADER and phase is Phase.HEADERS,
    )
    request = asking("vllm", model=LLAMA, scope=SCOPES[attachment])
    assert reply(request, attachment=attachment, phase=phase) == expected


def test_without_the_guard_no_destination_is_written() -> None:
    expected = goes_on(hint(ONE, TWO) | said("vllm", LLAMA, "owner-matched", 2, ""))
    assert reply(asking("vllm", model=LLAMA), policy_=policy("guard: false\n")) == expected


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


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("attachment", [BEFORE, AFTER])
def test_passing_through_writes_nothing_but_our_namespace(attachment: Attachment, phase: Phase) -> None:
    guard = None if attachment is AFTER else ""
    removes = (*gone(phase, attachment), *([DEST] if attachment is AFTER else []))
    expected = BUILD[phase](said("", "", "owner-absent", 0, guard), removes=removes)
    assert reply(asking(scope=SCOPES[attachment]), attachment=attachment, phase=phase) == expected


@pytest.mark.parametrize("attachment", Attachment)
def test_a_long_model_is_cut_in_the_metadata(attachment: Attachment) -> None:
    request = asking("vllm", model="m" * 2000, scope=SCOPES[attachment])
    message = reply(request, attachment=attachment, policy_=policy("match: {models: any}\n"))
    assert message.dynamic_metadata["owned_by"]["model"] == "m" * 1024


def test_no_more_destinations_than_the_policy_says() -> None:
    message = reply(asking("vllm"), policy_=policy("destinations: 1\n"), moment=Moment(1))
    assert dict(message.dynamic_metadata["envoy.lb"]) == {"x-gateway-destination-endpoint": TWO}
    assert list(message.dynamic_metadata["envoy.lb.subset_hint"][KEY]) == [ONE, TWO]


def test_the_guard_names_only_who_decodes() -> None:
    prefill = endpoint(4, "vllm", role="prefill")
    message = reply(asking("vllm"), world=snapshot(V1, prefill))
    guard = attempts(ONE)
    expected = goes_on(hint(ONE, "10.0.0.4:8000") | destination(guard) | said("vllm", "", "owner-matched", 2, guard))
    assert message == expected


def test_where_nobody_decodes_there_is_no_guard() -> None:
    message = reply(asking("vllm"), world=snapshot(endpoint(4, "vllm", role="prefill")))
    assert message == goes_on(hint("10.0.0.4:8000") | said("vllm", "", "owner-matched", 1, ""))


def test_ipv6_endpoints_are_guarded_but_not_hinted() -> None:
    guard = attempts("[fd00::6]:8000")
    expected = goes_on(destination(guard) | said("v6", "", "hint-ipv6", 1, guard))
    assert reply(asking("v6"), world=snapshot(V6)) == expected


def test_of_both_families_only_ipv4_is_hinted() -> None:
    message = reply(asking("vllm"), world=snapshot(V1, endpoint(6, "vllm", address="fd00::6")))
    guard = attempts(ONE, "[fd00::6]:8000")
    assert message == goes_on(hint(ONE) | destination(guard) | said("vllm", "", "owner-matched", 2, guard))


def test_picker_names_ipv6_in_brackets() -> None:
    message = reply(asking("v6", scope=TO), world=snapshot(V6), attachment=PICKER)
    assert message.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == attempts("[fd00::6]:8000")


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
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("attachment", Attachment)
def test_every_refusal_is_the_same_everywhere(reason: Reason, attachment: Attachment, phase: Phase) -> None:
    made = compose(reject(reason, "no"), asking(), Replies(WORLD, DEFAULT), Turn(attachment, phase))
    spoken = made.message(Turn(attachment, phase), 3, Moment(pick=Pick(TWO, (TWO,), by_epp=True)))
    code = reason.value.replace("-", "_")
    retry = [("retry-after", "1")] if STATUS[reason] == 503 else []
    kind = "service_unavailable" if STATUS[reason] == 503 else "invalid_request_error"
    expected = refused(STATUS[reason], reason.value, error(code, "no", None, kind), *retry)
    assert immediate(pb.ProcessingResponse.FromString(spoken.text)) == expected
    assert (made.final, spoken.destination, spoken.correction) == (True, "", None)


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


# What differs from request to request


@pytest.mark.parametrize("attachment", [BEFORE, AFTER, PICKER])
def test_the_rotation_is_even_over_the_endpoints(attachment: Attachment) -> None:
    world = snapshot(*(endpoint(number, "vllm") for number in range(1, 6)))
    request = asking("vllm", scope=SCOPES[attachment])
    found = [reply(request, world=world, attachment=attachment, moment=Moment(number)) for number in range(20)]
    firsts = Counter(message.dynamic_metadata["envoy.lb"][DEST].split(",")[0] for message in found)
    assert firsts == {f"10.0.0.{number}:8000": 4 for number in range(1, 6)}


LOADED = Moment(loads={ONE: Load(3, 0.0), TWO: Load(0, 0.9)})
RANKED = {BEFORE: BOTH, AFTER: TURNED, PICKER: TURNED}


@pytest.mark.parametrize("attachment", RANKED)
def test_the_least_loaded_is_first_except_in_the_guard(attachment: Attachment) -> None:
    request = asking("vllm", scope=SCOPES[attachment])
    message = reply(request, attachment=attachment, moment=LOADED)
    assert message.dynamic_metadata["envoy.lb"][DEST] == RANKED[attachment]


def made(attachment: Attachment, request: InferenceRequest, world: Snapshot = WORLD, policy_: Any = DEFAULT) -> Any:
    return Replies(world, policy_).reply(request, Turn(attachment))


SPOKEN: dict[str, tuple[Attachment, InferenceRequest, Moment, str, Correction | None]] = {
    # the destination that a message names and what became of the pick
    "before": (BEFORE, asking("vllm"), Moment(), BOTH, None),
    "before, passing": (BEFORE, asking(), Moment(), "", None),
    "header": (HEADER, asking("vllm", scope=FRONT), Moment(), "", None),
    "picker": (PICKER, asking("vllm", scope=TO), Moment(1), TURNED, None),
    "after, a pick": (
        AFTER,
        asking("vllm", scope=BEHIND),
        Moment(pick=Pick(TWO, (TWO,), by_epp=True)),
        TURNED,
        Correction.KEPT,
    ),
    "after, the guard": (
        AFTER,
        asking("vllm", scope=BEHIND),
        Moment(pick=Pick(TWO, (TWO,))),
        TURNED,
        Correction.BYPASSED,
    ),
    "after, no pick": (AFTER, asking("vllm", scope=BEHIND), Moment(1), TURNED, Correction.BYPASSED),
    "after, passing": (
        AFTER,
        asking(scope=BEHIND),
        Moment(pick=Pick("10.0.0.9:1", ("10.0.0.9:1",), by_epp=True)),
        "10.0.0.9:1",
        Correction.KEPT,
    ),
    "after, refused": (AFTER, asking("nobody", scope=BEHIND), Moment(pick=Pick(TWO, (TWO,), by_epp=True)), "", None),
}


@pytest.mark.parametrize(
    ("attachment", "request_", "moment", "destination_", "correction"), SPOKEN.values(), ids=SPOKEN
)
def test_a_message_tells_what_it_names_and_what_became_of_the_pick(
    attachment: Attachment,
    request_: InferenceRequest,
    moment: Moment,
    destination_: str,
    correction: Correction | None,
) -> None:
    spoken = made(attachment, request_).message(Turn(attachment), 3, moment)
    assert (spoken.destination, spoken.correction) == (destination_, correction)


def test_a_pick_that_changes_from_request_to_request_shares_one_reply() -> None:
    found = made(AFTER, asking("vllm", scope=BEHIND))
    picks = [Pick(one, (one,), by_epp=True) for one in (ONE, "10.0.0.3:8000", ONE)]
    spoken = [found.message(Turn(AFTER), 1, Moment(number, pick=pick)) for number, pick in enumerate(picks)]
    assert [each.destination for each in spoken] == [ONE, TWO, ONE]


def test_a_reply_says_how_long_its_hint_is() -> None:
    assert [made(each, asking("vllm", scope=SCOPES[each])).hinted for each in Attachment] == [2, 0, 0, 0]


# What is kept


def ask_all(replies: Replies, requests: list[InferenceRequest]) -> int:
    for request in requests:
        replies.reply(request, Turn(BEFORE))
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
    reasons = [replies.reply(each, Turn(BEFORE)).reason for each in both]

    assert reasons == [Reason.OWNER_MATCHED, Reason.MODEL_NOT_FOUND]


def test_requests_that_differ_in_what_does_not_matter_share_a_reply() -> None:
    requests = [asking("vllm", path=f"/v1/{n}", method=method) for n in range(3) for method in ("POST", "GET", "HEAD")]
    assert ask_all(Replies(WORLD, DEFAULT), requests) == 1


@pytest.mark.parametrize("attachment", [BEFORE, PICKER])
def test_unknown_models_are_not_kept_with_their_destinations_either(attachment: Attachment) -> None:
    replies = Replies(WORLD, policy("match: {models: any}\n"))
    replies_module._destination.cache_clear()
    for number in range(9):
        request = asking("vllm", model=f"unknown-{number}", scope=SCOPES[attachment])
        found = replies.reply(request, Turn(attachment))
        found.message(Turn(attachment), 3, Moment())
    assert replies_module._destination.cache_info().currsize == 0


def test_what_a_filter_before_has_let_pass_is_not_kept() -> None:
    requests = [asking("vllm", scope=BEHIND, passed=reason) for reason in (Reason.OWNER_ANY, Reason.OWNER_UNKNOWN)]
    replies = Replies(WORLD, DEFAULT)
    found = [replies.reply(each, Turn(AFTER)) for each in requests]
    assert [each.reason for each in found] == [Reason.OWNER_ANY, Reason.OWNER_UNKNOWN]
    assert replies._kept.cache_info().currsize == 0


def test_each_attachment_keeps_its_own_reply() -> None:
    replies = Replies(WORLD, DEFAULT)
    for attachment in (*Attachment, *Attachment):
        for phase in Phase:
            replies.reply(asking("vllm", scope=SCOPES[attachment]), Turn(attachment, phase))
    assert replies._kept.cache_info()[:2] == (8, 8)  # hits, misses


def test_where_each_pool_is_named_a_reply_is_its_own() -> None:
    other = Pool("default", "other")
    replies = Replies(snapshot(V1, other=(V2,)), DEFAULT)
    requests = [asking("vllm", scope=Scope(pool)) for pool in (CHAT, other)]
    decisions = [replies.reply(each, Turn(BEFORE)).decision for each in requests]
    assert [each.endpoints for each in decisions if isinstance(each, Restrict)] == [(V1,), (V2,)]


def test_without_a_pool_nothing_is_known() -> None:
    replies = Replies(Snapshot(), DEFAULT)
    request = asking("vllm", scope=Scope(union=True, promotes=True))
    found = replies.reply(request, Turn(HEADER))
    assert isinstance(found.decision, PassThrough)
    assert (found.known, replies.knows(request)) == (False, False)
