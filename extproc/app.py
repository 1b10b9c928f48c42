# SPDX-License-Identifier: Apache-2.0
"""The composition root: the only file that knows every room."""

import asyncio
import contextlib
import gc
import time
from collections import Counter as Tally
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from extproc import __version__
from extproc.discovery.file import WatchedFile, parse_endpoints
from extproc.discovery.load import LoadConfig, LoadWatch
from extproc.discovery.policy import PolicyStore
from extproc.discovery.probe import Probe, ProbeConfig
from extproc.discovery.snapshot import Coalescer, SnapshotStore
from extproc.envoy.binding import Binding
from extproc.observability.logs import DecisionLog, make_logger
from extproc.observability.metrics import Metrics
from extproc.policy.document import DocumentError
from extproc.policy.types import Endpoint, Pool, Rewrites, Snapshot
from extproc.server.admin import HttpServer, admin_app, metrics_app
from extproc.server.extproc import ExternalProcessor
from extproc.server.health import Health
from extproc.server.lifecycle import Lifecycle
from extproc.settings import Settings, refreshed_every

if TYPE_CHECKING:
    from extproc.discovery.configmap import PolicyMap
    from extproc.discovery.watches import Watches

PATIENCE: Final = 10.0
"""Seconds that endpoints have to say what they serve before the server is ready without their answers."""

Job = Coroutine[Any, Any, None]


class App:
    """One process: its sources, its servers, and what joins them."""

    def __init__(self, settings: Settings) -> None:
        """Load the files. Raises DocumentError (its text names the file) for a bad one, OSError for a missing one."""
        self._settings = settings
        self._logger = make_logger(settings.log_format, settings.log_level)
        self._metrics = Metrics()
        self._policy = PolicyStore()
        self._store = SnapshotStore(self._show)
        self._started = time.time()
        self._listed: dict[Pool, tuple[Endpoint, ...]] = {}
        self._endpoints: Callable[[], Mapping[Pool, tuple[Endpoint, ...]]] = lambda: self._listed
        self._rewrites: Callable[[], Mapping[Pool, Rewrites]] = dict
        self._publisher = Coalescer(self._publish)
        self._probe = Probe(_probing(settings), self._publisher.poke, self._policy.current, self._metrics, self._logger)
        self._load = LoadWatch(_load_reading(settings), self._store.current, self._metrics, self._logger)
        self._watches: Watches | None = None
        self._files: dict[str, WatchedFile] = {}
        if settings.endpoints_file:
            self._files["endpoints"] = WatchedFile(settings.endpoints_file, self._list_endpoints)
        if settings.config_file:
            self._files["policy"] = WatchedFile(settings.config_file, self._policy.apply)
        for file in self._files.values():
            try:
                file.load()
            except DocumentError as error:
                raise DocumentError(f"{file.path}: {error}") from error
            self._file_loaded(file, None)

    async def run(self) -> None:
        """Serve until a signal. Raises DocumentError if the way to the cluster is not to be had, OSError for a taken port."""
        async with contextlib.AsyncExitStack() as stack:
            namespace = await self._follow_cluster(stack) if self._settings.needs_cluster else "default"
            await self._serve(self._settings.pool_namespace or namespace)

    async def _follow_cluster(self, stack: contextlib.AsyncExitStack) -> str:
        """Prepare what is read from an API server; our own namespace there."""
        # The official client is large: who has no cluster need not wait for it.
        from extproc.discovery.watches import Watches  # noqa: PLC0415

        settings = self._settings
        watches = self._watches = Watches(settings.kubeconfig, self._metrics, self._logger)
        await watches.connect()
        stack.push_async_callback(watches.close)
        if settings.endpoints_file is None:
            changed, namespaces = self._publisher.poke, settings.namespaces
            if selector := settings.endpoint_selector:
                ports, name = settings.endpoint_target_ports, settings.pool_name
                cluster = watches.follow_pods(changed, namespaces, selector, ports, name)
            else:
                cluster = watches.follow_pools(changed, namespaces)
            self._endpoints, self._rewrites = cluster.endpoints, lambda: cluster.rewrites
        if settings.config_map:
            watches.follow_policy(settings.config_map, self._policy.apply, self._policy_loaded)
        return watches.namespace

    async def _serve(self, namespace: str) -> None:
        """Listen, follow the sources, and be ready as soon as they are; `namespace` is that of `--pool-name`."""
        settings = self._settings
        health = Health(dict.fromkeys(("policy", *self._followed, "endpoints", "serving")))
        defer = asyncio.get_running_loop().call_later
        decisions = DecisionLog(self._logger, settings.log_format, settings.log_level, defer)
        pool = Pool(namespace, settings.pool_name) if settings.pool_name else None
        processor = ExternalProcessor(
            Binding(settings.attachment, union=settings.allow_pool_union, default=pool),
            self._store.current,
            self._policy.current,
            self._logger,
            decisions,
            self._metrics,
            lambda: self._load.current,
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
        jobs = [file.watch(self._file_loaded) for file in self._files.values()]
        jobs += [self._probe.run(), self._load.run(), self._become_ready(health)]
        jobs += self._watches.jobs() if self._watches else []
        try:
            await _beside(lifecycle.run(), jobs)
        finally:
            decisions.flush()

    @property
    def _followed(self) -> tuple[str, ...]:
        """What is followed at an API server, a component each."""
        return self._watches.names if self._watches else ()

    async def _become_ready(self, health: Health) -> None:
        """Say of each component that it is well once it is, then stay like the other jobs."""

        async def sync(name: str) -> None:
            if self._watches and name in self._followed:
                await self._watches.synced(name)
            await health.set(name, well=True)

        async def ask() -> None:
            await asyncio.gather(*(sync(name) for name in self._followed if name != "policy"))
            self._publish()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._probe.settled.wait(), PATIENCE)
            self._publish()
            await health.set("endpoints", well=True)

        await asyncio.gather(sync("policy"), ask())
        # What is there now stays: the collector need not look at it again with every few hundred requests.
        gc.collect()
        gc.freeze()
        await asyncio.Event().wait()

    def _publish(self) -> None:
        """Make what the sources know by now the current snapshot."""
        self._store.replace(self._probe.complete(self._endpoints()), self._rewrites())

    def _show(self, snapshot: Snapshot) -> None:
        self._metrics.show(snapshot)
        self._logger.debug("snapshot", logger="app", generation=snapshot.generation)

    def _list_endpoints(self, text: bytes) -> None:
        self._listed = parse_endpoints(text)

    def _file_loaded(self, file: WatchedFile, error: str | None) -> None:
        """Tell of a file that was read again."""
        name = next(name for name, each in self._files.items() if each is file)
        self._loaded(name, error, file=str(file.path))
        if name == "endpoints" and error is None:
            self._publish()

    def _policy_loaded(self, policy: "PolicyMap", error: str | None) -> None:
        """Tell of a policy that came from the cluster."""
        self._loaded("policy", error, configmap=str(policy))

    def _loaded(self, name: str, error: str | None, **where: str) -> None:
        self._metrics.reload_successful.labels(name).set(error is None)
        if error is None:
            self._metrics.reload_timestamp.labels(name).set_to_current_time()
            self._logger.info("loaded", logger="app", source=name, **where)
        else:
            self._logger.error("not loaded, the last good one stays", logger="app", source=name, **where, error=error)

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
                "sources": self._sources(),
                "probe": self._probe.status(),
                "load": self._load.status(),
            }

        def config() -> dict[str, Any]:
            source = self._sources().get("policy", {"error": None})
            return {"policy": msgspec.to_builtins(self._policy.current(), enc_hook=float), "error": source["error"]}

        def endpoints() -> dict[str, Any]:
            snapshot = self._store.current()
            return {"generation": snapshot.generation, "pools": {str(p): snapshot.endpoints[p] for p in snapshot.pools}}

        return {"/statusz": status, "/configz": config, "/endpointz": endpoints}

    def _sources(self) -> dict[str, Any]:
        """Where everything comes from, how old it is and what is wrong with it."""
        sources: dict[str, Any] = {name: {"file": str(f.path), "error": f.error} for name, f in self._files.items()}
        return sources | (self._watches.status() if self._watches else {})


async def _beside(main: Job, jobs: list[Job]) -> None:
    """Run `main` to its end, and beside it jobs that have none; one that fails ends everything with its exception."""
    tasks = [asyncio.create_task(job) for job in (main, *jobs)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _probing(settings: Settings) -> ProbeConfig:
    return ProbeConfig(
        interval=settings.probe_interval,
        timeout=settings.probe_timeout,
        scheme=settings.probe_scheme,
        ca_file=settings.probe_ca_file,
        insecure_skip_verify=settings.probe_insecure_skip_verify,
        token_file=settings.probe_token_file,
    )


def _load_reading(settings: Settings) -> LoadConfig:
    interval = refreshed_every(settings.refresh_metrics_interval, settings.attachment)
    return LoadConfig(interval=interval, stale=settings.metrics_staleness_threshold, asking=_probing(settings))


def _counts(snapshot: Snapshot, pool: Any) -> dict[str, int]:
    tally = Tally(endpoint.ready for endpoint in snapshot.endpoints[pool])
    return {"ready": tally[True], "not_ready": tally[False]}
