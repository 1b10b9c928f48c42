# SPDX-License-Identifier: Apache-2.0
"""The composition root: the only file that knows every room."""

import asyncio
import gc
import time
from collections import Counter as Tally
from collections.abc import Callable
from typing import Any

import msgspec

from extproc import __version__
from extproc.discovery.file import WatchedFile, parse_endpoints
from extproc.discovery.snapshot import SnapshotStore
from extproc.envoy.binding import Binding
from extproc.observability.logs import DecisionLog, make_logger
from extproc.observability.metrics import Metrics
from extproc.policy.config import PolicyConfig, default_policy, parse_policy
from extproc.policy.document import DocumentError
from extproc.policy.types import Snapshot
from extproc.server.admin import HttpServer, admin_app, metrics_app
from extproc.server.extproc import ExternalProcessor
from extproc.server.health import Health
from extproc.server.lifecycle import Lifecycle
from extproc.settings import Settings

COMPONENTS = ("policy", "endpoints", "serving")


class PolicyStore:
    """The policy in force; the last good one stays until a better one comes."""

    def __init__(self) -> None:
        """The default policy."""
        self._current = default_policy()

    def current(self) -> PolicyConfig:
        """The policy in force."""
        return self._current

    def apply(self, text: bytes) -> None:
        """Put a document in force. Raises DocumentError, and then keeps the one that is."""
        self._current = parse_policy(text)


class App:
    """One process: its sources, its servers, and what joins them."""

    def __init__(self, settings: Settings) -> None:
        """Load the files. Raises DocumentError (its text names the file) for a bad one, OSError for a taken port."""
        self._settings = settings
        self._logger = make_logger(settings.log_format, settings.log_level)
        self._metrics = Metrics()
        self._policy = PolicyStore()
        self._store = SnapshotStore(self._metrics.show)
        self._started = time.time()
        self._sources = {"endpoints": WatchedFile(settings.endpoints_file, self._replace_endpoints)}
        if settings.config_file:
            self._sources["policy"] = WatchedFile(settings.config_file, self._policy.apply)
        for source in self._sources.values():
            try:
                source.load()
            except DocumentError as error:
                raise DocumentError(f"{source.path}: {error}") from error
            self._loaded(source, None)

    async def run(self) -> None:
        """Serve until a signal."""
        settings = self._settings
        health = Health(COMPONENTS)
        defer = asyncio.get_running_loop().call_later
        decisions = DecisionLog(self._logger, settings.log_format, settings.log_level, defer)
        for component in ("policy", "endpoints"):
            await health.set(component, well=True)
        processor = ExternalProcessor(
            Binding(settings.attachment, settings.pool, settings.allow_pool_union),
            self._store.current,
            self._policy.current,
            self._logger,
            decisions,
            self._metrics,
        )
        admin = admin_app(lambda: health.ready, self._pages(health, processor), settings.admin_address)
        lifecycle = Lifecycle(
            processor,
            health,
            {
                "metrics_port": HttpServer(
                    metrics_app(self._metrics.registry), settings.address, settings.metrics_port
                ),
                "admin_port": HttpServer(admin, settings.admin_address, settings.admin_port),
            },
            self._logger,
            address=settings.address,
            grpc_port=settings.grpc_port,
            grpc_health_port=settings.grpc_health_port,
            drain_delay=settings.drain_delay,
            drain_timeout=settings.drain_timeout,
        )
        watchers = [asyncio.create_task(source.watch(self._loaded)) for source in self._sources.values()]
        # What is there now stays: the collector need not look at it again with every few hundred requests.
        gc.collect()
        gc.freeze()
        try:
            await lifecycle.run()
        finally:
            decisions.flush()
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    def _replace_endpoints(self, text: bytes) -> None:
        self._store.replace(parse_endpoints(text))

    def _loaded(self, source: WatchedFile, error: str | None) -> None:
        """Tell of a file that was read again."""
        name = next(name for name, each in self._sources.items() if each is source)
        self._metrics.reload_successful.labels(name).set(error is None)
        if error is None:
            self._metrics.reload_timestamp.labels(name).set_to_current_time()
            self._logger.info("loaded", logger="app", source=name, file=str(source.path))
        else:
            self._logger.error(
                "not loaded, the last good one stays", logger="app", source=name, file=str(source.path), error=error
            )

    def _pages(self, health: Health, processor: ExternalProcessor) -> dict[str, Callable[[], object]]:
        def status() -> dict[str, Any]:
            snapshot = self._store.current()
            return {
                "version": __version__,
                "uptime_seconds": round(time.time() - self._started, 1),
                "ready": health.ready,
                "components": health.components,
                "streams": processor.open_streams,
                "generation": snapshot.generation,
                "pools": {str(pool): _counts(snapshot, pool) for pool in snapshot.pools},
                "longest_hint": processor.longest_hint,
                "sources": {name: {"file": str(s.path), "error": s.error} for name, s in self._sources.items()},
            }

        def config() -> dict[str, Any]:
            error = self._sources["policy"].error if "policy" in self._sources else None
            return {"policy": msgspec.to_builtins(self._policy.current(), enc_hook=float), "error": error}

        def endpoints() -> dict[str, Any]:
            snapshot = self._store.current()
            return {"generation": snapshot.generation, "pools": {str(p): snapshot.endpoints[p] for p in snapshot.pools}}

        return {"/statusz": status, "/configz": config, "/endpointz": endpoints}


def _counts(snapshot: Snapshot, pool: Any) -> dict[str, int]:
    tally = Tally(endpoint.ready for endpoint in snapshot.endpoints[pool])
    return {"ready": tally[True], "not_ready": tally[False]}
