# SPDX-License-Identifier: Apache-2.0
"""The answers that are ours: errors as OpenAI's clients know them, and the list of models."""

import json
from typing import Any

import pytest

from extproc.envoy.answers import error, model_list
from extproc.envoy.pb import external_processor_pb2 as pb
from extproc.policy.types import STATUS, Answer, InferenceRequest, ModelEntry, Reason, Scope, reject
from tests.builders import CHAT, said, struct


def asking(model: str = "") -> InferenceRequest:
    return InferenceRequest(Scope(CHAT), "POST", "/v1/x", model=model)


def read(message: bytes) -> dict[str, Any]:
    """An answer whole: all of it in one value."""
    parsed = pb.ProcessingResponse.FromString(message)
    answer = parsed.immediate_response
    assert parsed.WhichOneof("response") == "immediate_response"
    assert not answer.headers.remove_headers
    return {
        "status": answer.status.code,
        "headers": {option.header.key: option.header.raw_value.decode() for option in answer.headers.set_headers},
        "body": json.loads(answer.body),
        "details": answer.details,
        "metadata": parsed.dynamic_metadata,
    }


@pytest.mark.parametrize("reason", STATUS, ids=str)
def test_every_refusal_is_an_openai_error_with_its_status(reason: Reason) -> None:
    code, status = reason.value.replace("-", "_"), STATUS[reason]
    headers = {"content-type": "application/json", "x-owned-by-reason": reason.value}

    assert read(error(reject(reason, "no", "engine"), asking("m"))) == {
        "status": status,
        "headers": headers | ({"retry-after": "1"} if status == 503 else {}),
        "body": {
            "error": {
                "message": "no",
                "type": "service_unavailable" if status == 503 else "invalid_request_error",
                "param": "engine",
                "code": code,
            }
        },
        "details": f"owned_by_{code}",
        "metadata": struct(said("", "m", reason.value, 0)),
    }


def test_where_no_field_is_at_fault_none_is_named() -> None:
    assert read(error(reject(Reason.POOL_UNKNOWN, "no"), asking()))["body"]["error"]["param"] is None


def test_a_message_is_the_clients_own_text_escaped() -> None:
    found = read(error(reject(Reason.OWNER_NOT_FOUND, 'no endpoint is `"\n\x00é`'), asking()))
    assert found["body"]["error"]["message"] == 'no endpoint is `"\n\x00é`'


FULL = ModelEntry("a", "vllm", 7, 4096)
LISTS: dict[str, tuple[Answer, Any]] = {
    "none": (Answer(()), {"object": "list", "data": []}),
    "one in a list": (
        Answer((FULL,)),
        {
            "object": "list",
            "data": [{"id": "a", "object": "model", "created": 7, "owned_by": "vllm", "max_model_len": 4096}],
        },
    ),
    "one that nothing more is known of": (
        Answer((ModelEntry("b", "sglang"),)),
        {"object": "list", "data": [{"id": "b", "object": "model", "created": 0, "owned_by": "sglang"}]},
    ),
    "in their order": (
        Answer((ModelEntry("b", "x", 1), ModelEntry("a", "y", 2))),
        {
            "object": "list",
            "data": [
                {"id": "b", "object": "model", "created": 1, "owned_by": "x"},
                {"id": "a", "object": "model", "created": 2, "owned_by": "y"},
            ],
        },
    ),
    "the one that was asked for": (
        Answer((FULL,), single=True),
        {"id": "a", "object": "model", "created": 7, "owned_by": "vllm", "max_model_len": 4096},
    ),
}


@pytest.mark.parametrize(("answer", "document"), LISTS.values(), ids=LISTS)
def test_the_models_are_listed_as_openai_does(answer: Answer, document: Any) -> None:
    assert read(model_list(answer, asking())) == {
        "status": 200,
        "headers": {"content-type": "application/json"},
        "body": document,
        "details": "owned_by_models_listed",
        "metadata": struct(said("", "", "models-listed", 0)),
    }
