# SPDX-License-Identifier: Apache-2.0
"""What the Envoys of kgateway and of Envoy Gateway have in common, and how an object is read whose every field counts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import yaml

from extproc.demo.bootstrap import LISTENER
from extproc.demo.client import LOOPBACK

Json = dict[str, Any]
Endpoints = Sequence[tuple[str, int]]

_UNITS: Final = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def only(value: Json, *names: str) -> Json:
    """The value, of which nothing may be overlooked. Raises ValueError for a key that is none of the names."""
    if unknown := sorted(value.keys() - set(names)):
        raise ValueError(f"nobody translates {', '.join(unknown)}")
    return value


def quantity(text: str) -> int:
    """The bytes of a quantity: `32768`, `1Mi`."""
    return int(text[:-2]) * _UNITS[text[-2:]] if text[-2:] in _UNITS else int(text)


def settings(documents: Iterable[Json]) -> list[str]:
    """How the rendered Deployment starts the program, without what asks a cluster: the policy and the pods."""
    (deployment,) = (each for each in documents if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    of_a_cluster = ("--config-map=", "--endpoint-selector=", "--endpoint-target-ports=")
    return [word for word in container["args"] if word != "serve" and not word.startswith(of_a_cluster)]


def patch(kind: str, values: Mapping[str, Any]) -> Json:
    """An operator's patch that replaces fields of the only object of a kind, by their paths: `/spec/extProc`."""
    steps = [{"op": "replace", "path": path, "value": value} for path, value in values.items()]
    return {"target": {"kind": kind}, "patch": yaml.safe_dump(steps)}


def typed(kind: str, **fields: Any) -> Json:
    """A message of Envoy's in an Any; `kind` is its name below `envoy.`."""
    return {"@type": f"type.googleapis.com/envoy.{kind}", **fields}


def address(host: str, port: int) -> Json:
    """A socket's address."""
    return {"socket_address": {"address": host, "port_value": port}}


def cluster(name: str, endpoints: Endpoints, *, http2: bool = False, **fields: Any) -> Json:
    """A cluster with fixed endpoints, as gateways have one with those of a Service."""
    members = [{"endpoint": {"address": address(host, port)}} for host, port in endpoints]
    protocol = {"explicit_http_config": {"http2_protocol_options": {}}}
    options = typed("extensions.upstreams.http.v3.HttpProtocolOptions", **protocol)
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": members}]},
        **({"typed_extension_protocol_options": {options["@type"].rpartition("/")[2]: options}} if http2 else {}),
        **fields,
    }


def bootstrap(filters: Sequence[Json], routes: Sequence[Json], clusters: Sequence[Json], **listener: Any) -> Json:
    """A whole Envoy on free ports of this machine, with these fields of its only listener."""
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": typed("extensions.filters.http.router.v3.Router", suppress_envoy_headers=True),
    }
    manager = typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        http_filters=[*filters, router],
        route_config={
            "name": "http",
            "ignore_port_in_host_matching": True,
            "virtual_hosts": [{"name": "http", "domains": ["*"], "routes": [*routes]}],
        },
        normalize_path=True,
        merge_slashes=True,
        use_remote_address=True,
    )
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "static_resources": {
            # A gateway calls it something else; by this name the tests ask Envoy for its port.
            "listeners": [
                {"name": LISTENER, "address": address(LOOPBACK, 0), "default_filter_chain": chain, **listener}
            ],
            "clusters": [*clusters],
        },
        "admin": {"address": address(LOOPBACK, 0)},
    }


def route_matches(rules: Iterable[Json]) -> list[tuple[Json, Json]]:
    """An HTTPRoute's rules as Envoy's matches in Gateway API's order of precedence, each with its rule.

    Longer paths come first, then more headers, then the rules as they stand.
    """
    matches = [(match, rule) for rule in rules for match in rule.get("matches", [{}])]
    ordered = sorted(matches, key=lambda pair: (-len(_path(pair[0])["value"]), -len(pair[0].get("headers", []))))
    return [({**_path_match(_path(match)), "headers": _headers(match)}, rule) for match, rule in ordered]


def _path(match: Json) -> Json:
    return only(only(match, "path", "headers").get("path", {"type": "PathPrefix", "value": "/"}), "type", "value")


def _path_match(path: Mapping[str, str]) -> Json:
    if path["type"] == "Exact":
        return {"path": path["value"]}
    return {"prefix": "/"} if path["value"] == "/" else {"path_separated_prefix": path["value"]}


def _headers(match: Json) -> list[Json]:
    found = []
    for header in match.get("headers", []):
        only(header, "type", "name", "value")
        kind = {"Exact": "exact", "RegularExpression": "safe_regex"}[header.get("type", "Exact")]
        value = header["value"] if kind == "exact" else {"regex": header["value"]}
        found.append({"name": header["name"], "string_match": {kind: value}})
    return found
