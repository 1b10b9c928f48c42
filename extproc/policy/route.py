# SPDX-License-Identifier: Apache-2.0
"""Which endpoints: owners in their order against the candidates, and what the policy says where none will do.

Every stage writes down how many endpoints it left.
"""

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from extproc.policy.candidates import Candidates, Group
from extproc.policy.config import PolicyConfig, Refuse, Route
from extproc.policy.rules import Rules, allowed, order_of, route_of, rules_of
from extproc.policy.types import (
    ANY,
    Decision,
    Endpoint,
    InferenceRequest,
    PassThrough,
    Reason,
    Reject,
    Restrict,
    Step,
    reject,
)

SHOWN = 128
"""How much of a client's own text is repeated to it, in characters."""


def route(
    request: InferenceRequest, models: tuple[str, ...], found: Candidates, policy: PolicyConfig, steps: list[Step]
) -> Decision:
    """The first owner of the order with a ready endpoint that serves a model, or what the policy says instead."""
    names = {request.model, *models} - {""}
    if policy.match.models == "any":
        models = ()
    rules = rules_of(policy, request.model)
    owners, reason = order_of(request, policy)
    if not owners and isinstance(rules.when_absent, Refuse) and not request.told:
        return owner_required(policy, steps)
    if (refused := forbidden(request, owners, rules, steps)) is not None:
        return refused
    if not owners and not models and rules.allow is None:
        return free(request, Reason.OWNER_ABSENT, found.group(ANY), steps)
    search = _Search(request, models, names, found, policy, rules, steps)
    if (decision := search.first(owners or (ANY,), reason)) is not None:
        return decision
    if not search.waiting:
        return _unknown(request, owners, models, names, found, policy, steps)
    if (decision := search.first(rules.fallback, Reason.OWNER_FALLBACK)) is not None:
        return decision
    return _not_ready(request, steps)


@dataclass
class _Search:
    """Who of an order of owners has a ready endpoint; `waiting` is whether one has endpoints, none of them ready.

    `models` is what the engines call the model, empty if it does not count; `names` all of its names.
    """

    request: InferenceRequest
    models: tuple[str, ...]
    names: Collection[str]
    found: Candidates
    policy: PolicyConfig
    rules: Rules
    steps: list[Step]
    waiting: bool = False

    def first(self, owners: tuple[str, ...], reason: Reason) -> Decision | None:
        """The decision for the first owner that will do, None if none does."""
        everything = self.found.group(ANY)
        prefill = None
        for owner in owners:
            if owner != ANY and not allowed(owner, self.rules):
                continue
            route = route_of(self.policy, self.names, owner) if owner != ANY else None
            of_owner = self._group(owner, route, ())
            if owner != ANY or self.rules.allow is not None:
                by = "routing" if route else "allowed" if owner == ANY else f"owner {owner}"
                self.steps.append(Step(by, len(everything.ready), len(of_owner.ready)))
            group = self._group(owner, route, self.models)
            if self.models:
                shown = ", ".join(self.models)[:SHOWN]
                self.steps.append(Step(f"model {shown}", len(of_owner.ready), len(group.ready)))
            if group.answers:
                return self._matched(owner, group, everything, reason)
            prefill = prefill or ((owner, group) if group.ready else None)
            self.waiting = self.waiting or group.known > 0
        # Of the last resort, the EPP may know what to do with it.
        return self._matched(*prefill, everything, reason) if prefill else None

    def _group(self, owner: str, route: Route | None, models: tuple[str, ...]) -> Group:
        """An owner's endpoints; `*` is everybody who is allowed."""
        if owner == ANY and self.rules.allow is not None:
            return allowed_group(self.found, self.policy, self.names, self.rules, models)
        return self.found.group(owner, models, route)

    def _matched(self, owner: str, group: Group, everything: Group, reason: Reason) -> Decision:
        request, steps = self.request, self.steps
        if owner != ANY:
            return _restrict(request, group.ready, reason, owner, steps)
        if len(group.ready) < len(everything.ready):
            narrowed = len(group.ready) < len(self.found.group(ANY, self.models).ready)
            why = Reason.OWNER_ALLOWED if narrowed else Reason.MODEL_MATCHED
            return _restrict(request, group.ready, why, owner if request.owners else "", steps)
        return free(request, Reason.OWNER_ANY if request.owners else Reason.OWNER_ABSENT, group, steps)


def allowed_group(
    found: Candidates, policy: PolicyConfig, names: Collection[str], rules: Rules, models: tuple[str, ...] = ()
) -> Group:
    """The endpoints of all who may serve a model, by their engine or by the routing entry that says who they are."""
    owners = sorted(rules.allow or ())
    return found.together(tuple((owner, route_of(policy, names, owner)) for owner in owners), models)


def forbidden(request: InferenceRequest, owners: tuple[str, ...], rules: Rules, steps: list[Step]) -> Reject | None:
    """A 403 if the policy allows none of the owners for this model."""
    if not owners or any(owner == ANY or allowed(owner, rules) for owner in owners):
        return None
    who = " or ".join(f"`{owner}`" for owner in owners)
    model = f" the model `{request.model[:SHOWN]}`" if request.model else " this request"
    message = f"{who} may not serve{model} here"
    return reject(Reason.REJECTED_BY_POLICY, message, request.param, tuple(steps))


def _unknown(  # noqa: PLR0913, PLR0917 - what a decision looks at
    request: InferenceRequest,
    owners: tuple[str, ...],
    models: tuple[str, ...],
    names: Collection[str],
    found: Candidates,
    policy: PolicyConfig,
    steps: list[Step],
) -> Decision:
    """No endpoint, ready or not, is what the request names."""
    rules = rules_of(policy, request.model)
    unlisted = bool(models) and found.listed.isdisjoint(models)
    everybody = None if rules.allow is None else allowed_group(found, policy, names, rules)
    if not owners or (not request.owners and unlisted):
        return _free_among(request, Reason.MODEL_UNKNOWN, found, everybody, steps)
    if unlisted and found.models_complete:
        if isinstance(policy.when_unknown_model, Refuse):
            message = f"no endpoint serves the model `{request.model[:SHOWN]}`"
            return reject(Reason.MODEL_NOT_FOUND, message, "model", tuple(steps))
        # The model is let through; the owner still holds, and so does what is said of that model.
        search = _Search(request, (), names, found, policy, rules, steps)
        decision = search.first(owners, Reason.MODEL_UNKNOWN)
        if isinstance(decision, Restrict | PassThrough):
            return msgspec.structs.replace(decision, reason=Reason.MODEL_UNKNOWN)
        if decision is not None or search.waiting:
            return decision or search.first(rules.fallback, Reason.OWNER_FALLBACK) or _not_ready(request, steps)
    if ANY in owners:
        reason = Reason.MODEL_UNKNOWN if request.model else Reason.OWNER_ANY
        return _free_among(request, reason, found, everybody, steps)
    if isinstance(rules.when_unknown, Refuse):
        if found.undecided:  # it may be the one that is asked for
            return _not_ready(request, steps)
        who = " or ".join(f"`{owner}`" for owner in owners)
        message = f"no endpoint is {_with_model(who, request)}"
        return reject(Reason.OWNER_NOT_FOUND, message, request.param, tuple(steps))
    return _free_among(request, Reason.OWNER_UNKNOWN, found, everybody, steps)


def _free_among(
    request: InferenceRequest, reason: Reason, found: Candidates, everybody: Group | None, steps: list[Step]
) -> Decision:
    """Let it pass, to whoever is allowed (None: all are)."""
    if everybody is None:
        return free(request, reason, found.group(ANY), steps)
    return _restrict(request, everybody.ready, reason, "", steps)


def _not_ready(request: InferenceRequest, steps: list[Step]) -> Reject:
    message = f"no endpoint of {_wanted(request)} is ready"
    return reject(Reason.NO_READY_ENDPOINT, message, request.param, tuple(steps))


def free(request: InferenceRequest, reason: Reason, group: Group, steps: list[Step]) -> Decision:
    """Let it pass; where the answer names the destination, any endpoint that there is will do."""
    if not request.scope.must_choose:
        return PassThrough(reason, tuple(steps))
    return _restrict(request, group.ready, reason, "", steps)


def _restrict(
    request: InferenceRequest, endpoints: tuple[Endpoint, ...], reason: Reason, owner: str, steps: list[Step]
) -> Decision:
    """These endpoints, as far as an earlier filter allows them."""
    hint = request.scope.hint
    if hint.endpoints is not None:
        allowed = tuple(endpoint for endpoint in endpoints if hint.admits(endpoint))
        steps.append(Step("subset hint", len(endpoints), len(allowed)))
        endpoints = allowed
    if not endpoints:
        return reject(Reason.NO_READY_ENDPOINT, "no endpoint is ready for this request", "", tuple(steps))
    return Restrict(endpoints, reason, owner, tuple(steps))


def owner_required(policy: PolicyConfig, steps: list[Step]) -> Reject:
    """A 400 that says where an owner may be named."""
    sources = policy.sources
    named = [*(f"header `{name}`" for name in sources.headers[:1])]
    named += [f"query `{name}`" for name in sources.query[:1]] + [f"body `{name}`" for name in sources.body[:1]]
    param = next(iter((*sources.headers, *sources.query, *sources.body)), "")
    return reject(Reason.OWNER_REQUIRED, f"say who shall serve it: {', '.join(named)}", param, tuple(steps))


def _wanted(request: InferenceRequest) -> str:
    """What was asked for, in words: `sglang` or `vllm` with the model `x`."""
    return _with_model(" or ".join(f"`{owner}`" for owner in request.owners if owner != ANY), request) or "the pool"


def _with_model(who: str, request: InferenceRequest) -> str:
    model = f"the model `{request.model[:SHOWN]}`" if request.model else ""
    return " with ".join(part for part in (who, model) if part)
