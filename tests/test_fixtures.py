"""The fixtures themselves: what the other tests rest on must hold first."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Certificate, RedisServer


def test_acknowledged_writes_survive_a_kill(any_redis_server: RedisServer) -> None:
    server = any_redis_server
    assert server.command("SET", "k", "v") == b"+OK\r\n"
    before = server.pid
    server.kill()
    server.start()
    assert server.pid != before
    assert server.command("GET", "k") == b"$1\r\nv\r\n"


def test_the_server_is_durable_and_local(any_redis_server: RedisServer) -> None:
    for name, value in (("appendonly", "yes"), ("appendfsync", "always"), ("save", ""), ("port", "0")):
        reply = any_redis_server.command("CONFIG", "GET", name)
        assert reply.split(b"\r\n")[4] == value.encode(), name
    assert len(any_redis_server.socket) < 108


def test_a_server_starts_fast(redis_server: RedisServer) -> None:
    redis_server.stop()
    began = time.monotonic()
    redis_server.start()
    assert time.monotonic() - began < 3  # 0.05 s by itself; two shared cores may be busy


def test_a_server_that_cannot_start_says_why(make_redis_server: Callable[..., RedisServer]) -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        make_redis_server(dir="/nowhere")


def test_shared_redis_is_empty_first(shared_redis: RedisServer) -> None:
    assert shared_redis.command("DBSIZE") == b":0\r\n"
    shared_redis.command("SET", "left", "over")


def test_shared_redis_is_empty_again(shared_redis: RedisServer) -> None:
    assert shared_redis.command("DBSIZE") == b":0\r\n"


def test_certificate_is_good_for_localhost_and_its_address(certificate: Certificate) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate.certificate, certificate.key)
    client = ssl.create_default_context(cafile=certificate.certificate)
    for name in ("localhost", "a.mx.test", "127.0.0.1"):
        near, far = socket.socketpair()
        worker = threading.Thread(target=lambda far=far: server.wrap_socket(far, server_side=True).close())
        worker.start()
        with client.wrap_socket(near, server_hostname=name) as secured:
            assert secured.version() == "TLSv1.3"
        worker.join()


@pytest.mark.parametrize("name", ["redis-cli", "smtp-source", "smtp-sink", "postconf", "swaks", "opendkim", "strace"])
def test_tools_find_their_libraries(tool: Callable[[str], Path], name: str) -> None:
    done = subprocess.run([tool(name), "--version"], capture_output=True, text=True, timeout=30, check=False)
    assert "error while loading shared libraries" not in done.stderr
    assert done.returncode != 127


def test_swaks_has_tls_and_auth(tool: Callable[[str], Path]) -> None:
    text = subprocess.run([tool("swaks"), "--support"], capture_output=True, text=True, timeout=30, check=True).stdout
    for capability in ("TLS supported", "AUTH CRAM-MD5 supported", "Basic AUTH supported"):
        assert capability in text


@pytest.mark.usefixtures("root")
def test_a_private_postfix_delivers(tool: Callable[[str], Path]) -> None:
    """smtp-source → Postfix → smtp-sink: the yardstick of the benchmarks."""
    if not str(tool("postconf")).endswith(".tools/bin/postconf"):
        pytest.skip("the private instance runs from the unpacked tools only")
    instance = Path(__file__).resolve().parent.parent / "tools" / "postfix-instance"
    directory = Path(f"/tmp/tambo-postfix-{os.getpid()}")
    submission, next_hop = free_port(), free_port()
    sink = subprocess.Popen(
        [tool("smtp-sink"), "-u", "uucp", f"127.0.0.1:{next_hop}", "100"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        subprocess.run([instance, "start", directory, str(submission), str(next_hop)], check=True, timeout=30)
        address = f"127.0.0.1:{submission}"
        source = [tool("smtp-source"), "-s", "4", "-m", "20", "-f", "a@x.test", "-t", "b@y.test", address]
        subprocess.run(source, check=True, timeout=30)
        log = directory / "log" / "mail.log"
        deadline = time.monotonic() + 30
        while log.read_text().count("status=sent") < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert log.read_text().count("status=sent") == 20, log.read_text()
        left = subprocess.run([instance, "queued", directory], capture_output=True, check=True, timeout=30)
        assert left.stdout.strip() == b"0"
    finally:
        subprocess.run([instance, "stop", directory], check=False, timeout=30)
        sink.terminate()
        sink.wait(10)
        subprocess.run(["rm", "-rf", directory], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
