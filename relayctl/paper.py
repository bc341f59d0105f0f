"""What ``relayctl up`` prints: the trail of its message, the addresses, a line to paste."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from relayctl.instance import RECIPIENT, RETURN_DOMAIN, ROLES, SENDER, USER, Instance
from relayctl.trail import Step


def trail(console: Console, steps: Sequence[Step]) -> None:
    table = Table("ms", "what", "", title="One message", title_justify="left", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    table.columns[2].overflow = "fold"
    for step in sorted(steps, key=lambda step: step.after):  # relayd says 250 after the queue has said received
        colour = "red" if step.failed else "green" if step.delivered else ""
        table.add_row(f"{step.after:.0f}", Text(step.what, style=colour), Text(step.text))
    console.print(table)


def addresses(console: Console, instance: Instance, sandbox: Mapping[str, object]) -> None:
    ports = instance.ports
    rows = {
        "submission": f"127.0.0.1:{ports['submission']}, STARTTLS, authority {instance.certificate}",
        "account": f"{USER}, password {instance.password}, sender {SENDER}",
        "metrics": ", ".join(f"{role} 127.0.0.1:{ports[role]}" for role in ROLES),
        "returned mail": f"127.0.0.1:{ports['returns']}, for signed return paths at {RETURN_DOMAIN}",
        "sandbox": f"DNS {sandbox['dns']}, mail hosts at port {sandbox['port']}, ledger {sandbox['ledger']}",
        "mail": f"{sandbox['mail']}",
        "queue": instance.queue_url,
        "configuration": str(instance.configuration),
        "logs": str(instance.log("relayd").parent),
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(Text(name, style="bold"), Text(text, overflow="fold"))
    console.print()
    console.print(table)
    console.print("\nTry it:", style="bold")
    console.print(Text(swaks(instance)), soft_wrap=True)


def swaks(instance: Instance) -> str:
    """A line for a shell."""
    words = ["swaks", "--server", "127.0.0.1", "--port", str(instance.ports["submission"]), "--tls", "--auth", "PLAIN"]
    words += ["--auth-user", USER, "--auth-password", instance.password, "--from", SENDER, "--to", RECIPIENT]
    return shlex.join(words)
