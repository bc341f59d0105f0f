"""Listeners as socket units: what is made of them, and what is said when systemd listens elsewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from config import sockets
from config.settings import Settings
from tests.test_config_relayctl import relayctl

VPN = {"name": "vpn", "address": "10.20.0.5", "port": 587, "tls": "none"}
SIX = {"name": "six", "address": "fd00::5", "port": 587, "tls": "none"}
TUNNEL = {"name": "tunnel", "address": "10.30.0.5", "port": 25, "tls": "none", "interface": "ipsec0"}
MAIL = {"name": "mail", "address": "10.20.0.5", "port": 25, "tls": "none", "kind": "inbound"}
PUBLIC = MAIL | {"address": "203.0.113.5", "tls": "starttls", "certificate": "c", "key": "k", "allow_public": True}
FILTER = "IPAddressDeny=any\nIPAddressAllow=10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 127.0.0.0/8 169.254.0.0/16 "
FILTER += "100.64.0.0/10 ::1/128 fe80::/10 fc00::/7\n"


def settings(*listeners: dict[str, Any]) -> Settings:
    return Settings.model_validate({"relayd": {"listeners": listeners}})


def bodies(*listeners: dict[str, Any]) -> dict[str, str]:
    return {name: text.removeprefix(sockets.SAID) for name, text in sockets.units(settings(*listeners)).items()}


@pytest.mark.parametrize(
    ("listeners", "wanted"),
    [
        ((), {}),
        ((VPN,), {"relayd@": f"ListenStream=10.20.0.5:587\nFileDescriptorName=vpn\n{FILTER}"}),
        ((VPN, SIX), {"relayd@": f"ListenStream=10.20.0.5:587\nListenStream=[fd00::5]:587\n{FILTER}"}),
        (
            (TUNNEL,),
            {"relayd@": f"ListenStream=10.30.0.5:25\nBindToDevice=ipsec0\nFileDescriptorName=tunnel\n{FILTER}"},
        ),
        ((PUBLIC,), {"inbound": "ListenStream=203.0.113.5:25\nFileDescriptorName=mail\n"}),
    ],
)
def test_drop_ins(listeners: tuple[dict[str, Any], ...], wanted: dict[str, str]) -> None:
    assert bodies(*listeners) == {
        f"{unit}.socket.d/listeners.conf": f"[Socket]\n{text}" for unit, text in wanted.items()
    }


def test_another_interface_has_a_unit_of_its_own() -> None:
    found = bodies(VPN, TUNNEL, MAIL)
    assert set(found) == {
        "relayd@.socket.d/listeners.conf",
        "relayd-tunnel@.socket",
        "relayd@.service.d/listeners.conf",
        "inbound.socket.d/listeners.conf",
    }
    unit = found["relayd-tunnel@.socket"]
    for line in ("Service=relayd@%i.service", "ReusePort=yes", "FreeBind=yes", "BindToDevice=ipsec0"):
        assert line in unit.splitlines()
    both = "relayd@%i.socket relayd-tunnel@%i.socket"
    assert found["relayd@.service.d/listeners.conf"] == f"[Unit]\nRequires={both}\n\n[Service]\nSockets={both}\n"


def test_any_free_port_is_none_of_systemd() -> None:
    with pytest.raises(ValueError, match="listener vpn: port 0 is any free one"):
        sockets.units(settings(VPN | {"port": 0}))


def installed(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    for unit in ("relayd@.socket", "inbound.socket"):
        (directory / unit).write_text("[Socket]\nReusePort=yes\n")
    return directory


def test_written_and_agreed(tmp_path: Path) -> None:
    directory = installed(tmp_path / "units")
    wanted = settings(VPN, TUNNEL, MAIL)
    different, superfluous = sockets.changes(wanted, directory)
    assert len(different) == 4 and superfluous == []
    sockets.written(directory, different, superfluous)
    assert sockets.changes(wanted, directory) == ({}, [])
    assert sockets.disagreements(wanted, [directory]) == []

    different, superfluous = sockets.changes(settings(VPN), directory)
    assert different == {}
    assert set(superfluous) == {
        "relayd-tunnel@.socket",
        "relayd@.service.d/listeners.conf",
        "inbound.socket.d/listeners.conf",
    }
    sockets.written(directory, different, superfluous)
    assert sockets.disagreements(settings(VPN), [directory]) == []


def test_what_systemd_was_told_by_hand_counts(tmp_path: Path) -> None:
    directory = installed(tmp_path / "units")
    above = tmp_path / "above"
    (above / "relayd@.socket.d").mkdir(parents=True)
    (above / "relayd@.socket.d" / "own.conf").write_text(
        "[Socket]\nListenStream=1\nListenStream=\nListenStream=10.20.0.5:587\n"
    )
    assert sockets.disagreements(settings(VPN), [above, directory]) == []
    assert sockets.changes(settings(), above) == ({}, [])


def test_disagreements_are_named(tmp_path: Path) -> None:
    directory = installed(tmp_path / "units")
    sockets.written(directory, sockets.units(settings(VPN)), [])
    moved = settings(VPN | {"port": 2587}, TUNNEL)
    again = "; write them anew: relayctl systemd sockets --write"
    assert sockets.disagreements(moved, [directory]) == [
        f"relayd.listeners: vpn (10.20.0.5:2587) has no socket of systemd{again}",
        f"relayd.listeners: tunnel (10.30.0.5:25 on ipsec0) has no socket of systemd{again}",
        f"relayd@.socket: listens at 10.20.0.5:587, which is no listener's{again}",
    ]
    assert sockets.disagreements(moved, [tmp_path / "nowhere"]) == []


def test_the_verb(tmp_path: Path) -> None:
    config, directory = tmp_path / "t.toml", installed(tmp_path / "units")
    config.write_text('[[relayd.listeners]]\nname = "vpn"\naddress = "10.20.0.5"\ntls = "none"\n')

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return relayctl("systemd", "sockets", "--config", str(config), "--directory", str(directory), *words)

    printed = run()
    assert printed.returncode == 0 and "ListenStream=10.20.0.5:587" in printed.stdout
    assert not (directory / "relayd@.socket.d").exists()
    first, second = run("--write"), run("--write")
    path = directory / "relayd@.socket.d" / "listeners.conf"
    assert f"written: {path}" in first.stdout and path.exists()
    assert second.stdout == "unchanged\n"
    config.write_text(config.read_text() + "port = 0\n")
    refused = run("--write")
    assert refused.returncode == 1 and "port 0 is any free one" in refused.stderr
