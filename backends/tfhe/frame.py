"""The frame around everything that crosses between client and server.

The library's deserialisers are given only bytes that arrived as they were sent: the frame says what it holds, for
which circuit and under which key, and carries a digest of it. It protects against damage and mix-ups, not attackers.
"""

from __future__ import annotations

import hashlib
import struct

from backends.api import MessageError

IDENTITY_BYTES = 16

_HEAD = struct.Struct(f"<4s4s{IDENTITY_BYTES}s{IDENTITY_BYTES}sI")  # magic, kind, circuit, key, number of parts
_LENGTH = struct.Struct("<Q")
_MAGIC = b"TFH1"
_DIGEST_BYTES = hashlib.sha256().digest_size

KEYS, REQUEST, RESPONSE = b"KEYS", b"RQST", b"RESP"
_NAMES = {KEYS: "evaluation keys", REQUEST: "request", RESPONSE: "response"}


def pack(kind: bytes, circuit: bytes, key: bytes, parts: list[bytes]) -> bytes:
    """circuit, key: identities of `IDENTITY_BYTES` bytes."""
    body = [_HEAD.pack(_MAGIC, kind, circuit, key, len(parts))]
    for part in parts:
        body += (_LENGTH.pack(len(part)), part)
    digest = hashlib.sha256()
    for piece in body:
        digest.update(piece)
    return b"".join((*body, digest.digest()))


def unpack(kind: bytes, circuit: bytes, key: bytes | None, data: bytes) -> tuple[bytes, list[bytes]]:
    """The key's identity and the parts; `key` is the expected identity, None where it is not known yet.

    Raises MessageError for bytes that are damaged, cut short, of another kind, circuit or key.
    """
    name = _NAMES[kind]
    if len(data) < _HEAD.size + _DIGEST_BYTES:
        raise MessageError(f"{len(data)} bytes are no {name}: cut short")
    view = memoryview(data)
    magic, found, its_circuit, its_key, count = _HEAD.unpack_from(view)
    if magic != _MAGIC or found not in _NAMES:
        raise MessageError(f"these bytes are no {name} of this backend")
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != view[-_DIGEST_BYTES:]:
        raise MessageError(f"the {_NAMES[found]} is damaged or cut short; send it again")
    if found != kind:
        raise MessageError(f"expected a {name}, received a {_NAMES[found]}")
    if its_circuit != circuit:
        raise MessageError(f"the {name} belongs to another model; load the artifacts of one preparation on both sides")
    if key is not None and its_key != key:
        raise MessageError(f"the {name} belongs to other keys; send the evaluation keys of this client first")
    parts, at = [], _HEAD.size
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        parts.append(bytes(view[at : at + length]))
        at += length
    return its_key, parts
