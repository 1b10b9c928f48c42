# SPDX-License-Identifier: Apache-2.0
"""What the admin port answers with: JSON, and one shape for all that is wrong."""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from extproc.envoy.answers import error_document


def as_json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Indented JSON, for people too; what JSON does not know is shown as text."""
    body = msgspec.json.format(msgspec.json.encode(content, enc_hook=str), indent=2)
    given = {"cache-control": "no-store", "x-content-type-options": "nosniff", **(headers or {})}
    return Response(body + b"\n", status, given, media_type="application/json")


def problem(
    status: int, code: str, message: str, param: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """An error in the shape that clients of the gateway know too; `param` is the field at fault."""
    return as_json(error_document(status, code, message, param), status, headers)


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals (404, 405), and those that a handler raises."""
    assert isinstance(error, HTTPException)
    words: dict[int, tuple[str, str]] = {
        404: ("not_found", "there is no such page"),
        405: ("method_not_allowed", "the page does not take this method"),
    }
    code, message = words.get(error.status_code, ("bad_request", error.detail))
    return problem(error.status_code, code, message, headers=error.headers)


class Mistake(Exception):  # noqa: N818 - the client's, not ours
    """What is wrong with a request; `param` is the field at fault, "" if there is none."""

    def __init__(self, message: str, param: str = "", *, status: int = 400, code: str = "bad_request") -> None:
        super().__init__(message)
        self.answer = problem(status, code, message, param)


async def on_mistake(_request: Request, error: Exception) -> Response:
    """The answer to a Mistake."""
    assert isinstance(error, Mistake)
    return error.answer


async def on_failure(_request: Request, _error: Exception) -> Response:
    """What is our own fault; the log has it."""
    return problem(500, "internal", "internal error")


HANDLERS: Mapping[Any, Any] = {HTTPException: on_http_exception, Mistake: on_mistake, Exception: on_failure}
