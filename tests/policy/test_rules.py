# SPDX-License-Identifier: Apache-2.0
"""What the policy says of a model, and whom it draws for a request."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.policy import rules
from extproc.policy.config import Fallback, Pass, Prefer, Refuse, Split
from extproc.policy.rules import Rules, draw, drawn, order_of, route_of, rules_of
from extproc.policy.types import InferenceRequest, Malformed, Reason
from tests.builders import LLAMA, QWEN, asking, policy

# rules_of

DEFAULT_RULES = Rules(None, Pass(), Refuse(), Refuse(), Pass())


@pytest.mark.parametrize("model", ["", LLAMA])
def test_without_rules_a_model_has_the_policys_own(model: str) -> None:
    assert rules_of(policy(), model) == DEFAULT_RULES


def test_the_policys_own_are_normalised() -> None:
    rules = rules_of(
        policy(
            "whenAbsent: {action: prefer, owners: [' VLLM ', vllm, TRT-LLM, any]}\nwhenUnknown: {action: passthrough}\n"
            "whenUnready: {action: fallback, owners: [trtllm, trt-llm, '*']}\nwhenTruncated: {action: reject}\n"
        ),
        "m",
    )
    assert rules == Rules(
        None,
        Prefer((" VLLM ", "vllm", "TRT-LLM", "any")),
        Pass(),
        Fallback(("trtllm", "trt-llm", "*")),
        Refuse(),
        ("vllm", "trtllm-serve", "*"),
        ("trtllm-serve", "*"),
    )


PATTERNS = policy(
    "models:\n"
    "- {model: meta-llama/Llama-3.2-1B-Instruct, allow: [exact]}\n"
    "- {model: 'meta-llama/*', allow: [family]}\n"
    "- {model: 'meta-*', allow: [never]}\n"
    "- {model: 'a?c', allow: [one-letter]}\n"
    "- {model: 'v[12]', allow: [one-of]}\n"
    "- {model: '*-lora', allow: [ending]}\n"
    "- {model: '?*', allow: [else]}\n"
)
MATCHES: dict[str, tuple[str, str]] = {
    "the name itself": (LLAMA, "exact"),
    "a name with a slash": ("meta-llama/x", "family"),
    "a star also matches a slash": ("meta-llama/x/y", "family"),
    "a later rule that fits is not asked": ("meta-x", "never"),
    "another case is another name": ("Meta-llama/x", "else"),
    "one letter": ("abc", "one-letter"),
    "one letter, which may be a slash": ("a/c", "one-letter"),
    "two letters": ("abbc", "else"),
    "one of": ("v2", "one-of"),
    "none of": ("v3", "else"),
    "an ending, before it a slash": ("who/x-lora", "ending"),
    "a part is not the whole": ("x-lora-2", "else"),
    "any name": (QWEN, "else"),
}


@pytest.mark.parametrize(("model", "allowed"), MATCHES.values(), ids=MATCHES)
def test_the_first_rule_that_matches_is_the_models(model: str, allowed: str) -> None:
    assert rules_of(PATTERNS, model) == DEFAULT_RULES._replace(allow=frozenset({allowed}))


def test_a_model_that_no_rule_matches_has_the_policys_own() -> None:
    assert rules_of(PATTERNS, "") == DEFAULT_RULES


def test_no_model_is_matched_by_a_star_alone() -> None:
    assert rules_of(policy("models:\n- {model: '*', allow: [vllm]}\n"), "").allow == {"vllm"}


def test_who_is_allowed_is_normalised() -> None:
    rules = rules_of(policy("models:\n- {model: m, allow: [TRT-LLM, ' VLLM ']}\n"), "m")
    assert rules.allow == {"trtllm-serve", "vllm"}


GLOBAL = (
    "whenAbsent: {action: prefer, owners: [vllm]}\nwhenUnknown: {action: passthrough}\n"
    "whenUnready: {action: fallback, owners: [tgi]}\nwhenTruncated: {action: reject}\n"
)
INHERITED = Rules(None, Prefer(("vllm",)), Pass(), Fallback(("tgi",)), Refuse(), ("vllm",), ("tgi",))
KEYS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("", {}),
    "allow": ("allow: [sglang]", {"allow": frozenset({"sglang"})}),
    "whenAbsent, pass": ("whenAbsent: {action: passthrough}", {"when_absent": Pass(), "preferred": ()}),
    "whenAbsent, reject": ("whenAbsent: {action: reject}", {"when_absent": Refuse(), "preferred": ()}),
    "whenAbsent, prefer": (
        "whenAbsent: {action: prefer, owners: [sglang]}",
        {"when_absent": Prefer(("sglang",)), "preferred": ("sglang",)},
    ),
    "whenAbsent, split": (
        "whenAbsent: {action: split, weights: {tgi: 1}}",
        {"when_absent": Split({"tgi": 1}), "preferred": ()},
    ),
    "whenUnknown": ("whenUnknown: {action: reject}", {"when_unknown": Refuse()}),
    "whenUnready, reject": ("whenUnready: {action: reject}", {"when_unready": Refuse(), "fallback": ()}),
    "whenUnready, fallback": (
        "whenUnready: {action: fallback, owners: [sglang]}",
        {"when_unready": Fallback(("sglang",)), "fallback": ("sglang",)},
    ),
    "whenTruncated": ("whenTruncated: {action: passthrough}", {"when_truncated": Pass()}),
}


@pytest.mark.parametrize(("key", "changes"), KEYS.values(), ids=KEYS)
def test_what_a_rule_leaves_out_is_the_policys_own(key: str, changes: dict[str, Any]) -> None:
    rules = policy(f"{GLOBAL}models:\n- {{model: m, {key}}}\n" if key else f"{GLOBAL}models:\n- {{model: m}}\n")
    assert rules_of(rules, "m") == INHERITED._replace(**changes)
    assert rules_of(rules, "another") == INHERITED


def test_what_the_first_rule_leaves_out_is_not_taken_from_the_second() -> None:
    rules = policy(
        "models:\n- {model: m, allow: [vllm]}\n- {model: '*', allow: [tgi], whenUnknown: {action: passthrough}}\n"
    )
    assert rules_of(rules, "m") == DEFAULT_RULES._replace(allow=frozenset({"vllm"}))


# route_of

ROUTED = policy(
    "routing:\n"
    "- {model: a, owned_by: vllm, selector: {matchLabels: {app: first}}}\n"
    "- {model: a, owned_by: TRT-LLM, selector: {matchLabels: {app: second}}}\n"
    "- {model: b, owned_by: vllm, selector: {matchLabels: {app: third}}}\n"
    "- {model: 'c*', owned_by: vllm, selector: {matchLabels: {app: fourth}}}\n"
)
ROUTES: dict[str, tuple[tuple[str, ...], str, int | None]] = {
    # the model's names, the owner, which entry
    "model and owner": (("a",), "vllm", 0),
    "the owner by its alias": (("a",), "trtllm-serve", 1),
    "another model": (("b",), "vllm", 2),
    "any of its names": (("x", "b"), "vllm", 2),
    "the first of two": (("b", "a"), "vllm", 0),
    "another owner": (("b",), "tgi", None),
    "an unknown model": (("x",), "vllm", None),
    "no model": ((), "vllm", None),
    "a model is a name and no pattern": (("cc",), "vllm", None),
    "a star in a name is itself": (("c*",), "vllm", 3),
}


@pytest.mark.parametrize(("models", "owner", "entry"), ROUTES.values(), ids=ROUTES)
def test_a_routing_entry_is_for_one_model_and_one_owner(models: tuple[str, ...], owner: str, entry: int | None) -> None:
    assert route_of(ROUTED, models, owner) is (None if entry is None else ROUTED.routing[entry])


# order_of

PREFERRING = policy(
    "whenAbsent: {action: prefer, owners: [vllm, '*']}\n"
    "models:\n- {model: m, whenAbsent: {action: prefer, owners: [sglang]}}\n- {model: p, whenAbsent: {action: passthrough}}\n"
)
ORDERS: dict[str, tuple[InferenceRequest, tuple[tuple[str, ...], Reason]]] = {
    "the client's": (asking("tgi", "*", model="m"), (("tgi", "*"), Reason.OWNER_MATCHED)),
    "the client's, whatever was drawn": (asking("tgi", drawn=("vllm",)), (("tgi",), Reason.OWNER_MATCHED)),
    "the drawn one": (asking(drawn=("tgi", "vllm")), (("tgi", "vllm"), Reason.OWNER_DRAWN)),
    "the preferred one": (asking(), (("vllm", "*"), Reason.OWNER_PREFERRED)),
    "the preferred one of the model": (asking(model="m"), (("sglang",), Reason.OWNER_PREFERRED)),
    "nobody": (asking(model="p"), ((), Reason.OWNER_PREFERRED)),
}


@pytest.mark.parametrize(("request_", "order"), ORDERS.values(), ids=ORDERS)
def test_the_order_is_the_clients_else_the_policys(
    request_: InferenceRequest, order: tuple[tuple[str, ...], Reason]
) -> None:
    assert order_of(request_, PREFERRING) == order


# drawn

SPLITTING = policy(
    "whenAbsent: {action: split, weights: {vllm: 1}}\n"
    "models:\n- {model: m, whenAbsent: {action: split, weights: {TRT-LLM: 1}}}\n"
    "- {model: pass, whenAbsent: {action: passthrough}}\n- {model: reject, whenAbsent: {action: reject}}\n"
    "- {model: prefer, whenAbsent: {action: prefer, owners: [tgi]}}\n- {model: inherit, allow: [vllm]}\n"
)
DRAWN: dict[str, tuple[InferenceRequest, tuple[str, ...]]] = {
    "no owner": (asking(), ("vllm",)),
    "no owner, another model": (asking(model="x"), ("vllm",)),
    "no owner, a model with a split of its own": (asking(model="m"), ("trtllm-serve",)),
    "no owner, a model that inherits it": (asking(model="inherit"), ("vllm",)),
    "no owner, drawn before": (asking(drawn=("tgi",)), ("vllm",)),
    "no owner, a model whose rule lets it pass": (asking(model="pass"), ()),
    "no owner, a model whose rule refuses it": (asking(model="reject"), ()),
    "no owner, a model whose rule prefers": (asking(model="prefer"), ()),
    "an owner": (asking("sglang"), ()),
    "anything": (asking("*"), ()),
    "malformed": (asking(malformed=Malformed("engine", "what?")), ()),
    "passed by an earlier filter": (asking(told=True, passed=Reason.OWNER_ABSENT), ()),
    "a path of its own": (asking(interpreted=False), ()),
}


@pytest.mark.parametrize(("request_", "owners"), DRAWN.values(), ids=DRAWN)
def test_who_is_not_named_is_drawn(request_: InferenceRequest, owners: tuple[str, ...]) -> None:
    assert drawn(request_, SPLITTING, lambda: "r-1").drawn == owners


def test_a_split_of_one_model_alone_draws_too() -> None:
    split = policy("models:\n- {model: m, whenAbsent: {action: split, weights: {vllm: 1}}}\n")

    assert drawn(asking(model="m"), split, lambda: "r-1").drawn == ("vllm",)
    assert drawn(asking(model="x"), split, lambda: "r-1").drawn == ()


def test_a_draw_changes_nothing_else() -> None:
    assert drawn(asking(model="x"), SPLITTING, lambda: "r-1") == asking(model="x", drawn=("vllm",))


@pytest.mark.parametrize("request_", [asking("vllm"), asking(model="pass")], ids=["an owner", "no split"])
def test_what_is_not_drawn_needs_no_identity(request_: InferenceRequest) -> None:
    def identity() -> str:
        raise AssertionError

    assert drawn(request_, SPLITTING, identity) is request_


# draw

IDS = [f"1f0c7a52-9b1e-4c9a-8f6d-{number:012x}" for number in range(100_000)]
SHARES = [
    {"vllm": 90, "sglang": 10},
    {"vllm": 1, "sglang": 1},
    {"vllm": 5, "sglang": 3, "tgi": 2},
    {"vllm": 999_999, "sglang": 1_000_000, "tgi": 0},
]


@pytest.mark.parametrize("weights", SHARES, ids=str)
def test_each_owner_is_first_as_often_as_its_share_says(weights: dict[str, int]) -> None:
    firsts = Counter(draw(weights, identity)[0] for identity in IDS)
    whole = sum(weights.values())
    assert {owner: round(firsts[owner] / len(IDS), 6) for owner in weights} == {
        owner: pytest.approx(weight / whole, abs=0.01) for owner, weight in weights.items()
    }


def test_where_the_first_will_not_do_the_others_share_its_requests_by_their_weights() -> None:
    orders = [draw({"vllm": 80, "sglang": 15, "tgi": 5}, identity) for identity in IDS]
    seconds = Counter(order[1] for order in orders if order[0] == "vllm")
    assert seconds["sglang"] / seconds.total() == pytest.approx(0.75, abs=0.01)


def test_a_draw_is_the_same_in_every_version() -> None:
    weights = {"vllm": 50, "sglang": 30, "tgi": 20}
    assert [draw(weights, f"r-{number}") for number in range(4)] == [
        ("vllm", "tgi", "sglang"),
        ("sglang", "vllm", "tgi"),
        ("sglang", "vllm", "tgi"),
        ("vllm", "sglang", "tgi"),
    ]


names = st.sampled_from(["vllm", "sglang", "tgi", "trtllm-serve", "mlx"])
weight_tables = st.dictionaries(names, st.integers(0, 1_000_000), min_size=1)
identities = st.text(max_size=40)


@given(weight_tables, identities)
def test_a_draw_orders_all_that_have_a_weight_and_nobody_else(weights: dict[str, int], identity: str) -> None:
    assert sorted(draw(weights, identity)) == sorted(owner for owner, weight in weights.items() if weight)


@given(weight_tables, identities, st.randoms(use_true_random=False))
def test_a_draw_does_not_depend_on_the_order_in_which_owners_are_written(
    weights: dict[str, int], identity: str, random: Any
) -> None:
    shuffled = dict(random.sample(list(weights.items()), len(weights)))
    assert draw(shuffled, identity) == draw(weights, identity)


@given(weight_tables, names, st.integers(0, 1_000_000), identities)
def test_a_changed_weight_moves_requests_to_or_from_its_owner_only(
    weights: dict[str, int], changed: str, weight: int, identity: str
) -> None:
    old, new = draw(weights, identity), draw(weights | {changed: weight}, identity)
    assert [owner for owner in new if owner != changed] == [owner for owner in old if owner != changed]
    if changed in old and changed in new:  # more weight never puts it further behind
        further = old.index(changed) - new.index(changed)
        assert further * (weight - weights[changed]) >= 0


def test_a_changed_weight_moves_no_more_requests_than_it_must() -> None:
    before, after = {"vllm": 90, "sglang": 10}, {"vllm": 80, "sglang": 20}
    moved = Counter((draw(before, identity)[0], draw(after, identity)[0]) for identity in IDS)
    assert moved["sglang", "vllm"] == 0
    assert moved["vllm", "sglang"] / len(IDS) == pytest.approx(0.1, abs=0.01)


@given(weight_tables, st.text(alphabet=st.characters(max_codepoint=255)) | st.just("\ud800"))
def test_any_id_can_be_drawn_by(weights: dict[str, int], identity: str) -> None:
    assert draw(weights, identity) == draw(weights, identity)


def test_weights_of_one_owner_under_two_spellings_add_up() -> None:
    rules = policy("whenAbsent: {action: split, weights: {vLLM: 90, vllm: 0}}\n")
    assert drawn(asking(), rules, lambda: "r").drawn == ("vllm",)


def test_what_a_client_calls_a_model_is_not_kept_however_long_it_is() -> None:
    named = policy("models: [{model: 'm*', allow: [vllm]}]\n")
    before = rules._rules.cache_info().currsize

    assert rules.rules_of(named, "m" * 257).allow == {"vllm"}
    assert rules._rules.cache_info().currsize == before
