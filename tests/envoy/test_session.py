# SPDX-License-Identifier: Apache-2.0
"""Whole streams: what Envoy says, what we answer, where it sends no body but what is asked for."""

import hashlib
import itertools
import json
from collections import Counter
from typing import Any

import pytest

from extproc.envoy.binding import Attachment, Binding, ProtocolError
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import Replies
from extproc.envoy.session import Session
from extproc.policy.types import Pool
from tests.builders import (
    CHAT,
    DEFAULT,
    DEST,
    DUPLEX,
    LLAMA,
    MIXED,
    MODE,
    NONE,
    PLAIN,
    QWEN,
    Playbook,
    answer_headers,
    asks,
    attempts,
    before,
    body,
    body_goes_on,
    endpoint,
    goes_on,
    headers,
    hint,
    parsed,
    picked,
    policy,
    said,
    session,
    snapshot,
    trailers,
)

BEFORE, PICKER = Attachment.BEFORE, Attachment.PICKER
V1, V2, S1 = "10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"


def passed(play: Playbook) -> tuple[str | None, str, list[str]]:
    """How a request was let through: at which message, why, and which metadata namespaces were written."""
    (answer,) = play.said
    return (
        answer.WhichOneof("response"),
        answer.dynamic_metadata["owned_by"]["reason"],
        sorted(answer.dynamic_metadata.fields),
    )


SGLANG = ("x-owned-by", "sglang")


@pytest.mark.parametrize("mode", [None, NONE, MODE.BUFFERED_PARTIAL], ids=["absent", "NONE", "BUFFERED_PARTIAL"])
def test_before_decides_at_the_headers_when_they_suffice(mode: Any) -> None:
    play = Playbook(session()) >> headers(SGLANG, mode=mode) << [goes_on(before("sglang", "", S1))]
    assert play.session.done


def test_picker_decides_at_the_headers_when_they_suffice() -> None:
    expected = goes_on(picked("sglang", "", S1), sets={DEST: attempts(S1)})
    play = Playbook(session(PICKER)) >> headers(SGLANG, mode=NONE) << [expected]
    assert play.session.done


ASKS = {
    BEFORE: asks(),
    PICKER: asks(),
    Attachment.AFTER: asks(removes=()),  # the EPP has said them
    Attachment.HEADER: asks(reroute=True),
}


@pytest.mark.parametrize("attachment", Attachment)
def test_without_an_owner_the_body_is_asked_for(attachment: Attachment) -> None:
    play = Playbook(session(attachment)) >> headers(mode=NONE) << [ASKS[attachment]]
    assert (play.session.done, play.session.deadline, play.session.outcome) == (False, None, None)


def test_before_decides_at_the_body_that_it_asked_for() -> None:
    play = Playbook(session()) >> headers() << [asks()]
    play >> body({"owned_by": "sglang", "model": LLAMA}) << [body_goes_on(before("sglang", LLAMA, S1))]
    assert play.session.done


def test_picker_decides_at_the_body_that_it_asked_for() -> None:
    play = Playbook(session(PICKER)) >> headers() << [asks()]
    expected = body_goes_on(picked("sglang", LLAMA, S1), sets={DEST: attempts(S1)})
    play >> body({"owned_by": "sglang", "model": LLAMA}) << [expected]
    assert play.session.done


def test_a_named_owner_asks_for_the_body_when_the_model_matters() -> None:
    play = Playbook(session(world=MIXED)) >> headers(("x-owned-by", "vllm")) << [asks()]
    play >> body({"model": QWEN}) << [body_goes_on(before("vllm", QWEN, V2))]


def test_a_model_in_a_header_need_not_be_asked_for() -> None:
    message = headers(("x-owned-by", "vllm"), ("x-gateway-model-name", QWEN))
    Playbook(session(world=MIXED)) >> message << [goes_on(before("vllm", QWEN, V2))]


def test_a_body_that_names_nothing_passes() -> None:
    play = Playbook(session()) >> headers() << [asks()] >> body({"model": LLAMA})
    assert play.session.done
    assert passed(play) == ("request_body", "owner-absent", ["owned_by"])


def test_a_truncated_body_is_read_as_far_as_it_goes() -> None:
    play = Playbook(session()) >> headers() << [asks()]
    cut = b'{"owned_by": "sglang", "prompt": "lo'
    play >> body(cut, ends=False) << [body_goes_on(before("sglang", "", S1))]
    assert play.session.done


def test_a_truncated_body_is_refused_where_the_policy_says_so() -> None:
    run = session(policy_=policy("whenTruncated: {action: reject}\n"))
    run.receive(headers())
    (answer,) = parsed(run.receive(body(b'{"prompt": "lo', ends=False)))
    found = json.loads(answer.immediate_response.body)["error"]
    assert (answer.immediate_response.status.code, found["code"]) == (413, "body_truncated")


BODILESS = {
    "ends at its headers": headers(SGLANG, method="GET", path="/v1/x", ends=True, content_type=""),
    "a POST without a body": headers(SGLANG, ends=True),
}


@pytest.mark.parametrize("message", BODILESS.values(), ids=BODILESS)
def test_a_bodiless_request_is_hinted_and_said_to_be(message: pb.ProcessingRequest) -> None:
    play = Playbook(session()) >> message << [goes_on(before("sglang", "", S1, reason="hint-without-body"))]
    assert play.session.done


UNREAD = {
    "no type": headers(content_type=""),
    "text": headers(content_type="text/plain"),
    "compressed": headers(("content-encoding", "gzip")),
    "upgrade": headers(("upgrade", "websocket")),
    "CONNECT": headers(method="CONNECT"),
    "ends": headers(ends=True),
}


@pytest.mark.parametrize("message", UNREAD.values(), ids=UNREAD)
def test_a_body_that_cannot_be_read_is_not_asked_for(message: pb.ProcessingRequest) -> None:
    play = Playbook(session()) >> message
    assert play.session.done
    assert passed(play) == ("request_headers", "owner-absent", ["owned_by"])


def test_a_path_that_is_not_interpreted_passes_with_its_owner() -> None:
    play = Playbook(session()) >> headers(SGLANG, path="/health")
    assert play.session.done
    assert passed(play) == ("request_headers", "path-not-interpreted", ["owned_by"])


def test_a_refusal_at_the_headers_ends_the_stream() -> None:
    run = session()
    (answer,) = parsed(run.receive(headers(("x-owned-by", "nobody"))))
    assert (answer.immediate_response.status.code, run.done) == (404, True)


def test_a_spoofed_header_changes_nothing() -> None:
    spoofed = [(DEST, "1.2.3.4:5"), (f"{DEST}-subset", "1.2.3.4:5"), ("x-prefiller-host-port", "1.2.3.4:5")]
    Playbook(session()) >> headers(SGLANG, *spoofed) << [goes_on(before("sglang", "", S1))]


def test_a_hint_for_before_is_not_read() -> None:
    message = headers(SGLANG, metadata=hint(V1))
    Playbook(session()) >> message << [goes_on(before("sglang", "", S1))]


def test_equal_header_lines_count_once() -> None:
    message = headers(SGLANG, ("x-owned-by", " SGLang "))
    Playbook(session()) >> message << [goes_on(before("sglang", "", S1))]


def test_different_header_lines_are_a_400() -> None:
    (answer,) = parsed(session().receive(headers(SGLANG, ("x-owned-by", "vllm"))))
    found = json.loads(answer.immediate_response.body)["error"]
    assert (answer.immediate_response.status.code, found["code"], found["param"]) == (
        400,
        "owner_malformed",
        "x-owned-by",
    )


def test_a_header_in_value_is_read_as_one_in_raw_value() -> None:
    message = headers()
    message.request_headers.headers.headers.add(key="x-owned-by", value="sglang")
    Playbook(session()) >> message << [goes_on(before("sglang", "", S1))]


# Which pool

TWO = snapshot(endpoint(1, "vllm", None), other=(endpoint(2, "vllm", None),))
OTHER, GONE = Pool("default", "other"), Pool("default", "gone")
TO_CHAT = "outbound|54321||chat-ip-31e06f7d.default.svc.cluster.local"
TO_PROD = TO_CHAT.replace("default", "prod")
TO_WEB = "outbound|80||web.default.svc.cluster.local"
VLLM = ("x-owned-by", "vllm")
POOLS: dict[str, tuple[dict[str, Any], str, str]] = {
    # the binding, the cluster, who may serve
    "the filter's before the cluster's": ({"pool": OTHER, "default": CHAT}, TO_CHAT, V2),
    "the filter's on a route to no pool": ({"pool": OTHER}, TO_WEB, V2),
    "the cluster's before the flags'": ({"pool": None, "default": OTHER}, TO_CHAT, V1),
    "the flags' at last": ({"pool": None, "default": OTHER}, "", V2),
}


@pytest.mark.parametrize(("binding", "cluster", "to"), POOLS.values(), ids=POOLS)
def test_the_pool_is_the_filters_else_the_clusters_else_the_flags(
    binding: dict[str, Any], cluster: str, to: str
) -> None:
    play = Playbook(session(world=TWO, **binding)) >> headers(VLLM, cluster=cluster)
    play << [goes_on(before("vllm", "", to))]


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "of the filter": ({"pool": GONE}, ""),
    "of the filter, whatever the route leads to": ({"pool": GONE}, TO_CHAT),
    "of the flags": ({"pool": None, "default": GONE}, ""),
    "of the cluster": ({"pool": None, "default": CHAT}, TO_PROD),
}


@pytest.mark.parametrize("attachment", [BEFORE, Attachment.AFTER, PICKER])
@pytest.mark.parametrize(("binding", "cluster"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_pool_that_is_named_and_not_known_is_a_503(
    binding: dict[str, Any], cluster: str, attachment: Attachment
) -> None:
    run = session(attachment, world=TWO, **binding)
    (answer,) = parsed(run.receive(headers(VLLM, cluster=cluster)))
    found = json.loads(answer.immediate_response.body)["error"]
    assert (answer.immediate_response.status.code, found["code"], run.done) == (503, "pool_unknown", True)


FOREIGN = {
    BEFORE: goes_on(said("", "", "not-a-pool", 0)),
    PICKER: goes_on(said("", "", "not-a-pool", 0)),
    Attachment.AFTER: goes_on(said("", "", "not-a-pool", 0, None), removes=(DEST,)),
}


@pytest.mark.parametrize("attachment", FOREIGN)
@pytest.mark.parametrize("union", [False, True], ids=["", "union"])
def test_on_a_route_to_no_pool_a_request_passes_without_the_gateways_headers(
    attachment: Attachment,
    union: bool,  # noqa: FBT001 - a column
) -> None:
    run = session(attachment, world=TWO, pool=None, default=CHAT, union=union)
    play = Playbook(run) >> headers(("x-owned-by", "b@d"), (DEST, V1), cluster=TO_WEB)
    play << [FOREIGN[attachment]]
    assert run.done


def test_a_pool_whose_name_the_cluster_cuts_is_found_among_those_that_are_known() -> None:
    name = "a-model-whose-name-is-so-long-that-a-service-cannot-have-it"
    cluster = (
        f"outbound|54321||{name[:51]}-ip-{hashlib.sha256(name.encode()).hexdigest()[:8]}.default.svc.cluster.local"
    )
    world = snapshot(endpoint(1, "vllm", None), **{name: (endpoint(4, "vllm", None),)})
    play = Playbook(session(world=world, pool=None)) >> headers(VLLM, cluster=cluster)
    play << [goes_on(before("vllm", "", "10.0.0.4:8000"))]


# What it is made of


def test_the_rotation_goes_round() -> None:
    counter = itertools.count()
    replies = Replies(PLAIN, DEFAULT)
    firsts = []
    for _ in range(6):
        run = Session(Binding(PICKER, CHAT), lambda: replies, counter.__next__)
        run.receive(headers(("x-owned-by", "vllm")))
        assert run.outcome
        firsts.append(run.outcome.destination.split(",")[0])
    assert firsts == [V1, V2, V1, V2, V1, V2]


def test_gets_for_owners_that_alternate_are_spread_evenly() -> None:
    replies = Replies(
        snapshot(*(endpoint(n, owner, None) for n, owner in enumerate(["vllm", "sglang"] * 2, 1))), DEFAULT
    )
    rotation = itertools.count().__next__
    firsts: Counter[str] = Counter()
    for owner in ("vllm", "sglang") * 6:
        run = Session(Binding(PICKER, CHAT), lambda: replies, rotation)
        run.receive(headers(("x-owned-by", owner), method="GET", path="/v1/x", ends=True, content_type=""))
        assert run.outcome
        firsts[run.outcome.destination.split(",")[0]] += 1
    assert firsts == {f"10.0.0.{number}:8000": 3 for number in range(1, 5)}


def test_the_rotation_is_not_turned_by_what_needs_none() -> None:
    turned: list[int] = []
    replies = Replies(PLAIN, policy("guard: false\n"))
    run = Session(Binding(BEFORE, CHAT), lambda: replies, lambda: turned.append(1) or 0)
    run.receive(headers(SGLANG))
    assert turned == []


def test_snapshot_and_policy_are_taken_when_deciding() -> None:
    worlds = [Replies(PLAIN, DEFAULT)]
    run = Session(Binding(BEFORE, CHAT), lambda: worlds[-1], lambda: 0)
    run.receive(headers())
    worlds.append(Replies(snapshot(endpoint(9, "sglang", None)), DEFAULT))
    assert parsed(run.receive(body({"owned_by": "sglang"}))) == [body_goes_on(before("sglang", "", "10.0.0.9:8000"))]


def test_the_outcome_tells_what_happened() -> None:
    run = session()
    run.receive(headers(("x-request-id", "r-1")))
    run.receive(body(b'{"owned_by": "sglang"}'))
    assert run.outcome
    found = (run.outcome.request.param, run.outcome.destination, run.outcome.request_id)
    assert found == ("owned_by", attempts(S1), "r-1")
    assert (run.outcome.asked_body, run.outcome.body_bytes, run.outcome.reply.reason) == (True, 22, "owner-matched")


# What the protocol does not allow

WRONG: dict[str, list[pb.ProcessingRequest]] = {
    "nothing": [pb.ProcessingRequest()],
    "a body first": [body(b"")],
    "trailers first": [trailers()],
    "STREAMED": [headers(mode=MODE.STREAMED)],
    "GRPC": [headers(mode=MODE.GRPC)],
    "a mode that nobody knows": [headers(mode=99)],
    "headers twice": [headers(), headers()],
    "headers twice, held": [headers(mode=DUPLEX), headers()],
    "trailers instead of the body": [headers(), trailers()],
    "after the end": [headers(SGLANG), body(b"{}")],
    "headers after the end": [headers(SGLANG), headers(SGLANG)],
    "an answer after the end": [headers(SGLANG), answer_headers()],
    "a request after an answer": [answer_headers(), headers()],
}


@pytest.mark.parametrize("messages", WRONG.values(), ids=WRONG)
def test_what_is_not_expected_is_refused_and_changes_nothing(messages: list[pb.ProcessingRequest]) -> None:
    run = session()
    for message in messages[:-1]:
        run.receive(message)
    then = (run.done, run.outcome, run.deadline)
    with pytest.raises(ProtocolError):
        run.receive(messages[-1])
    assert (run.done, run.outcome, run.deadline) == then


def test_a_preference_for_pods_that_only_prefill_goes_on_to_one_that_answers() -> None:
    world = snapshot(endpoint(1, "sglang", None, role="prefill"), endpoint(2, "vllm", None))
    play = Playbook(session(world=world)) >> headers(("x-owned-by", "sglang, vllm"))
    play << [goes_on(before("vllm", "", V2))]
