# SPDX-License-Identifier: Apache-2.0
"""The admin port's OpenAPI document. Its types are those that the handlers decode with and answer with."""

from functools import cache
from typing import Any, Final

import msgspec

from extproc import __version__
from extproc.envoy.explain import Explanation
from extproc.server.requests import OWNERS, POOL, VERSION, Explain, RoutingChange

Json = dict[str, Any]

_CODES: Final = {
    200: "Done.",
    201: "Stored: there was none.",
    204: "Forgotten.",
    400: "The request is not what it must be; `param` names the field.",
    401: "The bearer token is missing or wrong.",
    403: "The Host is not this server's, or another site asks.",
    404: "There is no such thing.",
    408: "The body took too long.",
    409: "Not at that `resourceVersion` (`conflict`), or it cannot be changed here (`read_only`).",
    413: "The body is too long.",
    415: "A body must be `application/json`.",
    503: "Not now: it is not ready, or what is needed cannot be read or reached.",
}
_ANYWHERE: Final = {400, 401, 403, 415, 503}
"""What any request may come to: HTTP that cannot be read, a refusal, a body, a token that the server cannot read."""
_BODY: Final = {408, 413}
_ANYTHING: Final[Json] = {"type": "object"}
_STORED: Final[Json] = {"allOf": [{"$ref": "#/components/schemas/Entry"}], "required": ["resourceVersion"]}


@cache
def document() -> Json:
    """The document, as JSON has it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "owned-by admin API",
            "version": __version__,
            "description": "What an owned-by server knows and does, and the routing that can be changed while it runs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The content of `--admin-token-file`; without that flag none is needed.",
                }
            },
            "schemas": _schemas(),
        },
    }


def _paths() -> Json:
    return {
        "/": {"get": _file("The status page", "text/html") | {"security": []}},
        "/events": {"get": _file("What the page shows, as server-sent events without an end", "text/event-stream")},
        "/healthz": {"get": _probe("Whether the process answers", {200})},
        "/readyz": {"get": _probe("Whether requests are welcome", {200, 503})},
        "/statusz": {"get": _shown("How it is: components, pools, sources and their age")},
        "/configz": {"get": _shown("The policy in force, the admin API's own entries among it")},
        "/endpointz": {"get": _shown("Every endpoint of the present snapshot")},
        "/flagz": {"get": _shown("The flags that this process runs with")},
        "/openapi.json": {"get": _shown("This document")},
        "/v1/models": {
            "get": _operation(
                "The models of the ready endpoints and who serves them, as the gateway lists them",
                {200: _ref("ModelList")},
                {404},
                parameters=[_OWNED_BY, _POOL],
            )
        },
        "/v1/models/{model}": {
            "get": _operation(
                "One of them; a slash in its name stands as it is or as %2F",
                {200: _ref("Model")},
                {404},
                parameters=[_parameter("model", where="path", required=True), _OWNED_BY, _POOL],
            )
        },
        "/explain": {
            "post": _operation(
                "Where a request would go and why, step by step; nothing is sent",
                {200: _ref("Explanation")},
                _BODY,
                body="Explain",
            )
        },
        "/admin/discover": {
            "post": _operation(
                "List and ask again all that is followed, now, and say what changed",
                {200: _ref("Discovered")},
                _BODY,
            )
        },
        "/admin/api/routing": {
            "get": _operation("All entries, and the version that they have", {200: _ref("Entries")}, {409}),
            "post": _operation(
                "Store an entry: 201 for a new one, 200 in the place of one for the same model and owner",
                {200: _STORED, 201: _STORED},
                {404, 409} | _BODY,
                body="RoutingChange",
            ),
            "delete": _operation(
                "Forget an entry",
                {204: None},
                {404, 409},
                parameters=[
                    _parameter("model", required=True),
                    _parameter("owned_by", required=True),
                    _parameter("resourceVersion", description=VERSION),
                ],
            ),
        },
    }


def _operation(
    summary: str,
    answers: dict[int, Json | None],
    errors: set[int],
    body: str = "",
    parameters: list[Json] | None = None,
) -> Json:
    """An operation; anybody's may be refused for its token or its Host."""
    found: Json = {"summary": summary, "responses": {}}
    if parameters:
        found["parameters"] = parameters
    if body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    for status, schema in answers.items():
        found["responses"][str(status)] = {"description": _CODES[status]} | _content(schema)
    for status in sorted(errors | _ANYWHERE):
        found["responses"][str(status)] = {"description": _CODES[status]} | _content(_ref("Error"))
    return found


def _shown(summary: str) -> Json:
    return _operation(summary, {200: _ANYTHING}, set())


def _probe(summary: str, statuses: set[int]) -> Json:
    text = {"text/plain": {"schema": {"type": "string"}}}
    answers = {str(status): {"description": _CODES[status], "content": text} for status in sorted(statuses)}
    return {"summary": summary, "security": [], "responses": answers}


def _file(summary: str, kind: str) -> Json:
    found = _operation(summary, {200: None}, set())
    found["responses"]["200"]["content"] = {kind: {"schema": {"type": "string"}}}
    return found


def _content(schema: Json | None) -> Json:
    return {} if schema is None else {"content": {"application/json": {"schema": schema}}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(
    name: str, *, where: str = "query", required: bool = False, pattern: str = "", description: str = ""
) -> Json:
    schema: Json = {"type": "string"}
    schema |= {"minLength": 1} if required else {}
    schema |= {"pattern": pattern} if pattern else {}
    found: Json = {"name": name, "in": where, "required": required, "schema": schema}
    return found | ({"description": description} if description else {})


_OWNED_BY: Final = _parameter(
    "owned_by", pattern=OWNERS, description="Only those of these owners, with commas between them."
)
_POOL: Final = _parameter("pool", pattern=POOL, description="Only this pool, as `namespace/name`; else all as one.")


def _schemas() -> Json:
    _, components = msgspec.json.schema_components(
        [RoutingChange, Explain, Explanation], ref_template="#/components/schemas/{name}"
    )
    # What is checked beyond the types.
    components["Selector"]["anyOf"] = [
        {"required": [key], "properties": {key: {least: 1}}}
        for key, least in (("matchLabels", "minProperties"), ("matchExpressions", "minItems"))
    ]
    components["Expression"]["oneOf"] = [
        {"properties": {"operator": {"enum": ["In", "NotIn"]}, "values": {"minItems": 1}}, "required": ["values"]},
        {"properties": {"operator": {"enum": ["Exists", "DoesNotExist"]}, "values": {"maxItems": 0}}},
    ]
    text = {"type": "string"}
    components["Explanation"]["properties"]["facts"] = {
        "type": "array",
        "description": "What is worth a line each to a person, in reading order: what it is, and its value.",
        "items": {"type": "array", "prefixItems": [text, text], "minItems": 2, "maxItems": 2},
    }
    components["Explanation"]["required"].append("facts")
    entry = {"model": {"type": "string"}, "owned_by": {"type": "string"}, "selector": _ref("Selector")}
    model = {"id": {"type": "string"}, "object": {"const": "model"}, "owned_by": {"type": "string"}}
    numbers = {"created": {"type": "integer"}, "max_model_len": {"type": "integer"}}
    endpoints = {
        "type": "array",
        "items": _object({name: {"type": "string"} for name in ("pool", "name", "destination")}),
    }
    fault = {name: {"type": "string"} for name in ("message", "type", "code")} | {"param": {"type": ["string", "null"]}}
    return components | {
        "Entry": _object(entry, resourceVersion={"type": "string"}),
        "Entries": _object(
            {"routing": {"type": "array", "items": _ref("Entry")}, "resourceVersion": {"type": "string"}}
        ),
        "Model": _object(model, **numbers),
        "ModelList": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}),
        "Discovered": _object(
            {
                "generation": {"type": "integer"},
                "pools": _object(
                    {name: {"type": "array", "items": {"type": "string"}} for name in ("added", "removed")}
                ),
                "endpoints": _object(dict.fromkeys(("added", "removed", "changed"), endpoints)),
                "errors": {"type": "object", "additionalProperties": {"type": "string"}},
            }
        ),
        "Error": _object({"error": _object(fault)}),
    }


def _object(properties: Json, **optional: Json) -> Json:
    """An object that has all of these properties, and may have the optional ones."""
    return {
        "type": "object",
        "required": [*properties],
        "properties": properties | optional,
        "additionalProperties": False,
    }
