"""``relayctl up``: every role in the foreground, the sandbox in place of the Internet, all on loopback, no root.

Starts queue server, sandbox, relayd, inbound, delivery, maintenance; sends one message through them; waits for SIGINT or
SIGTERM; stops them in :data:`STOPPING`. A second signal kills what still drains, which loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop
from rich.console import Console

from config.load import load
from mailqueue.errors import QueueDown, QueueRefused
from mailqueue.queue import Queue
from relayctl import embedded, paper
from relayctl.children import Child, StartFailed
from relayctl.instance import AlreadyRuns, Instance, locked, prepared
from relayctl.material import write_private
from relayctl.trail import walk
from sandbox.scenario import find
from sandbox.scenario import load as load_scenario

STOPPING = ("relayd", "delivery", "maintenance", "sandbox", "inbound", "queue")
STOP_SECONDS = dict.fromkeys(STOPPING, 30.0) | {"relayd": 60.0, "delivery": 90.0, "queue": 120.0}
MODULES = {"relayd": "relayd", "inbound": "relayd.inbound", "delivery": "delivery", "maintenance": "maintenance"}
READY_SECONDS = 60.0
QUEUE_READY_SECONDS = 600.0  # it reads all of its file first


def up(
    once: Annotated[bool, typer.Option("--once", help="Stop once the message is delivered: exit 0, or 1.")] = False,
    directory: Annotated[Path, typer.Option(help="For queue, logs, certificate and endpoints.json.")] = Path("var"),
    scenario: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="What happens in the sandbox: relayctl sandbox scenario list.")
    ] = "",
) -> None:
    """Run the whole relay in the foreground, with a sandbox; Ctrl-C drains."""
    directory = directory.absolute()
    try:
        plan = find(scenario).absolute() if scenario else None
        load_scenario(plan)  # its faults are told before anything starts
        with locked(directory) as lock, prepared(directory) as instance:
            code = uvloop.run(serve(instance, lock, once, plan))
    except (AlreadyRuns, ValueError, OSError) as error:
        Console(stderr=True, highlight=False).print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


async def serve(instance: Instance, lock: int, once: bool, scenario: Path | None = None) -> int:
    """From the first process to the last one's end; the exit code."""
    console = Console(width=None if os.isatty(1) else 160, highlight=False)
    house = House(instance, lock, console, scenario)
    with signals(house):
        work = asyncio.create_task(house.run(once))
        stop = asyncio.create_task(house.stop.wait())
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        interrupted = not work.done()
        for task in (work, stop):
            task.cancel()
        result = (await asyncio.gather(work, return_exceptions=True))[0]
        await house.end()
    if isinstance(result, (StartFailed, QueueDown, QueueRefused, OSError)):
        console.print(str(result), style="red", markup=False, soft_wrap=True)
        return 1
    if isinstance(result, Exception):
        raise result
    return 0 if result is True or (interrupted and not once) else 1


class House:
    """The processes of one instance."""

    def __init__(self, instance: Instance, lock: int, console: Console, scenario: Path | None = None) -> None:
        self.instance = instance
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self._lock = lock
        self._console = console
        self._scenario = scenario
        self._children: dict[str, Child] = {}

    async def run(self, once: bool) -> bool:
        """True when the message was delivered. Without ``once`` only a dying child ends it, by StartFailed."""
        started = time.monotonic()
        sandbox = await self._start_all()
        endpoints = self.instance.endpoints(sandbox)
        write_private(self.instance.directory / "endpoints.json", orjson.dumps(endpoints, option=orjson.OPT_INDENT_2))
        self._console.print(f"ready after {time.monotonic() - started:.1f} s", style="bold")
        delivered: bool = await self._while_all_live(self._message())
        paper.addresses(self._console, self.instance, sandbox)
        if not once:
            self._console.print("Ctrl-C drains and stops.", style="dim")
            await self._while_all_live(asyncio.Event().wait())
        return delivered

    async def _start_all(self) -> dict[str, Any]:
        """In order; each ready before what needs it. Gives what the sandbox says of itself."""
        instance = self.instance
        said = instance.directory / "sandbox" / "endpoints.json"
        said.unlink(missing_ok=True)
        queue = self._start("queue", *embedded.command(instance.directory / "queue", instance.queue_socket))
        options = ["--store", "--control", str(instance.control_socket), "--ready", str(said)]
        options += ["--scenario", str(self._scenario)] if self._scenario else []
        sandbox = self._start_python("sandbox", "sandbox", *options)
        await queue.ready(partial(embedded.look, instance.queue_socket), QUEUE_READY_SECONDS)
        await sandbox.ready(partial(_there, said), READY_SECONDS)
        for role, module in MODULES.items():
            self._start_python(role, module)
        for role in MODULES:
            await self._children[role].ready(partial(_readyz, instance.ports[role]), READY_SECONDS)
        answer: dict[str, Any] = orjson.loads(said.read_bytes())
        return answer

    def _start_python(self, role: str, module: str, *options: str) -> Child:
        """This very code in this very interpreter, whatever directory we are called from."""
        return self._start(
            role, sys.executable, "-P", "-m", module, "--config", str(self.instance.configuration), *options
        )

    def _start(self, role: str, *words: str) -> Child:
        keep = (self._lock,) if role == "queue" else ()
        child = Child(role, words, self.instance.log(role), environment(), keep)
        self._children[role] = child
        return child

    async def _message(self) -> bool:
        settings = load(self.instance.configuration, {}).settings
        queue = await Queue.open(settings.queue, role="relayctl")
        try:
            steps = [step async for step in walk(self.instance, queue.shards)]
        finally:
            await queue.close()
        paper.trail(self._console, steps)
        return steps[-1].delivered

    async def _while_all_live(self, work: Any) -> Any:
        """The result of ``work``; StartFailed when a child ends before it."""
        task = asyncio.ensure_future(work)
        ends = {asyncio.ensure_future(child.ended.wait()): child for child in self._children.values()}
        try:
            done, _ = await asyncio.wait({task, *ends}, return_when=asyncio.FIRST_COMPLETED)
            for end in done - {task}:
                raise ends[end].death()
            return task.result()
        finally:
            for each in (task, *ends):
                each.cancel()
            await asyncio.gather(task, *ends, return_exceptions=True)

    async def end(self) -> None:
        """Each drained before the next one is asked; the queue server last, and never killed for haste."""
        for role in STOPPING:
            child = self._children.get(role)
            if child is None or child.ended.is_set():
                continue
            hurry = asyncio.Event() if role == "queue" else self.hurry
            started = time.monotonic()
            drained = await child.stop(STOP_SECONDS[role], hurry)
            how = "stopped" if drained else "killed"
            self._console.print(f"{how} {role} ({time.monotonic() - started:.1f} s)", style="dim")


@contextlib.contextmanager
def signals(house: House) -> Iterator[None]:
    """The first one stops, the second one hurries. A terminal that goes away is a signal too."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def on_signal() -> None:
        (house.hurry if house.stop.is_set() else house.stop).set()

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def environment() -> dict[str, str]:
    """For the children: no configuration but the file, no service manager but us."""
    ours = ("TAMBO_", "NOTIFY_SOCKET", "WATCHDOG_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


async def _there(path: Path) -> str:
    return "" if os.access(path, os.R_OK) else "it has not said its addresses"


async def _readyz(port: int) -> str:
    """ "" when the role's status port says it is ready."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
                answer = await reader.read(4096)
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        return str(error) or "no answer"
    head, _, body = answer.partition(b"\r\n\r\n")
    return "" if head.split(b" ")[1:2] == [b"200"] else body.decode(errors="replace")
