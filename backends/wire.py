"""Messages between the harness and a party: one frame is a JSON object and named binary blobs. No pickle.

::

    "FMB1" | header length (u32) | body length (u64) | header (JSON, UTF-8) | blobs, one after the other

The header's ``blobs`` lists ``[name, length]``; everything is little-endian. Standard library and NumPy only.
"""

from __future__ import annotations

import io
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAGIC = b"FMB1"
PREFIX = struct.Struct("<4sIQ")
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 1 << 33


class WireError(ValueError):
    """A frame that is malformed, truncated or too long."""


@dataclass(frozen=True)
class Message:
    """header: plain JSON values. blobs: bytes by name."""

    header: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


def encode(message: Message) -> bytes:
    sizes = [[name, len(blob)] for name, blob in message.blobs.items()]
    header = json.dumps(message.header | {"blobs": sizes}).encode()
    body = b"".join(message.blobs.values())
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"header of {len(header)} bytes exceeds {MAX_HEADER_BYTES}")
    return PREFIX.pack(MAGIC, len(header), len(body)) + header + body


def lengths(prefix: bytes) -> tuple[int, int]:
    """Header and body length that a prefix announces. Raises WireError before anything is allocated for them."""
    if len(prefix) != PREFIX.size:
        raise WireError("truncated frame: the prefix is incomplete")
    magic, header, body = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise WireError(f"not a frame of this protocol: starts with {magic!r}")
    if header > MAX_HEADER_BYTES or body > MAX_BODY_BYTES:
        raise WireError(f"frame of {header} + {body} bytes exceeds the limits")
    return header, body


def decode(frame: bytes) -> Message:
    """The inverse of `encode`. Raises WireError, and nothing else, for any other bytes."""
    header_bytes, body_bytes = lengths(frame[: PREFIX.size])
    if len(frame) != PREFIX.size + header_bytes + body_bytes:
        raise WireError("truncated frame, or bytes after its end")
    return _parse(frame[PREFIX.size : PREFIX.size + header_bytes], frame[PREFIX.size + header_bytes :])


def _parse(header: bytes, body: bytes) -> Message:
    try:
        values = json.loads(header)
        sizes = [(str(name), int(size)) for name, size in values.pop("blobs")]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise WireError(f"malformed header: {error}") from error
    if any(size < 0 for _, size in sizes) or sum(size for _, size in sizes) != len(body):
        raise WireError("the header's blobs do not add up to the body")
    if len({name for name, _ in sizes}) != len(sizes):
        raise WireError("two blobs have the same name")
    blobs, position = {}, 0
    for name, size in sizes:
        blobs[name] = body[position : position + size]
        position += size
    return Message(values, blobs)


def send(connection: socket.socket, message: Message) -> None:
    connection.sendall(encode(message))


def receive(connection: socket.socket) -> Message | None:
    """The next message, or None when the other side has closed. Raises WireError, and TimeoutError as the socket does."""
    prefix = _exactly(connection, PREFIX.size, optional=True)
    if not prefix:
        return None
    header, body = lengths(prefix)
    return _parse(_exactly(connection, header), _exactly(connection, body))


def _exactly(connection: socket.socket, size: int, optional: bool = False) -> bytes:
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size:
        count = connection.recv_into(view[filled:])
        if count == 0:
            if optional and filled == 0:
                return b""
            raise WireError("the other side closed in the middle of a message")
        filled += count
    return bytes(buffer)


def array_to_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def array_from_bytes(data: bytes) -> np.ndarray:
    """Raises WireError for bytes that are no plain array."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, MemoryError) as error:
        raise WireError(f"malformed array: {error}") from error
