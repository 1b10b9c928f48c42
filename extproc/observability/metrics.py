# SPDX-License-Identifier: Apache-2.0
"""The `owned_by_*` metrics, in a registry of their own. No label takes a value that a client can choose."""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics_core import Metric

from extproc import __version__
from extproc.policy.types import Snapshot

_SECONDS: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_BYTES: Final = (1e3, 1e4, 1e5, 1e6, 1e7)
_ONE: Final = "1"

Exemplar = dict[str, str]
"""The labels of an exemplar: of which trace a count is an example (`trace_id`, `span_id`)."""


class Family(msgspec.Struct, frozen=True):
    """A metric as the catalogue tells of it.

    `name` and `type` are those that Prometheus sees, `_total` included; `bound` says what the number of its series in one
    process is, or what it is a product of.
    """

    name: str
    type: Literal["counter", "gauge", "histogram", "info"]
    labels: tuple[str, ...]
    bound: str
    meaning: str


class _Registry(CollectorRegistry):
    """Without the `_created` series that the library adds to each counter and histogram: no one asks for them.

    Its own switch, `disable_created_metrics`, is for a whole process, and so for other people's metrics, too.
    """

    def collect(self) -> Iterable[Metric]:
        """Every metric with its samples."""
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Metrics:
    """Everything that is counted, made once per process and handed on; `catalogue` tells of each."""

    def __init__(self) -> None:
        """All counters at nought."""
        self.registry = _Registry()
        self._families: list[Family] = []
        self._decisions = self._counter(
            "owned_by_decisions_total",
            "Decisions, by what they were.",
            ("attachment", "decision", "reason", "owner"),
            "attachments x decisions x reasons x owners of endpoints and of routing entries",
        )
        self._children: dict[tuple[str, str, str, str], Counter] = {}
        self.decision_duration = self._histogram(
            "owned_by_decision_duration_seconds",
            "Work of this process for a stream until it is decided, waiting for Envoy left out.",
            _SECONDS,
        )
        self.request_body = self._histogram("owned_by_request_body_bytes", "Body bytes read to decide.", _BYTES)
        self.streams = self._gauge("owned_by_streams_in_flight", "Open ext_proc streams.")
        self.stream_errors = self._counter(
            "owned_by_stream_errors_total", "Streams aborted by us, by cause.", ("cause",), "2: protocol, internal"
        )
        for cause in ("protocol", "internal"):
            self.stream_errors.labels(cause)  # shown from the start: an increase from nothing is no increase
        self.undecided = self._counter(
            "owned_by_undecided_streams_total",
            "Streams that ended before they were decided: the client left, or the gateway did not send what was asked for.",
        )
        self.truncated = self._counter("owned_by_truncated_bodies_total", "Bodies of which only a prefix was seen.")
        self.mismatches = self._counter(
            "owned_by_model_mismatches_total", "Bodies whose model differs from the gateway's header."
        )
        self.long_hints = self._counter("owned_by_long_hints_total", "Replies whose hint has more than 200 entries.")
        self.picks = self._counter(
            "owned_by_epp_picks_total",
            "What became of the EPP's picks behind it: kept, narrowed, rewritten, or none made (epp-bypassed).",
            ("outcome",),
            "4: the outcomes",
        )
        self.picks_outside_hint = self._counter(
            "owned_by_epp_picks_outside_hint_total", "Picks of an endpoint that the hint did not have."
        )
        self.served = self._counter(
            "owned_by_served_total",
            "Who served, where Envoy tells the picker: the first of its destinations, a later one (next), or another.",
            ("endpoint",),
            "3: first, next, other",
        )
        self.endpoints = self._gauge("owned_by_endpoints", "Endpoints of the snapshot.", ("pool", "ready"), "pools x 2")
        self.generation = self._gauge("owned_by_snapshot_generation", "Grows with each snapshot.")
        self.reload_successful = self._gauge(
            "owned_by_config_last_reload_successful",
            "1 if the last load worked.",
            ("source",),
            "sources: endpoints, policy, routing, certificate",
        )
        self.reload_timestamp = self._gauge(
            "owned_by_config_last_reload_success_timestamp_seconds",
            "When the last load that worked was.",
            ("source",),
            "sources: endpoints, policy, routing, certificate",
        )
        self.certificate_not_after = self._gauge(
            "owned_by_certificate_not_after_timestamp_seconds",
            "When the certificate of the ext_proc port expires, or the first of its chain; absent without TLS.",
            ("origin",),
            "2: files, self-signed",
        )
        self.watch_restarts = self._counter(
            "owned_by_watch_restarts_total",
            "Lists and watches begun anew, by cause.",
            ("resource", "namespace", "reason"),
            "watched resources x namespaces x causes (9)",
        )
        self.watch_last_event = self._gauge(
            "owned_by_watch_last_event_timestamp_seconds",
            "When the API server last told of a change.",
            ("resource", "namespace"),
            "watched resources x namespaces",
        )
        self.watch_staleness = self._gauge(
            "owned_by_watch_staleness_seconds",
            "How long ago the API server last said anything, a bookmark too; not of what we may do without and never saw.",
            ("resource", "namespace"),
            "watched resources x namespaces",
        )
        self.unreadable_objects = self._counter(
            "owned_by_unreadable_objects_total",
            "Objects of the API server that could not be read and were left out.",
            ("resource",),
            "watched resources",
        )
        self.probes = self._counter(
            "owned_by_probes_total", "Requests for an endpoint's models.", ("result",), "2: ok, failed"
        )
        self.probe_endpoints = self._gauge(
            "owned_by_probe_endpoints",
            "Ready endpoints that are asked for their models, by how the last request ended.",
            ("result",),
            "2: ok, failed",
        )
        self.scrapes = self._counter(
            "owned_by_load_scrapes_total", "Requests for an endpoint's load figures.", ("result",), "2: ok, failed"
        )
        self.load_endpoints = self._gauge(
            "owned_by_load_endpoints",
            "Ready endpoints that are asked for their load figures, by how the last request ended.",
            ("result",),
            "2: ok, failed",
        )
        self.fresh_loads = self._gauge("owned_by_load_fresh_endpoints", "Endpoints whose load figures are fresh.")
        self.disagreements = self._gauge(
            "owned_by_engine_disagreements", "Endpoints whose label and own answer name two engines."
        )
        self.spans = self._counter(
            "owned_by_spans_total",
            "Spans handed to the collector of traces (sent), and those that it did not take (failed).",
            ("result",),
            "2: sent, failed",
        )
        build = Family("owned_by_build_info", "info", ("version",), _ONE, "The running version.")
        self._families.append(build)
        Info("owned_by_build", build.meaning, registry=self.registry).info({"version": __version__})

    @property
    def catalogue(self) -> tuple[Family, ...]:
        """Every metric that there is, in the order in which `/metrics` shows them."""
        return tuple(self._families)

    def decided(
        self, attachment: str, decision: str, reason: str, owner: str, exemplar: Exemplar | None = None
    ) -> None:
        """Count one decision; `owner` is one of endpoints or routing entries, never a text of the client's."""
        key = (attachment, decision, reason, owner)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._decisions.labels(*key)
        child.inc(1, exemplar)

    def show(self, snapshot: Snapshot) -> None:
        """Describe a new snapshot."""
        self.generation.set(snapshot.generation)
        self.endpoints.clear()
        for pool in snapshot.pools:
            members = snapshot.endpoints[pool]
            ready = sum([endpoint.ready for endpoint in members])
            self.endpoints.labels(str(pool), "true").set(ready)
            self.endpoints.labels(str(pool), "false").set(len(members) - ready)

    def _counter(self, name: str, meaning: str, labels: tuple[str, ...] = (), bound: str = _ONE) -> Counter:
        self._families.append(Family(name, "counter", labels, bound, meaning))
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, labels: tuple[str, ...] = (), bound: str = _ONE) -> Gauge:
        self._families.append(Family(name, "gauge", labels, bound, meaning))
        return Gauge(name, meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        # The library adds a bucket for everything (+Inf); sum and count are two more series.
        self._families.append(Family(name, "histogram", (), f"{len(buckets) + 3}: its buckets, sum and count", meaning))
        return Histogram(name, meaning, buckets=buckets, registry=self.registry)
