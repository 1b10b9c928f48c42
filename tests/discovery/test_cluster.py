# SPDX-License-Identifier: Apache-2.0
"""Pods, pools and rewrites, joined in whatever order they come."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from extproc.discovery.cluster import Cluster
from extproc.discovery.objects import InferenceModelRewrite, InferencePool, InferencePoolV1, Pod
from extproc.policy.types import Endpoint, Pool, Rewrites

CHAT, CODE = Pool("default", "chat"), Pool("default", "code")


def pod(number: int, namespace: str = "default", version: str = "1", *, ready: bool = True, **labels: str) -> Pod:
    metadata = {"name": f"pod-{number}", "namespace": namespace, "labels": labels, "resourceVersion": version}
    conditions = [{"type": "Ready", "status": str(ready)}]
    return msgspec.convert(
        {"metadata": metadata, "status": {"podIP": f"127.0.0.{number}", "conditions": conditions}}, Pod
    )


def pool(name: str, *ports: int, namespace: str = "default", version: str = "1", **selector: str) -> InferencePoolV1:
    spec = {"selector": {"matchLabels": selector}, "targetPorts": [{"number": port} for port in ports or (8000,)]}
    metadata = {"name": name, "namespace": namespace, "resourceVersion": version}
    return msgspec.convert({"metadata": metadata, "spec": spec}, InferencePoolV1)


def rewrite(name: str, target: str, pool_name: str = "chat") -> InferenceModelRewrite:
    spec = {"poolRef": {"name": pool_name}, "rules": [{"targets": [{"modelRewrite": target}]}]}
    metadata = {"name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return msgspec.convert({"metadata": metadata, "spec": spec}, InferenceModelRewrite)


def endpoint(
    number: int, port: int = 8000, namespace: str = "default", *, ready: bool = True, **labels: str
) -> Endpoint:
    return Endpoint(f"pod-{number}", namespace, f"127.0.0.{number}", port, labels=labels, ready=ready)


class Joined(Cluster):
    """A cluster that counts how often it told of a change."""

    def __init__(self, *pools: InferencePool) -> None:
        self.changes = 0
        super().__init__(self._count, pools)

    def _count(self) -> None:
        self.changes += 1


def joined(*objects: Any) -> Joined:
    """A cluster that these came to, in this order."""
    cluster = Joined()
    for one in objects:
        (cluster.pod_changed if isinstance(one, Pod) else cluster.pool_changed)(None, one)
    return cluster


def test_a_pod_joins_a_pool_that_is_there() -> None:
    cluster = joined(pool("chat", app="a"), pod(1, app="a"))

    assert (cluster.endpoints(), cluster.changes) == ({CHAT: (endpoint(1, app="a"),)}, 2)


def test_a_pool_finds_the_pods_that_are_there() -> None:
    cluster = joined(pod(1, app="a"), pod(2, app="b"), pool("chat", app="a"))

    assert (cluster.endpoints(), cluster.changes) == ({CHAT: (endpoint(1, app="a"),)}, 1)


def test_a_pod_may_be_in_two_pools() -> None:
    cluster = joined(pool("chat", app="a"), pod(1, app="a", tier="b"), pool("code", 9000, tier="b"))
    labels = {"app": "a", "tier": "b"}

    assert cluster.endpoints() == {CHAT: (endpoint(1, **labels),), CODE: (endpoint(1, 9000, **labels),)}


def test_a_change_of_labels_moves_a_pod() -> None:
    before, after = pod(1, app="a"), pod(1, app="b")
    cluster = joined(pool("chat", app="a"), pool("code", app="b"), before)
    first = cluster.endpoints()
    cluster.pod_changed(before, after)

    assert first == {CHAT: (endpoint(1, app="a"),), CODE: ()}
    assert cluster.endpoints() == {CHAT: (), CODE: (endpoint(1, app="b"),)}
    assert cluster.changes == 4


def test_readiness_is_a_change() -> None:
    before, after = pod(1, app="a"), pod(1, app="a", ready=False)
    cluster = joined(pool("chat", app="a"), before)
    cluster.pod_changed(before, after)

    assert (cluster.endpoints(), cluster.changes) == ({CHAT: (endpoint(1, app="a", ready=False),)}, 3)


def test_a_change_of_the_selector_or_of_the_ports_is_followed() -> None:
    first, second, third = pool("chat", app="a"), pool("chat", app="b"), pool("chat", 9000, app="b")
    cluster = joined(first, pod(1, app="a"), pod(2, app="b"))
    cluster.pool_changed(first, second)
    selected = cluster.endpoints()
    cluster.pool_changed(second, third)

    assert selected == {CHAT: (endpoint(2, app="b"),)}
    assert cluster.endpoints() == {CHAT: (endpoint(2, 9000, app="b"),)}


def test_a_pod_that_went_is_no_longer_there() -> None:
    gone = pod(1, app="a")
    cluster = joined(pool("chat", app="a"), gone, pod(2, app="a"))
    cluster.pod_changed(gone, None)
    left = cluster.endpoints()
    cluster.pool_changed(None, pool("code", app="a"))

    assert left == {CHAT: (endpoint(2, app="a"),)}
    assert cluster.endpoints() == left | {CODE: (endpoint(2, app="a"),)}


def test_a_pool_that_went_is_no_longer_there_and_its_pods_are_for_the_next() -> None:
    gone = pool("chat", app="a")
    cluster = joined(gone, pod(1, app="a"))
    cluster.pool_changed(gone, None)
    without = cluster.endpoints()
    cluster.pool_changed(None, gone)

    assert without == {}
    assert (cluster.endpoints(), cluster.changes) == ({CHAT: (endpoint(1, app="a"),)}, 4)


def test_what_changes_no_endpoint_is_not_told_and_keeps_the_tuple() -> None:
    one, chat = pod(1, app="a"), pool("chat", app="a")
    cluster = joined(chat, one, pod(2, app="b"))
    before, changes = cluster.endpoints()[CHAT], cluster.changes
    cluster.pod_changed(one, pod(1, app="a", version="2"))
    cluster.pod_changed(None, pod(3, app="c"))
    cluster.pod_changed(pod(3, app="c"), None)
    cluster.pod_changed(None, pod(1, namespace="other", app="a"))
    cluster.pool_changed(chat, pool("chat", app="a", version="2"))

    assert cluster.endpoints()[CHAT] is before
    assert cluster.changes == changes


def test_a_pool_keeps_its_tuple_when_another_changes() -> None:
    cluster = joined(pool("chat", app="a"), pool("code", app="b"), pod(1, app="a"))
    before = cluster.endpoints()
    cluster.pod_changed(None, pod(2, app="b"))

    assert cluster.endpoints()[CHAT] is before[CHAT]
    assert cluster.endpoints()[CODE] == (endpoint(2, app="b"),)


def test_namespaces_are_worlds_of_their_own() -> None:
    there = Pool("other", "chat")
    cluster = joined(
        pool("chat", app="a"), pool("chat", 9000, namespace="other", app="a"), pod(1, app="a"), pod(1, "other", app="a")
    )
    both = cluster.endpoints()
    cluster.pod_changed(pod(1, app="a"), None)

    assert both == {CHAT: (endpoint(1, app="a"),), there: (endpoint(1, 9000, "other", app="a"),)}
    assert cluster.endpoints() == {CHAT: (), there: both[there]}


def test_a_pool_of_the_flags_is_there_from_the_start() -> None:
    cluster = Joined(InferencePool(CHAT, {"app": "a"}, (8000,)))
    before = cluster.endpoints()
    cluster.pod_changed(None, pod(1, app="a"))

    assert (before, cluster.endpoints(), cluster.changes) == ({CHAT: ()}, {CHAT: (endpoint(1, app="a"),)}, 1)


def test_rewrites_come_change_and_go() -> None:
    cluster = joined()
    one, two, other = rewrite("one", "x"), rewrite("one", "y"), rewrite("two", "z")
    seen: list[dict[Pool, Rewrites]] = []
    for old, new in ((None, one), (one, two), (None, other), (two, None), (other, None)):
        cluster.rewrite_changed(old, new)
        seen.append(cluster.rewrites)

    assert [found[CHAT].otherwise if found else None for found in seen] == [("x",), ("y",), ("y",), ("z",), None]
    assert cluster.changes == 4


OBJECTS = st.lists(
    st.one_of(
        st.builds(
            pod,
            st.integers(1, 4),
            st.sampled_from(["default", "other"]),
            app=st.sampled_from("ab"),
            ready=st.booleans(),
        ),
        st.builds(
            lambda name, port, namespace, app: pool(name, port, namespace=namespace, app=app),
            st.sampled_from(["chat", "code"]),
            st.sampled_from([8000, 9000]),
            st.sampled_from(["default", "other"]),
            st.sampled_from("ab"),
        ),
    ),
    max_size=12,
    unique_by=lambda one: (type(one), one.metadata.key),
)


@given(OBJECTS.flatmap(lambda objects: st.tuples(st.permutations(objects), st.permutations(objects))))
def test_the_order_in_which_things_come_does_not_matter(orders: tuple[list[Any], list[Any]]) -> None:
    one, two = (
        {name: frozenset((found.name, found.port, found.ready) for found in members) for name, members in found.items()}
        for found in (joined(*order).endpoints() for order in orders)
    )

    assert one == two


@given(OBJECTS, OBJECTS)
def test_what_was_there_before_leaves_no_trace(before: list[Any], after: list[Any]) -> None:
    cluster = joined(*before)
    old = {(type(one), one.metadata.key): one for one in before}
    for one in after:
        change = cluster.pod_changed if isinstance(one, Pod) else cluster.pool_changed
        change(old.pop((type(one), one.metadata.key), None), one)
    for one in old.values():
        change = cluster.pod_changed if isinstance(one, Pod) else cluster.pool_changed
        change(one, None)

    expected = joined(*after).endpoints()
    found = cluster.endpoints()
    assert found.keys() == expected.keys()
    assert {name: sorted(map(repr, members)) for name, members in found.items()} == {
        name: sorted(map(repr, members)) for name, members in expected.items()
    }
