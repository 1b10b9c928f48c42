# SPDX-License-Identifier: Apache-2.0
"""One Hypothesis profile for all tests: the same examples in every run, and no timing."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "owned-by",
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("owned-by")
