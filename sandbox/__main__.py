"""The sandbox as a process: ``python -m sandbox --config PATH``. Prints its addresses as JSON, stops on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
import uvloop

from config.load import ConfigError, load
from config.settings import SandboxSettings, Settings
from sandbox.mailer import Door
from sandbox.scenario import ScenarioError, find
from sandbox.scenario import load as load_scenario
from sandbox.server import Sandbox


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sandbox", description="names and mail hosts of a small internet, on loopback"
    )
    parser.add_argument("--config", type=Path, help="the relay's configuration; its [sandbox] table is used")
    parser.add_argument("--dns", metavar="ADDRESS:PORT", help="where names are answered; port 0 = any free one")
    parser.add_argument("--address", help="first address of the mail hosts, for instance 127.0.2.1")
    parser.add_argument("--port", type=int, help="port of the mail hosts; 0 = any free one")
    parser.add_argument("--directory", type=Path, help="for the ledger and stored mail")
    parser.add_argument("--store", action="store_true", help="keep contents in Maildirs")
    parser.add_argument(
        "--scenario", metavar="NAME|FILE", help="one that is shipped, or TOML laid over the built-in world"
    )
    parser.add_argument("--keys", type=Path, metavar="DIRECTORY", help="DKIM keys whose records are in the DNS")
    parser.add_argument("--returns", metavar="ADDRESS:PORT", help="the relay's listener for returned mail")
    parser.add_argument("--complaints", metavar="ADDRESS", help="the mailbox that feedback loops know")
    parser.add_argument("--control", type=Path, metavar="SOCKET", help="unix socket for JSON-lines commands")
    parser.add_argument("--ready", type=Path, metavar="FILE", help="write the addresses here as well, once listening")
    return parser.parse_args(words)


def compose(given: argparse.Namespace) -> Sandbox:
    """The sandbox that settings and command line ask for; the command line wins."""
    loaded = load(given.config).settings if given.config else None
    settings = loaded.sandbox if loaded else SandboxSettings()
    keys = given.keys or (loaded.signing.directory if loaded else None)
    options: dict[str, object] = {
        "dns": given.dns,
        "first_address": given.address,
        "port": given.port,
        "store": given.store,
        "control": given.control,
        "keys": Path(keys) if keys else None,
        "door": door(given, loaded),
    }
    if given.directory is not None:
        settings = settings.model_copy(update={"directory": str(given.directory)})
    scenario = load_scenario(find(given.scenario) if given.scenario else None)
    return Sandbox.from_settings(settings, scenario, **{k: v for k, v in options.items() if v is not None})


def door(given: argparse.Namespace, loaded: Settings | None) -> Door | None:
    """Where mail goes back to: as the command line says, else the first inbound listener, when it is on loopback."""
    inbound = loaded.inbound.mailboxes if loaded else ()
    complaints = given.complaints or next((box for box in inbound if box.startswith(("fbl@", "abuse@"))), "")
    if given.returns:
        return Door.parse(given.returns, complaints)
    for listener in loaded.relayd.listeners if loaded else ():
        if listener.kind == "inbound" and ipaddress.ip_address(listener.address).is_loopback:
            return Door(listener.address, listener.port, complaints)
    return None


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


def main(words: Sequence[str] | None = None) -> int:
    given = arguments(words)
    try:
        uvloop.run(serve(given))
    except (ConfigError, ScenarioError, ValueError, OSError) as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
