# SPDX-License-Identifier: Apache-2.0
"""The nouns that every room shares: what there is, what is asked, what was decided.

All of them are frozen values. Expected outcomes (an unknown owner, a malformed header) are values too; an exception is
for the operator or the programmer.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

ANY: Final = "*"
"""The owner that every endpoint matches."""
ROLE_LABEL: Final = "llm-d.ai/role"
"""The pod label that says an endpoint's part in prefill/decode disaggregation (facts/gateways.md 7)."""


class Pool(msgspec.Struct, frozen=True):
    """The name of an InferencePool."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Model(msgspec.Struct, frozen=True):
    """A model as an engine lists it: `created` in seconds since 1970, `max_model_len` in tokens, None if unknown."""

    id: str
    created: int | None = None
    max_model_len: int | None = None


class Endpoint(msgspec.Struct, frozen=True):
    """One model server at one address and port.

    `owned_by` is what the server says of itself ("" if nobody asks it or it gives no answer, None until it is asked for the
    first time and that has ended); `models` is None while its list is unknown and empty when it serves none; `role` is its
    part in prefill/decode disaggregation ("" if it has none). `uid` tells a pod from one that had its name and address
    before.
    """

    name: str
    namespace: str
    address: str
    port: int
    labels: Mapping[str, str] = {}
    role: str = ""
    owned_by: str | None = ""
    models: tuple[Model, ...] | None = None
    ready: bool = True
    uid: str = ""

    @property
    def destination(self) -> str:
        """`ip:port`, an IPv6 address in brackets: the form that Envoy compares with its own, to the letter."""
        return f"[{self.address}]:{self.port}" if self.is_ipv6 else f"{self.address}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        """Whether the address is an IPv6 one: the llm-d EPP never matches those in a subset hint (facts/epp.md 1.1)."""
        return ":" in self.address

    @property
    def decodes(self) -> bool:
        """Whether it can answer a request by itself: no role, `decode`, `both`, or a role that includes decoding."""
        return self.role in ("", "both") or "decode" in self.role.split("-")


class Rewrites(msgspec.Struct, frozen=True):
    """What the EPP makes of a model's name before it asks an engine for it (facts/epp.md 1.8).

    `exact` maps a name to the names that may take its place, drawn by weight; `otherwise` is for every name that has no
    entry (empty: it stays as it is).
    """

    exact: Mapping[str, tuple[str, ...]] = {}
    otherwise: tuple[str, ...] = ()

    def of(self, model: str) -> tuple[str, ...]:
        """The names that `model` may become, never none."""
        return self.exact.get(model) or self.otherwise or (model,)


class Snapshot(msgspec.Struct, frozen=True, eq=False):
    """What the cluster looks like at one moment; replaced as a whole, never changed, compared by identity.

    `generation` grows by one with each replacement. `endpoints` has an entry for each of `pools`, ready or not; `rewrites`
    only for those that have any.
    `memo` holds what is derived from it, filled on first use (see candidates.py), so that it goes when the snapshot goes;
    `former` is the memo of the snapshot before, from which what has not changed need not be derived again.
    """

    generation: int = 0
    pools: tuple[Pool, ...] = ()
    endpoints: Mapping[Pool, tuple[Endpoint, ...]] = {}
    rewrites: Mapping[Pool, Rewrites] = {}
    memo: dict[Any, Any] = msgspec.field(default_factory=dict)
    former: Mapping[Any, Any] = {}


class SubsetHint(msgspec.Struct, frozen=True):
    """The endpoints that an earlier filter allows, as the light EPP reads them: `ip` (all its ports) or `ip:port`.

    None means that no hint was given; an empty set means that nothing is allowed.
    """

    endpoints: frozenset[str] | None = None

    def admits(self, endpoint: Endpoint) -> bool:
        """Whether the hint allows this endpoint."""
        if self.endpoints is None:
            return True
        return endpoint.destination in self.endpoints or endpoint.address in self.endpoints


class Scope(msgspec.Struct, frozen=True):
    """Where a request stands before its content is looked at: what the gateway's configuration says of its stream.

    `pool` is the pool that was named, None if none was; then `union` allows all watched pools as one. `foreign` says that
    the route leads to something that is no pool. `destination` says that the answer names the destination itself: then
    only endpoints that can decode count, and passing through means any of them, unless somebody before us has chosen
    (`chosen`): then it means theirs. `promotes` says that owner and model are to be named in headers, whatever is decided.
    `hint` is what an earlier filter allows.
    """

    pool: Pool | None = None
    union: bool = False
    foreign: bool = False
    destination: bool = False
    chosen: bool = False
    promotes: bool = False
    hint: SubsetHint = SubsetHint()

    @property
    def must_choose(self) -> bool:
        """Whether an answer without a destination would leave the request without one."""
        return self.destination and not self.chosen


class Malformed(msgspec.Struct, frozen=True):
    """A field that names an owner in a way that cannot be read: which field, and what is wrong with it."""

    param: str
    message: str


class InferenceRequest(msgspec.Struct, frozen=True):
    """What a request asks for, normalised.

    `owners` is the order of preference (empty: none named; `*`: anything); `param` is the field that named it. `model` is
    what the engines call the model ("" if none was named). `truncated` says that only a prefix of the body was seen.
    `mismatch` says that the body's model differs from the one in the gateway's header. `path` has no query; `interpreted` says
    that the policy is for it.
    `header_model` is the model that a header named, before aliases; `fixed_model` that the header decides and not the body.
    `told` says that a filter of ours before this one has decided, `passed` why it let the request pass, None if it did not.
    `drawn` is the order of
    preference that the policy's `split` has drawn for a request that names no owner.
    """

    scope: Scope
    method: str
    path: str
    owners: tuple[str, ...] = ()
    param: str = ""
    model: str = ""
    interpreted: bool = True
    header_model: str = ""
    fixed_model: bool = False
    truncated: bool = False
    mismatch: bool = False
    malformed: Malformed | None = None
    told: bool = False
    passed: "Reason | None" = None
    drawn: tuple[str, ...] = ()


class Reason(StrEnum):
    """Why a request went where it went: the same word in header, log, metric, metadata and docs."""

    # the answer narrows the pool
    OWNER_MATCHED = "owner-matched"
    OWNER_PREFERRED = "owner-preferred"
    OWNER_DRAWN = "owner-drawn"
    OWNER_FALLBACK = "owner-fallback"
    OWNER_ALLOWED = "owner-allowed"
    MODEL_MATCHED = "model-matched"
    # the request passes as it came
    OWNER_ABSENT = "owner-absent"
    OWNER_ANY = "owner-any"
    OWNER_UNKNOWN = "owner-unknown"
    MODEL_UNKNOWN = "model-unknown"
    PATH_NOT_INTERPRETED = "path-not-interpreted"
    NOT_A_POOL = "not-a-pool"
    # the answer narrows the pool, but the EPP behind us cannot follow it (facts/epp.md 1.1)
    HINT_WITHOUT_BODY = "hint-without-body"
    HINT_IPV6 = "hint-ipv6"
    # we answer
    MODELS_LISTED = "models-listed"
    OWNER_MALFORMED = "owner-malformed"
    OWNER_REQUIRED = "owner-required"
    MODEL_REQUIRED = "model-required"
    REJECTED_BY_POLICY = "rejected-by-policy"
    OWNER_NOT_FOUND = "owner-not-found"
    MODEL_NOT_FOUND = "model-not-found"
    BODY_TIMEOUT = "body-timeout"
    BODY_TRUNCATED = "body-truncated"
    BODY_TOO_LARGE = "body-too-large"
    NO_READY_ENDPOINT = "no-ready-endpoint"
    # 503 when the pool was named or a destination is to be, else passed through
    POOL_UNKNOWN = "pool-unknown"


STATUS: Final[Mapping[Reason, int]] = {
    Reason.OWNER_MALFORMED: 400,
    Reason.OWNER_REQUIRED: 400,
    Reason.MODEL_REQUIRED: 400,
    Reason.REJECTED_BY_POLICY: 403,
    Reason.OWNER_NOT_FOUND: 404,
    Reason.MODEL_NOT_FOUND: 404,
    Reason.BODY_TIMEOUT: 408,
    Reason.BODY_TRUNCATED: 413,
    Reason.BODY_TOO_LARGE: 413,
    Reason.NO_READY_ENDPOINT: 503,
    Reason.POOL_UNKNOWN: 503,
}
"""The HTTP status of each reason for which a request is refused."""


class Meaning(NamedTuple):
    """What a reason says, in one sentence, and the decisions that it is given for, as logs and metrics name them."""

    text: str
    decisions: tuple[str, ...]


_RESTRICT: Final = ("restrict",)
_FREE: Final = ("passthrough", "restrict")
"""The request passes; an answer that names the destination itself names every endpoint that will do."""
_REJECT: Final = ("reject",)
MEANINGS: Final[Mapping[Reason, Meaning]] = {
    Reason.OWNER_MATCHED: Meaning("An owner that the client names has a ready endpoint.", _RESTRICT),
    Reason.OWNER_PREFERRED: Meaning("The client names nobody; an owner of `prefer` has a ready endpoint.", _RESTRICT),
    Reason.OWNER_DRAWN: Meaning("The client names nobody; `split` has drawn the owner.", _RESTRICT),
    Reason.OWNER_FALLBACK: Meaning("Nothing that is asked for is ready; an owner of `fallback` is.", _RESTRICT),
    Reason.OWNER_ALLOWED: Meaning("Anybody will do; `allow` says that only some may serve the model.", _RESTRICT),
    Reason.MODEL_MATCHED: Meaning("Anybody will do; only some endpoints serve the model.", _RESTRICT),
    Reason.OWNER_ABSENT: Meaning("The client names nobody; every endpoint will do.", _FREE),
    Reason.OWNER_ANY: Meaning("The client names `*`; every endpoint will do.", _FREE),
    Reason.OWNER_UNKNOWN: Meaning("No endpoint is of the owner; `whenUnknown` lets the request pass.", _FREE),
    Reason.MODEL_UNKNOWN: Meaning("No endpoint serves the model, which may pass; an owner that is named holds.", _FREE),
    Reason.PATH_NOT_INTERPRETED: Meaning("The path is none of the policy's `paths`.", _FREE),
    Reason.NOT_A_POOL: Meaning("The route leads to something that is no pool.", ("passthrough",)),
    Reason.HINT_WITHOUT_BODY: Meaning(
        "The EPP picks at random, since there is no body, and not by our hint.", _RESTRICT
    ),
    Reason.HINT_IPV6: Meaning(
        "The EPP finds no IPv6 address in a hint, and there are no others: none is sent.", _RESTRICT
    ),
    Reason.MODELS_LISTED: Meaning("The models, or one of them, were asked for.", ("answer",)),
    Reason.OWNER_MALFORMED: Meaning("What names the owner cannot be read; `error.param` is the field.", _REJECT),
    Reason.OWNER_REQUIRED: Meaning("The client names nobody; `whenAbsent` refuses that.", _REJECT),
    Reason.MODEL_REQUIRED: Meaning("Kept for requests that name no model; nothing gives it yet.", _REJECT),
    Reason.REJECTED_BY_POLICY: Meaning(
        "Nobody that the client, `prefer` or `split` names may serve the model: `allow` says who may.", _REJECT
    ),
    Reason.OWNER_NOT_FOUND: Meaning("No endpoint, ready or not, is of the owner with this model.", _REJECT),
    Reason.MODEL_NOT_FOUND: Meaning("No endpoint, ready or not, serves the model.", _REJECT),
    Reason.BODY_TIMEOUT: Meaning("The body did not arrive within `body.timeout`.", _REJECT),
    Reason.BODY_TRUNCATED: Meaning(
        "The part of the body that was seen does not say what would decide; `whenTruncated` refuses that.", _REJECT
    ),
    Reason.BODY_TOO_LARGE: Meaning("The body is larger than `body.maxBytes`.", _REJECT),
    Reason.NO_READY_ENDPOINT: Meaning(
        "No endpoint is ready of those that are asked for and that `allow` and an earlier filter leave.", _REJECT
    ),
    Reason.POOL_UNKNOWN: Meaning(
        "No pool is known for the route; refused where one is named or a destination is due.", ("passthrough", "reject")
    ),
}
"""The reference of the reasons, in the enumeration's order."""


class Step(msgspec.Struct, frozen=True):
    """One step of a decision: what it looked at, and how many endpoints were eligible before and after it."""

    filter: str
    before: int
    after: int


class Restrict(msgspec.Struct, frozen=True):
    """Only these endpoints, all of them ready, never none; `owner` is the one that won, `*` or "" if it was none."""

    endpoints: tuple[Endpoint, ...]
    reason: Reason
    owner: str = ""
    steps: tuple[Step, ...] = ()


class PassThrough(msgspec.Struct, frozen=True):
    """As if we were not there."""

    reason: Reason
    steps: tuple[Step, ...] = ()


class Reject(msgspec.Struct, frozen=True):
    """Refused with an error of ours; `param` is the field at fault ("" if there is none)."""

    status: int
    reason: Reason
    message: str
    param: str = ""
    steps: tuple[Step, ...] = ()


class ModelEntry(msgspec.Struct, frozen=True):
    """One line of `/v1/models`: a model and who serves it; `max_model_len` is the least that its endpoints promise."""

    id: str
    owned_by: str
    created: int | None = None
    max_model_len: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """The model list, or with `single` the one model that was asked for."""

    models: tuple[ModelEntry, ...]
    single: bool = False
    reason: Reason = Reason.MODELS_LISTED
    steps: tuple[Step, ...] = ()


Decision = Restrict | PassThrough | Reject | Answer


def reject(reason: Reason, message: str, param: str = "", steps: tuple[Step, ...] = ()) -> Reject:
    """A refusal with the status that its reason has."""
    return Reject(STATUS[reason], reason, message, param, steps)
