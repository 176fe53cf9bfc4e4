"""One framing for everything that the parties of a backend send each other: artifacts, keys, models, requests, responses.

::

    "FMF1" | checksum (u32) | kind (4 bytes) | purpose (16) | keys (16) | images, parts (u32 each) | lengths (u64) | parts

purpose: identity of the network or parameters that the message is made for; keys: identity of a client's keys; zeros where
there is none. Everything is little-endian. Standard library only.

The checksum is CRC-32 of all that follows it: a library reads only bytes that arrived as they were sent. Against damage and
mix-ups that is enough, and against attackers no digest without a secret would be. It is part of what is timed: a request may
have a gigabyte, which CRC-32 takes at more than 2 GB/s, SHA-256 and BLAKE2 at a half or a fifth of that.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from backends.api import MessageError

Part = TypeVar("Part", bound="bytes | memoryview")
IDENTITY_BYTES = 16
NOBODY = bytes(IDENTITY_BYTES)

_MAGIC = b"FMF1"
_CHECKED = struct.Struct("<4sI")  # magic, checksum
_HEAD = struct.Struct(f"<4s{IDENTITY_BYTES}s{IDENTITY_BYTES}sII")  # kind, purpose, keys, images, number of parts
_START = _CHECKED.size + _HEAD.size

CLIENT, SERVER, KEYS, PUBLIC, MODEL, REQUEST, RESPONSE = b"CLNT", b"SRVR", b"KEYS", b"PUBL", b"MODL", b"RQST", b"RESP"
ROUND = b"ROND"  # a further request of the same job
_SEND = "send it again"
_NAMES = {  # what it is called, and what to do if it arrives damaged
    CLIENT: ("client artifact", "prepare the model again"),
    SERVER: ("server artifact", "prepare the model again"),
    KEYS: ("set of evaluation keys", _SEND),
    PUBLIC: ("public key", _SEND),
    MODEL: ("encrypted model", _SEND),
    REQUEST: ("request", _SEND),
    RESPONSE: ("response", _SEND),
    ROUND: ("request of a further round", _SEND),
}


@dataclass(frozen=True)
class Frame:
    """parts: views of the message, which must stay as it is."""

    keys: bytes
    images: int
    parts: list[memoryview]


def identity(*values: Any) -> bytes:
    """The same for values that print the same."""
    return hashlib.sha256(repr(values).encode()).digest()[:IDENTITY_BYTES]


def pack(
    kind: bytes, parts: Sequence[bytes | memoryview], *, purpose: bytes = NOBODY, keys: bytes = NOBODY, images: int = 0
) -> bytes:
    """images: of a request or response."""
    head = _HEAD.pack(kind, purpose, keys, images, len(parts)) + struct.pack(f"<{len(parts)}Q", *map(len, parts))
    checksum = zlib.crc32(head)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join((_CHECKED.pack(_MAGIC, checksum), head, *parts))


def kind(message: bytes) -> bytes:
    """What a message says that it is; nothing is checked."""
    return bytes(message[_CHECKED.size : _CHECKED.size + 4])


def unpack(
    kind: bytes, message: bytes, *, purpose: bytes | None = None, keys: bytes | None = None, batch: int = 0
) -> Frame:
    """purpose, keys: those that are expected; None: any. batch: the images that a request or response holds at most; it
    holds at least one. Other kinds hold none.

    Raises MessageError for bytes that are damaged, cut short, of another kind, purpose or key, or of a wrong count.
    """
    name, cure = _NAMES[kind]
    if len(message) < _START:
        raise MessageError(f"{len(message)} bytes are no {name}: damaged or cut short; {cure}")
    view = memoryview(message)
    magic, checksum = _CHECKED.unpack_from(view)
    if magic != _MAGIC:
        raise MessageError(f"these bytes are no {name} of this version; {cure}")
    if zlib.crc32(view[_CHECKED.size :]) != checksum:
        raise MessageError(f"damaged or truncated {name}: the checksum does not match; {cure}")
    found, its_purpose, its_keys, images, count = _HEAD.unpack_from(view, _CHECKED.size)
    if found != kind:
        raise MessageError(f"expected a {name}, received a {_NAMES.get(found, ('message of another kind',))[0]}")
    if purpose is not None and its_purpose != purpose:
        raise MessageError(
            f"this {name} was made for another network; load the artifacts of one preparation on both sides"
        )
    if keys is not None and its_keys != keys:
        raise MessageError(f"this {name} belongs to other keys; load the evaluation keys of its client first")
    if not min(batch, 1) <= images <= batch:
        holds = f"{'1 to ' if batch > 1 else ''}{batch} images" if batch else "no images"
        raise MessageError(f"a {name} holds {holds} here, not {images}")
    return Frame(its_keys, images, _parts(view[_START:], count, name))


def _parts(rest: memoryview, count: int, name: str) -> list[memoryview]:
    """`rest`: their lengths and they themselves. Lengths are compared with what is there before any is used."""
    table = 8 * count
    lengths = struct.unpack_from(f"<{count}Q", rest) if table <= len(rest) else ()
    if len(lengths) != count or table + sum(lengths) != len(rest):
        raise MessageError(f"malformed {name}: its parts are not as long as it says")
    parts, position = [], table
    for length in lengths:
        parts.append(rest[position : position + length])
        position += length
    return parts


def exactly(count: int, parts: Sequence[Part], what: str) -> Sequence[Part]:
    """`parts`, if there are as many. what: that they are, for the message. Raises MessageError."""
    if len(parts) != count:
        raise MessageError(f"expected {count} {what}, received {len(parts)}")
    return parts
