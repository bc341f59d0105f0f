"""Key material that ``relayctl up`` makes for itself: a certificate, keys that sign, the key of return paths."""

from __future__ import annotations

import datetime
import ipaddress
import os
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from signing import keys
from signing.return_path import add_key

CERTIFICATE_DAYS = 825


def write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, readable by its owner only."""
    part = path.with_name(path.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
    part.replace(path)


def sign(directory: Path, domain: str, return_path_key: Path) -> None:
    """Makes an RSA and an Ed25519 key of a domain, and one of return paths, where there are none."""
    now = time.time()
    if not any((directory / domain).glob("*.pem")):
        for algorithm in ("rsa-2048", "ed25519"):
            keys.generate(directory, domain, algorithm, now=now)
        keys.rotate(directory, domain, now=now, overlap=0.0)
    if not return_path_key.exists():
        add_key(return_path_key, time.strftime("%Y-%m-%d", time.gmtime(now)))


def certify(certificate: Path, key: Path) -> None:
    """Makes both files unless there is a certificate with a month left."""
    now = datetime.datetime.now(datetime.UTC)
    if certificate.exists() and key.exists():
        there = x509.load_pem_x509_certificate(certificate.read_bytes())
        if there.not_valid_after_utc - now > datetime.timedelta(days=30):
            return
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(key, secret)
    write_private(certificate, signed.public_bytes(pem))
