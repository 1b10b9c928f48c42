# SPDX-License-Identifier: Apache-2.0
"""What Envoy says beside the request: the filters before us, and where the route leads."""

import hashlib
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from extproc.envoy.metadata import (
    Pick,
    Told,
    host,
    outside,
    pool_of_cluster,
    read_cluster,
    read_hint,
    read_pick,
    read_served,
    read_told,
    said,
    split,
)
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.policy.types import Pool, Reason, SubsetHint
from tests.builders import CHAT, context, destination, headers, hint

KEY = "x-gateway-destination-endpoint-subset"
V1, V2 = "10.0.0.1:8000", "10.0.0.2:8000"

# The hint

HINTS: dict[str, tuple[dict[str, dict[str, Any]], set[str] | None]] = {
    "list": (hint("10.0.0.1:8000", "10.0.0.2"), {"10.0.0.1:8000", "10.0.0.2"}),
    "comma string": ({"envoy.lb.subset_hint": {KEY: "10.0.0.1:8000,10.0.0.2"}}, {"10.0.0.1:8000", "10.0.0.2"}),
    "a mix": (hint("10.0.0.1,10.0.0.2", "10.0.0.3"), {"10.0.0.1", "10.0.0.2", "10.0.0.3"}),
    "trimmed": ({"envoy.lb.subset_hint": {KEY: " 10.0.0.1 , ,10.0.0.2\t"}}, {"10.0.0.1", "10.0.0.2"}),
    "an empty list": (hint(), set()),
    "an empty string": ({"envoy.lb.subset_hint": {KEY: ""}}, set()),
    "numbers in a list": ({"envoy.lb.subset_hint": {KEY: [3, "10.0.0.1"]}}, {"10.0.0.1"}),
    "a number": ({"envoy.lb.subset_hint": {KEY: 3}}, set()),
    "the key is absent": ({"envoy.lb.subset_hint": {"other": "10.0.0.1"}}, None),
    "an empty namespace": ({"envoy.lb.subset_hint": {}}, None),
    "no namespace": ({}, None),
    "another namespace": ({"envoy.lb": {KEY: "10.0.0.1"}}, None),
}


@pytest.mark.parametrize(("metadata", "expected"), HINTS.values(), ids=HINTS)
def test_a_hint_is_read_as_the_light_epp_reads_it(metadata: dict[str, Any], expected: set[str] | None) -> None:
    assert read_hint(context(metadata)) == SubsetHint(None if expected is None else frozenset(expected))


# What `before` has told

WHOLE = {"owner": "vllm", "model": "m", "reason": "owner-matched", "endpoints": 2, "guard": V1}
TOLD: dict[str, tuple[dict[str, Any], Told | None]] = {
    "all of it": ({"owned_by": WHOLE}, Told("vllm", "m", Reason.OWNER_MATCHED, passed=False)),
    "beside others": (hint(V1) | {"owned_by": WHOLE}, Told("vllm", "m", Reason.OWNER_MATCHED, passed=False)),
    "that it passed": ({"owned_by": {"reason": "owner-absent"}}, Told("", "", Reason.OWNER_ABSENT, passed=True)),
    "a part": (
        {"owned_by": {"reason": "model-matched", "endpoints": 3}},
        Told("", "", Reason.MODEL_MATCHED, passed=False),
    ),
    "keys of a later version": (
        {"owned_by": WHOLE | {"rule": 3}},
        Told("vllm", "m", Reason.OWNER_MATCHED, passed=False),
    ),
    "other types": (
        {"owned_by": {"reason": "owner-any", "owner": 3, "model": ["m"], "endpoints": "2", "guard": None}},
        Told("", "", Reason.OWNER_ANY, passed=True),
    ),
    "no reason": ({"owned_by": {key: value for key, value in WHOLE.items() if key != "reason"}}, None),
    "an unknown reason": ({"owned_by": WHOLE | {"reason": "owner-guessed"}}, None),
    "a reason that is no text": ({"owned_by": WHOLE | {"reason": 3}}, None),
    "an empty namespace": ({"owned_by": {}}, None),
    "nothing": ({}, None),
    "another namespace": ({"envoy.lb": WHOLE}, None),
}


@pytest.mark.parametrize(("metadata", "expected"), TOLD.values(), ids=TOLD)
def test_what_before_has_told_is_read_as_far_as_it_goes(metadata: dict[str, Any], expected: Told | None) -> None:
    assert read_told(context(metadata)) == expected


@given(st.text(max_size=9), st.text(max_size=2000), st.sampled_from(Reason), st.integers(0, 5000), st.text(max_size=9))
def test_what_is_written_is_read_again(owner: str, model: str, reason: Reason, endpoints: int, guard: str) -> None:
    written = context(said(owner, model, reason, endpoints, guard))  # type: ignore[arg-type] # a namespace is a mapping
    assert read_told(written) == Told(owner, model[:1024], reason, passed=not endpoints)


def test_without_a_guard_that_of_an_earlier_filter_stays() -> None:
    assert said("vllm", "m", Reason.OWNER_MATCHED, 2, None) == {
        "owned_by": {"owner": "vllm", "model": "m", "reason": "owner-matched", "endpoints": 2}
    }


# The EPP's pick


def guarded(guard: str) -> dict[str, Any]:
    return {"owned_by": WHOLE | {"guard": guard}}


PICKS: dict[str, tuple[dict[str, Any], str, Pick]] = {
    # the metadata, the header
    "a pick": (destination(V1), V1, Pick(V1, (V1,), by_epp=True)),
    "several": (destination(f"{V1}, {V2},"), "", Pick(f"{V1}, {V2},", (V1, V2), by_epp=True)),
    "a header says otherwise": (destination(V1), V2, Pick(V1, (V1,), by_epp=True)),
    "only a header": ({}, V1, Pick()),
    "only a header, told": ({} | guarded(V1), V1, Pick()),
    "empty": (destination(""), V1, Pick()),
    "a list": ({"envoy.lb": {"x-gateway-destination-endpoint": [V1]}}, "", Pick()),
    "another key": ({"envoy.lb": {"x-gateway-destination-endpoint-served": V1}}, "", Pick()),
    "the guard": (destination(V1) | guarded(V1), "", Pick(V1, (V1,), by_epp=False)),
    "the guard of several": (destination(f"{V1},{V2}") | guarded(f"{V1},{V2}"), "", Pick(f"{V1},{V2}", (V1, V2))),
    "the guard, and a header that is another": (destination(V1) | guarded(V1), V2, Pick(V1, (V1,))),
    "a pick that is the guard's equal": (destination(V1) | guarded(V1), V1, Pick(V1, (V1,), by_epp=True)),
    "a part of the guard": (destination(V1) | guarded(f"{V1},{V2}"), "", Pick(V1, (V1,), by_epp=True)),
    "no guard was written": (destination(V1) | guarded(""), "", Pick(V1, (V1,), by_epp=True)),
}


@pytest.mark.parametrize(("metadata", "header", "expected"), PICKS.values(), ids=PICKS)
def test_a_pick_is_what_the_metadata_says_unless_it_is_the_guard(
    metadata: dict[str, Any], header: str, expected: Pick
) -> None:
    assert read_pick(context(metadata), header) == expected


SERVED: dict[str, tuple[dict[str, Any], str]] = {
    "told": ({"envoy.lb": {"x-gateway-destination-endpoint-served": V1}}, V1),
    "beside the pick": (
        {"envoy.lb": {"x-gateway-destination-endpoint-served": V1, "x-gateway-destination-endpoint": V2}},
        V1,
    ),
    "not told": (destination(V2), ""),
    "nothing": ({}, ""),
    "no text": ({"envoy.lb": {"x-gateway-destination-endpoint-served": 3}}, ""),
}


@pytest.mark.parametrize(("metadata", "expected"), SERVED.values(), ids=SERVED)
def test_who_served_is_what_envoy_reports(metadata: dict[str, Any], expected: str) -> None:
    assert read_served(context(metadata)) == expected


def pick(*members: str) -> Pick:
    return Pick(",".join(members), members, by_epp=True)


OUTSIDE: dict[str, tuple[Pick, set[str] | None, bool]] = {
    "in it": (pick(V1), {V1}, False),
    "another port": (pick("10.0.0.1:9000"), {V1}, False),
    "an address without a port": (pick(V1), {"10.0.0.1"}, False),
    "a pick without a port": (pick("10.0.0.1"), {V1}, False),
    "IPv6": (pick("[fd00::1]:1"), {"[fd00::1]:2"}, False),
    "IPv6 without a port": (pick("[fd00::1]:1"), {"fd00::1"}, False),
    "another address": (pick(V2), {V1}, True),
    "a longer address": (pick("10.0.0.11:8000"), {V1}, True),
    "one of two": (pick(V1, V2), {V1}, True),
    "an empty hint": (pick(V1), set(), True),
    "no hint": (pick(V1), None, False),
    "no pick": (Pick(), {V1}, False),
    "the guard": (Pick(V2, (V2,), by_epp=False), {V1}, False),
}


@pytest.mark.parametrize(("given_", "allowed", "expected"), OUTSIDE.values(), ids=OUTSIDE)
def test_a_pick_is_outside_the_hint_by_its_addresses(
    given_: Pick,
    allowed: set[str] | None,
    expected: bool,  # noqa: FBT001 - a column
) -> None:
    assert outside(given_, SubsetHint(None if allowed is None else frozenset(allowed))) is expected


# Where the route leads


def test_the_cluster_is_an_attribute_of_the_first_message() -> None:
    assert read_cluster(headers(cluster="outbound|80||a.b.svc.cluster.local")) == "outbound|80||a.b.svc.cluster.local"


def attributes(key: str, values: dict[str, Any]) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.attributes[key].update(values)
    return message


UNSAID = {
    "no attribute": pb.ProcessingRequest(),
    "another one": attributes("envoy.filters.http.ext_proc", {"xds.route_name": "r"}),
    "of another filter": attributes("owned-by.before", {"xds.cluster_name": "c"}),
    "empty": attributes("envoy.filters.http.ext_proc", {"xds.cluster_name": ""}),
}


@pytest.mark.parametrize("message", UNSAID.values(), ids=UNSAID)
def test_a_cluster_that_is_not_said_is_none(message: pb.ProcessingRequest) -> None:
    assert read_cluster(message) == ""


def istio(name: str, namespace: str = "default", digest: str = "") -> str:
    """The cluster of a pool as Istio names it: its Service's name has at most 63 characters (facts/gateways.md 1.1)."""
    digest = digest or hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"outbound|54321||{name[:51]}-ip-{digest}.{namespace}.svc.cluster.local"


LONG = "a-model-whose-name-is-so-long-that-a-service-cannot-have-it"
LONGER = f"{LONG}-v2"
POOLS = (CHAT, Pool("default", LONG), Pool("default", LONGER), Pool("prod", LONG))
CLUSTERS: dict[str, tuple[str, Pool | None]] = {
    "a pool": (istio("chat"), CHAT),
    "one that Istio has named": (
        "outbound|54321||phi-4-mini-inferencepool-ip-3ecb0ff8.default.svc.cluster.local",
        Pool("default", "phi-4-mini-inferencepool"),
    ),
    "of another namespace": (istio("chat", "prod"), Pool("prod", "chat")),
    "of another domain": (istio("chat").replace("cluster.local", "my.domain"), CHAT),
    "of a subset": (istio("chat").replace("||", "|v1|"), CHAT),
    "nobody knows it": (istio("gone"), Pool("default", "gone")),
    "with dots": (istio("a.b"), Pool("default", "a.b")),
    "that looks like its own service": (istio("chat-ip-1a2b3c4d"), Pool("default", "chat-ip-1a2b3c4d")),
    "of 51 characters": (istio("a" * 51), Pool("default", "a" * 51)),
    "cut": (istio(LONG), Pool("default", LONG)),
    "cut, of two that begin alike": (istio(LONGER), Pool("default", LONGER)),
    "cut, of another namespace": (istio(LONG, "prod"), Pool("prod", LONG)),
    "cut, and nobody knows it": (istio("b" * 60), Pool("default", "b" * 51)),
    "cut, and known only elsewhere": (istio(LONGER, "prod"), Pool("prod", LONGER[:51])),
    # services that are no pool's
    "a service": ("outbound|80||web.default.svc.cluster.local", None),
    "a service that looks like a pool's": (istio("chat", digest="deadbeef"), None),
    "without a digest": ("outbound|80||chat-ip-.default.svc.cluster.local", None),
    "a digest that is too long": (istio("chat", digest="31e06f7d0"), None),
    "a digest in capitals": (istio("chat", digest="31E06F7D"), None),
    "inbound": (istio("chat").replace("outbound", "inbound"), None),
    "no port": (istio("chat").replace("54321", ""), None),
    "outside the cluster": ("outbound|443||chat-ip-31e06f7d.example.com", None),
    "another gateway's": ("httproute/default/route/rule/0", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize(("cluster", "expected"), CLUSTERS.values(), ids=CLUSTERS)
def test_the_pool_of_a_cluster_is_told_by_its_name_and_digest(cluster: str, expected: Pool | None) -> None:
    assert pool_of_cluster(cluster, POOLS) == expected


names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,80}[a-z0-9])?", fullmatch=True)


@given(names, names, st.lists(names, max_size=4))
def test_every_pool_that_is_known_is_found_by_the_cluster_that_istio_makes_of_it(
    name: str, namespace: str, others: list[str]
) -> None:
    assume(len(namespace) <= 63)
    pools = [Pool(namespace, other) for other in (*others, name)]
    assert pool_of_cluster(istio(name, namespace), pools) == Pool(namespace, name)


# The words of lists

HOSTS = {
    "10.0.0.1:8000": "10.0.0.1",
    "10.0.0.1": "10.0.0.1",
    "[fd00::1]:8000": "fd00::1",
    "[fd00::1]": "fd00::1",
    "fd00::1": "fd00::1",
    "::1": "::1",
    "pod.default.svc:8000": "pod.default.svc",
    "": "",
    ":8000": "",
    "[": "",
}


@pytest.mark.parametrize(("entry", "expected"), HOSTS.items(), ids=[repr(entry) for entry in HOSTS])
def test_the_host_is_what_stands_before_the_port(entry: str, expected: str) -> None:
    assert host(entry) == expected


@pytest.mark.parametrize(
    ("text", "entries"), [("", []), (" , ,", []), ("a", ["a"]), (" a ,b,,\tc", ["a", "b", "c"]), ("a,a", ["a", "a"])]
)
def test_a_list_is_split_at_its_commas(text: str, entries: list[str]) -> None:
    assert split(text) == entries
