# SPDX-License-Identifier: Apache-2.0
"""The policy in force, of two documents."""

import itertools
import threading

import pytest

from extproc.discovery.policy import PolicyStore
from extproc.policy.document import DocumentError
from extproc.policy.routing import plain
from tests.builders import HEAD

ENTRY = "- {model: %s, owned_by: vllm, selector: {matchLabels: {app: %s}}}\n"


def policy(*entries: tuple[str, str], destinations: int = 3) -> bytes:
    return f"{HEAD}destinations: {destinations}\nrouting: {listed(entries)}".encode()


def routing(*entries: tuple[str, str]) -> bytes:
    return f"apiVersion: owned-by/v1alpha1\nkind: OwnedByRouting\nrouting: {listed(entries)}".encode()


def listed(entries: tuple[tuple[str, str], ...]) -> str:
    return "\n" + "".join(ENTRY % entry for entry in entries) if entries else "[]\n"


def shown(store: PolicyStore) -> tuple[int, list[tuple[str, str]]]:
    """How many destinations there are, and the model and app of each entry."""
    current = store.current()
    entries = [plain(route) for route in current.routing]
    return current.destinations, [(one["model"], one["selector"]["matchLabels"]["app"]) for one in entries]


def test_at_first_it_is_the_default() -> None:
    assert shown(PolicyStore()) == (3, [])


def test_entries_are_merged_into_whatever_policy_there_is() -> None:
    store = PolicyStore()
    seen = []
    for apply, text in (
        (store.apply_routing, routing(("m", "ours"))),
        (store.apply, policy(("m", "theirs"), ("n", "theirs"), destinations=5)),
        (store.apply_routing, routing(("n", "ours"))),
        (store.apply_routing, b""),
        (store.apply, policy(destinations=2)),
    ):
        apply(text)
        seen.append(shown(store))

    assert seen == [
        (3, [("m", "ours")]),
        (5, [("m", "ours"), ("n", "theirs")]),
        (5, [("m", "theirs"), ("n", "ours")]),
        (5, [("m", "theirs"), ("n", "theirs")]),
        (2, []),
    ]


def test_it_is_the_same_object_until_something_changes() -> None:
    store = PolicyStore()
    seen = [store.current()]
    for text in (b"", routing(), routing(("m", "ours")), b"# the same\n" + routing(("m", "ours")), routing()):
        store.apply_routing(text)
        assert store.current() is store.current()
        seen.append(store.current())

    assert [one is two for one, two in itertools.pairwise(seen)] == [True, True, False, True, False]
    assert seen[-1] is seen[0]


def test_a_bad_policy_keeps_what_is() -> None:
    store = PolicyStore()
    store.apply(policy(destinations=5))
    store.apply_routing(routing(("m", "ours")))
    before = store.current()
    with pytest.raises(DocumentError, match="the document is empty"):
        store.apply(b"")

    assert store.current() is before


def test_bad_entries_keep_what_is() -> None:
    store = PolicyStore()
    store.apply_routing(routing(("m", "ours")))
    before = store.current()
    with pytest.raises(DocumentError, match=r"line 5, routing\[1\]: the same model and owner as in routing\[0\]"):
        store.apply_routing(routing(("n", "ours"), ("n", "theirs")))

    assert store.current() is before


def test_documents_that_come_in_two_threads_are_both_in_force() -> None:
    store = PolicyStore()
    texts = [(policy(destinations=number), routing((f"m{number}", "ours"))) for number in range(1, 50)]
    threads = [
        threading.Thread(target=lambda: [store.apply(text) for text, _ in texts]),
        threading.Thread(target=lambda: [store.apply_routing(text) for _, text in texts]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert shown(store) == (49, [("m49", "ours")])
