# SPDX-License-Identifier: Apache-2.0
"""What a control plane proves itself with: a CA, a serving certificate, the key that signs tokens, an admin's token."""

import ipaddress
import secrets
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

import jwt
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from extproc.demo.client import LOOPBACK

ISSUER: Final = "https://kubernetes.default.svc"
"""Who issues tokens, and for whom they are: the API server takes its issuer for its audience."""

_LEEWAY: Final = timedelta(minutes=1)
"""For so long the API server accepts a token that has expired: clocks may differ, it thinks."""

_LIFE: Final = timedelta(days=1)


@dataclass(frozen=True)
class Credentials:
    """The files that the API server reads, and what its clients hold."""

    ca_file: Path
    certificate: Path
    certificate_key: Path
    signing_key: Path
    token_file: Path
    admin_token: str

    @classmethod
    def write(cls, folder: Path) -> Self:
        """New ones, as files of a folder that exists."""
        made = cls(
            ca_file=folder / "ca.crt",
            certificate=folder / "tls.crt",
            certificate_key=folder / "tls.key",
            signing_key=folder / "service-account.key",
            token_file=folder / "tokens.csv",
            admin_token=secrets.token_urlsafe(),
        )
        ca, certificate, key = _certify()
        made.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        made.certificate_key.write_bytes(_pem(key))
        made.signing_key.write_bytes(_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
        made.token_file.write_text(f'{made.admin_token},admin,admin,"system:masters"\n')
        return made

    def ssl_context(self) -> ssl.SSLContext:
        """One that trusts this control plane and nobody else."""
        return ssl.create_default_context(cafile=self.ca_file)

    def sign(self, namespace: str, service_account: str, uid: str, *, seconds: float) -> str:
        """A token as the kubelet projects it, which the API server refuses after `seconds`.

        To that end its `exp` lies a minute earlier, in the past for a short life: the server forgives that minute.
        """
        now = datetime.now(UTC)
        expires = now + timedelta(seconds=seconds) - _LEEWAY
        issued = min(now, expires) - timedelta(seconds=1)
        claims = {
            "iss": ISSUER,
            "aud": [ISSUER],
            "sub": f"system:serviceaccount:{namespace}:{service_account}",
            "iat": issued,
            "nbf": issued,
            "exp": expires,
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": service_account, "uid": uid}},
        }
        return jwt.encode(claims, self.signing_key.read_bytes(), algorithm="RS256")


def write_kubeconfig(path: Path, *, url: str, ca_file: Path, token_file: Path, namespace: str) -> Path:
    """A kubeconfig with one context; its user is whoever's token the file holds at the time."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(ca_file)}}],
        "users": [{"name": "test", "user": {"tokenFile": str(token_file)}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)))  # JSON is YAML
    return path


def _certify() -> tuple[x509.Certificate, x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A CA, a certificate of it for 127.0.0.1, and that one's key. Nobody keeps the CA's key."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        _builder("test CA", "test CA", ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(ca_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))])
    certificate = (
        _builder("kube-apiserver", "test CA", key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False)
        .add_extension(alternatives, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return ca, certificate, key


def _builder(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(now + _LIFE)
    )


def _usage(*, key_cert_sign: bool = False, digital_signature: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
