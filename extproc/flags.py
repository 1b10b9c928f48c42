# SPDX-License-Identifier: Apache-2.0
"""Flags: the values that they take, the variables that can say them, and what they must not say together."""

import ipaddress
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import click

from extproc.envoy.binding import Attachment, ProtocolError, parse_pool
from extproc.policy.config import Duration
from extproc.policy.types import Pool
from extproc.settings import ALL_NAMESPACES, refreshed_every

F = TypeVar("F", bound=Callable[..., Any])

LAST_PORT: Final = 65535
_LEAST_REFRESH: Final = 0.05
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LABEL_KEY: Final = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class DurationType(click.ParamType[Any]):
    """A length of time in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`5s` -> 5.0."""
        try:
            return value if isinstance(value, float) else Duration.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class PoolType(click.ParamType[Any]):
    """The name of a pool."""

    name = "namespace/name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Pool:
        """`default/chat` -> Pool."""
        try:
            return value if isinstance(value, Pool) else parse_pool(value)
        except ProtocolError as error:
            self.fail(str(error), param, ctx)


class LabelsType(click.ParamType[Any]):
    """Labels that all must be there."""

    name = "key=value,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """`app=vllm,tier=gpu` -> labels that all must be there."""
        if isinstance(value, dict):
            return value
        pairs = [part.replace("==", "=").partition("=") for part in value.split(",")]
        if not all(_LABEL_KEY.fullmatch(key.strip()) and equals for key, equals, _ in pairs):
            self.fail(f"`{value}` is not a list of key=value: other selectors are not supported", param, ctx)
        return {key.strip(): wanted.strip() for key, _, wanted in pairs}


class PortType(click.IntRange):
    """A port; 0 is a free one."""

    name = "port"


class PortsType(click.ParamType[Any]):
    """Ports, each once."""

    name = "port,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`8000,8001` -> ports."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(word.isascii() and word.isdigit() and 0 < int(word) <= LAST_PORT for word in words):
            self.fail(f"`{value}` is not a list of ports from 1 to {LAST_PORT}", param, ctx)
        return tuple(dict.fromkeys(map(int, words)))


class NamespacesType(click.ParamType[Any]):
    """Namespaces, each once."""

    name = "namespace,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """`team-a,team-b` or `*` -> namespaces."""
        if isinstance(value, tuple):
            return value
        words = tuple(dict.fromkeys(word.strip() for word in value.split(",")))
        if words != (ALL_NAMESPACES,) and not all(_NAMESPACE.fullmatch(word) for word in words):
            self.fail(f"`{value}` is not a list of namespaces, nor `{ALL_NAMESPACES}` for all", param, ctx)
        return words


class HostsType(click.ParamType[Any]):
    """Host names, each once."""

    name = "host,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """`admin.example,owned-by` -> names in lower case."""
        if isinstance(value, tuple):
            return value
        words = [word.strip().lower() for word in value.split(",")]
        if not all(_NAME.fullmatch(word) or _is_ipv6(word) for word in words):
            self.fail(f"`{value}` is not a list of host names and addresses, which have no port", param, ctx)
        return tuple(dict.fromkeys(words))


class UrlType(click.ParamType[Any]):
    """The address of a server that speaks HTTP."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`http://gateway:8080/`, as it is without the slash at its end."""
        try:
            parts = urlsplit(str(value))
            port = parts.port
        except ValueError as error:
            self.fail(f"`{value}` is not a URL: {error}", param, ctx)
        if parts.username is not None or parts.password is not None:
            self.fail("a URL must not hold credentials: give them with -H", param, ctx)
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            self.fail(f"`{value}` is not a URL such as http://127.0.0.1:8080", param, ctx)
        if parts.query or parts.fragment:
            self.fail(f"`{value}` has a query: give the URL without it", param, ctx)
        return str(value).rstrip("/")


class GatewayType(UrlType):
    """The address of a gateway, without the path of the API that clients often have in theirs."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As UrlType does."""
        url = super().convert(value, param, ctx)
        if url.endswith("/v1"):
            self.fail(f"`{value}` ends with `/v1`, which each request brings: give the URL without it", param, ctx)
        return url


class HeaderType(click.ParamType[Any]):
    """A header of a request."""

    name = "'K: V'"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """`X-Owned-By: sglang` -> its name in lower case, and its value; what is wrong is said without the value."""
        if isinstance(value, tuple):
            return value
        name, colon, text = str(value).partition(":")
        if not colon or not _HEADER_NAME.fullmatch(name.strip()):
            self.fail(
                f"`{name.strip() if colon else '...'}` is not the name of a header: write it as 'name: value'",
                param,
                ctx,
            )
        if any(character in text for character in "\r\n\0"):
            self.fail(f"the value of `{name.strip()}` has a line end in it", param, ctx)
        return name.strip().lower(), text.strip()


class ConfigMapType(click.ParamType[Any]):
    """The name of a ConfigMap."""

    name = "[namespace/]name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`owned-by` or `team-a/owned-by`, as it is."""
        *namespace, name = value.split("/")
        if len(namespace) > 1 or not all(_NAMESPACE.fullmatch(word) for word in namespace) or not _NAME.fullmatch(name):
            self.fail(f"`{value}` is not [namespace/]name", param, ctx)
        return str(value)


def flag(name: str, **settings: Any) -> Callable[[F], F]:
    """A flag that can also be given as OWNED_BY_<FLAG>."""
    variable = "OWNED_BY_" + name.removeprefix("--").replace("-", "_").upper()
    return click.option(name, envvar=variable, show_envvar=True, show_default=True, **settings)


def refuse_contradictions(flags: dict[str, Any]) -> None:
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
    if not flags["admin_token_file"] and not _is_loopback(flags["admin_address"]):
        raise click.UsageError("--admin-address is not loopback: --admin-token-file is needed")
    if (flags["cert_path"] or flags["enable_cert_reload"]) and not flags["secure_serving"]:
        given = "--cert-path" if flags["cert_path"] else "--enable-cert-reload"
        raise click.UsageError(f"{given} needs --secure-serving: without it there is no TLS")
    if flags["enable_cert_reload"] and not flags["cert_path"]:
        raise click.UsageError(
            "--enable-cert-reload needs --cert-path: a certificate of our own making does not change"
        )
    _refuse_times(flags)


def _refuse_times(flags: dict[str, Any]) -> None:
    """Times that are too short, or do not go together."""
    if 0 < flags["probe_interval"] < 1:
        raise click.UsageError("--probe-interval must be 1s or longer, or 0s for never")
    refresh = refreshed_every(flags["refresh_metrics_interval"], Attachment(flags["attachment"]))
    if 0 < refresh < _LEAST_REFRESH:
        raise click.UsageError("--refresh-metrics-interval must be 50ms or longer, or 0s for never")
    if flags["metrics_staleness_threshold"] < 3 * refresh:
        raise click.UsageError("--metrics-staleness-threshold must be at least three times --refresh-metrics-interval")
    if flags["probe_timeout"] <= 0:
        raise click.UsageError("--probe-timeout must be longer than nothing")


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text.removeprefix("[").removesuffix("]")).version == 6  # noqa: PLR2004
    except ValueError:
        return False


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
