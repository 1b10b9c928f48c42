# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds, as values, and their words: a line a check, in the order of the chain."""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec


class Severity(StrEnum):
    """How bad it is. `skipped`: it was not looked at, or nothing can be said; the text says why."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


class Check(StrEnum):
    """What is looked at, in the order in which it is told."""

    GATEWAY = "gateway"
    ENVOY = "envoy"
    ANCHOR = "anchor"
    FILTER = "filter"
    ORDER = "order"
    ROUTES = "routes"
    EPP = "epp"
    HINT = "hint"
    METADATA = "metadata"
    MODES = "modes"
    HEADERS = "headers"
    POOL = "pool"
    FAILURES = "failures"
    CLUSTER = "cluster"
    DESTINATION = "destination"
    SERVER = "server"
    OWNER_HEADER = "owner-header"
    OWNER_QUERY = "owner-query"
    OWNER_BODY = "owner-body"
    BODY_LIMIT = "body-limit"
    MODELS = "models"
    SPOOFED = "spoofed"
    SERVED = "served"
    LABELS = "labels"


ABOUT: Final[dict[Check, str]] = {
    Check.GATEWAY: "The gateway answers.",
    Check.ENVOY: "Envoy has accepted its configuration, and is new enough for the filters that are in it.",
    Check.ANCHOR: "The EPP's filter is there: ours stands beside it.",
    Check.FILTER: "A filter of ours is there, under a name of its own.",
    Check.ORDER: "`before` is in front of the EPP, `after` behind it.",
    Check.ROUTES: "Routes lead to a pool, and our filters are enabled on them.",
    Check.EPP: "The EPP is called on those routes, and can be reached.",
    Check.HINT: "The EPP's filter forwards our list of endpoints.",
    Check.METADATA: "Filters may write and see the metadata that they need.",
    Check.MODES: "Our filters see requests, may ask for the body, and leave the answer alone.",
    Check.HEADERS: "Our filters see the headers that they read, and may set and remove those that they must.",
    Check.POOL: "Our filters are told which pool a route leads to.",
    Check.FAILURES: "What becomes of a request when a processor fails or a pod refuses.",
    Check.CLUSTER: "Envoy knows where our server is, speaks HTTP/2 with it, and may have enough requests open.",
    Check.DESTINATION: "The pool's cluster goes where the destination says.",
    Check.SERVER: "Our server is ready and its sources are well (`--admin`).",
    Check.OWNER_HEADER: "An owner in the header reaches us.",
    Check.OWNER_QUERY: "An owner in the query reaches us.",
    Check.OWNER_BODY: "An owner in a small JSON body reaches us.",
    Check.BODY_LIMIT: "So does one at the end of a large body.",
    Check.MODELS: "`GET /v1/models` is answered by us.",
    Check.SPOOFED: "A destination that a client names is not obeyed.",
    Check.SERVED: "Those serve who were asked for.",
    Check.LABELS: "The endpoints say whose they are.",
}
"""What it means that a check is well."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found: what was looked at, how bad it is, where, what, and what to do ("" if nothing)."""

    check: Check
    severity: Severity
    what: str
    where: str = ""
    fix: str = ""

    @property
    def line(self) -> str:
        """The finding for a person."""
        where = f"{self.where}: " if self.where else ""
        fix = f"; {self.fix}" if self.fix else ""
        return f"{self.severity:<8} {self.check:<13} {where}{self.what}{fix}"


def ok(check: Check, what: str, where: str = "") -> Finding:
    """It is well."""
    return Finding(check=check, severity=Severity.OK, what=what, where=where)


def warning(check: Check, what: str, where: str = "", fix: str = "") -> Finding:
    """It works, and not as it should in every case."""
    return Finding(check=check, severity=Severity.WARNING, what=what, where=where, fix=fix)


def error(check: Check, what: str, where: str = "", fix: str = "") -> Finding:
    """A link that is broken."""
    return Finding(check=check, severity=Severity.ERROR, what=what, where=where, fix=fix)


def skipped(check: Check, why: str, fix: str = "") -> Finding:
    """Nothing can be said of it."""
    return Finding(check=check, severity=Severity.SKIPPED, what=f"not checked: {why}", fix=fix)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """In the order of the chain, each once; an `ok` gives way to what else was found of its check."""
    order = {check: number for number, check in enumerate(Check)}
    once = list(dict.fromkeys(findings))
    faulty = {each.check for each in once if each.severity in (Severity.WARNING, Severity.ERROR)}
    kept = [each for each in once if each.severity is not Severity.OK or each.check not in faulty]
    return sorted(kept, key=lambda each: order[each.check])


def text(findings: Sequence[Finding]) -> str:
    """All of them for a person, and a line that sums them up."""
    lines = [each.line for each in findings]
    return "\n".join([*lines, _sum(findings)]) + "\n"


def as_json(findings: Sequence[Finding]) -> bytes:
    """All of them as one JSON object."""
    document = {"ok": not is_broken(findings), "findings": findings}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def is_broken(findings: Iterable[Finding]) -> bool:
    """Whether an error is among them."""
    return any(each.severity is Severity.ERROR for each in findings)


def _sum(findings: Sequence[Finding]) -> str:
    counts = {kind: sum(each.severity is kind for each in findings) for kind in Severity}
    words = [_count(counts[Severity.ERROR], "error"), _count(counts[Severity.WARNING], "warning")]
    if counts[Severity.SKIPPED]:
        words.append(f"{counts[Severity.SKIPPED]} not checked")
    return ", ".join(words)


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"
