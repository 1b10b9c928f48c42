# SPDX-License-Identifier: Apache-2.0
"""Decision -> Reply: how each attachment says it.

What is the same for every request with the same answer is serialised once and kept (`Replies`); what differs from request
to request, the destination, is a few bytes behind it.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from extproc.envoy import names
from extproc.envoy.answers import error, model_list
from extproc.envoy.binding import Attachment
from extproc.envoy.messages import Phase, go_on
from extproc.envoy.metadata import SHOWN, Pick, host, said, split
from extproc.policy.candidates import candidates
from extproc.policy.config import PolicyConfig
from extproc.policy.decide import decide, lists_models, promoted, reroutes
from extproc.policy.pick import NO_LOADS, Correction, Loads, Ranking, correct, filled
from extproc.policy.rules import allowed, order_of, rules_of
from extproc.policy.types import (
    ANY,
    Answer,
    Decision,
    Endpoint,
    InferenceRequest,
    PassThrough,
    Pool,
    Reason,
    Reject,
    Restrict,
    Snapshot,
)

KEPT: Final = 4096
"""How many replies are kept for one snapshot under one policy."""
NOT_OURS: Final = (Reason.PATH_NOT_INTERPRETED, Reason.NOT_A_POOL, Reason.POOL_UNKNOWN)
"""Reasons for which a request passes without having been looked at."""


class Turn(NamedTuple):
    """Whose turn it is to answer, and to which message; `bodiless` says that the request has no body at all."""

    attachment: Attachment
    phase: Phase = Phase.HEADERS
    bodiless: bool = False


class Moment(NamedTuple):
    """What differs between two requests with the same reply.

    `rotation` is a number that grows; `loads` the engines' latest figures; `pick` what stands as the destination when
    `after` has its turn, and `hosts` the further hosts that the EPP named, by header.
    """

    rotation: int = 0
    loads: Loads = NO_LOADS
    pick: Pick = Pick()
    hosts: Mapping[str, str] = {}


class Spoken(NamedTuple):
    """The bytes of a message, the destinations that it names (`ip:port,ip:port`), and what became of the EPP's pick."""

    text: bytes
    destination: str = ""
    correction: Correction | None = None


class Reply(msgspec.Struct, frozen=True):
    """A decision and how it is said: `prefix` and, where a destination is written, one that is chosen per request.

    `ranking` is what it is chosen from; `engines` says whose each address is, for `after`.
    """

    decision: Decision
    reason: Reason
    prefix: bytes
    ranking: Ranking | None = None
    owner: str = ""
    model: str = ""
    hinted: int = 0
    known: bool = False
    engines: Mapping[str, frozenset[str]] = {}

    @property
    def final(self) -> bool:
        """Whether it ends the request: no upstream is contacted and no body goes on."""
        return isinstance(self.decision, Reject | Answer)

    def message(self, turn: Turn, count: int, moment: Moment) -> Spoken:
        """The message for one request; it names `count` destinations, some again if there are fewer."""
        attachment, phase, _ = turn
        if attachment is Attachment.AFTER and not self.final:
            return self._corrected(phase, count, moment)
        if self.ranking is None:
            return Spoken(self.prefix)
        # The guard is for an EPP that is not there, who would have known the load: it is spread, not ranked.
        loads = moment.loads if attachment is Attachment.PICKER else NO_LOADS
        value = ",".join(filled(self.ranking.take(moment.rotation, count, loads), count))
        chosen = isinstance(self.decision, Restrict) and len(self.decision.endpoints)
        build = _destination if self.known else _destination.__wrapped__
        return Spoken(self.prefix + build(attachment, phase, value, self.owner, self.model, self.reason, chosen), value)

    def _corrected(self, phase: Phase, count: int, moment: Moment) -> Spoken:
        """`after`: what is eligible of the EPP's pick, then others of ours; header and metadata always say the same."""
        pick = moment.pick
        if self.ranking is None:
            change = _overwritten(phase, "", pick.text, ())
            if self.reason in NOT_OURS:
                return Spoken(self.prefix + change, pick.text)
            text, correction = pick.text, Correction.KEPT
        else:
            kept, correction = correct(pick.members, self.ranking.members)
            chosen = self.ranking.take(moment.rotation, count, moment.loads, kept)
            gone: tuple[str, ...] = ()
            if chosen[0] not in pick.members[:1]:
                gone = tuple(name for name, value in moment.hosts.items() if self._foreign(name, value, chosen[0]))
            text = ",".join(filled(chosen, count))
            change = _overwritten(phase, text, text, gone)
        return Spoken(self.prefix + change, text, correction if pick.by_epp else Correction.BYPASSED)

    def _foreign(self, name: str, value: str, destination: str) -> bool:
        """Whether a header of the EPP's names a host that is not known to be of the destination's engine.

        A rank to go on to (`x-data-parallel-host-port`) is one of the very pod that was picked.
        """
        address = host(destination)
        if name == names.DATA_PARALLEL:
            return any(host(entry) != address for entry in split(value))
        ours = self.engines.get(address, frozenset())
        return any(ours.isdisjoint(self.engines.get(host(entry), ())) for entry in split(value))


class Replies:
    """The replies of one snapshot under one policy, built on first use. Names that nobody serves are not kept."""

    def __init__(self, snapshot: Snapshot, policy: PolicyConfig) -> None:
        """Nothing is built yet."""
        self.snapshot = snapshot
        self.policy = policy
        self.heads: dict[Hashable, tuple[InferenceRequest, Reply | None]] = {}
        self._kept = lru_cache(maxsize=KEPT)(self._build_known)

    def keep_head(self, key: Hashable, settled: tuple[InferenceRequest, Reply | None]) -> None:
        """Remember what headers of known names come to; all is forgotten when there is too much of it."""
        if len(self.heads) >= KEPT:
            self.heads.clear()
        self.heads[key] = settled

    def reply(self, request: InferenceRequest, turn: Turn) -> Reply:
        """The reply to a request."""
        return self._kept(_essence(request), turn) if self.knows(request) else self._build(request, turn)

    def knows(self, request: InferenceRequest) -> bool:
        """Whether all that the request names is known, so that few requests can differ from it."""
        if request.malformed or request.truncated or request.passed or lists_models(request):
            return False
        scope, pool = request.scope, self.pool(request)
        if (pool and pool not in self.snapshot.endpoints) or not self.snapshot.pools:
            return False
        if scope.hint.endpoints is not None or scope.foreign or not request.interpreted:
            return False
        found = candidates(self.snapshot, self.policy, pool, decoding=scope.destination)
        model = request.model
        known = not model or model in found.listed or self._rewritten(pool, model)
        return known and all(map(found.knows, request.owners))

    def pool(self, request: InferenceRequest) -> Pool | None:
        """The pool that a request is for; None is all of them as one."""
        return request.scope.pool or (self.snapshot.pools[0] if len(self.snapshot.pools) == 1 else None)

    def _rewritten(self, pool: Pool | None, model: str) -> bool:
        return pool is not None and pool in self.snapshot.rewrites and model in self.snapshot.rewrites[pool].exact

    def _build(self, request: InferenceRequest, turn: Turn) -> Reply:
        return compose(decide(request, self.snapshot, self.policy), request, self, turn)

    def _build_known(self, request: InferenceRequest, turn: Turn) -> Reply:
        return msgspec.structs.replace(self._build(request, turn), known=True)


def compose(decision: Decision, request: InferenceRequest, world: Replies, turn: Turn) -> Reply:
    """How the attachment says the decision."""
    match decision:
        case Reject() as refusal:
            return Reply(refusal, refusal.reason, error(refusal, request))
        case Answer() as answer:
            return Reply(answer, answer.reason, model_list(answer, request))
        case PassThrough(reason):
            guard = None if turn.attachment is Attachment.AFTER else ""
            owner = _named(decision, request, world.policy)
            metadata = said(owner, request.model, reason, 0, guard)
            return Reply(decision, reason, _prefix(turn, metadata, request, owner, world.policy))
        case Restrict():
            return _restricted(decision, request, world, turn)


def _restricted(decision: Restrict, request: InferenceRequest, world: Replies, turn: Turn) -> Reply:
    policy, every = world.policy, decision.endpoints
    owner, model, reason = decision.owner, request.model[:SHOWN], decision.reason
    metadata: dict[str, object] = {}
    ranked: Sequence[Endpoint] = ()
    hint: list[str] = []
    engines: Mapping[str, frozenset[str]] = {}
    match turn.attachment:
        case Attachment.BEFORE:
            hint = [endpoint.destination for endpoint in every if not endpoint.is_ipv6]
            reason = Reason.HINT_IPV6 if not hint else Reason.HINT_WITHOUT_BODY if turn.bodiless else reason
            metadata = {names.SUBSET_NAMESPACE: {names.SUBSET: hint}} if hint else {}
            ranked = [endpoint for endpoint in every if endpoint.decodes] if policy.guard else ()
        case Attachment.AFTER:
            ranked = every
            engines = candidates(world.snapshot, policy, world.pool(request), decoding=False).engines
        case Attachment.PICKER:
            ranked = every
    if turn.attachment is Attachment.AFTER:  # the guard stays what `before` said
        metadata |= said(owner, model, reason, len(every), None)
    elif not ranked:  # else it stands beside the destination, see `_destination`
        metadata |= said(owner, model, reason, len(every))
    return Reply(
        decision,
        reason,
        _prefix(turn, metadata, request, _named(decision, request, policy), policy),
        Ranking([endpoint.destination for endpoint in ranked]) if ranked else None,
        owner,
        model,
        len(hint),
        engines=engines,
    )


def _named(decision: Restrict | PassThrough, request: InferenceRequest, policy: PolicyConfig) -> str:
    """The owner that a header may name: the one that won, else the one that is asked for where nobody can say better."""
    if isinstance(decision, Restrict) and decision.owner:
        return "" if decision.owner == ANY else decision.owner
    if decision.reason in (Reason.OWNER_UNKNOWN, Reason.POOL_UNKNOWN):
        owners, _ = order_of(request, policy)
        rules = rules_of(policy, request.model)
        return next((owner for owner in owners if owner != ANY and allowed(owner, rules)), "")
    return ""


def _prefix(
    turn: Turn, metadata: Mapping[str, object], request: InferenceRequest, owner: str, policy: PolicyConfig
) -> bytes:
    """Go on, without what only a gateway may say, and with owner and model in headers where that is asked for.

    (A body answer comes after the headers answer that has removed the former; before `after` the EPP has said it.)
    """
    removes = [*names.SPOOFABLE] if turn.phase is Phase.HEADERS and turn.attachment is not Attachment.AFTER else []
    sets: dict[str, str] = {}
    promote = policy.promote
    names_owner, names_model = promoted(request, policy)
    wanted = []
    if names_owner:
        wanted.append((promote.owner_header, owner))
    if names_model:
        wanted.append((promote.model_header, request.model))
    for name, value in wanted:
        if value and _writable(value):
            sets[name] = value
        else:  # what a client says there itself is not what we found
            removes.append(name)
    reroute = turn.phase is Phase.HEADERS and reroutes(request, policy)  # at a body it was said when it was asked for
    return go_on(turn.phase, metadata, sets=sets, removes=removes, reroute=reroute)


def _writable(value: str) -> bool:
    """Whether Envoy takes it as a header's value: no control characters (facts/envoy.md 3), and it is not cut."""
    return len(value) < SHOWN and value.isprintable()


@lru_cache(maxsize=KEPT)
def _destination(  # noqa: PLR0913, PLR0917 - the cache's key
    attachment: Attachment, phase: Phase, value: str, owner: str, model: str, reason: Reason, endpoints: int
) -> bytes:
    """What rotates: the destination, and our own namespace that repeats it as the guard."""
    before = attachment is Attachment.BEFORE
    written = {names.DESTINATION_NAMESPACE: {names.DESTINATION: value}}
    own = said(owner, model, reason, endpoints, value if before else "")
    return go_on(phase, {**written, **own}, sets={} if before else {names.DESTINATION: value})


@lru_cache(maxsize=KEPT)
def _overwritten(phase: Phase, metadata: str, header: str, removes: tuple[str, ...]) -> bytes:
    """`after`: the destination as metadata (unless it stays) and as header; a header of whoever else goes."""
    change = {names.DESTINATION_NAMESPACE: {names.DESTINATION: metadata}} if metadata else {}
    if not header:
        return go_on(phase, change, removes=(names.DESTINATION, *removes))
    return go_on(phase, change, sets={names.DESTINATION: header}, removes=removes)


def _essence(request: InferenceRequest) -> InferenceRequest:
    """What the decision on known names depends on, so that requests that differ in the rest share a reply."""
    return InferenceRequest(
        request.scope,
        "POST",
        "",
        request.owners,
        request.param,
        request.model,
        fixed_model=request.fixed_model,
        told=request.told,
        drawn=request.drawn,
    )
