"""How every process starts: arguments, configuration, log, loop; and what comes of it as an exit code.

def main() -> int:
    return run("delivery", "takes due mail to its next hops", serve, (QueueDown, QueueRefused))

async def serve(start: Start) -> None:
    registry = CollectorRegistry()
    reloader = start.reloader(registry)
    ...
    async with start.service(registry, reloader, ready) as service:
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector

from config import logs
from config.addresses import host_and_port
from config.load import ConfigError, Loaded, default_path, load
from config.process import Service
from config.reload import Reloader
from config.settings import Settings

DISTRIBUTION = "tambo"
PORT_STEP = 10  # between the status ports of two instances of one role
MOST_INSTANCES = 1000


@dataclass(frozen=True, slots=True)
class Start:
    """What a composition root is given. ``instance``: 1, 2 … of one role on one host."""

    role: str
    path: Path
    loaded: Loaded
    instance: int = 1

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    def reloader(self, registry: CollectorRegistry) -> Reloader:
        return Reloader(self.path, os.environ, self.loaded, structlog.get_logger(self.role), registry)

    def service(self, registry: CollectorRegistry, reloader: Reloader, ready: Callable[[], Sequence[str]]) -> Service:
        ProcessCollector(registry=registry)  # CPU, memory, descriptors and the time of the start
        address = status_address(getattr(self.settings.metrics, self.role), self.instance)
        return Service(self.role, address, registry, ready, reload=reloader.reload)


Serve = Callable[[Start], Coroutine[Any, Any, None]]


def run(
    role: str,
    purpose: str,
    serve: Serve,
    refusals: tuple[type[Exception], ...],
    arguments: Sequence[str] | None = None,
) -> int:
    """The exit code: 0 drained; 1 something outside did not serve, which ``refusals``, OSError (ssl.SSLError among
    them) and ValueError say; 2 arguments or configuration refused."""
    path, instance = _arguments(role, purpose, arguments)
    try:
        start = Start(role, path, load(path, os.environ), instance)
        status_address(getattr(start.settings.metrics, role), instance)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(start.settings.log, role)
    log = structlog.get_logger(role)
    for warning in start.loaded.warnings:
        log.warning("configuration warning", text=warning)
    expected: tuple[type[Exception], ...] = (*refusals, OSError, ValueError)
    try:
        uvloop.run(serve(start))
    except expected as error:
        log.error(f"{role} cannot run", error=type(error).__name__, text=str(error))
        return 1
    return 0


def status_address(address: str, instance: int) -> str:
    """Where the status port of an instance is: the configured one for the first, each further one ten ports higher;
    "" and port 0 (any free one) stay what they are. ConfigError where there is no such port."""
    if not address or instance == 1:
        return address
    host, port = host_and_port(address)
    if port:
        port += PORT_STEP * (instance - 1)
    if port > 65_535:
        raise ConfigError([f"--instance {instance}: its status port would be {port}; allowed: at most 65535"])
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def version() -> str:
    """Of the installed relay; "unknown" for one that runs from a bare tree."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _arguments(role: str, purpose: str, arguments: Sequence[str] | None) -> tuple[Path, int]:
    parser = argparse.ArgumentParser(prog=role, description=purpose)
    parser.add_argument("--config", type=Path, default=default_path(os.environ), help="TOML file (%(default)s)")
    parser.add_argument(
        "--instance",
        type=_instance,
        default=1,
        metavar="N",
        help=f"1, 2 … of this role on this host: each further one has its status port {PORT_STEP} higher (%(default)s)",
    )
    given = parser.parse_args(arguments)
    return given.config, given.instance


def _instance(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_INSTANCES:
        return int(text)
    raise argparse.ArgumentTypeError(f'"{text}" is no instance; allowed: a whole number from 1 to {MOST_INSTANCES}')
