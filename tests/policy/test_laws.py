# SPDX-License-Identifier: Apache-2.0
"""What holds for every request, snapshot and policy."""

import json
from typing import Any

import msgspec
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from extproc.envoy.binding import Attachment
from extproc.envoy.messages import Phase
from extproc.envoy.metadata import Pick
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.envoy.replies import Moment, Replies, Reply, Turn, compose
from extproc.policy.candidates import engine
from extproc.policy.decide import asks_body, decide
from extproc.policy.extract import from_body, from_head
from extproc.policy.pick import Load
from extproc.policy.rules import drawn, rules_of
from extproc.policy.types import (
    MEANINGS,
    Endpoint,
    InferenceRequest,
    PassThrough,
    Reject,
    Restrict,
    Scope,
    Snapshot,
    SubsetHint,
)
from tests.builders import CHAT, attempts, endpoint, policy, snapshot

OWNERS = ["vllm", "sglang", "tgi", "nobody", "*"]
MODELS = ["a", "b", "unknown"]
POLICIES = [
    policy(),
    policy("whenUnknown: {action: passthrough}\nwhenUnknownModel: {action: passthrough}\n"),
    policy("whenAbsent: {action: reject}\nwhenTruncated: {action: reject}\n"),
    policy("match: {models: any, unlabeledAs: ''}\n"),
    policy("sources: {body: []}\nwhenUnknownModel: {action: passthrough}\n"),
    policy("guard: false\ndestinations: 1\n"),
    policy("whenAbsent: {action: prefer, owners: [tgi, sglang]}\nwhenUnready: {action: fallback, owners: [vllm]}\n"),
    policy(
        "whenAbsent: {action: prefer, owners: [tgi, '*']}\nwhenUnready: {action: fallback, owners: [vllm, '*']}\n"
        "models:\n- {model: a, allow: [vllm, tgi]}\n- {model: unknown, allow: [sglang]}\n"
    ),
    policy(
        "whenUnknown: {action: passthrough}\nwhenUnknownModel: {action: passthrough}\nmodels:\n"
        "- {model: a, allow: [sglang, nobody], whenAbsent: {action: split, weights: {vllm: 2, sglang: 1}}}\n"
        "- {model: 'b*', whenAbsent: {action: reject}, whenUnready: {action: fallback, owners: [tgi]}}\n"
        "- {model: '*', allow: [vllm, tgi], whenTruncated: {action: reject}}\n"
    ),
    policy(
        "match: {models: any}\nwhenAbsent: {action: split, weights: {sglang: 1, tgi: 1}}\n"
        "models:\n- {model: a, allow: [tgi]}\n"
    ),
    policy(
        "sources: {body: []}\nmodels:\n- {model: a, whenAbsent: {action: prefer, owners: [vllm]}}\n"
        "routing:\n- {model: a, owned_by: vllm, selector: {matchLabels: {llm-d.ai/engine-type: sglang}}}\n"
        "- {model: unknown, owned_by: sglang, selector: "
        "{matchExpressions: [{key: llm-d.ai/engine-type, operator: DoesNotExist}]}}\n"
    ),
]

models = st.none() | st.lists(st.sampled_from(["a", "b"]), unique=True, max_size=2).map(tuple)
rows = st.tuples(
    st.sampled_from(["vllm", "sglang", "tgi", ""]), models, st.booleans(), st.sampled_from(["", "prefill", "decode"])
)
pods = st.lists(rows, max_size=6).map(
    lambda rows: [
        endpoint(n, *row, address=f"fd00::{n}" if n % 4 == 0 else f"10.0.0.{n}") for n, row in enumerate(rows, 1)
    ]
)
owner_lists = st.lists(st.sampled_from(OWNERS[:-1]), unique=True, max_size=3).flatmap(
    lambda owners: st.sampled_from([tuple(owners), (*owners, "*")])
)
hints = st.builds(
    SubsetHint,
    st.none() | st.frozensets(st.sampled_from([f"10.0.0.{n}{port}" for n in range(1, 5) for port in ("", ":8000")])),
)
scopes = hints.map(lambda hint: Scope(CHAT, destination=True, hint=hint)) | st.just(Scope(CHAT))
requests = st.builds(
    InferenceRequest,
    scope=scopes,
    method=st.just("POST"),
    path=st.just("/v1/completions"),
    owners=owner_lists,
    param=st.just("owned_by"),
    model=st.sampled_from(["", *MODELS]),
    truncated=st.booleans(),
    drawn=st.sampled_from([(), ("vllm", "sglang"), ("tgi", "nobody")]),
)
policies = st.sampled_from(POLICIES)


def without_steps(decision: Any) -> Any:
    return msgspec.structs.replace(decision, steps=())


@given(requests, pods, policies)
def test_a_restriction_is_never_empty_nor_wider_than_what_is_ready_and_hinted(
    request: InferenceRequest, endpoints: list[Endpoint], policy_: Any
) -> None:
    decision = decide(request, snapshot(*endpoints), policy_)
    if isinstance(decision, Restrict):
        allowed = [e for e in endpoints if e.ready and request.scope.hint.admits(e)]
        assert decision.endpoints
        assert all(e in allowed for e in decision.endpoints)


@given(requests, pods, policies)
def test_a_reason_comes_with_no_decision_that_its_meaning_does_not_name(
    request: InferenceRequest, endpoints: list[Endpoint], policy_: Any
) -> None:
    decision = decide(request, snapshot(*endpoints), policy_)
    assert type(decision).__name__.lower() in MEANINGS[decision.reason].decisions


@given(requests, pods, policies)
def test_where_a_destination_is_due_every_endpoint_decodes(
    request: InferenceRequest, endpoints: list[Endpoint], policy_: Any
) -> None:
    due = msgspec.structs.replace(request, scope=Scope(CHAT, destination=True))
    decision = decide(due, snapshot(*endpoints), policy_)
    assert not isinstance(decision, PassThrough)
    assert all(e.decodes for e in getattr(decision, "endpoints", ()))


@given(requests, pods, st.sampled_from([each for each in POLICIES if any(rule.allow for rule in each.models)]))
def test_nobody_serves_a_model_who_is_not_allowed_to(
    request: InferenceRequest, endpoints: list[Endpoint], policy_: Any
) -> None:
    allow = rules_of(policy_, request.model).allow
    assume(allow is not None)
    decision = decide(request, snapshot(*endpoints), policy_)
    ready = [each for each in endpoints if each.ready]
    may = ready if isinstance(decision, PassThrough) else getattr(decision, "endpoints", ())
    assert {engine(each, policy_) for each in may} <= allow


@given(requests, pods, policies, st.randoms(use_true_random=False))
def test_the_order_of_the_endpoints_changes_nothing_but_the_order(
    request: InferenceRequest, endpoints: list[Endpoint], policy_: Any, random: Any
) -> None:
    def as_a_set(decision: Any) -> Any:
        if isinstance(decision, Restrict):
            return {e.name for e in decision.endpoints}, decision.reason, decision.owner, decision.steps
        return decision

    shuffled = random.sample(endpoints, len(endpoints))
    first, second = (decide(request, snapshot(*order), policy_) for order in (endpoints, shuffled))
    assert as_a_set(first) == as_a_set(second)


@settings(suppress_health_check=[HealthCheck.filter_too_much])  # few of what is drawn come to an owner
@given(requests, pods, models, st.booleans())
def test_an_endpoint_of_another_owner_changes_nothing_for_an_owner(
    request: InferenceRequest,
    endpoints: list[Endpoint],
    served: tuple[str, ...] | None,
    ready: bool,  # noqa: FBT001 - drawn
) -> None:
    decision = decide(request, snapshot(*endpoints), POLICIES[0])
    assume(isinstance(decision, Restrict) and decision.owner not in ("", "*"))
    assume(any(each.decodes for each in getattr(decision, "endpoints", ())))  # else they were the last resort
    wider = decide(request, snapshot(*endpoints, endpoint(99, "another", served, ready)), POLICIES[0])
    assert isinstance(decision, Restrict)
    assert isinstance(wider, Restrict)
    assert wider.endpoints == decision.endpoints


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(OWNERS + MODELS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(
    st.sampled_from(["owned_by", "engine", "inference_server", "model", "prompt"]),
    st.sampled_from(OWNERS + MODELS) | values,
    max_size=4,
)
documents = (objects | values).map(lambda value: json.dumps(value).encode())
cut = st.tuples(documents, st.integers(0, 60)).map(lambda pair: pair[0][: pair[1]])
spoilt = st.tuples(documents, st.binary(max_size=4), st.integers(0, 30)).map(
    lambda t: t[0][: t[2]] + t[1] + t[0][t[2] :]
)
bodies = documents | cut | spoilt | st.binary(max_size=40)
header_values = st.text(alphabet=st.characters(max_codepoint=255), max_size=12) | st.sampled_from(OWNERS)


@given(bodies, st.booleans(), policies)
def test_every_body_yields_a_request_and_a_decision(body: bytes, ended: bool, policy_: Any) -> None:  # noqa: FBT001 - drawn
    head = from_head({":method": ["POST"], ":path": ["/v1/x"]}, Scope(CHAT), policy_)
    request = from_body(head, body, policy_, ended=ended)
    assert decide(request, snapshot(endpoint(1, "vllm", ("a",)), endpoint(2, "sglang", None)), policy_)


@given(st.lists(header_values, max_size=3), header_values, header_values, policies)
def test_every_head_yields_a_request_and_a_decision(lines: list[str], query: str, model: str, policy_: Any) -> None:
    headers = {":path": [f"/v1/models/{query}?owned_by={query}"], "x-owned-by": lines, "x-gateway-model-name": [model]}
    for method in ("GET", "POST"):
        request = from_head(headers | {":method": [method]}, Scope(CHAT), policy_)
        assert decide(request, snapshot(endpoint(1, "vllm", ("a",))), policy_)


@given(st.binary(max_size=60) | documents, st.integers(0, 60))
def test_what_a_prefix_names_the_whole_body_names_too(body: bytes, length: int) -> None:
    head = from_head({":method": ["POST"], ":path": ["/v1/x"]}, Scope(CHAT), POLICIES[0])
    whole = from_body(head, body, POLICIES[0], ended=True)
    part = from_body(head, body[:length], POLICIES[0], ended=False)
    try:
        json.loads(body)
    except ValueError:
        assume(False)  # noqa: FBT003 - Hypothesis' own signature
    if part.owners and not part.malformed:
        assert part.owners == whole.owners or part.param != whole.param
    if part.model:
        assert part.model == whole.model


@given(st.sampled_from([(), ("vllm",), ("sglang", "*"), ("nobody",), ("tgi",)]), pods, policies, documents)
@example(("vllm",), [endpoint(1, "vllm", ("a",), ready=False)], POLICIES[1], b'{"model": "unknown"}')
def test_a_body_that_is_not_asked_for_would_change_nothing(
    owners: tuple[str, ...], endpoints: list[Endpoint], policy_: Any, body: bytes
) -> None:
    headers = {":method": ["POST"], ":path": ["/v1/x"]} | ({"x-owned-by": [",".join(owners)]} if owners else {})
    request = drawn(from_head(headers, Scope(CHAT), policy_), policy_, lambda: "r-1")
    world = snapshot(*endpoints)
    assume(not asks_body(request, world, policy_))

    def where(decision: Any) -> Any:
        """Where it goes; the words for it may name a model that is of no matter."""
        if isinstance(decision, Reject):
            return decision.status, decision.reason
        return type(decision), getattr(decision, "endpoints", ()), getattr(decision, "owner", "")

    told = drawn(from_body(request, body, policy_, ended=True), policy_, lambda: "r-1")
    assert where(decide(told, world, policy_)) == where(decide(request, world, policy_))


SCOPES = {
    Attachment.BEFORE: Scope(CHAT),
    Attachment.AFTER: Scope(CHAT, destination=True, chosen=True),
    Attachment.PICKER: Scope(CHAT, destination=True),
    Attachment.HEADER: Scope(CHAT, union=True, promotes=True),
}
some_picks = st.sampled_from(
    [Pick(), Pick("10.0.0.1:8000", ("10.0.0.1:8000",), by_epp=True), Pick("10.0.0.2:8000", ("10.0.0.2:8000",))]
)
some_loads = st.dictionaries(
    st.sampled_from([f"10.0.0.{number}:8000" for number in range(1, 7)]),
    st.builds(Load, st.integers(0, 2), st.sampled_from([0.0, 0.5])),
)
moments = st.builds(Moment, st.integers(0, 9), some_loads, some_picks)


@given(
    requests,
    st.sampled_from(["POST", "GET", "HEAD"]),
    pods,
    policies,
    st.sampled_from(Attachment),
    st.sampled_from(Phase),
    st.booleans(),
    moments,
)
def test_a_kept_reply_equals_a_fresh_one(  # noqa: PLR0917 - what a reply depends on
    request: InferenceRequest,
    method: str,
    endpoints: list[Endpoint],
    policy_: Any,
    attachment: Attachment,
    phase: Phase,
    bodiless: bool,  # noqa: FBT001 - drawn
    moment: Moment,
) -> None:
    scope = msgspec.structs.replace(SCOPES[attachment], hint=request.scope.hint)
    request = msgspec.structs.replace(request, scope=scope, method=method)
    world = snapshot(*endpoints)
    replies = Replies(world, policy_)
    fresh = compose(decide(request, world, policy_), request, replies, Turn(attachment, phase, bodiless))

    def alike(reply: Reply) -> Any:
        ranked = reply.ranking.destinations if reply.ranking else None
        return msgspec.structs.replace(reply, known=False, ranking=None), ranked

    for _ in range(2):
        kept = replies.reply(request, Turn(attachment, phase, bodiless))
        assert alike(kept) == alike(fresh)
        assert kept.message(Turn(attachment, phase), 3, moment) == fresh.message(Turn(attachment, phase), 3, moment)


@given(requests, pods, policies, some_picks, moments)
def test_behind_the_epp_nothing_but_what_is_eligible_is_written(
    request: InferenceRequest, endpoints: list[Endpoint], policy_: Any, pick: Pick, moment: Moment
) -> None:
    request = msgspec.structs.replace(request, scope=SCOPES[Attachment.AFTER])
    world = snapshot(*endpoints)
    decision = decide(request, world, policy_)
    made = Replies(world, policy_).reply(request, Turn(Attachment.AFTER))
    spoken = made.message(Turn(Attachment.AFTER), policy_.destinations, moment._replace(pick=pick))
    written = [entry for entry in spoken.destination.split(",") if entry]
    if isinstance(decision, Restrict):
        eligible = {each.destination for each in decision.endpoints}
        kept = [entry for entry in pick.members if entry in eligible]
        distinct = max(len(kept), min(policy_.destinations, len(eligible)))
        assert distinct
        assert set(written) <= eligible
        assert written[: len(kept)] == kept
        assert len(set(written[:distinct])) == distinct
        assert ",".join(written) == attempts(*written[:distinct], count=policy_.destinations)
    else:
        assert written == (list(pick.members) if isinstance(decision, PassThrough) else [])


PROMOTING = [
    policy("promote: {header: x-engine}\n"),
    policy("promote: {header: x-engine}\nsources: {body: []}\n"),
    policy("promote: {model: x-model}\nwhenUnknownModel: {action: passthrough}\n"),
    policy("promote: {header: x-engine, model: x-model}\nwhenAbsent: {action: reject}\n"),
    policy("promote: {header: x-engine}\nwhenAbsent: {action: prefer, owners: [tgi, '*']}\n"),
    policy(
        "promote: {header: x-engine}\nmodels:\n- {model: a, allow: [vllm]}\n"
        "- {model: b, whenAbsent: {action: split, weights: {vllm: 1, sglang: 1}}}\n"
    ),
]


@given(
    st.sampled_from([(), ("vllm",), ("nobody", "sglang")]),
    pods,
    st.sampled_from([POLICIES[0], *PROMOTING]),
    documents,
    st.sampled_from([SCOPES[Attachment.HEADER], Scope(CHAT), Scope(union=True, promotes=True), Scope()]),
    st.booleans(),
)
def test_a_body_that_is_not_asked_for_would_change_no_header_that_names_owner_or_model(  # noqa: PLR0917 - drawn
    owners: tuple[str, ...],
    endpoints: list[Endpoint],
    policy_: Any,
    body: bytes,
    scope: Scope,
    known: bool,  # noqa: FBT001 - drawn
) -> None:
    headers = {":method": ["POST"], ":path": ["/v1/x"]} | ({"x-owned-by": [",".join(owners)]} if owners else {})
    request = drawn(from_head(headers, scope, policy_), policy_, lambda: "r-1")
    world = snapshot(*endpoints) if known else Snapshot()
    assume(not asks_body(request, world, policy_))
    replies = Replies(world, policy_)

    def named(asked: InferenceRequest) -> Any:
        reply = replies.reply(asked, Turn(Attachment.HEADER))
        if reply.final:
            return reply.reason
        return pb.ProcessingResponse.FromString(reply.prefix).request_headers

    told = drawn(from_body(request, body, policy_, ended=True), policy_, lambda: "r-1")
    assert named(told) == named(request)
