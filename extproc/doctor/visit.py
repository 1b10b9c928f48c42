# SPDX-License-Identifier: Apache-2.0
"""One visit of the doctor: look at the dump, ask our server, send the probes, and put together what was found."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from extproc.doctor import admin as admins
from extproc.doctor import served
from extproc.doctor.chain import examine
from extproc.doctor.dump import DumpError, parse
from extproc.doctor.exchange import Site, Trust, UnreachableError
from extproc.doctor.findings import Check, Finding, Severity, error, in_order, skipped
from extproc.doctor.probes import Probes
from extproc.policy.config import default_policy


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Where to look: URLs ("" for what is not to be asked), a dump that is there already, and how to ask.

    `headers` are for the gateway alone, `token` is the bearer token of our server's admin port ("" if it needs none);
    `timeout` is for each request, in seconds. `model` is the one that requests are for, "" for one that nobody has.
    """

    gateway: str
    dump: bytes | None = None
    envoy: str = ""
    admin: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    token: str = ""
    model: str = ""
    trust: Trust = field(default_factory=Trust)
    timeout: float = 10.0


async def visit(patient: Patient) -> list[Finding]:
    """Everything that is found, in the order of the chain.

    Raises DumpError if the given dump is none, OSError if the file of authorities cannot be used.
    """
    context = patient.trust.context()
    async with AsyncExitStack() as stack:

        async def site(url: str, headers: Mapping[str, str]) -> Site:
            return await stack.enter_async_context(Site(url, context, patient.timeout, headers))

        gateway = await site(patient.gateway, patient.headers)
        envoy = await site(patient.envoy, {}) if patient.envoy else None
        token = {"authorization": f"Bearer {patient.token}"} if patient.token else {}
        admin_site = await site(patient.admin, token) if patient.admin else None

        admin, findings = None, list[Finding]()
        if admin_site is not None:
            try:
                admin = await admins.read(admin_site)
                findings += admins.server(admin)
            except UnreachableError as problem:
                findings.append(error(Check.SERVER, f"its admin port: {problem}", fix="check --admin"))
        shown, conditional = await _dump(patient.dump, envoy, admin)
        findings += shown
        policy = admin.policy if admin else default_policy()
        probes = Probes(gateway, policy, patient.model, conditional=conditional, assumed=admin is None)
        await probes.run()
        findings += probes.findings
        findings.append(await _served(probes, envoy, admin, _forwarded(findings)))
        findings += admins.labels(admin, probes.listed)
        return in_order(findings)


async def _dump(given: bytes | None, envoy: Site | None, admin: admins.Admin | None) -> tuple[list[Finding], bool]:
    """What the dump shows, under the policy of our server if it says it, and whether our filter runs only for some requests."""
    if given is None and envoy is None:
        why = "the chain itself is not known without a dump of Envoy's configuration"
        return [skipped(Check.FILTER, why, "give --config-dump or --envoy")], False
    try:
        if given is None:
            assert envoy is not None
            dump = parse((await envoy.ask("/config_dump?include_eds")).body)
        else:
            dump = parse(given)
    except (UnreachableError, DumpError) as problem:
        if given is not None:
            raise
        return [error(Check.ENVOY, f"its admin port: {problem}", fix="check --envoy")], False
    found = examine(dump, admin.policy, admin.default_pool) if admin else examine(dump)
    return found, dump.is_conditional


def _forwarded(findings: list[Finding]) -> bool | None:
    """Whether the dump says that the EPP sees our list; None if it says nothing."""
    said = {each.severity for each in findings if each.check is Check.HINT}
    return None if not said else Severity.ERROR not in said


async def _served(
    probes: Probes,
    envoy: Site | None,
    admin: admins.Admin | None,
    forwarded: bool | None,  # noqa: FBT001 - a fact
) -> Finding:
    if probes.listed is None:
        return skipped(Check.SERVED, "our list of models is not to be had")
    if not probes.listed:
        return skipped(Check.SERVED, "no model is listed that could be asked for")
    if not probes.names_owners:
        return skipped(Check.SERVED, "the policy reads an owner from nowhere")
    try:
        if envoy is not None and admin is not None:
            return await served.by_counters(probes, envoy, admin, forwarded)
        return await served.by_refusals(probes, forwarded)
    except UnreachableError as problem:
        return skipped(Check.SERVED, str(problem))
