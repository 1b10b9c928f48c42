# SPDX-License-Identifier: Apache-2.0
"""The policy: the rules that an operator tunes while the process runs (design section 5).

The schema is complete: a key that a later version brings is refused as "not supported yet", never ignored.
"""

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from extproc.policy.document import Document, DocumentError
from extproc.policy.types import ANY

OWNER: Final = re.compile(r"[a-z0-9._/-]{1,128}")
"""An owner after normalising."""

_HEADER_NAME = r"^[a-z0-9!#$%&'*+.^_`|~-]+$"
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST: Final = 86_400.0
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")

_REFUSED_HEADER: Final = re.compile(
    r"host|connection|upgrade|te|trailer|transfer-encoding|content-.*|authorization|cookie|x-envoy-.*"
    r"|x-gateway-destination-.*|x-prefiller-.*|x-encoder-.*|x-data-parallel-.*|x-kv-cache-.*"
)
"""What frames or authorises a request, what Envoy lets no filter set, and what is the EPP's."""

HeaderName = Annotated[str, Meta(pattern=_HEADER_NAME, max_length=256)]
HeaderNameOrNone = Annotated[str, Meta(pattern=f"^$|{_HEADER_NAME}", max_length=256)]
FieldName = Annotated[str, Meta(min_length=1, max_length=256)]
PathPattern = Annotated[str, Meta(pattern="^/")]


class Duration(float):
    """A length of time in seconds, written as Go writes it: `10s`, `500ms`, `1m30s`."""

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Read `1m30s`. Raises ValueError for anything else, a bare number too."""
        if not re.fullmatch(f"(?:{_DURATION.pattern})+", text):
            raise ValueError(f"`{text}` is not a duration: write it as 10s, 500ms or 1m30s")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
        if seconds > _LONGEST:
            raise ValueError(f"`{text[:32]}` is longer than a day")
        return cls(seconds)


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Sources(_Part, frozen=True):
    """Where owner and model are read from, each list in its order."""

    headers: tuple[HeaderName, ...] = ("x-owned-by",)
    query: tuple[FieldName, ...] = ("owned_by", "engine", "inference_server")
    body: tuple[FieldName, ...] = ("owned_by", "engine", "inference_server")
    model_headers: tuple[HeaderName, ...] = ("x-llm-d-model-name-rewrite", "x-gateway-model-name")


class Match(_Part, frozen=True):
    """How an endpoint's engine and models are known."""

    engine_from: tuple[Literal["label", "probe"], ...] = ("label",)
    owned_by_labels: tuple[str, ...] = (
        "llm-d.ai/engine-type",
        "inference.networking.k8s.io/engine-type",
        "model.aibrix.ai/engine",
    )
    unlabeled_as: str = "vllm"
    models: Literal["known", "any"] = "known"
    model_labels: tuple[str, ...] = ()
    aliases: dict[str, str] = msgspec.field(
        default_factory=lambda: {"trtllm": "trtllm-serve", "trt-llm": "trtllm-serve"}
    )


class _Action(_Part, frozen=True, tag_field="action"):
    pass


class Pass(_Action, frozen=True, tag="passthrough"):
    """Go on as if nothing had been said."""


class Refuse(_Action, frozen=True, tag="reject"):
    """Answer with an error."""


class Prefer(_Action, frozen=True, tag="prefer"):
    """Not supported yet."""

    owners: tuple[str, ...]


class Split(_Action, frozen=True, tag="split"):
    """Not supported yet."""

    weights: dict[str, Annotated[int, Meta(ge=0)]]


class Fallback(_Action, frozen=True, tag="fallback"):
    """Not supported yet."""

    owners: tuple[str, ...]


WhenAbsent = Pass | Refuse | Prefer | Split
WhenUnready = Refuse | Fallback
PassOrRefuse = Pass | Refuse


class ModelRule(_Part, frozen=True):
    """Not supported yet: a rule for the models that a pattern matches."""

    model: str
    allow: tuple[str, ...] | None = None
    when_absent: WhenAbsent | None = None
    when_unknown: PassOrRefuse | None = None
    when_unready: WhenUnready | None = None
    when_truncated: PassOrRefuse | None = None


class Selector(_Part, frozen=True):
    """A Kubernetes label selector."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[dict[str, Any], ...] = ()


class Route(_Part, frozen=True, rename=None):
    """Not supported yet: the endpoints of one model and owner, named by a selector."""

    model: str
    owned_by: str
    selector: Selector


class Body(_Part, frozen=True):
    """`strip` takes the owner's keys from a JSON body that goes on.

    The rest are limits of FULL_DUPLEX_STREAMED, where Envoy's own do not hold: bytes held, seconds until they are decided.
    """

    strip: bool = False
    max_bytes: Annotated[int, Meta(ge=1)] = 20_971_520
    timeout: Duration = Duration(10)


class Promote(_Part, frozen=True):
    """The request headers in which owner and model are named ("" is none), and whether the route is chosen anew by them.

    The `header` attachment names both and chooses anew in any case, under names of its own where none are given.
    """

    header: HeaderNameOrNone = ""
    model: HeaderNameOrNone = ""
    reroute: bool = False

    @property
    def owner_header(self) -> str:
        """Where the `header` attachment names the owner."""
        return self.header or "x-owned-by"

    @property
    def model_header(self) -> str:
        """Where the `header` attachment names the model."""
        return self.model or "x-gateway-model-name"


class PolicyConfig(_Part, frozen=True, eq=False):
    """One loaded policy. Compared and hashed by identity, so that what is derived from it can be kept by it."""

    api_version: Literal["owned-by/v1alpha1"]
    kind: Literal["OwnedByPolicy"]
    paths: tuple[PathPattern, ...] = ("/v1/*",)
    sources: Sources = Sources()
    match: Match = Match()
    model_aliases: dict[str, str] = {}
    destinations: Annotated[int, Meta(ge=1, le=64)] = 3
    guard: bool = True
    when_absent: WhenAbsent = Pass()
    when_unknown: PassOrRefuse = Refuse()
    when_unknown_model: PassOrRefuse = Refuse()
    when_unready: WhenUnready = Refuse()
    when_truncated: PassOrRefuse = Pass()
    models: tuple[ModelRule, ...] = ()
    routing: tuple[Route, ...] = ()
    body: Body = Body()
    promote: Promote = Promote()

    def normal(self, owner: str) -> str:
        """An owner as it is compared: trimmed, in lower case, its alias replaced; not checked."""
        owner = owner.strip().lower()
        return self.match.aliases.get(owner, owner)


def parse_policy(text: bytes) -> PolicyConfig:
    """Read a policy document. Raises DocumentError with path and line for the first thing that is wrong."""
    document = Document(text)
    policy = document.convert(PolicyConfig, dec_hook=_duration)
    for path, message in _unsupported(policy) + _mistakes(policy):
        raise document.fail(path, message)
    return policy


def default_policy() -> PolicyConfig:
    """The policy of a process that was given none."""
    return PolicyConfig(api_version="owned-by/v1alpha1", kind="OwnedByPolicy")


def _duration(kind: type, value: object) -> object:
    if kind is Duration and isinstance(value, str):
        return Duration.parse(value)
    raise ValueError(f"expected a duration such as 10s, got `{value}`")


def _unsupported(policy: PolicyConfig) -> list[tuple[str, str]]:
    """The keys whose code comes with a later version, where they say anything but their default."""
    asked = {
        "$.whenAbsent.action": isinstance(policy.when_absent, Prefer | Split),
        "$.whenUnready.action": isinstance(policy.when_unready, Fallback),
        "$.models": bool(policy.models),
        "$.routing": bool(policy.routing),
    }
    return [(path, "not supported yet") for path, given in asked.items() if given]


def _mistakes(policy: PolicyConfig) -> list[tuple[str, str]]:
    """What the types cannot say."""
    found = [
        (f"$.match.aliases.{alias}", f"`{word}` is not an owner: a-z 0-9 . _ / - in lower case")
        for alias, owner in policy.match.aliases.items()
        for word in (alias, owner)
        if not OWNER.fullmatch(word) or word in (ANY, "any")
    ]
    unlabeled = policy.match.unlabeled_as
    if unlabeled and (not OWNER.fullmatch(policy.normal(unlabeled)) or policy.normal(unlabeled) == "any"):
        found.append(("$.match.unlabeledAs", f"`{unlabeled}` is not an owner: letters, digits and . _ / -"))
    for key, name in (("header", policy.promote.header), ("model", policy.promote.model)):
        if _REFUSED_HEADER.fullmatch(name):
            found.append((f"$.promote.{key}", f"`{name}` is not a header that may be set here"))
    if (shared := policy.promote.owner_header) == policy.promote.model_header:
        found.append(("$.promote", f"owner and model cannot stand in the same header, `{shared}`"))
    if policy.body.timeout <= 0:
        found.append(("$.body.timeout", "must be longer than nothing"))
    return found


__all__ = ["DocumentError", "Duration", "PolicyConfig", "default_policy", "parse_policy"]
