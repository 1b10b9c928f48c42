# SPDX-License-Identifier: Apache-2.0
"""A gateway's configuration as istiod sends it: listeners, routes, clusters and endpoints each on their own.

The shapes are those of facts/gateways.md 1.2 to 1.4; Envoy gets them from files, which it dumps as it does what a control
plane sends. The EPP's filter is inert at the listener, and each route to a pool says who its EPP is.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extproc.demo.bootstrap import Plan, bootstrap
from tests.doctor.patients import EPP, FILTER_CONFIG, PER_ROUTE, Json, cluster

NAMESPACE = "llm-d-multi-model"
POOL = f"outbound|54321||multi-model-pool-ip-eb03cb90.{NAMESPACE}.svc.cluster.local"
OTHER_POOL = f"outbound|54321||other-ip-d9298a10.{NAMESPACE}.svc.cluster.local"
SERVER = "outbound|9002||owned-by.owned-by.svc.cluster.local"
PICKER = f"outbound|9002||multi-model-pool-epp.{NAMESPACE}.svc.cluster.local"
WEB = f"outbound|80||web.{NAMESPACE}.svc.cluster.local"
ROUTE = f"{NAMESPACE}.multi-model.0"

_TYPES = "type.googleapis.com/envoy"
_ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"


def enabled(*names: str) -> Json:
    """What a route says to have filters that are disabled at the listener."""
    return {name: {"@type": FILTER_CONFIG, "config": {}} for name in names}


def epp(server: str = PICKER) -> Json:
    """What istiod says on a route to a pool."""
    mode = {f"{way}_{part}_mode": "SEND" for way in ("request", "response") for part in ("header", "trailer")}
    mode |= {f"{way}_body_mode": "FULL_DUPLEX_STREAMED" for way in ("request", "response")}
    overrides = {
        "processing_mode": mode,
        "grpc_service": {"envoy_grpc": {"cluster_name": server}, "timeout": "10s"},
        "failure_mode_allow": True,
    }
    return {EPP: {"@type": PER_ROUTE, "overrides": overrides}}


def route(name: str, prefix: str, said: Json, *clusters: str) -> Json:
    """A route; several clusters share its requests."""
    action: Json = {"cluster": clusters[0]}
    if len(clusters) > 1:
        action = {"weighted_clusters": {"clusters": [{"name": each, "weight": 50} for each in clusters]}}
    retry = {"retry_on": "connect-failure", "num_retries": 2}
    return {
        "name": name,
        "match": {"prefix": prefix},
        "route": action | {"retry_policy": retry},
        "typed_per_filter_config": said,
    }


@dataclass
class Gateway:
    """What istiod sends; `write` makes Envoy's bootstrap of it.

    `merged`: the EPP's filter forwards our list, as the component's MERGE makes it. `server` is the number of endpoints
    of our server's cluster. `more` are listeners beside the one that is looked at.
    """

    routes: list[Json] = field(default_factory=list)
    merged: bool = True
    attachments: tuple[str, ...] = ("before", "after")
    server: int = 1
    more: list[Json] = field(default_factory=list)

    def write(self, folder: Path) -> Json:
        """Write what istiod would send into the folder; the bootstrap that reads it."""
        routes = {
            "@type": f"{_TYPES}.config.route.v3.RouteConfiguration",
            "name": "http.80",
            "virtual_hosts": [{"name": "*:80", "domains": ["*"], "routes": self.routes}],
        }
        endpoints = {POOL: 2, OTHER_POOL: 1, SERVER: self.server, PICKER: 1, WEB: 1}
        document, listener = self._listener(folder)
        self._put(folder, "routes", [routes])
        clusters = []
        for number, (name, count) in enumerate(endpoints.items()):
            members = f"endpoints-{number}"  # Envoy takes one cluster's from a file
            self._put(folder, members, [_assignment(name, count)])
            clusters.append(self._cluster(document, _file(folder, members), name))
        self._put(folder, "clusters", [{"@type": f"{_TYPES}.config.cluster.v3.Cluster"} | each for each in clusters])
        listeners = [{"@type": f"{_TYPES}.config.listener.v3.Listener"} | each for each in (listener, *self.more)]
        self._put(folder, "listeners", listeners)
        return {
            "node": {"id": "router~127.0.0.1~gateway", "cluster": "gateway"},
            "dynamic_resources": {
                "lds_config": _file(folder, "listeners"),
                "cds_config": _file(folder, "clusters"),
            },
            "admin": document["admin"],
        }

    def _listener(self, folder: Path) -> tuple[Json, Json]:
        plan = Plan(endpoints=(("127.0.0.1", 8001),), before_port=9002, picker_port=9002, after_port=9002, pool=None)
        document = json.loads(json.dumps(bootstrap(plan)))
        (listener,) = document["static_resources"]["listeners"]
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        del manager["route_config"]
        manager["rds"] = {"route_config_name": "http.80", "config_source": _file(folder, "routes")}
        chain = []
        for each in filters_of(manager):
            word = each["name"].rpartition(".")[2]
            if each["name"].startswith("owned-by"):
                if word not in self.attachments:
                    continue
                each["disabled"] = True
                each["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] = SERVER
            if each["name"] == EPP:
                each["typed_config"] |= {
                    "failure_mode_allow": True,
                    "message_timeout": "1000s",
                    "processing_mode": {"request_header_mode": "SKIP", "response_header_mode": "SKIP"},
                    "grpc_service": {"envoy_grpc": {"cluster_name": "dummy"}, "timeout": "10s"},
                }
                if not self.merged:
                    each["typed_config"]["metadata_options"]["forwarding_namespaces"]["untyped"] = ["envoy.lb"]
            chain.append(each)
        manager["http_filters"] = [_cors(), *chain]
        return document, listener

    def _cluster(self, document: Json, endpoints: Json, name: str) -> Json:
        like = cluster(document, "owned_by" if "|9002|" in name else "pool")
        made = {key: value for key, value in like.items() if key not in ("name", "type", "load_assignment")}
        if name == WEB:
            del made["load_balancing_policy"]
        return made | {
            "name": name,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": endpoints, "service_name": name},
        }

    def _put(self, folder: Path, name: str, resources: list[Json]) -> None:
        (folder / f"{name}.json").write_text(json.dumps({"version_info": "1", "resources": resources}))


def filters_of(manager: Json) -> list[Json]:
    """The filters of a connection manager."""
    found: list[Json] = manager["http_filters"]
    return found


def _cors() -> Json:
    return {
        "name": "envoy.filters.http.cors",
        "typed_config": {"@type": f"{_TYPES}.extensions.filters.http.cors.v3.Cors"},
    }


def _assignment(name: str, count: int) -> Json:
    members = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 8001 + number}}}}
        for number in range(count)
    ]
    return {
        "@type": f"type.googleapis.com/{_ENDPOINTS}",
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": members}] if members else [],
    }


def _file(folder: Path, name: str) -> dict[str, Any]:
    return {"path_config_source": {"path": str(folder / f"{name}.json")}, "resource_api_version": "V3"}
