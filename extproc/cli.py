# SPDX-License-Identifier: Apache-2.0
"""The command line: `owned-by serve | validate | explain | health | demo`. Exit 0 ok, 1 a problem found, 2 usage."""

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc
import msgspec
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc import __version__
from extproc.app import App
from extproc.discovery.file import parse_endpoints
from extproc.envoy.binding import Attachment, Binding, BodyMode, ProtocolError, parse_pool
from extproc.envoy.explain import Explanation, HttpRequest, explain
from extproc.envoy.names import SERVICE
from extproc.policy.config import Duration, default_policy
from extproc.policy.document import DocumentError
from extproc.policy.loading import parse_policy
from extproc.policy.problems import oddities, problems, schema
from extproc.policy.types import Pool, Snapshot
from extproc.settings import ALL_NAMESPACES, Settings, refreshed_every

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(dir_okay=False, path_type=Path)
_LAST_PORT = 65535
_LEAST_REFRESH = 0.05
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class _DurationType(click.ParamType[Any]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`5s` -> 5.0."""
        try:
            return value if isinstance(value, float) else Duration.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _PoolType(click.ParamType[Any]):
    name = "namespace/name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Pool:
        """`default/chat` -> Pool."""
        try:
            return value if isinstance(value, Pool) else parse_pool(value)
        except ProtocolError as error:
            self.fail(str(error), param, ctx)


class _LabelsType(click.ParamType[Any]):
    name = "key=value,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """`app=vllm,tier=gpu` -> labels that all must be there."""
        if isinstance(value, dict):
            return value
        pairs = [part.replace("==", "=").partition("=") for part in value.split(",")]
        if not all(_LABEL_KEY.fullmatch(key.strip()) and equals for key, equals, _ in pairs):
            self.fail(f"`{value}` is not a list of key=value: other selectors are not supported", param, ctx)
        return {key.strip(): wanted.strip() for key, _, wanted in pairs}


class _PortType(click.IntRange):
    name = "port"


class _PortsType(click.ParamType[Any]):
    name = "port,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`8000,8001` -> ports."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(word.isascii() and word.isdigit() and 0 < int(word) <= _LAST_PORT for word in words):
            self.fail(f"`{value}` is not a list of ports from 1 to {_LAST_PORT}", param, ctx)
        return tuple(dict.fromkeys(map(int, words)))


class _NamespacesType(click.ParamType[Any]):
    name = "namespace,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """`team-a,team-b` or `*` -> namespaces."""
        if isinstance(value, tuple):
            return value
        words = tuple(dict.fromkeys(word.strip() for word in value.split(",")))
        if words != (ALL_NAMESPACES,) and not all(_NAMESPACE.fullmatch(word) for word in words):
            self.fail(f"`{value}` is not a list of namespaces, nor `{ALL_NAMESPACES}` for all", param, ctx)
        return words


class _ConfigMapType(click.ParamType[Any]):
    name = "[namespace/]name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`owned-by` or `team-a/owned-by`, as it is."""
        *namespace, name = value.split("/")
        if len(namespace) > 1 or not all(_NAMESPACE.fullmatch(word) for word in namespace) or not _NAME.fullmatch(name):
            self.fail(f"`{value}` is not [namespace/]name", param, ctx)
        return str(value)


def _flag(name: str, **settings: Any) -> Callable[[F], F]:
    """A flag that can also be given as OWNED_BY_<FLAG>."""
    variable = "OWNED_BY_" + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, envvar=variable, show_envvar=True, show_default=True, **settings)


_ATTACHMENTS = [attachment.value for attachment in Attachment]
_PORT = _PortType(0, _LAST_PORT)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="owned-by")
def main() -> None:
    """Routing by who serves the model, beside the Endpoint Picker."""


@main.command()
@_flag("--endpoints-file", type=_FILE, help="The pools and their endpoints; without it they are the cluster's.")
@_flag("--config-file", type=_FILE, help="The policy; without it the defaults hold.")
@_flag("--config-map", type=_ConfigMapType(), help="The policy, from the key `policy.yaml` of a ConfigMap.")
@_flag(
    "--kubeconfig", type=_FILE, help="How to reach the API server; else $KUBECONFIG, the pod's own way, ~/.kube/config."
)
@_flag("--namespaces", type=_NamespacesType(), help="Whose pools and pods count, * for all; else the process's own.")
@_flag("--endpoint-selector", type=_LabelsType(), help="Without InferencePools: the labels of a namespace's one pool.")
@_flag("--endpoint-target-ports", type=_PortsType(), help="Without InferencePools: the ports at which its pods serve.")
@_flag(
    "--attachment",
    type=click.Choice(_ATTACHMENTS),
    default=Attachment.BEFORE.value,
    help="Where streams that do not say it sit.",
)
@_flag("--pool-name", default=None, help="The pool of streams that name none.")
@_flag("--pool-namespace", default=None, help="Its namespace; else the process's own, `default` without a cluster.")
@_flag("--allow-pool-union", is_flag=True, help="Take all pools as one where none is named.")
@_flag("--address", default="0.0.0.0", help="Where gRPC, health and metrics listen.")  # noqa: S104
@_flag("--grpc-port", type=_PORT, default=9002, help="ext_proc; 0 is a free port.")
@_flag("--grpc-health-port", type=_PORT, default=9003, help="gRPC health.")
@_flag("--metrics-port", type=_PORT, default=9090, help="/metrics.")
@_flag("--admin-port", type=_PORT, default=9091, help="Admin pages.")
@_flag("--admin-address", default="127.0.0.1", help="Where the admin pages listen.")
@_flag(
    "--probe-interval", type=_DurationType(), default="30s", help="How often endpoints are asked for models; 0s: never."
)
@_flag("--probe-timeout", type=_DurationType(), default="5s", help="How long an endpoint may take to answer that.")
@_flag("--probe-scheme", type=click.Choice(["http", "https"]), default="http", help="How endpoints are asked.")
@_flag("--probe-ca-file", type=_FILE, help="Whom to trust with https; else the system's authorities.")
@_flag("--probe-insecure-skip-verify", is_flag=True, help="With https, trust everybody.")
@_flag("--probe-token-file", type=_FILE, help="A bearer token for the endpoints; read again as it changes.")
@_flag(
    "--refresh-metrics-interval",
    type=_DurationType(),
    help="How often endpoints are asked how busy they are; 0s: never. 1s with --attachment picker, else 0s.",
)
@_flag(
    "--metrics-staleness-threshold",
    type=_DurationType(),
    default="5s",
    help="How long that counts; at least three intervals.",
)
@_flag("--drain-delay", type=_DurationType(), default="5s", help="How long to go on accepting after SIGTERM.")
@_flag("--drain-timeout", type=_DurationType(), default="30s", help="How long open streams may then take.")
@_flag("--log-format", type=click.Choice(["json", "console"]), default="json", help="One JSON object a line, or text.")
@_flag("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", help="The least level.")
def serve(**flags: Any) -> None:
    """Serve Envoy until SIGTERM."""
    _refuse_contradictions(flags)
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        app = App(Settings(**given | {"attachment": Attachment(flags["attachment"])}))
        uvloop.run(app.run())
    except (DocumentError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _refuse_contradictions(flags: dict[str, Any]) -> None:
    """Flags that say two things at once, or half of one."""
    if flags["config_file"] and flags["config_map"]:
        raise click.UsageError("--config-file and --config-map exclude each other: both name the policy")
    for flag in ("namespaces", "endpoint_selector"):
        if flags["endpoints_file"] and flags[flag]:
            raise click.UsageError(f"--endpoints-file and --{flag.replace('_', '-')} exclude each other")
    if bool(flags["endpoint_selector"]) != bool(flags["endpoint_target_ports"]):
        raise click.UsageError("--endpoint-selector and --endpoint-target-ports go together")
    if flags["endpoint_selector"] and flags["namespaces"] == (ALL_NAMESPACES,):
        raise click.UsageError("--endpoint-selector needs namespaces by name")
    if 0 < flags["probe_interval"] < 1:
        raise click.UsageError("--probe-interval must be 1s or longer, or 0s for never")
    refresh = refreshed_every(flags["refresh_metrics_interval"], Attachment(flags["attachment"]))
    if 0 < refresh < _LEAST_REFRESH:
        raise click.UsageError("--refresh-metrics-interval must be 50ms or longer, or 0s for never")
    if flags["metrics_staleness_threshold"] < 3 * refresh:
        raise click.UsageError("--metrics-staleness-threshold must be at least three times --refresh-metrics-interval")
    if flags["probe_timeout"] <= 0:
        raise click.UsageError("--probe-timeout must be longer than nothing")


@main.command()
@click.option("--schema", "show_schema", is_flag=True, help="Print the JSON Schema of a policy instead.")
@click.option("--endpoints-file", type=_FILE, help="Also say what the policy names that these endpoints are not.")
@click.argument("file", type=_FILE, required=False)
def validate(*, file: Path | None, endpoints_file: Path | None, show_schema: bool) -> None:
    """Check a policy file: exit 1 and say everything that is wrong and where, or 0."""
    if show_schema:
        click.echo(msgspec.json.format(msgspec.json.encode(schema()), indent=2))
        return
    if file is None:
        raise click.UsageError("a FILE is needed, or --schema")
    if found := _read(file, problems):
        raise click.ClickException("\n".join(f"{file}: {problem}" for problem in found))
    if endpoints_file is not None:
        endpoints = _read(endpoints_file, parse_endpoints)
        snapshot = Snapshot(1, tuple(endpoints), endpoints)
        if odd := oddities(_read(file, parse_policy), snapshot):
            raise click.ClickException("\n".join(f"{file}: {line}" for line in odd))
    click.echo(f"{file}: ok")


@main.command("explain")
@_flag("--endpoints-file", type=_FILE, required=True, help="The pools and their endpoints.")
@_flag("--config-file", type=_FILE, help="The policy; without it the defaults hold.")
@click.option(
    "--attachment",
    type=click.Choice(_ATTACHMENTS),
    default=Attachment.BEFORE.value,
    show_default=True,
    help="Where the filter sits.",
)
@click.option("--pool", type=_PoolType(), default=None, help="The pool that the filter names.")
@click.option("--cluster", default="", help="Where the route leads, as Envoy calls it (xds.cluster_name).")
@click.option("--pick", default="", metavar="IP:PORT,...", help="What the EPP picked, for `after`.")
@click.option("-X", "--request", "method", default=None, help="The method; GET, or POST with -d.")
@click.option("-H", "--header", "headers", multiple=True, metavar="'K: V'", help="A header; may be repeated.")
@click.option(
    "-d",
    "--data",
    type=click.Path(allow_dash=True),
    default=None,
    help="A file with the body, - for stdin; JSON unless -H says else.",
)
@click.option(
    "--body",
    type=click.Choice([mode.value for mode in BodyMode]),
    default=BodyMode.PARTIAL.value,
    show_default=True,
    help="How a body comes: what fits into Envoy's buffer, or all of it as a stream.",
)
@click.option(
    "--truncated-at",
    type=click.IntRange(0),
    metavar="BYTES",
    help="How much of a body fits into Envoy's buffer; without it all of it.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("path")
def explain_command(**given: Any) -> None:
    """Say where a request to PATH would go and why: the same code that serves Envoy, without Envoy."""
    endpoints = _read(given["endpoints_file"], parse_endpoints)
    policy = _read(given["config_file"], parse_policy) if given["config_file"] else default_policy()
    try:
        body = b""
        if given["data"] is not None:
            with click.open_file(given["data"], "rb") as file:
                body = file.read()
    except OSError as error:
        raise click.UsageError(f"{given['data']}: {error.strerror}") from error
    headers = []
    for line in given["headers"]:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"`{line}` is not a header: write it as 'name: value'")
        headers.append((name.strip().lower(), value.strip()))
    if not given["path"].startswith("/"):
        raise click.UsageError(f"`{given['path']}` is not a path: it begins with /")
    mode = BodyMode(given["body"])
    if mode is BodyMode.STREAM and given["truncated_at"] is not None:
        raise click.UsageError("--body stream and --truncated-at exclude each other: a body that streams is not cut")
    method = given["method"] or ("GET" if given["data"] is None else "POST")
    request = HttpRequest(
        method, given["path"], tuple(headers), body, given["pick"], given["cluster"], given["truncated_at"]
    )
    snapshot = Snapshot(1, tuple(endpoints), endpoints)
    binding = Binding(Attachment(given["attachment"]), given["pool"], body=mode)
    found = explain(request, binding, snapshot, policy)
    click.echo(found.to_json() if given["as_json"] else _words(found), nl=False)


@main.command()
@click.option("--service", default=SERVICE, show_default=True, help="`liveness`, `readiness` or the service's name.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Where it listens.")
@_flag("--grpc-health-port", type=_PORT, default=9003, help="gRPC health.")
def health(service: str, address: str, grpc_health_port: int) -> None:
    """Ask a running server how it is: exit 0 if it is serving, else 1."""
    with grpc.insecure_channel(f"{address}:{grpc_health_port}") as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        except grpc.RpcError as error:
            raise click.ClickException(f"{address}:{grpc_health_port}: {error.code().name}") from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    click.echo(status)
    sys.exit(0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1)


@main.command()
@click.option("--once", is_flag=True, help="Run the requests, then end: exit 0 only if each went where it must.")
def demo(*, once: bool) -> None:
    """Start engines, Envoy and this server on loopback and send requests through them."""
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra

        from extproc.demo.script import run  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise click.ClickException(
            f"the demo needs its extra: pip install 'owned-by-extproc[demo]' ({error})"
        ) from error
    sys.exit(asyncio.run(run(once=once, console=Console())))


def _read(file: Path, parse: Any) -> Any:
    try:
        return parse(file.read_bytes())
    except OSError as error:
        raise click.UsageError(f"{file}: {error.strerror}") from error
    except DocumentError as error:
        raise click.ClickException(f"{file}: {error}") from error


def _words(found: Explanation) -> str:
    """The explanation for a person."""
    lines = [f"decision     {found.decision} ({found.reason})"]
    lines += [f"{name:<12} {value}" for name, value in found.facts()]
    width = max(34, *(len(step.filter) + 2 for step in found.steps), 0)
    lines += [f"steps        {'filter':<{width}}eligible before -> after"]
    lines += [f"             {step.filter:<{width}}{step.before} -> {step.after}" for step in found.steps]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
