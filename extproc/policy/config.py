# SPDX-License-Identifier: Apache-2.0
"""The policy: the rules that an operator tunes while the process runs (design section 5).

The schema is strict: a key that it does not have is refused, never ignored. What is said of each key here is what editors
show (`owned-by validate --schema`) and what stands in docs/reference/policy.md.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

OWNER: Final = re.compile(r"[a-z0-9._/-]{1,128}")
"""An owner after normalising."""

_END: Final = r"$(?!\n)"
"""The end of a text, in Python (where `$` also stands before a last line feed) and in a browser (where it does not) alike."""
_HEADER_NAME: Final = r"^[a-z0-9!#$%&'*+.^_`|~-]+" + _END
_HEADER_WORDS: Final = "Expected the name of a header, in lower case"
WORDS: Final = "words"
"""The key of a pattern's `extra` for what is said where a text does not match it."""
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST: Final = 86_400.0
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


def _about(text: str) -> Meta:
    """What a key is for: one sentence for operators."""
    return Meta(description=text)


def _matching(pattern: str, words: str, **rules: Any) -> Meta:
    """A text that matches a pattern; the words are for who wrote one that does not."""
    return Meta(pattern=pattern, extra={WORDS: words}, **rules)


HeaderName = Annotated[str, _matching(_HEADER_NAME, _HEADER_WORDS, max_length=256)]
HeaderNameOrNone = Annotated[str, _matching(f"^{_END}|{_HEADER_NAME}", _HEADER_WORDS, max_length=256)]
Owners = Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]
FieldName = Annotated[str, Meta(min_length=1, max_length=256)]
PathPattern = Annotated[str, _matching("^/", "Expected a path, which begins with /")]


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

    def __str__(self) -> str:
        left, text = round(self * 1000), ""
        for unit, seconds in reversed(_UNITS.items()):
            count, left = divmod(left, round(seconds * 1000))
            text += f"{count}{unit}" if count else ""
        return text or "0s"


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Sources(_Part, frozen=True):
    """Where owner and model are read from, each list in its order."""

    headers: Annotated[tuple[HeaderName, ...], _about("Headers that name the owner, in this order.")] = ("x-owned-by",)
    query: Annotated[
        tuple[FieldName, ...], _about("Query parameters that name the owner where no header does, in this order.")
    ] = ("owned_by", "engine", "inference_server")
    body: Annotated[
        tuple[FieldName, ...],
        _about(
            "Fields of a JSON or form body that name the owner where neither header nor query does, in this order; "
            "where there are none, no body is read for it."
        ),
    ] = ("owned_by", "engine", "inference_server")
    model_headers: Annotated[
        tuple[HeaderName, ...],
        _about("Headers that name the model, in this order, so that no body need be read for it."),
    ] = ("x-llm-d-model-name-rewrite", "x-gateway-model-name")


class Match(_Part, frozen=True):
    """How an endpoint's engine and models are known."""

    engine_from: Annotated[
        tuple[Literal["label", "probe"], ...],
        _about("What says an endpoint's engine, in this order: its labels, or its own answer when it is probed."),
    ] = ("label",)
    owned_by_labels: Annotated[
        tuple[str, ...], _about("Labels that name an endpoint's engine; the first that it has counts.")
    ] = ("llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type", "model.aibrix.ai/engine")
    unlabeled_as: Annotated[
        str, _about('The engine of an endpoint where nothing else says it; "" is none that a client can name.')
    ] = "vllm"
    models: Annotated[
        Literal["known", "any"],
        _about("known: an endpoint whose models are known must serve the request's; any: models do not matter."),
    ] = "known"
    model_labels: Annotated[
        tuple[str, ...], _about("Labels that name the models of an endpoint whose list of models is not known.")
    ] = ()
    aliases: Annotated[
        dict[str, str],
        _about(
            "Other names of owners, each with the name that counts, in requests, labels and this document alike; "
            "they take the place of the default ones."
        ),
    ] = msgspec.field(default_factory=lambda: {"trtllm": "trtllm-serve", "trt-llm": "trtllm-serve"})


class _Action(_Part, frozen=True, tag_field="action"):
    pass


class Pass(_Action, frozen=True, tag="passthrough"):
    """Go on as if nothing had been said."""


class Refuse(_Action, frozen=True, tag="reject"):
    """Answer with an error."""


class Prefer(_Action, frozen=True, tag="prefer"):
    """As if the client had named these, in this order."""

    owners: Annotated[Owners, _about("The owners, the first with a ready endpoint counts; a last `*` is anything.")]


class Split(_Action, frozen=True, tag="split"):
    """Draw an owner for each request; each gets its share of the weights."""

    weights: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=1_000_000)]],
        Meta(min_length=1),
        _about("The owners, each with its share of the requests."),
    ]


class Fallback(_Action, frozen=True, tag="fallback"):
    """Go on with these, in this order."""

    owners: Annotated[Owners, _about("The owners, the first with a ready endpoint counts; a last `*` is anything.")]


WhenAbsent = Pass | Refuse | Prefer | Split
WhenUnready = Refuse | Fallback
PassOrRefuse = Pass | Refuse


class ModelRule(_Part, frozen=True):
    """The rules for the models that a pattern matches; what is left out is the policy's own."""

    model: Annotated[
        str, Meta(min_length=1, max_length=256), _about("The pattern of a model's name; `*` also matches `/`.")
    ]
    allow: Annotated[
        Owners | None,
        _about("Who may serve the model: any other owner is refused, and does not count where none is named."),
    ] = None
    when_absent: Annotated[WhenAbsent | None, _about("`whenAbsent` for this model.")] = None
    when_unknown: Annotated[PassOrRefuse | None, _about("`whenUnknown` for this model.")] = None
    when_unready: Annotated[WhenUnready | None, _about("`whenUnready` for this model.")] = None
    when_truncated: Annotated[PassOrRefuse | None, _about("`whenTruncated` for this model.")] = None


class Expression(_Part, frozen=True, omit_defaults=True):
    """A condition on one label: its value is one of these or none of them, or it is there or not."""

    key: Annotated[str, Meta(min_length=1, max_length=317), _about("The label's name.")]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist"],
        _about("What is asked of it; NotIn also holds where the label is absent."),
    ]
    values: Annotated[tuple[str, ...], _about("The values of In and NotIn.")] = ()

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


class Selector(_Part, frozen=True, omit_defaults=True):
    """A Kubernetes label selector: all of it must be met."""

    match_labels: Annotated[dict[str, str], _about("Labels that an endpoint must have, with these values.")] = {}
    match_expressions: Annotated[tuple[Expression, ...], _about("Conditions on labels, all of which must hold.")] = ()

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Whether an endpoint with these labels is meant."""
        equal = all(labels.get(key) == value for key, value in self.match_labels.items())
        return equal and all(expression.admits(labels) for expression in self.match_expressions)


class Route(_Part, frozen=True, rename=None, eq=False):
    """The endpoints of one model and owner, named by a selector, in place of those that are of this engine."""

    model: Annotated[
        str,
        Meta(min_length=1, max_length=256),
        _about("The model, after `modelAliases`, or what a rewrite makes of it."),
    ]
    owned_by: Annotated[str, _about("The owner whose endpoints these are.")]
    selector: Annotated[Selector, _about("Which endpoints of the pool they are.")]


class Body(_Part, frozen=True):
    """What is done with bodies; the limits are for FULL_DUPLEX_STREAMED, where Envoy's own do not hold."""

    strip: Annotated[bool, _about("Whether the owner's fields are taken out of a JSON body that goes on.")] = False
    max_bytes: Annotated[
        int, Meta(ge=1), _about("How many bytes of a streamed body are held until it is decided; more is a 413.")
    ] = 20_971_520
    # msgspec cannot write a default of this type into a schema: a factory's it leaves out
    timeout: Annotated[Duration, _about("How long a streamed body may take until it is decided; longer is a 408.")] = (
        msgspec.field(default_factory=lambda: Duration(10))
    )


class Promote(_Part, frozen=True):
    """The request headers in which owner and model are named.

    The `header` attachment names both and has the route chosen anew in any case, under names of its own where none are given.
    """

    header: Annotated[HeaderNameOrNone, _about('The request header in which the owner is named; "" is none.')] = ""
    model: Annotated[HeaderNameOrNone, _about('The request header in which the model is named; "" is none.')] = ""
    reroute: Annotated[bool, _about("Whether the route is chosen anew by these headers.")] = False

    @property
    def owner_header(self) -> str:
        """Where the `header` attachment names the owner."""
        return self.header or "x-owned-by"

    @property
    def model_header(self) -> str:
        """Where the `header` attachment names the model."""
        return self.model or "x-gateway-model-name"


class PolicyConfig(_Part, frozen=True, eq=False):  # compared by identity: what is derived from it can be kept by it
    """The rules that an operator tunes while the server runs; what is left out keeps its default."""

    api_version: Annotated[Literal["owned-by/v1alpha1"], _about("The version of this format.")]
    kind: Annotated[Literal["OwnedByPolicy"], _about("What this document is.")]
    paths: Annotated[
        tuple[PathPattern, ...], _about("The paths that the policy is for, `*` also matching `/`; others pass.")
    ] = ("/v1/*",)
    sources: Annotated[Sources, _about("Where owner and model are read from.")] = Sources()
    match: Annotated[Match, _about("How an endpoint's engine and models are known.")] = Match()
    model_aliases: Annotated[dict[str, str], _about("Other names of models, each with what the engines call it.")] = {}
    destinations: Annotated[
        int, Meta(ge=1, le=64), _about("How many endpoints a destination names, one for each attempt of Envoy's.")
    ] = 3
    guard: Annotated[bool, _about("Whether `before` also writes a destination, for an EPP that is not there.")] = True
    when_absent: Annotated[WhenAbsent, _about("What becomes of a request that names no owner.")] = Pass()
    when_unknown: Annotated[
        PassOrRefuse, _about("What becomes of a request if no endpoint, ready or not, is of an owner that it names.")
    ] = Refuse()
    when_unknown_model: Annotated[
        PassOrRefuse, _about("What becomes of a request that names an owner if no endpoint serves its model.")
    ] = Refuse()
    when_unready: Annotated[
        WhenUnready, _about("What becomes of a request if endpoints are of the owner, but none of them is ready.")
    ] = Refuse()
    when_truncated: Annotated[
        PassOrRefuse,
        _about("What becomes of a request if what would decide is not in the part of its body that was seen."),
    ] = Pass()
    models: Annotated[
        tuple[ModelRule, ...],
        _about("Rules for some models; the first that matches holds, and what it leaves out is the policy's own."),
    ] = ()
    routing: Annotated[
        tuple[Route, ...], _about("Who is an owner's endpoint for one model: by these labels and not by its engine.")
    ] = ()
    body: Annotated[Body, _about("What is done with bodies.")] = msgspec.field(default_factory=Body)
    promote: Annotated[Promote, _about("Request headers in which owner and model are named, for routes to match.")] = (
        Promote()
    )

    def normal(self, owner: str) -> str:
        """An owner as it is compared: trimmed, in lower case, its alias replaced; not checked."""
        owner = owner.strip().lower()
        return self.match.aliases.get(owner, owner)


def default_policy() -> PolicyConfig:
    """The policy of a process that was given none."""
    return PolicyConfig(api_version="owned-by/v1alpha1", kind="OwnedByPolicy")
