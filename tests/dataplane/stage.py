# SPDX-License-Identifier: Apache-2.0
"""What every gateway of these tests is made of: pods of two engines, our server, the EPP's stand-in, an Envoy."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from extproc.demo.bootstrap import Plan, bootstrap
from extproc.demo.envoy import Envoy
from extproc.demo.processes import Server
from tests.fakes.backend import Backend
from tests.fakes.epp import EndpointPicker

MODEL = "m"
POLICY = "{apiVersion: owned-by/v1alpha1, kind: OwnedByPolicy%s}"


@dataclass
class Stage:
    """Everything but an Envoy: a pod's name begins with its engine's (`vllm-0`); each has an address of its own."""

    folder: Path
    pods: Backend
    server: Server
    epp: EndpointPicker
    stack: contextlib.AsyncExitStack
    program: str | None

    @property
    def pool(self) -> tuple[tuple[str, int], ...]:
        """The pool as a plan takes it."""
        return tuple(self.pods.endpoints.values())

    def engine(self, owner: str) -> tuple[tuple[str, int], ...]:
        """The pods of one engine."""
        return tuple(address for name, address in self.pods.endpoints.items() if name.startswith(owner))

    async def envoy(self, plan: Plan) -> Envoy:
        """An Envoy for a plan, up as long as the stage is."""
        folder = self.folder / f"envoy-{len(list(self.folder.glob('envoy-*')))}"
        folder.mkdir()
        return await self.stack.enter_async_context(Envoy(bootstrap(plan), folder, self.program))


def hosts(count: int) -> dict[str, str]:
    """`count` pods of each engine, and their addresses."""
    names = [f"{owner}-{number}" for number in range(count) for owner in ("vllm", "sglang")]
    return {name: f"127.0.0.{number}" for number, name in enumerate(names, 11)}


async def stage(
    stack: contextlib.AsyncExitStack,
    folder: Path,
    members: Mapping[str, str],
    *,
    pools: Mapping[str, Collection[str]] | None = None,
    refusing: Collection[str] = (),
    unready: Collection[str] = (),
    hold: bool = True,
    rules: str = "",
    flags: Collection[str] = (),
    program: str | None = None,
    namespace: str = "default",  # of the pools
) -> Stage:
    """Pods, a server with these rules that knows them, and a stand-in; up as long as the stack is.

    `pools` are the pods of each pool, in the namespace `default`; without it all of them are `default/chat`. `program` is
    an Envoy, None the installed one. The `unready` are known and not ready.
    """
    pods = await stack.enter_async_context(Backend(members, refusing=refusing, hold=hold))
    entries = {
        name: {
            "name": name,
            "address": pods.address(name),
            "labels": {"llm-d.ai/engine-type": name.partition("-")[0]},
            "models": [{"id": MODEL, "created": 7, "max_model_len": 4096}],
            "ready": name not in unready,
        }
        for name in members
    }
    known = [
        {"namespace": namespace, "name": pool, "endpoints": [entries[name] for name in names]}
        for pool, names in (pools or {"chat": tuple(members)}).items()
    ]
    (folder / "endpoints.yaml").write_bytes(msgspec.json.encode({"pools": known}))
    (folder / "policy.yaml").write_text(POLICY % rules)
    files = ("--endpoints-file", str(folder / "endpoints.yaml"), "--config-file", str(folder / "policy.yaml"))
    server = await stack.enter_async_context(Server(*files, *flags))
    epp = await stack.enter_async_context(EndpointPicker([pods.address(name) for name in members]))
    return Stage(folder, pods, server, epp, stack, program)
