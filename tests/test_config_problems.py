"""Bad configurations and exactly what is said about them."""

from __future__ import annotations

import time
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import check
from config.load import ConfigError, load
from config.schema import fields_of
from config.settings import AccountSettings, ListenerSettings, Settings

LISTENER = '[[relayd.listeners]]\nname = "vpn"\naddress = "127.0.0.1"\n'
HASH = 'password_hash = "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA"\n'
TLS = 'certificate = "c"\nkey = "k"\n'

LISTENER_KEYS, ACCOUNT_KEYS, SECTIONS = (
    ", ".join(sorted(fields_of(model))) for model in (ListenerSettings, AccountSettings, Settings)
)

CASES = {
    "typing error in a list of tables": (
        LISTENER + 'tls = "none"\n[[relayd.listeners]]\nname = "b"\nadress = "127.0.0.1"\n',
        [
            f"relayd.listeners[1].adress: unknown key (did you mean address?); allowed here: {LISTENER_KEYS}",
            "relayd.listeners[1].address: missing; allowed: text",
        ],
    ),
    "unknown section": (
        "[delivry]\nport = 25\n",
        [f"delivry: unknown key (did you mean delivery?); allowed here: {SECTIONS}"],
    ),
    "what accounts want signed needs keys": (
        '[[accounts]]\nname = "a"\nnetworks = ["127.0.0.0/24"]\nreturn_path = "r.example"\nunsigned = "refuse"\n',
        [
            "accounts[0].return_path: signed return paths need signing.return_path_key",
            'accounts[0].unsigned: "refuse" without signing.directory would refuse all its mail',
        ],
    ),
    "nothing near": (
        "[log]\nzzz = 1\n",
        ["log.zzz: unknown key; allowed here: format, level"],
    ),
    "the alias is the only spelling": (
        '[[accounts]]\nname = "a"\nnetworks = ["127.0.0.0/24"]\nclass_ = "bulk"\n',
        [f"accounts[0].class_: unknown key (did you mean class?); allowed here: {ACCOUNT_KEYS}"],
    ),
    "numbers": (
        "[delivery]\nport = 70000\nmax_sessions = 0\n[queue]\nmemory_mark = 0\nshards = true\n",
        [
            "queue.shards: true is not allowed; allowed: a whole number, at least 1 and at most 64",
            "queue.memory_mark: 0 is not allowed; allowed: a number, more than 0 and at most 1",
            "delivery.port: 70000 is not allowed; allowed: a whole number, at least 1 and at most 65535",
            "delivery.max_sessions: 0 is not allowed; allowed: a whole number, at least 1",
        ],
    ),
    "words": (
        '[queue]\ndurability = "no"\n[log]\nlevel = 3\n[delivery]\nipv6 = "perhaps"\n',
        [
            'queue.durability: "no" is not allowed; allowed: one of "always", "relaxed"',
            'delivery.ipv6: "perhaps" is not allowed; allowed: true or false',
            'log.level: 3 is not allowed; allowed: one of "debug", "info", "warning", "error"',
        ],
    ),
    "durations": (
        '[queue]\nlease_seconds = "2x"\nput_deadline_seconds = "10m"\n[delivery.timeouts]\nend_of_data = 60\n'
        '[delivery.retry]\nsteps_seconds = ["1m", "soon"]\nexpire_seconds = inf\n',
        [
            'queue.lease_seconds: "2x" is not allowed: write a number of seconds or a duration like 90s, 5m, 1h30m, 5d',
            "queue.put_deadline_seconds: 600.0 is not allowed; allowed: a number of seconds or a duration like "
            "90s, 5m, 1h30m, 5d, at least 1 and at most 240",
            "delivery.timeouts.end_of_data: 60 is not allowed; allowed: a number of seconds or a duration like "
            "90s, 5m, 1h30m, 5d, at least 300",
            'delivery.retry.steps_seconds[1]: "soon" is not allowed: write a number of seconds or a duration like '
            "90s, 5m, 1h30m, 5d",
            "delivery.retry.expire_seconds: Infinity is not allowed; allowed: a number of seconds or a duration like "
            "90s, 5m, 1h30m, 5d, at least 0",
        ],
    ),
    "shapes": (
        'relayd = 1\naccounts = {}\n[delivery]\nnameservers = "127.0.0.1"\n',
        [
            "relayd: 1 is not allowed; allowed: a table",
            "accounts: a table is not allowed; allowed: a list of tables",
            'delivery.nameservers: "127.0.0.1" is not allowed; allowed: a list; each element text',
        ],
    ),
    "secrets are never repeated": (
        '[queue]\nurl = "http://u:hunter2@host"\npasword = "hunter2"\npassword = ["hunter2"]\n'
        '[[accounts]]\nname = "a"\npassword_hash = "hunter2"\n',
        [
            "queue.pasword: unknown key (did you mean password?); allowed here: dictionaries, directory, disk_mark_mb, durability, events_keep, "
            "idempotency_seconds, lease_seconds, memory_limit_mb, memory_mark, password, put_deadline_seconds, "
            "shards, url",
            'queue.url: "http://******@host" is not allowed: '
            "write unix:///path, redis://host:port/0 or rediss://host:port/0",
            "queue.password: ****** is not allowed; allowed: text",
            "accounts[0].password_hash: ****** is not allowed: an argon2id hash begins with $argon2id$; "
            "make one with `relayctl account hash`",
        ],
    ),
    "a listener that the outside could reach, without certificate": (
        '[[relayd.listeners]]\nname = "a"\naddress = "0.0.0.0"\n[[relayd.listeners]]\nname = "B"\naddress = "::"\n',
        [
            "relayd.listeners[0].address: 0.0.0.0 is reachable from outside (0.0.0.0 and :: count as public); "
            "allowed: a private, loopback or shared address, or allow_public = true",
            'relayd.listeners[0].tls: "starttls" needs certificate and key; or say tls = "none"',
            'relayd.listeners[1].name: "B" is not allowed; allowed: text like ^[a-z0-9-]{1,32}$',
        ],
    ),
    "no TLS where the outside could come in": (
        '[[relayd.listeners]]\nname = "a"\naddress = "0.0.0.0"\nallow_public = true\ntls = "none"\n'
        '[[relayd.listeners]]\nname = "b"\naddress = "0.0.0.0"\nallow_public = true\ntls = "none"\ninterface = "ipsec0"\n',
        [
            'relayd.listeners[0].tls: "none" is for networks that are trusted: '
            "not with allow_public = true, unless interface names the way in",
        ],
    ),
    "one address and port on two interfaces, balancers": (
        (LISTENER + 'tls = "none"\ninterface = "ipsec0"\nproxy_from = ["10.0.0.0/8", "8.8.8.8", "10.1.1.1"]\n')
        + (LISTENER + 'tls = "none"\ninterface = "ipsec1"\n').replace('"vpn"', '"other"')
        + (LISTENER + 'tls = "none"\ninterface = "ipsec1"\n').replace('"vpn"', '"third"'),
        [
            'relayd.listeners[2].port: "127.0.0.1 port 587 on ipsec1" is already that of relayd.listeners[1].port',
            'relayd.listeners[0].proxy_from[0]: "10.0.0.0/8" is too broad; allowed: IPv4 /16 or longer, IPv6 /48 or longer',
            'relayd.listeners[0].proxy_from[1]: "8.8.8.8" is a public network; '
            "allowed: private, loopback, link-local or shared ones",
        ],
    ),
    "inbound without anybody to take mail for": (
        LISTENER + 'tls = "none"\nkind = "inbound"\n',
        ["inbound.domains: missing; a listener of kind inbound takes mail for domains or mailboxes only"],
    ),
    "inbound without a key": (
        LISTENER + 'tls = "none"\nkind = "inbound"\n[inbound]\ndomains = ["bounce.test"]\n',
        ["signing.return_path_key: missing; without it no return path of inbound.domains can be verified"],
    ),
    "a mailbox is an address": (
        '[inbound]\nmailboxes = ["abuse"]\n',
        ['inbound.mailboxes[0]: "abuse" is not allowed: write an address, for instance abuse@agency.pe'],
    ),
    "addresses": (
        '[metrics]\ndelivery = "0.0.0.0:9126"\nrelayd = "localhost:1"\n[delivery]\nnameservers = ["dns:53"]\n'
        '[[delivery.pools]]\nname = "default"\nsources = [{address = "10.0.0.9-10.0.0.1"}, {address = "10.0.0.0-10.1.0.0"}]\n',
        [
            'delivery.nameservers[0]: "dns:53" is not allowed: '
            "write address:port, for instance 127.0.0.1:9126 or [::1]:9126",
            'delivery.pools[0].sources[0].address: "10.0.0.9-10.0.0.1" is not allowed: '
            "a range goes from a lower to a higher address of the same family",
            'delivery.pools[0].sources[1].address: "10.0.0.0-10.1.0.0" is not allowed: '
            "65537 addresses; a range holds at most 4096",
            'metrics.relayd: "localhost:1" is not allowed: '
            "write address:port, for instance 127.0.0.1:9126 or [::1]:9126",
            'metrics.delivery: "0.0.0.0:9126" is not allowed: 0.0.0.0 is reachable from outside '
            "(0.0.0.0 and :: count as public); allowed: a private, loopback or shared address",
        ],
    ),
    "client networks": (
        '[[accounts]]\nname = "a"\nnetworks = ["10.0.0.0/8", "8.8.8.0/24", "10.1.0.1/24", "vpn", "fd00::/32", "10.1.0.0/16"]\n'
        '[[accounts]]\nname = "b"\nnetworks = ["10.2.0.0/16", "10.1.9.0/24"]\n',
        [
            'accounts[0].networks[0]: "10.0.0.0/8" is too broad; allowed: IPv4 /16 or longer, IPv6 /48 or longer',
            'accounts[0].networks[1]: "8.8.8.0/24" is a public network; '
            "allowed: private, loopback, link-local or shared ones",
            'accounts[0].networks[2]: "10.1.0.1/24" has bits set behind its prefix; did you mean 10.1.0.0/24?',
            'accounts[0].networks[3]: "vpn" is no network; write it like 10.20.0.0/16 or fd00:1:2::/48',
            'accounts[0].networks[4]: "fd00::/32" is too broad; allowed: IPv4 /16 or longer, IPv6 /48 or longer',
            "accounts[1].networks[1]: 10.1.9.0/24 overlaps 10.1.0.0/16 of accounts[0].networks[5]; "
            "a client address belongs to one account",
        ],
    ),
    "accounts": (
        LISTENER
        + 'tls = "none"\n[[delivery.pools]]\nname = "default"\n'
        + '[[accounts]]\nname = "a"\n[[accounts]]\nname = "a"\nuser = "u"\n'
        + f'[[accounts]]\nname = "c"\npool = "other"\n{HASH}[[accounts]]\nname = "d"\nuser = "c"\n{HASH}',
        [
            'accounts[1].name: "a" is already that of accounts[0].name',
            'accounts[3].user: AUTH name "c" is already that of accounts[2].name',
            'accounts[0]: nobody can use "a"; it needs networks, or password_hash',
            "accounts[1].password_hash: missing; an account with a user needs one",
            'accounts[2].pool: "other" is no pool; allowed: default',
            "accounts[2].password_hash: AUTH is offered under TLS only, "
            'and no submission listener has tls = "starttls" or "implicit"',
            "accounts[3].password_hash: AUTH is offered under TLS only, "
            'and no submission listener has tls = "starttls" or "implicit"',
        ],
    ),
    "grants and passwords of accounts": (
        '[[delivery.pools]]\nname = "default"\n[[accounts]]\nname = "a"\nnetworks = ["10.0.0.0/24"]\n'
        + 'pools = ["default", "fast"]\npassword_networks = ["203.0.113.0/24", "10.0.0.1/24", "vpn"]\n',
        [
            'accounts[0].password_networks[1]: "10.0.0.1/24" has bits set behind its prefix; did you mean 10.0.0.0/24?',
            'accounts[0].password_networks[2]: "vpn" is no network; write it like 10.20.0.0/16 or fd00:1:2::/48',
            'accounts[0].pools[1]: "fast" is no pool; allowed: default',
        ],
    ),
    "a password before the one that counts": (
        '[[accounts]]\nname = "a"\nnetworks = ["10.0.0.0/24"]\nprevious_until = 2026-01-01T00:00:00Z\n',
        ["accounts[0].previous_until: previous_hash and previous_until go together, beside password_hash"],
    ),
    "names and addresses that are there twice": (
        LISTENER
        + TLS
        + LISTENER
        + TLS
        + '[[delivery.pools]]\nname = "p"\nsources = [{address = "127.0.1.1-127.0.1.4"}, {address = "127.0.1.3"}]\n'
        + '[[delivery.pools]]\nname = "p"\n',
        [
            'delivery.pools[1].name: "p" is already that of delivery.pools[0].name',
            'delivery.pools[0].sources[1].address: "127.0.1.3" is already that of delivery.pools[0].sources[0].address',
            'relayd.listeners[1].name: "vpn" is already that of relayd.listeners[0].name',
            'relayd.listeners[1].port: "127.0.0.1 port 587" is already that of relayd.listeners[0].port',
        ],
    ),
    "policy of an unknown end": (
        '[[accounts]]\nname = "a"\nnetworks = ["127.0.0.0/24"]\nunknown = "twice"\n',
        [
            'accounts[0].unknown: "twice" is not allowed: allowed: retry, never, '
            "once:<duration of at least 1s> (for instance once:24h)"
        ],
    ),
}


def problems_of(path: Path, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(path, environ or {})
    return list(refused.value.problems)


@pytest.mark.parametrize("name", CASES)
def test_problem_texts(name: str, tmp_path: Path) -> None:
    text, expected = CASES[name]
    path = tmp_path / "tambo.toml"
    path.write_text(text, "utf-8")
    assert problems_of(path) == expected


def test_missing_file(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "x.toml") == [f"{tmp_path}/x.toml: no such file"]
    assert problems_of(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_invalid_toml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('[queue]\nurl = "a\n')
    assert problems_of(path) == [f"{path}: not valid TOML: Illegal character '\\n' (at line 2, column 9)"]
    path.write_bytes(b'[queue]\n# \xff\nurl = ""\n')
    assert problems_of(path) == [f"{path}: not UTF-8 (at line 2)"]


def test_environment_problems(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("")
    environ = {
        "TAMBO__DELIVERY__PORT": "hunter",
        "TAMBO__LOG__LEVL": "info",
        "TAMBO__LOGS__LEVEL": "info",
        "TAMBO__ACCOUNTS": '[{"name": hunter2}]',
        "TAMBO__DELIVERY__NAMESERVERS": '"127.0.0.1"',
        "TAMBO__queue__url": "redis://x",
        "TAMBO_CONFIG": "not read here",
        "TAMBO": "nor this",
    }
    sections = ", ".join(f"TAMBO__{name.upper()}" for name in SECTIONS.split(", "))
    found = problems_of(path, environ)
    queue = found.pop(4)
    assert queue.startswith("TAMBO__queue__url: unknown variable (did you mean TAMBO__QUEUE__URL?); allowed here: ")
    assert found == [
        'TAMBO__ACCOUNTS: write the whole list as JSON, for instance ["a", "b"]',
        'TAMBO__DELIVERY__NAMESERVERS: write the whole list as JSON, for instance ["a", "b"]',
        "TAMBO__LOGS__LEVEL: unknown variable (did you mean TAMBO__LOG__LEVEL?); allowed here: " + sections,
        "TAMBO__LOG__LEVL: unknown variable (did you mean TAMBO__LOG__LEVEL?); "
        "allowed here: TAMBO__LOG__LEVEL, TAMBO__LOG__FORMAT",
        'delivery.port: "hunter" is not allowed; allowed: a whole number, at least 1 and at most 65535 '
        "(from environment TAMBO__DELIVERY__PORT)",
    ]


def test_a_bad_providers_file_is_a_problem_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[default]\nconections = 1\n")
    path = tmp_path / "t.toml"
    path.write_text('[delivery]\nproviders = "own.toml"\n')
    found = problems_of(path)
    assert found[0].startswith(f"{tmp_path}/own.toml: default.conections: unknown key (did you mean connections?)")


PIECES = st.sampled_from(["10.0.0.0/16", "10.0.0.0/17", "10.0.128.0/17", "10.0.7.0/24", "10.0.7.9/32", "10.1.0.0/24", "fd00::/48", "fd00:0:0:1::/64"])  # fmt: skip


@given(st.lists(PIECES, max_size=8))
def test_overlapping_networks_are_those_that_overlap(networks: list[str]) -> None:
    placed = [(f"a{n}", AccountSettings(name=f"a{n}", networks=(text,))) for n, text in enumerate(networks)]
    found = [(one.key, one.text) for one in check.account_problems(Settings(), placed)]
    parsed = [ip_network(text) for text in networks]
    wanted = [
        (f"a{n}.networks[0]", f"{one} overlaps {other} of a{m}.networks[0]; a client address belongs to one account")
        for n, one in enumerate(parsed)
        for m, other in enumerate(parsed[:n])
        if one.version == other.version and one.overlaps(other)
    ]
    assert found == wanted


def test_many_accounts_are_checked_in_proportion() -> None:
    def cost(count: int) -> float:
        many = [AccountSettings(name=f"a{n}", networks=(f"10.{n // 250}.{n % 250}.0/24",)) for n in range(count)]
        began = time.process_time()
        assert check.account_problems(Settings(), [(one.name, one) for one in many]) == []
        return time.process_time() - began

    assert min(cost(2000) for _ in range(2)) < 16 * min(cost(250) for _ in range(3))
