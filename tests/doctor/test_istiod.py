# SPDX-License-Identifier: Apache-2.0
"""Dumps of a gateway that is configured by a control plane, with the shapes that istiod gives it."""

from pathlib import Path

import pytest

from extproc.doctor.chain import examine
from extproc.doctor.dump import parse
from extproc.doctor.findings import Check, Severity, in_order
from tests.doctor.istiod import (
    OTHER_POOL,
    PICKER,
    POOL,
    ROUTE,
    SERVER,
    WEB,
    Gateway,
    enabled,
    epp,
    route,
)
from tests.doctor.patients import EPP, complaints, dump_of, found

pytestmark = pytest.mark.slow

STRICT = enabled("owned-by.before", "owned-by.after")
CHAT = route(ROUTE, "/v1", epp() | STRICT, POOL)
ELSE = route("llm-d-multi-model.web.0", "/", {}, WEB)
WHERE = f"listener `gateway`, route `{ROUTE}`"


async def test_a_healthy_gateway_has_nothing_to_complain_of(tmp_path: Path) -> None:
    findings = await found(Gateway([CHAT, ELSE]).write(tmp_path), tmp_path)

    assert complaints(findings) == []
    assert [each.check for each in findings] == list(Check)[1:15]


async def test_a_route_to_a_pool_that_does_not_enable_ours_is_named(tmp_path: Path) -> None:
    other = route("llm-d-multi-model.other.0", "/other", epp(), OTHER_POOL)
    said = complaints(await found(Gateway([other, CHAT]).write(tmp_path), tmp_path))

    where = "listener `gateway`, route `llm-d-multi-model.other.0`"
    fix = "enable it (component istio-before: owned-by-routes names routes)"
    assert said == [
        f"error    routes        {where}: `owned-by.{name}` is disabled here; {fix}" for name in ("before", "after")
    ]


async def test_cors_on_a_route_erases_who_the_epp_is(tmp_path: Path) -> None:
    policy = {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"}
    erased = route(ROUTE, "/v1", STRICT | {"envoy.filters.http.cors": policy}, POOL)
    (said,) = complaints(await found(Gateway([erased]).write(tmp_path), tmp_path))

    assert said.startswith(f"error    epp           {WHERE}: nothing says here who the EPP is")
    assert said.endswith("take CORS and fault injection off this route")


async def test_without_the_merge_the_epp_does_not_see_our_list(tmp_path: Path) -> None:
    (said,) = complaints(await found(Gateway([CHAT], merged=False).write(tmp_path), tmp_path))

    assert said.startswith(f"error    hint          listener `gateway`, filter `{EPP}`: it does not forward")


async def test_two_pools_of_one_rule_have_one_epp(tmp_path: Path) -> None:
    shared = route(ROUTE, "/v1", epp() | STRICT, POOL, OTHER_POOL)
    said = complaints(await found(Gateway([shared]).write(tmp_path), tmp_path))

    what = "it leads to two pools, and Istio asks the last one's EPP for both"
    assert said == [f"warning  epp           {WHERE}: {what}; give each pool a rule of its own"]


async def test_our_server_may_be_the_pools_picker(tmp_path: Path) -> None:
    picked = route(ROUTE, "/v1", epp(SERVER), POOL)
    findings = await found(Gateway([picked, ELSE], attachments=()).write(tmp_path), tmp_path)

    assert complaints(findings) == []
    assert [each.what for each in findings if each.check is Check.FILTER] == ["our server is in the EPP's place"]


async def test_a_gateway_without_our_filter_is_one_without_a_component(tmp_path: Path) -> None:
    (said,) = complaints(
        await found(Gateway([route(ROUTE, "/v1", epp(), POOL)], attachments=()).write(tmp_path), tmp_path)
    )

    assert said.startswith("error    filter        listener `gateway`: none of its filters is ours")


async def test_an_empty_service_is_seen_in_the_endpoints(tmp_path: Path) -> None:
    said = complaints(await found(Gateway([CHAT], server=0).write(tmp_path), tmp_path))

    what = f"the cluster `{SERVER}` has no endpoint; is there a ready pod behind the Service?"
    assert said == [
        f"error    cluster       listener `gateway`, filter `owned-by.{name}`: {what}" for name in ("before", "after")
    ]


async def test_a_dump_without_endpoints_says_nothing_of_them(tmp_path: Path) -> None:
    dump = await dump_of(Gateway([CHAT]).write(tmp_path), tmp_path, query="")
    findings = in_order(examine(parse(dump)))

    assert [each.line for each in findings if each.severity is not Severity.OK] == [
        f"skipped  {check:<13} not checked: the dump does not say how many endpoints `{name}` has; ask /config_dump?include_eds"
        for check, name in (("epp", PICKER), ("cluster", SERVER))
    ]


async def test_a_listener_that_envoy_refuses_is_told(tmp_path: Path) -> None:
    """FULL_DUPLEX_STREAMED needs the trailers, too; without them Envoy does not take the listener."""
    gateway = Gateway([CHAT])
    gateway.write(tmp_path)
    bad = {
        "name": "refused",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager"}]}],
    }
    gateway.more.append(bad)
    (said,) = complaints(await found(gateway.write(tmp_path), tmp_path))

    assert said.startswith("error    envoy         listener `refused`: Envoy refused its newest configuration: ")
