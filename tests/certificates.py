# SPDX-License-Identifier: Apache-2.0
"""Certificates for servers of ours: who signs them, how the kubelet mounts them, and what a server shows of them."""

import asyncio
import shutil
import socket
import ssl
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

NAME: Final = "owned-by"
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Issued:
    """A certificate and its key in PEM, as the files have them."""

    serial: str
    not_after: datetime
    certificate: bytes
    key: bytes


class Authority:
    """Who signs, by its own right or by that of another; `certificate` is its own, in PEM."""

    def __init__(self, above: "Authority | None" = None, days: int = 30) -> None:
        self._name = f"below {above._name}" if above else "authority"
        self._key = ec.generate_private_key(ec.SECP256R1())
        signer = above or self
        signed = _signed(self._name, self._key, signer._name, signer._key, days, ca=True)
        self.not_after = signed.not_valid_after_utc
        self.certificate = _pem(signed)

    def issue(self, key: Key | None = None, days: int = 10) -> Issued:
        """A certificate for `owned-by`, of a new key or of this one."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        signed = _signed(NAME, key, self._name, self._key, days, ca=False)
        return Issued(f"{signed.serial_number:X}", signed.not_valid_after_utc, _pem(signed), key_pem(key))


def _signed(name: str, key: Key, issuer: str, issuer_key: Key, days: int, *, ca: bool) -> x509.Certificate:
    subject, signer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(signer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Key, password: bytes | None = None) -> bytes:
    """A private key as PKCS#8."""
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def write(folder: Path, certificate: bytes, key: bytes) -> Path:
    """Both files in a folder, which may exist; the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "tls.crt").write_bytes(certificate)
    (folder / "tls.key").write_bytes(key)
    return folder


class Mount:
    """A Secret as the kubelet mounts it: the files are links into `..data`, a link that moves from folder to folder."""

    def __init__(self, folder: Path, certificate: bytes, key: bytes) -> None:
        self.folder = folder
        self._count = 0
        folder.mkdir()
        self.replace(certificate, key)
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(Path("..data") / name)

    def replace(self, certificate: bytes, key: bytes) -> None:
        """Another content, in one step; the old one is gone after it."""
        self._count += 1
        write(self.folder / f"..{self._count}", certificate, key)
        (self.folder / "..data_tmp").symlink_to(f"..{self._count}")
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        if self._count > 1:
            shutil.rmtree(self.folder / f"..{self._count - 1}")


@dataclass(frozen=True)
class Shown:
    """What a new connection sees; `answers` is whether the server then says anything or hangs up."""

    serial: str
    version: str
    protocol: str | None
    answers: bool = True


async def shown(
    port: int,
    *,
    at_most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    offered: str = "h2",
    authority: Authority | None = None,
) -> Shown:
    """Connect to a port of 127.0.0.1 and shake hands: with anybody, or with who is `owned-by` to an authority.

    Raises OSError (ssl.SSLError is one).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority:
        context.load_verify_locations(cadata=authority.certificate.decode())
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([offered])
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # old versions are the point
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = at_most

    def look() -> Shown:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as connection,
        ):
            certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
            version, protocol = connection.version(), connection.selected_alpn_protocol()
            return Shown(f"{certificate.serial_number:X}", version or "", protocol, connection.recv(1) != b"")

    return await asyncio.to_thread(look)
