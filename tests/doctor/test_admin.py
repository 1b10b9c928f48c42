# SPDX-License-Identifier: Apache-2.0
"""What the doctor makes of our server's endpoints: whose they are, by label and by their own word."""

from typing import Any

from extproc.doctor.admin import Admin, labels, server
from extproc.policy.config import PolicyConfig, default_policy
from extproc.policy.loading import parse_policy
from extproc.policy.types import Endpoint, Model

LABEL = "llm-d.ai/engine-type"
PROBED = b"{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy, match: {engineFrom: [label, probe], unlabeledAs: vllm}}"
STRICT = b"{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy, match: {unlabeledAs: ''}}"
ROUTED = (
    b"{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy,"
    b" routing: [{model: m, owned_by: VLLM, selector: {matchLabels: {app: canary}}}]}"
)


def endpoint(name: str, label: str = "", said: str = "", **more: Any) -> Endpoint:
    number = int(name.rpartition("-")[2])
    found = {LABEL: label} if label else {}
    return Endpoint(name, "default", f"127.0.0.{number}", 8000, found | more.pop("labels", {}), owned_by=said, **more)


def said(*endpoints: Endpoint, policy: PolicyConfig | None = None) -> list[str]:
    return [each.line for each in labels(Admin(policy or default_policy(), list(endpoints), {}), None)]


def test_endpoints_that_are_labelled_are_well() -> None:
    assert said(endpoint("a-1", "vllm", "vllm"), endpoint("b-2", "sglang")) == [
        "ok       labels        every endpoint says whose it is"
    ]


def test_endpoints_without_a_label_are_named_and_whose_they_count_as() -> None:
    what = "`a-1`, `c-3` say nothing of their engine and count as `vllm`'s"

    assert said(endpoint("a-1"), endpoint("b-2", "sglang"), endpoint("c-3", said="sglang")) == [
        f"warning  labels        {what}; label the pods `{LABEL}`"
    ]


def test_of_many_some_are_named() -> None:
    (line,) = said(*(endpoint(f"a-{number}") for number in range(1, 9)))

    assert line.startswith("warning  labels        `a-1`, `a-2`, `a-3`, `a-4`, `a-5` and 3 more say nothing")


def test_their_own_word_is_enough_where_it_counts() -> None:
    assert said(endpoint("a-1", said="sglang"), policy=parse_policy(PROBED)) == [
        "ok       labels        every endpoint says whose it is"
    ]


def test_nobodys_endpoints_are_told() -> None:
    (line,) = said(endpoint("a-1"), policy=parse_policy(STRICT))

    assert line.startswith("warning  labels        `a-1` say nothing of their engine and count as nobody's;")


def test_a_label_that_the_engine_denies_is_told() -> None:
    what = "`a-1` is labelled `vllm` and says itself that it is `sglang`"

    assert said(endpoint("a-1", "vllm", "sglang")) == [f"warning  labels        {what}; mend its label `{LABEL}`"]


def test_without_our_server_an_only_owner_is_a_hint() -> None:
    what = "everything is `vllm`'s: a pod without a label counts as one of `unlabeledAs`"
    fix = "if other engines are there, label their pods llm-d.ai/engine-type"

    assert [each.line for each in labels(None, [("m", "vllm"), ("n", "vllm")])] == [
        f"warning  labels        {what}; {fix}"
    ]


def test_a_server_that_is_not_ready_says_what_it_waits_for() -> None:
    status = {"ready": False, "components": {"policy": True, "pools": False, "pods": False}}

    assert [each.line for each in server(Admin(default_policy(), [], status))] == [
        "error    server        it is not ready: pools, pods; look at `sources` of its /statusz"
    ]


def test_who_may_serve_is_the_engine_with_the_model_or_whom_a_routing_entry_names() -> None:
    models = (Model("m"),)
    listed = [
        endpoint("a-1", "vllm", models=models),
        endpoint("b-2", "vllm", models=()),
        endpoint("c-3", "vllm"),
        endpoint("d-4", "sglang", models=models, labels={"app": "canary"}),
        endpoint("e-5", "sglang", models=(), labels={"app": "canary"}),
        endpoint("f-6", "vllm", models=models, ready=False),
    ]

    assert Admin(default_policy(), listed, {}).of("m", "vllm") == {f"127.0.0.{number}:8000" for number in (1, 3, 6)}
    assert Admin(parse_policy(ROUTED), listed, {}).of("m", "vllm") == {"127.0.0.4:8000"}
