# SPDX-License-Identifier: Apache-2.0
"""For all tests: no proxy, nothing of OpenTelemetry's, the same Hypothesis examples each time, and a port of nobody's."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

for variable in ("http_proxy", "https_proxy", "all_proxy"):  # no test asks anybody but this machine
    os.environ.pop(variable, None)
    os.environ.pop(variable.upper(), None)

for variable in [name for name in os.environ if name.startswith("OTEL_")]:
    os.environ.pop(variable)

settings.register_profile(
    "owned-by",
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("owned-by")


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port of 127.0.0.1 at which connections are refused: it is bound, and nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
