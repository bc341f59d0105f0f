"""``relayctl``: the root to which every noun adds its own application."""

from __future__ import annotations

import typer

from relayctl import (
    account,
    archive,
    auth,
    backup,
    config,
    dkim,
    dsn,
    events,
    explain,
    inbound,
    intake,
    queue,
    queue_list,
    queue_verbs,
    quota,
    sandbox,
    streams,
    systemd,
)
from relayctl.alarms import alarms
from relayctl.capacity import capacity
from relayctl.history import history
from relayctl.reload import reload
from relayctl.send_test import send_test
from relayctl.top import top
from relayctl.trace import trace
from relayctl.up import up

app = typer.Typer(
    name="relayctl",
    help="Look after a Tambo relay.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would print local variables, secrets among them
)
config.app.command()(reload)
queue.app.command()(backup.backup)
queue.app.command()(backup.restore)
app.add_typer(config.app, name="config", help="The configuration file and the environment.")
app.add_typer(account.app, name="account", help="Accounts of submitting systems.")
app.add_typer(archive.app, name="archive", help="What has happened, as it lies on disk.")
app.add_typer(auth.app, name="auth", help="Failed authentications.")
app.add_typer(dkim.app, name="dkim", help="Keys that sign mail.")
app.add_typer(dsn.app, name="dsn", help="What became of each recipient, for bounce processors.")
app.add_typer(quota.app, name="quota", help="What accounts may still send, and that it adds up.")
app.add_typer(queue.app, name="queue", help="What is queued, and stopping or holding it.")
app.add_typer(events.app, name="events", help="What became of the mail.")
app.add_typer(inbound.app, name="inbound", help="Mail that came back.")
app.add_typer(intake.app, name="intake", help="Whether new mail is taken.")
app.add_typer(sandbox.app, name="sandbox", help="An internet in a box, to play and to test with.")
app.add_typer(systemd.app, name="systemd", help="What systemd is told.")
app.add_typer(streams.app, name="streams", help="Groups of consumers of the events.")
explain.mount(app, queue.app)
queue_list.mount(queue.app)
queue_verbs.mount(queue.app)
app.command()(alarms)
app.command()(capacity)
app.command()(history)
app.command("send-test")(send_test)
app.command()(top)
app.command()(trace)
app.command()(up)

if __name__ == "__main__":
    app()
