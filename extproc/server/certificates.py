# SPDX-License-Identifier: Apache-2.0
"""The certificate and the key with which the ext_proc port serves TLS: from a folder, or made at the start.

The folder has `tls.crt` and `tls.key` (PEM), as a Secret of the type kubernetes.io/tls is mounted. The kubelet swaps both by
one link that is moved, so content is compared and not time stamps (facts/ecosystem.md 3).

gRPC speaks TLS 1.2 and 1.3 and wants ALPN `h2`. It asks for the pair at each new connection; connections that there are keep
theirs. A pair that it cannot use it leaves aside without a word, so what may be wrong with one is looked for here first.
"""

import asyncio
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from extproc.policy.document import DocumentError

CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
SELF_SIGNED: Final = "owned-by"
"""Whom a certificate that is made here names."""

INTERVAL: Final = 0.5
"""Seconds between two looks at the folder, as at every other file (design section 5)."""
_LIFE: Final = timedelta(days=3650)
"""How long a certificate that is made here is valid: as the EPP's own, ten years, for nobody renews it."""
_LEEWAY: Final = timedelta(hours=1)
"""For so long it was valid already: clocks may differ."""
_READS: Final = 4
_RSA_BITS: Final = 2048
"""What Envoy asks of keys of its own."""
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
"""Envoy 1.40 was seen to refuse a server's P-521, and Ed25519: such a pair would end new connections, so it is refused here."""

_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_Content = tuple[bytes, bytes]


@dataclass(frozen=True)
class Pair:
    """A certificate, the chain behind it and its key, known to belong together; the key is in no text.

    `serial` is the certificate's in hexadecimal, as openssl writes it; `not_after` is when the first of the chain expires.
    """

    serial: str
    not_after: datetime
    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)


class Certificates:
    """The pair in force. With a folder, the last one there that could be used; without one, one of our own."""

    def __init__(self, folder: Path | None) -> None:
        """Read the pair or make it. Raises DocumentError, which names the file, if there is none that can be used."""
        self.folder = folder
        self.error: str | None = None
        self._content: _Content | None = None
        self._turn = asyncio.Lock()
        if folder is None:
            self._put(self_signed())
        elif not self.load():
            raise DocumentError("the files change all the time")
        self._given = self._configuration

    @property
    def pair(self) -> Pair:
        """The pair that new connections get."""
        return self._pair

    def credentials(self) -> grpc.ServerCredentials:
        """What one port serves with. To be called once: what the port was given last is kept here."""
        return grpc.dynamic_ssl_server_credentials(self._configuration, self._fetch)  # type: ignore[arg-type] # None may be

    def status(self) -> dict[str, str | None]:
        """What new connections get, where it is from and what is wrong with a newer one; no folder: it was made here."""
        return {
            "folder": str(self.folder) if self.folder else None,
            "serial": self._pair.serial,
            "not_after": self._pair.not_after.isoformat(),
            "error": self.error,
        }

    def load(self) -> bool:
        """Look once: True if there was something new and it could be used. Raises DocumentError if it could not."""
        assert self.folder is not None
        try:
            content = _read(self.folder)
        except DocumentError:
            self._content = None
            raise
        if content is None or content == self._content:
            return False  # what is being written is for the next look
        self._content = content
        self._put(parse_pair(*content))
        self.error = None
        return True

    async def watch(self, on_load: Callable[[str | None], None]) -> None:
        """Look every half second, for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.look(on_load)

    async def look(self, on_load: Callable[[str | None], None]) -> None:
        """Look once; `on_load` hears of a change and its error, each error once."""
        async with self._turn:
            before = self.error
            try:
                if await asyncio.to_thread(self.load):
                    on_load(None)
            except Exception as error:  # noqa: BLE001 - whatever it is, the folder must go on being watched
                self.error = str(error)
                if self.error != before:
                    on_load(self.error)

    def _put(self, pair: Pair) -> None:
        self._pair = pair
        self._configuration = grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)])

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC asks before each handshake, from a thread of its own and one at a time; None: as before."""
        configuration = self._configuration
        if configuration is self._given:
            return None
        self._given = configuration
        return configuration


def parse_pair(certificate: bytes, key: bytes) -> Pair:
    """The content of both files -> a pair. Raises DocumentError, which never shows any of it."""
    chain = _chain(certificate)
    private = _private_key(key)
    try:
        public = chain[0].public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DocumentError(f"{CERTIFICATE_FILE} has a public key that cannot be read") from error
    if chain[0].public_key_algorithm_oid == x509.PublicKeyAlgorithmOID.RSASSA_PSS:
        raise DocumentError(f"{CERTIFICATE_FILE} is for RSASSA-PSS only, which gRPC cannot use: take plain RSA")
    if public != private.public_key():
        raise DocumentError(f"{KEY_FILE} is not the key of the first certificate in {CERTIFICATE_FILE}")
    return _pair(chain, private)


def self_signed() -> Pair:
    """A certificate that vouches for itself, as the EPP makes one: for gateways that encrypt and do not verify."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, SELF_SIGNED)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SELF_SIGNED)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair([certificate], key)


def _pair(chain: list[x509.Certificate], key: _Key) -> Pair:
    return Pair(
        serial=f"{chain[0].serial_number:X}",
        not_after=min(certificate.not_valid_after_utc for certificate in chain),
        # Written anew: what was checked is what is served, whatever else the files hold.
        chain=b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _read(folder: Path) -> _Content | None:
    """Both files as they stand at one moment: read until nothing has changed in between; None if they go on changing."""
    content = _contents(folder)
    for _ in range(_READS):
        before, content = content, _contents(folder)
        if content == before:
            return content
    return None


def _contents(folder: Path) -> _Content:
    return _one(folder / CERTIFICATE_FILE), _one(folder / KEY_FILE)


def _one(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to read a pipe could take for ever
            raise DocumentError(f"{path.name} is not a file")
        return path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path.name} cannot be read: {error.strerror}") from error


def _chain(text: bytes) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(text)
    except (ValueError, x509.InvalidVersion) as error:
        raise DocumentError(f"{CERTIFICATE_FILE} holds no certificate in PEM, or a broken one") from error
    if text.count(b"-----BEGIN ") != text.count(b"-----END "):  # the library overlooks it: a chain that is half written
        raise DocumentError(f"{CERTIFICATE_FILE} ends in the middle of a certificate")
    return chain


def _private_key(text: bytes) -> _Key:
    try:
        key = load_pem_private_key(text, password=None)
    except TypeError:
        raise DocumentError(f"{KEY_FILE} is encrypted: it must need no password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise DocumentError(f"{KEY_FILE} holds no private key in PEM, or a broken one") from None
    match key:
        case ec.EllipticCurvePrivateKey() if isinstance(key.curve, _CURVES):
            return key
        case rsa.RSAPrivateKey() if key.key_size >= _RSA_BITS:
            return key
    raise DocumentError(
        f"{KEY_FILE} is of a kind that Envoy does not take: it must be RSA of {_RSA_BITS} bits or more, P-256 or P-384"
    )
