# SPDX-License-Identifier: Apache-2.0
"""What the demo asks, and what must come back: each request a value, each expectation a value with a `fault`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from extproc.demo.client import Answer
from extproc.demo.engines import Simulated
from extproc.envoy import names
from extproc.policy.config import default_policy

LLAMA: Final = "meta-llama/Llama-3.2-1B-Instruct"
QWEN: Final = "Qwen/Qwen2.5-0.5B-Instruct"
ENGINES: Final = (
    Simulated("llama-vllm", "vllm", LLAMA),
    Simulated("llama-sglang", "sglang", LLAMA),
    Simulated("qwen-vllm", "vllm", QWEN),
    Simulated("qwen-sglang", "sglang", QWEN),
)
"""Two models on two engines each."""

_CHAT: Final = "/v1/chat/completions"
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Served:
    """One of these engines answers, for this model, and what it got is what was sent."""

    by: frozenset[str]
    model: str

    def fault(self, case: "Case", answer: Answer) -> str:
        """What is wrong with the answer, "" if nothing is."""
        server = answer.headers.get("x-served-by", "nobody")
        if answer.status != 200 or server not in self.by:  # noqa: PLR2004 - HTTP's word for it
            return f"{server} answered with {answer.status}, it should have been {' or '.join(sorted(self.by))}"
        if answer.headers.get("x-body-sha256") != hashlib.sha256(case.payload).hexdigest():
            return "the body changed on its way"
        streamed = bool(case.body.get("stream"))
        if streamed and not answer.body.endswith(_DONE):
            return f"the stream was cut short after {len(answer.body)} bytes"
        document = answer.body.partition(b"\n\n")[0].removeprefix(b"data: ") if streamed else answer.body
        try:
            model = msgspec.json.decode(document)["model"]
        except (msgspec.DecodeError, KeyError, TypeError):
            return f"{server} answered with {len(answer.body)} bytes that are no completion"
        return "" if model == self.model else f"the model `{model}` answered"


@dataclass(frozen=True)
class Refused:
    """No engine answers; the error has this status and this code."""

    status: int
    code: str

    def fault(self, _: "Case", answer: Answer) -> str:
        """What is wrong with the answer, "" if nothing is."""
        if "x-served-by" in answer.headers:
            return f"{answer.headers['x-served-by']} answered, it should have been refused"
        try:
            code = answer.json()["error"]["code"]
        except (msgspec.DecodeError, KeyError, TypeError):
            code = "no code"
        if (answer.status, code) != (self.status, self.code):
            return f"{answer.status} {code}, it should have been {self.status} {self.code}"
        return ""


@dataclass(frozen=True)
class Listed:
    """The model list, one entry per model and owner."""

    entries: tuple[tuple[str, str], ...]

    def fault(self, _: "Case", answer: Answer) -> str:
        """What is wrong with the answer, "" if nothing is."""
        try:
            found = tuple(sorted((entry["id"], entry["owned_by"]) for entry in answer.json()["data"]))
        except (msgspec.DecodeError, KeyError, TypeError):
            return f"{answer.status}, and no model list"
        return "" if found == self.entries else f"the list is {found}"


@dataclass(frozen=True)
class Case:
    """A request and what must come back; without a body it is a GET."""

    title: str
    expected: Served | Refused | Listed
    path: str = _CHAT
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """POST if there is a body, else GET."""
        return "POST" if self.body else "GET"

    @property
    def payload(self) -> bytes:
        """The body's bytes."""
        return msgspec.json.encode(self.body) if self.body else b""

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers, with the body's type if there is one."""
        return dict(self.headers) | ({names.CONTENT_TYPE: names.JSON} if self.body else {})


def cases() -> list[Case]:
    """Every way to say who shall serve, and what else a client may ask."""
    every = sorted((engine.model, engine.kind) for engine in ENGINES)
    vllm = tuple(entry for entry in every if entry[1] == "vllm")
    llama = {engine.name for engine in ENGINES if engine.model == LLAMA}
    completion = {"model": QWEN, "prompt": "hello"}
    return [
        Case("header", _by("llama-sglang"), headers=_owner("sglang"), body=_chat(LLAMA)),
        Case("header, the other model", _by("qwen-vllm"), headers=_owner("vllm"), body=_chat(QWEN)),
        Case("header, streamed", _by("qwen-sglang"), headers=_owner("sglang"), body=_chat(QWEN) | {"stream": True}),
        Case("header, completions", _by("qwen-sglang"), "/v1/completions", _owner("sglang"), completion),
        Case("query", _by("llama-vllm"), _CHAT + "?owned_by=vllm", body=_chat(LLAMA)),
        Case("body", _by("qwen-sglang"), body=_chat(QWEN) | {"owned_by": "sglang"}),
        Case("body, streamed", _by("llama-vllm"), body=_chat(LLAMA) | {"owned_by": "vllm", "stream": True}),
        Case("legacy engine", _by("llama-sglang"), body=_chat(LLAMA) | {"engine": "sglang"}),
        Case("legacy inference_server", _by("qwen-vllm"), body=_chat(QWEN) | {"inference_server": "vllm"}),
        Case("preference list", _by("llama-sglang"), headers=_owner("tgi, sglang, vllm"), body=_chat(LLAMA)),
        Case("wrong owner", Refused(404, "owner_not_found"), headers=_owner("tgi"), body=_chat(LLAMA)),
        Case("unknown model", Refused(404, "model_not_found"), headers=_owner("vllm"), body=_chat("gpt-4o")),
        Case("no owner", Served(frozenset(llama), LLAMA), body=_chat(LLAMA)),
        Case("models", Listed(tuple(every)), "/v1/models"),
        Case("models of one owner", Listed(vllm), "/v1/models?owned_by=vllm"),
    ]


def _by(name: str) -> Served:
    model = next(engine.model for engine in ENGINES if engine.name == name)
    return Served(frozenset({name}), model)


def _owner(value: str) -> dict[str, str]:
    return {default_policy().sources.headers[0]: value}


def _chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]}
