# SPDX-License-Identifier: Apache-2.0
"""The stand-in for the EPP: its answers by hand, row by row of facts/epp.md, and its way through a real Envoy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.client import Answer
from extproc.demo.envoy import Envoy
from extproc.envoy.pb import external_processor_pb2 as pb
from tests.builders import body, header_map, headers, struct, trailers
from tests.dataplane.wire import chunks, digest, exchange, head, post
from tests.fakes.backend import FIRST, LAST, Backend, opened
from tests.fakes.epp import FRAME, SUBSET, SUBSET_NAMESPACE, EndpointPicker, Seen
from tests.streams import call

CHAT = "/v1/chat/completions"
RANK_0, RANK_1, OTHER, IPV6 = POOL = ("10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:8000", "[fd00::1]:8000")
NAMES = (":method", ":path", ":authority", "content-type")
NO_CANDIDATES = b"inference error: ServiceUnavailable - failed to find endpoint candidates for serving the request"


def hinted(message: pb.ProcessingRequest, value: Any) -> pb.ProcessingRequest:
    """The message with a subset hint."""
    message.metadata_context.filter_metadata[SUBSET_NAMESPACE].CopyFrom(struct({SUBSET: value}))
    return message


async def converse(picker: EndpointPicker, *messages: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
    """All that the picker says to a stream of these messages."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.port}") as channel:
        stream = call(channel)
        for message in messages:
            await stream.write(message)
        await stream.done_writing()
        return [reply async for reply in stream]


def picked(destination: str, **added: str) -> pb.ProcessingResponse:
    """The answer to a request's headers; `_` in a name stands for `-`."""
    reply = pb.ProcessingResponse(
        dynamic_metadata=struct({"envoy.lb": {"x-gateway-destination-endpoint": destination}})
    )
    response = reply.request_headers.response
    response.clear_route_cache = True
    response.header_mutation.CopyFrom(sets(x_gateway_destination_endpoint=destination, **added))
    return reply


def sets(**fields: str) -> pb.HeaderMutation:
    options = [
        pb.HeaderValueOption(header=pb.HeaderValue(key=name.replace("_", "-"), raw_value=value.encode()))
        for name, value in fields.items()
    ]
    return pb.HeaderMutation(set_headers=options)


def frame(kind: str, data: bytes, *, ends: bool) -> pb.ProcessingResponse:
    reply = pb.ProcessingResponse()
    getattr(reply, kind).response.body_mutation.streamed_response.CopyFrom(
        pb.StreamedBodyResponse(body=data, end_of_stream=ends)
    )
    return reply


def refused(status: int, text: bytes, **fields: str) -> pb.ProcessingResponse:
    answer = pb.ImmediateResponse(
        status=pb.HttpStatus(code=status), headers=sets(**fields) if fields else None, body=text
    )
    return pb.ProcessingResponse(immediate_response=answer)


class TestHint:
    """Facts 1.1, "The subset hint": which pods a request with a body may go to."""

    @pytest.mark.parametrize(
        ("value", "candidates"),
        [
            pytest.param(f"{OTHER},{RANK_0}", POOL, id="a string is ignored"),
            pytest.param(7, POOL, id="a number is ignored"),
            pytest.param({"0": OTHER}, POOL, id="a struct is ignored"),
            pytest.param(None, POOL, id="null is ignored"),
            pytest.param([OTHER, "10.9.9.9:8000"], [OTHER], id="unknown members are ignored"),
            pytest.param([7, None, [RANK_0], OTHER], [OTHER], id="members that are no strings are ignored"),
            pytest.param(["10.0.0.2"], [OTHER], id="a member needs no port"),
            pytest.param(["10.0.0.2:9"], [OTHER], id="a port is dropped"),
            pytest.param([RANK_1], [RANK_0, RANK_1], id="one rank means all ranks of the pod"),
            pytest.param([OTHER, RANK_0, OTHER], [RANK_0, RANK_1, OTHER], id="order and duplicates mean nothing"),
        ],
    )
    async def test_the_hint_leaves_these_pods(self, value: Any, candidates: list[str]) -> None:
        async with EndpointPicker(POOL, destinations=9) as picker:
            await converse(picker, headers(), hinted(body(b"{}"), value))

        assert sorted(picker.seen[0].pick.split(",")) == sorted(candidates)

    @pytest.mark.parametrize(
        "value",
        [
            pytest.param([], id="an empty list"),
            pytest.param(["10.9.9.9:8000"], id="nothing that is known"),
            pytest.param([7], id="no strings"),
            pytest.param([IPV6], id="IPv6 in brackets"),
            pytest.param(["fd00::1"], id="IPv6 without a port"),
        ],
    )
    async def test_a_list_that_leaves_no_pod_is_refused(self, value: Any) -> None:
        async with EndpointPicker(POOL) as picker:
            said = await converse(picker, headers(), hinted(body(b"{}"), value))

        assert said == [refused(503, NO_CANDIDATES, x_llm_d_request_dropped_reason="rejected-no-endpoints")]

    @pytest.mark.parametrize("metadata", [{}, {"envoy.lb": {SUBSET: [OTHER]}}, {SUBSET_NAMESPACE: {}}])
    async def test_without_the_namespace_or_the_key_it_is_the_whole_pool(self, metadata: dict[str, Any]) -> None:
        last = body(b"{}")
        for namespace, value in metadata.items():
            last.metadata_context.filter_metadata[namespace].CopyFrom(struct(value))
        async with EndpointPicker(POOL, destinations=9) as picker:
            await converse(picker, headers(), last)

        assert sorted(picker.seen[0].pick.split(",")) == sorted(POOL)

    async def test_the_message_that_ends_the_body_says_it(self) -> None:
        messages = [
            hinted(headers(), [RANK_0]),
            hinted(body(b"{", ends=False), [RANK_0]),
            hinted(body(b"}"), [OTHER]),
        ]
        async with EndpointPicker(POOL) as picker:
            await converse(picker, *messages)

        assert picker.seen == [Seen(hint=[OTHER], early_hint=[RANK_0], pick=OTHER, body_bytes=2, headers=NAMES)]

    async def test_trailers_that_end_the_request_say_it(self) -> None:
        async with EndpointPicker(POOL) as picker:
            await converse(picker, headers(), body(b"{}", ends=False), hinted(trailers(), [OTHER]))

        assert picker.seen == [Seen(hint=[OTHER], pick=OTHER, body_bytes=2, headers=NAMES)]


class TestRequest:
    """Facts 1.2, "What EPP sends back": the request's half."""

    async def test_a_body_comes_back_behind_the_headers_in_frames(self) -> None:
        sent = b"x" * (FRAME + 1)
        pairs = [("x-mine", "1"), ("x-mine", "2"), ("content-length", "9"), ("x-slo-ttft-ms", "3")]
        async with EndpointPicker([OTHER], headers={"x-prefiller-host-port": RANK_0}) as picker:
            said = await converse(picker, headers(*pairs), body(sent[:5], ends=False), body(sent[5:]))
        echoed = {"content_type": "application/json", "x_mine": "2", "x_prefiller_host_port": RANK_0}

        assert said == [
            picked(OTHER, Content_Length="62001", **echoed),
            frame("request_body", sent[:FRAME], ends=False),
            frame("request_body", b"x", ends=True),
        ]

    async def test_trailers_end_a_body_in_its_place(self) -> None:
        async with EndpointPicker([OTHER]) as picker:
            said = await converse(picker, headers(), body(b"{}", ends=False), trailers())

        assert said == [
            picked(OTHER, Content_Length="2", content_type="application/json"),
            frame("request_body", b"{}", ends=False),
            pb.ProcessingResponse(request_trailers=pb.TrailersResponse()),
        ]

    async def test_trailers_alone_have_no_body_before_them(self) -> None:
        async with EndpointPicker([OTHER]) as picker:
            said = await converse(picker, headers(), trailers())

        assert said == [
            picked(OTHER, content_type="application/json"),
            pb.ProcessingResponse(request_trailers=pb.TrailersResponse()),
        ]

    async def test_a_refusal_ends_the_stream_before_the_trailers(self) -> None:
        async with EndpointPicker([]) as picker:
            said = await converse(picker, headers(), body(b"{}", ends=False), trailers())

        assert said == [refused(503, NO_CANDIDATES, x_llm_d_request_dropped_reason="rejected-no-endpoints")]

    async def test_without_a_body_the_hint_is_ignored_and_nothing_is_echoed(self) -> None:
        async with EndpointPicker([OTHER], headers={"x-prefiller-host-port": RANK_0}) as picker:
            said = await converse(picker, hinted(headers(("x-mine", "1"), ends=True), [RANK_0]))

        assert said == [picked(OTHER)]
        assert picker.seen == [Seen(early_hint=[RANK_0], pick=OTHER, headers=(*NAMES, "x-mine"))]

    async def test_without_a_body_and_a_pod_it_is_an_internal_error(self) -> None:
        async with EndpointPicker([]) as picker:
            said = await converse(picker, headers(ends=True))

        assert said == [refused(500, b"inference error: Internal - no pods available in datastore")]

    async def test_several_destinations_are_a_list_of_different_pods(self) -> None:
        async with EndpointPicker(POOL, destinations=3) as picker:
            said = await converse(picker, headers(content_type=""), body(b""))
        destination = picker.seen[0].pick

        assert said == [picked(destination), frame("request_body", b"", ends=True)]
        assert len(set(destination.split(","))) == 3

    async def test_a_seed_repeats_the_picks(self) -> None:
        runs = []
        for _ in range(2):
            async with EndpointPicker(POOL, seed=1) as picker:
                for _ in range(10):
                    await converse(picker, headers(ends=True))
            runs.append([seen.pick for seen in picker.seen])

        assert runs[0] == runs[1]
        assert len(set(runs[0])) > 1


class TestResponse:
    """Facts 1.2, "What EPP sends back": the response's half, here without a request before it."""

    @staticmethod
    def head(content_type: str) -> pb.ProcessingRequest:
        fields = [(":status", "200"), ("content-type", content_type), ("content-length", "9"), ("x-envoy-a", "1")]
        return pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=header_map(fields)))

    @staticmethod
    def answered(content_type: str) -> pb.ProcessingResponse:
        reply = pb.ProcessingResponse()
        mutation = sets(x_went_into_resp_headers="true", content_type=content_type)
        reply.response_headers.response.header_mutation.CopyFrom(mutation)
        return reply

    @staticmethod
    def piece(data: bytes, *, ends: bool) -> pb.ProcessingRequest:
        return pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=ends))

    async def test_a_body_is_kept_to_its_end(self) -> None:
        sent = b"x" * (FRAME + 1)
        async with EndpointPicker(POOL) as picker:
            said = await converse(
                picker, self.head("application/json"), self.piece(sent[:5], ends=False), self.piece(sent[5:], ends=True)
            )

        assert said == [
            self.answered("application/json"),
            frame("response_body", sent[:FRAME], ends=False),
            frame("response_body", b"x", ends=True),
        ]

    async def test_events_pass_one_by_one(self) -> None:
        kind = "text/event-stream; charset=utf-8"
        async with EndpointPicker(POOL) as picker:
            said = await converse(
                picker,
                self.head(kind),
                self.piece(FIRST, ends=False),
                self.piece(LAST, ends=False),
                self.piece(b"", ends=True),
            )

        assert said == [
            self.answered(kind),
            frame("response_body", FIRST, ends=False),
            frame("response_body", LAST, ends=False),
            frame("response_body", b"", ends=True),
        ]

    async def test_trailers_let_a_body_go_and_end_it(self) -> None:
        last = pb.ProcessingRequest(response_trailers=pb.HttpTrailers(trailers=header_map([("x-end", "1")])))
        async with EndpointPicker(POOL) as picker:
            said = await converse(picker, self.head("application/json"), self.piece(b"{}", ends=False), last)

        assert said == [
            self.answered("application/json"),
            frame("response_body", b"{}", ends=False),
            pb.ProcessingResponse(response_trailers=pb.TrailersResponse()),
        ]

    async def test_it_is_noted_that_there_was_no_request(self) -> None:
        async with EndpointPicker(POOL) as picker:
            await converse(picker, self.head("application/json"))

        assert picker.seen == [Seen(began_at_response=True)]


class Gateway:
    """An Envoy with the stand-in in the EPP's place, and a pool of three pods."""

    def __init__(self, envoy: Envoy, picker: EndpointPicker, backend: Backend) -> None:
        self.envoy = envoy
        self.picker = picker
        self.backend = backend

    async def ask(self, *pieces: bytes) -> Answer:
        return await exchange(self.envoy.port, *pieces)

    def member(self, name: str) -> str:
        return self.backend.address(name)


@asynccontextmanager
async def through_envoy(folder: Path, *, hold: bool = False, before_port: int | None = None) -> AsyncIterator[Gateway]:
    hosts = {f"pod-{number}": f"127.0.0.{number}" for number in (2, 3, 4)}
    async with (
        Backend(hosts, hold=hold) as backend,
        EndpointPicker([backend.address(name) for name in hosts]) as picker,
    ):
        plan = Plan(endpoints=tuple(backend.endpoints.values()), picker_port=picker.port, before_port=before_port)
        async with Envoy(bootstrap(plan), folder) as envoy:
            yield Gateway(envoy, picker, backend)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with through_envoy(tmp_path) as opened_:
        yield opened_


class TestThroughEnvoy:
    """What the parties to it see."""

    @pytest.mark.parametrize("size", [10, 200_000, 3_000_000])
    async def test_a_body_reaches_the_picked_pod_as_it_was_sent(self, gateway: Gateway, size: int) -> None:
        sent = b"x" * size
        answers = [await gateway.ask(post(CHAT, sent)) for _ in range(4)]
        reached = [(gateway.member(a.headers["x-served-by"]), a.headers["x-body-sha256"]) for a in answers]

        assert reached == [(seen.pick, digest(sent)) for seen in gateway.picker.seen]
        assert [seen.body_bytes for seen in gateway.picker.seen] == [size] * 4

    async def test_the_length_of_a_body_is_lost_on_the_way(self, gateway: Gateway) -> None:
        # Envoy drops it in FULL_DUPLEX_STREAMED, whatever the EPP sets (facts/envoy.md 2.2 and 2.4)
        told = (await gateway.ask(post(CHAT, b"{}"))).headers

        assert (told["x-content-length"], told["x-transfer-encoding"], told["x-body-bytes"]) == ("-", "chunked", "2")

    async def test_trailers_arrive_behind_the_body(self, gateway: Gateway) -> None:
        lines = ["transfer-encoding: chunked", "trailer: x-end"]
        told = (await gateway.ask(head(CHAT, *lines), chunks(b"{}", 1, trailer="x-end: yes"))).headers

        assert (told["x-body-sha256"], told["x-trailers"]) == (digest(b"{}"), "x-end=yes")

    async def test_requests_without_a_body_reach_the_picked_pods(self, gateway: Gateway) -> None:
        answers = [await gateway.ask(head("/v1/models", method="GET")) for _ in range(8)]
        reached = [gateway.member(answer.headers["x-served-by"]) for answer in answers]

        assert reached == [seen.pick for seen in gateway.picker.seen]

    async def test_an_answer_passes_event_by_event(self, tmp_path: Path) -> None:
        async with through_envoy(tmp_path, hold=True) as gateway, opened(gateway.envoy.port) as answer:
            first = await answer.content.readuntil(b"\n\n")
            gateway.backend.release()
            rest = await answer.read()

        assert (first, rest, answer.headers["x-went-into-resp-headers"]) == (FIRST, LAST, "true")

    async def test_a_refusal_reaches_the_client_as_plain_text(self, gateway: Gateway) -> None:
        gateway.picker.pool = []
        answer = await gateway.ask(post(CHAT, b"{}"))

        assert (answer.status, answer.headers["content-type"], answer.body) == (503, "text/plain", NO_CANDIDATES)

    async def test_what_a_filter_before_it_answers_passes_through(self, tmp_path: Path) -> None:
        async with (
            EndpointPicker([]) as before,
            through_envoy(tmp_path, before_port=before.port) as gateway,
        ):
            answer = await gateway.ask(head("/v1/models", method="GET"))

        assert (answer.status, answer.headers["x-went-into-resp-headers"]) == (500, "true")
        assert answer.body == b"inference error: Internal - no pods available in datastore"
        assert gateway.picker.seen == [Seen(began_at_response=True)]

    async def test_envoy_refuses_nothing_of_it(self, gateway: Gateway) -> None:
        await gateway.ask(head("/v1/models", method="GET"))
        await gateway.ask(post(CHAT, b"{}", "x-envoy-max-retries: 0"))
        stats = await gateway.envoy.stats("ext_proc.epp")
        wrong = ("rejected_header_mutations", "spurious_msgs_received", "streams_failed", "message_timeouts")

        assert {name: stats[f"http.gateway.ext_proc.epp.{name}"] for name in wrong} == dict.fromkeys(wrong, 0)
