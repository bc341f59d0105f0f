"""The sandbox as a process: ``python -m sandbox --config PATH``. Prints its addresses as JSON, stops on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import orjson
import uvloop

from config.load import ConfigError, load
from config.settings import SandboxSettings
from sandbox.scenario import ScenarioError
from sandbox.scenario import load as load_scenario
from sandbox.server import Sandbox


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sandbox", description="names and mail hosts of a small internet, on loopback"
    )
    parser.add_argument("--config", type=Path, help="the relay's configuration; its [sandbox] table is used")
    parser.add_argument("--dns", metavar="ADDRESS:PORT", help="where names are answered; port 0 = any free one")
    parser.add_argument("--address", help="first address of the mail hosts, for instance 127.0.2.1")
    parser.add_argument("--port", type=int, help="port of the mail hosts; 0 = any free one")
    parser.add_argument("--directory", type=Path, help="for the ledger and stored mail")
    parser.add_argument("--store", action="store_true", help="keep contents in Maildirs")
    parser.add_argument("--scenario", type=Path, metavar="FILE", help="TOML laid over the built-in world")
    parser.add_argument("--control", type=Path, metavar="SOCKET", help="unix socket for JSON-lines commands")
    parser.add_argument("--ready", type=Path, metavar="FILE", help="write the addresses here as well, once listening")
    return parser.parse_args()


def compose(given: argparse.Namespace) -> Sandbox:
    """The sandbox that settings and command line ask for; the command line wins."""
    settings = load(given.config).settings.sandbox if given.config else SandboxSettings()
    options: dict[str, object] = {
        "dns": given.dns,
        "first_address": given.address,
        "port": given.port,
        "store": given.store,
        "control": given.control,
    }
    if given.directory is not None:
        settings = settings.model_copy(update={"directory": str(given.directory)})
    scenario = load_scenario(given.scenario)
    return Sandbox.from_settings(settings, scenario, **{k: v for k, v in options.items() if v is not None})


async def serve(given: argparse.Namespace) -> None:
    """Until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with compose(given) as sandbox:
        said = orjson.dumps(sandbox.endpoints(), option=orjson.OPT_APPEND_NEWLINE)
        if given.ready is not None:
            part = given.ready.with_name(given.ready.name + ".part")
            part.write_bytes(said)
            part.rename(given.ready)  # whoever waits for the file finds it whole
        sys.stdout.write(said.decode())
        sys.stdout.flush()
        await stopped.wait()


def main() -> int:
    given = arguments()
    try:
        uvloop.run(serve(given))
    except (ConfigError, ScenarioError, ValueError, OSError) as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
