# SPDX-License-Identifier: Apache-2.0
"""Whether a filter of ours says what it must: metadata, modes, headers, the pool, what becomes of a failure."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from extproc.doctor.dump import Json, Processor, at, items, words
from extproc.doctor.findings import Check, Finding, error, skipped, warning
from extproc.envoy import names
from extproc.envoy.binding import Attachment, BodyMode
from extproc.policy.config import PolicyConfig

FAR_TOO_SMALL: Final = 32_768
"""Bytes of a body that are too few for ordinary prompts: Envoy Gateway's default (facts/gateways.md 1.5)."""

_PARTIAL: Final = "BUFFERED_PARTIAL"
_DUPLEX: Final = "FULL_DUPLEX_STREAMED"
_SHORT: Final = 0.2
"""Seconds: what `message_timeout` is where nothing is said (ext_proc.proto)."""
_ANSWERS: Final = (names.CONTENT_TYPE, names.RETRY_AFTER, names.REASON)
"""The headers of our own answers, for which the mutation rules hold, too (facts/envoy.md 3)."""


def examine(processor: Processor, where: str, policy: PolicyConfig, pool: str, *, guarded: bool) -> Iterator[Finding]:
    """What is wrong with a filter of ours as it is on a route, or as it stands.

    `policy` is our server's; `pool` is the one that it means where a filter names none, "" if there is none such; `guarded`
    is whether the guard can work: some pool's cluster looks for its destination in metadata.
    """
    yield from _metadata(processor, where, guarded=guarded)
    yield from _modes(processor, where)
    yield from _headers(processor, where, policy)
    if not pool:
        yield from _pool(processor, where)
    yield from _failures(processor, where)


def seconds(value: Any) -> float | None:
    """A duration of protobuf's JSON (`0.250s`) in seconds, None if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)s", value) if isinstance(value, str) else None
    return float(found[1]) if found else None


def _metadata(processor: Processor, where: str, *, guarded: bool) -> Iterator[Finding]:
    lb, hint, own = names.DESTINATION_NAMESPACE, names.SUBSET_NAMESPACE, names.NAMESPACE
    writes, sees = processor.namespaces("receiving"), processor.namespaces("forwarding")
    match processor.attachment:
        case Attachment.BEFORE:
            if hint not in writes:
                yield _unwritten(where, hint, "our list of endpoints is dropped")
            needed = {own: "access logs and `after` do not see our decision"}
            yield from _less(where, writes, needed | ({lb: "the guard is dropped"} if guarded else {}))
        case Attachment.AFTER:
            if lb not in writes:
                yield _unwritten(where, lb, "the pick that we correct is dropped")
            if lb not in sees:
                yield error(
                    Check.METADATA, f"it does not forward `{lb}`: we never see the EPP's pick", where, _forward(lb)
                )
            if own not in sees:
                what = f"it does not forward `{own}`: we do not know what `before` found in the body"
                yield warning(Check.METADATA, what, where, _forward(own))
        case Attachment.PICKER:
            if lb not in writes:
                yield _unwritten(where, lb, "our pick is dropped")
        case Attachment.HEADER:
            pass


def _unwritten(where: str, namespace: str, what: str) -> Finding:
    return error(Check.METADATA, f"it does not receive `{namespace}`: {what}", where, _receive(namespace))


def _less(where: str, writes: Iterable[str], needed: dict[str, str]) -> Iterator[Finding]:
    for namespace, what in needed.items():
        if namespace not in writes:
            yield warning(Check.METADATA, f"it does not receive `{namespace}`: {what}", where, _receive(namespace))


def _receive(namespace: str) -> str:
    return f"add `{namespace}` to metadata_options.receiving_namespaces.untyped"


def _forward(namespace: str) -> str:
    return f"add `{namespace}` to metadata_options.forwarding_namespaces.untyped"


def _modes(processor: Processor, where: str) -> Iterator[Finding]:
    mode, config = processor.mode, processor.config
    body = mode.get("request_body_mode", "NONE")
    if mode.get("request_header_mode") == "SKIP":
        yield error(Check.MODES, "request_header_mode is SKIP: we see no request", where, "set it to SEND")
    if config.get("observability_mode"):
        yield error(Check.MODES, "observability_mode is on: our answers are ignored", where, "take it off")
    if config.get("disable_immediate_response"):
        yield error(Check.MODES, "disable_immediate_response is on: our refusals become a 500", where, "take it off")
    if processor.attachment is Attachment.PICKER:
        return
    quiet = True
    if mode.get("response_header_mode", "DEFAULT") != "SKIP":
        quiet = False
        what = "response_header_mode is not SKIP: every answer passes us, too"
        yield warning(Check.MODES, what, where, "set it to SKIP")
    if mode.get("response_body_mode", "NONE") != "NONE":
        quiet = False
        what = f"response_body_mode is {mode['response_body_mode']}: every answer would pass Python"
        yield error(Check.MODES, what, where, "set it to NONE")
    if body == "NONE":
        yield from _override(processor, where, quiet=quiet)
    elif body == "BUFFERED":
        what = "request_body_mode is BUFFERED: a body longer than Envoy's buffer is a 413"
        yield warning(Check.MODES, what, where, "set it to NONE and allow_mode_override to true")
    elif body == "STREAMED":
        what = "request_body_mode is STREAMED, which we do not speak: every request with a body fails"
        yield error(Check.MODES, what, where, "set it to NONE and allow_mode_override to true")


def _override(processor: Processor, where: str, *, quiet: bool) -> Iterator[Finding]:
    """Whether Envoy would grant it if we ask for the body; `quiet`: the response's modes are what they must be."""
    config = processor.config
    if not config.get("allow_mode_override"):
        what = "allow_mode_override is not set: an owner or a model in the body is never seen"
        yield error(Check.MODES, what, where, "set it to true")
        return
    if config.get("send_body_without_waiting_for_header_response"):
        what = "send_body_without_waiting_for_header_response is on: we cannot ask for the body"
        yield error(Check.MODES, what, where, "take it off")
    allowed = items(config, "allowed_override_modes")
    streams = processor.said.get(names.BODY) == BodyMode.STREAM
    wanted = _mode(processor.mode) | {"request_body_mode": _DUPLEX if streams else _PARTIAL}
    wanted |= {"request_trailer_mode": "SEND"} if streams else {}
    if quiet and allowed and wanted not in [_mode(each) for each in allowed]:
        shown = ", ".join(f"{key}: {value}" for key, value in wanted.items() if value not in ("DEFAULT", "NONE"))
        what = "allowed_override_modes has no entry for what we ask for, and the body is never seen"
        yield error(Check.MODES, what, where, f"add {{{shown}}}")


def _mode(mode: Json) -> Json:
    """A processing mode in full, without the part that Envoy does not compare (facts/envoy.md 2.1)."""
    headers = ("response_header_mode", "request_trailer_mode", "response_trailer_mode")
    bodies = ("request_body_mode", "response_body_mode")
    return {key: mode.get(key, "DEFAULT") for key in headers} | {key: mode.get(key, "NONE") for key in bodies}


def _headers(processor: Processor, where: str, policy: PolicyConfig) -> Iterator[Finding]:
    reads = [":method", ":path", names.CONTENT_TYPE, *policy.sources.headers]
    unseen = [name for name in reads if not _forwarded(at(processor.config, "forward_rules"), name)]
    if unseen:
        fix = "add them to forward_rules.allowed_headers"
        yield error(Check.HEADERS, f"forward_rules keep from us: {_listed(unseen)}", where, fix)
    writes = list(_ANSWERS)
    if processor.attachment is Attachment.HEADER:
        writes += [policy.promote.owner_header, policy.promote.model_header]
        if processor.config.get("route_cache_action") == "RETAIN" or processor.config.get("disable_clear_route_cache"):
            what = "route_cache_action is RETAIN: the route is not chosen by our headers"
            yield error(Check.HEADERS, what, where, "set it to DEFAULT")
    if processor.attachment in (Attachment.AFTER, Attachment.PICKER):
        writes.append(names.DESTINATION)
    if processor.attachment is not Attachment.AFTER:
        writes += [name for name in names.SPOOFABLE if name not in writes]
    rules = at(processor.config, "mutation_rules")
    try:
        kept = [name for name in writes if not _mutable(rules, name)]
    except (re.error, OverflowError) as problem:
        yield skipped(Check.HEADERS, f"a regex of mutation_rules is not Python's, too ({problem})")
        return
    if kept:
        what = f"mutation_rules do not let us set or remove: {_listed(kept)}"
        yield error(Check.HEADERS, what, where, "widen mutation_rules.allow_expression")


def _listed(found: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in found)


def _forwarded(rules: Json, name: str) -> bool:
    """Whether a header reaches us (HeaderForwardingRules: both lists may be there, and the disallowing one wins)."""
    allowed, kept = (items(at(rules, key), "patterns") for key in ("allowed_headers", "disallowed_headers"))
    if any(_matches(each, name) for each in kept):
        return False
    return not allowed or any(_matches(each, name) for each in allowed)


def _matches(pattern: Json, name: str) -> bool:
    """Whether an Envoy StringMatcher matches; a regex that Python does not read counts as a match."""
    for kind in ("exact", "prefix", "suffix", "contains"):
        if kind in pattern:
            value = str(pattern[kind])
            value = value.lower() if pattern.get("ignore_case") else value
            tests = {"exact": name == value, "contains": value in name}
            tests |= {"prefix": name.startswith(value), "suffix": name.endswith(value)}
            return tests[kind]
    try:
        return re.fullmatch(str(at(pattern, "safe_regex").get("regex", ".*")), name) is not None
    except (re.error, OverflowError):
        return True


def _mutable(rules: Json, name: str) -> bool:
    """Whether HeaderMutationRules let a header be set and removed (facts/envoy.md 3). Raises re.error, OverflowError."""
    refused, allowed = (at(rules, key).get("regex") for key in ("disallow_expression", "allow_expression"))
    if refused is not None and re.fullmatch(str(refused), name):
        return False
    if allowed is not None and re.fullmatch(str(allowed), name):
        return True
    return not rules.get("disallow_all")


def says_pool(processor: Processor) -> bool:
    """Whether a filter says its pool, lets Envoy say where the route leads, or needs none."""
    attributes = words(processor.config, "request_attributes")
    return processor.attachment is Attachment.HEADER or names.POOL in processor.said or names.CLUSTER in attributes


def _pool(processor: Processor, where: str) -> Iterator[Finding]:
    if says_pool(processor):
        return
    what = f"request_attributes lack `{names.CLUSTER}` and `{names.POOL}` is not said: with several pools we cannot tell which"
    yield warning(Check.POOL, what, where, f"add `{names.CLUSTER}` to request_attributes")


def _failures(processor: Processor, where: str) -> Iterator[Finding]:
    if processor.config.get("failure_mode_allow"):
        what = "failure_mode_allow is on: while our server is away, requests go to any engine"
        yield warning(Check.FAILURES, what, where, "take it off (component fail-open) unless that is wanted")
    timeout = seconds(processor.config.get("message_timeout"))
    if processor.attachment is not Attachment.PICKER and (timeout is None or timeout <= _SHORT):
        what = f"message_timeout is {1000 * (timeout or _SHORT):g} ms: a pause of our server is a 504"
        yield warning(Check.FAILURES, what, where, "set it to 0.5s or more")
