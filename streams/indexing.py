"""Keeping indexes up with their segments, for whoever writes the archive; blocking. An index is never synced: one that a
crash has torn is cut at its last sound block, or made anew."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from streams import index, segment
from streams.index import Covered
from streams.segment import SegmentDamaged, private


class Indexer:
    """Remembers how far it has come, so that a batch that was just written costs no more than itself."""

    def __init__(self) -> None:
        self._covered: dict[Path, tuple[bytes, int, int]] = {}  # segment → tag, offset in it, size of the index

    def catch_up(self, path: Path, most: int = index.MOST_BATCHES) -> bool:
        """The index of the segment at ``path`` covers all its whole batches now, or ``most`` more. False when it did
        before. Raises OSError."""
        with path.open("rb") as file:
            head = segment.read_head(file)
            if head is None:
                return False
            offset, size = self._known(path, head.tag)
            covered, kinds = [], Counter[str]()
            for batch in itertools.islice(segment.passing(file, offset), most):
                try:
                    raw = segment.lines(file, batch)
                except SegmentDamaged:
                    if segment.next_whole(file, batch.end) is None:
                        break  # a torn tail, or it is being written
                    raw = b""
                hashes, found = index.keys_of(raw)
                covered.append(Covered(batch.offset, batch.end, hashes))
                kinds += found
        if covered:
            block = index.block(covered, kinds, offset)
            self._append(path, head.tag, size, block)
            self._covered[path] = head.tag, covered[-1].end, size + len(block)
        return bool(covered)

    def make(self, path: Path) -> None:
        """Anew, whatever is there."""
        index.path_of(path).unlink(missing_ok=True)
        self._covered.pop(path, None)
        self.catch_up(path)

    def _known(self, path: Path, tag: bytes) -> tuple[int, int]:
        """Up to where the segment is covered, and the size of the index up to there; a new index is begun."""
        known, of = self._covered.get(path), index.path_of(path)
        if known is not None and known[0] == tag and of.exists() and of.stat().st_size == known[2]:
            return known[1], known[2]
        offset, size = segment.HEAD_BYTES, len(index.head(tag))
        try:
            with of.open("rb") as file:
                for block in index.blocks(file, tag):
                    offset, size = block.end, block.after
        except FileNotFoundError:
            pass
        if path.stat().st_size < offset:  # the segment's tail was cut
            offset, size = segment.HEAD_BYTES, len(index.head(tag))
        return offset, size

    @staticmethod
    def _append(path: Path, tag: bytes, size: int, block: bytes) -> None:
        head = index.head(tag)
        with open(index.path_of(path), "ab", opener=private) as file:
            if size == len(head):
                file.truncate(0)
                file.write(head)
            else:
                file.truncate(size)
            file.write(block)
