"""DKIM keys as files: ``<directory>/<domain>/<selector>.pem`` (PKCS #8, mode 0600), and ``state.json`` beside them.

``state.json`` says of each selector when it began to sign, when it stopped, and until when its record must stay in
DNS, because mail that it signed may still be on its way. A key that it does not name signs: whoever puts a key file
there by hand means it. Times are Unix seconds.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from signing import private
from signing.dkim import Key, PrivateKey, Signer
from signing.proof import prove

SHORTEST_RSA = 2048
ALGORITHMS = ("rsa-2048", "rsa-4096", "ed25519")
STATE = "state.json"
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})+")
_SELECTOR = re.compile(rf"(?=.{{1,100}}$){_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Held:
    """A key and where it stands. ``key.since`` is infinite until it begins to sign; ``keep``: until when its record
    must stay, None while the key is not retired."""

    key: Key
    path: Path
    keep: float | None = None

    def state(self, now: float) -> str:
        """ready | signing | retired | removable"""
        if now < self.key.since:
            return "ready"
        if now < self.key.until:
            return "signing"
        return "retired" if self.keep is not None and now < self.keep else "removable"


def load(directory: str | None) -> Signer:
    """Every key of the directory, each proved; None = a signer without keys. OSError, or ValueError naming the file."""
    if directory is None:
        return Signer()
    return Signer(held.key for held in read(Path(directory)))


def read(directory: Path) -> list[Held]:
    """All keys, by domain and selector. OSError, or ValueError naming the file."""
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory}: is no directory; it is made by: relayctl dkim generate")
    return [held for folder in _folders(directory) for held in read_domain(folder)]


def read_domain(folder: Path) -> list[Held]:
    """The keys of one domain, whose name is the folder's."""
    if _DOMAIN.fullmatch(folder.name) is None:
        raise ValueError(f"{folder}: is no domain; write it in lower case, non-ASCII labels as xn--…")
    times = _read_state(folder / STATE)
    return [
        _read_key(path, folder.name, times.get(path.stem, _Times(since=0.0))) for path in sorted(folder.glob("*.pem"))
    ]


def generate(directory: Path, domain: str, algorithm: str, *, selector: str = "", now: float) -> Held:
    """A new key, which waits for :func:`rotate`. ValueError for a name that does not do, or for a selector that is or
    was in use: the record of a selector never gets another key, since resolvers keep the old one."""
    folder = directory / domain
    if _DOMAIN.fullmatch(domain) is None:
        raise ValueError(f"{domain!r} is no domain; write it in lower case, non-ASCII labels as xn--…")
    times = _read_state(folder / STATE)
    selector = selector or _free_selector(folder, algorithm, now, times)
    path = folder / f"{selector}.pem"
    if _SELECTOR.fullmatch(selector) is None:
        raise ValueError(f"{selector!r} is no selector: a-z 0-9 - and dots between labels")
    if path.exists() or selector in times:
        raise ValueError(f"{path}: this selector is or was in use; choose another")
    private_key = make(algorithm)
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    times[selector] = _Times(made=now)
    _write_state(folder / STATE, times)  # first: a key file without a line here would sign
    private.write(path, pem)
    return _read_key(path, domain, times[selector])


def rotate(directory: Path, domain: str, *, now: float, overlap: float, only: Sequence[str] = ()) -> list[Held]:
    """Of each algorithm the newest key that waits begins to sign, and those that signed stop; their records must stay
    for ``overlap`` seconds more. With ``only``, these selectors begin. → what begins to sign, perhaps nothing."""
    folder = directory / domain
    times = _read_state(folder / STATE)
    held = read_domain(folder) if folder.is_dir() else []
    begins: dict[str, Held] = {}
    for one in sorted(held, key=lambda one: times.get(one.key.selector, _Times()).made):
        if one.key.selector in only or (not only and one.state(now) == "ready"):
            begins[one.key.algorithm] = one
    for one in held:
        if one.state(now) == "signing" and one.key.algorithm in begins:
            before = times.get(one.key.selector, _Times(since=0.0))
            times[one.key.selector] = replace(before, until=now, keep=now + overlap)
    for one in begins.values():
        times[one.key.selector] = replace(times[one.key.selector], since=now)
    if begins:
        _write_state(folder / STATE, times)
    started = {one.key.selector for one in begins.values()}
    return [one for one in read_domain(folder) if one.key.selector in started] if begins else []


def make(algorithm: str) -> PrivateKey:
    """A private key of one of :data:`ALGORITHMS`."""
    if algorithm == "ed25519":
        return Ed25519PrivateKey.generate()
    if algorithm in ALGORITHMS:
        return rsa.generate_private_key(65_537, int(algorithm.removeprefix("rsa-")))
    raise ValueError(f"{algorithm!r} is no algorithm; allowed: {', '.join(ALGORITHMS)}")


def _folders(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.iterdir()) if path.is_dir() and not path.name.startswith("."))


def _read_key(path: Path, domain: str, times: _Times) -> Held:
    if _SELECTOR.fullmatch(path.stem) is None:
        raise ValueError(f"{path}: {path.stem!r} is no selector: a-z 0-9 - and dots between labels")
    try:
        # The validation that is skipped (40 ms a key) is for keys of strangers; this one is proved below.
        found = load_pem_private_key(private.read(path), password=None, unsafe_skip_rsa_key_validation=True)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path}: {error}") from None
    except ValueError as error:
        text = str(error)
        raise (error if text.startswith(str(path)) else ValueError(f"{path}: is no PEM private key")) from None
    if not isinstance(found, RSAPrivateKey | Ed25519PrivateKey):
        raise ValueError(f"{path}: is neither an RSA nor an Ed25519 key")
    if isinstance(found, RSAPrivateKey) and found.key_size < SHORTEST_RSA:
        raise ValueError(
            f"{path}: RSA of {found.key_size} bits; at least {SHORTEST_RSA}: relayctl dkim generate {domain}"
        )
    since = math.inf if times.since is None else times.since
    key = Key(domain, path.stem, found, since, math.inf if times.until is None else times.until)
    try:
        prove(key)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Held(key, path, times.keep)


@dataclass(frozen=True, slots=True)
class _Times:
    """One line of state.json."""

    made: float = 0.0
    since: float | None = None
    until: float | None = None
    keep: float | None = None


def _read_state(path: Path) -> dict[str, _Times]:
    try:
        tree = json.loads(path.read_bytes())
        return {str(selector): _Times(**times) for selector, times in tree.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{path}: is not what relayctl dkim wrote") from None


def _write_state(path: Path, times: dict[str, _Times]) -> None:
    tree = {selector: {name: getattr(one, name) for name in _Times.__slots__} for selector, one in times.items()}
    private.write(path, json.dumps(tree, indent=1).encode("ascii") + b"\n")


def _free_selector(folder: Path, algorithm: str, now: float, times: dict[str, _Times]) -> str:
    """rsa-20261125, rsa-20261125-2, …"""
    stem = f"{algorithm.partition('-')[0]}-{time.strftime('%Y%m%d', time.gmtime(now))}"
    number, selector = 1, stem
    while selector in times or (folder / f"{selector}.pem").exists():
        number += 1
        selector = f"{stem}-{number}"
    return selector
