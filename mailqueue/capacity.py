"""What a queue of so much mail needs, by the figures of docs/capacity.md. Pure; estimates, to be measured."""

from __future__ import annotations

from dataclasses import dataclass

PER_RECIPIENT, PER_MESSAGE, PER_EVENT = 150, 350, 400  # bytes of memory, measured
WRITTEN = 2200  # bytes of the append-only file from put to delivered, without content
FRESH_FILE = 0.6  # of the memory: a file just rewritten
MARK = 0.85
ARCHIVED = 30  # bytes an event on disk
CPU_SECONDS, SIGNING_SECONDS = 0.0012, 0.00035  # a message of 10 KB
# What is left of content when it is stored: by the first mail of its campaign, as text alone, as what is packed already.
CONTENT = {"alike": 0.012, "text": 0.35, "packed": 0.77}
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Load:
    """``recipients``: the most that wait at once; ``size``: bytes of a message; ``each``: recipients a message;
    ``content``: of :data:`CONTENT`; ``an_hour``: recipients; ``kept``: events in the server."""

    recipients: int
    size: int
    each: int = 1
    content: str = "text"
    an_hour: int = 300_000
    kept: int = 100_000


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes, but for ``cores``. ``maxmemory`` has the mark above the load; ``machine``: with room for a fork; ``disk``: of
    the server, without ``mark``; ``written`` and ``archive``: for all these recipients once."""

    memory: int
    maxmemory: int
    machine: int
    disk: int
    mark: int
    written: int
    archive: int
    cores: float
    bits_a_second: int


def need(load: Load) -> Need:
    messages = -(-load.recipients // load.each)
    stored = int(messages * load.size * CONTENT[load.content])
    memory = PER_RECIPIENT * load.recipients + PER_MESSAGE * messages + stored + PER_EVENT * load.kept
    maxmemory = int(memory / MARK)
    a_second = load.an_hour / 3600
    return Need(
        memory=memory,
        maxmemory=maxmemory,
        machine=int(maxmemory * 1.5),
        disk=int(3 * FRESH_FILE * maxmemory),
        mark=max(1024 * MIB, 2048 * load.recipients),
        written=WRITTEN * load.recipients + stored,
        archive=2 * ARCHIVED * load.recipients,
        cores=a_second * (CPU_SECONDS + SIGNING_SECONDS),
        bits_a_second=int(a_second * load.size * 8),
    )
