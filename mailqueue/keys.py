"""Every key of a shard, as Python spells it (``lua/prelude.lua`` spells the same keys for the scripts).

All keys of a shard begin with its prefix ``{qN}:`` so that a script touches one slot of a Redis Cluster.

=====================  ========  ==================================================================================
key behind the prefix  type      meaning
=====================  ========  ==================================================================================
m:<id>                 string    the message: header, envelope, content (:mod:`mailqueue.content`)
n:<id>                 string    recipients still open, only where there is more than one
x                      zset      message ids by the next time somebody must look: delay notice, then expiry (ms)
s:<item>               string    state after the first failed attempt (JSON)
flow, f:<flow>         hash      "<class>\\n<account>\\n<campaign>\\n<pool>" → flow id; its facts
q:<flow>:<dest>        zset      items (id + 2-byte index) by due time (ms)
r:<lane>:<flow>        zset      destinations by their next time; lane = "<class letter>:<provider group>"
lf:<lane>, v:<lane>    zset,hash flows in turn; virtual times of those outside, ready flows per account
g:<class>              zset      lanes by the next time worth a look
dest, sus              hash      destination → provider group; → "<suspended until> <reason>"
stop                   hash      flow:, account:, campaign:, provider:, source:, route: → "<until or 0> <reason>"
w, dead, w:<epoch>     zset,hash workers by lease expiry; buried ones; a worker's items with claim stamp
workers                hash      epoch → worker's name
hold, poison           hash      held items: class letter, flow, destination, since (ms), who ("" = the relay), why, in
                                 lines; claims that ended without a settle
b:<id>, bd             list,zset records for DSNs; message ids by the time their DSN is due
d:<dict>, dr           str,hash  dictionaries; messages that refer to them
i:<marker>             string    idempotency marker of account, key, reverse-path, recipient
fa:<network>           string    failed authentications of a client network; fu:<user hash>: of a user
fk:<user hash>:<net>   string    the user has succeeded from there lately
put, settled           hash      writer, epoch → "<number> <ms> <answer>" of its last batch
weight                 hash      account number → weight
accounts               hash      name → "<revision> <changed at, ms> <JSON>" (shard 0 alone); also the channel of changes
ac:<token>             string    version that a change of accounts made, so that its repetition changes nothing
meta                   hash      schema, epoch (last one given), stops (version), accounts (version); intake (why no new
                                 mail is taken), intake_since, intake_until (:mod:`mailqueue.intake`); trimmed (id of
                                 the last event that is gone from the stream), restoring (a copy is being put back)
bell                   channel   something is due earlier than known
bag:<account>, bags    hash,set  quota in this shard: funded, returned, lapsed, used (cumulative), period, before,
                                 first (id of the first event that was paid from it), "u:<local day>\\n<origin>" →
                                 recipients used; accounts with a bag
alarms                 hash      name → "<since, ms> <count> <reason>" of the alarms that are on (shard 0 alone)
traces                 hash      who listens to what (:mod:`mailqueue.traces`; shard 0 alone); trace:<token>: channels
processes              hash      who works here (:mod:`mailqueue.processes`; shard 0 alone)
groups, gr:<name>      set, hash groups of consumers; owner, kinds, lease, position per shard (shard 0 alone)
lease:<work>           string    token of the process that does it (:mod:`mailqueue.lease`; shard 0 alone)
archived               hash      shard → stream id up to which its events are in the archive (shard 0 alone)
events:{qN}            stream    the events, field "e"
inbound:{q0}           stream    mail that came back (:mod:`mailqueue.inbound`)
=====================  ========  ==================================================================================

Quotas have a slot of their own, ``{quota}:``

=====================  ========  ==================================================================================
a:<account>, accounts  hash,set  balance, sum of all entries, period; per shard total, begin, returned, lapsed
e:<account>            stream    the entries, field "e" (JSON)
k:<token>              string    a verb's answer, for eight days
rate:<account>         hash      b1, n1 … b3, n3: begin and count of the minute, hour and day
=====================  ========  ==================================================================================
"""

from __future__ import annotations

from zlib import crc32

from mailqueue.message import Envelope

SCHEMA = 1
QUOTA = "{quota}:"
CLASS_LETTER = {"emergency": "e", "transactional": "t", "bulk": "b"}
CLASS_NAME = {letter: name for name, letter in CLASS_LETTER.items()}


def prefix(shard: int) -> str:
    return f"{{q{shard}}}:"


def events(shard: int) -> str:
    return f"events:{{q{shard}}}"


def inbound() -> str:
    return "inbound:{q0}"


def shard_of(name: str, shards: int) -> int:
    """The shard of a message id (or of whatever decides one)."""
    return crc32(name.encode()) % shards if shards > 1 else 0


def flow_name(envelope: Envelope) -> str:
    """Of the flow that a message belongs to; all its items share the class, account, campaign and pool."""
    return f"{CLASS_LETTER[envelope.class_]}\n{envelope.account}\n{envelope.campaign}\n{envelope.pool}"


def lane_name(class_: str, group: str) -> str:
    return f"{CLASS_LETTER[class_]}:{group}"


def item(message_id: str, index: int) -> bytes:
    return message_id.encode("ascii") + index.to_bytes(2, "big")


def item_parts(key: bytes) -> tuple[str, int]:
    return key[:-2].decode("ascii"), int.from_bytes(key[-2:], "big")
