# SPDX-License-Identifier: Apache-2.0
"""`owned-by doctor`: which link between a client and the right engine is broken."""
