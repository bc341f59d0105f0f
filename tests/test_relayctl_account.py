"""``relayctl account …`` as an operator runs it, on a real queue."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from argon2 import PasswordHasher
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from config.accounts import AccountSettings
from config.schema import fit
from mailqueue.accounts import Change, Stored, plain
from relayctl import account_fields, account_register
from relayctl.account_fields import FIELDS
from relayctl.audit import actor
from relayctl.main import app
from tests.listening import HASH
from tests.queue_kit import message, opened

FILE = """\
[queue]
url = "{url}"
[[delivery.pools]]
name = "default"
[[accounts]]
name = "filed"
networks = ["10.1.0.0/16"]
senders = ["*"]
"""


@pytest.fixture
def relayctl(shared_redis: Any, tmp_path: Path) -> Callable[..., Any]:
    path = tmp_path / "tambo.toml"
    path.write_text(FILE.format(url=shared_redis.url))

    def run(*words: str, stdin: str = "", code: int = 0) -> Any:
        ran = CliRunner().invoke(app, ["account", *words, "--config", str(path)], input=stdin)
        assert ran.exit_code == code, (ran.stdout, ran.stderr, ran.exception)
        return ran

    return run


def stored(url: str) -> Stored:
    async def scenario() -> Stored:
        async with opened(url) as queue:
            return await queue.accounts().read()

    return asyncio.run(scenario())


def only(url: str) -> AccountSettings:
    (account,) = stored(url).accounts
    return account


def test_add_prints_a_password_once(relayctl: Any, shared_redis: Any) -> None:
    ran = relayctl("add", "rrhh", "--senders", "agency.pe,*.agency.pe", "--max-recipients", "50", "--hide-client")
    assert ran.stdout.splitlines()[:2] == ["rrhh: added", "  password_hash: – → ******"]
    assert '  senders: – → ["agency.pe","*.agency.pe"]' in ran.stdout and "  max_recipients: – → 50" in ran.stdout
    secret = ran.stdout.rpartition("password (shown once): ")[2].strip()
    account = only(shared_redis.url)
    assert account.password_hash and PasswordHasher().verify(account.password_hash.get_secret_value(), secret)
    assert account.hide_client and account.senders == ("agency.pe", "*.agency.pe") and account.max_recipients == 50
    assert "AUTH is offered under TLS only" in ran.stderr
    assert secret not in relayctl("show", "rrhh").stdout + relayctl("show", "rrhh", "--json").stdout
    assert "argon2" not in relayctl("show", "rrhh").stdout + relayctl("show", "rrhh", "--json").stdout
    assert "rrhh is an account already" in relayctl("add", "rrhh", code=1).stderr
    assert "filed is an account of the configuration file" in relayctl("add", "filed", code=1).stderr


def test_add_by_network_and_from_a_pipe(relayctl: Any, shared_redis: Any) -> None:
    ran = relayctl("add", "net", "--networks", "10.2.0.0/24", "--networks", "fd00:2::/64", "--class", "transactional")
    assert "password" not in ran.stdout and "may send as anybody; list its addresses" in ran.stderr
    account = only(shared_redis.url)
    assert account.networks == ("10.2.0.0/24", "fd00:2::/64") and account.class_ == "transactional"
    ran = relayctl("add", "pipe", "--password-stdin", "--senders", "*", "--json", stdin="correct horse battery\n")
    said = orjson.loads(ran.stdout)
    assert said["done"] == "added" and said["version"] == 2 and "password" not in said
    assert said["changes"]["senders"] == {"before": "–", "after": '["*"]'}
    assert "pipe may send as anybody" in ran.stderr
    assert "at least 12" in relayctl("add", "short", "--password-stdin", stdin="short\n", code=1).stderr
    said = orjson.loads(relayctl("add", "both", "--networks", "10.3.0.0/24", "--password", "--json").stdout)
    assert len(said["password"]) == 32


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--networks", "10.0.0.0/8"), 'new.networks[0]: "10.0.0.0/8" is too broad; allowed: IPv4 /16 or longer'),
        (("--networks", "10.1.2.0/24"), "new.networks[0]: 10.1.2.0/24 overlaps 10.1.0.0/16 of accounts[0].networks[0]"),
        (("--pool", "fast"), 'new.pool: "fast" is no pool; allowed: default'),
        (("--senders", "a b"), 'new.senders[0]: "a b" is not allowed: write an address (notices@agency.pe), a domain'),
        (("--weight", "0"), 'new.weight: "0" is not allowed; allowed: a whole number, at least 1 and at most 1000'),
        (("--class", "fast"), 'new.class: "fast" is not allowed; allowed: one of "emergency", "transactional", "bulk"'),
        (("--parent", "filled"), "new.parent: no account filled (did you mean filed?)"),
        (("--quota", "monthly"), 'new.allowance: missing; quota = "monthly" needs the recipients of a month'),
    ],
)
def test_what_is_refused_in_the_words_of_the_file(relayctl: Any, shared_redis: Any, words: Any, text: str) -> None:
    assert text in relayctl("add", "new", *words, code=1).stderr
    assert stored(shared_redis.url).version == 0


def test_set(relayctl: Any, shared_redis: Any) -> None:
    relayctl("add", "a", "--networks", "10.2.0.0/24", "--senders", "agency.pe")
    ran = relayctl("set", "a", "senders+=x@b.pe,agency.pe", "class=transactional", "expire-seconds=2h", "weight=3")
    assert ran.stdout.splitlines() == [
        "a: changed",
        '  senders: ["agency.pe"] → ["agency.pe","x@b.pe"]',
        "  class: bulk → transactional",
        "  expire_seconds: – → 7200.0",
        "  weight: 1 → 3",
    ]
    assert relayctl("set", "a", "senders-=agency.pe", "expire_seconds=", "term_from=").stdout.splitlines() == [
        "a: changed",
        '  senders: ["agency.pe","x@b.pe"] → ["x@b.pe"]',
        "  expire_seconds: 7200.0 → –",
    ]
    assert relayctl("set", "a", "senders=x@b.pe").stdout == "a: unchanged\n"
    assert stored(shared_redis.url).version == 3
    said = orjson.loads(relayctl("set", "a", "test=true", "--json").stdout)
    assert said["changes"] == {"test": {"before": "false", "after": "true"}}
    for word, text in {
        "sender=x": "a.sender: unknown key (did you mean senders?); allowed here: ",
        "weight+=1": "a.weight: is no list; write weight=value",
        "weight": "weight: write key=value, or for lists key+=value and key-=value",
        "name=b": "a.name: events and limits know the account by its name; add another",
        "networks=": 'a: nobody can use "a"; it needs networks, or password_hash',
        "unknown=twice": 'a.unknown: "twice" is not allowed: allowed: retry, never, once:<duration',
    }.items():
        assert text in relayctl("set", "a", word, code=1).stderr
    assert (
        "filed is an account of the configuration file: change it there"
        in relayctl("set", "filed", "weight=2", code=1).stderr
    )
    assert "no account b" in relayctl("set", "b", "weight=2", code=1).stderr

    async def weight() -> Any:
        async with opened(shared_redis.url) as queue:
            shard = queue.shards[0]
            number = await shard.command("HGET", shard.prefix + "flow", "a:a")
            return await shard.command("HGET", shard.prefix + "weight", number)

    assert asyncio.run(weight()) == b"3"


def test_rotate(relayctl: Any, shared_redis: Any) -> None:
    first = orjson.loads(relayctl("add", "a", "--json").stdout)["password"]
    second = orjson.loads(relayctl("rotate", "a", "--overlap", "1h", "--json").stdout)["password"]
    account, now = only(shared_redis.url), time.time()

    def good(secret: str, at: float) -> list[bool]:
        found = []
        for hashed in account.hashes(at):
            try:
                found.append(PasswordHasher().verify(hashed, secret))
            except Exception:
                found.append(False)
        return found

    assert good(second, now) == [True, False] and good(first, now) == [False, True]
    assert good(second, now + 3700) == [True] and good(first, now + 3700) == [False]
    ran = relayctl("rotate", "a", "--password-stdin", "--overlap", "0", stdin="correct horse battery\n")
    assert "the password before the old one stops now" in ran.stderr and "shown once" not in ran.stdout
    account = only(shared_redis.url)
    assert good("correct horse battery", now) == [True] and account.previous_until is None
    relayctl("add", "net", "--networks", "10.2.0.0/24")
    assert "net has no password" in relayctl("rotate", "net", code=1).stderr
    relayctl("rotate", "a", "--overlap", "soon", code=2)


def test_disable_and_enable(relayctl: Any, shared_redis: Any) -> None:
    relayctl("add", "a", "--networks", "10.2.0.0/24")
    put(shared_redis.url, "a")
    ran = relayctl("disable", "a")
    assert ran.stdout == "a: disabled\n  disabled: false → true\n"
    assert "2 queued recipients go on; `relayctl queue suspend account:a` stops them" in ran.stderr
    assert relayctl("disable", "a").stdout == "a: unchanged\n"
    assert "disabled" in relayctl("list").stdout
    assert relayctl("enable", "a").stdout == "a: enabled\n  disabled: true → false\n"
    assert "change it there" in relayctl("disable", "filed", code=1).stderr


def put(url: str, account: str) -> None:
    async def scenario() -> None:
        async with opened(url) as queue:
            await queue.put(message("a@x.test", "b@y.test", account=account))

    asyncio.run(scenario())


def test_remove(relayctl: Any, shared_redis: Any) -> None:
    relayctl("add", "a", "--networks", "10.2.0.0/24")
    relayctl("add", "b", "--networks", "10.3.0.0/24", "--parent", "a")
    relayctl("remove", "a", stdin="n\n", code=1)
    assert "a is the parent of b; change them first" in relayctl("remove", "a", "--yes", code=1).stderr
    assert "b: removed" in relayctl("remove", "b", stdin="y\n").stdout
    put(shared_redis.url, "a")
    assert (
        "a: 2 recipients are queued; disable it until they are done" in relayctl("remove", "a", "--yes", code=1).stderr
    )
    assert relayctl("remove", "a", "--yes", "--force").stdout == "a: removed; 2 queued recipients go on\n"
    assert "no account a" in relayctl("remove", "a", "--yes", code=1).stderr
    assert "change it there" in relayctl("remove", "filed", "--yes", code=1).stderr


def test_list_and_show_say_where_an_account_is_kept(relayctl: Any, shared_redis: Any) -> None:
    relayctl("add", "a", "--networks", "10.2.0.0/24", "--senders", "agency.pe")

    async def hidden() -> None:
        async with opened(shared_redis.url) as queue:
            one = AccountSettings(name="filed", networks=("10.9.0.0/24",))
            await queue.accounts().change([Change("filed", 0, one)], "ana")

    asyncio.run(hidden())
    rows = orjson.loads(relayctl("list", "--json").stdout)
    assert [(row["name"], row["origin"], "left_out" in row) for row in rows] == [
        ("filed", "file", False),
        ("a", "queue", False),
        ("filed", "queue", True),
    ]
    assert rows[1]["revision"] == 1 and rows[1]["changed_by"] == actor()
    table = relayctl("list").stdout
    assert "left out: accounts.filed.name: there is another account of this name" in table
    shown = relayctl("show", "a").stdout
    assert all(key in shown for key in FIELDS) and '["agency.pe"]' in shown and "0 recipients" in shown
    assert orjson.loads(relayctl("show", "filed", "--json").stdout)["origin"] == "file"
    assert relayctl("remove", "filed", "--yes").stdout == "filed: removed\n"  # the one that is in nobody's way
    assert "did you mean filed?" in relayctl("show", "filled", code=1).stderr


def test_somebody_else_was_there_first(relayctl: Any, shared_redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    relayctl("add", "a", "--networks", "10.2.0.0/24")
    insist = account_register.Register.insist

    def meanwhile(register: account_register.Register, accounts: Any) -> None:
        insist(register, accounts)
        shared_redis.command("HSET", "{q0}:accounts", "a", '7 7 {"by":"x","account":{"name":"a"}}')

    monkeypatch.setattr(account_register.Register, "insist", meanwhile)
    assert "account a: it was changed meanwhile; nothing was changed" in relayctl("set", "a", "weight=2", code=1).stderr


def test_export_and_import(relayctl: Any, shared_redis: Any, tmp_path: Path) -> None:
    relayctl("add", "a", "--senders", "agency.pe", "--rate-minute", "5")
    relayctl("add", "b", "--networks", "10.2.0.0/24,fd00::/64", "--quota", "bag", "--term-until", "2027-01-31")
    relayctl("rotate", "a")
    before = stored(shared_redis.url)
    for form in ("json", "csv"):
        path = tmp_path / f"all.{form}"
        path.write_text(relayctl("export", "--format", form, "--with-hashes").stdout)
        assert relayctl("import", str(path)).stdout == "0 added, 0 changed, 2 unchanged\n"
        for name in "ab":
            relayctl("remove", name, "--yes")
        ran = relayctl("import", str(path), "--dry-run")
        assert ran.stdout.endswith("2 added, 0 changed, 0 unchanged; dry run, nothing was done\n")
        assert stored(shared_redis.url).accounts == ()
        relayctl("import", str(path))
        assert stored(shared_redis.url).accounts == before.accounts
    plainly = relayctl("export", "--format", "csv").stdout
    assert "argon2" not in plainly and "argon2" not in relayctl("export").stdout
    rows = list(csv.DictReader(io.StringIO(plainly)))
    assert (rows[1]["networks"], rows[1]["term_until"], rows[0]["rate_minute"]) == (
        "10.2.0.0/24 fd00::/64",
        "2027-01-31",
        "5",
    )
    changed = plainly.replace("2027-01-31", "2027-02-28")
    assert (
        "there already, and different: b; --replace changes them"
        in relayctl("import", "-", "--format", "csv", stdin=changed, code=1).stderr
    )
    ran = relayctl("import", "-", "--format", "csv", "--replace", stdin=changed)
    assert ran.stdout.splitlines() == [
        "b: changed",
        "  term_until: 2027-01-31 → 2027-02-28",
        "0 added, 1 changed, 1 unchanged",
    ]
    assert stored(shared_redis.url).accounts[0] == before.accounts[0]  # with the password that it had
    assert orjson.loads(relayctl("export", "--origin", "file").stdout)[0]["name"] == "filed"


def test_import_is_all_or_nothing(relayctl: Any, shared_redis: Any) -> None:
    rows = [
        {"name": "a", "networks": ["10.2.0.0/24"]},
        {"name": "b", "networks": ["10.2.0.0/25"]},
        {"name": "filed", "networks": ["10.4.0.0/24"]},
        {"name": "c", "networks": ["10.5.0.0/24"], "colour": "red", "weight": 0},
    ]
    ran = relayctl("import", "-", stdin=orjson.dumps(rows).decode(), code=1)
    assert "[2].name: filed is an account of the configuration file" in ran.stderr
    assert "[3].colour: unknown key" in ran.stderr and "[3].weight: 0 is not allowed" in ran.stderr
    ran = relayctl("import", "-", stdin=orjson.dumps(rows[:2]).decode(), code=1)
    assert "[1].networks[0]: 10.2.0.0/25 overlaps 10.2.0.0/24 of [0].networks[0]" in ran.stderr
    ran = relayctl("import", "-", stdin=orjson.dumps([rows[0], rows[0]]).decode(), code=1)
    assert '[1].name: "a" is already that of [0].name' in ran.stderr
    assert "a list of objects" in relayctl("import", "-", stdin="{}", code=1).stderr
    assert "no such file" in relayctl("import", "/nowhere.csv", code=1).stderr.lower()
    assert "more cells" in relayctl("import", "-", "--format", "csv", stdin="name\na,b\n", code=1).stderr
    assert stored(shared_redis.url).version == 0


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
NETWORKS = st.lists(st.sampled_from(["10.2.0.0/24", "fd00::/64", "10.3.0.0/16"]), unique=True, max_size=3)
ACCOUNTS = st.builds(
    dict,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True),
    networks=NETWORKS, user=st.none() | TEXT,
    pool=st.from_regex(r"[a-z0-9-]{1,9}", fullmatch=True), pools=st.lists(st.sampled_from(["fast", "slow"]), max_size=2),
    senders=st.lists(st.sampled_from(["*", "a.pe", "*.a.pe", "ñ@a.pe", "=1@a.pe"]), max_size=3),
    disabled=st.booleans(), expire_seconds=st.none() | st.integers(0, 10**6) | st.sampled_from([0.5, 90.25]),
    parent=st.none() | TEXT.filter(lambda text: text != ""), max_recipients=st.none() | st.integers(1, 9),
    previous=st.booleans(), quota=st.sampled_from(["none", "bag"]), unknown=st.sampled_from(["retry", "once:9h"]),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(ACCOUNTS, max_size=4))
def test_what_is_exported_is_imported_exactly(rows: list[dict[str, Any]]) -> None:
    accounts = []
    for row in rows:
        if row.pop("previous"):
            until = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
            row |= {"password_hash": HASH, "previous_hash": HASH, "previous_until": until}
        if row["parent"] == row["name"]:
            row["parent"] = None
        accounts.append(AccountSettings.model_validate(row))
    for back in (
        account_fields.from_json(account_fields.to_json(accounts, True)),
        account_fields.from_csv(account_fields.to_csv(accounts, True)),
    ):
        assert [fit(AccountSettings, row)[0] for row in back] == accounts


def test_every_field_has_an_option_and_a_column(relayctl: Any) -> None:
    shown = relayctl("add", "--help").stdout
    assert [key for key in FIELDS if key != "name" and f"--{key.replace('_', '-')}"[:20] not in shown] == []
    assert account_fields.to_csv([], True).strip().split(",") == list(FIELDS)
    full = AccountSettings(name="a", networks=("10.0.0.0/24",))
    assert plain(full) == {"name": "a", "networks": ["10.0.0.0/24"]}
