"""The frame around artifacts, keys and messages: all of it is under its checksum, and every count is checked."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import frames
from backends.api import MessageError
from backends.frames import KEYS, REQUEST, RESPONSE

PURPOSE, OWNER = bytes(range(16)), bytes(range(16, 32))
bodies = st.lists(st.binary(max_size=40), max_size=4)


def request(parts: list[bytes], images: int = 1) -> bytes:
    return frames.pack(REQUEST, parts, purpose=PURPOSE, keys=OWNER, images=images)


def received(message: bytes, kind: bytes = REQUEST, batch: int = 6) -> frames.Frame:
    return frames.unpack(kind, message, purpose=PURPOSE, keys=OWNER, batch=batch)


def with_checksum(message: bytes) -> bytes:
    return message[:4] + struct.pack("<I", zlib.crc32(message[8:])) + message[8:]


@given(bodies, st.integers(1, 6))
def test_round_trip(parts: list[bytes], images: int) -> None:
    frame = received(request(parts, images))
    assert (frame.images, frame.keys, list(map(bytes, frame.parts))) == (images, OWNER, parts)


def test_every_flipped_bit_is_refused() -> None:
    """The number of images is under the checksum too."""
    message = request([b"first", b"", b"third"], 6)
    for bit in range(8 * len(message)):
        damaged = bytearray(message)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageError):
            received(bytes(damaged))


def test_every_truncation_and_extension_is_refused() -> None:
    message = request([b"first", b"", b"third"])
    for damaged in (*(message[:end] for end in range(len(message))), message + b"\0", message + message):
        with pytest.raises(MessageError):
            received(damaged)


@pytest.mark.parametrize("images, batch", [(0, 1), (2, 1), (268_435_457, 1), (7, 6), (0, 6), (2**32 - 1, 8192)])
@pytest.mark.parametrize("kind", [REQUEST, RESPONSE])
def test_images_are_one_to_the_batch(kind: bytes, images: int, batch: int) -> None:
    message = frames.pack(kind, [b"part"], purpose=PURPOSE, keys=OWNER, images=images)
    with pytest.raises(MessageError, match=f"images here, not {images}$"):
        received(message, kind, batch)


def test_keys_hold_no_images() -> None:
    message = frames.pack(KEYS, [b"part"], purpose=PURPOSE, keys=OWNER, images=1)
    with pytest.raises(MessageError, match="holds no images"):
        received(message, KEYS, batch=0)


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"purpose": bytes(16)}, "made for another network"),
        ({"keys": bytes(16)}, "belongs to other keys"),
    ],
)
def test_messages_of_others_are_refused(values: dict[str, bytes], reason: str) -> None:
    message = frames.pack(REQUEST, [b"part"], images=1, **{"purpose": PURPOSE, "keys": OWNER} | values)
    with pytest.raises(MessageError, match=reason):
        received(message)
    with pytest.raises(MessageError, match="expected a response, received a request"):
        received(message, RESPONSE)


@given(bodies, st.data())
def test_counts_and_lengths_under_a_right_checksum_do_not_run_beyond_the_message(
    parts: list[bytes], data: st.DataObject
) -> None:
    """Whoever frames wrongly has a right checksum: 2^32 parts, parts of 2^64 bytes."""
    message = bytearray(request(parts))
    counts = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 2**31, 2**32 - 1])
    struct.pack_into("<I", message, 48, data.draw(counts))
    for index in range(len(parts)):
        length = data.draw(st.integers(0, 80) | st.sampled_from([2**32, 2**63, 2**64 - 1]) | st.just(len(parts[index])))
        struct.pack_into("<Q", message, 52 + 8 * index, length)
    try:
        frame = received(with_checksum(bytes(message)))
    except MessageError:
        return
    assert sum(map(len, frame.parts)) + 8 * len(frame.parts) == len(message) - 52


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    for candidate in (message, b"FMF1" + message, with_checksum(b"FMF1" + message)):
        with pytest.raises(MessageError):
            received(candidate)
