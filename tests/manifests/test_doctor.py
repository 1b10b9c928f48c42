# SPDX-License-Identifier: Apache-2.0
"""The doctor at gateways that our Istio components make: it complains of nothing that is as it must be."""

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from extproc.demo.client import LOOPBACK
from extproc.doctor.findings import Check, Finding, Severity
from extproc.doctor.visit import Patient, visit
from tests.manifests.mesh import ROUTED, Mesh, mesh

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

IDLE = (Check.FAILURES, Severity.WARNING, "stream_idle_timeout is 0")
RETRIES = (Check.FAILURES, Severity.WARNING, "its retries (2) may reach any engine")
OPEN = (Check.FAILURES, Severity.WARNING, "failure_mode_allow is on")
SKIPPED = (Check.ROUTES, Severity.WARNING, "`owned-by.before` is skipped for some requests by a matcher")
UNREAD = (Check.OWNER_BODY, Severity.WARNING, "`owned_by` in a JSON body does not reach us")
UNSEEN = (Check.BODY_LIMIT, Severity.SKIPPED, "not checked")
UNLISTED = (Check.MODELS, Severity.WARNING, "the list is ours only where a request names an owner")
COMPONENTS = {
    ("istio-before",): [RETRIES, IDLE],
    ("istio-strict",): [IDLE],
    ("istio-before", "fail-open"): [OPEN, RETRIES, IDLE],
    ("istio-before", "epp-outlier"): [RETRIES, IDLE],
    ("istio-before", "only-when-asked"): [SKIPPED, RETRIES, IDLE, UNREAD, UNSEEN, UNLISTED],
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alive(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """Two pods of each engine."""
    async with contextlib.AsyncExitStack() as stack:
        yield await mesh(stack, tmp_path_factory.mktemp("doctor"))


async def said(alive: Mesh, *components: str) -> list[Finding]:
    """What it says of the gateway that these components make."""
    envoy = await alive.gateway([*alive.rendered(*components), *ROUTED])
    ports = {"gateway": envoy.port, "envoy": envoy.admin_port, "admin": alive.stage.server.admin_port}
    return await visit(Patient(**{name: f"http://{LOOPBACK}:{port}" for name, port in ports.items()}))


@pytest.mark.parametrize(("components", "expected"), COMPONENTS.items(), ids=["+".join(each) for each in COMPONENTS])
async def test_a_component_is_complained_of_for_what_it_leaves_open_alone(
    alive: Mesh, components: tuple[str, ...], expected: list[tuple[Check, Severity, str]]
) -> None:
    found = [each for each in await said(alive, *components) if each.severity is not Severity.OK]

    assert [(each.check, each.severity) for each in found] == [(check, severity) for check, severity, _ in expected]
    assert [
        each.what for each, (_, _, begin) in zip(found, expected, strict=True) if not each.what.startswith(begin)
    ] == []


async def test_without_a_component_our_filter_is_missing(alive: Mesh) -> None:
    broken = [each.check for each in await said(alive) if each.severity is Severity.ERROR]

    assert broken == [Check.FILTER, Check.OWNER_HEADER]
