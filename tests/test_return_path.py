"""Signed return paths: what is made is read again, and nothing else is."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailqueue.message import new_id
from signing import return_path
from signing.return_path import Reference, ReturnPaths

DOMAIN = "rebotes.entidad.test"
PATHS = ReturnPaths([b"k" * 32])
ID = st.text("0123456789abcdefghijklmnopqrstuv", min_size=20, max_size=20)
INDEX = st.integers(0, 65_535)


@given(ID, INDEX)
def test_what_is_made_is_read_again(message_id: str, index: int) -> None:
    address = PATHS.make(message_id, index, DOMAIN)
    local, _, domain = address.partition("@")
    assert len(local) == 42 and local == local.lower() and domain == DOMAIN
    assert message_id in local
    for spelled in (address, address.upper(), address.swapcase(), address.title()):
        assert PATHS.read(spelled) == Reference(message_id, index)


@given(ID, INDEX, st.integers(0, 41), st.sampled_from(string.printable + "ñſK"))
def test_any_other_character_is_refused(message_id: str, index: int, place: int, other: str) -> None:
    address = PATHS.make(message_id, index, DOMAIN)
    changed = address[:place] + other + address[place + 1 :]
    assert (PATHS.read(changed) is None) == (changed.lower() != address)


@given(ID, INDEX, st.data())
def test_any_other_bit_is_refused(message_id: str, index: int, data: st.DataObject) -> None:
    """Every character by its nearest neighbour: no bit of the 200 is padding."""
    address = PATHS.make(message_id, index, DOMAIN)
    digits = "0123456789abcdefghijklmnopqrstuv"
    for place in range(2, 42):
        other = digits[digits.index(address[place]) ^ (1 << data.draw(st.integers(0, 4)))]
        assert PATHS.read(address[:place] + other + address[place + 1 :]) is None


@given(st.text())
def test_no_text_is_an_error(text: str) -> None:
    assert PATHS.read(text) is None
    assert PATHS.read(f"{text}@{DOMAIN}") is None


@pytest.mark.parametrize("other", ["otra.test", "x" + DOMAIN, "", "x." + DOMAIN, DOMAIN[:-1], f"{DOMAIN}@{DOMAIN}"])
def test_another_domain_is_refused(other: str) -> None:
    local = PATHS.make(new_id(), 0, DOMAIN).partition("@")[0]
    assert PATHS.read(f"{local}@{DOMAIN}") is not None
    assert PATHS.read(f"{local}@{other}") is None
    assert PATHS.read(local) is None


def test_another_key_is_refused_and_an_old_one_reads() -> None:
    old, new = b"o" * 32, b"n" * 32
    before, between, after = ReturnPaths([old]), ReturnPaths([new, old]), ReturnPaths([new])
    message_id = new_id()
    first, second = before.make(message_id, 7, DOMAIN), between.make(message_id, 7, DOMAIN)
    assert between.read(first) == between.read(second) == after.read(second) == Reference(message_id, 7)
    assert after.read(first) is None and before.read(second) is None


@pytest.mark.parametrize(("message_id", "index"), [("short", 0), ("W" * 20, 0), ("0" * 20, 65_536), ("0" * 20, -1)])
def test_what_does_not_fit_is_refused(message_id: str, index: int) -> None:
    with pytest.raises(ValueError, match="no return path for recipient"):
        PATHS.make(message_id, index, DOMAIN)


def test_key_file_rotates(tmp_path: Path) -> None:
    path = tmp_path / "return-path.key"
    assert return_path.add_key(path, "first") == 1
    before = ReturnPaths.load(path)
    assert return_path.add_key(path, "second") == 2
    after = ReturnPaths.load(str(path))
    made = before.make(new_id(), 1, DOMAIN)
    assert after.read(made) == before.read(made) is not None
    assert before.read(after.make(new_id(), 1, DOMAIN)) is None
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("abc\n", "line 1 is no key"),
        ("g" * 64, "line 1 is no key"),
    ],
)
def test_key_file_without_keys(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "k"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ValueError, match=complaint) as found:
        ReturnPaths.load(path)
    assert str(path) in str(found.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_key_file_that_others_may_touch(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "k"
    return_path.add_key(path, "")
    path.chmod(mode)
    with pytest.raises(ValueError, match=f"mode {mode:04o}.*chmod 600 {path}"):
        ReturnPaths.load(path)


def test_key_file_of_somebody_else(root: None, tmp_path: Path) -> None:
    path = tmp_path / "k"
    return_path.add_key(path, "")
    os.chown(path, 1234, 1234)
    with pytest.raises(ValueError, match="belongs to user 1234"):
        ReturnPaths.load(path)
    os.chown(tmp_path, 1234, 1234)  # the directory of a service, looked after by root
    assert ReturnPaths.load(path)
    return_path.add_key(path, "")
    assert path.stat().st_uid == 1234
