"""DKIM in tests: keys that are made once, a verdict by dkimpy without DNS."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from signing import keys, proof, record
from signing.dkim import Key, PrivateKey

DOMAIN = "entidad.test"


@cache
def rsa_2048() -> PrivateKey:
    return keys.make("rsa-2048")


@cache
def ed25519() -> PrivateKey:
    return keys.make("ed25519")


def both(domain: str = DOMAIN) -> list[Key]:
    """An RSA and an Ed25519 key of one domain."""
    return [Key(domain, "r1", rsa_2048()), Key(domain, "e1", ed25519())]


def records(held: Iterable[Key]) -> dict[str, str]:
    """Name → text of the keys' records."""
    return {key.name: record.text(key) for key in held}


def faults(content: bytes, held: Iterable[Key], signatures: int = 2) -> list[str]:
    """dkimpy's verdict on each of the topmost signatures that is not good; [] = all are."""
    known = records(held)
    return [why for number in range(signatures) if (why := proof.verify(content, known.get, number))]
