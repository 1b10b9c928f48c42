# SPDX-License-Identifier: Apache-2.0
"""The words of the gateway's protocols, each once, with its source; what a policy can change is in policy/config.py."""

from typing import Final

from extproc.envoy.pb import external_processor_pb2 as pb

SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
"""The gRPC service, also a name of its health (facts/epp.md, proposal 004)."""
METHOD: Final = "Process"

# Our own (design section 2): gRPC initial metadata of the filter, dynamic metadata, response header.
ATTACHMENT: Final = "x-owned-by-attachment"
POOL: Final = "x-owned-by-pool"
BODY: Final = "x-owned-by-body"
REASON: Final = "x-owned-by-reason"
NAMESPACE: Final = "owned_by"

# Endpoint Picker protocol (facts/epp.md 1.1 to 1.3, proposal 004).
DESTINATION: Final = "x-gateway-destination-endpoint"
DESTINATION_NAMESPACE: Final = "envoy.lb"
SERVED: Final = "x-gateway-destination-endpoint-served"
SUBSET: Final = "x-gateway-destination-endpoint-subset"
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"

# Further hosts that a request is to reach, which the EPP names beside the destination (facts/epp.md 1.3).
DATA_PARALLEL: Final = "x-data-parallel-host-port"
DISAGGREGATED: Final = (
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    DATA_PARALLEL,
    "x-kv-cache-source-host-port",
)

# What only a gateway, an EPP or a conformance test may say (facts/epp.md 1.3): removed when a client says it.
SPOOFABLE: Final = (DESTINATION, SUBSET, *DISAGGREGATED, "test-epp-endpoint-selection")

# What Envoy says beside the request, under one key whatever the filter is called (facts/envoy.md 8).
ATTRIBUTES: Final = "envoy.filters.http.ext_proc"
CLUSTER: Final = "xds.cluster_name"

REQUEST_ID: Final = "x-request-id"
CONTENT_TYPE: Final = "content-type"
CONTENT_LENGTH: Final = "content-length"
RETRY_AFTER: Final = "retry-after"
JSON: Final = "application/json"
