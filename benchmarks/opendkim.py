"""OpenDKIM beside us: as the milter that signs for a Postfix, and as a verifier with a resolver of its own.

The verifier runs in a network and mount namespace in which 127.0.0.1:53 is a DNS server that knows the given records
and nothing else, so that no packet leaves this machine and the host's resolver is left alone. Needs root.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from benchmarks.harness import REPOSITORY, TOOLS, Process

# What its documentation and the field advise for a busy signer: in sign mode alone it asks no DNS, logs nothing, adds
# no field of its own, and is reached over a unix socket. AutoRestart (a parent that watches it) costs nothing a
# message; it is off so that the process measured is the one started.
MILTER = """\
Mode s
Canonicalization relaxed/relaxed
SignatureAlgorithm rsa-sha256
Domain {domain}
Selector {selector}
KeyFile {key}
Socket local:{socket}
UMask 000
InternalHosts 127.0.0.0/8
OversignHeaders From
Background no
AutoRestart no
Syslog no
SyslogSuccess no
LogWhy no
MilterDebug 0
SoftwareHeader no
AlwaysAddARHeader no
RequireSafeKeys no
"""


def hindrance() -> str:
    """Why it cannot run here; "" when it can."""
    if os.geteuid() != 0:
        return "OpenDKIM's namespace needs root"
    if not (TOOLS / "opendkim").exists() or not (TOOLS / "opendkim-testmsg").exists():
        return "no OpenDKIM here: run make tools"
    return ""


class Milter:
    """``with Milter(directory, domain, selector, key) as milter:`` signs what a Postfix with ``milter.settings`` gets.

    ``key``: a PEM file.
    """

    def __init__(self, directory: Path, domain: str, selector: str, key: Path) -> None:
        self.socket = directory / "milter"
        self._configuration = directory / "opendkim.conf"
        self.text = MILTER.format(domain=domain, selector=selector, key=key, socket=self.socket)
        command = [str(TOOLS / "opendkim"), "-f", "-x", str(self._configuration)]
        self.process = Process("opendkim", command, directory / "opendkim.log")
        # tempfail: no mail may pass unsigned when the milter is slow.
        self.settings = {"smtpd_milters": f"unix:{self.socket}", "milter_default_action": "tempfail"}

    def __enter__(self) -> Milter:
        self._configuration.write_text(self.text)
        self.process.start()
        deadline = time.monotonic() + 20
        while not self.socket.exists():
            if not self.process.running or time.monotonic() > deadline:
                raise RuntimeError("OpenDKIM is not up:\n" + self.process.log.read_text()[-2000:])
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.running:
            self.process.stop()

    def tuning(self) -> dict[str, str]:
        """Its version and its settings, without those that are paths."""
        told = subprocess.run([TOOLS / "opendkim", "-V"], capture_output=True, text=True, timeout=30, check=False)
        version, _, _ = (told.stdout + told.stderr).partition("\n")
        rows = (line.partition(" ") for line in self.text.splitlines())
        shown = {name: "local:…" if name == "Socket" else value for name, _, value in rows if name != "KeyFile"}
        return {"version": version, **shown}


def verdicts(directory: Path, messages: Sequence[bytes], records: Mapping[str, Sequence[str]]) -> list[str]:
    """OpenDKIM's verdict on each message, "" when it verifies. ``records``: name → character-strings of a TXT."""
    folder = directory / "verify"
    folder.mkdir()
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (folder / "records.json").write_bytes(orjson.dumps({name: list(parts) for name, parts in records.items()}))
    for number, message in enumerate(messages):
        (folder / f"{number}.eml").write_bytes(message)
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "benchmarks.opendkim_namespace", str(folder)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=900, check=False)
    if ended.returncode:
        raise RuntimeError(ended.stderr.decode("utf-8", "replace")[-2000:])
    found: list[str] = orjson.loads(ended.stdout)
    return found
