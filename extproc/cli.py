# SPDX-License-Identifier: Apache-2.0
"""The command line: `owned-by serve | validate | explain | doctor | health | demo`. Exit 0 ok, 1 a problem found, 2 usage."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click
import grpc
import msgspec
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc import __version__
from extproc.app import App
from extproc.discovery.file import parse_endpoints
from extproc.doctor.dump import DumpError
from extproc.doctor.exchange import Trust
from extproc.doctor.findings import as_json, is_broken, text
from extproc.doctor.visit import Patient, visit
from extproc.envoy.binding import Attachment, Binding, BodyMode
from extproc.envoy.explain import Explanation, HttpRequest, explain
from extproc.envoy.names import SERVICE
from extproc.flags import (
    LAST_PORT,
    ConfigMapType,
    DurationType,
    GatewayType,
    HeaderType,
    HostsType,
    LabelsType,
    NamespacesType,
    PoolType,
    PortsType,
    PortType,
    UrlType,
    flag,
    refuse_contradictions,
)
from extproc.policy.config import default_policy
from extproc.policy.document import DocumentError
from extproc.policy.loading import parse_policy
from extproc.policy.problems import oddities, problems, schema
from extproc.policy.types import Snapshot
from extproc.settings import Settings, read_token

_FILE = click.Path(dir_okay=False, path_type=Path)
_ATTACHMENTS = [attachment.value for attachment in Attachment]
_PORT = PortType(0, LAST_PORT)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="owned-by")
def main() -> None:
    """Routing by who serves the model, beside the Endpoint Picker."""


@main.command()
@flag("--endpoints-file", type=_FILE, help="The pools and their endpoints; without it they are the cluster's.")
@flag("--config-file", type=_FILE, help="The policy; without it the defaults hold.")
@flag("--config-map", type=ConfigMapType(), help="The policy, from the key `policy.yaml` of a ConfigMap.")
@flag(
    "--kubeconfig", type=_FILE, help="How to reach the API server; else $KUBECONFIG, the pod's own way, ~/.kube/config."
)
@flag("--namespaces", type=NamespacesType(), help="Whose pools and pods count, * for all; else the process's own.")
@flag("--endpoint-selector", type=LabelsType(), help="Without InferencePools: the labels of a namespace's one pool.")
@flag("--endpoint-target-ports", type=PortsType(), help="Without InferencePools: the ports at which its pods serve.")
@flag(
    "--attachment",
    type=click.Choice(_ATTACHMENTS),
    default=Attachment.BEFORE.value,
    help="Where streams that do not say it sit.",
)
@flag("--pool-name", default=None, help="The pool of streams that name none.")
@flag("--pool-namespace", default=None, help="Its namespace; else the process's own, `default` without a cluster.")
@flag("--allow-pool-union", is_flag=True, help="Take all pools as one where none is named.")
@flag("--address", default="0.0.0.0", help="Where gRPC, health and metrics listen.")  # noqa: S104
@flag("--grpc-port", type=_PORT, default=9002, help="ext_proc; 0 is a free port.")
@flag("--grpc-health-port", type=_PORT, default=9003, help="gRPC health.")
@flag("--metrics-port", type=_PORT, default=9090, help="/metrics.")
@flag("--secure-serving", is_flag=True, help="Serve ext_proc over TLS; health, metrics and admin stay as they are.")
@flag(
    "--cert-path",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder with `tls.crt` and `tls.key` for that; without it a certificate is made that vouches for itself.",
)
@flag("--enable-cert-reload", is_flag=True, help="Read both again when their content changes.")
@flag("--admin-port", type=_PORT, default=9091, help="Admin pages.")
@flag("--admin-address", default="127.0.0.1", help="Where the admin pages listen.")
@flag("--admin-hosts", type=HostsType(), help="Names by which the admin pages may be asked for, beside their address.")
@flag("--admin-token-file", type=_FILE, help="The bearer token that they need; off loopback there must be one.")
@flag("--admin-read-only", is_flag=True, help="Refuse to change the routing.")
@flag(
    "--probe-interval", type=DurationType(), default="30s", help="How often endpoints are asked for models; 0s: never."
)
@flag("--probe-timeout", type=DurationType(), default="5s", help="How long an endpoint may take to answer that.")
@flag("--probe-scheme", type=click.Choice(["http", "https"]), default="http", help="How endpoints are asked.")
@flag("--probe-ca-file", type=_FILE, help="Whom to trust with https; else the system's authorities.")
@flag("--probe-insecure-skip-verify", is_flag=True, help="With https, trust everybody.")
@flag("--probe-token-file", type=_FILE, help="A bearer token for the endpoints; read again as it changes.")
@flag(
    "--refresh-metrics-interval",
    type=DurationType(),
    help="How often endpoints are asked how busy they are; 0s: never. 1s with --attachment picker, else 0s.",
)
@flag(
    "--metrics-staleness-threshold",
    type=DurationType(),
    default="5s",
    help="How long that counts; at least three intervals.",
)
@flag("--drain-delay", type=DurationType(), default="5s", help="How long to go on accepting after SIGTERM.")
@flag("--drain-timeout", type=DurationType(), default="30s", help="How long open streams may then take.")
@flag("--tracing", is_flag=True, help="A span for each decision, by OTLP over HTTP as OTEL_* say (extra `otel`).")
@flag("--log-format", type=click.Choice(["json", "console"]), default="json", help="One JSON object a line, or text.")
@flag("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", help="The least level.")
def serve(**flags: Any) -> None:
    """Serve Envoy until SIGTERM."""
    refuse_contradictions(flags)
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        app = App(Settings(**given | {"attachment": Attachment(flags["attachment"])}))
        uvloop.run(app.run())
    except (DocumentError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--schema", "show_schema", is_flag=True, help="Print the JSON Schema of a policy instead.")
@click.option("--endpoints-file", type=_FILE, help="Also say what the policy names that these endpoints are not.")
@click.argument("file", type=_FILE, required=False)
def validate(*, file: Path | None, endpoints_file: Path | None, show_schema: bool) -> None:
    """Check a policy file: exit 1 and say everything that is wrong and where, or 0."""
    if show_schema:
        if file is not None or endpoints_file is not None:
            raise click.UsageError("--schema stands alone: it checks no file")
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
@flag("--endpoints-file", type=_FILE, required=True, help="The pools and their endpoints.")
@flag("--config-file", type=_FILE, help="The policy; without it the defaults hold.")
@click.option(
    "--attachment",
    type=click.Choice(_ATTACHMENTS),
    default=Attachment.BEFORE.value,
    show_default=True,
    help="Where the filter sits.",
)
@click.option("--pool", type=PoolType(), default=None, help="The pool that the filter names.")
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
@click.option("--gateway", type=GatewayType(), required=True, help="Where clients send their requests.")
@click.option(
    "--config-dump", type=click.Path(allow_dash=True), help="What Envoy's /config_dump answers: a file, - for stdin."
)
@click.option("--envoy", type=UrlType(), help="Envoy's admin interface: asked for its dump, and for who served.")
@click.option("--admin", type=UrlType(), help="Our server's admin port: asked for its policy and endpoints.")
@flag("--admin-token-file", type=_FILE, help="The bearer token that it needs.")
@click.option("-H", "--header", "headers", type=HeaderType(), multiple=True, help="For the gateway; may be repeated.")
@click.option("--model", default="", help="A model that may be asked for; else one that nobody has.")
@click.option("--timeout", type=DurationType(), default="10s", show_default=True, help="How long an answer may take.")
@click.option("--ca-file", type=_FILE, help="Whom to trust with https; else the system's authorities.")
@click.option("--insecure-skip-verify", is_flag=True, help="With https, trust everybody.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(**given: Any) -> None:
    """Say which link between a client and the right engine is broken: exit 1 if one is, else 0.

    Some twenty requests go through the gateway. Most name an owner that nobody has or that cannot be read, so that they
    are refused before an engine sees them; bodies grow to 2 MiB. Where it is to be seen who serves, up to eight models and
    owners get four requests each, for one token (max_tokens: 1). With --envoy, --config-dump or --admin it is looked at
    what is configured, too; nothing is changed anywhere.
    """
    try:
        dump = None
        if given["config_dump"] is not None:
            with click.open_file(given["config_dump"], "rb") as file:
                dump = file.read()
        token = read_token(given["admin_token_file"]) if given["admin_token_file"] else ""
        patient = Patient(
            gateway=given["gateway"],
            dump=dump,
            envoy=given["envoy"] or "",
            admin=given["admin"] or "",
            headers=dict(given["headers"]),
            token=token,
            model=given["model"],
            trust=Trust(given["ca_file"], given["insecure_skip_verify"]),
            timeout=given["timeout"],
        )
        found = asyncio.run(visit(patient))
    except DumpError as error:
        raise click.UsageError(f"--config-dump {given['config_dump']}: {error}") from error
    except (OSError, ValueError) as error:
        file_name = getattr(error, "filename", None) or given["ca_file"] or given["admin_token_file"]
        raise click.UsageError(f"{file_name}: {getattr(error, 'strerror', None) or error}") from error
    click.echo(as_json(found) if given["as_json"] else text(found), nl=False)
    sys.exit(1 if is_broken(found) else 0)


@main.command()
@click.option("--service", default=SERVICE, show_default=True, help="`liveness`, `readiness` or the service's name.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Where it listens.")
@flag("--grpc-health-port", type=_PORT, default=9003, help="gRPC health.")
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
