# SPDX-License-Identifier: Apache-2.0
"""For all tests: no proxy, nothing of OpenTelemetry's, and one Hypothesis profile: the same examples each time, no timing."""

import os

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
