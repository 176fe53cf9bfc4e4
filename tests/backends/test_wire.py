"""The message decoder takes any bytes: it returns the message that was encoded, or raises WireError."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import socket
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from backends import wire
from backends.wire import Message, WireError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
messages = st.builds(
    Message,
    st.dictionaries(st.text().filter(lambda name: name != "blobs"), values, max_size=4),
    st.dictionaries(st.text(), st.binary(max_size=200), max_size=4),
)
numbers = arrays.arrays(
    st.sampled_from(["f4", "f8", "i8", "u1", "c16", "?"]).map(np.dtype), arrays.array_shapes(min_dims=0, min_side=0)
)


def frame(header: bytes, body: bytes = b"") -> bytes:
    return wire.PREFIX.pack(wire.MAGIC, len(header), len(body)) + header + body


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@given(messages)
def test_round_trip(message: Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(messages, st.data())
def test_every_truncation_is_refused(message: Message, data: st.DataObject) -> None:
    encoded = wire.encode(message)
    with pytest.raises(WireError):
        wire.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(WireError):
        wire.decode(encoded + b"\0")


def decode_or_refuse(encoded: bytes) -> None:
    """Any other exception fails the test."""
    try:
        decoded = wire.decode(encoded)
    except WireError:
        return
    assert all(isinstance(name, str) and isinstance(blob, bytes) for name, blob in decoded.blobs.items())


@given(
    st.binary()
    | st.binary().map(frame)
    | st.tuples(values, st.binary()).map(lambda v: frame(json.dumps(v[0]).encode(), v[1]))
)
def test_any_bytes_are_decoded_or_refused(encoded: bytes) -> None:
    decode_or_refuse(encoded)


@given(messages, st.data())
def test_any_damage_is_decoded_or_refused(message: Message, data: st.DataObject) -> None:
    damaged = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(damaged))


@pytest.mark.parametrize(
    "blobs",
    [
        '[["a", 4]]',
        '[["a", -1]]',
        '[["a", 1], ["a", 2]]',
        '[["a", Infinity]]',
        '[["a", 3.0]]',
        "[[1, 3]]",
        '["a3"]',
        "3",
    ],
)
def test_blobs_that_are_not_those_of_the_body(blobs: str) -> None:
    with pytest.raises(WireError):
        wire.decode(frame(f'{{"blobs": {blobs}}}'.encode(), b"abc"))


def test_a_deeply_nested_header_is_refused() -> None:
    with pytest.raises(WireError):
        wire.decode(frame(b"[" * 100_000))


@pytest.mark.parametrize("header, body", [(wire.MAX_HEADER_BYTES + 1, 0), (0, wire.MAX_BODY_BYTES + 1)])
def test_lengths_above_the_limits_are_refused_before_they_are_allocated(header: int, body: int) -> None:
    with pytest.raises(WireError, match="exceeds the limits"):
        wire.lengths(wire.PREFIX.pack(wire.MAGIC, header, body))


def test_a_message_above_the_limits_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 10)
    with pytest.raises(WireError, match="exceeds the limits"):
        wire.encode(Message({}, {"keys": bytes(11)}))


def test_over_a_socket() -> None:
    """Longer than the socket's buffer, so it arrives in pieces; then the other side closes between two messages."""
    ours, theirs = socket.socketpair()
    message = Message({"operation": "load"}, {"artifact": bytes(3_000_000)})
    with ours:
        sender = threading.Thread(target=lambda: (wire.send(theirs, message), theirs.close()))
        sender.start()
        assert wire.receive(ours) == message
        assert wire.receive(ours) is None
        sender.join()


def test_a_socket_that_closes_in_the_middle_of_a_message() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(wire.encode(Message({}, {"artifact": b"abc"}))[:-1])
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(WireError, match="closed in the middle"):
            wire.receive(ours)


def test_an_announced_body_takes_no_memory_before_it_arrives() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(wire.PREFIX.pack(wire.MAGIC, 2, 2_000_000_000) + b"{}" + bytes(1000))
        theirs.shutdown(socket.SHUT_WR)
        tracemalloc.start()
        with pytest.raises(WireError, match="closed in the middle"):
            wire.receive(ours)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2_000_000


@given(numbers)
def test_arrays_round_trip(array: np.ndarray) -> None:
    decoded = wire.array_from_bytes(wire.array_to_bytes(array))
    assert decoded.dtype == array.dtype and decoded.flags.writeable
    np.testing.assert_array_equal(decoded, array)


def test_column_major_arrays_round_trip() -> None:
    array = np.arange(6.0).reshape(2, 3).T
    np.testing.assert_array_equal(wire.array_from_bytes(wire.array_to_bytes(array)), array)


@given(numbers, st.data())
def test_damaged_arrays_are_decoded_or_refused(array: np.ndarray, data: st.DataObject) -> None:
    damaged = bytearray(wire.array_to_bytes(array))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        assert isinstance(wire.array_from_bytes(bytes(damaged)), np.ndarray)


def test_nothing_is_unpickled() -> None:
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    for data in (npy(np.array([Bomb()], dtype=object)), pickle.dumps(Bomb())):
        with pytest.raises(WireError):
            wire.array_from_bytes(data)
    with pytest.raises(ValueError):
        wire.array_to_bytes(np.array([Bomb()], dtype=object))


def test_archives_and_announced_terabytes_are_refused() -> None:
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    huge = npy(np.zeros(3)).replace(b"(3,), }          ", b"(300000000000,), ")
    assert b"300000000000" in huge
    for data in (archive.getvalue(), huge):
        with pytest.raises(WireError):
            wire.array_from_bytes(data)
