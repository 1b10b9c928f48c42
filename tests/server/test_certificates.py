# SPDX-License-Identifier: Apache-2.0
"""The pair of the ext_proc port: read, checked, read again, handed to gRPC."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from extproc.policy.document import DocumentError
from extproc.server.certificates import Certificates, parse_pair, self_signed
from tests.certificates import Authority, Issued, Mount, Shown, key_pem, shown, write

AUTHORITY = Authority()
ONE, OTHER = AUTHORITY.issue(), AUTHORITY.issue()
CURVE_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "certs", ONE.certificate, ONE.key)


@asynccontextmanager
async def served(certificates: Certificates) -> AsyncIterator[int]:
    """A gRPC server with them; its port."""
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", certificates.credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


def test_a_pair_says_which_certificate_it_is_and_when_the_first_of_its_chain_expires() -> None:
    short = Authority(AUTHORITY, days=5)
    issued = short.issue(days=10)
    pair = parse_pair(issued.certificate + short.certificate, issued.key)

    assert (pair.serial, pair.not_after) == (issued.serial, short.not_after)


def test_nothing_that_is_printed_of_a_pair_shows_its_key() -> None:
    pair = parse_pair(ONE.certificate, ONE.key)

    assert repr(pair) == f"Pair(serial={ONE.serial!r}, not_after={ONE.not_after!r})"


def test_a_pair_of_our_own_is_a_new_one_each_time_and_lasts_for_ten_years() -> None:
    first, second = self_signed(), self_signed()
    certificate = x509.load_pem_x509_certificate(first.chain)
    certificate.verify_directly_issued_by(certificate)

    assert first.serial != second.serial
    assert timedelta(days=3649) < first.not_after - datetime.now(UTC) <= timedelta(days=3650)
    assert parse_pair(first.chain, first.key) == first


def pss() -> tuple[bytes, bytes]:
    """A certificate of a key that may sign in one way only, as openssl makes it from `-newkey rsa-pss`."""
    key = rsa.generate_private_key(65537, 2048)
    issued = AUTHORITY.issue(key)
    der = x509.load_pem_x509_certificate(issued.certificate).public_bytes(serialization.Encoding.DER)
    # The key's algorithm, with its length and that of the key: rsaEncryption, NULL -> RSASSA-PSS. The library makes no such.
    plain, only = (
        bytes.fromhex(text) for text in ("0122300d06092a864886f70d0101010500", "0120300b06092a864886f70d01010a")
    )
    changed = bytearray(der.replace(plain, only))
    for place in (2, 6):  # the lengths of what it stands in
        changed[place : place + 2] = (int.from_bytes(changed[place : place + 2]) - 2).to_bytes(2)
    return ssl.DER_cert_to_PEM_cert(bytes(changed)).encode(), issued.key


def future() -> bytes:
    """A certificate of a version that there is not: they end with 3, which is written as 2."""
    der = ssl.PEM_cert_to_DER_cert(ONE.certificate.decode())
    return ssl.DER_cert_to_PEM_cert(der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020105"), 1)).encode()


CASES: dict[str, tuple[bytes, bytes, str]] = {
    "no certificate": (b"", ONE.key, "tls.crt holds no certificate in PEM, or a broken one"),
    "a key as certificate": (ONE.key, ONE.key, "tls.crt holds no certificate in PEM, or a broken one"),
    "half a certificate": (
        ONE.certificate[:300],
        ONE.key,
        "tls.crt holds no certificate in PEM, or a broken one",
    ),
    "a certificate of another version": (
        future(),
        ONE.key,
        "tls.crt holds no certificate in PEM, or a broken one",
    ),
    "a chain that is cut": (
        ONE.certificate + AUTHORITY.certificate[:300],
        ONE.key,
        "tls.crt ends in the middle of a certificate",
    ),
    "no key": (ONE.certificate, b"", "tls.key holds no private key in PEM, or a broken one"),
    "a certificate as key": (ONE.certificate, ONE.certificate, "tls.key holds no private key in PEM, or a broken one"),
    "half a key": (ONE.certificate, ONE.key[:80], "tls.key holds no private key in PEM, or a broken one"),
    "an encrypted key": (
        ONE.certificate,
        key_pem(CURVE_KEY, b"secret"),
        "tls.key is encrypted: it must need no password",
    ),
    "another's key": (
        ONE.certificate,
        OTHER.key,
        "tls.key is not the key of the first certificate in tls.crt",
    ),
    "the chain in the wrong order": (
        AUTHORITY.certificate + ONE.certificate,
        ONE.key,
        "tls.key is not the key of the first certificate in tls.crt",
    ),
    **{
        name: (
            ONE.certificate,
            key,
            "tls.key is of a kind that Envoy does not take: it must be RSA of 2048 bits or more, P-256 or P-384",
        )
        for name, key in {
            "a short key": key_pem(rsa.generate_private_key(65537, 1024)),
            "secp256k1": key_pem(ec.generate_private_key(ec.SECP256K1())),
            "P-521": key_pem(ec.generate_private_key(ec.SECP521R1())),
            "Ed25519": key_pem(ed25519.Ed25519PrivateKey.generate()),
            "Ed448": ed448.Ed448PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        }.items()
    },
}


@pytest.mark.parametrize(("certificate", "key", "message"), CASES.values(), ids=CASES)
def test_a_pair_that_cannot_be_used_is_refused_with_the_file_and_the_reason(
    certificate: bytes, key: bytes, message: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_pair(certificate, key)

    assert str(caught.value) == message


def test_a_certificate_that_signs_in_one_way_only_is_refused() -> None:
    with pytest.raises(DocumentError) as caught:
        parse_pair(*pss())

    assert str(caught.value) == "tls.crt is for RSASSA-PSS only, which gRPC cannot use: take plain RSA"


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key"])
def test_a_folder_without_a_file_is_refused(folder: Path, missing: str) -> None:
    (folder / missing).unlink()

    with pytest.raises(DocumentError) as caught:
        Certificates(folder)

    assert str(caught.value) == f"{missing} cannot be read: No such file or directory"


def test_a_file_that_is_none_is_refused(folder: Path) -> None:
    (folder / "tls.key").unlink()
    (folder / "tls.key").mkdir()

    with pytest.raises(DocumentError) as caught:
        Certificates(folder)

    assert str(caught.value) == "tls.key is not a file"


async def test_each_kind_of_key_is_served_and_a_change_of_kind_is_taken_over(folder: Path) -> None:
    keys = (
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        CURVE_KEY,
    )
    certificates = Certificates(folder)
    async with served(certificates) as port:
        expected, seen = [ONE.serial], [(await shown(port)).serial]
        for key in keys:
            issued = AUTHORITY.issue(key)
            write(folder, issued.certificate, issued.key)
            certificates.load()
            expected.append(issued.serial)
            seen.append((await shown(port)).serial)

    assert seen == expected


async def test_what_openssl_writes_before_a_key_does_not_matter(folder: Path) -> None:
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    traditional = CURVE_KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    issued = AUTHORITY.issue(CURVE_KEY)
    write(folder, b"a bag of\nattributes\n" + issued.certificate, parameters + traditional)

    async with served(Certificates(folder)) as port:
        assert await shown(port) == Shown(issued.serial, "TLSv1.3", "h2")


async def test_who_trusts_only_the_highest_authority_is_shown_the_chain(folder: Path) -> None:
    below = Authority(AUTHORITY)
    issued = below.issue()
    write(folder, issued.certificate + below.certificate, issued.key)

    async with served(Certificates(folder)) as port:
        assert await shown(port, authority=AUTHORITY) == Shown(issued.serial, "TLSv1.3", "h2")


async def test_an_expired_certificate_is_served_for_the_gateway_decides(folder: Path) -> None:
    expired = AUTHORITY.issue(days=-1)
    write(folder, expired.certificate, expired.key)

    async with served(Certificates(folder)) as port:
        assert (await shown(port)).serial == expired.serial
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await shown(port, authority=AUTHORITY)


async def test_who_does_not_offer_http_2_is_hung_up_on(folder: Path) -> None:
    async with served(Certificates(folder)) as port:
        assert await shown(port, offered="http/1.1") == Shown(ONE.serial, "TLSv1.3", None, answers=False)


async def test_tls_1_2_is_the_oldest_that_is_spoken() -> None:
    async with served(Certificates(None)) as port:
        old = (await shown(port, at_most=ssl.TLSVersion.TLSv1_2)).version
        with pytest.raises(OSError, match=r"EOF|reset|ALERT"):
            await shown(port, at_most=ssl.TLSVersion.TLSv1_1)

    assert old == "TLSv1.2"


async def test_a_look_at_what_is_as_it_was_tells_nothing(folder: Path) -> None:
    certificates, told = Certificates(folder), list[str | None]()
    write(folder, ONE.certificate, ONE.key)
    await certificates.look(told.append)

    assert (told, certificates.status()) == (
        [],
        {"folder": str(folder), "serial": ONE.serial, "not_after": ONE.not_after.isoformat(), "error": None},
    )


async def test_a_pair_that_is_swapped_as_the_kubelet_does_is_for_new_connections(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "certs", ONE.certificate, ONE.key)
    certificates, told = Certificates(mount.folder), list[str | None]()
    async with served(certificates) as port:
        before = await shown(port)
        mount.replace(OTHER.certificate, OTHER.key)
        await certificates.look(told.append)
        after = await shown(port)

    assert (before.serial, after.serial, told) == (ONE.serial, OTHER.serial, [None])


def half(folder: Path) -> None:
    (folder / "tls.crt").write_bytes(OTHER.certificate)


def broken(folder: Path) -> None:
    (folder / "tls.crt").write_bytes(OTHER.certificate[:200])


def away(folder: Path) -> None:
    (folder / "tls.crt").unlink()


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "half": (half, "tls.key is not the key of the first certificate in tls.crt"),
    "broken": (broken, "tls.crt holds no certificate in PEM, or a broken one"),
    "away": (away, "tls.crt cannot be read: No such file or directory"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("then", [ONE, OTHER], ids=["the old one", "a new one"])
async def test_a_pair_that_cannot_be_used_is_told_once_and_the_last_good_one_stays(
    folder: Path, spoil: Callable[[Path], None], message: str, then: Issued
) -> None:
    certificates, told = Certificates(folder), list[str | None]()
    async with served(certificates) as port:
        spoil(folder)
        for _ in range(3):
            await certificates.look(told.append)
        kept, status = (await shown(port)).serial, certificates.status()
        write(folder, then.certificate, then.key)
        await certificates.look(told.append)
        after = (await shown(port)).serial

    assert (kept, status["serial"], status["error"]) == (ONE.serial, ONE.serial, message)
    assert (told, after, certificates.status()["error"]) == ([message, None], then.serial, None)


async def test_a_folder_that_is_swapped_all_the_time_is_never_read_as_a_mixture(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "certs", ONE.certificate, ONE.key)
    certificates, told = Certificates(mount.folder), list[str | None]()
    pairs = [AUTHORITY.issue() for _ in range(200)]

    def swap() -> None:
        for each in pairs:
            mount.replace(each.certificate, each.key)

    swapping = asyncio.create_task(asyncio.to_thread(swap))
    while not swapping.done():
        await certificates.look(told.append)
    await swapping
    await certificates.look(told.append)

    assert "tls.key is not the key of the first certificate in tls.crt" not in told
    assert certificates.status()["serial"] == pairs[-1].serial
