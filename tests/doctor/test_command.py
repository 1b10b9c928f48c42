# SPDX-License-Identifier: Apache-2.0
"""`owned-by doctor` as a command: what it takes, what it prints, its exit codes; and gateways that do not let it in."""

import asyncio
import contextlib
import json
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from extproc.cli import main
from extproc.doctor.findings import (
    ABOUT,
    Check,
    Finding,
    Severity,
    as_json,
    error,
    in_order,
    ok,
    skipped,
    text,
    warning,
)
from extproc.doctor.probes import CHAT
from tests.kubernetes.credentials import Credentials
from tests.server.serving import served

HOSTS = "what hostnames and paths does the HTTPRoute have? -H 'host: NAME' names another host"
SECRET = "Bearer do-not-show-this"


def asked(*arguments: str, stdin: bytes = b"") -> tuple[int, str]:
    result = CliRunner().invoke(main, ["doctor", *arguments], input=stdin)
    return result.exit_code, result.output


async def doctor(*arguments: str) -> tuple[int, str]:
    """The command as a process of its own, beside a server in this one."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "extproc.cli", "doctor", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Error: Missing option '--gateway'."),
            (["--gateway", "gateway"], "'--gateway': `gateway` is not a URL such as http://127.0.0.1:8080"),
            (["--gateway", "ftp://gateway"], "'--gateway': `ftp://gateway` is not a URL such as http://127.0.0.1:8080"),
            (["--gateway", "http://a:b"], "'--gateway': `http://a:b` is not a URL: "),
            (["--gateway", "http://me:pass@a"], "'--gateway': a URL must not hold credentials: give them with -H"),
            (["--gateway", "http://a/v1/"], "'--gateway': `http://a/v1/` ends with `/v1`, which each request brings"),
            (["--gateway", "http://a/?b=c"], "'--gateway': `http://a/?b=c` has a query: give the URL without it"),
            (
                ["--gateway", "http://127.0.0.1:9", "-H", "nonsense"],
                "`...` is not the name of a header: write it as 'name",
            ),
            (["--gateway", "http://127.0.0.1:9", "--config-dump", "gone"], "Error: gone: No such file or directory"),
            (["--gateway", "http://127.0.0.1:9", "--ca-file", "gone"], "Error: gone: No such file or directory"),
            (
                ["--gateway", "http://127.0.0.1:9", "--admin-token-file", "gone"],
                "Error: gone: the token file cannot be read",
            ),
            (["--gateway", "http://127.0.0.1:9", "--timeout", "soon"], "Invalid value for '--timeout'"),
        ],
    )
    def test_what_makes_no_sense_is_a_usage_error(
        self, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, output = asked(*arguments)

        assert code == 2
        assert message in " ".join(output.split())

    def test_a_dump_that_is_none_is_a_usage_error_that_names_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "dump.json").write_text("{}")
        code, output = asked("--gateway", "http://127.0.0.1:9", "--config-dump", str(tmp_path / "dump.json"))

        assert code == 2
        assert output.endswith("dump.json: it is no config dump of Envoy's: it has no list `configs`\n")

    def test_a_dump_may_come_by_stdin(self) -> None:
        code, output = asked("--gateway", "http://127.0.0.1:9", "--config-dump", "-", stdin=b"nonsense")

        assert code == 2
        assert "--config-dump -: it is not JSON" in output

    def test_a_file_of_authorities_that_is_none_is_a_usage_error(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("nonsense")
        code, output = asked("--gateway", "https://127.0.0.1:9", "--ca-file", str(tmp_path / "ca.pem"))

        assert code == 2
        assert "ca.pem: " in output


class TestWords:
    FINDINGS = (
        ok(Check.HINT, "well"),
        warning(Check.LABELS, "odd", fix="label it"),
        skipped(Check.SERVED, "nobody knows"),
        error(Check.HINT, "bad", "listener `a`", "mend it"),
        error(Check.HINT, "bad", "listener `a`", "mend it"),
        ok(Check.GATEWAY, "it answers"),
    )

    def test_findings_come_in_the_order_of_the_chain_each_once_and_no_check_is_both_well_and_ill(self) -> None:
        assert text(in_order(self.FINDINGS)) == (
            "ok       gateway       it answers\n"
            "error    hint          listener `a`: bad; mend it\n"
            "skipped  served        not checked: nobody knows\n"
            "warning  labels        odd; label it\n"
            "1 error, 1 warning, 1 not checked\n"
        )

    def test_json_is_one_object(self) -> None:
        document = json.loads(as_json(in_order(self.FINDINGS)))

        assert document["ok"] is False
        assert document["findings"][1] == {
            "check": "hint",
            "severity": "error",
            "what": "bad",
            "where": "listener `a`",
            "fix": "mend it",
        }

    def test_a_warning_is_no_broken_link(self) -> None:
        assert json.loads(as_json([warning(Check.LABELS, "odd")]))["ok"] is True

    def test_every_check_is_explained(self) -> None:
        assert list(ABOUT) == list(Check)

    def test_every_severity_fits_its_column(self) -> None:
        assert {len(Finding(check=Check.HINT, severity=each, what="x").line) for each in Severity} == {24}


@contextlib.asynccontextmanager
async def answering(response: Response) -> AsyncIterator[str]:
    """A gateway that answers everything so."""

    async def answer(_: Request) -> Response:
        return response

    methods = ["GET", "POST"]
    async with served(Starlette(routes=[Route("/{path:path}", answer, methods=methods)])) as url:
        yield url


@pytest.mark.slow
class TestGateways:
    @pytest.mark.parametrize(
        ("response", "expected"),
        [
            (
                RedirectResponse("http://127.0.0.1:9/?token=do-not-show-this", 301),
                "error    gateway       it redirects (status 301); give the URL that it redirects to",
            ),
            (
                PlainTextResponse("who are you?", 401),
                "error    gateway       it wants credentials (status 401); give them with -H",
            ),
            (
                PlainTextResponse("RBAC: access denied", 403),
                f"error    gateway       it forbids POST {CHAT} (status 403); give credentials with -H, or let it through",
            ),
            (
                Response(status_code=404),
                f"error    gateway       it has no route for POST /v1/chat/completions at this host; {HOSTS}",
            ),
        ],
    )
    async def test_a_gateway_that_does_not_let_us_in_is_a_finding(self, response: Response, expected: str) -> None:
        async with answering(response) as url:
            code, output = await doctor("--gateway", url, "-H", f"Authorization: {SECRET}")

        assert code == 1
        assert output.splitlines()[0] == expected
        assert "do-not-show-this" not in output

    async def test_an_empty_answer_that_is_no_error_is_not_envoys(self) -> None:
        async with answering(Response()) as url:
            code, output = await doctor("--gateway", url)

        assert code == 1
        assert "an owner that nobody has was answered with status 200, and not by us; our filter does not run" in output

    async def test_a_gateway_that_hangs_is_a_finding(self) -> None:
        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                await reader.read()  # until the client leaves

        async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            code, output = await doctor("--gateway", f"http://127.0.0.1:{port}", "--timeout", "100ms", "--json")

        assert code == 1
        assert json.loads(output)["findings"][0]["what"] == "no answer within 0.1 s"

    async def test_what_is_no_http_is_a_finding(self) -> None:
        async def chat(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                writer.write(b"220 do-not-show-this\r\n")
                await writer.drain()

        async with await asyncio.start_server(chat, "127.0.0.1", 0) as server:
            code, output = await doctor("--gateway", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")

        assert code == 1
        assert output.startswith("error    gateway       no answer in HTTP/1.1: ")
        assert "do-not-show-this" not in output

    async def test_the_headers_are_for_the_gateway_and_for_nobody_else(self) -> None:
        hosts: dict[str, str] = {}
        seen: dict[str, set[str]] = {"gateway": set(), "envoy": set(), "admin": set()}

        @contextlib.asynccontextmanager
        async def place(name: str) -> AsyncIterator[str]:
            async def answer(request: Request) -> Response:
                seen[name].add(request.headers.get("authorization", "none"))
                hosts[name] = request.headers["host"]
                return PlainTextResponse("no", 404)

            routes = [Route("/{path:path}", answer, methods=["GET", "POST"])]
            async with served(Starlette(routes=routes)) as url:
                yield url

        async with place("gateway") as gateway, place("envoy") as envoy, place("admin") as admin:
            arguments = ("--gateway", gateway, "--envoy", envoy, "--admin", admin)
            await doctor(*arguments, "-H", f"Authorization: {SECRET}", "-H", "Host: models.example")

        assert seen == {"gateway": {SECRET}, "envoy": {"none"}, "admin": {"none"}}
        assert hosts["gateway"] == "models.example"

    async def test_https_is_trusted_as_it_is_told(self, tmp_path: Path) -> None:
        files = Credentials.write(tmp_path)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files.certificate, files.certificate_key)

        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=401)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
            await site.start()
            port = runner.addresses[0][1]
            said = [
                (await doctor("--gateway", f"https://127.0.0.1:{port}", *more))[1].splitlines()[0]
                for more in ([], ["--ca-file", str(files.ca_file)], ["--insecure-skip-verify"])
            ]
        finally:
            await runner.cleanup()

        credentials = "error    gateway       it wants credentials (status 401); give them with -H"
        assert said[0].startswith("error    gateway       its certificate is not trusted: ")
        assert said[1:] == [credentials, credentials]
