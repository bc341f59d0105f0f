"""The sandbox's certificates: an authority made at start, and server contexts whose certificates are good or bad.

Keys are in memory but for the moment of loading. A client that trusts :attr:`Certificates.authority` finds only
``good`` ones right.
"""

from __future__ import annotations

import datetime
import ssl
import tempfile
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sandbox.behaviour import CertificateKind

_DAYS = 30
_WRONG = ("mail.elsewhere.test",)


class Certificates:
    """For a set of hosts; each kind is made when first needed. EC P-256, valid for a month."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = tuple(hosts)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._authority = self._sign(self._key, "Authority of the sandbox", (), self._key, authority=True)
        self._contexts: dict[CertificateKind, ssl.SSLContext] = {}

    @property
    def authority(self) -> bytes:
        """PEM of the authority's certificate."""
        return self._authority.public_bytes(serialization.Encoding.PEM)

    def context(self, kind: CertificateKind = "good") -> ssl.SSLContext:
        """A server context; its certificate names all hosts, but for ``wrong-name``."""
        if kind not in self._contexts:
            self._contexts[kind] = self._make(kind)
        return self._contexts[kind]

    def _make(self, kind: CertificateKind) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        names = _WRONG if kind == "wrong-name" else self._hosts
        signer = key if kind == "self-signed" else self._key
        issuer = "sandbox.test" if kind == "self-signed" else "Authority of the sandbox"
        certificate = self._sign(key, "sandbox.test", names, signer, issuer=issuer, over=kind == "expired")
        pem = serialization.Encoding.PEM
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # 0600; the ssl module loads from files only
            file.write(secret + certificate.public_bytes(pem))
            file.flush()
            context.load_cert_chain(file.name)
        return context

    @staticmethod
    def _sign(
        key: ec.EllipticCurvePrivateKey,
        name: str,
        hosts: Sequence[str],
        signer: ec.EllipticCurvePrivateKey,
        *,
        issuer: str = "",
        authority: bool = False,
        over: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        ends = now - datetime.timedelta(days=1) if over else now + datetime.timedelta(days=_DAYS)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(issuer or name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if hosts:
            names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(signer, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
