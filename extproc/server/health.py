# SPDX-License-Identifier: Apache-2.0
"""Health as named components, served as gRPC Health v1 under the names of the Endpoint Picker protocol.

Ready means that every component is well; alive means that the process answers, before it is ready and while it drains.
"""

import asyncio
from collections.abc import Iterable

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from extproc.envoy import names

LIVENESS = "liveness"
READY_NAMES = ("", "readiness", names.SERVICE)


class Health:
    """What must be well before requests are welcome."""

    def __init__(self, components: Iterable[str]) -> None:
        """All components unwell."""
        self.servicer = aio.HealthServicer()
        self.became_ready = asyncio.Event()
        self._components = dict.fromkeys(components, False)

    @property
    def ready(self) -> bool:
        """Whether every component is well."""
        return all(self._components.values())

    @property
    def components(self) -> dict[str, bool]:
        """Each component and whether it is well."""
        return dict(self._components)

    async def set(self, component: str, *, well: bool) -> None:
        """Say how a component is and publish what follows."""
        self._components[component] = well
        await self.publish()

    async def publish(self) -> None:
        """Tell all watchers the present state."""
        status = health_pb2.HealthCheckResponse
        serving = status.SERVING if self.ready else status.NOT_SERVING
        if self.ready:
            self.became_ready.set()
        for name in READY_NAMES:
            await self.servicer.set(name, serving)
        await self.servicer.set(LIVENESS, status.SERVING)
