"""A digest of the configuration in force: processes that give the same one agree. No secret can be read from it."""

from __future__ import annotations

import hashlib

import orjson
from pydantic import SecretStr

from config.load import Loaded
from config.schema import leaves

LENGTH = 16  # hex digits
COST = 2**13  # of scrypt: 8 MiB and 25 ms a guess, so that a weak password is not tried out against a digest


def digest_of(loaded: Loaded) -> str:
    """Every setting and every rule; the order and the comments of the files do not count."""
    shown = dict(leaves(loaded.settings))
    rules = {name: repr(rule) for name, rule in loaded.providers.rules.items()}
    open_part = hashlib.sha256(_spelled(shown) + _spelled(rules)).digest()
    secrets = {
        key: value for key, value in leaves(loaded.settings, mask=False) if _plain(value) != _plain(shown.get(key))
    }
    secrets |= {f"routes.{name}.password": password for name, password in loaded.passwords.items()}
    if not secrets:
        return open_part.hex()[:LENGTH]
    return hashlib.scrypt(_spelled(secrets), salt=open_part, n=COST, r=8, p=1, dklen=LENGTH // 2).hex()


def _spelled(values: object) -> bytes:
    return orjson.dumps(values, default=_plain, option=orjson.OPT_SORT_KEYS)


def _plain(value: object) -> object:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return value if isinstance(value, str) else str(value)
