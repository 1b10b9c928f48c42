# SPDX-License-Identifier: Apache-2.0
"""Our server as a process of the demo."""

from pathlib import Path

import pytest

from extproc.demo.client import send
from extproc.demo.processes import Server, ServerError


@pytest.fixture
def endpoints(tmp_path: Path) -> str:
    path = tmp_path / "endpoints.yaml"
    path.write_text("pools: [{name: chat, endpoints: [{name: a, address: '127.0.0.1:1'}]}]\n")
    return str(path)


async def test_a_server_is_ready_with_its_ports_and_ends_with_exit_code_0(
    endpoints: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWNED_BY_LOG_FORMAT", "console")
    lines: list[str] = []
    async with Server("--endpoints-file", endpoints, on_line=lines.append) as server:
        ports = {server.grpc_port, server.grpc_health_port, server.metrics_port, server.admin_port}
        ready = await send(server.admin_port, "GET", "/readyz")
        server.terminate()
        code = await server.wait()
        server.terminate()
        server.kill()

    assert len(ports - {0}) == 4
    assert (ready.status, code, server.returncode) == (200, 0, 0)
    assert list(server.lines) == lines


async def test_a_killed_server_says_which_signal_it_was(endpoints: str) -> None:
    async with Server("--endpoints-file", endpoints) as server:
        server.kill()
        assert await server.wait() == -9


async def test_what_a_server_that_ends_early_says_is_in_the_error() -> None:
    with pytest.raises(ServerError, match="No such option"):
        async with Server("--no-such-flag"):
            pass
