# SPDX-License-Identifier: Apache-2.0
"""The way to an API server: which configuration is taken, with which credentials it is asked, and what it says in errors."""

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from extproc import __version__
from extproc.discovery import credentials as ours
from extproc.discovery.credentials import ConfigError
from extproc.discovery.kubernetes import ApiError, KubernetesApi, parse_retry_after
from tests.fakes.api_server import ApiServer, Exchange, write_kubeconfig
from tests.kubernetes.credentials import Credentials

SERVICE_ACCOUNT = "kubernetes.aio.config.incluster_config.SERVICE_"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a kubeconfig, nor a pod, nor a home with one."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer() as server:
        yield server


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return Credentials.write(tmp_path_factory.mktemp("credentials"))


@contextlib.asynccontextmanager
async def connected(kubeconfig: Path | None = None) -> AsyncIterator[KubernetesApi]:
    api = KubernetesApi(kubeconfig)
    try:
        await api.connect()
        yield api
    finally:
        await api.close()


async def asked(api: KubernetesApi, server: ApiServer) -> Exchange:
    """The request that the API server gets, which it answers with nothing much."""
    return (await answered(api, server))[0]


async def answered(api: KubernetesApi, server: ApiServer, body: bytes = b"{}") -> tuple[Exchange, bytes]:
    got = asyncio.create_task(api.get("/version", {"a": "b c"}))
    exchange = await server.request()
    await exchange.text(200, body)
    return exchange, await got


class Pod:
    """A service account as a pod has it, at a server that speaks TLS."""

    def __init__(self, folder: Path, ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.token = folder / "token"
        self.namespace = folder / "namespace"
        self.token.write_text("first\n")
        self.namespace.write_text("team-a\n")
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(SERVICE_ACCOUNT + "TOKEN_FILENAME", str(self.token))
        monkeypatch.setattr(SERVICE_ACCOUNT + "CERT_FILENAME", str(ca_file))
        monkeypatch.setattr("extproc.discovery.credentials._NAMESPACE_FILE", self.namespace)

    def runs_at(self, server: ApiServer) -> None:
        self._monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        self._monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))


@pytest.fixture
def pod(tmp_path: Path, credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> Pod:
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    return Pod(folder, credentials.ca_file, monkeypatch)


@pytest.fixture
async def secure(credentials: Credentials) -> AsyncIterator[ApiServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credentials.certificate, credentials.certificate_key)
    async with ApiServer(context) as server:
        yield server


class TestWhichConfiguration:
    """As controller-runtime looks for it."""

    async def test_what_is_named_comes_first(
        self, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "other", server.url, token="other")))
        async with connected(write_kubeconfig(tmp_path / "named", server.url, token="named")) as api:
            exchange = await asked(api, server)

        assert (exchange.method, exchange.path, exchange.query) == ("GET", "/version", {"a": "b c"})
        assert {name: exchange.headers[name] for name in ("accept", "authorization", "user-agent")} == {
            "accept": "application/json",
            "authorization": "Bearer named",
            "user-agent": f"owned-by/{__version__}",
        }

    async def test_then_the_variable(
        self, server: ApiServer, pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pod.runs_at(server)
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "other", server.url, token="variable")))
        async with connected() as api:
            assert (await asked(api, server)).headers["authorization"] == "Bearer variable"

    async def test_then_the_pods_own(self, secure: ApiServer, pod: Pod, tmp_path: Path) -> None:
        pod.runs_at(secure)
        (tmp_path / ".kube").mkdir()
        write_kubeconfig(tmp_path / ".kube" / "config", secure.url, token="home")
        async with connected() as api:
            assert (await asked(api, secure)).headers["authorization"] == "bearer first"

    async def test_then_the_one_at_home(self, server: ApiServer, tmp_path: Path) -> None:
        (tmp_path / ".kube").mkdir()
        write_kubeconfig(tmp_path / ".kube" / "config", server.url, token="home")
        async with connected() as api:
            assert (await asked(api, server)).headers["authorization"] == "Bearer home"

    async def test_without_a_user_no_credentials_are_sent(self, server: ApiServer, tmp_path: Path) -> None:
        async with connected(write_kubeconfig(tmp_path / "config", server.url)) as api:
            assert "authorization" not in (await asked(api, server)).headers


class TestBadConfiguration:
    """ConfigError names the file and what is wrong."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "'NoneType' object"),
            ("a: [", "while parsing a flow node"),
            ("just words", "'str' object"),
            ("- a\n- b", "list indices"),
            ("kind: Config", "Expected key current-context"),
            ("current-context: a\ncontexts: []", "Expected object with name a in "),
            ("current-context: a\ncontexts: [{name: a, context: {cluster: b}}]", "Expected object with name b in "),
            ("current-context: a\ncontexts: [{name: a, context: {}}]", "Expected key cluster in "),
            ("\x00", "special characters are not allowed"),
        ],
    )
    async def test_a_malformed_kubeconfig_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "config"
        path.write_text(text)
        with pytest.raises(ConfigError) as raised:
            await KubernetesApi(path).connect()

        assert str(raised.value).startswith(f"{path}: ")
        assert message in str(raised.value)

    async def test_a_missing_kubeconfig_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as raised:
            await KubernetesApi(tmp_path / "none").connect()

        assert str(raised.value) == f"{tmp_path / 'none'}: No such file or directory"

    async def test_so_is_the_one_at_home(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as raised:
            await KubernetesApi().connect()

        assert str(raised.value) == f"{tmp_path}/.kube/config: No such file or directory"

    async def test_a_missing_token_file_is_named(self, tmp_path: Path) -> None:
        path = write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1", tokenFile=str(tmp_path / "none"))
        with pytest.raises(ConfigError) as raised:
            await KubernetesApi(path).connect()

        assert str(raised.value) == f"{path}: [Errno 2] No such file or directory: '{tmp_path / 'none'}'"

    async def test_a_pod_without_a_token_is_told_so(self, server: ApiServer, pod: Pod) -> None:
        pod.runs_at(server)
        pod.token.unlink()
        with pytest.raises(ConfigError) as raised:
            await KubernetesApi().connect()

        assert str(raised.value) == "the service account of this pod: Service token file does not exist."

    async def test_a_certificate_that_is_none_is_told(self, tmp_path: Path) -> None:
        path = write_kubeconfig(tmp_path / "config", "https://127.0.0.1:1", token="t")
        document = json.loads(path.read_text())
        (tmp_path / "ca.crt").write_text("no certificate")
        document["clusters"][0]["cluster"]["certificate-authority"] = str(tmp_path / "ca.crt")
        path.write_text(json.dumps(document))
        with pytest.raises(ConfigError) as raised:
            await KubernetesApi(path).connect()

        assert str(raised.value).startswith(f"{path}: the certificates cannot be used: ")


class TestNamespace:
    """Where a name without a namespace is."""

    async def test_a_pods_variable_comes_first(
        self, server: ApiServer, pod: Pod, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pod.runs_at(server)
        monkeypatch.setenv("NAMESPACE", "said")
        async with connected() as api:
            assert api.namespace == "said"

    @pytest.mark.parametrize(("context", "namespace"), [("team-b", "team-b"), ("", "default")])
    async def test_a_kubeconfigs_is_its_contexts_and_no_variable(
        self, tmp_path: Path, context: str, namespace: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NAMESPACE", "said")
        async with connected(write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1", context)) as api:
            assert api.namespace == namespace

    async def test_a_pods_is_its_own(self, server: ApiServer, pod: Pod) -> None:
        pod.runs_at(server)
        async with connected() as api:
            assert api.namespace == "team-a"

    async def test_a_pod_that_does_not_say_is_in_the_default_one(self, server: ApiServer, pod: Pod) -> None:
        pod.runs_at(server)
        pod.namespace.unlink()
        async with connected() as api:
            assert api.namespace == "default"


class TestCredentials:
    """Tokens in files."""

    async def test_a_token_file_may_end_in_a_line_end(self, server: ApiServer, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("secret\r\n")
        path = write_kubeconfig(tmp_path / "config", server.url, tokenFile=str(tmp_path / "token"))
        async with connected(path) as api:
            assert (await asked(api, server)).headers["authorization"] == "Bearer secret"

    @pytest.mark.parametrize("kind", ["kubeconfig", "pod"])
    async def test_a_token_is_read_again_when_told_to(
        self, server: ApiServer, secure: ApiServer, pod: Pod, tmp_path: Path, kind: str
    ) -> None:
        if kind == "pod":
            server = secure
            pod.runs_at(secure)
        path = write_kubeconfig(tmp_path / "config", server.url, tokenFile=str(pod.token)) if kind != "pod" else None
        async with connected(path) as api:
            first = await asked(api, server)
            pod.token.write_text("second\n")
            await api.renew(ApiError(401, "Unauthorized"))
            second = await asked(api, server)

        said = [exchange.headers["authorization"].lower() for exchange in (first, second)]
        assert said == ["bearer first", "bearer second"]

    async def test_what_cannot_be_read_again_is_an_api_error(self, secure: ApiServer, pod: Pod) -> None:
        pod.runs_at(secure)
        async with connected() as api:
            pod.token.unlink()
            with pytest.raises(ApiError) as raised:
                await api.renew(ApiError(401, "Unauthorized"))

        assert (raised.value.status, str(raised.value)) == (
            0,
            "the credentials cannot be read again: the service account of this pod: Service token file does not exist.",
        )

    @pytest.mark.parametrize(("status", "pause", "token"), [(403, 0.0, "new"), (0, 0.0, "new"), (403, 60.0, "old")])
    async def test_what_may_have_other_reasons_is_looked_at_now_and_then(  # noqa: PLR0917 - fixtures
        self, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, pause: float, token: str
    ) -> None:
        (tmp_path / "token").write_text("old")
        path = write_kubeconfig(tmp_path / "config", server.url, tokenFile=str(tmp_path / "token"))
        async with connected(path) as api:
            (tmp_path / "token").write_text("new")
            monkeypatch.setattr("extproc.discovery.credentials.PAUSE", pause)
            await api.renew(ApiError(status, "no"))
            assert (await asked(api, server)).headers["authorization"] == f"Bearer {token}"

    async def test_a_token_that_no_header_can_carry_is_refused_until_it_is_another(
        self, server: ApiServer, tmp_path: Path
    ) -> None:
        (tmp_path / "token").write_text("a\x07b")
        path = write_kubeconfig(tmp_path / "config", server.url, tokenFile=str(tmp_path / "token"))
        async with connected(path) as api:
            with pytest.raises(ApiError) as raised:
                await api.get("/api", {})
            (tmp_path / "token").write_text("good")
            await api.renew(raised.value)
            assert (await asked(api, server)).headers["authorization"] == "Bearer good"

        assert (raised.value.status, str(raised.value)) == (401, "the token has characters that a header cannot have")


class TestExecPlugin:
    """A kubeconfig whose credential a program gives."""

    GOOD = """printf '{"apiVersion":"%s","kind":"ExecCredential","status":{"token":"%s"}}' client.authentication.k8s.io/v1 """

    def kubeconfig(self, folder: Path, url: str, script: str) -> Path:
        plugin = folder / "plugin"
        plugin.write_text("#!/bin/sh\n" + script + "\n")
        plugin.chmod(0o755)
        exec_ = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
        return write_kubeconfig(folder / "config", url, exec=exec_)

    async def test_its_token_is_used_and_asked_for_again(self, server: ApiServer, tmp_path: Path) -> None:
        async with connected(self.kubeconfig(tmp_path, server.url, self.GOOD + "one")) as api:
            first = await asked(api, server)
            self.kubeconfig(tmp_path, server.url, self.GOOD + "two")
            await api.renew(ApiError(401, "Unauthorized"))
            second = await asked(api, server)

        assert [one.headers["authorization"] for one in (first, second)] == ["Bearer one", "Bearer two"]

    async def test_one_that_fails_is_no_reason_to_go_on_as_nobody(self, server: ApiServer, tmp_path: Path) -> None:
        path = self.kubeconfig(tmp_path, server.url, "exit 3")
        with pytest.raises(ConfigError, match="the exec plugin gave no credential"):
            await KubernetesApi(path).connect()

    async def test_one_that_hangs_is_given_up_and_not_started_again_beside_itself(
        self, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("extproc.discovery.credentials.PATIENCE", 0.2)
        started, over = tmp_path / "started", tmp_path / "over"
        os.mkfifo(over)
        credentials = ours.Credentials(self.kubeconfig(tmp_path, server.url, f"echo >> {started}; cat {over}"))
        for _ in range(2):
            with pytest.raises(ConfigError, match="no credentials within"):
                await credentials.read()
        runs = started.read_text()
        over.write_text("")  # it ends
        self.kubeconfig(tmp_path, server.url, self.GOOD + "one")
        monkeypatch.setattr("extproc.discovery.credentials.PAUSE", 0.0)
        monkeypatch.setattr("extproc.discovery.credentials.PATIENCE", 30.0)
        await credentials.read()

        assert (runs, credentials.configuration.api_key) == ("\n", {"BearerToken": "Bearer one"})


async def test_a_hundred_and_one_watches_stand_at_once(server: ApiServer, tmp_path: Path) -> None:
    async with (
        connected(write_kubeconfig(tmp_path / "config", server.url)) as api,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(101):
            entering = asyncio.create_task(stack.enter_async_context(api.watch("/api/v1/pods", {}, 30)))
            await (await server.request()).stream()
            await entering


async def test_a_redirect_is_not_the_api_servers_word(server: ApiServer, tmp_path: Path) -> None:
    async with ApiServer() as elsewhere, connected(write_kubeconfig(tmp_path / "config", server.url)) as api:
        got = asyncio.create_task(api.get("/api/v1/pods", {}))
        await (await server.request()).json(302, {}, {"location": elsewhere.url + "/api/v1/pods"})
        await (await elsewhere.request()).json(200, {"items": []})
        with pytest.raises(ApiError, match="redirects to another place"):
            await got


def test_certificates_are_checked_as_other_clients_do() -> None:
    assert ours.Credentials().configuration.disable_strict_ssl_verification


@pytest.mark.parametrize(("verb", "method"), [("create", "POST"), ("replace", "PUT")])
async def test_what_is_written_is_answered_with_what_is_stored(
    server: ApiServer, tmp_path: Path, verb: str, method: str
) -> None:
    async with connected(write_kubeconfig(tmp_path / "config", server.url)) as api:
        got = asyncio.create_task(getattr(api, verb)("/api/v1/namespaces/default/configmaps", {"kind": "ConfigMap"}))
        exchange = await server.request()
        await exchange.json(200, {"stored": True})
        stored = await got

    assert stored == b'{"stored": true}'
    assert (exchange.method, exchange.body) == (method, b'{"kind": "ConfigMap"}')
    assert exchange.headers["content-type"] == "application/json"


class TestErrors:
    """What the API server says when it refuses."""

    async def refused(self, server: ApiServer, tmp_path: Path, *pieces: bytes, **headers: str) -> ApiError:
        async with connected(write_kubeconfig(tmp_path / "config", server.url)) as api:
            got = asyncio.create_task(api.create("/api/v1/namespaces/default/events", {"kind": "Event"}))
            exchange = await server.request()
            assert (exchange.method, exchange.body) == ("POST", b'{"kind": "Event"}')
            if len(pieces) == 1:
                await exchange.text(403, pieces[0], headers)
            else:
                await exchange.stream(403)
                for piece in pieces:
                    await exchange.raw(piece)
                    await asyncio.sleep(0)
                await exchange.end()
            with pytest.raises(ApiError) as raised:
                await got
        return raised.value

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b'{"kind":"Status","message":"no such right","reason":"Forbidden","code":418}', "no such right"),
            (b'{"kind":"Status","reason":"Forbidden"}', "Forbidden"),
            (b"{}", "no reason given"),
            (b"", "no reason given"),
            (b"  <h1>403</h1>\n", "<h1>403</h1>"),
            (b"[]", "[]"),
            (b'{"message": 7}', '{"message": 7}'),
            (b"\xff" * 3, "\ufffd" * 3),
            (b"x" * 70_000, "x" * 500),
            (b"[" * 70_000, "[" * 500),
        ],
    )
    async def test_the_message_is_its_own(self, server: ApiServer, tmp_path: Path, body: bytes, message: str) -> None:
        error = await self.refused(server, tmp_path, body)

        assert (error.status, str(error), error.retry_after) == (403, message, None)

    async def test_it_may_come_in_pieces(self, server: ApiServer, tmp_path: Path) -> None:
        error = await self.refused(server, tmp_path, b'{"kind":"Status",', b'"message":"no ', b'such right"}')

        assert (error.status, str(error)) == (403, "no such right")

    async def test_retry_after_is_read(self, server: ApiServer, tmp_path: Path) -> None:
        assert (await self.refused(server, tmp_path, b"{}", **{"Retry-After": "9"})).retry_after == 9.0

    async def test_a_server_that_is_not_there(self, server: ApiServer, tmp_path: Path) -> None:
        await server.stop()
        async with connected(write_kubeconfig(tmp_path / "config", server.url)) as api:
            with pytest.raises(ApiError, match=r"^no connection to the API server: ") as raised:
                await api.get("/version", {})

        assert raised.value.status == 0

    async def test_a_server_that_nobody_vouches_for(self, secure: ApiServer, tmp_path: Path) -> None:
        path = write_kubeconfig(tmp_path / "config", secure.url, token="secret")
        async with connected(path) as api:
            with pytest.raises(ApiError, match="certificate verify failed"):
                await api.get("/version", {})

        assert secure.waiting == 0


async def test_a_body_of_megabytes_is_read_whole(server: ApiServer, tmp_path: Path) -> None:
    body = b"x" * 5_000_000
    async with connected(write_kubeconfig(tmp_path / "config", server.url)) as api:
        assert (await answered(api, server, body))[1] == body


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("Fri, 99 Dec 1999 23:59:59 GMT", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Friday, 31-Dec-99 23:59:59 GMT", 0.0),
        ("Fri Dec 31 23:59:59 1999", 0.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(text: str, seconds: float | None) -> None:
    assert parse_retry_after(text) == seconds


@pytest.mark.parametrize("usegmt", [True, False])
def test_a_date_to_come_is_the_time_until_then(*, usegmt: bool) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=usegmt)

    assert parse_retry_after(when) == pytest.approx(100, abs=10)


def test_a_date_with_another_offset_is_the_same_moment() -> None:
    when: Any = datetime.now(UTC) + timedelta(seconds=100)

    assert parse_retry_after(when.strftime("%a, %d %b %Y %H:%M:%S -0000")) == pytest.approx(100, abs=10)
    when += timedelta(hours=2)
    assert parse_retry_after(when.strftime("%a, %d %b %Y %H:%M:%S +0200")) == pytest.approx(100, abs=10)
