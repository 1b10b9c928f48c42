# SPDX-License-Identifier: Apache-2.0
"""The admin API's own routing entries: read, written, and merged into the policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.policy.config import Expression, Route, Selector, default_policy
from extproc.policy.document import DocumentError
from extproc.policy.loading import parse_policy
from extproc.policy.routing import (
    Refused,
    Routing,
    edited,
    matching,
    parse_routing,
    plain,
    put,
    remove,
    routing_document,
    with_routes,
)
from tests.builders import HEAD

STORED = b"""apiVersion: owned-by/v1alpha1
kind: OwnedByRouting
routing:
- model: m
  owned_by: vllm
  selector: {matchLabels: {app: canary}}
"""
LABELS = Selector({"app": "canary"})
TIERS = Selector(match_expressions=(Expression("tier", "In", ("gold", "silver")), Expression("spot", "DoesNotExist")))

words = st.text(min_size=1, max_size=20)
selectors = st.builds(
    Selector,
    st.dictionaries(words, st.text(max_size=20), min_size=1, max_size=3),
    st.lists(st.builds(Expression, words, st.just("In"), st.lists(words, min_size=1).map(tuple)), max_size=2).map(
        tuple
    ),
)
routes = st.builds(Route, words, st.sampled_from(["vllm", "sglang", "tgi"]), selectors)
tables = st.lists(routes, max_size=5, unique_by=lambda route: (route.model, route.owned_by)).map(tuple)


def shown(entries: tuple[Route, ...]) -> list[dict[str, object]]:
    return [plain(route) for route in entries]


def test_a_stored_document_is_read() -> None:
    assert shown(parse_routing(STORED)) == [
        {"model": "m", "owned_by": "vllm", "selector": {"matchLabels": {"app": "canary"}}}
    ]


@pytest.mark.parametrize("text", [b"", b" \n"])
def test_an_empty_one_has_no_entries(text: bytes) -> None:
    assert parse_routing(text) == ()


@given(tables)
def test_what_is_written_is_read_again(entries: tuple[Route, ...]) -> None:
    assert shown(parse_routing(routing_document(entries).encode())) == shown(entries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"routing: []", "line 1: Object missing required field `apiVersion`"),
        (STORED.replace(b"OwnedByRouting", b"OwnedByPolicy"), "line 2, kind: Invalid enum value 'OwnedByPolicy'"),
        (
            STORED.replace(b"app: canary", b""),
            "line 6, routing[0].selector: an empty selector would mean every endpoint",
        ),
        (
            STORED.replace(b"vllm", b"'*'"),
            "line 5, routing[0].owned_by: `*` is not an owner here: name it",
        ),
        (
            STORED + STORED.partition(b"routing:\n")[2],
            "line 7, routing[1]: the same model and owner as in routing[0]",
        ),
    ],
)
def test_a_bad_one_is_refused_with_its_place(text: bytes, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_routing(text)

    assert str(caught.value) == message


def test_an_entry_takes_the_place_of_the_policys_for_the_same_model_and_owner() -> None:
    policy = parse_policy(
        f"""{HEAD}
routing:
- {{model: m, owned_by: TRT-LLM, selector: {{matchLabels: {{app: old}}}}}}
- {{model: m, owned_by: vllm, selector: {{matchLabels: {{app: old}}}}}}
""".encode()
    )

    merged = with_routes(policy, (Route("m", "trtllm", LABELS), Route("n", "vllm", TIERS)))

    assert shown(merged.routing) == [
        {"model": "m", "owned_by": "trtllm", "selector": {"matchLabels": {"app": "canary"}}},
        {"model": "m", "owned_by": "vllm", "selector": {"matchLabels": {"app": "old"}}},
        plain(Route("n", "vllm", TIERS)),
    ]


def test_without_entries_the_policy_is_the_very_same() -> None:
    policy = default_policy()

    assert with_routes(policy, ()) is policy


@given(tables, routes)
def test_an_entry_that_is_put_is_there_once_and_the_others_are_as_they_were(
    entries: tuple[Route, ...], route: Route
) -> None:
    after = put(route)(entries)
    others = [plain(each) for each in entries if (each.model, each.owned_by) != (route.model, route.owned_by)]
    mine = [plain(each) for each in after if (each.model, each.owned_by) == (route.model, route.owned_by)]

    assert mine == [plain(route)]
    assert [each for each in shown(after) if each not in mine] == [each for each in others if each not in mine]
    assert shown(put(route)(after)) == shown(after)


@given(tables, routes)
def test_removing_undoes_putting(entries: tuple[Route, ...], route: Route) -> None:
    without = remove(route.model, route.owned_by)(entries)

    assert matching(without, route.model, route.owned_by) == ()
    assert shown(remove(route.model, route.owned_by)(put(route)(entries))) == shown(without)


@given(tables, routes)
def test_an_edit_makes_a_document_that_says_what_it_made(entries: tuple[Route, ...], route: Route) -> None:
    now, after = Routing(entries, "7"), Routing(put(route)(entries), "8")
    text = edited(now, put(route), None, "here")

    assert text == (now if shown(after.routes) == shown(entries) else routing_document(after.routes))
    assert edited(after, put(route), "8", "here") is after


@pytest.mark.parametrize(
    ("now", "version", "message"),
    [
        ("7", "6", "here is at version 7; version 6 was meant"),
        ("7", "", "here is at version 7; none was meant to be there"),
        ("", "6", "here does not exist; version 6 was meant"),
    ],
)
def test_an_edit_that_was_meant_for_another_version_is_a_conflict(now: str, version: str, message: str) -> None:
    assert edited(Routing((), now), put(Route("m", "vllm", LABELS)), version, "here") == Refused("conflict", message)


def test_an_edit_that_makes_what_cannot_be_read_is_refused() -> None:
    now = Routing((Route("m", "vllm", LABELS),), "7")

    assert edited(now, put(Route("m", "n.n!", LABELS)), None, "here") == Refused(
        "invalid",
        "the entries would be refused: line 16, routing[1].owned_by: `n.n!` is not an owner: letters, digits and . _ / -",
    )


def test_entries_that_an_alias_makes_one_are_put_and_removed_as_one() -> None:
    normal = parse_policy(f"{HEAD}match: {{aliases: {{foo: sglang}}}}\n".encode()).normal
    entries = (Route("m", "foo", LABELS), Route("m", "vllm", LABELS), Route("m", "SGLang", LABELS))

    assert shown(put(Route("m", "sglang", TIERS), normal)(entries)) == shown(
        (Route("m", "sglang", TIERS), Route("m", "vllm", LABELS))
    )
    assert shown(remove("m", "sglang", normal)(entries)) == shown((Route("m", "vllm", LABELS),))


def test_names_that_only_an_alias_makes_one_may_both_be_stored() -> None:
    entries = (Route("m", "trtllm", LABELS), Route("m", "trtllm-serve", LABELS))

    assert shown(parse_routing(routing_document(entries).encode())) == shown(entries)
