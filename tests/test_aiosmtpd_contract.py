"""What we lean on in aiosmtpd and in asyncio's streams without having been promised it. When one of these fails,
read relayd/listener/ again beside the new source before moving the pin.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from importlib.metadata import version

import uvloop
from aiosmtpd import smtp

from relayd.listener.connection import Connection, Input, mould
from relayd.listener.session import SessionProtocol
from relayd.listener.submission import SubmissionSession
from tests.listening import settings

# Shape of what runs of aiosmtpd's own code in our sessions (indentation and comments do not count).
SHAPES = {
    "__init__": "28a920c990ef96c2",
    "connection_made": "4be0a01b707ca28e",
    "connection_lost": "eb74c257a3dd4798",
    "_cb_client_connected": "62d6f8eceaaacfa9",
    "_create_session": "763fe542c9f3a660",
    "_create_envelope": "07aaf62b1e8d6287",
    "_call_handler_hook": "c10de0f19904cddf",
}


def shape(function: object) -> str:
    lines = (line.strip() for line in inspect.getsource(function).splitlines())  # type: ignore[arg-type]
    return hashlib.sha256("\n".join(line for line in lines if line and line[0] != "#").encode()).hexdigest()[:16]


def test_the_pin() -> None:
    assert version("aiosmtpd") == "1.4.6"


def test_source_shapes() -> None:
    found = {name: shape(vars(smtp.SMTP)[name]) for name in SHAPES}
    assert found == SHAPES


def test_the_attributes_that_sessions_start_from() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        made = mould(object(), settings().relayd, None, loop)
        assert set(made) >= {
            "event_handler", "data_size_limit", "hostname", "tls_context", "loop", "transport", "session", "envelope",
            "_timeout_duration", "_timeout_handle", "_original_transport", "_tls_protocol", "_handler_coroutine",
            "_handle_hooks", "_smtp_methods", "_tls_handshake_okay",
        }  # fmt: skip
        # A copy must not carry the mould's own bound methods, but for the two tables that sessions replace or never read.
        for name, value in made.items():
            bound = [v for v in (value.values() if isinstance(value, dict) else [value]) if inspect.ismethod(v)]
            assert not bound or name in ("_smtp_methods", "_auth_methods", "_client_connected_cb"), name

    uvloop.run(scenario())


def test_every_verb_is_ours() -> None:
    """Nothing of aiosmtpd's own verbs is left to answer without an enhanced code."""
    verbs = {name for name in dir(SubmissionSession) if name.startswith("smtp_")}
    assert verbs >= {name for name in dir(smtp.SMTP) if name.startswith("smtp_")}
    for name in verbs:
        assert getattr(SubmissionSession, name).__module__.startswith("relayd.listener."), name
    for name in ("push", "_handle_client", "eof_received", "_reset_timeout", "_timeout_cb", "_set_post_data_state"):
        assert name in vars(SessionProtocol) | vars(Connection) and hasattr(smtp.SMTP, name)


def test_limits_of_commands_are_each_sessions_own() -> None:
    assert "command_size_limits" in vars(smtp.SMTP)  # the trap is still there
    source = inspect.getsource(SessionProtocol.__init__)
    assert "self.command_size_limits: dict[str, int] = {}" in source


def test_private_names_of_asyncio_streams() -> None:
    async def scenario() -> None:
        reader = asyncio.StreamReader(10, asyncio.get_running_loop())
        for name in Input.__annotations__:
            assert name in vars(reader), name
        for name in ("_wait_for_data", "_maybe_resume_transport"):
            assert inspect.isfunction(getattr(asyncio.StreamReader, name))
        assert list(inspect.signature(asyncio.StreamReader._wait_for_data).parameters) == ["self", "func_name"]  # type: ignore[attr-defined]
        assert isinstance(reader._buffer, bytearray)  # type: ignore[attr-defined]
        assert list(inspect.signature(asyncio.StreamReaderProtocol._replace_writer).parameters) == ["self", "writer"]  # type: ignore[attr-defined]

    uvloop.run(scenario())
