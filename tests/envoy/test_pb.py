# SPDX-License-Identifier: Apache-2.0
"""Our small protocol against Envoy's own descriptors, and against another implementation of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from extproc.envoy import names
from extproc.envoy.pb import external_processor_pb2 as pb
from tests.builders import SPOOFABLE, body, destination, goes_on, headers, struct

SERVICE = "envoy.service.ext_proc.v3"
ELSEWHERE = {
    "HeaderMap": "envoy.config.core.v3",
    "HeaderValue": "envoy.config.core.v3",
    "HeaderValueOption": "envoy.config.core.v3",
    "Metadata": "envoy.config.core.v3",
    "HttpStatus": "envoy.type.v3",
    "ProcessingMode": "envoy.extensions.filters.http.ext_proc.v3",
}
DUMP = """
import json, sys
from google.protobuf import descriptor_pool
from envoy.service.ext_proc.v3 import external_processor_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.config.core.v3 import base_pb2
from envoy.type.v3 import http_status_pb2
pool = descriptor_pool.Default()
def field(f):
    return {
        "number": f.number, "type": f.type, "repeated": f.is_repeated,
        "oneof": f.containing_oneof.name if f.containing_oneof else None,
        "message": f.message_type.name if f.message_type else None,
        "enum": f.enum_type.name if f.enum_type else None,
    }
def message(m):
    return {
        "fields": {f.name: field(f) for f in m.fields},
        "enums": {e.name: {v.name: v.number for v in e.values} for e in m.enum_types},
        "nested": {n.name: message(n) for n in m.nested_types},
    }
service = pool.FindServiceByName("envoy.service.ext_proc.v3.ExternalProcessor")
json.dump({
    "messages": {name: message(pool.FindMessageTypeByName(name)) for name in sys.argv[1:]},
    "status": {v.name: v.number for v in pool.FindEnumTypeByName("envoy.type.v3.StatusCode").values},
    "methods": {
        m.name: [m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming]
        for m in service.methods
    },
}, sys.stdout)
"""


def run(script: str, *arguments: str, path: Path | None = None, given: str = "") -> Any:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        env=environment,
        input=given,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MESSAGES: dict[str, Descriptor] = dict(pb.DESCRIPTOR.message_types_by_name)


@pytest.fixture(scope="module")
def real() -> Any:
    theirs = [f"{ELSEWHERE.get(name, SERVICE)}.{name}" for name in MESSAGES]
    return run(DUMP, *theirs, path=Path(sys.prefix) / "xds")


def field(ours: FieldDescriptor) -> dict[str, Any]:
    return {
        "number": ours.number,
        "type": ours.type,
        "repeated": ours.is_repeated,
        "oneof": ours.containing_oneof.name if ours.containing_oneof else None,
        "message": ours.message_type.name if ours.message_type else None,
        "enum": ours.enum_type.name if ours.enum_type else None,
    }


def differences(ours: Descriptor, theirs: dict[str, Any]) -> list[str]:
    """What of ours is not in theirs as it is."""
    found = [
        f"{ours.name}.{f.name}: {field(f)} != {theirs['fields'].get(f.name)}"
        for f in ours.fields
        if field(f) != theirs["fields"].get(f.name)
    ]
    for enum in ours.enum_types:
        found += unknown_values(enum, theirs["enums"].get(enum.name, {}))
    for nested in ours.nested_types:
        found += differences(nested, theirs["nested"][nested.name])
    return found


def unknown_values(ours: EnumDescriptor, theirs: dict[str, int]) -> list[str]:
    return [f"{ours.name}.{v.name} = {v.number}" for v in ours.values if theirs.get(v.name) != v.number]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_a_part_of_envoys(name: str, real: Any) -> None:
    theirs = real["messages"][f"{ELSEWHERE.get(name, SERVICE)}.{name}"]
    assert differences(MESSAGES[name], theirs) == []


def test_the_statuses_are_envoys(real: Any) -> None:
    assert unknown_values(pb.StatusCode.DESCRIPTOR, real["status"]) == []


def test_every_status_that_we_answer_with_has_a_name() -> None:
    assert set(pb.StatusCode.values()) >= {200, 400, 403, 404, 408, 413, 503}


def test_the_service_is_envoys(real: Any) -> None:
    service = pb.DESCRIPTOR.services_by_name["ExternalProcessor"]
    assert service.full_name == "envoy.service.ext_proc.v3.ExternalProcessor"
    ours = {
        m.name: [m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming]
        for m in service.methods
    }
    assert ours == real["methods"]
    assert ours == {"Process": [f"{SERVICE}.ProcessingRequest", f"{SERVICE}.ProcessingResponse", True, True]}
    assert (service.full_name, "Process") == (names.SERVICE, names.METHOD)


EXCHANGE = """
import json, sys
import envoy_data_plane.envoy.service.ext_proc.v3 as v3
from envoy_data_plane.envoy.config.core.v3 import HeaderMap, HeaderValue, HeaderValueOption
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ProcessingMode, ProcessingModeBodySendMode
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
given = json.load(sys.stdin)
read = {
    name: getattr(v3, kind).parse(bytes.fromhex(data)).to_dict() for name, (kind, data) in given.items()
}
full = ProcessingModeBodySendMode.FULL_DUPLEX_STREAMED
written = {
    "headers": v3.ProcessingRequest(
        request_headers=v3.HttpHeaders(
            headers=HeaderMap(headers=[HeaderValue(key=":path", raw_value=b"/v1/x")]), end_of_stream=True
        ),
        protocol_config=v3.ProtocolConfiguration(request_body_mode=full),
    ),
    "body": v3.ProcessingRequest(request_body=v3.HttpBody(body=b"{}", end_of_stream=True)),
    "trailers": v3.ProcessingRequest(
        request_trailers=v3.HttpTrailers(trailers=HeaderMap(headers=[HeaderValue(key="a", raw_value=b"b")]))
    ),
    "asks": v3.ProcessingResponse(
        request_headers=v3.HeadersResponse(response=v3.CommonResponse(
            header_mutation=v3.HeaderMutation(
                set_headers=[HeaderValueOption(header=HeaderValue(key="c", raw_value=b"d"))], remove_headers=["e"]
            )
        )),
        mode_override=ProcessingMode(request_body_mode=ProcessingModeBodySendMode.BUFFERED_PARTIAL),
    ),
    "refusal": v3.ProcessingResponse(
        immediate_response=v3.ImmediateResponse(
            status=HttpStatus(code=StatusCode.NotFound), body=b"no", details="owned_by_x"
        )
    ),
    "frame": v3.ProcessingResponse(
        request_body=v3.BodyResponse(response=v3.CommonResponse(body_mutation=v3.BodyMutation(
            streamed_response=v3.StreamedBodyResponse(body=b"piece", end_of_stream=True)
        )))
    ),
}
json.dump({"read": read, "written": {name: bytes(message).hex() for name, message in written.items()}}, sys.stdout)
"""


def refusal() -> pb.ProcessingResponse:
    status = pb.HttpStatus(code=pb.StatusCode.ServiceUnavailable)
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(status=status, body=b"no", details="owned_by_x"),
        dynamic_metadata=struct({"owned_by": {"reason": "x"}}),
    )


@pytest.fixture(scope="module")
def exchange() -> Any:
    ours = {
        "headers": headers(("a", "b"), mode=pb.ProcessingMode.FULL_DUPLEX_STREAMED, ends=True),
        "body": body(b"{}"),
        "goes on": goes_on(destination("10.0.0.1:8000"), sets={"c": "d"}),
        "refusal": refusal(),
    }
    given = {name: (type(message).__name__, message.SerializeToString().hex()) for name, message in ours.items()}
    return run(EXCHANGE, given=json.dumps(given))


THEY_READ = {
    "headers": {
        "requestHeaders": {
            "headers": {
                "headers": [
                    {"key": ":method", "rawValue": "UE9TVA=="},
                    {"key": ":path", "rawValue": "L3YxL2NoYXQvY29tcGxldGlvbnM="},
                    {"key": ":authority", "rawValue": "Z2F0ZXdheQ=="},
                    {"key": "content-type", "rawValue": "YXBwbGljYXRpb24vanNvbg=="},
                    {"key": "a", "rawValue": "Yg=="},
                ]
            },
            "endOfStream": True,
        },
        "protocolConfig": {"requestBodyMode": "FULL_DUPLEX_STREAMED"},
    },
    "body": {"requestBody": {"body": "e30=", "endOfStream": True}},
    "goes on": {
        "requestHeaders": {
            "response": {
                "headerMutation": {
                    "setHeaders": [{"header": {"key": "c", "rawValue": "ZA=="}}],
                    "removeHeaders": list(SPOOFABLE),
                }
            }
        },
        "dynamicMetadata": {"envoy.lb": {"x-gateway-destination-endpoint": "10.0.0.1:8000"}},
    },
    "refusal": {
        "immediateResponse": {"status": {"code": "ServiceUnavailable"}, "body": "bm8=", "details": "owned_by_x"},
        "dynamicMetadata": {"owned_by": {"reason": "x"}},
    },
}


@pytest.mark.parametrize("name", THEY_READ)
def test_what_we_write_another_implementation_reads(name: str, exchange: Any) -> None:
    assert exchange["read"][name] == THEY_READ[name]


def one_header(key: str, value: bytes) -> pb.HeaderMap:
    return pb.HeaderMap(headers=[pb.HeaderValue(key=key, raw_value=value)])


def asks() -> pb.ProcessingResponse:
    message = pb.ProcessingResponse(
        mode_override=pb.ProcessingMode(request_body_mode=pb.ProcessingMode.BUFFERED_PARTIAL)
    )
    mutation = message.request_headers.response.header_mutation
    mutation.set_headers.append(pb.HeaderValueOption(header=pb.HeaderValue(key="c", raw_value=b"d")))
    mutation.remove_headers.append("e")
    return message


def frame() -> pb.ProcessingResponse:
    message = pb.ProcessingResponse()
    streamed = message.request_body.response.body_mutation.streamed_response
    streamed.body, streamed.end_of_stream = b"piece", True
    return message


WE_READ = {
    "headers": pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(headers=one_header(":path", b"/v1/x"), end_of_stream=True),
        protocol_config=pb.ProtocolConfiguration(request_body_mode=pb.ProcessingMode.FULL_DUPLEX_STREAMED),
    ),
    "body": pb.ProcessingRequest(request_body=pb.HttpBody(body=b"{}", end_of_stream=True)),
    "trailers": pb.ProcessingRequest(request_trailers=pb.HttpTrailers(trailers=one_header("a", b"b"))),
    "asks": asks(),
    "refusal": pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=pb.HttpStatus(code=pb.StatusCode.NotFound), body=b"no", details="owned_by_x"
        )
    ),
    "frame": frame(),
}


@pytest.mark.parametrize("name", WE_READ)
def test_what_another_implementation_writes_we_read(name: str, exchange: Any) -> None:
    expected = WE_READ[name]
    assert type(expected).FromString(bytes.fromhex(exchange["written"][name])) == expected
