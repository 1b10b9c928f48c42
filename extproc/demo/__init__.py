# SPDX-License-Identifier: Apache-2.0
"""The whole request path on one machine, with nothing but loopback: simulated engines, a real Envoy, real servers of ours.

client --> Envoy --> pool: 2 models on 2 engines each
            |  ^
            |  +-- picker: `owned-by serve` in the EPP's place, steered by nothing but the hint
            +----- before: `owned-by serve`, which writes the hint
"""
