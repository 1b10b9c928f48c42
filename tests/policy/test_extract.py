# SPDX-License-Identifier: Apache-2.0
"""Headers, query and body -> what a request asks for."""

import json
from typing import Any

import pytest

from extproc.policy import extract
from extproc.policy.config import PolicyConfig
from extproc.policy.extract import BodyFormat, body_format, from_body, from_filter, from_head, header_names
from extproc.policy.types import InferenceRequest, Malformed, Reason, Scope
from tests.builders import CHAT, policy

DEFAULT = policy()
SCOPE = Scope(CHAT)
TOO_MANY = "names more than 8 owners"
NO_OWNER = "is not an owner: 1 to 128 letters, digits and . _ / - each, or *"
NOT_LAST = "names an owner after `*`, which must be the last"
TWICE = "is given more than once with different values"
WRONG_TYPE = "must be a string or a list of strings"


def read_head(
    path: str = "/v1/chat/completions", policy_: PolicyConfig = DEFAULT, **headers: list[str]
) -> InferenceRequest:
    given = {":method": ["POST"], ":path": [path]} | {name.replace("_", "-"): lines for name, lines in headers.items()}
    return from_head(given, SCOPE, policy_)


def read_body(
    body: bytes | object,
    *,
    ended: bool = True,
    policy_: PolicyConfig = DEFAULT,
    path: str = "/v1/completions",
    **headers: list[str],
) -> InferenceRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return from_body(read_head(path, policy_, **headers), data, policy_, ended=ended)


def test_a_head_that_names_nothing_is_a_request_without_owner_and_model() -> None:
    assert read_head("/v1/completions?x=1") == InferenceRequest(scope=SCOPE, method="POST", path="/v1/completions")


def test_a_head_is_read_whole() -> None:
    assert read_head("/v1/completions?engine=vllm", x_gateway_model_name=["small"]) == InferenceRequest(
        scope=SCOPE,
        method="POST",
        path="/v1/completions",
        owners=("vllm",),
        param="engine",
        model="small",
        header_model="small",
    )


VALUES = {
    "plain": ("sglang", ("sglang",)),
    "trimmed and lower-cased": ("  SGLang\t", ("sglang",)),
    "aliased": ("TRT-LLM", ("trtllm-serve",)),
    "every character": ("aZ09._/-", ("az09._/-",)),
    "a preference": ("sglang, vllm", ("sglang", "vllm")),
    "the same twice": ("vllm,VLLM", ("vllm",)),
    "the same by an alias": ("trtllm, trt-llm", ("trtllm-serve",)),
    "empty entries": (",sglang,,vllm,", ("sglang", "vllm")),
    "anything": ("*", ("*",)),
    "any": ("ANY", ("*",)),
    "else anything": ("sglang,any", ("sglang", "*")),
    "eight": ("a,b,c,d,e,f,g,h", tuple("abcdefgh")),
    "128 characters": ("a" * 128, ("a" * 128,)),
    "empty": ("", ()),
    "white": ("  ", ()),
    "only commas": (" , ", ()),
}


@pytest.mark.parametrize(("value", "owners"), VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("source", ["header", "body", "body list"])
def test_a_value_is_a_normalised_order_of_preference(source: str, value: str, owners: tuple[str, ...]) -> None:
    request = {
        "header": lambda: read_head(x_owned_by=[value]),
        "body": lambda: read_body({"owned_by": value}),
        "body list": lambda: read_body({"owned_by": value.split(",")}),
    }[source]()
    param = "x-owned-by" if source == "header" else "owned_by"
    assert (request.owners, request.param, request.malformed) == (owners, param if owners else "", None)


MALFORMED = {
    "nine": ("a,b,c,d,e,f,g,h,i", TOO_MANY),
    "129 characters": ("a" * 129, NO_OWNER),
    "a space inside": ("sg lang", NO_OWNER),
    "a colon": ("sglang:1", NO_OWNER),
    "a pattern": ("sg*", NO_OWNER),
    "a control character": ("sg\x01lang", NO_OWNER),
    "an accent": ("sgl\xe4ng", NO_OWNER),
    "anything first": ("*,vllm", NOT_LAST),
    "any first": ("any,vllm", NOT_LAST),
    "good, then bad": ("vllm,b@d", NO_OWNER),
}


@pytest.mark.parametrize(("value", "message"), MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("source", ["header", "body"])
def test_a_value_that_is_no_owner_is_malformed(source: str, value: str, message: str) -> None:
    request = read_head(x_owned_by=[value]) if source == "header" else read_body({"owned_by": value})
    name = "x-owned-by" if source == "header" else "owned_by"
    assert (request.owners, request.malformed) == ((), Malformed(name, f"`{name}` {message}"))


LONG = {"letters": "a" * 4097, "owners": "vllm," * 900, "commas": "," * 4097, "white": " " * 4097}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
@pytest.mark.parametrize("source", ["header", "query", "body"])
def test_a_text_that_is_longer_than_any_preference_is_malformed_without_being_taken_apart(
    source: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_short_line", None)  # it splits
    request = {
        "header": lambda: read_head(x_owned_by=[value]),
        "query": lambda: read_head(f"/v1/completions?owned_by={value.replace(' ', '+')}"),
        "body": lambda: read_body({"owned_by": value}),
    }[source]()
    name = "x-owned-by" if source == "header" else "owned_by"
    assert (request.owners, request.malformed) == ((), Malformed(name, f"`{name}` is longer than 4096 characters"))


@pytest.mark.parametrize("source", ["header", "body"])
def test_a_text_of_just_the_length_is_read(source: str) -> None:
    value = "vllm" + "," * 4092
    request = read_head(x_owned_by=[value]) if source == "header" else read_body({"owned_by": value})
    assert (request.owners, request.malformed) == (("vllm",), None)


@pytest.mark.parametrize("entry", ["", "a", 3], ids=["empty", "an owner", "a number"])
def test_a_list_that_is_longer_than_any_preference_is_malformed_unread(
    entry: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_owners", None)
    request = read_body({"owned_by": [entry] * 4097})
    assert (request.owners, request.malformed) == ((), Malformed("owned_by", f"`owned_by` {TOO_MANY}"))


def test_a_list_of_just_the_length_is_read() -> None:
    request = read_body({"owned_by": ["vllm", *[""] * 4095]})
    assert (request.owners, request.malformed) == (("vllm",), None)


@pytest.mark.parametrize("value", ["\u212aserve", "\u017fglang"], ids=["Kelvin sign", "long s"])
def test_a_letter_that_only_lower_casing_makes_ascii_is_malformed(value: str) -> None:
    request = read_body({"owned_by": value})
    assert (request.owners, request.malformed) == ((), Malformed("owned_by", f"`owned_by` {NO_OWNER}"))


LINES = {
    "equal after normalising": (["sglang", " SGLANG "], ("sglang",), None),
    "equal by an alias": (["trtllm", "trt-llm"], ("trtllm-serve",), None),
    "one of them empty": (["", "sglang"], ("sglang",), None),
    "different": (["sglang", "vllm"], (), Malformed("x-owned-by", f"`x-owned-by` {TWICE}")),
    "another order": (["a,b", "b,a"], (), Malformed("x-owned-by", f"`x-owned-by` {TWICE}")),
}


@pytest.mark.parametrize(("lines", "owners", "malformed"), LINES.values(), ids=LINES)
def test_several_header_lines_must_agree(
    lines: list[str], owners: tuple[str, ...], malformed: Malformed | None
) -> None:
    request = read_head(x_owned_by=lines)
    assert (request.owners, request.malformed) == (owners, malformed)


QUERIES = {
    "owned_by": ("owned_by=sglang", ("sglang",), "owned_by"),
    "engine": ("engine=sglang", ("sglang",), "engine"),
    "inference_server": ("inference_server=sglang", ("sglang",), "inference_server"),
    "among others": ("a=b&engine=sglang&c", ("sglang",), "engine"),
    "the policy's order": ("inference_server=c&engine=b&owned_by=a", ("a",), "owned_by"),
    "an empty one is skipped": ("owned_by=&engine=b", ("b",), "engine"),
    "no value": ("owned_by", (), ""),
    "percent-decoded": ("owned_by=sg%6Cang%2Cvllm", ("sglang", "vllm"), "owned_by"),
    "a plus is a space": ("owned_by=+sglang+", ("sglang",), "owned_by"),
    "an escaped name": ("owned%5Fby=sglang", ("sglang",), "owned_by"),
    "an escaped star": ("owned_by=%2A", ("*",), "owned_by"),
    "twice the same": ("owned_by=sglang&owned_by=SGLANG", ("sglang",), "owned_by"),
    "another case": ("Owned_By=sglang", (), ""),
}


@pytest.mark.parametrize(("query", "owners", "param"), QUERIES.values(), ids=QUERIES)
def test_the_query_names_the_owner(query: str, owners: tuple[str, ...], param: str) -> None:
    request = read_head(f"/v1/completions?{query}")
    assert (request.path, request.owners, request.param, request.malformed) == ("/v1/completions", owners, param, None)


BAD_QUERIES = {
    "twice": ("owned_by=a&owned_by=b", TWICE),
    "a bad escape": ("owned_by=%zz", NO_OWNER),
    "a cut escape": ("owned_by=sglang%2", NO_OWNER),
    "an escaped accent": ("owned_by=%C3%A4", NO_OWNER),
    "an escaped NUL": ("owned_by=a%00b", NO_OWNER),
}


@pytest.mark.parametrize(("query", "message"), BAD_QUERIES.values(), ids=BAD_QUERIES)
def test_a_query_that_cannot_be_read_is_malformed(query: str, message: str) -> None:
    assert read_head(f"/v1/completions?{query}").malformed == Malformed("owned_by", f"`owned_by` {message}")


SOURCES = {
    "header before query": ("?owned_by=b", ["a"], {"owned_by": "c"}, ("a",), "x-owned-by"),
    "query before body": ("?inference_server=b", [], {"owned_by": "c"}, ("b",), "inference_server"),
    "body at last": ("", [], {"owned_by": "c"}, ("c",), "owned_by"),
    "an empty header is absent": ("?owned_by=b", [" "], {"owned_by": "c"}, ("b",), "owned_by"),
    "an empty query is absent": ("?owned_by=", [], {"owned_by": "c"}, ("c",), "owned_by"),
    "the body's order": ("", [], {"inference_server": "c", "engine": "b", "owned_by": None}, ("b",), "engine"),
    "a later source is not read": ("?owned_by=%zz", ["a"], {"owned_by": 7}, ("a",), "x-owned-by"),
}


@pytest.mark.parametrize(("query", "header", "body", "owners", "param"), SOURCES.values(), ids=SOURCES)
def test_the_first_source_that_names_an_owner_wins(
    query: str, header: list[str], body: dict[str, Any], owners: tuple[str, ...], param: str
) -> None:
    request = read_body(body, path=f"/v1/completions{query}", x_owned_by=header)
    assert (request.owners, request.param, request.malformed) == (owners, param, None)


def test_the_names_of_the_policy_are_read_in_their_order() -> None:
    own = policy("sources: {headers: [x-b, x-a], query: [], body: [e]}\n")
    assert read_head(policy_=own, x_a=["a"], x_b=["b"], x_owned_by=["c"]).param == "x-b"
    assert read_head("/v1/completions?owned_by=c", own).owners == ()
    assert read_body({"owned_by": "a", "e": "b"}, policy_=own).owners == ("b",)
    asked = policy("sources: {query: [b, a]}\n")
    assert read_head("/v1/completions?a=x&owned_by=y&b=z", asked).param == "b"
    assert read_head("/v1/completions?owned_by=y", asked).owners == ()


def test_a_malformed_head_is_not_healed_by_the_body() -> None:
    request = read_body({"owned_by": "vllm", "model": "m"}, x_owned_by=["b@d"])
    malformed = Malformed("x-owned-by", f"`x-owned-by` {NO_OWNER}")
    assert (request.owners, request.malformed, request.model) == ((), malformed, "m")


BODIES = {
    "null": ({"owned_by": None}, (), None),
    "empty list": ({"owned_by": []}, (), None),
    "list of nothing": ({"owned_by": [" "]}, (), None),
    "list": ({"owned_by": ["SGLang", "vllm"]}, ("sglang", "vllm"), None),
    "list ends in anything": ({"owned_by": ["sglang", "*"]}, ("sglang", "*"), None),
    "a comma inside a list": ({"owned_by": ["a,b"]}, (), NO_OWNER),
    "number": ({"owned_by": 3}, (), WRONG_TYPE),
    "true": ({"owned_by": True}, (), WRONG_TYPE),
    "object": ({"owned_by": {"a": 1}}, (), WRONG_TYPE),
    "list with a number": ({"owned_by": ["a", 3]}, (), WRONG_TYPE),
    "list with null": ({"owned_by": ["a", None]}, (), WRONG_TYPE),
    "list of lists": ({"owned_by": [["a"]]}, (), WRONG_TYPE),
    "another case": ({"Owned_By": "a"}, (), None),
    "not at the top": ({"extra": {"owned_by": "a"}}, (), None),
}


@pytest.mark.parametrize(("body", "owners", "message"), BODIES.values(), ids=BODIES)
def test_the_body_names_the_owner(body: dict[str, Any], owners: tuple[str, ...], message: str | None) -> None:
    request = read_body(body)
    malformed = Malformed("owned_by", f"`owned_by` {message}") if message else None
    assert (request.owners, request.malformed) == (owners, malformed)


MODELS = {
    "body": ({}, {"model": "m"}, "m", "", False),
    "header": ({"x_gateway_model_name": ["h"]}, {}, "h", "h", False),
    "trimmed": ({"x_gateway_model_name": [" h "]}, {}, "h", "h", False),
    "empty header": ({"x_gateway_model_name": [""]}, {"model": "m"}, "m", "", False),
    "the body wins": ({"x_gateway_model_name": ["h"]}, {"model": "m"}, "m", "h", True),
    "header and body agree": ({"x_gateway_model_name": ["m"]}, {"model": "m"}, "m", "m", False),
    "a rewrite is final": ({"x_llm_d_model_name_rewrite": ["r"]}, {"model": "m"}, "r", "r", False),
    "a rewrite before the gateway's": (
        {"x_gateway_model_name": ["h"], "x_llm_d_model_name_rewrite": ["r"]},
        {"model": "m"},
        "r",
        "r",
        False,
    ),
    "an alias in the body": ({}, {"model": "small"}, "qwen", "", False),
    "an alias in the header": ({"x_gateway_model_name": ["small"]}, {}, "qwen", "small", False),
    "the same alias in both": ({"x_gateway_model_name": ["small"]}, {"model": "small"}, "qwen", "small", False),
    "a number": ({}, {"model": 3}, "", "", False),
    "null": ({"x_gateway_model_name": ["h"]}, {"model": None}, "h", "h", False),
    "white": ({}, {"model": " "}, "", "", False),
}


@pytest.mark.parametrize(("headers", "body", "model", "header_model", "mismatch"), MODELS.values(), ids=MODELS)
def test_the_model_is_the_headers_or_the_bodys(
    headers: dict[str, list[str]],
    body: dict[str, Any],
    model: str,
    header_model: str,
    mismatch: bool,  # noqa: FBT001 - a column
) -> None:
    request = read_body(body, policy_=policy("modelAliases: {small: qwen}\n"), **headers)
    assert (request.model, request.header_model, request.mismatch) == (model, header_model, mismatch)


def test_no_model_header_is_trusted_when_the_policy_says_so() -> None:
    none = policy("sources: {modelHeaders: []}\n")
    assert read_head(policy_=none, x_gateway_model_name=["h"], x_llm_d_model_name_rewrite=["r"]).model == ""


PREFIXES = {
    "both before the cut": (b'{"model": "m", "owned_by": "a", "prompt": "lo', ("a",), "m"),
    "after the cut": (b'{"prompt": "lo', (), ""),
    "only the model": (b'{"model": "m", "prompt": "lo', (), "m"),
    "the string is cut": (b'{"model": "m", "owned_by": "sgl', (), "m"),
    "the string just ends": (b'{"owned_by": "sglang"', ("sglang",), ""),
    "the key is cut": (b'{"model": "m", "own', (), "m"),
    "the value is missing": (b'{"model": "m", "owned_by":', (), "m"),
    "the list is cut": (b'{"model": "m", "owned_by": ["a", "b"', (), "m"),
    "the list is cut between": (b'{"owned_by": ["a", ', (), ""),
    "the list is whole": (b'{"owned_by": ["a", "b"], "model": "m", "prompt": [', ("a", "b"), "m"),
    "the list is whole, a string follows": (b'{"owned_by": ["a", "b"], "prompt": "lo', ("a", "b"), ""),
    "a list is cut elsewhere": (b'{"owned_by": "a", "messages": [{"role": "user", "content": "lo', ("a",), ""),
    "an escape is cut": (b'{"owned_by": "a", "prompt": "lo\\u00', ("a",), ""),
    "a letter is cut": (b'{"owned_by": "a", "prompt": "\xc3', ("a",), ""),
    "with a byte order mark": (b'\xef\xbb\xbf{"owned_by": "a", "prompt": "lo', ("a",), ""),
    "nothing": (b"", (), ""),
    "no JSON": (b"owned_by=a", (), ""),
    "a list": (b'["owned_by", "a"', (), ""),
}


@pytest.mark.parametrize(("prefix", "owners", "model"), PREFIXES.values(), ids=PREFIXES)
def test_a_truncated_body_names_what_stands_in_it_completely(
    prefix: bytes, owners: tuple[str, ...], model: str
) -> None:
    request = read_body(prefix, ended=False)
    found = (request.owners, request.model, request.truncated, request.malformed)
    assert found == (owners, model, True, None)


def test_a_body_with_trailers_is_whole_though_it_is_not_ended() -> None:
    request = read_body({"owned_by": "a", "model": "m"}, ended=False)
    assert (request.owners, request.model, request.truncated) == (("a",), "m", False)


def test_a_prefix_is_not_read_when_all_of_the_body_is_there() -> None:
    request = read_body(b'{"owned_by": "a", "prompt": "lo', ended=True)
    assert (request.owners, request.truncated, request.malformed) == ((), False, None)


DEEP = b"[" * 200_000
ODD = {
    "byte order mark": (b'\xef\xbb\xbf{"owned_by": "a"}', ("a",)),
    "white space around": (b' \n{"owned_by": "a"}\r\n ', ("a",)),
    "NaN": (b'{"temperature": NaN, "owned_by": "a"}', ("a",)),
    "Infinity": (b'{"temperature": -Infinity, "owned_by": "a"}', ("a",)),
    "a huge number": (b'{"n": 1e999, "owned_by": "a"}', ("a",)),
    "a long number": (b'{"n": ' + b"9" * 5000 + b', "owned_by": "a"}', ("a",)),
    "duplicate keys": (b'{"owned_by": "a", "owned_by": "b"}', ("b",)),
    "duplicate keys and NaN": (b'{"owned_by": "a", "t": NaN, "owned_by": "b"}', ("b",)),
    "an escaped key": (b'{"owned\\u005fby": "a"}', ("a",)),
    "an escaped value": (b'{"owned_by": "\\u0061"}', ("a",)),
    "bad UTF-8": (b'{"owned_by": "\xff"}', ()),
    "deep nesting after": (b'{"owned_by": "a", "x": ' + DEEP + b"]" * 200_000 + b"}", ()),
    "deep nesting, cut": (DEEP, ()),
    "a list": (b'[{"owned_by": "a"}]', ()),
    "a string": (b'"owned_by"', ()),
    "null": (b"null", ()),
    "empty": (b"", ()),
    "two objects": (b'{"owned_by": "a"}{"owned_by": "b"}', ()),
    "a form": (b"owned_by=a", ()),
    "no text": (bytes(range(256)), ()),
}


@pytest.mark.parametrize(("body", "owners"), ODD.values(), ids=ODD)
def test_an_odd_body_is_read_as_the_engines_read_it_or_names_nothing(body: bytes, owners: tuple[str, ...]) -> None:
    request = read_body(body)
    assert (request.owners, request.truncated, request.malformed) == (owners, False, None)


@pytest.mark.parametrize("prefix", [DEEP, b'{"owned_by": ' + DEEP], ids=["at the top", "in the owner"])
def test_a_deep_prefix_names_nothing(prefix: bytes) -> None:
    request = read_body(prefix, ended=False)
    assert (request.owners, request.truncated, request.malformed) == ((), True, None)


def test_a_body_of_20_megabytes_is_read_to_its_end() -> None:
    body = b'{"prompt": "' + b"x" * 20_000_000 + b'", "owned_by": "a", "model": "m"}'
    request = read_body(body)
    assert (request.owners, request.model) == (("a",), "m")


JSON = BodyFormat()
FORMATS: dict[str, tuple[dict[str, str], BodyFormat | None]] = {
    "JSON": ({"content-type": "application/json"}, JSON),
    "with a charset": ({"content-type": "Application/JSON; charset=utf-8"}, JSON),
    "a JSON suffix": ({"content-type": "application/vnd.api+json"}, JSON),
    "identity": ({"content-type": "application/json", "content-encoding": "identity"}, JSON),
    "multipart": ({"content-type": "multipart/form-data; boundary=edge"}, BodyFormat("edge")),
    "multipart, quoted": ({"content-type": 'Multipart/Form-Data; charset=utf-8; boundary="e d"'}, BodyFormat("e d")),
    "multipart without a boundary": ({"content-type": "multipart/form-data"}, None),
    "another multipart": ({"content-type": "multipart/mixed; boundary=edge"}, None),
    "multipart, compressed": (
        {"content-type": "multipart/form-data; boundary=edge", "content-encoding": "gzip"},
        None,
    ),
    "no type": ({}, None),
    "text": ({"content-type": "text/plain"}, None),
    "a form": ({"content-type": "application/x-www-form-urlencoded"}, None),
    "gRPC": ({"content-type": "application/grpc"}, None),
    "gRPC of JSON": ({"content-type": "application/grpc+json"}, None),
    "gRPC-Web of JSON": ({"content-type": "application/grpc-web+json"}, None),
    "compressed": ({"content-type": "application/json", "content-encoding": "gzip"}, None),
    "twice compressed": ({"content-type": "application/json", "content-encoding": "identity, br"}, None),
    "upgrade": ({"content-type": "application/json", "upgrade": "websocket"}, None),
    "CONNECT": ({"content-type": "application/json", ":method": "CONNECT"}, None),
}


@pytest.mark.parametrize(("headers", "expected"), FORMATS.values(), ids=FORMATS)
def test_a_body_is_asked_for_where_there_is_one_to_read(headers: dict[str, str], expected: BodyFormat | None) -> None:
    given = {":method": ["POST"]} | {name: [value] for name, value in headers.items()}
    assert body_format(given, end_of_stream=False) == expected


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=edge"])
def test_a_request_that_ends_at_its_headers_has_no_body(content_type: str) -> None:
    assert body_format({":method": ["POST"], "content-type": [content_type]}, end_of_stream=True) is None


def form(*fields: tuple[str, str], end: bool = True) -> bytes:
    parts = [f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    return ("".join(parts) + ("--edge--\r\n" if end else "")).encode()


FILE = ("file", "x" * 10_000)
FORMS: dict[str, tuple[bytes, bool, tuple[str, ...], str, bool]] = {
    # the body, whether it has ended; the owners, the model, whether only a prefix was seen
    "both": (form(("model", "m"), ("owned_by", "SGLang")), True, ("sglang",), "m", False),
    "a preference": (form(("engine", "sglang, vllm,*")), True, ("sglang", "vllm", "*"), "", False),
    "the policy's order": (form(("engine", "a"), ("owned_by", "b")), True, ("b",), "", False),
    "an empty one is absent": (form(("owned_by", " "), ("engine", "b")), True, ("b",), "", False),
    "after the file": (form(FILE, ("owned_by", "a"), ("model", "m")), True, ("a",), "m", False),
    "neither": (form(FILE), True, (), "", False),
    "with trailers": (form(("owned_by", "a"), ("model", "m")), False, ("a",), "m", False),
    "a prefix": (form(("owned_by", "a"), FILE, end=False), False, ("a",), "", True),
    "a prefix that ends before": (form(FILE, end=False), False, (), "", True),
    "a prefix that ends within": (form(("owned_by", "a"))[:-16], False, (), "", True),
    "cut, but ended": (form(("owned_by", "a"), FILE, end=False), True, ("a",), "", False),
    "JSON": (b'{"owned_by": "a"}', True, (), "", False),
    "empty": (b"", True, (), "", False),
}


@pytest.mark.parametrize(("body", "ended", "owners", "model", "truncated"), FORMS.values(), ids=FORMS)
def test_a_form_names_owner_and_model_in_its_fields(
    body: bytes,
    ended: bool,  # noqa: FBT001 - a column
    owners: tuple[str, ...],
    model: str,
    truncated: bool,  # noqa: FBT001 - a column
) -> None:
    request = from_body(read_head(), body, DEFAULT, ended=ended, form=BodyFormat("edge"))
    found = (request.owners, request.model, request.truncated, request.malformed)
    assert found == (owners, model, truncated, None)


def test_a_form_is_read_by_the_policys_names_and_aliases() -> None:
    own = policy("sources: {body: [by]}\nmodelAliases: {small: qwen}\n")
    data = form(("owned_by", "a"), ("by", "trtllm"), ("model", "small"))
    request = from_body(read_head(), data, own, ended=True, form=BodyFormat("edge"))
    assert (request.owners, request.param, request.model) == (("trtllm-serve",), "by", "qwen")


def test_a_field_of_a_form_that_is_no_owner_is_malformed() -> None:
    request = from_body(read_head(), form(("engine", "b@d")), DEFAULT, ended=True, form=BodyFormat("edge"))
    assert (request.owners, request.malformed) == ((), Malformed("engine", f"`engine` {NO_OWNER}"))


def test_a_forms_model_is_compared_with_the_gateways() -> None:
    head = read_head(x_gateway_model_name=["h"])
    request = from_body(head, form(("model", "m")), DEFAULT, ended=True, form=BodyFormat("edge"))
    assert (request.model, request.mismatch) == ("m", True)


# What a filter before us has found out

FILTERED: dict[str, tuple[tuple[str, str, Reason | None], dict[str, Any]]] = {
    "an owner and a model": (("sglang", "m", None), {"owners": ("sglang",), "model": "m"}),
    "anything": (("*", "", None), {"owners": ("*",), "model": ""}),
    "a model": (("", "m", None), {"owners": (), "model": "m"}),
    "that it passed": (("", "m", Reason.OWNER_ABSENT), {"owners": (), "model": "m", "passed": Reason.OWNER_ABSENT}),
}


@pytest.mark.parametrize("header", ["vllm", "b@d", ""], ids=["another", "malformed", "none"])
@pytest.mark.parametrize(("told", "expected"), FILTERED.values(), ids=FILTERED)
def test_what_a_filter_before_us_has_found_out_takes_the_place_of_what_a_request_says(
    told: tuple[str, str, Reason | None], expected: dict[str, Any], header: str
) -> None:
    request = read_head(x_owned_by=[header], x_gateway_model_name=["h"])
    assert from_filter(request, *told) == InferenceRequest(
        scope=SCOPE, method="POST", path="/v1/chat/completions", header_model="h", told=True, **expected
    )


@pytest.mark.parametrize(
    ("path", "interpreted"),
    [("/v1/chat/completions", True), ("/v1/models?x=/v1/", True), ("/health", False), ("/v2/x", False), ("/v1", False)],
)
def test_only_the_policys_paths_are_interpreted(path: str, interpreted: bool) -> None:  # noqa: FBT001 - a column
    assert read_head(path).interpreted is interpreted


@pytest.mark.parametrize(
    ("path", "interpreted"),
    [("/openai/chat", True), ("/v1", True), ("/v1/chat/completions", False), ("/openai", False), ("/" * 200, False)],
)
def test_a_policy_may_have_other_paths(path: str, interpreted: bool) -> None:  # noqa: FBT001 - a column
    own = policy("paths: ['/openai/*', /v1]\n")
    assert read_head(path, own).interpreted is interpreted
    assert read_head("/openai/" + "x" * 200, own).interpreted


def test_the_headers_that_are_read_are_known_before() -> None:
    assert header_names(policy("sources: {headers: [x-a], modelHeaders: [x-m]}\n")) == {
        ":method",
        ":path",
        "content-type",
        "content-encoding",
        "upgrade",
        "x-a",
        "x-m",
    }


def test_half_a_surrogate_pair_costs_neither_owner_nor_model() -> None:
    found = read_body(b'{"owned_by": "sglang", "model": "m\\ud83d", "prompt": "cut \\ud83d"}')

    assert (found.owners, found.model) == (("sglang",), "m?")


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    "half", ["\\ud83d", "\\ude00", "\\ud83d?", "\\ud83d\\n"], ids=["high", "low", "near the end", "escape"]
)
def test_half_a_surrogate_pair_in_the_last_string_costs_no_owner(
    half: str,
    ended: bool,  # noqa: FBT001 - a column
) -> None:
    found = read_body(b'{"owned_by": "sglang", "prompt": "cut %b"}' % half.encode(), ended=ended)

    assert (found.owners, found.truncated, found.malformed) == (("sglang",), False, None)


def test_a_nested_key_that_stands_twice_does_not_spoil_a_prefix() -> None:
    found = read_body(b'{"owned_by": "sglang", "tools": [{"a": 1, "a": 2}], "prompt": "cut', ended=False)

    assert (found.owners, found.truncated) == (("sglang",), True)


def test_a_model_header_is_utf_8() -> None:
    assert read_head(x_gateway_model_name=["modèle".encode().decode("latin-1")]).model == "modèle"


def test_a_path_is_compared_as_the_engines_read_it() -> None:
    assert read_head("/%761/chat/completions").interpreted
