# SPDX-License-Identifier: Apache-2.0
"""ext_proc streams to a running server, as Envoy opens them."""

from typing import Any

import grpc

from extproc.envoy import names
from extproc.envoy.pb import external_processor_pb2 as pb


def call(channel: grpc.aio.Channel, metadata: dict[str, str] | None = None) -> grpc.aio.StreamStreamCall[Any, Any]:
    """A stream with this initial metadata."""
    method = channel.stream_stream(
        f"/{names.SERVICE}/{names.METHOD}",
        request_serializer=pb.ProcessingRequest.SerializeToString,
        response_deserializer=pb.ProcessingResponse.FromString,
    )
    return method(metadata=tuple((metadata or {}).items()))


def first(**headers: str) -> pb.ProcessingRequest:
    """The first message of a POST with these headers (`_` stands for `-`)."""
    message = pb.ProcessingRequest(protocol_config=pb.ProtocolConfiguration())
    fields = {":method": "POST", ":path": "/v1/completions"} | {n.replace("_", "-"): v for n, v in headers.items()}
    for name, value in fields.items():
        message.request_headers.headers.headers.append(pb.HeaderValue(key=name, raw_value=value.encode()))
    return message
