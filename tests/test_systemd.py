"""The units: systemd accepts them, their exposure stays below the line, and what an operator relies on is in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_packaging import REPOSITORY, plain_make

SERVICES = ("relayd@1.service", "inbound.service", "delivery@1.service", "maintenance.service", "tambo-queue.service")
ROLES = SERVICES[:4]
MOST_EXPOSED = 2.0
LISTENERS = "[Socket]\nListenStream=10.20.0.5:587\n"
UNPACKED = REPOSITORY / ".tools"


def file_of(service: str) -> str:
    return service.replace("@1", "@")


@pytest.fixture(scope="module")
def analyze() -> str:
    """systemd-analyze: the host's, else the one that is unpacked."""
    found = shutil.which("systemd-analyze") or shutil.which(UNPACKED / "bin" / "systemd-analyze")
    if found is None:
        assert os.environ.get("CI") != "true", "no systemd-analyze; run: make tools"
        pytest.skip("no systemd-analyze")
    return found


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as they are installed, below a prefix whose programs exist, with a listener each."""
    top = tmp_path_factory.mktemp("systemd")
    prefix, directory = top / "prefix", top / "units"
    environ = plain_make() | {"PREFIX": str(prefix), "UNITS": str(directory)}
    subprocess.run([REPOSITORY / "tools" / "install", "units"], env=environ, check=True)
    for name in ("bin/tambo", "libexec/await-space", "bin/redis-server"):
        program = prefix / "current" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    queue = directory / "tambo-queue.service"  # this host may have no server in /usr/bin
    queue.write_text(
        re.sub(r"^(ExecStart=)\S+", rf"\1{prefix}/current/bin/redis-server", queue.read_text(), flags=re.M)
    )
    for unit in ("relayd@.socket", "inbound.socket"):
        (directory / f"{unit}.d").mkdir()
        (directory / f"{unit}.d" / "listeners.conf").write_text(LISTENERS)
    return directory


def verify(analyze: str, directory: Path, unit: str) -> str:
    path = f"{directory}:{UNPACKED}/root/lib/systemd/system:/usr/lib/systemd/system:/lib/systemd/system"
    ran = subprocess.run(
        [analyze, "verify", "--man=no", unit],
        env=os.environ | {"SYSTEMD_UNIT_PATH": path},
        capture_output=True,
        text=True,
    )
    told = [line for line in ran.stderr.splitlines() if "tambo" in line or str(directory) in line or unit in line]
    return "\n".join(told) or ("" if ran.returncode == 0 else ran.stderr)


def test_systemd_finds_nothing_wrong(analyze: str, units: Path) -> None:
    for unit in (*SERVICES, "relayd@1.socket", "inbound.socket", "tambo.target"):
        assert verify(analyze, units, unit) == ""


def test_systemd_would_find_something(analyze: str, units: Path, tmp_path: Path) -> None:
    shutil.copytree(units, tmp_path / "units")
    unit = tmp_path / "units" / "maintenance.service"
    unit.write_text(unit.read_text().replace("Restart=always", "Restart=sometimes"))
    assert "sometimes" in verify(analyze, tmp_path / "units", "maintenance.service")
    (tmp_path / "units" / "relayd@.socket.d" / "listeners.conf").unlink()
    assert verify(analyze, tmp_path / "units", "relayd@1.socket") != ""


def exposure(analyze: str, path: Path) -> float:
    ran = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", path], capture_output=True, text=True, check=True
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", ran.stdout)
    assert found is not None, ran.stdout
    return float(found[1])


@pytest.mark.parametrize("service", SERVICES)
def test_exposure(analyze: str, units: Path, service: str) -> None:
    assert exposure(analyze, units / file_of(service)) <= MOST_EXPOSED


def test_exposure_is_measured(analyze: str, units: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(analyze, bare) > 9


def settings(unit: str) -> dict[str, list[str]]:
    """Key → its values, in order."""
    found: dict[str, list[str]] = {}
    for line in (REPOSITORY / "systemd" / unit).read_text().splitlines():
        key, is_, value = line.partition("=")
        if is_ and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("service", ROLES)
def test_a_role_comes_back_and_is_watched(service: str) -> None:
    unit = settings(file_of(service))
    assert unit["Type"] == ["notify"] and unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]  # systemd never gives it up
    assert 10 <= int(unit["WatchdogSec"][0]) <= 60
    assert int(unit["TimeoutStopSec"][0]) >= 660  # end of data may take ten minutes
    assert unit["LoadCredential"] == ["tambo.queue.password"]
    assert unit["User"] == ["tambo"] and unit["CapabilityBoundingSet"] == [""]


@pytest.mark.parametrize("service", ROLES)
def test_a_reload_tries_the_file_first(service: str) -> None:
    first, check, hang_up, wait = settings(file_of(service))["ExecReload"]
    assert first == "/bin/true"  # systemd 252 has no credentials for the first one
    assert "relayctl.main config check" in check and hang_up == "/bin/kill -HUP $MAINPID" and "sleep" in wait


def test_the_order_of_stopping() -> None:
    """What is started after another is stopped before it."""
    after = {service: settings(file_of(service))["After"][0].split() for service in SERVICES}
    assert "delivery.target" in after["relayd@1.service"] and "delivery.target" in after["inbound.service"]
    assert settings("delivery@.service")["Before"] == ["delivery.target"]
    assert "maintenance.service" in after["delivery@1.service"]
    assert all("tambo-queue.service" in after[role] for role in ROLES)
    assert "tambo.target" in settings("relayd.target")["Before"][0] and settings("relayd@.socket")["Slice"] == [
        "tambo.slice"
    ]
    parts = {unit: settings(unit)["PartOf"][0] for unit in ("relayd.target", "delivery.target", "tambo-queue.service")}
    assert set(parts.values()) == {"tambo.target"}


def test_sockets_share_their_port_and_wait_for_no_address() -> None:
    for socket in ("relayd@.socket", "inbound.socket"):
        unit = settings(socket)
        assert unit["ReusePort"] == ["yes"] and unit["FreeBind"] == ["yes"] and unit["Accept"] == ["no"]
        assert "ListenStream" not in unit  # an address belongs to the configuration


@pytest.mark.parametrize("service", ["inbound.service", "delivery@.service"])
def test_who_signs_nothing_sees_no_key(service: str) -> None:
    assert settings(service)["InaccessiblePaths"] == ["-/etc/tambo/dkim"]


@pytest.mark.parametrize("page", ["first-hour.md", "dkim.md", "es/first-hour.md", "es/dkim.md"])
def test_inbound_reads_the_key_of_return_paths_where_the_pages_put_it(page: str) -> None:
    """`relayctl dkim return-path-key`, run by root, leaves the file to the owner of its directory."""
    (path,) = re.findall(r'^return_path_key = "(.+?)"', (REPOSITORY / "docs" / page).read_text(), flags=re.M)
    directory = str(Path(path).parent)
    assert re.search(
        rf"^d {directory} +0700 tambo ", (REPOSITORY / "systemd" / "tmpfiles.conf").read_text(), flags=re.M
    )
    hidden = settings("inbound.service")["InaccessiblePaths"][0].lstrip("-")
    assert not Path(path).is_relative_to(hidden)


def test_the_queue_is_durable_and_not_started_in_circles() -> None:
    unit, conf = settings("tambo-queue.service"), (REPOSITORY / "systemd" / "queue.conf").read_text().splitlines()
    for line in ("appendonly yes", "appendfsync always", "no-appendfsync-on-rewrite no", 'save ""', "port 0"):
        assert line in conf
    assert {"maxmemory-policy noeviction", "unixsocketperm 660"} <= set(conf)
    assert unit["Restart"] == ["on-failure"] and int(unit["StartLimitBurst"][0]) <= 10
    assert unit["ExecStartPre"][0].endswith("/libexec/await-space /var/lib/tambo/queue 64")
    assert unit["TimeoutStartSec"] == ["infinity"]


def test_the_server_waits_for_room(tmp_path: Path) -> None:
    script = REPOSITORY / "systemd" / "await-space"
    assert subprocess.run([script, tmp_path, "1"], timeout=10, check=False).returncode == 0
    with pytest.raises(subprocess.TimeoutExpired) as waited:
        subprocess.run([script, tmp_path, "999999999"], timeout=1, capture_output=True, check=False)
    assert b"the queue's server starts once there are 999999999" in (waited.value.stderr or b"")


def make(*words: str) -> str:
    ran = subprocess.run(
        ["make", "-C", REPOSITORY, *words], capture_output=True, text=True, env=plain_make(), timeout=110
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_installed_twice_and_taken_away(tmp_path: Path) -> None:
    where = f"DESTDIR={tmp_path}"
    assert "config check" in make("install", where)
    link = tmp_path / "opt" / "tambo" / "current"
    version = os.readlink(link)
    assert re.fullmatch(r"\d+\.\d+\.\d+-[0-9a-f]{8}", version)
    assert (link / "bin" / "relayctl").read_text().startswith(f"#!/opt/tambo/{version}/bin/python")
    assert (tmp_path / "usr/local/lib/systemd/system/relayd@.service").exists()
    told = subprocess.run(  # the launcher's path is that of the installed host
        [link / "bin" / "python", "-I", "-m", "relayd", "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: relayd" in told.stdout

    configuration = tmp_path / "etc" / "tambo" / "queue.conf"
    configuration.write_text("mine\n")
    assert "is there already" in make("install", where)
    assert configuration.read_text() == "mine\n" and os.readlink(link) == version

    (tmp_path / "var/lib/tambo").mkdir(parents=True)
    make("uninstall", where)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert left == {"etc/tambo/queue.conf", "etc/tambo/tambo.toml.example"}
    make("uninstall", where, "PURGE=1")
    assert not (tmp_path / "etc" / "tambo").exists() and not (tmp_path / "var/lib/tambo").exists()


def uninstalled(where: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REPOSITORY / "tools" / "uninstall"],
        capture_output=True,
        text=True,
        env=plain_make() | {"DESTDIR": str(where)} | environ,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("word", ["0", "no", "yes"])
def test_only_purge_1_purges(tmp_path: Path, word: str) -> None:
    queue = tmp_path / "var/lib/tambo/queue/appendonly.aof"
    queue.parent.mkdir(parents=True)
    queue.write_text("mail\n")
    ran = uninstalled(tmp_path, PURGE=word)
    assert ran.returncode == 1 and f"PURGE={word}: PURGE=1 takes" in ran.stderr and queue.exists()


def test_nothing_of_others_is_uninstalled(tmp_path: Path) -> None:
    """PREFIX may be a directory that others share, and systemd's is."""
    system = tmp_path / "etc/systemd/system"
    foreign = [tmp_path / "opt" / name for name in ("other/build.txt", "0.1.0/build.txt")]
    foreign += [system / "ssh.service.d/mine.conf"]
    ours = [tmp_path / "opt/0.1.0-0123abcd/build.txt", system / "relayd@.socket.d/listeners.conf"]
    ours += [system / "relayd-a b@.socket"]
    for path in (*foreign, *ours):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# Made from the listeners of tambo.toml by: …\n" if path in ours else "theirs\n")
    (system / "empty.service.d").mkdir()
    for bad in ("opt", "/opt/", "/"):
        assert "write an absolute path" in uninstalled(tmp_path, PREFIX=bad, PURGE="1").stderr
    assert all(path.exists() for path in (*foreign, *ours))
    assert uninstalled(tmp_path, PREFIX="/opt", PURGE="1").returncode == 0
    assert all(path.exists() for path in foreign) and (system / "empty.service.d").exists()
    assert not any(path.exists() for path in ours)
