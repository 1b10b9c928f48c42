# SPDX-License-Identifier: Apache-2.0
"""`after`, just behind the EPP: what becomes of its pick and of the further hosts that it names."""

import json
from typing import Any

import pytest

from extproc.envoy.binding import Attachment, Binding
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import Replies
from extproc.envoy.session import Session
from extproc.policy.config import PolicyConfig
from extproc.policy.pick import Correction, Load
from extproc.policy.types import Reason, Snapshot
from tests.builders import (
    CHAT,
    DEFAULT,
    DEST,
    MIXED,
    QWEN,
    Playbook,
    asks,
    attempts,
    body,
    body_goes_on,
    destination,
    endpoint,
    goes_on,
    headers,
    hint,
    parsed,
    policy,
    said,
    session,
    snapshot,
)

AFTER = Attachment.AFTER
V1, V2, V3, S4, S5 = (f"10.0.0.{number}:8000" for number in range(1, 6))
WORLD = snapshot(
    *(endpoint(number, "vllm", None) for number in (1, 2, 3)),
    *(endpoint(number, "sglang", None) for number in (4, 5)),
    endpoint(6, "vllm", None, role="prefill"),
    endpoint(7, "sglang", None, role="prefill"),
    endpoint(8, "vllm", None, address="fd00::8", ready=False),
)
VLLM = ("x-owned-by", "vllm")
TOLD = said("vllm", "", "owner-matched", 4, f"{V1},{V2},{V3}")
"""What `before` says of a request for vllm: its prefill pod is one of the four, its guard is who decodes."""


def after(policy_: PolicyConfig = DEFAULT, world: Snapshot = WORLD, **more: Any) -> Session:
    return session(AFTER, world, policy_, **more)


def chosen(text: str, *gone: str, reason: str = "owner-matched") -> pb.ProcessingResponse:
    """The answer for vllm: the destination as header and as metadata, without the headers that are `gone`."""
    return goes_on(destination(text) | said("vllm", "", reason, 3, None), sets={DEST: text}, removes=gone)


def corrected(run: Session) -> tuple[str, Correction | None]:
    assert run.outcome
    return run.outcome.destination, run.outcome.correction


ALL = f"{V1},{V2},{V3}"
KEPT, NARROWED, REWRITTEN, BYPASSED = Correction
PICKS: dict[str, tuple[str, str, str, Correction]] = {
    # the policy, the pick, what is written, what that is
    "kept, others behind it": ("", V2, f"{V2},{V1},{V3}", KEPT),
    "kept as it is": ("", f"{V3},{V2},{V1}", f"{V3},{V2},{V1}", KEPT),
    "kept, one more": ("", f"{V3},{V2}", f"{V3},{V2},{V1}", KEPT),
    "kept, spaced": ("", f" {V3} , {V2}", f"{V3},{V2},{V1}", KEPT),
    "kept, one twice": ("", f"{V2},{V2}", f"{V2},{V1},{V3}", KEPT),
    "kept, of one destination": ("destinations: 1\n", V2, V2, KEPT),
    "kept, longer than ours": ("destinations: 1\n", f"{V3},{V2}", f"{V3},{V2}", KEPT),
    "narrowed at its end": ("", f"{V2},{S4}", f"{V2},{V1},{V3}", NARROWED),
    "narrowed at its beginning": ("", f"{S4},{V2}", f"{V2},{V1},{V3}", NARROWED),
    "narrowed by an address that nobody has": ("destinations: 1\n", f"{V2},1.2.3.4:5", V2, NARROWED),
    "narrowed, longer than ours": ("destinations: 1\n", f"{S4},{V3},{V2}", f"{V3},{V2}", NARROWED),
    "rewritten": ("", S4, ALL, REWRITTEN),
    "rewritten, all of it": ("destinations: 2\n", f"{S4},{S5}", f"{V1},{V2}", REWRITTEN),
    "another port is another endpoint": ("destinations: 1\n", "10.0.0.1:9000", V1, REWRITTEN),
    "who cannot decode is not eligible": ("destinations: 1\n", "10.0.0.6:8000", V1, REWRITTEN),
    "who is not ready is not eligible": ("destinations: 1\n", "[fd00::8]:8000", V1, REWRITTEN),
    "nonsense": ("destinations: 1\n", "?", V1, REWRITTEN),
    "no pick": ("", "", ALL, BYPASSED),
    "no pick, of one destination": ("destinations: 1\n", "", V1, BYPASSED),
}


@pytest.mark.parametrize("told", [{}, TOLD], ids=["alone", "told"])
@pytest.mark.parametrize(("text", "pick", "written", "correction"), PICKS.values(), ids=PICKS)
def test_the_pick_is_narrowed_to_what_is_eligible_and_others_are_appended(
    text: str, pick: str, written: str, correction: Correction, told: dict[str, Any]
) -> None:
    picked = destination(pick) if pick else {}
    message = headers(VLLM, (DEST, pick), metadata=told | picked)
    play = Playbook(after(policy(text))) >> message << [chosen(written)]
    assert (play.session.done, corrected(play.session)) == (True, (written, correction))


GUARD = f"{V2},{V3},{V1}"
GUARDED: dict[str, tuple[str, str, str, Correction]] = {
    # the pick as metadata and as header, what is written, what that is
    "the guard": (GUARD, "", GUARD, BYPASSED),
    "the guard, whatever another header says": (GUARD, V1, GUARD, BYPASSED),
    "a pick that is the same": (GUARD, GUARD, GUARD, KEPT),
    "another pick": (V1, V1, f"{V1},{V2},{V3}", KEPT),
    "another pick without its header": (V1, "", f"{V1},{V2},{V3}", KEPT),
}


@pytest.mark.parametrize(("pick", "header", "written", "correction"), GUARDED.values(), ids=GUARDED)
def test_the_guard_is_no_pick_of_the_epps(pick: str, header: str, written: str, correction: Correction) -> None:
    message = headers(
        *([(DEST, header)] if header else []),
        metadata=said("vllm", "", "owner-matched", 4, GUARD) | destination(pick),
    )
    play = Playbook(after()) >> message << [chosen(written)]
    assert corrected(play.session) == (written, correction)


def test_without_a_guard_no_pick_is_one() -> None:
    message = headers(metadata=said("vllm", "", "owner-matched", 4))
    assert corrected((Playbook(after()) >> message << [chosen(ALL)]).session) == (ALL, BYPASSED)


def test_what_a_client_writes_into_the_header_is_no_pick() -> None:
    play = Playbook(after(policy("destinations: 1\n"))) >> headers(VLLM, (DEST, V3)) << [chosen(V1)]
    assert corrected(play.session) == (V1, BYPASSED)


def test_others_are_appended_in_turn_and_by_their_load() -> None:
    loads = {V1: Load(5, 0), V3: Load(0, 0.5)}
    play = Playbook(after(loads=loads)) >> headers(VLLM, metadata=destination(V2))
    play << [chosen(f"{V2},{V3},{V1}")]


def test_the_word_of_an_epp_that_was_bypassed_is_replaced_by_the_least_loaded() -> None:
    loads = {V1: Load(5, 0), V2: Load(4, 0), V3: Load(3, 0)}
    Playbook(after(loads=loads)) >> headers(VLLM) << [chosen(f"{V3},{V2},{V1}")]


# Passing through

PASSES: dict[str, tuple[str, list[tuple[str, str]], dict[str, str], tuple[str, ...]]] = {
    # the pick, the request's headers, what is set and what is removed
    "a pick": (S4, [(DEST, S4)], {DEST: S4}, ()),
    "several": (f"{S4}, {V1}", [(DEST, f"{S4}, {V1}")], {DEST: f"{S4}, {V1}"}, ()),
    "a pick, and a header of the client's": (S4, [(DEST, "1.2.3.4:5")], {DEST: S4}, ()),
    "a pick without its header": (S4, [], {DEST: S4}, ()),
    "a pick with further hosts": (S4, [("x-prefiller-host-port", "1.2.3.4:5")], {DEST: S4}, ()),
    "no pick": ("", [], {}, (DEST,)),
    "no pick, and a header of the client's": ("", [(DEST, V1)], {}, (DEST,)),
}


@pytest.mark.parametrize(("pick", "pairs", "sets", "removes"), PASSES.values(), ids=PASSES)
def test_passing_through_leaves_the_pick_and_makes_the_header_equal(
    pick: str, pairs: list[tuple[str, str]], sets: dict[str, str], removes: tuple[str, ...]
) -> None:
    picked = destination(pick) if pick else {}
    expected = goes_on(said("", "", "owner-any", 0, None), sets=sets, removes=removes)
    play = Playbook(after()) >> headers(("x-owned-by", "*"), *pairs, metadata=picked) << [expected]
    assert corrected(play.session) == (pick, KEPT if pick else BYPASSED)


def test_passing_through_with_the_guard_is_a_bypass_too() -> None:
    told = said("", "", "owner-absent", 0, V2) | destination(V2)
    play = Playbook(after()) >> headers(metadata=told)
    play << [goes_on(said("", "", "owner-absent", 0, None), sets={DEST: V2}, removes=())]
    assert corrected(play.session) == (V2, BYPASSED)


PASSED = [
    Reason.OWNER_ABSENT,
    Reason.OWNER_ANY,
    Reason.OWNER_UNKNOWN,
    Reason.MODEL_UNKNOWN,
    Reason.PATH_NOT_INTERPRETED,
    Reason.NOT_A_POOL,
    Reason.POOL_UNKNOWN,
]


@pytest.mark.parametrize("reason", PASSED)
def test_what_before_has_let_pass_passes_for_the_same_reason(reason: Reason) -> None:
    told = said("", "m", reason.value, 0) | destination(S4)
    play = Playbook(after()) >> headers(VLLM, metadata=told)
    play << [goes_on(said("", "m", reason.value, 0, None), sets={DEST: S4}, removes=())]
    assert play.session.outcome
    assert (play.session.outcome.reply.reason, play.session.outcome.asked_body) == (reason, False)


# Alone, and told

OTHERS = {
    "nothing": {},
    "of another filter": {"owned_by": {"owner": "vllm"}},
    "of another version": said("vllm", "", "owner-guessed", 1),
}


@pytest.mark.parametrize("told", OTHERS.values(), ids=OTHERS)
def test_alone_it_asks_for_the_body_and_leaves_the_epps_headers(told: dict[str, Any]) -> None:
    message = headers((DEST, S4), ("x-prefiller-host-port", V1), metadata=told | destination(S4))
    play = Playbook(after()) >> message << [asks(removes=())]
    expected = body_goes_on(
        destination(ALL) | said("vllm", QWEN, "owner-matched", 3, None), sets={DEST: ALL}, removes=()
    )
    play >> body({"owned_by": "vllm", "model": QWEN}) << [expected]
    assert corrected(play.session) == (ALL, REWRITTEN)


def test_at_the_body_a_host_of_another_engine_goes_too() -> None:
    message = headers(("x-prefiller-host-port", "10.0.0.7:8000"), metadata=destination(S4))
    play = Playbook(after()) >> message << [asks(removes=())]
    expected = body_goes_on(
        destination(ALL) | said("vllm", "", "owner-matched", 3, None),
        sets={DEST: ALL},
        removes=("x-prefiller-host-port",),
    )
    play >> body({"owned_by": "vllm"}) << [expected]


def test_told_it_never_asks_though_the_model_matters() -> None:
    told = said("vllm", QWEN, "owner-matched", 1, "") | destination("10.0.0.1:8000")
    to = attempts(V2)
    expected = goes_on(destination(to) | said("vllm", QWEN, "owner-matched", 1, None), sets={DEST: to}, removes=())
    play = Playbook(after(world=MIXED)) >> headers(metadata=told) << [expected]
    assert (play.session.done, corrected(play.session)) == (True, (to, REWRITTEN))


def test_told_it_does_not_read_the_request_again() -> None:
    play = Playbook(after()) >> headers(("x-owned-by", "b@d"), metadata=TOLD | destination(V1))
    play << [chosen(ALL)]


def test_told_of_a_model_without_an_owner_it_narrows_by_the_model() -> None:
    told = said("", QWEN, "model-matched", 1, "") | destination(V1)
    to = attempts(V2)
    expected = goes_on(destination(to) | said("", QWEN, "model-matched", 1, None), sets={DEST: to}, removes=())
    Playbook(after(world=MIXED)) >> headers(metadata=told) << [expected]


def test_requests_that_differ_in_what_was_told_alone_are_told_apart() -> None:
    replies = Replies(WORLD, policy("destinations: 1\n"))
    found = []
    for owner in ("vllm", "sglang", "vllm"):
        run = Session(Binding(AFTER, CHAT), lambda: replies, lambda: 0)
        run.receive(headers(metadata=said(owner, "", "owner-matched", 1)))
        found.append(corrected(run)[0])
    assert found == [V1, S4, V2]


UNHINTED = ["hint-ipv6", "hint-without-body"]


@pytest.mark.parametrize("reason", UNHINTED)
def test_what_the_epp_could_not_follow_is_enforced_here(reason: str) -> None:
    told = said("vllm", "", reason, 3, "") | destination(S4)
    Playbook(after()) >> headers(metadata=told, ends=True) << [chosen(ALL)]


def test_where_nobody_is_ready_any_more_it_is_refused_whatever_was_picked() -> None:
    told = said("vllm", "", "owner-matched", 3, "") | destination(V1)
    run = after(world=snapshot(endpoint(1, "vllm", None, ready=False), endpoint(4, "sglang", None)))
    (answer,) = parsed(run.receive(headers(metadata=told)))
    found = json.loads(answer.immediate_response.body)["error"]
    assert (answer.immediate_response.status.code, found["code"]) == (503, "no_ready_endpoint")
    assert corrected(run) == ("", None)


# Further hosts

PREFILL, ENCODE = "x-prefiller-host-port", "x-encoder-hosts-ports"
RANK, CACHE = "x-data-parallel-host-port", "x-kv-cache-source-host-port"
OURS, THEIRS, NOBODYS = "10.0.0.6:8000", "10.0.0.7:8000", "1.2.3.4:5"
HOSTS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    # the pick, the headers, which of them go
    "of the other engine": (S4, {PREFILL: THEIRS}, (PREFILL,)),
    "of the same engine": (S4, {PREFILL: OURS}, ()),
    "of nobody": (S4, {PREFILL: NOBODYS}, (PREFILL,)),
    "another port of the same engine's": (S4, {PREFILL: "10.0.0.6:1"}, ()),
    "without a port": (S4, {PREFILL: "10.0.0.6"}, ()),
    "who is not ready is of its engine too": (S4, {CACHE: "[fd00::8]:8000"}, ()),
    "several, all of the same engine": (S4, {ENCODE: f"{OURS}, {V1}"}, ()),
    "several, one of the other": (S4, {ENCODE: f"{OURS},{THEIRS}"}, (ENCODE,)),
    "empty": (S4, {PREFILL: "", ENCODE: " , "}, ()),
    "each by itself": (S4, {PREFILL: OURS, ENCODE: THEIRS, CACHE: THEIRS}, (ENCODE, CACHE)),
    "a rank of another pod of the engine": (S4, {RANK: "10.0.0.2:8001"}, (RANK,)),
    "a rank of the pod itself": (S4, {RANK: "10.0.0.1:8001"}, ()),
    "a rank of the pod that was picked": (S4, {RANK: "10.0.0.4:8001"}, (RANK,)),
    "the first was not eligible": (f"{S4},{V2}", {PREFILL: THEIRS, RANK: "10.0.0.2:1"}, (PREFILL,)),
    "the first has stayed": (f"{V1},{S4}", {PREFILL: THEIRS, ENCODE: NOBODYS, RANK: "10.0.0.2:1"}, ()),
    "no pick": ("", {PREFILL: THEIRS}, (PREFILL,)),
}


@pytest.mark.parametrize(("pick", "hosts", "gone"), HOSTS.values(), ids=HOSTS)
def test_further_hosts_go_where_the_first_endpoint_changes_and_they_are_not_of_its_engine(
    pick: str, hosts: dict[str, str], gone: tuple[str, ...]
) -> None:
    message = headers(VLLM, *hosts.items(), metadata=destination(pick) if pick else {})
    (answer,) = parsed(after().receive(message))
    assert sorted(answer.request_headers.response.header_mutation.remove_headers) == sorted(gone)


def test_what_was_only_guarded_keeps_its_further_hosts() -> None:
    message = headers((PREFILL, THEIRS), metadata=TOLD | destination(ALL))
    Playbook(after()) >> message << [chosen(ALL)]


# What is counted

OUTSIDE: dict[str, tuple[dict[str, Any], bool]] = {
    "in the hint": (hint(V1, V2) | destination(V2), False),
    "in the hint at another port": (hint(V1) | destination("10.0.0.1:1"), False),
    "not in the hint": (hint(V1, V2) | destination(V3), True),
    "one of several is not": (hint(V1, V2) | destination(f"{V1},{S4}"), True),
    "no hint": (destination(S4), False),
    "no pick": (hint(V1), False),
    "the guard": (hint(V1) | TOLD | destination(ALL), False),
}


@pytest.mark.parametrize(("metadata", "outside"), OUTSIDE.values(), ids=OUTSIDE)
def test_a_pick_outside_the_hint_is_told(metadata: dict[str, Any], outside: bool) -> None:  # noqa: FBT001 - a column
    run = after()
    run.receive(headers(VLLM, metadata=metadata))
    assert run.outcome
    assert run.outcome.outside is outside


@pytest.mark.parametrize("metadata", [metadata for metadata, _ in OUTSIDE.values()], ids=OUTSIDE)
def test_without_a_body_no_pick_is_outside_the_hint(metadata: dict[str, Any]) -> None:
    run = after()
    run.receive(headers(VLLM, metadata=metadata, ends=True))
    assert run.outcome
    assert not run.outcome.outside


@pytest.mark.parametrize("reason", ["path-not-interpreted", "not-a-pool", "pool-unknown"])
def test_a_request_that_is_not_ours_says_nothing_of_the_epp(reason: str) -> None:
    run = session(AFTER)
    run.receive(headers(metadata=said("", "", reason, 0)))
    assert run.outcome
    assert run.outcome.correction is None
