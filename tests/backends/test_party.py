"""A party takes any message: it does what was asked, or refuses in words, and lives on wherever it still can."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import wire
from backends.api import BackendError, MessageError
from backends.party import OPERATIONS, Role
from tests.backends.test_wire import numbers, values

ROOT = Path(__file__).parents[2]


@pytest.fixture
def client() -> Iterator[socket.socket]:
    """Connected to the client process of the backend `clear`, after its greeting."""
    ours, theirs = socket.socketpair()
    arguments = [str(theirs.fileno()), "client", "backends.clear", "1", "0"]
    command = [sys.executable, "-m", "backends.party", *arguments]
    with ours, subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE) as process:
        theirs.close()
        assert "ready" in wire.receive(ours).header
        yield ours
        ours.close()
        assert process.wait() == 0 and b"Traceback" not in process.stderr.read()


def ask(connection: socket.socket, operation: object, /, **blobs: bytes) -> dict:
    wire.send(connection, wire.Message({"operation": operation}, blobs))
    return wire.receive(connection).header


@pytest.mark.parametrize(
    "frame, reason",
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not a frame of this protocol"),
        (wire.PREFIX.pack(wire.MAGIC, 1 << 31, 0), "exceeds the limits"),
        (wire.PREFIX.pack(wire.MAGIC, 4, 1 << 40), "exceeds the limits"),
        (wire.PREFIX.pack(wire.MAGIC, 4, 0) + b"null", "malformed header"),
        (wire.encode(wire.Message({"operation": "load"}, {"artifact": b"abc"}))[:-1], "closed in the middle"),
        (struct.pack("<I", 7), "closed in the middle"),
    ],
)
def test_what_is_no_message_is_refused_and_ends_the_party(client: socket.socket, frame: bytes, reason: str) -> None:
    client.sendall(frame)
    client.shutdown(socket.SHUT_WR)
    refusal = wire.receive(client).header
    assert refusal["error"] == "MessageError" and reason in refusal["reason"]
    with contextlib.suppress(ConnectionResetError):
        assert wire.receive(client) is None


def test_calls_that_make_no_sense_are_refused_and_the_party_lives(client: socket.socket) -> None:
    for operation, reason in {
        "launch": "unknown operation 'launch'",
        "__init__": "unknown operation '__init__'",
        "load": "malformed arguments of load: 'artifact'",
        "keygen": "malformed arguments of keygen: 'seed'",
        "serialise": "called out of order",
        "decrypt": "called out of order",
    }.items():
        refusal = ask(client, operation)
        assert refusal["error"] == "MessageError" and reason in refusal["reason"]
    refusal = ask(client, "encrypt", images=b"no array")
    assert "malformed arguments of encrypt: malformed array" in refusal["reason"]
    assert "error" not in ask(client, "encrypt", images=wire.array_to_bytes(np.zeros((1, 1, 28, 28), np.float32)))


names = st.sampled_from(["job", "seed", "network", "calibration", "artifact", "model", "message", "images"])
blobs = st.dictionaries(names | st.text(), st.binary(max_size=64) | numbers.map(wire.array_to_bytes), max_size=4)


@pytest.mark.parametrize("role", ["owner", "client", "server"])
@given(st.sampled_from(OPERATIONS) | values, st.dictionaries(names | st.text(), values, max_size=4), blobs)
def test_any_call_is_prepared_or_refused(role: str, operation: object, header: dict, blobs: dict[str, bytes]) -> None:
    """Before the backend sees it; nothing else is raised."""
    try:
        assert callable(Role(role, "backends.clear").call(operation, header, blobs))
    except BackendError as error:
        assert isinstance(error, MessageError) or operation == "explain"
