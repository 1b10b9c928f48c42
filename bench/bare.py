# SPDX-License-Identifier: Apache-2.0
"""The yardstick: the least that a grpc.aio ext_proc server can do, answering each message with constant bytes.

    python -m bench.bare HEADERS_REPLY [BODY_REPLY]     (files; prints its port)

It reads and writes as the real server does, decides nothing, logs nothing and counts nothing.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop

from extproc.envoy import names
from extproc.envoy.pb import external_processor_pb2 as pb


async def main(replies: list[bytes]) -> None:
    """Serve until killed."""

    async def process(_requests: object, context: Any) -> None:
        for reply in replies:
            if await context.read() is grpc.aio.EOF:
                return
            await context.write(reply)

    handler = grpc.stream_stream_rpc_method_handler(process, request_deserializer=pb.ProcessingRequest.FromString)
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(names.SERVICE, {names.METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main([Path(name).read_bytes() for name in sys.argv[1:]]))
