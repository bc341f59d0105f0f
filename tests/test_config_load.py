"""What a good configuration becomes: values, precedence, origins, warnings; the tree's own types."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import config
from config.addresses import expand, host_and_port, is_inside, refuse_public
from config.durations import Rate, seconds, unknown_policy
from config.load import default_path, load
from config.schema import leaves
from config.settings import AccountSettings, ListenerSettings, RetrySettings, Settings, SourceSettings

EXAMPLE = Path(config.__file__).parent / "relay.example.toml"


def test_example_is_valid_without_a_warning() -> None:
    loaded = load(EXAMPLE, {})
    assert loaded.warnings == ()
    assert loaded.settings.accounts[1].unknown == "once:86400"
    assert len(loaded.settings.delivery.pools[0].sources[0].addresses) == 8


def test_environment_wins_over_file_wins_over_default(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(
        '[queue]\nurl = "redis://127.0.0.1:1/0"\nlease_seconds = "20s"\n'
        '[delivery]\nsandbox = true\n[[accounts]]\nname = "a"\nnetworks = ["127.0.0.0/24"]\nclass = "bulk"\n'
    )
    environ = {
        "TAMBO__QUEUE__URL": "redis://127.0.0.1:2/0",
        "TAMBO__METRICS__DELIVERY": "",
        "TAMBO__QUEUE__PUT_DEADLINE_SECONDS": "45",
        "TAMBO__DELIVERY__NAMESERVERS": '["127.0.0.1:5353"]',
        "TAMBO__DELIVERY__PROVIDERS": "",
        "TAMBO__DELIVERY__RETRY__STEPS_SECONDS": '["1s", 2]',
        "TAMBO__DELIVERY__POOLS": '[{"name": "default", "sources": [{"address": "127.0.1.1"}]}]',
    }
    loaded = load(path, environ)
    settings, origins = loaded.settings, loaded.origins
    assert settings.queue.url == "redis://127.0.0.1:2/0" and settings.queue.lease_seconds == 20
    assert settings.metrics.delivery == "" and settings.queue.put_deadline_seconds == 45
    assert settings.delivery.retry.steps_seconds == (1, 2) and settings.delivery.providers is None
    assert origins["queue.url"] == "environment TAMBO__QUEUE__URL"
    assert origins["queue.lease_seconds"] == f"file {path}"
    assert origins["queue.shards"] == "default"
    assert origins["accounts[0].class"] == f"file {path}" and origins["accounts[0].pool"] == "default"
    assert origins["delivery.pools[0].sources[0].address"] == "environment TAMBO__DELIVERY__POOLS"
    assert origins["delivery.pools[0].sources[0].weight"] == "default"
    assert origins["delivery.nameservers"] == "environment TAMBO__DELIVERY__NAMESERVERS"
    assert set(origins) == {key for key, _ in leaves(settings)}


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "packaged"\n[providers.google]\nconnections = 3\n')
    path = tmp_path / "t.toml"
    path.write_text(
        '[delivery]\nproviders = "own.toml"\n'
        '[[relayd.listeners]]\nname = "a"\naddress = "::1"\ncertificate = "c.pem"\nkey = "/k.pem"\n'
    )
    loaded = load(path, {})
    assert loaded.providers.named("google").connections == 3
    assert loaded.settings.relayd.listeners[0].certificate == str(tmp_path / "c.pem")
    assert loaded.settings.relayd.listeners[0].key == "/k.pem"


def test_warnings(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("[delivery]\nport = 2525\n")
    assert load(path, {}).warnings == (
        "delivery.port: every next hop is tried at port 2525 instead of 25",
        "delivery.hostname: localhost in EHLO is refused by most mailbox providers",
    )
    path.write_text("[delivery]\nport = 2525\nsandbox = true\n")
    assert load(path, {}).warnings == ()
    accounts = '[[accounts]]\nname = "a"\nnetworks = ["10.0.0.0/24"]\n'
    path.write_text("[delivery]\nsandbox = true\n" + accounts)
    assert load(path, {}).warnings == (
        'accounts[0].senders: "a" may send as anybody; list its addresses or domains, or write ["*"] if that is meant',
    )
    path.write_text("[delivery]\nsandbox = true\n" + accounts + 'senders = ["*"]\n')
    assert load(path, {}).warnings == ()
    inbound = (
        '[signing]\nreturn_path_key = "k"\n[inbound]\ndomains = ["Bounces.agency.pe"]\n[delivery]\nsandbox = true\n'
    )
    path.write_text(inbound + accounts + 'senders = ["*"]\nreturn_path = "bounces.agency.PE"\n')
    assert load(path, {}).warnings == ()
    path.write_text(inbound + accounts + 'senders = ["*"]\nreturn_path = "bounce.agency.pe"\n')
    assert load(path, {}).warnings == (
        "accounts[0].return_path: bounce.agency.pe is none of inbound.domains: no bounce to it is taken here",
    )


def test_leaves_mask_secrets() -> None:
    settings = Settings.model_validate({"queue": {"url": "redis://u:hunter2@127.0.0.1/0", "password": "hunter2"}})
    assert "hunter2" not in repr(list(leaves(settings))) and "hunter2" not in repr(settings.queue.password)
    assert dict(leaves(settings))["queue.url"] == "redis://******@127.0.0.1/0"
    assert "hunter2" in str(dict(leaves(settings, mask=False))["queue.url"])


def test_default_path() -> None:
    assert default_path({}) == Path("/etc/tambo/tambo.toml") == default_path({"TAMBO_CONFIG": ""})
    assert default_path({"TAMBO_CONFIG": "x"}) == Path("x")


def test_settings_stand_alone() -> None:
    assert Settings() == Settings.model_validate({})
    assert RetrySettings().steps_seconds == (60, 300, 900, 1800, 3600, 7200, 14400)
    account = AccountSettings(name="a", class_="transactional", password_hash="$argon2id$x")  # type: ignore[arg-type]
    assert account.login == "a" and AccountSettings(name="b", networks=("127.0.0.0/24",)).login is None
    assert SourceSettings(address="127.0.1.1-127.0.1.48").addresses[-1] == "127.0.1.48"
    with pytest.raises(ValidationError):
        ListenerSettings(name="a", address="8.8.8.8", tls="none")


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "::1", "10.255.0.1", "172.31.0.1", "100.64.0.1", "169.254.1.1", "fd00::1"]
)
def test_inside(text: str) -> None:
    refuse_public(text)


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0", "::", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8", "224.0.0.1", "x", ""],
)
def test_outside(text: str) -> None:
    with pytest.raises(ValueError, match="reachable from outside|is no IP address"):
        refuse_public(text)


def test_mapped_addresses_count_as_what_they_map() -> None:
    import ipaddress

    assert is_inside(ipaddress.ip_address("::ffff:127.0.0.1"))


def test_host_and_port() -> None:
    assert host_and_port("127.0.0.1:0") == ("127.0.0.1", 0)
    assert host_and_port("[::1]:53") == ("::1", 53)
    assert host_and_port("::1", 53) == ("::1", 53) == host_and_port("[::1]", 53)
    assert host_and_port("127.0.0.1", 53) == ("127.0.0.1", 53)
    for wrong in (
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "::1:53",
        "a:1",
        ":1",
        "127.0.0.1:٣",
        "[127.0.0.1:1",
        "",
    ):
        with pytest.raises(ValueError, match="write address:port"):
            host_and_port(wrong)


@given(st.integers(0, 2**32 - 5000), st.integers(1, 4096))
def test_expand_gives_every_address_once(first: int, size: int) -> None:
    import ipaddress

    low, high = ipaddress.IPv4Address(first), ipaddress.IPv4Address(first + size - 1)
    if low.is_unspecified or low.is_multicast or high.is_multicast:
        return
    addresses = expand(f"{low} - {high}")
    assert len(set(addresses)) == size and addresses[0] == str(low) and addresses[-1] == str(high)


UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 0.001}


@given(st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from(sorted(UNITS))), min_size=1, max_size=5))
def test_durations_add_up(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert seconds(text) == pytest.approx(sum(number * UNITS[unit] for number, unit in parts))


@given(st.text(alphabet="0123456789.smhd -+e٣x", max_size=12))
def test_durations_are_a_number_or_refused(text: str) -> None:
    try:
        value = seconds(text)
    except ValueError:
        return
    assert isinstance(value, float) and 0 <= value < float("inf")


@pytest.mark.parametrize(
    "text", ["", " ", "5", "5 s", "-5s", "1h 30m", "1,5h", "9" * 400, "s", "1hh", "nan", "inf", "1e3"]
)
def test_durations_refused(text: str) -> None:
    if text == "5":
        assert seconds(text) == 5.0
        return
    with pytest.raises(ValueError, match="write a number|longer than"):
        seconds(text)


@given(st.integers(1, 10**6), st.integers(1, 1000), st.sampled_from([1, 60, 3600, 86400]), st.data())
def test_rates_read_back(count: int, times: int, unit: int, data: st.DataObject) -> None:
    rate = Rate(count, float(times * unit), data.draw(st.integers(1, count)))
    assert Rate.parse(str(rate)) == rate


@pytest.mark.parametrize(
    ("text", "rate", "canonical"),
    [
        ("100/s", Rate(100, 1), "100/s"),
        ("100/min", Rate(100, 60), "100/min"),
        ("10000/h", Rate(10_000, 3600), "10000/h"),
        ("5/5s", Rate(5, 5), "5/5s"),
        (" 7/60S burst 3 ", Rate(7, 60, 3), "7/min burst 3"),
        ("1/d", Rate(1, 86400), "1/d"),
    ],
)
def test_rates(text: str, rate: Rate, canonical: str) -> None:
    assert Rate.parse(text) == rate and str(rate) == canonical


@pytest.mark.parametrize(
    "text", ["", "100", "100/", "/s", "0/s", "1/0s", "-1/s", "1.5/s", "1/m", "5/s burst 6", "5/s burst 0", "5/s\n1"]
)
def test_rates_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a rate|at least 1"):
        Rate.parse(text)


def test_unknown_policy() -> None:
    assert [unknown_policy(each) for each in ("retry", "never", "once:1h")] == ["retry", "never", "once:3600"]
    for wrong in ("once", "once:", "once:0s", "once:x", "again:1h"):
        with pytest.raises(ValueError, match=r"allowed: retry|write a number"):
            unknown_policy(wrong)
