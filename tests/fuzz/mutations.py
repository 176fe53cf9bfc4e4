"""Damage to messages of `backends.frames`: as a bad line does it, and as whoever frames wrong things rightly does."""

from __future__ import annotations

import struct
import zlib

import numpy as np

CHECKED = 8  # bytes before what the checksum is of
IMAGES, COUNT, LENGTHS = 44, 48, 52  # where they are
EXTREMES = (0, 1, 2, 3, 255, 256, 2**15, 2**16, 2**28 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
EDGE = 600  # bytes at both ends of a part, where libraries keep what says how to read the rest


def damaged(message: bytes, random: np.random.Generator, start: int = 0, end: int | None = None) -> bytes:
    """One to three mutations between two positions, often near them."""
    end = len(message) if end is None else end
    for _ in range(random.integers(1, 4)):
        before = len(message)
        message = _mutated(message, random, start, max(start, min(end, len(message))))
        end += len(message) - before
    return message


def _mutated(message: bytes, random: np.random.Generator, start: int, end: int) -> bytes:
    def position() -> int:
        near = int(random.integers(EDGE))
        return [
            start + int(random.integers(max(1, end - start))),
            min(start + near, max(start, end - 1)),
            max(end - 1 - near, start),
        ][random.integers(3)]

    at, size = position(), int(random.integers(1, 17))
    match random.integers(8):
        case 0 | 1:
            bits = bytes([message[at] ^ 1 << int(random.integers(8))]) if at < len(message) else b"\0"
            return message[:at] + bits + message[at + 1 :]
        case 2:
            return message[:at] + random.bytes(size) + message[at + size :]
        case 3:
            return message[:at] + bytes([int(random.choice([0, 255]))]) * size + message[at + size :]
        case 4:
            number = int(EXTREMES[random.integers(len(EXTREMES))])
            packed = struct.pack("<Q", number) if random.integers(2) else struct.pack("<I", number % 2**32)
            return message[:at] + packed + message[at + len(packed) :]
        case 5:
            return message[:at] + message[min(at + size, end) :]
        case 6:
            return message[:at] + message[at : at + size] + message[at:]
        case _:
            other = position()
            return message[:at] + message[other : other + size] + message[at + size :]


def with_checksum(message: bytes) -> bytes:
    return message[:4] + struct.pack("<I", zlib.crc32(message[CHECKED:])) + message[CHECKED:]


def parts(message: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("<I", message, COUNT)
    lengths, at, found = struct.unpack_from(f"<{count}Q", message, LENGTHS), LENGTHS + 8 * count, []
    for length in lengths:
        found.append(message[at : at + length])
        at += length
    return found


def with_parts(message: bytes, chosen: list[bytes]) -> bytes:
    lengths = struct.pack(f"<{len(chosen)}Q", *map(len, chosen))
    return with_checksum(message[:COUNT] + struct.pack("<I", len(chosen)) + lengths + b"".join(chosen))


def framed(message: bytes, random: np.random.Generator) -> bytes:
    """Wrong, and with a right checksum. Seven times in ten one of its parts is damaged inside, at its own length or not."""
    own = parts(message)
    match random.integers(10):
        case 0:
            return with_checksum(damaged(message, random, CHECKED, LENGTHS + 8 * len(own)))
        case 1:
            images = struct.pack("<I", EXTREMES[random.integers(len(EXTREMES))] % 2**32)
            return with_checksum(message[:IMAGES] + images + message[COUNT:])
        case 2:
            chosen = [own[i] for i in random.integers(len(own), size=random.integers(0, 2 * len(own) + 1))]
            return with_parts(message, chosen)
        case _:
            index = int(random.integers(len(own)))
            part = damaged(own[index], random)
            if random.integers(2):
                part = (part + bytes(len(own[index])))[: len(own[index])]
            return with_parts(message, [*own[:index], part, *own[index + 1 :]])
