# SPDX-License-Identifier: Apache-2.0
"""`make bench`: the same load through a real Envoy with other things behind it, side by side in one run."""
