# SPDX-License-Identifier: Apache-2.0
"""decide(request, snapshot, policy) -> Decision: the one public verb of the policy.

The order is design section 3's: pool, the model's rules, owners, models, readiness, the whens, the hint of an earlier
filter. Every stage writes down how many endpoints it left, so that `explain` shows what was done here and not what might
have been.
"""

from urllib.parse import unquote

from extproc.policy.candidates import Candidates, candidates
from extproc.policy.config import Pass, PolicyConfig, Prefer, Refuse, Split
from extproc.policy.route import SHOWN, forbidden, free, owner_required, route
from extproc.policy.rules import order_of, rules_of
from extproc.policy.types import (
    ANY,
    Answer,
    Decision,
    InferenceRequest,
    PassThrough,
    Pool,
    Reason,
    Reject,
    Snapshot,
    Step,
    reject,
)

_MODELS = "/v1/models"


def decide(request: InferenceRequest, snapshot: Snapshot, policy: PolicyConfig) -> Decision:
    """Where the request may go. Total: every request, snapshot and policy have an answer."""
    steps: list[Step] = []
    if request.passed is not None:
        return PassThrough(request.passed, (Step("passed by an earlier filter", 0, 0),))
    pool = _pool(request, snapshot, steps)
    if isinstance(pool, Reject | PassThrough):
        return _unpooled(request, policy, steps) or pool
    found = candidates(snapshot, policy, pool, decoding=request.scope.destination)
    everything = found.group(ANY)
    steps.append(Step(f"pool {pool or 'union'}", everything.known, len(everything.ready)))
    if not request.interpreted:
        return free(request, Reason.PATH_NOT_INTERPRETED, everything, steps)
    if (malformed := _malformed(request, steps)) is not None:
        return malformed
    if lists_models(request) and (listing := _models(request, found, policy, steps)) is not None:
        return listing
    if (refused := _truncated(request, found, policy, steps)) is not None:
        return refused
    return route(request, engine_models(request, snapshot, pool), found, policy, steps)


def engine_models(request: InferenceRequest, snapshot: Snapshot, pool: Pool | None) -> tuple[str, ...]:
    """What the request's model is to the engines of the pool (None: of all pools): several where the EPP draws one.

    Empty if the request names no model. A model that the rewrite header names is final (facts/epp.md 1.8).
    """
    model = request.model
    if not model or request.fixed_model or not snapshot.rewrites:
        return (model,) if model else ()
    pools = (pool,) if pool else snapshot.pools
    named = [snapshot.rewrites[each].of(model) if each in snapshot.rewrites else (model,) for each in pools]
    return tuple(dict.fromkeys(name for names in named for name in names))


def asks_body(request: InferenceRequest, snapshot: Snapshot, policy: PolicyConfig) -> bool:
    """Whether the body could change the decision on what the headers alone said.

    It could if it may name the owner, or if the model is not settled and makes a difference: the endpoints, ready or
    not, differ in their models, or a model that none of them lists would be refused, or it is to be named in a header.
    """
    pool = _pool(request, snapshot, [])
    if isinstance(pool, Reject) or request.malformed or not request.interpreted:
        return False
    names_owner, names_model = promoted(request, policy)
    unnamed_owner = not request.owners and bool(policy.sources.body)
    unnamed_model = not request.fixed_model and not request.header_model
    if isinstance(pool, PassThrough):
        named_by_model = unnamed_owner or (bool(policy.models) and unnamed_model)
        return (names_owner and named_by_model) or (names_model and unnamed_model)
    if lists_models(request):
        return False
    if unnamed_owner:
        return True
    if not unnamed_model:
        return False
    if policy.models or policy.routing:  # what is said of it may decide
        return True
    if not request.owners and isinstance(policy.when_absent, Refuse):
        return False
    found = candidates(snapshot, policy, pool, decoding=request.scope.destination)
    # An owner that the policy has chosen gives way where nobody serves the model; one that is named does not.
    chosen = not request.owners and isinstance(policy.when_absent, Prefer | Split)
    return names_model or _model_matters(found, policy) or (chosen and found.any_listed)


def promoted(request: InferenceRequest, policy: PolicyConfig) -> tuple[bool, bool]:
    """Whether the owner, and whether the model, are to be named in a header of the request."""
    if not request.interpreted or request.scope.foreign:
        return False, False
    every = request.scope.promotes
    return every or bool(policy.promote.header), every or bool(policy.promote.model)


def reroutes(request: InferenceRequest, policy: PolicyConfig) -> bool:
    """Whether the route is to be chosen anew by the headers that name owner and model."""
    return any(promoted(request, policy)) and (request.scope.promotes or policy.promote.reroute)


def _unpooled(request: InferenceRequest, policy: PolicyConfig, steps: list[Step]) -> Reject | None:
    """What is refused where no pool is known: an owner or a model that is to be named in a header, and is not there."""
    if not request.scope.promotes or not request.interpreted:
        return None
    if (malformed := _malformed(request, steps)) is not None:
        return malformed
    unseen_owner = not request.owners and bool(policy.sources.body)
    rules = rules_of(policy, request.model)
    if request.truncated and isinstance(rules.when_truncated, Refuse) and (unseen_owner or not request.model):
        return _cut(policy, steps, unseen_owner=unseen_owner)
    if not request.owners and isinstance(rules.when_absent, Refuse):
        return owner_required(policy, steps)
    owners, _ = order_of(request, policy)
    return forbidden(request, owners, rules, steps) if owners else None


def _malformed(request: InferenceRequest, steps: list[Step]) -> Reject | None:
    if request.malformed is None or not request.interpreted:
        return None
    return reject(Reason.OWNER_MALFORMED, request.malformed.message, request.malformed.param, tuple(steps))


def _pool(request: InferenceRequest, snapshot: Snapshot, steps: list[Step]) -> Pool | Reject | PassThrough | None:
    """The pool that the request is for; None is the union of all."""
    pool = request.scope.pool
    if pool is not None:
        if pool in snapshot.endpoints:
            return pool
        steps.append(Step(f"pool {pool}", 0, 0))
        return reject(Reason.POOL_UNKNOWN, "the pool of this route is not known", steps=tuple(steps))
    if request.scope.foreign:
        steps.append(Step("no pool", 0, 0))
        return PassThrough(Reason.NOT_A_POOL, tuple(steps))
    if len(snapshot.pools) == 1:
        return snapshot.pools[0]
    if request.scope.union and snapshot.pools:
        return None
    steps.append(Step("pool", 0, 0))
    if request.scope.must_choose:
        return reject(Reason.POOL_UNKNOWN, "no pool is known for this route", steps=tuple(steps))
    return PassThrough(Reason.POOL_UNKNOWN, tuple(steps))


def _model_matters(found: Candidates, policy: PolicyConfig) -> bool:
    if policy.match.models == "any" or not found.any_listed:
        return False
    return found.differ or isinstance(policy.when_unknown_model, Refuse)


def _truncated(
    request: InferenceRequest, found: Candidates, policy: PolicyConfig, steps: list[Step]
) -> Decision | None:
    """Only a prefix was seen, and what would decide is not in it."""
    unseen_owner = not request.owners and bool(policy.sources.body)
    _, names_model = promoted(request, policy)
    unseen_model = not request.model and (
        names_model or bool(policy.models or policy.routing) or _model_matters(found, policy)
    )
    if (
        not request.truncated
        or isinstance(rules_of(policy, request.model).when_truncated, Pass)
        or not (unseen_owner or unseen_model)
    ):
        return None
    return _cut(policy, steps, unseen_owner=unseen_owner)


def _cut(policy: PolicyConfig, steps: list[Step], *, unseen_owner: bool) -> Reject:
    message = "the body is too large to find who shall serve it: name it in a header or in the query"
    return reject(Reason.BODY_TRUNCATED, message, policy.sources.body[0] if unseen_owner else "model", tuple(steps))


def lists_models(request: InferenceRequest) -> bool:
    """Whether it asks for `/v1/models` or one of them."""
    return request.method in ("GET", "HEAD") and (request.path + "/").startswith(_MODELS + "/")


def _models(
    request: InferenceRequest, found: Candidates, policy: PolicyConfig, steps: list[Step]
) -> Answer | Reject | None:
    """The answer to `/v1/models` and `/v1/models/{id}`; None where no list is known: an engine then answers."""
    if not found.any_listed:
        return None
    path = request.path.rstrip("/")
    entries = found.catalogue
    if request.owners and ANY not in request.owners:
        routed = {policy.normal(route.owned_by) for route in policy.routing}
        known = [owner for owner in request.owners if found.knows(owner) or owner in routed]
        if known or isinstance(policy.when_unknown, Pass):
            entries = tuple(e for e in entries if not known or e.owned_by in known)
        else:
            message = f"no endpoint is {' or '.join(f'`{owner}`' for owner in request.owners)}"
            return reject(Reason.OWNER_NOT_FOUND, message, request.param, tuple(steps))
    steps.append(Step("models", len(found.catalogue), len(entries)))
    if path == _MODELS:
        return Answer(entries, steps=tuple(steps))
    wanted = unquote(path.removeprefix(_MODELS + "/"))
    wanted = policy.model_aliases.get(wanted, wanted)
    one = tuple(entry for entry in entries if entry.id == wanted)[:1]
    if not one:
        message = f"no endpoint serves the model `{wanted[:SHOWN]}`"
        return reject(Reason.MODEL_NOT_FOUND, message, "model", tuple(steps))
    return Answer(one, single=True, steps=tuple(steps))
