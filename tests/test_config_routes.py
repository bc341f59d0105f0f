"""Smarthost routes: which one mail takes, and which are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from config.load import ConfigError, Loaded, load
from config.reload import differences
from config.routes import for_recipient, for_sender
from config.settings import RouteSettings

ROUTE = """
[[routes]]
name = "formal"
host = "mail.agency.test"
sender_domains = ["agency.test"]
"""


def route(name: str, **keys: Any) -> RouteSettings:
    return RouteSettings(name=name, host="mail.agency.test", **keys)


ROUTES = (
    route("below", recipient_domains=("*.agency.test",), sender_domains=("*.agency.test",), accounts=("one", "two")),
    route("exact", recipient_domains=("Mail.Agency.test", "perú.test"), sender_domains=("mail.agency.test",)),
    route("later", recipient_domains=("mail.agency.test",), sender_domains=("x.test",), accounts=("two", "three")),
)


@pytest.mark.parametrize(
    ("domain", "name"),
    [
        ("mail.agency.test", "exact"),
        ("MAIL.AGENCY.TEST", "exact"),
        ("a.agency.test", "below"),
        ("a.b.agency.test", "below"),
        ("agency.test", None),
        ("notagency.test", None),
        ("xn--per-boa.test", "exact"),
        ("Perú.test", "exact"),
        ("", None),
    ],
)
def test_recipient_domains(domain: str, name: str | None) -> None:
    found = for_recipient(ROUTES, domain)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("account", "domain", "name"),
    [
        ("three", "mail.agency.test", "exact"),
        ("three", "a.agency.test", "below"),
        ("two", "x.test", "later"),
        ("two", "y.test", "below"),
        ("three", "", "later"),
        ("four", "y.test", None),
    ],
)
def test_senders(account: str, domain: str, name: str | None) -> None:
    found = for_sender(ROUTES, account, domain)
    assert (found.name if found else None) == name


def loaded(directory: Path, text: str) -> Loaded:
    path = directory / "tambo.toml"
    path.write_text(text)
    return load(path, {})


def refused(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(directory, text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('name = "x"\nhost = "h.test"', "routes[0]: no mail takes"),
        ('name = "x"\nhost = "h.test"\nsender_domains = ["a@b"]', "routes[0].sender_domains"),
        ('name = "x"\nhost = "h.test"\nrecipient_domains = ["*"]', "routes[0].recipient_domains"),
        ('name = "x"\nhost = "h h"\naccounts = ["a"]', "routes[0].host"),
        ('name = "x"\nhost = "h.test"\naccounts = ["a"]\ntls = "none"', "routes[0].tls"),
        ('name = "x"\nhost = "8.8.8.8"\naccounts = ["a"]\ntls = "none"', "routes[0].tls"),
        ('name = "x"\nhost = "h.test"\naccounts = ["a"]\nuser = "u"', "routes[0].password_file: missing"),
        ('name = "x"\nhost = "h.test"\naccounts = ["a"]\npassword_file = "secret"', "routes[0].user: missing"),
        (
            'name = "x"\nhost = "10.0.0.1"\naccounts = ["a"]\ntls = "none"\nuser = "u"\npassword_file = "secret"',
            "would show the password",
        ),
        ('name = "x"\nhost = "h.test"\naccounts = ["a"]\nca_file = "nothing.pem"', "routes[0].ca_file: "),
        ('name = "x"\nhost = "h.test"\naccounts = ["a"]\nca_file = "secret"', "routes[0].ca_file: "),
        (f'name = "formal"\nhost = "h.test"\naccounts = ["a"]{ROUTE}', '"formal" is already that of routes[0].name'),
        (
            'name = "x"\nhost = "h.test"\naccounts = ["a"]\npool = "b"\n'
            '[[delivery.pools]]\nname = "default"\nsources = [{address = "127.0.0.1"}]',
            'routes[0].pool: "b" is no pool; allowed: default',
        ),
    ],
)
def test_refused(tmp_path: Path, lines: str, said: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("clave\n")
    secret.chmod(0o600)
    assert said in refused(tmp_path, f"[[routes]]\n{lines}\n")


def test_clear_to_an_inner_address_and_names_of_other_accounts(tmp_path: Path) -> None:
    lines = 'name = "x"\nhost = "10.0.0.1"\ntls = "none"\naccounts = ["a"]\n'
    found = loaded(tmp_path, f"[[routes]]\n{lines}")
    assert found.settings.routes[0].host == "10.0.0.1"
    assert [warning for warning in found.warnings if warning.startswith("routes")] == [
        'routes[0].accounts[0]: "a" is no account of this file; it counts when `relayctl account` has made it'
    ]


def test_an_ipv6_address_is_a_host() -> None:
    assert RouteSettings(name="x", host="fd00:0::1").host == "fd00::1"


WITH_PASSWORD = ROUTE + 'user = "relay"\npassword_file = "secret"\n'


def test_the_password_is_read_beside_the_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("clave segura\r\n")
    secret.chmod(0o600)
    first = loaded(tmp_path, WITH_PASSWORD)
    assert first.passwords["formal"].get_secret_value() == "clave segura"
    assert "segura" not in repr(first)
    assert first.settings.routes[0].password_file == str(secret)
    secret.write_text("otra")
    assert differences(first, loaded(tmp_path, WITH_PASSWORD)) == {"routes.formal.password": "changed"}


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"muy secreta", 0o640, "mode 0640"),
        (b"", 0o600, "one line"),
        (b"muy secreta\ny m\xc3\xa1s", 0o600, "one line"),
        (b"\xff", 0o600, "not UTF-8"),
        (b"x" * 5000, 0o600, "one line"),
        (None, 0, "No such file"),
    ],
)
def test_a_bad_password_file(tmp_path: Path, content: bytes | None, mode: int, said: str) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
        secret.chmod(mode)
    problem = refused(tmp_path, WITH_PASSWORD)
    assert problem.startswith(f"routes[0].password_file: {secret}: ")
    assert said in problem
    assert "muy secreta" not in problem


def test_a_credential_of_systemd_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("clave\n")
    secret.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert loaded(tmp_path, WITH_PASSWORD).passwords["formal"].get_secret_value() == "clave"


def test_no_regular_file(tmp_path: Path) -> None:
    os.symlink("/dev/null", tmp_path / "secret")
    assert "no regular file" in refused(tmp_path, WITH_PASSWORD)
