"""More processes of the server, for a library that runs on one core: each computes a share of every request."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

from backends.api import BackendError
from backends.slots import messages
from backends.slots.execute import Program
from backends.slots.library import Cipher

PR_SET_PDEATHSIG = 1
INFER = b""


class Worker:
    """A fork of this process, made when keys and weights are loaded, so that it shares their memory.

    It reads the ciphertexts of a request on its own core while the server does, then runs `program` on them.
    """

    def __init__(self, program: Program) -> None:
        self._evaluator = program.evaluator
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_serve, args=(theirs, program), daemon=True)
        process.start()
        theirs.close()

    def read(self, parts: list[bytes]) -> None:
        """parts: the serialised ciphertexts of a request."""
        self._send(messages.join(parts))

    def start(self) -> None:
        self._send(INFER)

    def result(self) -> list[Cipher]:
        """Raises BackendError if the worker died."""
        try:
            parts = messages.split(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise BackendError("a worker process of the server died; its log says why") from error
        return [self._evaluator.deserialise(part) for part in parts]

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError as error:
            raise BackendError("a worker process of the server died; its log says why") from error


def _serve(connection: Connection, program: Program) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # the harness must see the server's socket close when the server ends, so the fork may not hold it
    os.closerange(3, connection.fileno())
    os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 4096)
    evaluator, ciphers = program.evaluator, []
    with contextlib.suppress(EOFError):
        while True:
            message = connection.recv_bytes()
            if message != INFER:
                ciphers = [evaluator.deserialise(part) for part in messages.split(message)]
                continue
            connection.send_bytes(messages.join([evaluator.serialise(cipher) for cipher in program.run(ciphers)]))
