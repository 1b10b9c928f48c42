# SPDX-License-Identifier: Apache-2.0
"""The `owned_by_*` metrics, in a registry of their own. No label takes a value that a client can choose."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from extproc import __version__
from extproc.policy.types import Snapshot

_SECONDS: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_BYTES: Final = (1e3, 1e4, 1e5, 1e6, 1e7)


class Metrics:
    """Everything that is counted, made once per process and handed on."""

    def __init__(self) -> None:
        """All counters at nought."""
        self.registry = registry = CollectorRegistry()
        labels = ("attachment", "decision", "reason", "owner")
        self._decisions = Counter("owned_by_decisions", "Decisions, by what they were.", labels, registry=registry)
        self._children: dict[tuple[str, str, str, str], Counter] = {}
        self.decision_duration = Histogram(
            "owned_by_decision_duration_seconds",
            "Work of this process for a stream until it is decided, waiting for Envoy left out.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.request_body = Histogram(
            "owned_by_request_body_bytes", "Body bytes read to decide.", buckets=_BYTES, registry=registry
        )
        self.streams = Gauge("owned_by_streams_in_flight", "Open ext_proc streams.", registry=registry)
        self.stream_errors = Counter(
            "owned_by_stream_errors", "Streams aborted by us, by cause.", ("cause",), registry=registry
        )
        self.undecided = Counter(
            "owned_by_undecided_streams",
            "Streams that ended before they were decided: the client left, or the gateway did not send what was asked for.",
            registry=registry,
        )
        self.truncated = Counter(
            "owned_by_truncated_bodies", "Bodies of which only a prefix was seen.", registry=registry
        )
        self.mismatches = Counter(
            "owned_by_model_mismatches", "Bodies whose model differs from the gateway's header.", registry=registry
        )
        self.long_hints = Counter(
            "owned_by_long_hints", "Replies whose hint has more than 200 entries.", registry=registry
        )
        self.picks = Counter(
            "owned_by_epp_picks",
            "What became of the EPP's picks behind it: kept, narrowed, rewritten, or none made (epp-bypassed).",
            ("outcome",),
            registry=registry,
        )
        self.picks_outside_hint = Counter(
            "owned_by_epp_picks_outside_hint", "Picks of an endpoint that the hint did not have.", registry=registry
        )
        self.served = Counter(
            "owned_by_served",
            "Who served, where Envoy tells the picker: the first of its destinations, a later one, or another.",
            ("endpoint",),
            registry=registry,
        )
        self.endpoints = Gauge("owned_by_endpoints", "Endpoints of the snapshot.", ("pool", "ready"), registry=registry)
        self.generation = Gauge("owned_by_snapshot_generation", "Grows with each snapshot.", registry=registry)
        self.reload_successful = Gauge(
            "owned_by_config_last_reload_successful", "1 if the last load worked.", ("source",), registry=registry
        )
        self.reload_timestamp = Gauge(
            "owned_by_config_last_reload_success_timestamp_seconds",
            "When the last load that worked was.",
            ("source",),
            registry=registry,
        )
        self.watch_restarts = Counter(
            "owned_by_watch_restarts",
            "Lists and watches begun anew, by cause.",
            ("resource", "namespace", "reason"),
            registry=registry,
        )
        self.watch_last_event = Gauge(
            "owned_by_watch_last_event_timestamp_seconds",
            "When the API server last told of a change.",
            ("resource", "namespace"),
            registry=registry,
        )
        self.watch_staleness = Gauge(
            "owned_by_watch_staleness_seconds",
            "How long ago the API server last said anything, a bookmark too.",
            ("resource", "namespace"),
            registry=registry,
        )
        self.unreadable_objects = Counter(
            "owned_by_unreadable_objects",
            "Objects of the API server that could not be read and were left out.",
            ("resource",),
            registry=registry,
        )
        self.probes = Counter("owned_by_probes", "Requests for an endpoint's models.", ("result",), registry=registry)
        self.scrapes = Counter(
            "owned_by_load_scrapes", "Requests for an endpoint's load figures.", ("result",), registry=registry
        )
        self.fresh_loads = Gauge(
            "owned_by_load_fresh_endpoints", "Endpoints whose load figures are fresh.", registry=registry
        )
        self.disagreements = Gauge(
            "owned_by_engine_disagreements", "Endpoints whose label and own answer name two engines.", registry=registry
        )
        Info("owned_by_build", "The running version.", registry=registry).info({"version": __version__})

    def decided(self, attachment: str, decision: str, reason: str, owner: str) -> None:
        """Count one decision; `owner` is one that endpoints have, never a text of the client's."""
        key = (attachment, decision, reason, owner)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._decisions.labels(*key)
        child.inc()

    def show(self, snapshot: Snapshot) -> None:
        """Describe a new snapshot."""
        self.generation.set(snapshot.generation)
        self.endpoints.clear()
        for pool in snapshot.pools:
            members = snapshot.endpoints[pool]
            ready = sum([endpoint.ready for endpoint in members])
            self.endpoints.labels(str(pool), "true").set(ready)
            self.endpoints.labels(str(pool), "false").set(len(members) - ready)
