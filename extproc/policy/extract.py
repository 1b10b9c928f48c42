# SPDX-License-Identifier: Apache-2.0
"""Headers, query and body of a request -> InferenceRequest.

The sources are read in that order, inside each the names in the policy's order; the first that names an owner wins and
nothing later is read for it. What cannot be read as an owner is a `Malformed` value, so that `decide` answers it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import jiter
import msgspec

from extproc.policy.config import OWNER, PolicyConfig
from extproc.policy.form import boundary, read_form
from extproc.policy.types import ANY, InferenceRequest, Malformed, Reason, Scope

MAX_OWNERS = 8
_LONGEST = 4096
"""More characters, or entries of a list, than any order of preference has."""
_SHORT = 128
"""Texts up to this length are remembered: what a client can make us keep stays small."""
REWRITE_HEADER = "x-llm-d-model-name-rewrite"
"""The header by which the EPP replaces the body's model (facts/epp.md 1.3): what it names is final."""

_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BUILT = 1_048_576
_ESCAPES = 16
"""Bytes of the end of a body in which two escapes have a place."""
_BOM = b"\xef\xbb\xbf"
_JSON_TYPE = re.compile(r"application/(?:[a-z0-9!#$&^_.+-]+\+)?json")

Headers = Mapping[str, Sequence[str]]
"""Each header's values, a line each, under its lower-case name."""


class BodyFormat(msgspec.Struct, frozen=True):
    """How a body is written: a multipart form with this boundary, JSON without one."""

    boundary: str = ""


JSON = BodyFormat()


class _MalformedError(Exception):
    pass


def from_head(headers: Headers, scope: Scope, policy: PolicyConfig) -> InferenceRequest:
    """What the headers (pseudo headers among them) and the query say."""
    path, _, query = headers.get(":path", ("",))[0].partition("?")
    header_model, fixed = _header_model(headers, policy)
    owners: tuple[str, ...] = ()
    param = ""
    malformed = None
    try:
        for name in policy.sources.headers:
            if name in headers and (owners := _agreed(headers[name], name, policy)):
                param = name
                break
        else:
            for name, values in _query(query, policy):
                if owners := _agreed(values, name, policy):
                    param = name
                    break
    except _MalformedError as error:
        malformed = error.args[0]
    return InferenceRequest(
        scope=scope,
        method=headers.get(":method", ("",))[0],
        path=path,
        owners=owners,
        param=param,
        model=policy.model_aliases.get(header_model, header_model),
        header_model=header_model,
        fixed_model=fixed,
        interpreted=(_short_path if len(path) <= _SHORT else _short_path.__wrapped__)(path, policy),
        malformed=malformed,
    )


def from_body(
    request: InferenceRequest, body: bytes, policy: PolicyConfig, *, ended: bool, form: BodyFormat = JSON
) -> InferenceRequest:
    """The request with what its body adds.

    `ended` says that `body` is all of it. A body that parses to its end counts as whole even if `ended` is false: one
    with trailers comes like that. A prefix names only what stands in it completely.
    """
    fields: Mapping[str, object]
    if form.boundary:
        fields, whole = read_form(body, form.boundary, (*policy.sources.body, "model"))
    else:
        fields, whole = _read_whole(body, policy)
        if not whole and not ended:
            fields = _read_prefix(body)
    changes: dict[str, Any] = {"truncated": not whole and not ended}
    if not request.owners and not request.malformed:
        try:
            for name in policy.sources.body:
                if owners := _body_owners(fields.get(name), name, policy):
                    changes |= {"owners": owners, "param": name}
                    break
        except _MalformedError as error:
            changes["malformed"] = error.args[0]
    model = fields.get("model")
    if isinstance(model, str) and (model := _text(model)) and not request.fixed_model:
        changes["model"] = policy.model_aliases.get(model, model)
        changes["mismatch"] = bool(request.header_model) and request.header_model != model
    return msgspec.structs.replace(request, **changes)


def from_filter(request: InferenceRequest, owner: str, model: str, passed: Reason | None) -> InferenceRequest:
    """The request with what a filter of ours before this one has found out, in place of what it says itself.

    `owner` is the one that won, "" if none was named; `passed` is why the request was let through, None if it was not.
    """
    owners = (owner,) if owner else ()
    return msgspec.structs.replace(
        request, owners=owners, param="", model=model, malformed=None, told=True, passed=passed
    )


def body_format(headers: Headers, *, end_of_stream: bool) -> BodyFormat | None:
    """How the body is written, if there is one that can be asked for and read, else None.

    Asking for the body of an upgrade or of a gRPC call would wait for ever (facts/envoy.md 6); a compressed body or one
    of another type would name nothing.
    """
    if end_of_stream or "upgrade" in headers or headers.get(":method", ("",))[0] == "CONNECT":
        return None
    encodings = {value.strip().lower() for line in headers.get("content-encoding", ()) for value in line.split(",")}
    if encodings - {"", "identity"}:
        return None
    content_type = headers.get("content-type", ("",))[0]
    kind = content_type.partition(";")[0].strip().lower()
    if _JSON_TYPE.fullmatch(kind) is not None and not kind.startswith("application/grpc"):
        return JSON
    found = boundary(content_type)
    return BodyFormat(found) if found else None


@lru_cache(maxsize=8)
def header_names(policy: PolicyConfig) -> frozenset[str]:
    """The headers that this module reads."""
    fixed = {":method", ":path", "content-type", "content-encoding", "upgrade"}
    return frozenset(fixed.union(policy.sources.headers, policy.sources.model_headers))


def _header_model(headers: Headers, policy: PolicyConfig) -> tuple[str, bool]:
    for name in policy.sources.model_headers:
        for value in reversed(headers.get(name, ())):
            if model := _utf8(value).strip():
                return model, name == REWRITE_HEADER
    return "", False


def _utf8(value: str) -> str:
    """A header value, a character a byte, as the UTF-8 that clients write; as it is if it is none."""
    try:
        return value if value.isascii() else value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _text(value: str) -> str:
    """A text that can be written again: half a surrogate pair, which JSON may hold, cannot."""
    return value.strip() if value.isascii() else value.encode(errors="replace").decode().strip()


def _query(query: str, policy: PolicyConfig) -> list[tuple[str, list[str]]]:
    """The values of each owner parameter that the query holds, in the policy's order."""
    if not query or not policy.sources.query:
        return []
    found: dict[str, list[str]] = {}
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if (name := _unquote(name)) in policy.sources.query:
            found.setdefault(name, []).append(value)
    return [(name, [_unquote(value) for value in found[name]]) for name in policy.sources.query if name in found]


def _unquote(text: str) -> str:
    """Percent-decoding, each byte a character so that none is lost; what is not well-formed stays as it is."""
    if "%" not in text and "+" not in text:
        return text
    return unquote_to_bytes(text.replace("+", " ")).decode("latin-1") if not _BAD_PERCENT.search(text) else text


def _agreed(lines: Sequence[str], name: str, policy: PolicyConfig) -> tuple[str, ...]:
    """The owners that the lines name: equal lines count once, different ones are malformed."""
    read = [owners for line in lines if (owners := _line(line, name, policy))]
    if any(owners != read[0] for owners in read):
        raise _MalformedError(Malformed(name, f"`{name}` is given more than once with different values"))
    return read[0] if read else ()


def _line(line: str, name: str, policy: PolicyConfig) -> tuple[str, ...]:
    """The owners of one header line, query value or text in a body; short ones, which repeat, are read once."""
    if len(line) > _LONGEST:  # before it is taken apart
        raise _MalformedError(Malformed(name, f"`{name}` is longer than {_LONGEST} characters"))
    return (_short_line if len(line) <= _SHORT else _short_line.__wrapped__)(line, name, policy)


@lru_cache(maxsize=1024)
def _short_line(line: str, name: str, policy: PolicyConfig) -> tuple[str, ...]:
    return _owners(line.split(","), name, policy)


@lru_cache(maxsize=1024)
def _short_path(path: str, policy: PolicyConfig) -> bool:
    plain = unquote(path)  # as the engines read it
    return any(fnmatchcase(plain, pattern) for pattern in policy.paths)


def _body_owners(value: object, name: str, policy: PolicyConfig) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, list) and len(value) > _LONGEST:
        raise _MalformedError(Malformed(name, f"`{name}` names more than {MAX_OWNERS} owners"))
    if isinstance(value, str):
        return _line(value, name, policy)
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return _owners(value, name, policy)
    raise _MalformedError(Malformed(name, f"`{name}` must be a string or a list of strings"))


def _owners(entries: Sequence[str], name: str, policy: PolicyConfig) -> tuple[str, ...]:
    """An order of preference, normalised, each owner once; empty entries are skipped as in any header list."""
    owners: dict[str, None] = {}
    # Lower case turns some letters beyond ASCII into ASCII ones: they are sorted out before it.
    entries = [policy.normal(entry) if entry.isascii() else entry for entry in entries if entry.strip()]
    if len(entries) > MAX_OWNERS:
        raise _MalformedError(Malformed(name, f"`{name}` names more than {MAX_OWNERS} owners"))
    for entry in entries:
        if ANY in owners:
            raise _MalformedError(Malformed(name, f"`{name}` names an owner after `*`, which must be the last"))
        if entry in (ANY, "any"):
            owners[ANY] = None
        elif OWNER.fullmatch(entry):
            owners[entry] = None
        else:
            raise _MalformedError(
                Malformed(name, f"`{name}` is not an owner: 1 to 128 letters, digits and . _ / - each, or *")
            )
    return tuple(owners)


def forget() -> None:
    """Let go of what was derived from policies that are no longer in force: each keeps all that it is made of."""
    for kept in (header_names, _short_line, _short_path, _decoder):
        kept.cache_clear()


@lru_cache(maxsize=8)
def _decoder(policy: PolicyConfig) -> Callable[[bytes], dict[str, object]]:
    """A decoder that builds only the fields that are read and skips the rest, however large."""
    names = dict.fromkeys([*policy.sources.body, "model"])
    fields: list[tuple[str, Any, Any]] = [(f"field_{number}", Any, None) for number, _ in enumerate(names)]
    rename = {field[0]: name for field, name in zip(fields, names, strict=True)}
    decode = msgspec.json.Decoder(msgspec.defstruct("RequestBody", fields, rename=rename)).decode
    return lambda body: {name: getattr(found, key) for found in (decode(body),) for key, name in rename.items()}


def _read_whole(body: bytes, policy: PolicyConfig) -> tuple[Mapping[str, object], bool]:
    """The fields of a JSON object, and whether the body is JSON to its end."""
    try:
        return _decoder(policy)(body.removeprefix(_BOM)), True
    except RecursionError:
        return {}, False
    except (msgspec.MsgspecError, ValueError) as error:
        # It also says so of half a surrogate pair with less than another escape behind it.
        if "truncated" in str(error) and b"\\ud" not in body[-_ESCAPES:].lower():
            return {}, False
    # What the engines' own parser takes and msgspec does not: NaN, half a surrogate pair, a body that is no object. It builds
    # all that it reads: a large body could cost a second and hundreds of megabytes.
    if len(body) > _BUILT:
        return {}, False
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}, False
    return value if isinstance(value, dict) else {}, True


def _read_prefix(body: bytes) -> Mapping[str, object]:
    """The fields that stand completely in a prefix of a JSON object, none if it is nested some 200 levels deep."""
    try:
        value = jiter.from_json(body.removeprefix(_BOM), partial_mode=True, cache_mode="none", allow_inf_nan=True)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    # The prefix may end inside the last field: a string cut short is dropped by jiter, a list cut short is not. With
    # such strings kept, the last field is the one in which the prefix really ends.
    if isinstance(value[last := next(reversed(value), "")] if value else "", list):
        kept = jiter.from_json(body.removeprefix(_BOM), partial_mode="trailing-strings", cache_mode="none")
        if next(reversed(kept)) == last:
            del value[last]
    return value
