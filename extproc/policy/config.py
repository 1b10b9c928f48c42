# SPDX-License-Identifier: Apache-2.0
"""The policy: the rules that an operator tunes while the process runs (design section 5).

The schema is strict: a key that it does not have is refused, never ignored.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

OWNER: Final = re.compile(r"[a-z0-9._/-]{1,128}")
"""An owner after normalising."""

_HEADER_NAME = r"^[a-z0-9!#$%&'*+.^_`|~-]+$"
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST: Final = 86_400.0
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


HeaderName = Annotated[str, Meta(pattern=_HEADER_NAME, max_length=256)]
HeaderNameOrNone = Annotated[str, Meta(pattern=f"^$|{_HEADER_NAME}", max_length=256)]
Owners = Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]
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
    """As if the client had named these, in this order."""

    owners: Owners


class Split(_Action, frozen=True, tag="split"):
    """Draw an owner for each request; each gets its share of the weights."""

    weights: Annotated[dict[str, Annotated[int, Meta(ge=0, le=1_000_000)]], Meta(min_length=1)]


class Fallback(_Action, frozen=True, tag="fallback"):
    """Go on with these, in this order."""

    owners: Owners


WhenAbsent = Pass | Refuse | Prefer | Split
WhenUnready = Refuse | Fallback
PassOrRefuse = Pass | Refuse


class ModelRule(_Part, frozen=True):
    """The rules for the models that a pattern matches; what is left out is the policy's own.

    `*` in the pattern also matches `/`. `allow` is who may serve them, whatever a client says.
    """

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    allow: Owners | None = None
    when_absent: WhenAbsent | None = None
    when_unknown: PassOrRefuse | None = None
    when_unready: WhenUnready | None = None
    when_truncated: PassOrRefuse | None = None


class Expression(_Part, frozen=True):
    """A condition on one label: its value is one of these or none of them, or it is there or not."""

    key: Annotated[str, Meta(min_length=1, max_length=317)]
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels meet it, as Kubernetes means it: `NotIn` also where the label is absent."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class Selector(_Part, frozen=True):
    """A Kubernetes label selector: all of it must be met."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[Expression, ...] = ()

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Whether an endpoint with these labels is meant."""
        equal = all(labels.get(key) == value for key, value in self.match_labels.items())
        return equal and all(expression.admits(labels) for expression in self.match_expressions)


class Route(_Part, frozen=True, rename=None, eq=False):
    """The endpoints of one model and owner, named by a selector, in place of those that are of this engine."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    owned_by: str
    selector: Selector


class Body(_Part, frozen=True):
    """`strip` takes the owner's keys from a JSON body that goes on.

    The rest are limits of FULL_DUPLEX_STREAMED, where Envoy's own do not hold: bytes held, seconds until they are decided.
    """

    strip: bool = False
    max_bytes: Annotated[int, Meta(ge=1)] = 20_971_520
    timeout: Duration = msgspec.field(default_factory=lambda: Duration(10))  # msgspec cannot write it into a schema


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
    body: Body = msgspec.field(default_factory=Body)
    promote: Promote = Promote()

    def normal(self, owner: str) -> str:
        """An owner as it is compared: trimmed, in lower case, its alias replaced; not checked."""
        owner = owner.strip().lower()
        return self.match.aliases.get(owner, owner)


def default_policy() -> PolicyConfig:
    """The policy of a process that was given none."""
    return PolicyConfig(api_version="owned-by/v1alpha1", kind="OwnedByPolicy")
