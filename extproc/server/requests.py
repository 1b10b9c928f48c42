# SPDX-License-Identifier: Apache-2.0
"""What an admin request says, read strictly: a body as a type, a query as names that are known."""

import asyncio
from collections.abc import Collection
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import ClientDisconnect, Request

from extproc.envoy.binding import Attachment, BodyMode
from extproc.policy.config import Selector
from extproc.server.answers import Mistake

T = TypeVar("T")

MAX_BODY: Final = 1_048_576
"""The longest body that is read, in bytes."""
PATIENCE: Final = 30.0
"""Seconds that a body may take."""
VERSION: Final = (
    "The version that the change is made for, as GET gave it (empty: nothing is stored); another by now is 409."
)

_END: Final = r"$(?!\n)"
"""The end, also to Python, whose `$` is before a last line end too."""
_OWNER: Final = r"(?![aA][nN][yY](?:,|$))[A-Za-z0-9._/-]{1,128}"
OWNERS: Final = rf"^{_OWNER}(,{_OWNER}){{0,7}}{_END}"
POOL: Final = rf"^[^/]+/[^/]+{_END}"

_OWNER_ONLY: Final = f"^{_OWNER}{_END}"
_PATH: Final = "^/"
_METHOD: Final = f"^[A-Z]{{1,32}}{_END}"
_HEADER_NAME: Final = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+" + _END
_HEADER_VALUE: Final = r"^[^\x00-\x08\x0a-\x1f\x7f]*" + _END
_WORDS: Final = {
    _OWNER_ONLY: "Expected an owner: 1 to 128 letters, digits and . _ / -, and not `any`",
    POOL: "Expected `namespace/name`",
    _PATH: "Expected a path, which begins with /",
    _METHOD: "Expected a method, in capital letters",
    _HEADER_NAME: "Expected the name of a header",
    _HEADER_VALUE: "Expected a header's value, which is one line",
}
"""What is said where a text does not match a pattern."""

HeaderName = Annotated[str, Meta(pattern=_HEADER_NAME, max_length=256)]
HeaderValue = Annotated[str, Meta(pattern=_HEADER_VALUE, max_length=65_536)]


def _text(description: str, **rules: Any) -> Any:
    return Meta(description=description, **{"max_length": 65_536, **rules})


class RoutingChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"version": "resourceVersion"}):
    """A routing entry to be stored."""

    model: Annotated[str, _text("The model's name.", min_length=1, max_length=256)]
    owned_by: Annotated[str, _text("Whose endpoints these are to be.", pattern=_OWNER_ONLY)]
    selector: Annotated[Selector, Meta(description="The labels that they have; not empty.")]
    version: Annotated[str, _text(VERSION, max_length=64)] | None = None


class Explain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to be explained, as a client would send it, and what the gateway would say of it."""

    path: Annotated[str, _text("Its path, with the query.", pattern=_PATH)]
    method: Annotated[str, _text("Its method.", pattern=_METHOD)] = "POST"
    headers: Annotated[dict[HeaderName, HeaderValue], Meta(description="Its headers.")] = {}
    body: Annotated[str | dict[str, Any], Meta(description="Its body: the text of it, or a JSON object.")] = ""
    attachment: Annotated[Attachment | None, Meta(description="Where the filter sits.")] = None
    pool: Annotated[
        Annotated[str, Meta(pattern=POOL, max_length=512)] | None, Meta(description="The pool that the filter names.")
    ] = None
    cluster: Annotated[str, _text("Where the route leads, as Envoy calls it (`xds.cluster_name`).")] = ""
    pick: Annotated[str, _text("What the EPP picked, `ip:port,...`, for `after`.")] = ""
    body_mode: Annotated[BodyMode | None, Meta(description="How a body comes.")] = None


async def body_of(request: Request) -> bytes:
    """The whole body. Raises Mistake if it is longer than MAX_BODY, later than PATIENCE, or cut."""
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise Mistake(f"the body is longer than {MAX_BODY} bytes", status=413, code="body_too_large")
    except TimeoutError as error:
        raise Mistake(f"the body did not come within {PATIENCE:g} s", status=408, code="body_timeout") from error
    except ClientDisconnect as error:
        raise Mistake("the body did not come to its end") from error
    return bytes(body)


async def decoded(request: Request, kind: type[T]) -> T:
    """The body as a `kind`. Raises Mistake for one that is none."""
    body = await body_of(request)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `")
        message = next((words for pattern, words in _WORDS.items() if message.endswith(f"regex {pattern!r}")), message)
        path = place.removeprefix("key` in `").rstrip("`")  # where a key of an object is at fault
        raise Mistake(message, path.removeprefix("$").removeprefix(".")) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Mistake(f"the body is not JSON: {error}") from error


def parameters(request: Request, *, required: Collection[str] = (), optional: Collection[str] = ()) -> dict[str, str]:
    """The query, each name once. Raises Mistake for a name that is missing, unknown, empty or given twice."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in required and name not in optional:
            raise Mistake(f"there is no parameter `{name[:100]}`", name[:100])
        if name in found:
            raise Mistake(f"`{name}` is given more than once", name)
        found[name] = value
    for name in required:
        if not found.get(name):
            raise Mistake(f"`{name}` is missing", name)
    return found
