# SPDX-License-Identifier: Apache-2.0
"""Envoys that are well or ill in one way, and what they say of themselves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.client import send
from extproc.demo.envoy import Envoy
from extproc.doctor.chain import examine
from extproc.doctor.dump import parse
from extproc.doctor.findings import Finding, Severity, in_order

Json = dict[str, Any]
Fault = Callable[[Json], None]

POOL = (("127.0.0.1", 8001), ("127.0.0.1", 8002))
"""Nobody is dialled: no request is sent."""
STRICT = Plan(endpoints=POOL, before_port=9002, picker_port=9003, after_port=9004, retries=2)
BEFORE = Plan(endpoints=POOL, before_port=9002, picker_port=9003)
EPP = "envoy.filters.http.ext_proc"
PER_ROUTE = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute"
FILTER_CONFIG = "type.googleapis.com/envoy.config.route.v3.FilterConfig"


def manager(document: Json) -> Json:
    """The HTTP connection manager of a bootstrap."""
    (listener,) = document["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def filters(document: Json) -> list[Json]:
    return manager(document)["http_filters"]


def one(document: Json, name: str) -> Json:
    """The filter with that name."""
    return next(each for each in filters(document) if each["name"] == name)


def config(document: Json, name: str) -> Json:
    return one(document, name)["typed_config"]


def route(document: Json) -> Json:
    """The route to the pool."""
    return manager(document)["route_config"]["virtual_hosts"][0]["routes"][-1]


def cluster(document: Json, name: str) -> Json:
    return next(each for each in document["static_resources"]["clusters"] if each["name"] == name)


async def dump_of(
    document: Json, folder: Path, program: str | Path | None = None, query: str = "?include_eds"
) -> bytes:
    """What a real Envoy with this bootstrap dumps."""
    async with Envoy(document, folder, program) as envoy:
        return (await send(envoy.admin_port, "GET", f"/config_dump{query}")).body


async def found(document: Json, folder: Path, program: str | Path | None = None) -> list[Finding]:
    """What the doctor finds in it."""
    return in_order(examine(parse(await dump_of(document, folder, program))))


def complaints(findings: list[Finding]) -> list[str]:
    """Whatever is not well, a line each."""
    return [each.line for each in findings if each.severity is not Severity.OK]


def ill(plan: Plan, fault: Fault) -> Json:
    """The bootstrap of a plan with a fault in it."""
    document = json.loads(json.dumps(bootstrap(plan)))
    fault(document)
    return document


def skipped_unless_asked(document: Json) -> None:
    """The filter behind a matcher: it runs for requests with the header."""
    ours = one(document, "owned-by.before")
    by = {
        "name": "header",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
            "header_name": "x-owned-by",
        },
    }
    skip = {
        "name": "skip",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter"},
    }
    there = {"single_predicate": {"input": by, "value_match": {"safe_regex": {"google_re2": {}, "regex": ".+"}}}}
    absent = {"predicate": {"not_matcher": there}, "on_match": {"action": skip}}
    ours["typed_config"] = {
        "@type": "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        "extension_config": {"name": "owned-by.before", "typed_config": ours["typed_config"]},
        "xds_matcher": {"matcher_list": {"matchers": [absent]}},
    }
