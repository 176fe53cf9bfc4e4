"""Messages between the harness and a party: one frame is a JSON object and named binary blobs. No pickle.

::

    "FMB1" | header length (u32) | body length (u64) | header (JSON, UTF-8) | blobs, one after the other

The header's ``blobs`` lists ``[name, length]``; everything is little-endian. Standard library and NumPy only.

This is how the harness calls a party on the same machine. What a client and a server of one backend say to each other is in
the blobs, which the harness does not look into, and framed by the backend itself: see `backends.frames`.
"""

from __future__ import annotations

import io
import json
import math
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAGIC = b"FMB1"
PREFIX = struct.Struct("<4sIQ")
MAX_HEADER_BYTES = 1 << 20
MAX_BODY_BYTES = 1 << 33
PIECE_BYTES = 1 << 18  # about what a socket holds


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
    prefix = PREFIX.pack(MAGIC, len(header), len(body))
    lengths(prefix)
    return prefix + header + body


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
        sizes = [(name, size) for name, size in values.pop("blobs")]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise WireError(f"malformed header: {error}") from error
    if not all(type(name) is str and type(size) is int for name, size in sizes):
        raise WireError("malformed header: a blob is not [name, length]")
    if any(size < 0 for _, size in sizes) or sum(size for _, size in sizes) != len(body):
        raise WireError("the header's blobs do not add up to the body")
    if len({name for name, _ in sizes}) != len(sizes):
        raise WireError("two blobs have the same name")
    blobs, position = {}, 0
    for name, size in sizes:
        blobs[name] = body[position : position + size]
        position += size
    return Message(values, blobs)


def send(connection: socket.socket, message: Message | bytes) -> None:
    """message: or what `encode` made of it. Raises BrokenPipeError once the other side has closed, also where a library has
    replaced Python's handling of SIGPIPE (Concrete does)."""
    data = message if isinstance(message, bytes) else encode(message)
    connection.sendall(data, getattr(socket, "MSG_NOSIGNAL", 0))


def receive(connection: socket.socket) -> Message | None:
    """The next message, or None when the other side has closed. Raises WireError, and TimeoutError as the socket does."""
    prefix = _exactly(connection, PREFIX.size, optional=True)
    if not prefix:
        return None
    header, body = lengths(prefix)
    return _parse(_exactly(connection, header), _exactly(connection, body))


def _exactly(connection: socket.socket, size: int, optional: bool = False) -> bytes:
    """Memory is taken as bytes arrive: a prefix may announce gigabytes that never come."""
    pieces, missing = [], size
    while missing:
        piece = connection.recv(min(missing, PIECE_BYTES))
        if not piece:
            if optional and missing == size:
                return b""
            raise WireError("the other side closed in the middle of a message")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def array_to_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def array_from_bytes(data: bytes) -> np.ndarray:
    """The array of a ``.npy`` file. Raises WireError for bytes that are no plain array.

    Stricter than `np.load`, which also opens zip archives, and allocates what a header announces before it has looked
    whether the data is there.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise WireError(f"malformed array: format {version}, not (1, 0)")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except WireError:
        raise
    except Exception as error:  # the header is parsed as Python source, which can fail in many ways
        raise WireError(f"malformed array: {error}") from error
    if dtype.hasobject or dtype.itemsize == 0 or any(type(n) is not int or n < 0 for n in shape):
        raise WireError(f"malformed array: {dtype} {shape} is not plain numbers")
    if len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise WireError("malformed array: its length is not that of its shape")
    values = np.frombuffer(data, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if fortran_order else "C").copy()
