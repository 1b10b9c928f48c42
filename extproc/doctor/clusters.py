# SPDX-License-Identifier: Apache-2.0
"""Whether the clusters of a dump can do their part: our server's, the EPP's, the pool's."""

from collections.abc import Collection, Iterator
from typing import Final

from extproc.doctor.dump import Dump, Json, Processor, Route, at, items, original_destination, override_host
from extproc.doctor.findings import Check, Finding, error, skipped, warning
from extproc.envoy import names
from extproc.envoy.binding import Attachment

_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_DEFAULT_REQUESTS: Final = 1024
"""Requests that a cluster may have open where nothing is said: each is a stream of ext_proc (facts/envoy.md 7)."""
_H2C: Final = "give the Service's port the appProtocol kubernetes.io/h2c"
_VISIBLE: Final = (
    "check the Service's name and namespace, and that the gateway may see it (exportTo, discoverySelectors)"
)


def server(dump: Dump, processor: Processor, where: str) -> Iterator[Finding]:
    """What is wrong with the cluster of our server."""
    yield from _grpc(dump, processor, where, Check.CLUSTER)


def epp(dump: Dump, processor: Processor, where: str) -> Iterator[Finding]:
    """What is wrong with the cluster of the EPP."""
    yield from _grpc(dump, processor, where, Check.EPP)


def _grpc(dump: Dump, processor: Processor, where: str, check: Check) -> Iterator[Finding]:
    name = processor.cluster
    if not name:
        if not at(processor.config, "grpc_service", "google_grpc"):
            yield error(
                check, f"`{processor.name}` names no cluster", where, "set grpc_service.envoy_grpc.cluster_name"
            )
        return
    if dump.clusters is None:
        yield skipped(check, "the dump has no clusters", "take a whole one, as /config_dump answers")
        return
    cluster = dump.clusters.get(name)
    if cluster is None:
        yield error(check, f"Envoy has no cluster `{name}`", where, _VISIBLE)
        return
    if not _speaks_http2(cluster):
        yield error(check, f"the cluster `{name}` does not speak HTTP/2, which gRPC needs", where, _H2C)
    if name not in dump.members and cluster.get("type") == "EDS":
        yield skipped(check, f"the dump does not say how many endpoints `{name}` has", "ask /config_dump?include_eds")
    elif not dump.members.get(name, 1):
        yield error(check, f"the cluster `{name}` has no endpoint", where, "is there a ready pod behind the Service?")
    if (most := _most_requests(cluster)) <= _DEFAULT_REQUESTS:
        what = f"the cluster `{name}` may have {most} requests open: more are an instant 500"
        yield warning(check, what, where, "raise circuit_breakers max_requests (a DestinationRule's http2MaxRequests)")


def destination(dump: Dump, route: Route, where: str, attachments: Collection[Attachment]) -> Iterator[Finding]:
    """Whether the clusters of a route to a pool go where the destination says."""
    for name in route.clusters:
        cluster = (dump.clusters or {}).get(name)
        if cluster is None:
            if dump.clusters is not None:
                yield error(Check.DESTINATION, f"Envoy has no cluster `{name}`", where, _VISIBLE)
            continue
        if original_destination(cluster):
            if Attachment.AFTER in attachments or Attachment.PICKER in attachments:
                what = f"the cluster `{name}` takes one address: a list of more is a 503"
                yield warning(Check.DESTINATION, what, where, "let the policy say `destinations: 1`")
        elif not any(map(_obeys, items(override_host(cluster), "override_host_sources"))):
            what = f"the cluster `{name}` does not look at `{names.DESTINATION_NAMESPACE}`, `{names.DESTINATION}`"
            yield error(Check.DESTINATION, what, where, "let the route name an InferencePool, or add override_host")


def reads_metadata(dump: Dump, route: Route) -> bool:
    """Whether a cluster of a route takes its destination from metadata, as the guard is written."""
    found = [(dump.clusters or {}).get(name, {}) for name in route.clusters]
    sources = [source for each in found for source in items(override_host(each), "override_host_sources")]
    return any("metadata" in each for each in sources) or any(
        "metadata_key" in original_destination(each) for each in found
    )


def _obeys(source: Json) -> bool:
    """Whether a source of `override_host` is the destination, in metadata or as a header."""
    metadata = at(source, "metadata")
    path = [each.get("key") for each in items(metadata, "path")]
    told = (metadata.get("key"), path) == (names.DESTINATION_NAMESPACE, [names.DESTINATION])
    return told or source.get("header") == names.DESTINATION


def _speaks_http2(cluster: Json) -> bool:
    options = at(cluster, "typed_extension_protocol_options", _OPTIONS)
    explicit = at(options, "explicit_http_config")
    auto = any(kind in options for kind in ("auto_config", "use_downstream_protocol_config"))
    return "http2_protocol_options" in explicit or auto or "http2_protocol_options" in cluster


def _most_requests(cluster: Json) -> int:
    for each in items(at(cluster, "circuit_breakers"), "thresholds"):
        if each.get("priority", "DEFAULT") == "DEFAULT":
            most = each.get("max_requests", _DEFAULT_REQUESTS)
            return most if isinstance(most, int) else _DEFAULT_REQUESTS
    return _DEFAULT_REQUESTS
