# SPDX-License-Identifier: Apache-2.0
"""The answers that are ours: an error in the OpenAI shape, and the list of models."""

from collections.abc import Sequence

from extproc.envoy import names
from extproc.envoy.messages import immediate
from extproc.envoy.metadata import said
from extproc.policy.types import Answer, InferenceRequest, ModelEntry, Reason, Reject


def error(refusal: Reject, request: InferenceRequest) -> bytes:
    """The refusal as an OpenAI error."""
    document = error_document(refusal.status, refusal.reason.replace("-", "_"), refusal.message, refusal.param)
    headers = [(names.REASON, refusal.reason.value)]
    if refusal.status == 503:  # noqa: PLR2004
        headers.append((names.RETRY_AFTER, "1"))
    return _answer(refusal.status, document, refusal.reason, headers, request)


def model_list(answer: Answer, request: InferenceRequest) -> bytes:
    """The models, or the one model, that were asked for."""
    return _answer(200, models_document(answer), answer.reason, [], request)


def error_document(status: int, code: str, message: str, param: str = "") -> dict[str, object]:
    """An error as OpenAI clients expect it; `param` is the field at fault ("" if there is none)."""
    kind = "invalid_request_error" if status < 500 else "service_unavailable"  # noqa: PLR2004
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code}}


def models_document(answer: Answer) -> dict[str, object]:
    """The list, or the one model, as OpenAI clients expect it."""
    entries = [_entry(entry) for entry in answer.models]
    return entries[0] if answer.single else {"object": "list", "data": entries}


def _entry(entry: ModelEntry) -> dict[str, object]:
    """A model as OpenAI clients expect it; `created` is a number for them, 0 where no engine said one."""
    found: dict[str, object] = {"id": entry.id, "object": "model", "created": entry.created or 0}
    found["owned_by"] = entry.owned_by
    if entry.max_model_len is not None:
        found["max_model_len"] = entry.max_model_len
    return found


def _answer(
    status: int, document: object, reason: Reason, headers: Sequence[tuple[str, str]], request: InferenceRequest
) -> bytes:
    details = f"{names.NAMESPACE}_{reason.replace('-', '_')}"
    return immediate(status, document, details, headers, said("", request.model, reason, 0))
