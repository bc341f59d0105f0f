"""What a listener stands on: its socket, bound here or handed down by the service manager, and its TLS context."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

import structlog
from cryptography import x509

from config.settings import ListenerSettings, refuse_public

EXPIRY_WARNING_SECONDS = 14 * 86_400.0

log = structlog.get_logger()


def bind(listener: ListenerSettings) -> socket.socket:
    """A bound socket that shares its port with the other processes of this listener. ValueError: public address."""
    refuse_public(listener.address, listener.allow_public)
    family = socket.AF_INET6 if ip_address(listener.address).version == 6 else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if listener.interface is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, listener.interface.encode() + b"\0")
        bound.setblocking(False)
        bound.bind((listener.address, listener.port))
    except OSError as error:
        bound.close()
        at = f"{listener.address} port {listener.port}" + (f" on {listener.interface}" if listener.interface else "")
        raise OSError(error.errno, f"listener {listener.name} cannot listen at {at}: {error.strerror}") from None
    return bound


def assign(
    handed: Iterable[tuple[str, socket.socket]], listeners: Sequence[ListenerSettings]
) -> dict[str, socket.socket]:
    """Listener → the socket handed down for it: by its name, else by the address that it is bound to.

    ValueError: a socket that no listener claims, or one that is not what its listener says.
    """
    found: dict[str, socket.socket] = {}
    for name, one in handed:
        address, port = one.getsockname()[:2]
        named = [each for each in listeners if each.name == name]
        listener = next(iter(named or _at(listeners, address, port, _device(one))), None)
        if listener is None:
            known = ", ".join(each.name for each in listeners) or "none"
            raise ValueError(f"the socket {name} of the service manager ({address} port {port}) is no listener's; "
                             f"name it (FileDescriptorName=) like one of: {known}")  # fmt: skip
        if listener.name in found:
            raise ValueError(f"the service manager hands down two sockets for listener {listener.name}")
        _check(listener, one, address, port)
        found[listener.name] = one
    for listener in listeners:
        if found and listener.name not in found:
            log.warning("listener without a socket of the service manager", listener=listener.name,
                        action="relayctl systemd sockets --write")  # fmt: skip
    return found


def _at(listeners: Sequence[ListenerSettings], address: str, port: int, device: str) -> list[ListenerSettings]:
    """Those that are to listen there; one of the socket's own interface first."""
    there = [each for each in listeners if ip_address(each.address) == ip_address(address) and each.port == port]
    return sorted(there, key=lambda each: (each.interface or "") != device)


def _device(one: socket.socket) -> str:
    """The interface that it is bound to; "" = any."""
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode()


def _check(listener: ListenerSettings, one: socket.socket, address: str, port: int) -> None:
    refuse_public(address, listener.allow_public)
    if ip_address(address) != ip_address(listener.address) or listener.port not in (0, port):
        raise ValueError(
            f"the socket of the service manager for listener {listener.name} is bound to {address} port {port}; "
            f"the configuration says {listener.address} port {listener.port}"
        )
    device = _device(one)
    if listener.interface is not None and device != listener.interface:
        raise ValueError(
            f"the socket of the service manager for listener {listener.name} is bound to "
            f"{'interface ' + device if device else 'no interface'}; write BindToDevice={listener.interface}"
        )


def tls_context(listener: ListenerSettings) -> ssl.SSLContext | None:
    """Server context of a listener; OSError or ValueError names the file that does not serve."""
    if listener.tls == "none":
        return None
    assert listener.certificate is not None and listener.key is not None
    for path in (listener.certificate, listener.key):
        with open(path, "rb"):  # the library's own error names no file
            pass
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(listener.certificate, listener.key)
    except ssl.SSLError as error:
        why = error.reason or str(error)
        raise ValueError(f"listener {listener.name}: {listener.certificate} with {listener.key}: {why}") from None
    certificate_ends(listener)
    return context


def certificate_ends(listener: ListenerSettings) -> float:
    """When the first certificate of its chain runs out, Unix seconds; infinity without TLS."""
    if listener.tls == "none":
        return float("inf")
    assert listener.certificate is not None
    with open(listener.certificate, "rb") as file:
        text = file.read()
    try:
        return min(one.not_valid_after_utc.timestamp() for one in x509.load_pem_x509_certificates(text))
    except ValueError as error:
        raise ValueError(f"listener {listener.name}: {listener.certificate}: {error}") from None


def warn_of_expiry(listener: ListenerSettings, ends: float) -> None:
    left = ends - time.time()
    if left < EXPIRY_WARNING_SECONDS:
        log.warning(
            "certificate expires" if left > 0 else "certificate has expired",
            listener=listener.name,
            certificate=listener.certificate,
            days=round(left / 86_400, 1),
        )
