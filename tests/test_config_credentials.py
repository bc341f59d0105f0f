"""Values and files that systemd hands down: where they stand between file and environment, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.load import ConfigError, load


def given(tmp_path: Path, text: str = "", **files: str) -> tuple[Path, dict[str, str]]:
    """A configuration, and credentials beside it; "__" in a name is a dot."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    path = tmp_path / "tambo.toml"
    path.write_text(text)
    return path, {"CREDENTIALS_DIRECTORY": str(folder)}


def password(path: Path, environ: dict[str, str]) -> str | None:
    secret = load(path, environ).settings.queue.password
    return secret and secret.get_secret_value()


def test_a_credential_is_a_value(tmp_path: Path) -> None:
    path, environ = given(tmp_path, tambo__queue__password="s3cret\n")
    loaded = load(path, environ)
    assert password(path, environ) == "s3cret"
    assert loaded.origins["queue.password"] == "credential tambo.queue.password"
    assert password(path, {}) is None


def test_it_wins_over_the_file_and_the_environment_over_it(tmp_path: Path) -> None:
    path, environ = given(tmp_path, '[queue]\npassword = "file"\n', tambo__queue__password="credential")
    assert password(path, environ) == "credential"
    assert password(path, environ | {"TAMBO__QUEUE__PASSWORD": "environment"}) == "environment"


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    path, environ = given(tmp_path, smarthost="x", **{"relay.key": "y"})
    assert load(path, environ).settings == load(path, {}).settings


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"tambo.queue.pasword": "x"}, "credential tambo.queue.pasword: unknown key (did you mean queue.password?)"),
        ({"tambo.queue.password": "hush\nhush"}, "credential tambo.queue.password: write the value alone, in one line"),
        ({"tambo.queue.password": "h" * 5000}, "credential tambo.queue.password: longer than 4096 bytes"),
        ({"tambo.queue.shards": "hush"}, "queue.shards:"),
    ],
)
def test_what_is_wrong_is_named_and_not_shown(tmp_path: Path, files: dict[str, str], says: str) -> None:
    path, environ = given(tmp_path, **files)
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    assert says in str(caught.value)
    assert "hhh" not in str(caught.value) and "hush\n" not in str(caught.value)


def test_an_unreadable_one(tmp_path: Path) -> None:
    path, environ = given(tmp_path)
    (tmp_path / "credentials" / "tambo.queue.password").mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        load(path, environ)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    path, _ = given(tmp_path)
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY: /nowhere: No such file"):
        load(path, {"CREDENTIALS_DIRECTORY": "/nowhere"})


ROUTE = """\
[[routes]]
name = "smarthost"
recipient_domains = ["agency.pe"]
host = "mail.agency.pe"
user = "relay"
password_file = "credential:%s"
"""


def test_a_path_may_be_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, environ = given(tmp_path, ROUTE % "smarthost.password", **{"smarthost.password": "s3cret"})
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", environ["CREDENTIALS_DIRECTORY"])  # its mode is systemd's affair
    assert load(path, environ).passwords["smarthost"].get_secret_value() == "s3cret"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smarthost", 'password_file: "credential:smarthost": no credentials here; the unit needs LoadCredential='),
        ("../smarthost", 'password_file: "credential:../smarthost": a credential\'s name has'),
    ],
)
def test_a_credential_that_there_is_not(tmp_path: Path, name: str, says: str) -> None:
    path, _ = given(tmp_path, ROUTE % name)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert says in str(caught.value)
