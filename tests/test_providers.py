"""Provider rules: who matches, what applies, how one file is laid over another."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from config.durations import Rate
from config.providers import PACKAGED, SANDBOX, Providers
from config.schema import ConfigError

PACKAGE = Path(str(resources.files("config")))


@pytest.fixture(scope="module")
def packaged() -> Providers:
    return Providers.load()


@pytest.mark.parametrize(
    ("name", "connections", "messages", "tls"),
    [
        ("default", 10, 100, "opportunistic"),
        ("google", 5, 50, "required"),
        ("yahoo", 10, 20, "opportunistic"),
        ("microsoft-consumer", 5, 50, "opportunistic"),
        ("microsoft-365", 5, 50, "opportunistic"),
        ("microsoft-365-dane", 5, 50, "opportunistic"),
        ("apple", 10, 5, "opportunistic"),
        ("comcast", 25, 1000, "required"),
        ("mimecast", 10, 100, "opportunistic"),
        ("mail-com", 10, 100, "opportunistic"),
        ("orange", 2, 100, "required"),
        ("gmx", 4, 20, "required"),
        ("yahoo-japan", 2, 20, "opportunistic"),
        ("barracuda", 10, 15, "required"),
        ("netvigator", 5, 10, "required"),
        ("kpn", 10, 10, "required"),
        ("qq", 4, 8, "required"),
        ("netease", 4, 7, "required"),
    ],
)
def test_packaged_figures(packaged: Providers, name: str, connections: int, messages: int, tls: str) -> None:
    rule = packaged.rules[name]
    assert (rule.name, rule.connections, rule.messages_per_connection, rule.tls) == (name, connections, messages, tls)
    assert rule.message_rate == (Rate(10, 1) if name == "yahoo-japan" else Rate(100, 1, 10))
    assert rule.connection_rate == Rate(100, 60)
    assert rule.roll_up == (name not in ("default", "mimecast"))


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        (["gmail-smtp-in.l.google.com", "alt1.gmail-smtp-in.l.google.com."], "google"),
        (["ASPMX.L.Google.Com", "aspmx2.googlemail.com"], "google"),
        (["aspmx.l.google.com", "mx.example.com"], None),
        (["aspmx.l.google.com", "mta5.am0.yahoodns.net"], None),
        (["notgoogle.com"], None),
        (["google.com"], None),  # ".google.com" is what lies below
        (["kpnmail.nl"], "kpn"),  # "kpnmail.nl" is that host too
        (["xkpnmail.nl"], None),
        (["."], None),
        ([""], None),
        ([], None),
    ],
)
def test_all_mx_hosts_must_be_one_providers(packaged: Providers, hosts: list[str], name: str | None) -> None:
    found = packaged.for_mx(hosts)
    assert (found.name if found else None) == name


def test_domains(packaged: Providers) -> None:
    for domain, name in [
        ("gmail.com", "google"),
        ("Hotmail.COM.", "microsoft-consumer"),
        ("yahoo.co.jp", "yahoo-japan"),
    ]:
        found = packaged.for_domain(domain)
        assert found is not None and found.name == name
    assert packaged.for_domain("mail.gmail.com") is None and packaged.for_domain("") is None


def test_destination_is_known_by_mx_and_by_domain_only_without_suffixes(packaged: Providers) -> None:
    assert packaged.for_destination("example.com", ["aspmx.l.google.com"]).name == "google"
    assert packaged.for_destination("gmail.com", ["mx.example.com"]).name == "default"
    assert packaged.for_destination("comcast.net", ["mx1a1.comcast.net"]).name == "comcast"
    assert packaged.for_destination("gob.test", ["mx.gob.test"]) is packaged.default
    assert packaged.named("gone") is packaged.default


def test_sandbox_names() -> None:
    sandbox = Providers.load(PACKAGE / SANDBOX)
    for domain, name in [
        ("gmail.test", "google"),
        ("outlook.test", "microsoft-consumer"),
        ("yahoo.test", "yahoo"),
        ("icloud.test", "apple"),
        ("gob.test", "default"),
        ("other.test", "default"),
    ]:
        rule = sandbox.for_destination(domain, [f"mx1.{domain}", f"mx2.{domain}"])
        assert (rule.name, (sandbox.for_domain(domain) or sandbox.default).name) == (name, name)
    assert sandbox.named("google").connections == 5
    assert sandbox.for_mx(["aspmx.l.google.com"]) is sandbox.named("google")


def test_overlay_merges_key_by_key() -> None:
    rules = Providers.parse(
        """
        extends = "packaged"
        unset = ["qq"]
        [default]
        connections = 7
        connection_rate = "5/5s"
        [providers.google]
        message_rate = "20/s burst 4"
        mx_suffixes = [".gmail.test"]
        [providers.google.samples]
        mx = ["a.gmail.test"]
        [providers.yahoo]
        unset = ["message_rate", "messages_per_connection"]
        [providers.apple]
        unset = ["mx_suffixes", "samples", "domains"]
        mx_suffixes = [".apple.test"]
        samples = {mx = ["a.apple.test"], not_mx = ["mx01.mail.icloud.com"]}
        [providers.ministry]
        domains = ["gob.test"]
        samples = {recipients = ["a@gob.test"]}
        """
    )
    google, yahoo = rules.named("google"), rules.named("yahoo")
    assert (google.connections, google.tls, google.message_rate) == (5, "required", Rate(20, 1, 4))
    assert google.connection_rate == Rate(5, 5) and rules.for_mx(["a.gmail.test", "b.l.google.com"]) is google
    assert yahoo.message_rate is None and yahoo.connection_rate == Rate(5, 5)
    assert yahoo.messages_per_connection == 100 and yahoo.connections == 7
    assert rules.for_mx(["mx01.mail.icloud.com"]) is None and rules.named("apple").mx_suffixes == (".apple.test",)
    assert rules.for_destination("gob.test", ["mx.gob.test"]).connections == 7
    assert "qq" not in rules.rules and rules.for_mx(["mx3.qq.com"]) is None


def test_own_file_replaces(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[default]\nconnections = 1\nmessages_per_connection = 2\ntls = "required"\n')
    rules = Providers.load(path)
    assert list(rules.rules) == ["default"] and rules.default.message_rate is None
    assert rules.for_mx(["aspmx.l.google.com"]) is None


def test_what_differs_for_a_source() -> None:
    rules = Providers.parse(
        """
        extends = "packaged"
        [default.sources."127.0.1.1"]
        connections = 1
        [providers.google.sources."127.0.1.1-127.0.1.2"]
        message_rate = "1/s"
        """
    )
    google = rules.named("google")
    assert google.for_source("127.0.1.2").message_rate == Rate(1, 1) and google.for_source("127.0.1.2").connections == 5
    assert google.for_source("127.0.1.1").connections == 5  # the default's source block is the default rule's
    assert google.for_source("127.0.1.3") is google
    assert (yahoo := rules.named("yahoo")).for_source("127.0.1.1") is yahoo
    assert rules.default.for_source("127.0.1.1").connections == 1


def test_longest_suffix_wins() -> None:
    rules = Providers.parse(
        """
        [default]
        connections = 1
        messages_per_connection = 1
        tls = "opportunistic"
        [providers.wide]
        mx_suffixes = ["example.com"]
        samples = {mx = ["mx.example.com"], not_mx = ["mx.eu.example.com"]}
        [providers.narrow]
        mx_suffixes = [".eu.example.com"]
        samples = {mx = ["mx.eu.example.com"], not_mx = ["eu.example.com"]}
        """
    )
    assert [(r := rules.for_mx([h])) and r.name for h in ("a.b.eu.example.com", "eu.example.com", "example.com")] == [
        "narrow",
        "wide",
        "wide",
    ]


BASE = '[default]\nconnections = 1\nmessages_per_connection = 1\ntls = "opportunistic"\n'
SAMPLES = 'samples = {mx = ["mx.a.test"], not_mx = ["a.test.example"], recipients = ["x@a.test"]}\n'

REFUSED = {
    "trailing dot": (
        BASE + '[providers.a]\nmx_suffixes = [".a.test."]\n' + SAMPLES,
        [
            'p: providers.a.mx_suffixes[0]: ".a.test." ends in a dot and would never match; write it without',
            'p: providers.a.samples.mx: none of them ends in ".a.test."',
        ],
    ),
    "escaped": (
        BASE + "[providers.a]\nmx_suffixes = ['\\\\.a\\\\.test']\n" + SAMPLES,
        [
            'p: providers.a.mx_suffixes[0]: "\\\\.a\\\\.test" holds a backslash: '
            "a plain name is wanted, no (double-escaped) pattern",
            'p: providers.a.samples.mx: none of them ends in "\\\\.a\\\\.test"',
        ],
    ),
    "no host name": (
        BASE + '[providers.a]\nmx_suffixes = ["*.a.test"]\nsamples = {mx = ["mx.*.a.test"], not_mx = ["b"]}\n',
        [
            'p: providers.a.mx_suffixes[0]: "*.a.test": write a host name: '
            "labels of letters, digits and hyphens, separated by dots, none at the end"
        ],
    ),
    "two providers, one suffix": (
        BASE + f'[providers.a]\nmx_suffixes = [".a.test"]\n{SAMPLES}[providers.b]\nmx_suffixes = ["A.test"]\n{SAMPLES}',
        ['p: providers.b.mx_suffixes[0]: "A.test" is already one of a'],
    ),
    "two providers, one domain": (
        BASE
        + f'[providers.a]\ndomains = ["a.test", "A.test"]\n{SAMPLES}[providers.b]\ndomains = ["a.test", ".b"]\n{SAMPLES}',
        [
            'p: providers.a.domains[1]: "A.test" is already one of its own',
            'p: providers.b.domains[0]: "a.test" is already one of a',
            'p: providers.b.domains[1]: ".b": a recipient domain is matched whole; write it without the first dot',
        ],
    ),
    "no samples": (
        BASE + '[providers.a]\nmx_suffixes = [".a.test"]\ndomains = ["a.test"]\n',
        [
            "p: providers.a.samples.mx: no samples; name an MX host for each suffix",
            "p: providers.a.samples.not_mx: no samples; name an MX host that looks alike and must not match",
            "p: providers.a.samples.recipients: no samples; name a recipient that is this provider's",
        ],
    ),
    "samples that fail": (
        BASE
        + '[providers.a]\nmx_suffixes = [".a.test"]\ndomains = ["a.test"]\n[providers.a.samples]\n'
        + 'mx = ["mx.a.test", "mxa.test"]\nnot_mx = ["x.a.test"]\nrecipients = ["x@b.test"]\nnot_recipients = ["a.test"]\n',
        [
            'p: providers.a.samples.mx: "mxa.test" matches no provider',
            'p: providers.a.samples.not_mx: "x.a.test" matches a',
            'p: providers.a.samples.recipients: "x@b.test" matches no provider',
            'p: providers.a.samples.not_recipients: "a.test" matches a',
        ],
    ),
    "never applies": (
        BASE + "[providers.a]\n",
        ["p: providers.a: needs mx_suffixes or domains, else it never applies"],
    ),
    "the name default": (
        BASE + '[providers.default]\nmx_suffixes = [".a.test"]\n' + SAMPLES,
        ["p: providers.default: the name default belongs to the default block"],
    ),
    "incomplete default": (
        "[default]\nconnections = 1\n",
        [
            "p: default.messages_per_connection: missing; the default block needs it, as all others fall back to it",
            "p: default.tls: missing; the default block needs it, as all others fall back to it",
        ],
    ),
    "unknown keys and values": (
        'extends = "packaged"\n[provider.a]\n[providers.google]\nmesage_rate = "1/s"\nconnection_rate = "1/m"\ntls = "none"\n'
        '[providers.google.sources."127.0.1.x"]\ndata_dot = 60\n',
        [
            "p: provider: unknown key (did you mean providers?); allowed here: default, extends, providers, unset",
            "p: providers.google.mesage_rate: unknown key (did you mean message_rate?); allowed here: connection_rate, "
            "connections, domains, message_rate, messages_per_connection, mx_suffixes, roll_up, samples, sources, tls, unset",
            'p: providers.google.sources."127.0.1.x".data_dot: unknown key; '
            "allowed here: connection_rate, connections, message_rate, messages_per_connection",
            'p: providers.google.connection_rate: "1/m" is not allowed: '
            "write a rate like 100/s, 100/min, 10000/h, 5/5s, 100/s burst 10",
            'p: providers.google.tls: "none" is not allowed; allowed: one of "opportunistic", "required"',
        ],
    ),
    "wrong source and wrong unset": (
        'extends = "packaged"\nunset = ["gogle"]\n[providers.google]\nunset = ["rate"]\n[default.sources.x]\nconnections = 1\n',
        [
            'p: unset: there is no provider "gogle" to remove',
            "p: default.sources.x: write an address or a range first-last, for instance 127.0.1.1-127.0.1.48",
            'p: providers.google.unset: "rate" is no key of a provider',
        ],
    ),
    "no TOML": (
        "[default\n",
        ["p: not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 9)"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    text, expected = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        Providers.parse(text, "p")
    assert list(refused.value.problems) == expected


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Providers.load(tmp_path / "x.toml")


def test_packaged_file_is_its_own_text() -> None:
    """Laid over itself nothing changes: an overlay loses no key."""
    text = (PACKAGE / PACKAGED).read_text("utf-8")
    assert Providers.parse('extends = "packaged"\n' + text).rules == Providers.load().rules
