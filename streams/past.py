"""What has happened as the queue's own reckonings read it: from the archive, then from the stream."""

from __future__ import annotations

from collections.abc import AsyncIterator

from mailqueue.scripts import Shard
from streams import ids
from streams.archive import Archive
from streams.merged import Tape


class ArchivedPast:
    """A :class:`mailqueue.statement.Past`; without an archive what the stream still has."""

    def __init__(self, archive: Archive | None) -> None:
        self._archive = archive

    async def read(self, shard: Shard, since: str) -> AsyncIterator[tuple[str, bytes]]:
        """Raises QueueDown; SegmentDamaged and OSError where the archive can't be read."""
        tape = Tape(shard, self._archive, ids.text(ids.preceding(ids.parse(since))))
        while entries := await tape.next():
            for entry in entries:
                yield entry
