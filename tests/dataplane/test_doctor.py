# SPDX-License-Identifier: Apache-2.0
"""The doctor at the suite's gateway: two models on two engines each, our own server in the EPP's place."""

import pytest

from extproc.demo.client import LOOPBACK
from extproc.doctor.findings import Check, Severity
from extproc.doctor.visit import Patient, visit
from tests.dataplane.conftest import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_every_check_is_well_and_every_request_was_served_by_whom_it_named(gateway: Gateway) -> None:
    ports = {"gateway": gateway.port, "envoy": gateway.envoy.admin_port, "admin": gateway.before.admin_port}
    findings = await visit(Patient(**{name: f"http://{LOOPBACK}:{port}" for name, port in ports.items()}))

    assert [each.line for each in findings if each.severity is not Severity.OK] == []
    assert [each.check for each in findings] == list(Check)
    assert [each.what for each in findings if each.check is Check.SERVED] == [
        "all 16 requests were served by endpoints of the owner that they named"
    ]
