# SPDX-License-Identifier: Apache-2.0
"""Who listens: the ext_proc service for Envoy, health for the kubelet, metrics and the admin port for people."""
