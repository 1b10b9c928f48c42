# SPDX-License-Identifier: Apache-2.0
"""The composition root: the only file that knows every room."""

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from extproc.discovery.file import WatchedFile, parse_endpoints
from extproc.discovery.load import LoadConfig, LoadWatch
from extproc.discovery.policy import PolicyStore
from extproc.discovery.probe import Probe, ProbeConfig
from extproc.discovery.routingfile import NAME as ROUTING_FILE
from extproc.discovery.routingfile import FileRouting
from extproc.discovery.snapshot import Coalescer, SnapshotStore, changes
from extproc.envoy.binding import Binding
from extproc.observability.logs import DecisionLine, DecisionLog, Relay, make_logger
from extproc.observability.metrics import Metrics
from extproc.observability.recent import Rates, Recent
from extproc.policy.document import DocumentError
from extproc.policy.routing import RoutingStore
from extproc.policy.types import Endpoint, Pool, Rewrites, Snapshot
from extproc.server.access import Access
from extproc.server.admin import Sources, admin_app
from extproc.server.assets import FILES, page_routes
from extproc.server.extproc import ExternalProcessor
from extproc.server.health import Health
from extproc.server.lifecycle import Lifecycle
from extproc.server.listener import HttpServer, metrics_app
from extproc.server.live import Live
from extproc.server.pages import Pages
from extproc.server.views import Views
from extproc.settings import Settings, read_token, refreshed_every

if TYPE_CHECKING:
    from extproc.discovery.configmap import PolicyMap
    from extproc.discovery.watches import Watches
    from extproc.observability.tracing import Tracing
    from extproc.server.certificates import Certificates

PATIENCE: Final = 10.0
"""Seconds that endpoints have to say what they serve before the server is ready without their answers."""

DISCOVERY: Final = 20.0
"""Seconds that they have to say it again where an operator asks."""
DOCUMENTS: Final = ("policy", "routing")
"""What the policy in force is made of."""

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
        self._loaded_at: dict[str, float] = {}
        self._listed: dict[Pool, tuple[Endpoint, ...]] = {}
        self._endpoints: Callable[[], Mapping[Pool, tuple[Endpoint, ...]]] = lambda: self._listed
        self._rewrites: Callable[[], Mapping[Pool, Rewrites]] = dict
        self._publisher = Coalescer(self._publish)
        self._probe = Probe(_probing(settings), self._publisher.poke, self._policy.current, self._metrics, self._logger)
        self._load = LoadWatch(_load_reading(settings), self._store.current, self._metrics, self._logger)
        self._watches: Watches | None = None
        self._tracing: Tracing | None = None
        self._routing: RoutingStore | None = None
        self._files: dict[str, WatchedFile] = {}
        if settings.endpoints_file:
            self._files["endpoints"] = WatchedFile(settings.endpoints_file, self._list_endpoints)
        if settings.config_file:
            self._files["policy"] = WatchedFile(settings.config_file, self._policy.apply)
            if not settings.needs_cluster:
                path = settings.config_file.with_name(ROUTING_FILE)
                self._files["routing"] = WatchedFile(path, self._policy.apply_routing, optional=True)
                self._routing = FileRouting(path)
        if settings.admin_token_file:
            try:
                read_token(settings.admin_token_file)
            except ValueError as error:
                raise DocumentError(f"{settings.admin_token_file}: {error}") from error
        for file in self._files.values():
            try:
                file.load()
            except DocumentError as error:
                raise DocumentError(f"{file.path}: {error}") from error
            self._file_loaded(file, None)
        self._certificates: Certificates | None = None
        if settings.secure_serving:
            self._open_certificates()

    async def run(self) -> None:
        """Serve until a signal.

        Raises DocumentError if the way to the cluster or to a collector of traces is not to be had, OSError for a taken port.
        """
        async with contextlib.AsyncExitStack() as stack:
            libraries = Relay(self._logger)
            libraries.attach()
            stack.callback(libraries.detach)
            self._tracing = self._open_tracing(stack) if self._settings.tracing else None
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
            watches.follow_policy(settings.config_map, self._policy.apply, partial(self._map_loaded, "policy"))
        loaded = partial(self._map_loaded, "routing")
        self._routing = watches.follow_routing("", self._policy.apply_routing, loaded)
        return watches.namespace

    def _open_certificates(self) -> None:
        """Load what the ext_proc port serves TLS with. Raises DocumentError."""
        from extproc.server.certificates import Certificates  # noqa: PLC0415 - cryptography is large

        folder = self._settings.cert_path
        try:
            self._certificates = Certificates(folder)
        except DocumentError as error:
            raise DocumentError(f"{folder}: {error}") from error
        self._certificate_loaded(None)

    def _open_tracing(self, stack: contextlib.AsyncExitStack) -> "Tracing":
        """What makes spans, and has sent them when the stack ends."""
        try:
            from extproc.observability.tracing import Tracing  # noqa: PLC0415 - an extra, and large
        except ModuleNotFoundError as error:
            message = "--tracing needs what is not installed: pip install 'owned-by-extproc[otel]'"
            raise DocumentError(f"{message} ({error})") from error
        tracing = Tracing(self._metrics, self._logger)
        stack.callback(tracing.close)
        return tracing

    async def _serve(self, namespace: str) -> None:
        """Listen, follow the sources, and be ready as soon as they are; `namespace` is that of `--pool-name`."""
        settings = self._settings
        health = Health(dict.fromkeys((*DOCUMENTS, *self._followed, "endpoints", "serving")))
        defer = asyncio.get_running_loop().call_later
        decisions = DecisionLog(self._logger, settings.log_format, settings.log_level, defer)
        recent = Recent()

        def decided(line: DecisionLine) -> None:
            recent(line)
            decisions(line)

        pool = Pool(namespace, settings.pool_name) if settings.pool_name else None
        binding = Binding(settings.attachment, union=settings.allow_pool_union, default=pool)
        processor = ExternalProcessor(
            binding,
            self._store.current,
            self._policy.current,
            self._logger,
            decided,
            self._metrics,
            lambda: self._load.current,
            self._tracing,
        )
        rates = Rates(self._metrics.registry)
        pages = self._pages(health, processor)
        live = Live(self._views(pages, recent, rates).all, self._logger)
        admin = self._admin(health, pages, live, binding)
        lifecycle = Lifecycle(
            processor,
            health,
            {
                "metrics_port": HttpServer(
                    metrics_app(self._metrics.registry), settings.address, settings.metrics_port
                ),
                "admin_port": HttpServer(admin, settings.admin_address, settings.admin_port, live.end),
            },
            self._logger,
            address=settings.address,
            grpc_port=settings.grpc_port,
            grpc_health_port=settings.grpc_health_port,
            drain_delay=settings.drain_delay,
            drain_timeout=settings.drain_timeout,
            credentials=self._certificates.credentials() if self._certificates else None,
        )
        jobs = [file.watch(self._file_loaded) for file in self._files.values()]
        jobs += [self._probe.run(), self._load.run(), self._become_ready(health), rates.run(), live.run()]
        jobs += self._watches.jobs() if self._watches else []
        if self._certificates and settings.enable_cert_reload:
            jobs.append(self._certificates.watch(self._certificate_loaded))
        try:
            await _beside(lifecycle.run(), jobs)
        finally:
            decisions.flush()

    def _pages(self, health: Health, processor: ExternalProcessor) -> Pages:
        parts = {"sources": self._sources, "probe": self._probe.status, "load": self._load.status}
        return Pages(self._settings, health, processor, self._store.current, self._policy.current, parts)

    def _views(self, pages: Pages, recent: Recent, rates: Rates) -> Views:
        return Views(
            status=pages.status,
            snapshot=self._store.current,
            policy=self._policy.current,
            loads=lambda: self._load.current,
            recent=recent,
            rates=rates,
        )

    def _admin(self, health: Health, pages: Pages, live: Live, binding: Binding) -> Access:
        """The admin port's application."""
        sources = Sources(
            ready=lambda: health.ready,
            pages=pages.all,
            snapshot=self._store.current,
            policy=self._policy.current,
            loads=lambda: self._load.current,
            binding=binding,
            discover=self._discover,
            routing=self._routing,
            read_only=self._read_only,
        )
        return Access(
            admin_app(sources, [*page_routes(), live.route()]),
            self._logger,
            make_logger(self._settings.log_format, "info"),
            address=self._settings.admin_address,
            hosts=self._settings.admin_hosts,
            token_file=self._settings.admin_token_file,
            open_paths=FILES,
        )

    @property
    def _read_only(self) -> str:
        """Why the routing cannot be changed, "" if it can."""
        if self._settings.admin_read_only:
            return "--admin-read-only is set"
        return "" if self._routing else "there is no place to keep an entry: neither a cluster nor a --config-file"

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
            await asyncio.gather(*(sync(name) for name in self._followed if name not in DOCUMENTS))
            self._publish()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._probe.settled.wait(), PATIENCE)
            self._publish()
            await health.set("endpoints", well=True)

        await asyncio.gather(*map(sync, DOCUMENTS), ask())
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

    def _map_loaded(self, name: str, source: "PolicyMap", error: str | None) -> None:
        """Tell of a document that came from the cluster."""
        self._loaded(name, error, configmap=str(source))

    def _certificate_loaded(self, error: str | None) -> None:
        """Tell of the certificate that is in force, or why it still is."""
        assert self._certificates is not None
        status, origin = self._certificates.status(), "files" if self._certificates.folder else "self-signed"
        self._metrics.certificate_not_after.labels(origin).set(self._certificates.pair.not_after.timestamp())
        where = {name: value for name in ("folder", "serial", "not_after") if (value := status[name])}
        self._loaded("certificate", error, **where)

    def _loaded(self, name: str, error: str | None, **where: str) -> None:
        self._metrics.reload_successful.labels(name).set(error is None)
        if error is None:
            self._loaded_at[name] = time.time()
            self._metrics.reload_timestamp.labels(name).set_to_current_time()
            self._logger.info("loaded", logger="app", source=name, **where)
        else:
            self._logger.error("not loaded, the last good one stays", logger="app", source=name, **where, error=error)

    async def _discover(self) -> dict[str, Any]:
        """Look at everything again, and say what changed and what could not be looked at."""
        before = self._store.current()
        errors: dict[str, str] = {}
        for file in self._files.values():
            await file.look(self._file_loaded)
        if self._certificates and self._settings.enable_cert_reload:
            await self._certificates.look(self._certificate_loaded)
        if self._watches:
            errors |= await self._watches.relist()
        self._publish()
        try:
            async with asyncio.timeout(DISCOVERY):
                await self._probe.again()
        except TimeoutError:
            errors["models"] = f"not all endpoints have answered within {DISCOVERY:g} s"
        self._publish()
        refused = {
            name: source["error"] for name, source in self._sources().items() if isinstance(source.get("error"), str)
        }
        return changes(before, self._store.current()) | {"errors": refused | errors}

    def _sources(self) -> dict[str, Any]:
        """Where everything comes from, how old it is and what is wrong with it."""
        sources: dict[str, Any] = {
            name: {"file": str(file.path), "age_seconds": self._age(name), "error": file.error}
            for name, file in self._files.items()
        }
        if self._certificates:
            sources["certificate"] = self._certificates.status() | {"age_seconds": self._age("certificate")}
        return sources | (self._watches.status() if self._watches else {})

    def _age(self, source: str) -> float | None:
        """How many seconds ago it was loaded the last time that it could be."""
        loaded = self._loaded_at.get(source)
        return None if loaded is None else round(time.time() - loaded, 1)


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
