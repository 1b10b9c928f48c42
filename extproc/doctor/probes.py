# SPDX-License-Identifier: Apache-2.0
"""Harmless requests through the gateway: does what a client says of the owner reach us, and what is done with it?

They name an owner that nobody has, which we refuse with a 404, or one that cannot be read, which we refuse with a 400
whatever the policy says. What comes back without `x-owned-by-reason` is not of ours: nobody else says that.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from extproc.doctor.exchange import Answer, Site, UnreachableError
from extproc.doctor.findings import Check, Finding, error, ok, skipped, warning
from extproc.envoy import names
from extproc.policy.config import PolicyConfig
from extproc.policy.types import Reason

CHAT: Final = "/v1/chat/completions"
MODELS: Final = "/v1/models"
SIZES: Final = tuple(1024 << step for step in range(2, 12))
"""Bytes of the bodies at whose end the owner stands: 4 KiB to 2 MiB."""

_FAR_TOO_SMALL: Final = 64 << 10
_ENOUGH: Final = 512 << 10
_UNREADABLE: Final = "owned-by doctor"
"""No owner has a blank: it is refused whatever `whenUnknown` says."""
_NOWHERE: Final = "127.0.0.1:1"
"""A destination that no pool has, and at which nobody listens beside a gateway."""
_OK: Final = 200
_REDIRECTS: Final = range(300, 400)
_ERRORS: Final = 400
_FORBIDDEN: Final = 403
_CREDENTIALS: Final = (401, 407)
_NOT_FOUND: Final = 404
_BUSY: Final = 429
_TOO_LARGE: Final = 413
_BROKEN: Final = 500
_LET_PAST: Final = "that is so where a matcher lets requests past us (component only-when-asked)"
_NOT_SEEN: Final = (
    "our filter does not run on this route (see `filter` and `routes`), or it fails open and our server is away, or the route "
    "leads to no pool that we know (our log: `not-a-pool`, `pool-unknown`), or its path is none of the policy's `paths` "
    "(`path-not-interpreted`)"
)


_SLOW: Final = "is our server slow or away? See `failures` and `cluster`"


class _LimitedError(UnreachableError):
    """Somebody limits requests: from here on it cannot be told who would have answered."""


class Probes:
    """The requests of one visit, and what came of them.

    `policy` says by which names an owner is read; `model` is the one that is asked for, "" for one that nobody has;
    `conditional` says that by its configuration our filter runs only for some requests, `assumed` that the policy is the
    default one, since our server's own is not known.
    `findings` grows while it runs; `listed` are the models and owners that we list, None while that is not known.
    """

    def __init__(
        self,
        gateway: Site,
        policy: PolicyConfig,
        model: str = "",
        *,
        conditional: bool = False,
        assumed: bool = False,
    ) -> None:
        """Nothing is sent yet."""
        self._conditional = conditional
        self._else = " (a policy that reads owners elsewhere is known by --admin)" if assumed else ""
        self.findings: list[Finding] = []
        self.listed: list[tuple[str, str]] | None = None
        self._gateway = gateway
        self._sources = policy.sources
        self._nobody = f"owned-by-doctor-{secrets.token_hex(4)}"
        self._model = model or self._nobody

    async def run(self) -> None:
        """Send them all, one after the other, as long as it answers and lets us be asked."""
        try:
            first = await self.post(headers=self.header(self._nobody))
            if (fault := _gateway_fault(first)) is not None:
                self.findings.append(fault)
                return
            self.findings.append(ok(Check.GATEWAY, "it answers"))
            if await self._by_header(first):
                await self._by_query()
                await self._by_body()
                await self._models()
            await self._spoofed()
        except _LimitedError as problem:
            fix = "let as many requests pass, or ask again when there is less to do; give credentials with -H"
            self.findings.append(error(Check.GATEWAY, str(problem), fix=fix))
        except UnreachableError as problem:
            fix = "is that its address (http or https?), and is it up?"
            self.findings.append(error(Check.GATEWAY, str(problem), fix=fix))

    async def _ask(self, path: str, **more: Any) -> Answer:
        """One request. Raises UnreachableError, also where it is refused since there are too many."""
        answer = await self._gateway.ask(path, **more)
        if answer.status == _BUSY and not _reason(answer):
            raise _LimitedError("it has too many requests (status 429), and what is not told here is not known")
        return answer

    async def post(
        self,
        more: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: str = "",
        model: str = "",
    ) -> Answer:
        """A chat request for one token, with more fields at the end of its body. Raises UnreachableError."""
        headers = {names.CONTENT_TYPE: names.JSON} | dict(headers or {})
        return await self._ask(CHAT + query, method="POST", headers=headers, body=self._body(more, model))

    def _body(self, more: Mapping[str, Any] | None = None, model: str = "") -> bytes:
        message = {"role": "user", "content": "ping"}
        fields = {"model": model or self._model, "max_tokens": 1, "messages": [message], **(more or {})}
        return msgspec.json.encode(fields)

    async def ask_for(self, model: str, owner: str) -> Answer:
        """A chat request for a model and an owner, named where the policy reads it. Raises UnreachableError."""
        more, query = {}, ""
        if not self._sources.headers:
            if self._sources.query:
                query = f"?{self._sources.query[0]}={quote(owner)}"
            else:
                more = dict.fromkeys(self._sources.body[:1], owner)
        return await self.post(more, headers=self.header(owner), query=query, model=model)

    @property
    def names_owners(self) -> bool:
        """Whether the policy reads an owner from anywhere."""
        return bool(self._sources.headers or self._sources.query or self._sources.body)

    def header(self, owner: str) -> dict[str, str]:
        """The header that names an owner, none if the policy reads none."""
        return dict.fromkeys(self._sources.headers[:1], owner)

    async def _by_header(self, first: Answer) -> bool:
        """Whether our filter sees requests at all."""
        check = Check.OWNER_HEADER
        if not self._sources.headers:
            self.findings.append(skipped(check, "the policy reads no header"))
            return True
        name = self._sources.headers[0]
        reason = _reason(first)
        if reason == Reason.POOL_UNKNOWN:
            fix = f"what does `{names.POOL}` say, and does our server watch that namespace (--namespaces)?"
            self.findings.append(error(check, "our server does not know the pool of this route", fix=fix))
            return False
        if reason and not (reason == Reason.MODEL_NOT_FOUND and await self._passes()):
            self.findings.append(ok(check, f"an owner that nobody has, in `{name}`, is our {first.status} `{reason}`"))
            return True
        if reason or _reason(await self.post(headers=self.header(_UNREADABLE))):
            what = f"`{name}` reaches us; an owner that nobody has is passed through (whenUnknown: passthrough)"
            self.findings.append(ok(check, what))
            return True
        if _is_envoys(first):
            what = f"status {first.status} with nothing in it: Envoy answers in our stead"
            fix = "is our server up (see `cluster`)? On Envoy 1.37 and newer an EPP that refuses connections does that, too"
            self.findings.append(error(check, what, fix=fix))
        else:
            what = f"an owner that nobody has was answered with status {first.status}, and not by us"
            self.findings.append(error(check, what, fix=_NOT_SEEN + self._else))
        for other in (Check.OWNER_QUERY, Check.OWNER_BODY, Check.BODY_LIMIT, Check.MODELS):
            self.findings.append(skipped(other, "no request reaches us"))
        return False

    async def _passes(self) -> bool:
        """Whether it was the model that we refused, and the owner would have passed; no engine is needed to find out."""
        unknown, unreadable = [
            await self._ask(MODELS, headers=self.header(owner)) for owner in (self._nobody, _UNREADABLE)
        ]
        return not _reason(unknown) and bool(_reason(unreadable))

    async def _by_query(self) -> None:
        if not self._sources.query:
            self.findings.append(skipped(Check.OWNER_QUERY, "the policy reads no query"))
            return
        name = self._sources.query[0]
        if await self._is_seen(lambda owner: self.post(query=f"?{name}={quote(owner)}")):
            self.findings.append(ok(Check.OWNER_QUERY, f"`?{name}=` reaches us"))
            return
        fix = f"does the route keep the query, and may our filter see `:path`?{self._else}"
        self.findings.append(error(Check.OWNER_QUERY, f"`?{name}=` does not reach us", fix=fix))

    async def _by_body(self) -> None:
        if not self._sources.body:
            for check in (Check.OWNER_BODY, Check.BODY_LIMIT):
                self.findings.append(skipped(check, "the policy reads no body"))
            return
        name = self._sources.body[0]
        if not await self._is_seen(lambda owner: self.post({name: owner})):
            what = f"`{name}` in a JSON body does not reach us"
            if self._conditional:
                self.findings.append(warning(Check.OWNER_BODY, what, fix=_LET_PAST))
            else:
                fix = f"see `modes`: we must be allowed to ask for the body{self._else}"
                self.findings.append(error(Check.OWNER_BODY, what, fix=fix))
            self.findings.append(skipped(Check.BODY_LIMIT, "no body reaches us"))
            return
        self.findings.append(ok(Check.OWNER_BODY, f"`{name}` in a JSON body reaches us"))
        seen = 0
        for size in SIZES:
            padding = size - len(self._body({"padding": "", name: _UNREADABLE}))
            answer = await self.post({"padding": "x" * padding, name: _UNREADABLE})
            if _reason(answer) != Reason.OWNER_MALFORMED:
                self.findings.append(_limit(size, seen, answer))
                return
            seen = size
        self.findings.append(
            ok(Check.BODY_LIMIT, f"`{name}` at the end of {_size(seen)} reaches us; more was not tried")
        )

    async def _models(self) -> None:
        """Whose list it is: lists look alike, but a model that nobody has is refused by us with a word of ours."""
        unknown = f"{MODELS}/{self._nobody}"
        headers: dict[str, str] = {}
        first = await self._ask(unknown)
        if not _reason(first) and first.status >= _BROKEN:
            what = f"GET {MODELS} is answered with status {first.status}, and not by us"
            self.findings.append(error(Check.MODELS, what, fix=_SLOW))
            return
        if not _reason(first):
            headers = self.header("*")
            if _reason(await self._ask(unknown, headers=headers)):
                what = "the list is ours only where a request names an owner"
                self.findings.append(warning(Check.MODELS, what, fix=_LET_PAST))
            elif _reason(await self._ask(MODELS, headers=self.header(_UNREADABLE))):
                what = "an engine answers it: our server does not know any endpoint's models yet"
                fix = "look at its /statusz: are the endpoints there, and do they answer /v1/models?"
                self.findings.append(warning(Check.MODELS, what, fix=fix))
                return
            else:
                what = f"GET {MODELS} is not answered by us"
                fix = "our filter must run on the route that it takes"
                self.findings.append(error(Check.MODELS, what, fix=fix))
                return
        answer = await self._ask(MODELS, headers=headers)
        self.listed = _entries(answer)
        if self.listed is None:
            what = f"status {answer.status}, and no list ({_reason(answer) or 'not ours'})"
            self.findings.append(error(Check.MODELS, what, fix="look at our server's /statusz"))
        elif not self.listed:
            fix = "no endpoint is ready, or none says its models: look at our server's /endpointz"
            self.findings.append(warning(Check.MODELS, "our list is empty", fix=fix))
        else:
            owners = ", ".join(f"`{owner}`" for owner in sorted({owner for _, owner in self.listed}))
            models = len({model for model, _ in self.listed})
            what = f"the list is ours: {models} model{'' if models == 1 else 's'}, of {owners}"
            self.findings.append(ok(Check.MODELS, what))

    async def _spoofed(self) -> None:
        """Send what nobody refuses, as it is and with a destination of a client's."""
        headers: dict[str, str] = {}
        plain = await self.post()
        if _reason(plain):
            headers = self.header("*")
            plain = await self.post(headers=headers)
        kept_out = plain.status in (*_REDIRECTS, *_CREDENTIALS, _FORBIDDEN)
        if _reason(plain) or kept_out or plain.status >= _BROKEN:
            self.findings.append(skipped(Check.SPOOFED, f"without it the answer is a {plain.status} already"))
            return
        spoofed = await self.post(headers=headers | {names.DESTINATION: _NOWHERE})
        if spoofed.status >= _BROKEN:
            what = (
                f"with `{names.DESTINATION}: {_NOWHERE}` a request is a {spoofed.status}, without it a {plain.status}"
            )
            fix = "let a filter remove that header before the pool's cluster reads it (ours does, where it runs)"
            self.findings.append(error(Check.SPOOFED, what, fix=fix))
        else:
            what = f"`{names.DESTINATION}: {_NOWHERE}` changes nothing"
            self.findings.append(ok(Check.SPOOFED, what))

    async def _is_seen(self, send: Callable[[str], Awaitable[Answer]]) -> bool:
        """Whether an owner reaches us that is named this way: one that nobody has, else one that cannot be read."""
        return bool(_reason(await send(self._nobody)) or _reason(await send(_UNREADABLE)))


def _reason(answer: Answer) -> str:
    """Why we refused it, "" if it is not an answer of ours."""
    return answer.headers.get(names.REASON, "")


def _gateway_fault(answer: Answer) -> Finding | None:
    """What keeps any further request from making sense."""
    if _reason(answer):
        return None
    if answer.status in _REDIRECTS:
        return error(Check.GATEWAY, f"it redirects (status {answer.status})", fix="give the URL that it redirects to")
    if answer.status == _FORBIDDEN:
        fix = "give credentials with -H, or let it through"
        return error(Check.GATEWAY, f"it forbids POST {CHAT} (status 403)", fix=fix)
    if answer.status in _CREDENTIALS:
        return error(Check.GATEWAY, f"it wants credentials (status {answer.status})", fix="give them with -H")
    if answer.status == _NOT_FOUND and _is_envoys(answer):
        fix = "what hostnames and paths does the HTTPRoute have? -H 'host: NAME' names another host"
        return error(Check.GATEWAY, f"it has no route for POST {CHAT} at this host", fix=fix)
    return None


def _is_envoys(answer: Answer) -> bool:
    """Whether it looks like an error that Envoy itself answers: it has no type, and nothing in it."""
    return answer.status >= _ERRORS and not answer.body and not answer.headers.get(names.CONTENT_TYPE)


def _entries(answer: Answer) -> list[tuple[str, str]] | None:
    """The models of a list and their owners, None if it is no list."""
    document = answer.json()
    data = document.get("data") if answer.status == _OK and isinstance(document, dict) else None
    if not isinstance(data, list):
        return None
    entries = [each for each in data if isinstance(each, dict)]
    return [(str(each.get("id", "")), str(each.get("owned_by", ""))) for each in entries]


def _limit(size: int, seen: int, answer: Answer) -> Finding:
    """What it means that an owner at the end of `size` bytes is not seen, and one at the end of `seen` bytes is."""
    known = f"at the end of {_size(seen)} it does" if seen else "it does only in shorter ones"
    what = f"an owner at the end of a body of {_size(size)} does not reach us, {known}"
    if answer.status == _TOO_LARGE:
        what = (
            f"a body of {_size(size)} is a 413, one of {_size(seen)} is not"
            if seen
            else f"a body of {_size(size)} is a 413"
        )
    if answer.status >= _BROKEN:
        what = (
            f"a body of {_size(size)} is a {answer.status}, and not ours{f', one of {_size(seen)} is' if seen else ''}"
        )
        return error(Check.BODY_LIMIT, what, fix=_SLOW)
    fix = "raise the gateway's buffer limit (see `body-limit` in the guide), or name the owner in a header or in the query"
    if size <= _FAR_TOO_SMALL:
        return error(Check.BODY_LIMIT, what, fix=fix)
    return warning(Check.BODY_LIMIT, what, fix=fix) if size <= _ENOUGH else ok(Check.BODY_LIMIT, what)


def _size(count: int) -> str:
    return f"{count >> 10} KiB" if count < 1 << 20 else f"{count >> 20} MiB"
