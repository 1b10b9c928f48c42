# SPDX-License-Identifier: Apache-2.0
"""How this process runs: flags and OWNED_BY_* variables, fixed for its life. What may change is the policy's."""

import re
from pathlib import Path
from typing import Final, Literal

import msgspec

from extproc.envoy.binding import Attachment

ALL_NAMESPACES = "*"
"""What `--namespaces` says for all of them."""
_VISIBLE: Final = re.compile(r"[!-~]+")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `owned-by serve`, under the EPP's names where it has them.

    Without `endpoints_file` the endpoints are a cluster's. Times in seconds, port 0 is a free one, a namespace that is not
    given is the process's own.
    """

    endpoints_file: Path | None = None
    config_file: Path | None = None
    config_map: str | None = None
    kubeconfig: Path | None = None
    namespaces: tuple[str, ...] = ()
    endpoint_selector: dict[str, str] = {}
    endpoint_target_ports: tuple[int, ...] = ()
    address: str = "0.0.0.0"  # noqa: S104 - a server in a pod of its own
    grpc_port: int = 9002
    grpc_health_port: int = 9003
    metrics_port: int = 9090
    admin_port: int = 9091
    admin_address: str = "127.0.0.1"
    admin_hosts: tuple[str, ...] = ()
    admin_token_file: Path | None = None
    admin_read_only: bool = False
    pool_name: str | None = None
    pool_namespace: str | None = None
    allow_pool_union: bool = False
    attachment: Attachment = Attachment.BEFORE
    probe_interval: float = 30.0
    probe_timeout: float = 5.0
    probe_scheme: Literal["http", "https"] = "http"
    probe_ca_file: Path | None = None
    probe_insecure_skip_verify: bool = False
    probe_token_file: Path | None = None
    refresh_metrics_interval: float | None = None
    metrics_staleness_threshold: float = 5.0
    tracing: bool = False
    secure_serving: bool = False
    cert_path: Path | None = None
    enable_cert_reload: bool = False
    drain_delay: float = 5.0
    drain_timeout: float = 30.0
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def needs_cluster(self) -> bool:
        """Whether an API server is to be asked."""
        return self.endpoints_file is None or self.config_map is not None


def refreshed_every(interval: float | None, attachment: Attachment) -> float:
    """How often load is asked for, 0 for never: as the flag says, else only for a picker, which orders by it."""
    if interval is None:
        return 1.0 if attachment is Attachment.PICKER else 0.0
    return interval


def read_token(path: Path) -> str:
    """The bearer token in a file: one word. Raises ValueError, which never shows it, if there is none."""
    try:
        token = path.read_text("ascii", "replace").strip()
    except OSError as error:
        raise ValueError(f"the token file cannot be read: {error.strerror}") from error
    if not _VISIBLE.fullmatch(token):  # anything else could be a header of its own
        raise ValueError("the token file is not one word of visible ASCII characters")
    return token
