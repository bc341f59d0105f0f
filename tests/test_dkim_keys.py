"""Key files: made, read, refused, rotated with overlap; records and what is wrong with them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from signing import keys, private, record
from signing.dkim import Key
from tests.dkim_kit import DOMAIN, both, ed25519, faults, rsa_2048

NOW = 1_790_000_000.0
DAY = 86_400.0
PLAIN = b"From: a@entidad.test\r\n\r\nHola.\r\n"


def pem(key: keys.PrivateKey, encryption: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def put(directory: Path, selector: str, data: bytes, domain: str = DOMAIN, mode: int = 0o600) -> Path:
    path = directory / domain / f"{selector}.pem"
    private.write(path, data, mode)
    return path


def signing_now(directory: Path, now: float = NOW) -> list[str]:
    return [key.selector for key in keys.load(str(directory)).keys_for(DOMAIN, now)]


def states(directory: Path, now: float) -> dict[str, str]:
    return {held.key.selector: held.state(now) for held in keys.read(directory)}


def test_none_is_a_signer_without_keys() -> None:
    signer = keys.load(None)
    assert not signer.covers(DOMAIN, NOW) and signer.sign(PLAIN, DOMAIN, NOW) == b""


def test_keys_put_there_by_hand_sign(tmp_path: Path) -> None:
    put(tmp_path, "r", pem(rsa_2048()))
    put(tmp_path, "e", pem(ed25519()))
    signer = keys.load(str(tmp_path))
    assert signing_now(tmp_path) == ["r", "e"]
    assert faults(signer.sign(PLAIN, DOMAIN, NOW) + PLAIN, signer.keys) == []


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="relayctl dkim generate"):
        keys.load(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "no PEM private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no PEM private key"),
        (pem(rsa.generate_private_key(65_537, 1024)), "RSA of 1024 bits; at least 2048"),
        (
            ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "neither an RSA nor an Ed25519",
        ),
        (pem(ed25519(), BestAvailableEncryption(b"secret")), "Password was not given"),
    ],
    ids=["empty", "garbage", "short RSA", "elliptic curve", "encrypted"],
)
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = put(tmp_path, "s", data)
    with pytest.raises(ValueError, match=complaint) as found:
        keys.load(str(tmp_path))
    assert str(path) in str(found.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_may_read(tmp_path: Path, mode: int) -> None:
    path = put(tmp_path, "s", pem(ed25519()), mode=mode)
    with pytest.raises(ValueError, match=f"mode {mode:04o} .*chmod 600 {path}"):
        keys.load(str(tmp_path))


def test_a_credential_of_systemd_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "s", pem(ed25519()), mode=0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert signing_now(tmp_path) == ["s"]


def test_a_key_of_somebody_else(root: None, tmp_path: Path) -> None:
    path = put(tmp_path, "s", pem(ed25519()))
    os.chown(path, 1234, 1234)
    with pytest.raises(ValueError, match=f"belongs to user 1234; run: chown 0 {path}"):
        keys.load(str(tmp_path))


@pytest.mark.parametrize("domain", ["Entidad.test", "año.test", "test", "a b.test", ".."])
def test_a_folder_that_is_no_domain(tmp_path: Path, domain: str) -> None:
    with pytest.raises(ValueError, match="is no domain"):
        keys.generate(tmp_path, domain, "ed25519", now=NOW)
    if domain != "..":
        put(tmp_path, "s", pem(ed25519()), domain)
        with pytest.raises(ValueError, match="is no domain"):
            keys.load(str(tmp_path))


def test_state_that_nobody_here_wrote(tmp_path: Path) -> None:
    put(tmp_path, "s", pem(ed25519()))
    for text in ("{", "[]", '{"s": 1}', '{"s": {"other": 1}}'):
        (tmp_path / DOMAIN / keys.STATE).write_text(text)
        with pytest.raises(ValueError, match=r"state\.json: is not what"):
            keys.load(str(tmp_path))


def test_rotation_overlaps(tmp_path: Path) -> None:
    """A key waits, signs, is retired; its record stays as long as mail that it signed may be on its way."""
    first = keys.generate(tmp_path, DOMAIN, "rsa-2048", now=NOW)
    assert first.key.selector == "rsa-20260921"
    assert first.path.stat().st_mode & 0o777 == 0o600
    assert signing_now(tmp_path) == [] and states(tmp_path, NOW) == {"rsa-20260921": "ready"}
    assert [held.key.selector for held in keys.rotate(tmp_path, DOMAIN, now=NOW, overlap=7 * DAY)] == ["rsa-20260921"]
    assert signing_now(tmp_path) == ["rsa-20260921"]
    under_way = keys.load(str(tmp_path)).sign(PLAIN, DOMAIN, NOW) + PLAIN

    keys.generate(tmp_path, DOMAIN, "rsa-2048", now=NOW)
    keys.generate(tmp_path, DOMAIN, "ed25519", now=NOW)
    assert signing_now(tmp_path) == ["rsa-20260921"]
    later = NOW + DAY
    begun = keys.rotate(tmp_path, DOMAIN, now=later, overlap=7 * DAY)
    assert {held.key.selector for held in begun} == {"rsa-20260921-2", "ed25519-20260921"}
    assert signing_now(tmp_path, later) == ["rsa-20260921-2", "ed25519-20260921"]
    assert states(tmp_path, later)["rsa-20260921"] == "retired"
    assert states(tmp_path, later + 7 * DAY)["rsa-20260921"] == "removable"
    assert faults(under_way, [held.key for held in keys.read(tmp_path)], 1) == []
    assert keys.rotate(tmp_path, DOMAIN, now=later, overlap=DAY) == []


def test_rotation_leaves_the_other_algorithm_alone(tmp_path: Path) -> None:
    put(tmp_path, "hand", pem(rsa_2048()))
    keys.generate(tmp_path, DOMAIN, "ed25519", selector="e1", now=NOW)
    keys.rotate(tmp_path, DOMAIN, now=NOW, overlap=DAY)
    assert signing_now(tmp_path) == ["hand", "e1"]
    keys.generate(tmp_path, DOMAIN, "rsa-2048", selector="r1", now=NOW)
    keys.rotate(tmp_path, DOMAIN, now=NOW + 1, overlap=DAY)
    assert signing_now(tmp_path, NOW + 1) == ["r1", "e1"]
    assert signing_now(tmp_path, NOW + 0.5) == ["hand", "e1"]
    assert json.loads((tmp_path / DOMAIN / keys.STATE).read_bytes())["hand"]["until"] == NOW + 1


def test_a_selector_is_used_once(tmp_path: Path) -> None:
    held = keys.generate(tmp_path, DOMAIN, "ed25519", selector="s1", now=NOW)
    held.path.unlink()
    with pytest.raises(ValueError, match="is or was in use"):
        keys.generate(tmp_path, DOMAIN, "ed25519", selector="s1", now=NOW)
    with pytest.raises(ValueError, match="no selector"):
        keys.generate(tmp_path, DOMAIN, "ed25519", selector="../s", now=NOW)
    with pytest.raises(ValueError, match="allowed: rsa-2048, rsa-4096, ed25519"):
        keys.generate(tmp_path, DOMAIN, "rsa-1024", now=NOW)


def test_twenty_keys_load_in_a_second(tmp_path: Path) -> None:
    for number in range(20):
        put(tmp_path, f"s{number}", pem(rsa_2048() if number % 2 else ed25519()))
    keys.load(str(tmp_path))
    started = time.process_time()
    assert len(keys.load(str(tmp_path)).keys) == 20
    assert time.process_time() - started < 1.0


# ── records ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_in_strings_of_255_octets() -> None:
    key = both()[0]
    value = record.text(key)
    parts = record.strings(value)
    assert "".join(parts) == value and max(map(len, parts)) <= 255 and len(parts) == 2
    line = record.zone_line(key)
    assert line.startswith('r1._domainkey.entidad.test. 3600 IN TXT ( "v=DKIM1; k=rsa; p=')
    assert record.zone_line(both()[1]).count('"') == 2


RSA, EDWARDS = both()
GOOD = record.text(RSA)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ([], "no record at r1._domainkey.entidad.test"),
        (["v=spf1 -all"], "1 TXT records there are no keys"),
        ([GOOD, GOOD], "2 records"),
        ([GOOD.replace("DKIM1", "DKIM2")], "v= must be DKIM1"),
        (["k=rsa; " + GOOD], "stands twice"),
        ([GOOD.replace("k=rsa", "k=ed25519")], "k=ed25519 where the key is k=rsa"),
        ([record.text(EDWARDS)], "p= is another key"),
        ([GOOD[:255]], "it is cut to"),
        ([GOOD[: GOOD.index("p=") + 2]], "revoked"),
        (["v=DKIM1; k=rsa; x=p="], "p= is missing"),
        ([GOOD.replace("p=", 'p=" "')], "quotes or backslashes"),
        ([GOOD.replace("k=rsa", "h=sha1; k=rsa")], "h=sha1 does not allow sha256"),
        ([GOOD.replace("k=rsa", "s=tlsrpt; k=rsa")], "s=tlsrpt does not allow email"),
        (["v=DKIM1; nonsense; p=x"], "'nonsense' in the record is no tag=value"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(found: list[str], complaint: str) -> None:
    assert any(complaint in line for line in record.problems(RSA, found)), record.problems(RSA, found)


@pytest.mark.parametrize(
    "found",
    [GOOD, GOOD + ";", GOOD.replace("k=rsa; ", ""), GOOD.replace("k=rsa", "h=sha256:sha1; s=email; n=x; k=rsa")],
)
def test_records_that_do(found: str) -> None:
    assert record.problems(RSA, ["v=spf1 -all", found]) == []
    assert record.warnings([found]) == []


def test_a_record_that_says_testing() -> None:
    assert record.warnings([GOOD + "; t=s:y"])
    assert record.problems(RSA, [GOOD + "; t=s:y"]) == []


def test_a_key_of_another_domain_is_not_mixed_up() -> None:
    other = Key("otra.test", "r1", rsa_2048())
    assert "no record at r1._domainkey.otra.test" in record.problems(other, [])[0]
