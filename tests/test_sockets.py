"""Sockets and certificates of listeners: bound to an interface, handed down by systemd, read again, running out."""

from __future__ import annotations

import datetime
import os
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config.activation import inherited_sockets
from config.settings import ListenerSettings
from relayd.sockets import assign, bind, tls_context
from tests.conftest import REPOSITORY, Certificate, RedisServer
from tests.listening import listening, run, settings


def one(**said: object) -> ListenerSettings:
    return ListenerSettings.model_validate({"name": "a", "address": "127.0.0.1", "port": 0, "tls": "none", **said})


def opened(address: str = "127.0.0.1") -> socket.socket:
    found = socket.create_server((address, 0))
    found.setblocking(False)
    return found


# -- systemd --------------------------------------------------------------------------------------------------------

CHILD = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
sys.path.insert(0, sys.argv[1])
from config.activation import inherited_sockets
try:
    found = inherited_sockets(first=int(sys.argv[2]))
except ValueError as error:
    print(error)
    raise SystemExit
print([(name, one.getsockname()[1], one.get_inheritable(), one.getblocking()) for name, one in found])
print([name for name in os.environ if name.startswith("LISTEN_")])
"""


def handed(given: list[socket.socket], names: str | None, count: int | None = None) -> list[str]:
    """What a process that got these descriptors says it has."""
    first = min(one.fileno() for one in given)
    assert [one.fileno() for one in given] == list(range(first, first + len(given)))
    environ = {**os.environ, "LISTEN_FDS": str(len(given) if count is None else count)}
    if names is not None:
        environ["LISTEN_FDNAMES"] = names
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(REPOSITORY), str(first)],
        env=environ, pass_fds=[one.fileno() for one in given], capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.fixture
def pair() -> Iterator[list[socket.socket]]:
    """Two listening sockets at neighbouring descriptors."""
    made = [opened(), opened()]
    for number, each in enumerate(made):
        os.dup2(each.fileno(), 200 + number)
    found = [socket.socket(fileno=200), socket.socket(fileno=201)]
    yield found
    for each in (*made, *found):
        each.close()


def test_sockets_come_with_their_names_and_the_variables_go(pair: list[socket.socket]) -> None:
    ports = [each.getsockname()[1] for each in pair]
    assert handed(pair, "mx:vpn") == [f"[('mx', {ports[0]}, False, False), ('vpn', {ports[1]}, False, False)]", "[]"]
    assert handed(pair, None)[0] == f"[('unknown', {ports[0]}, False, False), ('unknown', {ports[1]}, False, False)]"


def test_what_is_meant_for_another_process_is_left_alone() -> None:
    for environ in ({}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}):
        assert inherited_sockets(environ) == []
        assert environ == {}


def test_only_listening_tcp_sockets_will_do(pair: list[socket.socket]) -> None:
    with socket.socket() as idle:
        os.dup2(idle.fileno(), 201)
        assert "is no listening TCP socket" in handed(pair, "a:b")[0]


def test_a_socket_finds_its_listener() -> None:
    with opened() as first, opened() as second:
        at = second.getsockname()[1]
        listeners = [one(name="a"), one(name="b", port=at)]
        assert assign([("a", first), ("unknown", second)], listeners) == {"a": first, "b": second}


@pytest.mark.parametrize(
    ("name", "said", "why"),
    [
        ("other", {}, "is no listener's; name it"),
        ("a", {"address": "127.0.0.2"}, "the configuration says 127.0.0.2 port 0"),
        ("a", {"port": 1}, "the configuration says 127.0.0.1 port 1"),
        ("a", {"interface": "lo"}, "is bound to no interface; write BindToDevice=lo"),
    ],
)
def test_a_socket_must_be_what_its_listener_says(name: str, said: dict[str, object], why: str) -> None:
    with opened() as found, pytest.raises(ValueError, match=why):
        assign([(name, found)], [one(**said)])


def test_a_public_socket_needs_allow_public() -> None:
    with opened("0.0.0.0") as found, pytest.raises(ValueError, match="reachable from outside"):
        assign([("a", found)], [one()])


def test_two_sockets_of_one_listener() -> None:
    with opened() as first, opened() as second, pytest.raises(ValueError, match="two sockets for listener a"):
        assign([("a", first), ("a", second)], [one()])


def test_mail_comes_in_by_a_socket_of_systemds() -> None:
    async def scenario() -> None:
        async with listening() as house:
            await house.relayd.stop()
            house.relayd.doors.draining = False
            given = opened()
            await house.relayd.start(handed=[("a", given)])
            assert house.port == given.getsockname()[1]
            client = await house.connect()
            await client.hello()
            assert (await client.transaction()).startswith("250 ")

    run(scenario())


PROCESS = """\
[queue]
url = "{url}"
[[relayd.listeners]]
name = "a"
address = "127.0.0.1"
port = 0
tls = "none"
[metrics]
relayd = ""
"""


@pytest.mark.parametrize("name", ["a", "other"])
def test_the_process_takes_over_from_systemd(name: str, redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "tambo.toml").write_text(PROCESS.format(url=redis_server.url))
    with opened() as given:
        # The shell puts the socket at descriptor 3, as systemd does, and knows the process's own id.
        script = f'exec 3<&{given.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name} exec "$@"'
        command = [sys.executable, "-m", "relayd", "--config", str(tmp_path / "tambo.toml")]
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            cwd=REPOSITORY, pass_fds=[given.fileno()], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if '"listening"' in line or '"error"' in line)
            if name == "a":
                assert '"inherited":true' in said.replace(" ", "")
                with smtplib.SMTP(*given.getsockname()) as smtp:
                    assert smtp.noop()[0] == 250
            else:
                assert "the socket other of the service manager" in said
                assert process.wait(20) == 1
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


# -- interface ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("root")
def test_a_listener_of_an_interface_hears_nothing_else(tmp_path: Path) -> None:
    """Two network namespaces with two cables between them; the listener has the far end of one."""
    names = [f"tambo{os.getpid()}{end}" for end in "ab"]
    near, far = [f"ip -n {name}" for name in names]
    steps = [f"ip netns add {name}" for name in names]
    for cable in (1, 2):
        steps += [f"{near} link add c{cable} type veth peer name c{cable} netns {names[1]}"]
        for number, side in enumerate((near, far), 1):
            steps += [f"{side} address add 10.99.{cable}.{number}/24 dev c{cable}", f"{side} link set c{cable} up"]
    try:
        for step in steps:
            subprocess.run(step.split(), check=True, capture_output=True)
        assert _reached(names, "c1", "10.99.1.2") == "220"
        assert _reached(names, "c1", "10.99.2.2") == "refused"  # our address, but by the other cable
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


SERVE = """
import sys; sys.path.insert(0, sys.argv[1])
from config.settings import ListenerSettings
from relayd.sockets import bind
said = dict(name="a", address="0.0.0.0", port=2587, tls="none", allow_public=True, interface=sys.argv[2])
with bind(ListenerSettings.model_validate(said)) as bound:
    bound.setblocking(True); bound.settimeout(5); bound.listen(); print("listening", flush=True)
    try:
        bound.accept()[0].sendall(b"220")
    except TimeoutError:
        pass
"""
CALL = """
import socket, sys
try:
    print(socket.create_connection((sys.argv[1], 2587), 3).recv(9).decode())
except ConnectionRefusedError:
    print("refused")
"""


def _reached(names: list[str], interface: str, address: str) -> str:
    inside = ["ip", "netns", "exec"]
    serve = [*inside, names[1], sys.executable, "-c", SERVE, str(REPOSITORY), interface]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdout.readline() == "listening\n"
        call = [*inside, names[0], sys.executable, "-c", CALL, address]
        said = subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
        server.kill()
    return said


def test_an_interface_that_is_not_there_is_named() -> None:
    with pytest.raises(OSError, match="listener a cannot listen at 127.0.0.1 port 0 on ipsec0: No such device"):
        bind(one(interface="ipsec0"))


# -- certificates ---------------------------------------------------------------------------------------------------


def signed(directory: Path, name: str, days: float) -> dict[str, object]:
    """A certificate that ends in so many days, as a listener's settings."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=99))
        .not_valid_after(now + datetime.timedelta(days=days)).sign(key, hashes.SHA256())
    )  # fmt: skip
    (directory / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"certificate": str(directory / f"{name}.pem"), "key": str(directory / f"{name}.key")}


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_certificates_are_read_again_and_open_sessions_keep_theirs(tls: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        old = settings(listener={"tls": tls, **signed(tmp_path, "old", 30)})
        new = settings(listener={"tls": tls, **signed(tmp_path, "new", 5)})
        async with listening(settings_=old) as house:

            async def subject() -> str:
                client = await house.connect(tls=tls == "implicit")
                if tls == "starttls":
                    await client.hello()
                    await client.upgrade()
                else:
                    await client.hello()
                shown = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                return x509.load_der_x509_certificate(shown).subject.rfc4514_string()

            assert await subject() == "CN=old"
            assert house.registry.get_sample_value(
                "tambo_certificate_expiry_seconds", {"listener": "a"}
            ) == pytest.approx(30 * 86_400, abs=60)
            house.relayd.check(new)
            with structlog.testing.capture_logs() as logs:
                house.relayd.reload(new)
            assert [each["days"] for each in logs if each["event"] == "certificate expires"] == [
                pytest.approx(5, abs=0.1)
            ]
            assert await subject() == "CN=new"
            assert house.registry.get_sample_value(
                "tambo_certificate_expiry_seconds", {"listener": "a"}
            ) == pytest.approx(5 * 86_400, abs=60)
            assert (await house.clients[0].transaction()).startswith("250 ")  # as if nothing had been

    run(scenario())


@pytest.mark.parametrize("damage", ["gone", "empty", "mixed"])
def test_a_broken_certificate_keeps_what_there_was_and_is_named(damage: str, tmp_path: Path) -> None:
    files = signed(tmp_path, "old", 30)
    listener = one(tls="implicit", **files)
    certificate = Path(str(files["certificate"]))
    if damage == "gone":
        certificate.unlink()
    elif damage == "empty":
        certificate.write_bytes(b"")
    else:
        certificate.write_bytes(Path(str(signed(tmp_path, "new", 30)["certificate"])).read_bytes())
    with pytest.raises((OSError, ValueError), match="old.pem"):
        tls_context(listener)


def test_the_context_refuses_what_is_old(certificate: Certificate) -> None:
    context = tls_context(one(tls="implicit", certificate=str(certificate.certificate), key=str(certificate.key)))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_where_and_how_a_listener_listens_outlives_a_reload(certificate: Certificate) -> None:
    async def scenario() -> None:
        files = {"certificate": str(certificate.certificate), "key": str(certificate.key)}
        async with listening(settings_=settings(listener={"tls": "implicit", **files})) as house:
            house.relayd.reload(settings(listener={"tls": "none", "max_connections": 2}))
            client = await house.connect(tls=True)
            await client.hello()
            assert "AUTH" in await client.ask("EHLO x")
            house.relayd.check(settings(listener={"name": "b"}))
            house.relayd.reload(settings(listener={"name": "b"}, max_connections=9))
            await (await house.connect(tls=True)).hello()
            assert house.relayd.addresses["a"][1] == house.port

    run(scenario())


def test_two_processes_share_a_port() -> None:
    async def scenario() -> None:
        async with listening() as first:
            own = settings(listener={"port": first.port})
            async with listening(settings_=own) as second:
                for _ in range(40):
                    await (await first.connect()).hello()
                assert first.relayd.sessions + second.relayd.sessions == 40
                assert min(first.relayd.sessions, second.relayd.sessions) > 0

    run(scenario())
