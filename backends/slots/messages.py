"""Requests and responses of the packing engine: a checked header and the library's own ciphertexts, one after another."""

from __future__ import annotations

import struct
import zlib

from backends.api import MessageError

_HEADER = struct.Struct("<4s8sII")  # kind, identity of the keys, images, checksum of the rest
_LENGTH = struct.Struct("<Q")
_KEYS = struct.Struct("<4s8s8s")  # kind, what they are for, their identity; then the checksum of this and of the keys
_CHECKSUM = struct.Struct("<I")
REQUEST, RESPONSE, MODEL, KEYS = b"REQ1", b"RES1", b"MOD1", b"KEY1"
IDENTITY_BYTES = 8


def identified(keys: bytes) -> tuple[bytes, bytes]:
    """The identity that a client puts before its keys, and the keys."""
    return keys[:IDENTITY_BYTES], keys[IDENTITY_BYTES:]


def frame_keys(purpose: bytes, identity: bytes, keys: bytes) -> bytes:
    """purpose: `IDENTITY_BYTES` bytes that tell keys that fit a network from others."""
    header = _KEYS.pack(KEYS, purpose, identity)
    return b"".join((header, _CHECKSUM.pack(zlib.crc32(keys, zlib.crc32(header))), keys))


def parse_keys(purpose: bytes, message: bytes) -> tuple[bytes, bytes]:
    """The identity of the keys, and the keys. Raises MessageError before a library sees a byte."""
    if len(message) < _KEYS.size + _CHECKSUM.size or message[:4] != KEYS:
        raise MessageError("these bytes are no keys of this backend")
    header, keys = message[: _KEYS.size], message[_KEYS.size + _CHECKSUM.size :]
    if (zlib.crc32(keys, zlib.crc32(header)),) != _CHECKSUM.unpack_from(message, _KEYS.size):
        raise MessageError("damaged or truncated keys: the checksum does not match; send them again")
    _, found, identity = _KEYS.unpack(header)
    if found != purpose:
        raise MessageError(
            "these keys were made for another network; make new ones from the client artifact of this one"
        )
    return identity, keys


def frame(kind: bytes, identity: bytes, images: int, parts: list[bytes]) -> bytes:
    body = join(parts)
    return _HEADER.pack(kind, identity, images, zlib.crc32(body)) + body


def parse(kind: bytes, identity: bytes, message: bytes) -> tuple[int, list[bytes]]:
    """Number of images and the serialised ciphertexts. Raises MessageError before a library sees a byte."""
    if len(message) < _HEADER.size:
        raise MessageError("truncated message: shorter than its header")
    found, sender, images, checksum = _HEADER.unpack_from(message)
    if found != kind:
        raise MessageError(f"foreign message: expected {kind.decode()}, got {found!r}")
    if sender != identity:
        raise MessageError("this message belongs to other keys; load the keys of its client first")
    body = memoryview(message)[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise MessageError("damaged or truncated message: the checksum does not match; send it again")
    return images, split(body)


def join(parts: list[bytes]) -> bytes:
    return b"".join(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))


def split(body: bytes | memoryview) -> list[bytes]:
    """The inverse of `join`. Raises MessageError."""
    parts, position = [], 0
    while position < len(body):
        if position + _LENGTH.size > len(body):
            raise MessageError("truncated message")
        (length,) = _LENGTH.unpack_from(body, position)
        position += _LENGTH.size
        if position + length > len(body):
            raise MessageError("truncated message")
        parts.append(bytes(body[position : position + length]))
        position += length
    return parts
