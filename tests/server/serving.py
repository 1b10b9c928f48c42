# SPDX-License-Identifier: Apache-2.0
"""An ASGI application at a port of its own, while a test looks at it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import ASGIApp

from extproc.server.listener import HttpServer


@contextlib.asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    """Its address, without a slash at the end."""
    server = HttpServer(app, "127.0.0.1", 0)
    task = asyncio.create_task(server.run_until_stopped())
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.should_exit = True
        await task


async def raw(url: str, request: bytes) -> bytes:
    """All that comes back for these bytes, until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer
