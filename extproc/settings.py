# SPDX-License-Identifier: Apache-2.0
"""How this process runs: flags and OWNED_BY_* variables, fixed for its life. What may change is the policy's."""

from pathlib import Path
from typing import Literal

import msgspec

from extproc.envoy.responses import Attachment
from extproc.policy.types import Pool


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `owned-by serve`, under the EPP's names where it has them; delays in seconds, port 0 is a free one."""

    endpoints_file: Path
    config_file: Path | None = None
    address: str = "0.0.0.0"  # noqa: S104 - a server in a pod of its own
    grpc_port: int = 9002
    grpc_health_port: int = 9003
    metrics_port: int = 9090
    admin_port: int = 9091
    admin_address: str = "127.0.0.1"
    pool: Pool | None = None
    allow_pool_union: bool = False
    attachment: Attachment = Attachment.BEFORE
    drain_delay: float = 5.0
    drain_timeout: float = 30.0
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
