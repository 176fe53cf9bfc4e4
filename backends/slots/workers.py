"""More processes of the server, for a library that runs on one core: each computes a share of every request."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import traceback
from multiprocessing.connection import Connection

from backends import frames
from backends.api import BackendError, MessageError
from backends.slots.execute import Program
from backends.slots.library import Cipher

PR_SET_PDEATHSIG = 1
INFER, FAILED = b"", b""  # in the two directions; no message of `frames` is empty


class Worker:
    """A fork of this process, made when keys and weights are loaded, so that it shares their memory.

    It reads the ciphertexts of a request on its own core while the server does, then runs `program` on them.
    """

    def __init__(self, program: Program) -> None:
        self._evaluator, self._busy = program.evaluator, False
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_serve, args=(theirs, program), daemon=True)
        process.start()
        theirs.close()

    def read(self, request: bytes) -> None:
        """request: as the client sent it."""
        if self._busy:  # with an earlier request, on which the server itself failed
            self.result()
        self._send(request)

    def start(self) -> None:
        self._send(INFER)
        self._busy = True

    def result(self) -> list[Cipher]:
        """Raises BackendError if the worker failed or died."""
        self._busy = False
        try:
            reply = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise BackendError("a worker process of the server died; its log says why") from error
        if reply == FAILED:
            raise BackendError("a worker process of the server failed; its log says why")
        return [self._evaluator.deserialise(part) for part in frames.unpack(frames.RESPONSE, reply, batch=1).parts]

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
                with contextlib.suppress(MessageError):  # the server reads the same bytes, and refuses them in words
                    parts = frames.unpack(frames.REQUEST, message, batch=program.plan.batch).parts
                    ciphers = [evaluator.deserialise(part, 0) for part in parts]
                continue
            try:
                reply = frames.pack(frames.RESPONSE, [evaluator.serialise(c) for c in program.run(ciphers)], images=1)
            except Exception:
                traceback.print_exc()
                reply = FAILED
            connection.send_bytes(reply)
