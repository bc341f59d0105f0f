"""How a message is stored: a fixed header, the envelope as a JSON array, the content compressed.

Layout: version (1 byte) · codec (1) · dictionary id (8, zeros = none) · size of the content, uncompressed (4,
big-endian; its first bit: each recipient has a reverse-path of its own, so a mail transaction takes one) · length of
the envelope (4) · envelope · content. Scripts read the dictionary id and the size in place, so the header never moves.

Where a campaign's or account's mails resemble each other, the first one serves the others as a zstd dictionary:
a personalised copy then costs about what is personal in it. A dictionary is adopted only when it is measured to pay.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import orjson
import zstandard

from mailqueue.message import Envelope, Message

_HEADER = struct.Struct("!BB8sII")
_VERSION = 1
RAW, ZSTD, ZSTD_DICTIONARY = 0, 1, 2
NO_DICTIONARY = b"\0" * 8
LEVEL = 1
DICTIONARY_BYTES = 128 * 1024  # of a first message that are used; more costs set-up time and helps little
PAYS_BELOW = 0.6  # compressed with the dictionary against without
TRIALS = 3  # messages that may show that a dictionary pays; as many in a row that are unlike it end its use
MOST_PAUSE = 1000  # messages of a campaign that are not compared after others were found unlike
UNLIKE = 2.5  # times the share of its content that the dictionary left at adoption
MAX_CONTENT = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Stored:
    value: bytes
    dictionary: bytes = b""  # id, "" = none
    dictionary_bytes: bytes = b""  # what to store under d:<id>, so that a reader can decompress


# What few messages have, under short names in an object behind the row, left out where it is the default.
_RARE = {
    "o": ("origin", "smtp"),
    "d": ("dsn", "mail"),
    "r": ("ret", ""),
    "e": ("envid", ""),
    "n": ("notify", ()),
    "c": ("orcpt", ()),
    "p": ("return_paths", ()),
    "q": ("pays", False),
}


def _rare(envelope: Envelope) -> list[dict[str, Any]]:
    said = {short: value for short, (name, plain) in _RARE.items() if (value := getattr(envelope, name)) != plain}
    return [said] if said else []


def _pack_envelope(envelope: Envelope) -> bytes:
    return orjson.dumps(
        [
            envelope.account,
            envelope.reverse_path,
            envelope.recipients,
            envelope.received_at,
            envelope.expires_at,
            envelope.class_,
            envelope.campaign,
            envelope.pool,
            envelope.unknown,
            envelope.notify_after,
            envelope.body,
            envelope.smtputf8,
            envelope.metadata,
            *_rare(envelope),
        ]
    )


_ROW = (str, str, list, int | float, int | float, str, str, str, str, int | float, str, bool, dict)


def _pack(codec: int, dictionary: bytes, envelope: bytes, content: bytes, size: int) -> bytes:
    return _HEADER.pack(_VERSION, codec, dictionary, size, len(envelope)) + envelope + content


def _apart(stored: Stored) -> Stored:
    """With the mark that tells lua/claim.lua to count each recipient as a transaction."""
    value = bytearray(stored.value)
    value[10] |= 0x80
    return replace(stored, value=bytes(value))


def header(value: bytes) -> tuple[int, bytes]:
    """(codec, dictionary id) of a stored message; ValueError when it is none."""
    if len(value) < _HEADER.size or value[0] != _VERSION:
        raise ValueError("not a stored message, or of an unknown version")
    return value[1], bytes(value[2:10])


def envelope_end(value: bytes) -> int:
    """Where the envelope ends, so how much of a stored message a reader of envelopes needs."""
    header(value)
    return _HEADER.size + int(_HEADER.unpack_from(value)[4])


def unpack_envelope(message_id: str, value: bytes) -> Envelope:
    """The envelope alone, without touching the content. ValueError when it is damaged."""
    header(value)
    length = _HEADER.unpack_from(value)[4]
    row = orjson.loads(value[_HEADER.size : _HEADER.size + length])
    if not isinstance(row, list) or len(row) < len(_ROW) or not all(map(isinstance, row, _ROW)):
        raise ValueError(f"envelope of {message_id} is damaged")
    rare = row[len(_ROW)] if len(row) > len(_ROW) else {}
    if not isinstance(rare, dict):
        raise ValueError(f"envelope of {message_id} is damaged")
    more = {_RARE[short][0]: _as(value, _RARE[short][1], message_id) for short, value in rare.items() if short in _RARE}
    return Envelope(message_id, row[0], row[1], tuple(row[2]), *row[3 : len(_ROW)], **more)


def _as(value: Any, plain: Any, message_id: str) -> Any:
    """A value of the kind that ``plain`` is of; ValueError when it is none."""
    if isinstance(plain, tuple) and isinstance(value, list):
        return tuple(value)
    if not isinstance(value, type(plain)):
        raise ValueError(f"envelope of {message_id} is damaged")
    return value


class _Candidate:
    """What is known of one (account, campaign): a content of it, and whether that pays as a dictionary."""

    __slots__ = ("_compressor", "adopted", "bytes", "id", "pause", "share", "skip", "trials")

    def __init__(self, content: bytes, pause: int = 0) -> None:
        self.bytes = content[:DICTIONARY_BYTES]
        self.id = b""
        self.pause = self.skip = pause  # messages that are not compared, and those left: no likeness was found for long
        self.trials = 0  # while on trial: messages seen; when adopted: unlike ones in a row
        self.adopted = False
        self.share = 0.0  # of a message's size, compressed, when adopted
        self._compressor: zstandard.ZstdCompressor | None = None

    def compress(self, content: bytes) -> bytes:
        if self._compressor is None:  # costs about as much as a message: only when something is compared
            self.id = hashlib.sha256(self.bytes).digest()[:8]
            dictionary = zstandard.ZstdCompressionDict(self.bytes, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            dictionary.precompute_compress(level=LEVEL)
            self._compressor = zstandard.ZstdCompressor(
                level=LEVEL, dict_data=dictionary, write_dict_id=False, write_checksum=True
            )
        return self._compressor.compress(content)


class Encoder:
    """A writer's side: chooses the codec. Keeps at most ``most`` candidates, the least recently used goes."""

    def __init__(self, dictionaries: bool = True, most: int = 256) -> None:
        self._dictionaries = dictionaries
        self._most = most
        self._candidates: OrderedDict[tuple[str, str], _Candidate] = OrderedDict()
        self._plain = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)

    def encode(self, message: Message) -> Stored:
        stored = self._choose(message)
        return _apart(stored) if len(message.envelope.return_paths) > 1 else stored

    def _choose(self, message: Message) -> Stored:
        envelope = _pack_envelope(message.envelope)
        content = message.content
        candidate = self._candidate(message) if self._dictionaries and len(content) > 1024 else None
        if candidate is None:
            return self._without(envelope, self._plain.compress(content), content)
        if candidate.adopted:
            return self._adopted(candidate, message, envelope)
        plain = self._plain.compress(content)
        if candidate.skip:
            candidate.skip -= 1
            if not candidate.skip:
                candidate.bytes = content[:DICTIONARY_BYTES]
        elif candidate.bytes != content[:DICTIONARY_BYTES]:
            candidate.trials += 1
            small = candidate.compress(content)
            if len(small) < PAYS_BELOW * len(plain):
                candidate.adopted, candidate.trials, candidate.share = True, 0, len(small) / len(content)
                return self._with(candidate, envelope, small, len(content))
            if candidate.trials == TRIALS:  # no likeness: compare others, ever more seldom
                self._replace(message, min(2 * candidate.pause + 10, MOST_PAUSE))
        return self._without(envelope, plain, content)

    def _adopted(self, candidate: _Candidate, message: Message, envelope: bytes) -> Stored:
        content = message.content
        small = candidate.compress(content)
        if len(small) <= UNLIKE * candidate.share * len(content) + 64:
            candidate.trials = 0
            return self._with(candidate, envelope, small, len(content))
        candidate.trials += 1
        if candidate.trials >= TRIALS:  # another template is in use now
            self._replace(message)
        plain = self._plain.compress(content)
        if len(small) < len(plain):
            return self._with(candidate, envelope, small, len(content))
        return self._without(envelope, plain, content)

    @staticmethod
    def _with(candidate: _Candidate, envelope: bytes, small: bytes, size: int) -> Stored:
        return Stored(_pack(ZSTD_DICTIONARY, candidate.id, envelope, small, size), candidate.id, candidate.bytes)

    @staticmethod
    def _without(envelope: bytes, plain: bytes, content: bytes) -> Stored:
        if len(plain) < len(content):
            return Stored(_pack(ZSTD, NO_DICTIONARY, envelope, plain, len(content)))
        return Stored(_pack(RAW, NO_DICTIONARY, envelope, content, len(content)))

    def _replace(self, message: Message, pause: int = 0) -> None:
        key = (message.envelope.account, message.envelope.campaign)
        self._candidates[key] = _Candidate(message.content, pause)

    def _candidate(self, message: Message) -> _Candidate | None:
        key = (message.envelope.account, message.envelope.campaign)
        found = self._candidates.get(key)
        if found is not None:
            self._candidates.move_to_end(key)
            return found
        self._candidates[key] = _Candidate(message.content)
        if len(self._candidates) > self._most:
            self._candidates.popitem(last=False)
        return None


def shrink(dictionary: bytes) -> bytes:
    """A dictionary as it lies under d:<id>."""
    return zstandard.ZstdCompressor(level=3).compress(dictionary)


def expand(compressed: bytes) -> bytes:
    """What was compressed without a dictionary. ValueError when it is damaged."""
    return Decoder._decompress(zstandard.ZstdDecompressor(), compressed, MAX_CONTENT)


class Decoder:
    """A reader's side: dictionaries by id, at most ``most`` of them."""

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._by_id: OrderedDict[bytes, zstandard.ZstdDecompressor] = OrderedDict()
        self._plain = zstandard.ZstdDecompressor()

    def lacks(self, value: bytes) -> bytes | None:
        """Id of the dictionary that must be added before ``decode(value)``, or None."""
        codec, dictionary = header(value)
        return dictionary if codec == ZSTD_DICTIONARY and dictionary not in self._by_id else None

    def add(self, dictionary: bytes, stored: bytes) -> None:
        """ValueError when it is not what its id says."""
        data = self._decompress(self._plain, stored, DICTIONARY_BYTES)
        if hashlib.sha256(data).digest()[:8] != dictionary:
            raise ValueError(f"dictionary {dictionary.hex()} is damaged")
        raw = zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        self._by_id[dictionary] = zstandard.ZstdDecompressor(dict_data=raw)
        if len(self._by_id) > self._most:
            self._by_id.popitem(last=False)

    def decode(self, message_id: str, value: bytes) -> Message:
        """ValueError when the bytes are damaged."""
        codec, dictionary = header(value)
        envelope = unpack_envelope(message_id, value)
        body = value[_HEADER.size + _HEADER.unpack_from(value)[4] :]
        if codec == ZSTD_DICTIONARY:
            body = self._decompress(self._by_id[dictionary], body, MAX_CONTENT)
        elif codec == ZSTD:
            body = self._decompress(self._plain, body, MAX_CONTENT)
        elif codec != RAW:
            raise ValueError(f"content of {message_id} is of an unknown codec")
        return Message(envelope, body)

    @staticmethod
    def _decompress(decompressor: zstandard.ZstdDecompressor, body: bytes, most: int) -> bytes:
        try:
            if zstandard.frame_content_size(body) > most:  # it would be allocated, whatever it says
                raise ValueError("content is damaged: impossible size")
            return decompressor.decompress(body, max_output_size=most, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(f"content is damaged: {error}") from error
