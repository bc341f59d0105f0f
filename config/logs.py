"""structlog set-up: JSON lines (or a console) on standard error, for our loggers and the standard library's.

Every line carries time (RFC 3339, UTC), level, role and process id. Values under names of secrets are masked,
tracebacks never show local variables.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson
import structlog

from config.schema import MASK, redact
from config.settings import LogSettings

SECRET_NAMES = frozenset({"password", "password_hash", "passwd", "secret", "token", "authorization", "credentials"})
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# aiosmtpd logs each command at INFO and each lost client at WARNING; asyncio warns of slow callbacks only in debug.
_QUIET = {"mail.log": logging.ERROR, "mail.debug": logging.ERROR, "asyncio": logging.WARNING}

Record = MutableMapping[str, Any]


def configure(log: LogSettings, role: str) -> None:
    """Once in a process, by its composition root, before the first line is logged."""
    level = _LEVELS[log.level]
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        stamp(),
        _identity(role),
        mask_secrets,
    ]
    json = log.format == "json"
    structlog.configure(
        processors=[*shared, *_rendering(json, to_bytes=json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer)
        if json
        else structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _adopt_standard_library(level, shared, json)


def stamp() -> Callable[[object, str, Record], Record]:
    """``timestamp`` as in RFC 3339, UTC, microseconds. What a second's lines share is written once: structlog's own
    stamper takes a third of a line's time."""
    known = (0, "")

    def add(_logger: object, _method: str, record: Record) -> Record:
        nonlocal known
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if second != known[0]:
            known = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        record["timestamp"] = f"{known[1]}.{nanoseconds // 1000:06}Z"
        return record

    return add


def mask_secrets(_logger: object, _method: str, record: Record) -> Record:
    """Values named like secrets become a mask, passwords inside URLs too."""
    for name, value in record.items():
        if name in SECRET_NAMES:
            record[name] = MASK
        elif isinstance(value, str) and "://" in value:
            record[name] = redact(value)
    return record


def _identity(role: str) -> Callable[[object, str, Record], Record]:
    pid = os.getpid()

    def add(_logger: object, _method: str, record: Record) -> Record:
        record.setdefault("role", role)
        record["pid"] = pid
        return record

    return add


def _rendering(json: bool, *, to_bytes: bool) -> list[Any]:
    """Last processors; plain tracebacks, as the richer ones print local variables."""
    if not json:
        return [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            )
        ]
    return [structlog.processors.format_exc_info, _to_bytes if to_bytes else _to_text]


def _to_bytes(_logger: object, _method: str, record: Record) -> bytes:
    return orjson.dumps(record, default=str)


def _to_text(_logger: object, _method: str, record: Record) -> str:
    return orjson.dumps(record, default=str).decode()


def _adopt_standard_library(level: int, shared: list[Any], json: bool) -> None:
    """Lines of libraries in the same form; replaces whatever handlers the root logger had."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(json, to_bytes=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, level))
