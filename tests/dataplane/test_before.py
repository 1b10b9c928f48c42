# SPDX-License-Identifier: Apache-2.0
"""`before` and a picker that only the hint can steer, through a real Envoy."""

import asyncio
import re

import msgspec
import pytest

from extproc.demo.cases import LLAMA, QWEN
from tests.builders import SPOOFABLE
from tests.dataplane.conftest import Gateway
from tests.dataplane.wire import chunks, digest, exchange, head, post

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
SIZES = {"100 KB": 100_000, "3 MB": 3_000_000}


def body(model: str = LLAMA, *, prompt: int = 0, first: dict[str, object] | None = None, **last: object) -> bytes:
    """A chat request; `first` stands before the prompt, `last` after it."""
    fields = {**(first or {}), "model": model, "prompt": "p" * prompt, **last}
    return msgspec.json.encode(fields)


def engine_name(model: str, owner: str) -> str:
    return f"{'llama' if model == LLAMA else 'qwen'}-{owner}"


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
@pytest.mark.parametrize("model", [LLAMA, QWEN])
@pytest.mark.parametrize("source", ["header", "query", "owned_by", "engine", "inference_server", "query engine"])
async def test_each_source_reaches_the_engine_and_the_model(
    gateway: Gateway, source: str, model: str, owner: str
) -> None:
    path, lines, fields = CHAT, [], {}
    match source:
        case "header":
            lines = [f"X-Owned-By: {owner.upper()} "]
        case "query":
            path += f"?owned_by={owner}"
        case "query engine":
            path += f"?a=b&engine=%{ord(owner[0]):x}{owner[1:]}"
        case _:
            fields = {source: owner}
    answers = [await exchange(gateway.port, post(path, body(model, **fields), *lines)) for _ in range(4)]

    assert [(a.status, a.headers["x-served-by"]) for a in answers] == [(200, engine_name(model, owner))] * 4


@pytest.mark.parametrize("framing", ["content-length", "chunked", "trailers"])
@pytest.mark.parametrize("place", ["before the prompt", "after the prompt", "header"])
@pytest.mark.parametrize("size", [10, 2_000, 100_000])
async def test_a_body_arrives_as_it_was_sent_at_the_engine_that_it_names(
    gateway: Gateway, size: int, place: str, framing: str
) -> None:
    first = {"owned_by": "sglang"} if place == "before the prompt" else None
    last = {"owned_by": "sglang"} if place == "after the prompt" else {}
    sent = body(QWEN, prompt=size, first=first, **last)
    lines = ["x-owned-by: sglang"] if place == "header" else []
    if framing == "content-length":
        request = [post(CHAT, sent, *lines)]
    else:
        trailer = "x-trailer: yes" if framing == "trailers" else ""
        lines += ["transfer-encoding: chunked"] + (["trailer: x-trailer"] if trailer else [])
        request = [head(CHAT, *lines), chunks(sent, 7_000, trailer=trailer)]
    answer = await exchange(gateway.port, *request)

    assert (answer.status, answer.headers["x-served-by"]) == (200, "qwen-sglang")
    assert (answer.headers["x-body-bytes"], answer.headers["x-body-sha256"]) == (str(len(sent)), digest(sent))


async def test_ten_bytes_that_name_nothing_pass_through(gateway: Gateway) -> None:
    answer = await exchange(gateway.port, post("/v1/embeddings", b'{"a":"bc"}'))

    assert (answer.status, answer.headers["x-body-sha256"]) == (200, digest(b'{"a":"bc"}'))


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_three_megabytes_go_to_the_owner_that_their_prefix_names(gateway: Gateway, framing: str) -> None:
    sent = body(LLAMA, prompt=3_000_000, first={"owned_by": "sglang"})
    if framing == "content-length":
        answer = await exchange(gateway.port, post(CHAT, sent))
    else:
        answer = await exchange(gateway.port, head(CHAT, "transfer-encoding: chunked"), chunks(sent, 50_000))

    assert (answer.status, answer.headers["x-served-by"]) == (200, "llama-sglang")
    assert answer.headers["x-body-sha256"] == digest(sent)


async def test_an_owner_behind_three_megabytes_is_as_if_it_were_absent(gateway: Gateway) -> None:
    sent = body(LLAMA, prompt=3_000_000, owned_by="tgi")
    answer = await exchange(gateway.port, post(CHAT, sent))

    assert answer.status == 200
    assert answer.headers["x-served-by"] in ("llama-vllm", "llama-sglang")
    assert answer.headers["x-body-sha256"] == digest(sent)


class TestWithoutBody:
    """GET, and what only looks like a request with a body."""

    async def test_the_models_are_listed_with_their_owners(self, gateway: Gateway) -> None:
        answer = await exchange(gateway.port, head("/v1/models", method="GET"))
        entries = [
            {"id": model, "object": "model", "created": 7, "owned_by": owner, "max_model_len": 4096}
            for model in sorted((LLAMA, QWEN))
            for owner in ("sglang", "vllm")
        ]

        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == {"object": "list", "data": entries}

    async def test_one_model_is_found_with_an_escaped_slash(self, gateway: Gateway) -> None:
        answer = await exchange(
            gateway.port, head(f"/v1/models/{LLAMA.replace('/', '%2F')}?owned_by=vllm", method="GET")
        )

        assert (answer.status, answer.json()["id"], answer.json()["owned_by"]) == (200, LLAMA, "vllm")

    async def test_head_has_no_body(self, gateway: Gateway) -> None:
        answer = await asyncio.to_thread(_head_request, gateway.port)

        assert answer == (200, b"")

    async def test_a_get_reaches_the_engine_that_it_names(self, gateway: Gateway) -> None:
        answers = [
            await exchange(gateway.port, head("/v1/responses/1", "x-owned-by: sglang", method="GET")) for _ in range(4)
        ]

        assert {a.headers["x-served-by"] for a in answers} == {"llama-sglang", "qwen-sglang"}

    async def test_an_upgrade_is_not_held_for_a_body(self, gateway: Gateway) -> None:
        lines = [
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
            "x-owned-by: vllm",
        ]
        answer = await asyncio.wait_for(exchange(gateway.port, head("/v1/realtime", *lines, method="GET")), 20)

        assert answer.status < 500


def _head_request(port: int) -> tuple[int, bytes]:
    import http.client  # noqa: PLC0415

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("HEAD", "/v1/models")
    response = connection.getresponse()
    result = (response.status, response.read())
    connection.close()
    return result


class TestHeaders:
    """What a client says in headers."""

    async def test_equal_lines_count_once(self, gateway: Gateway) -> None:
        answer = await exchange(gateway.port, post(CHAT, body(), "x-owned-by: vllm", "X-Owned-By: VLLM"))

        assert (answer.status, answer.headers["x-served-by"]) == (200, "llama-vllm")

    async def test_different_lines_are_a_400(self, gateway: Gateway) -> None:
        answer = await exchange(gateway.port, post(CHAT, body(), "x-owned-by: vllm", "x-owned-by: sglang"))

        assert (answer.status, answer.headers["x-owned-by-reason"]) == (400, "owner-malformed")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "error": {
                "message": "`x-owned-by` is given more than once with different values",
                "type": "invalid_request_error",
                "param": "x-owned-by",
                "code": "owner_malformed",
            }
        }

    async def test_what_only_a_gateway_may_say_never_reaches_an_engine(self, gateway: Gateway) -> None:
        foreign = next(one for one in gateway.engines.endpoints if one.name == "qwen-sglang")
        spoofed = [f"{name}: 127.0.0.1:{foreign.port}" for name in SPOOFABLE]
        answer = await exchange(gateway.port, post(CHAT, body(), "x-owned-by: vllm", *spoofed))
        seen = set(answer.headers["x-seen-headers"].split(","))

        assert answer.headers["x-served-by"] == "llama-vllm"
        assert seen & set(SPOOFABLE) == {"x-gateway-destination-endpoint"}  # the picker's own

    async def test_success_shows_no_header_of_ours(self, gateway: Gateway) -> None:
        answer = await exchange(gateway.port, post(CHAT, body(), "x-owned-by: vllm"))

        assert [name for name in answer.headers if "owned-by" in name or "gateway" in name] == []

    async def test_the_access_log_shows_owner_and_reason(self, gateway: Gateway) -> None:
        await exchange(gateway.port, post(CHAT, body(owned_by="tgi")))
        port = next(one.port for one in gateway.engines.endpoints if one.name == "llama-sglang")
        await exchange(gateway.port, post(CHAT, body(), "x-owned-by: sglang"))
        wanted = [
            r"404 owned_by_owner_not_found owner-not-found  -",
            rf"200 via_upstream owner-matched sglang 127\.0\.0\.1:{port}",
        ]
        async with asyncio.timeout(30):
            while not all(re.search(line, gateway.access_log.read_text()) for line in wanted):  # noqa: ASYNC110 - Envoy writes it
                await asyncio.sleep(0.05)


class TestErrors:
    """Answers of ours, with a picker behind us that sees their way back."""

    @pytest.mark.parametrize(
        ("fields", "status", "code"),
        [
            ({"owned_by": "tgi"}, 404, "owner_not_found"),
            ({"owned_by": "vllm", "model": "gpt-0"}, 404, "model_not_found"),
            ({"owned_by": 7}, 400, "owner_malformed"),
        ],
    )
    async def test_an_error_reaches_the_client_whole(
        self, gateway: Gateway, fields: dict[str, object], status: int, code: str
    ) -> None:
        answer = await exchange(gateway.port, post(CHAT, msgspec.json.encode({"model": LLAMA} | fields)))

        assert (answer.status, answer.json()["error"]["code"]) == (status, code)
        assert answer.headers["x-owned-by-reason"] == code.replace("_", "-")
        assert "127.0.0.1" not in answer.body.decode()


async def test_fifty_at_once_all_reach_their_engine(gateway: Gateway) -> None:
    wanted = [(model, owner) for model in (LLAMA, QWEN) for owner in ("vllm", "sglang")] * 50
    limit = asyncio.Semaphore(50)

    async def one(model: str, owner: str) -> tuple[int, str]:
        async with limit:
            answer = await exchange(gateway.port, post(CHAT, body(model, prompt=2_000, owned_by=owner)))
        return answer.status, answer.headers["x-served-by"]

    answers = await asyncio.gather(*(one(*pair) for pair in wanted))

    assert answers == [(200, engine_name(*pair)) for pair in wanted]


async def test_no_stream_stays_open(gateway: Gateway) -> None:
    await exchange(gateway.port, post(CHAT, body(owned_by="vllm", stream=True)))
    stats = await gateway.envoy.stats("ext_proc")
    owned = {name.rpartition(".")[2]: value for name, value in stats.items() if ".owned_by." in name}

    assert owned["streams_started"] == owned["streams_closed"]
    assert (owned["streams_failed"], owned["rejected_header_mutations"], owned["spurious_msgs_received"]) == (0, 0, 0)
