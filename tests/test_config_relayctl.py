"""``relayctl config`` and ``relayctl account`` as an operator runs them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from argon2 import PasswordHasher
from typer.testing import CliRunner

import config
from relayctl.main import app

EXAMPLE = Path(config.__file__).parent / "relay.example.toml"


@dataclass(frozen=True)
class Ran:
    returncode: int
    stdout: str
    stderr: str


def relayctl(*words: str, stdin: str = "", **environ: str) -> Ran:
    """Here, with no other variables: a process of its own costs a second each time."""
    others = dict.fromkeys(name for name in os.environ if name.startswith("TAMBO_"))
    done = CliRunner().invoke(app, words, input=stdin, env={**others, **environ})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return Ran(done.exit_code, done.stdout, done.stderr)


def process(*words: str) -> subprocess.CompletedProcess[str]:
    """As an operator runs it."""
    return subprocess.run(
        [sys.executable, "-m", "relayctl.main", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
        cwd=EXAMPLE.parent.parent,
    )


def test_check_of_the_example() -> None:
    ran = process("config", "check", "--config", str(EXAMPLE))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"{EXAMPLE}: valid; ") and ran.stdout.endswith("environment, 17 providers\n")


def test_check_names_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('[log]\nlevl = "info"\n[queue]\npassword = 7\n')
    ran = relayctl("config", "check", TAMBO_CONFIG=str(path), TAMBO__LOG__FORMAT="xml")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [
        f"{path}: refused",
        "  log.levl: unknown key (did you mean level?); allowed here: format, level",
        "  queue.password: ****** is not allowed; allowed: text",
        '  log.format: "xml" is not allowed; allowed: one of "json", "console" (from environment TAMBO__LOG__FORMAT)',
    ]
    assert relayctl("config", "show", "--config", str(path)).returncode == 1
    ran = relayctl("config", "check", "--json", TAMBO_CONFIG=str(path), TAMBO__LOG__FORMAT="xml")
    said = json.loads(ran.stdout)
    assert ran.returncode == 1 and said["valid"] is False and len(said["problems"]) == 3


def test_default_path() -> None:
    ran = relayctl("config", "check")
    if not Path("/etc/tambo/tambo.toml").exists():
        assert ran.returncode == 1 and "/etc/tambo/tambo.toml: no such file" in ran.stderr


def test_warnings_do_not_fail(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("")
    ran = relayctl("config", "check", "--config", str(path))
    assert ran.returncode == 0 and "delivery.hostname: localhost in EHLO" in ran.stderr
    said = json.loads(relayctl("config", "check", "--config", str(path), "--json").stdout)
    assert said["valid"] and "delivery.hostname" in said["warnings"][0] and len(said["digest"]) == 16


def test_show(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('[delivery]\nhostname = "out.example"\n[queue]\npassword = "hunter2"\n')
    ran = relayctl("config", "show", "--config", str(path), TAMBO__QUEUE__URL="redis://u:hunter2@h/0")
    assert ran.returncode == 0 and "hunter2" not in ran.stdout + ran.stderr
    rows = [line.split() for line in ran.stdout.splitlines()]
    assert ["queue.url", "redis://******@h/0", "environment", "TAMBO__QUEUE__URL"] in rows
    assert ["queue.password", "******", "file", str(path)] in rows
    assert ["log.level", "info", "default"] in rows
    ran = relayctl("config", "show", "--json", "--config", str(path))
    values = json.loads(ran.stdout)
    assert values["queue.password"] == {"value": "******", "origin": f"file {path}"}
    assert values["delivery.retry.steps_seconds"]["value"][0] == 60.0


def test_hash_from_a_pipe() -> None:
    ran = relayctl("account", "hash", stdin="correct horse battery\n")
    assert ran.returncode == 0 and ran.stdout.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert PasswordHasher().verify(ran.stdout.strip(), "correct horse battery")
    assert "correct horse" not in ran.stdout + ran.stderr
    ran = relayctl("account", "hash", stdin="short\n")
    assert (ran.returncode, ran.stdout) == (1, "") and "at least 12 characters" in ran.stderr


def from_terminal(*passwords: str) -> tuple[int, str]:
    """Exit code and all that the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "relayctl.main", "account", "hash"])
    shown = b""
    for prompt, password in zip((b"Password: ", b"Again: "), passwords, strict=True):
        while not shown.endswith(prompt):
            shown += os.read(terminal, 1000)
        os.write(terminal, password.encode() + b"\n")
    while True:
        try:
            more = os.read(terminal, 1000)
        except OSError:  # EIO: the other side has gone
            break
        if not more:
            break
        shown += more
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_hash_from_a_terminal_asks_twice_without_echo() -> None:
    code, shown = from_terminal("correct horse battery", "correct horse battery")
    assert code == 0 and "correct horse" not in shown
    assert PasswordHasher().verify(shown.split()[-1], "correct horse battery")
    code, shown = from_terminal("correct horse battery", "correct horse batery")
    assert code == 1 and "not the same" in shown and "$argon2id" not in shown
