# SPDX-License-Identifier: Apache-2.0
"""Start, ready, SIGTERM, drain, stop.

    listen -> ready once every component is well -> (SIGTERM or SIGINT) not ready, still accepting -> drain delay
           -> refuse new streams -> the last one ends, or drain timeout -> exit

A second signal skips what is left of the waiting.
"""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Final

import grpc
from grpc_health.v1 import health_pb2_grpc

from extproc.observability.logs import Logger
from extproc.server.extproc import ExternalProcessor
from extproc.server.health import Health
from extproc.server.listener import HttpServer

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),  # a body message is as large as Envoy's buffer, times two
    ("grpc.so_reuseport", 0),  # two servers on one port are a mistake, not load balancing
)


class Lifecycle:
    """The listening parts of one process, from start to stop."""

    def __init__(  # noqa: PLR0913 - the parts and the addresses
        self,
        processor: ExternalProcessor,
        health: Health,
        http: dict[str, HttpServer],
        logger: Logger,
        *,
        address: str,
        grpc_port: int,
        grpc_health_port: int,
        drain_delay: float,
        drain_timeout: float,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """`http` names each HTTP server by the log's field for its port; with `credentials` ext_proc is served over TLS."""
        self._processor = processor
        self._health = health
        self._http = http
        self._logger = logger
        self._listen = f"[{address}]" if ":" in address else address
        self._ports = {"grpc_port": grpc_port, "grpc_health_port": grpc_health_port}
        self._credentials = credentials
        self._drain_delay = drain_delay
        self._drain_timeout = drain_timeout
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal, then drain. Raises OSError when a port is taken."""
        server, health_server = grpc.aio.server(options=_OPTIONS), grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((self._processor.handler(),))
        ports = {}
        # The kubelet's gRPC probe speaks no TLS, so the health port never does.
        for each, flag, credentials in (
            (server, "grpc_port", self._credentials),
            (health_server, "grpc_health_port", None),
        ):
            health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, each)
            ports[flag] = self._bind(each, self._ports[flag], credentials)
        await self._health.publish()
        await health_server.start()
        await server.start()
        with self._signals():
            async with asyncio.TaskGroup() as group:
                for http in self._http.values():
                    group.create_task(http.run_until_stopped())
                await self._health.set("serving", well=True)
                ports |= {name: http.port for name, http in self._http.items()}
                self._logger.info("listening", logger="lifecycle", **ports)
                announcing = group.create_task(self._announce())
                await self._stop.wait()
                announcing.cancel()
                await self._drain(server)
                for http in self._http.values():
                    http.should_exit = True
            await health_server.stop(0)
        self._logger.info("stopped", logger="lifecycle")

    async def _announce(self) -> None:
        await self._health.became_ready.wait()
        self._logger.info("ready", logger="lifecycle")

    async def _drain(self, server: grpc.aio.Server) -> None:
        self._logger.info("draining", logger="lifecycle", streams=self._processor.open_streams)
        await self._health.set("serving", well=False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), self._drain_delay)
        stopping = asyncio.create_task(server.stop(self._drain_timeout))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((stopping, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not stopping.done():
            await server.stop(0)
        await stopping

    def _bind(self, server: grpc.aio.Server, port: int, credentials: grpc.ServerCredentials | None) -> int:
        address = f"{self._listen}:{port}"
        try:
            return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def received() -> None:
            (self._hurry if self._stop.is_set() else self._stop).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, received)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
