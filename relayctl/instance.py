"""What ``relayctl up`` keeps in its directory: who runs, ports, the account's password, a certificate.

=====================  ====================================================================================
up.lock                flock and pid of the ``up`` that runs; the queue server holds it too
up.json                ports and password, made at the first start and kept; a taken port is chosen anew
certificate.pem, key…  self-signed for 127.0.0.1 and localhost: clients load it as their authority
dkim, return-path.key  what signs: keys of gob.test, made at the first start; the key of signed return paths
tambo.toml             the configuration of all roles, written from the above at each start
prometheus.yml         for a Prometheus over the processes
endpoints.json         where everything answers, for programs
archive                what has happened, a segment a day
queue, sandbox, log    the queue's append-only file; ledger and Maildirs of the sandbox; a log a role
=====================  ====================================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import orjson

from relayctl.material import certify, sign, write_private
from relayctl.passwords import hasher
from relayctl.scrape import scrape_config

USER, SENDER, RECIPIENT = "demo", "notices@gob.test", "persona@gmail.test"
FIRST_HOST = "127.0.2.1"  # of the sandbox
SENDING_DOMAIN, RETURN_DOMAIN, COMPLAINTS = "gob.test", "bounces.gob.test", "abuse@gob.test"
ON_LOCALHOST = ("submission", "returns", "relayd", "inbound", "delivery", "maintenance", "dns")
PORTS = dict.fromkeys(ON_LOCALHOST, "127.0.0.1") | {"sandbox": FIRST_HOST}
ROLES = ("relayd", "inbound", "delivery", "maintenance")  # processes with a status port
PORT_RANGE = range(20_000, 32_000)  # below the ports that the kernel gives to outgoing connections
LONGEST_SOCKET_PATH = 107  # sun_path of unix(7)
LOCK_PATIENCE_SECONDS = 5.0


class AlreadyRuns(Exception):
    """Another ``up`` has this directory; the text says which."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """The directory's lock, as a descriptor that a child may share. Raises AlreadyRuns.

    Where the ``up`` that wrote its pid is gone, its queue server is about to be: that is waited for.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pid = os.pread(descriptor, 20, 0).decode().strip()
                if Path(f"/proc/{pid or 'none'}").exists() or time.monotonic() >= deadline:
                    raise AlreadyRuns(f"relayctl up already runs on {directory}, as process {pid or '?'}") from None
                time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Instance:
    """``sockets`` is where the unix sockets lie: the directory itself, or a short one when its path is too long."""

    directory: Path
    sockets: Path
    ports: Mapping[str, int]
    password: str
    password_hash: str

    @property
    def certificate(self) -> Path:
        return self.directory / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    @property
    def configuration(self) -> Path:
        return self.directory / "tambo.toml"

    @property
    def signing_keys(self) -> Path:
        return self.directory / "dkim"

    @property
    def return_path_key(self) -> Path:
        return self.directory / "return-path.key"

    @property
    def queue_socket(self) -> Path:
        return self.sockets / "queue" / "s"

    @property
    def queue_url(self) -> str:
        return f"unix://{quote(str(self.queue_socket))}"

    @property
    def control_socket(self) -> Path:
        return self.sockets / "control"

    def log(self, role: str) -> Path:
        return self.directory / "log" / f"{role}.log"

    @property
    def metrics(self) -> dict[str, str]:
        """Role → where its status port is."""
        return {role: f"127.0.0.1:{self.ports[role]}" for role in ROLES}

    def endpoints(self, sandbox: Mapping[str, object]) -> dict[str, object]:
        """endpoints.json; ``sandbox`` is what the sandbox says of itself."""
        return {
            "submission": [{"address": "127.0.0.1", "port": self.ports["submission"], "tls": "starttls"}],
            "account": {"user": USER, "password": self.password, "sender": SENDER},
            "returns": {"address": "127.0.0.1", "port": self.ports["returns"], "domain": RETURN_DOMAIN},
            "metrics": self.metrics,
            "sandbox": dict(sandbox),
            "queue": {"url": self.queue_url},
        }


@contextlib.contextmanager
def prepared(directory: Path) -> Iterator[Instance]:
    """The instance of a locked directory, everything it needs on disk. ValueError when its up.json is damaged."""
    for name in ("queue", "sandbox", "log"):
        (directory / name).mkdir(exist_ok=True, mode=0o700)
    with _socket_directory(directory) as sockets:
        ports, password, password_hash = _remembered(directory / "up.json")
        instance = Instance(directory, sockets, ports, password, password_hash)
        certify(instance.certificate, instance.key)
        sign(instance.signing_keys, SENDING_DOMAIN, instance.return_path_key)
        write_private(instance.configuration, configuration(instance).encode())
        write_private(directory / "prometheus.yml", scrape_config(instance.metrics).encode())
        yield instance


def configuration(instance: Instance) -> str:
    """The TOML text of all roles; JSON strings are TOML strings."""

    def text(value: object) -> str:
        return orjson.dumps(str(value)).decode()

    ports = instance.ports
    providers = Path(__file__).parent.parent / "config" / "providers.sandbox.toml"
    return f"""\
# Written by `relayctl up` at each start; changes are lost. An own relay starts from config/relay.example.toml.
[queue]
url = {text(instance.queue_url)}

[relayd]
hostname = "relay.gob.test"
[[relayd.listeners]]
name = "submission"
address = "127.0.0.1"
port = {ports["submission"]}
tls = "starttls"
certificate = {text(instance.certificate)}
key = {text(instance.key)}

[[relayd.listeners]]
name = "returns"
kind = "inbound"
address = "127.0.0.1"
port = {ports["returns"]}
certificate = {text(instance.certificate)}
key = {text(instance.key)}

[signing]
directory = {text(instance.signing_keys)}
return_path_key = {text(instance.return_path_key)}

[inbound]
domains = ["{RETURN_DOMAIN}"]
mailboxes = ["{COMPLAINTS}", "postmaster@{SENDING_DOMAIN}"]

[[accounts]]
name = "{USER}"
password_hash = {text(instance.password_hash)}
senders = ["*"]
return_path = "{RETURN_DOMAIN}"
class = "bulk"
classes = ["transactional"]

[delivery]
hostname = "relay.gob.test"
sandbox = true
nameservers = ["127.0.0.1:{ports["dns"]}"]
port = {ports["sandbox"]}
ipv6 = false
providers = {text(providers)}
drain_seconds = "1m"
dsn_window_seconds = "10s"
[[delivery.pools]]
name = "default"
sources = [{{ address = "127.0.1.1-127.0.1.48" }}]

[metrics]
relayd = "127.0.0.1:{ports["relayd"]}"
inbound = "127.0.0.1:{ports["inbound"]}"
delivery = "127.0.0.1:{ports["delivery"]}"
maintenance = "127.0.0.1:{ports["maintenance"]}"

[archive]
directory = {text(instance.directory / "archive")}

[streams]
lag_alarm_seconds = "1m"

[alarms]
no_progress_seconds = "30s"

[sandbox]
dns = "127.0.0.1:{ports["dns"]}"
address = "{FIRST_HOST}"
port = {ports["sandbox"]}
directory = {text(instance.directory / "sandbox")}
"""


def _remembered(path: Path) -> tuple[dict[str, int], str, str]:
    kept = {}
    if path.exists():
        kept = orjson.loads(path.read_bytes())
        if not (isinstance(kept, dict) and {"ports", "password", "password_hash"} <= kept.keys()):
            raise ValueError(f"{path} is damaged; remove it and start again")
    ports: dict[str, int] = {}
    for name, address in PORTS.items():
        port = int(kept.get("ports", {}).get(name, 0))
        while not port or port in ports.values() or not is_free(address, port):
            port = secrets.choice(PORT_RANGE)
        ports[name] = port
    password = kept.get("password") or secrets.token_hex(12)
    password_hash = kept.get("password_hash") or hasher().hash(password)
    known = {"ports": ports, "password": password, "password_hash": password_hash}
    write_private(path, orjson.dumps(known, option=orjson.OPT_INDENT_2))
    return ports, password, password_hash


def is_free(address: str, port: int) -> bool:
    """For TCP and UDP; SO_REUSEADDR as the servers set it, so that TIME_WAIT does not count."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as tried:
            if kind == socket.SOCK_STREAM:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((address, port))
            except OSError:
                return False
    return True


@contextlib.contextmanager
def _socket_directory(directory: Path) -> Iterator[Path]:
    """``directory`` when its sockets' paths fit, else a private one under $XDG_RUNTIME_DIR or /tmp, removed after."""
    if len(os.fsencode(directory / "control")) <= LONGEST_SOCKET_PATH:
        yield directory
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    above = runtime if 0 < len(runtime) < 64 and os.access(runtime, os.W_OK) else "/tmp"  # noqa: S108 (mkdtemp)
    with tempfile.TemporaryDirectory(prefix="tambo-", dir=above) as short:
        (Path(short) / "queue").mkdir()
        yield Path(short)
