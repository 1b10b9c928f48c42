# SPDX-License-Identifier: Apache-2.0
"""A cluster as a file, the program that serves from it, and requests that it really decides."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc

from extproc.demo.engines import Engines, Simulated
from extproc.demo.processes import Server
from extproc.envoy import names
from tests.streams import call, first

LLAMA: Final = "meta-llama/Llama-3.2-1B-Instruct"
QWEN: Final = "Qwen/Qwen2.5-0.5B-Instruct"
ENGINE: Final = "llm-d.ai/engine-type"
IMAGE: Final = "<img src=x onerror=\"document.title='owned'\">"
SCRIPT: Final = "\"><script>document.title='owned'</script>"
NOWHERE: Final = "127.0.0.1:9"
"""An endpoint that nobody answers at: what it serves stays unknown."""

Json = dict[str, Any]


def member(name: str, address: str, engine: str, *models: str, **fields: Any) -> Json:
    """A line of the endpoints file; further labels in `labels`."""
    labels = {ENGINE: engine} | fields.pop("labels", {})
    return {"name": name, "address": address, "labels": labels, "models": list(models)} | fields


class Stage:
    """The files, and the program while it runs."""

    def __init__(self, folder: Path, engines: Engines) -> None:
        self.file = folder / "endpoints.yaml"
        self.engines = engines
        self.server: Server | None = None
        one, two, three = (engine.address for engine in engines.endpoints)
        self.chat = [
            member("llama-vllm-0", one, "vllm", LLAMA, labels={"llm-d.ai/role": "decode", "app": "llama"}),
            member("llama-sglang-0", two, "sglang", LLAMA, labels={"app": "llama"}),
            member("llama-sglang-1", "127.0.0.1:7", "sglang", LLAMA, labels={"app": "llama"}, ready=False),
            member("qwen-vllm-0", three, "vllm", QWEN, labels={"app": "qwen", "llm-d.ai/role": "decode"}),
            member("hostile", "127.0.0.1:8", "vllm", SCRIPT, labels={"note": IMAGE, SCRIPT: "1"}),
        ]
        unknown = member("embed-0", NOWHERE, "triton")
        del unknown["models"]
        self.embed = [unknown]
        self.write()

    def write(self) -> None:
        """Put the endpoints into their file; the program sees it within half a second."""
        pools = [
            {"name": "chat", "endpoints": self.chat},
            {"namespace": "team-a", "name": "embed", "endpoints": self.embed},
        ]
        other = self.file.with_suffix(".new")
        other.write_text(json.dumps({"pools": pools}))
        other.replace(self.file)

    def remove(self, name: str) -> None:
        """Let an endpoint go."""
        self.chat = [each for each in self.chat if each["name"] != name]
        self.write()

    @contextlib.asynccontextmanager
    async def running(self, *flags: str) -> AsyncIterator[Server]:
        """The program while the context is open."""
        given = ("--endpoints-file", str(self.file), "--refresh-metrics-interval", "100ms", *flags)
        async with Server(*given) as self.server:
            yield self.server

    @property
    def url(self) -> str:
        """The page."""
        assert self.server is not None
        return f"http://127.0.0.1:{self.server.admin_port}/"

    async def decide(self, times: int = 1, pool: str = "default/chat", **headers: str) -> None:
        """Have requests with these headers (`_` stands for `-`) decided, each over a stream as Envoy's."""
        assert self.server is not None
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.grpc_port}") as channel:
            for _ in range(times):
                stream = call(channel, {names.POOL: pool})
                await stream.write(first(**headers))
                await stream.read()
                stream.cancel()


@contextlib.asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """Engines that answer, and nothing else yet."""
    wanted = [
        Simulated("llama-vllm-0", "vllm", LLAMA),
        Simulated("llama-sglang-0", "sglang", LLAMA),
        Simulated("qwen-vllm-0", "vllm", QWEN),
    ]
    async with Engines(wanted) as engines:
        engines.load("llama-vllm-0", waiting=3, kv_cache=0.42)
        engines.load("llama-sglang-0", waiting=0, kv_cache=0.07)
        yield Stage(folder, engines)
