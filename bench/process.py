"""Starts the process of a role, calls it over a socket, and says in words how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from backends import wire
from backends.registry import BackendInfo

ROOT = Path(__file__).parents[1]
# every library's own name for the number of its threads
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")

STATUS_OF_ERROR = {"InsecureError": "insecure", "MemoryError": "oom", "ModuleNotFoundError": "skipped"}


class TrialError(Exception):
    """Ends a trial: `status` as in the record, and the reason."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Party:
    """A context manager around one party process; leaving it kills the process.

    log: receives what the process prints. deadline: on `time.monotonic`. memory_limit_bytes: of its address space.
    """

    def __init__(
        self, role: str, backend: BackendInfo, threads: int, log: Path, deadline: float, memory_limit_bytes: int = 0
    ) -> None:
        self.role, self._deadline, self._log = role, deadline, log
        self._oom_kills = _oom_kills()
        ours, theirs = socket.socketpair()
        self._connection = ours
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        arguments = [str(theirs.fileno()), role, backend.module, str(threads), str(memory_limit_bytes)]
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [backend.python or sys.executable, "-m", "backends.party", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )

    def __enter__(self) -> Party:
        try:
            self._answer()  # the greeting, after its imports
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, operation: str, header: dict[str, Any] | None = None, **blobs: bytes) -> wire.Message:
        """Raises TrialError when the operation fails, the process dies, or the trial's time is over."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead party is explained by `_answer`
            self._connection.settimeout(self._remaining())
            try:
                wire.send(self._connection, wire.Message({"operation": operation} | (header or {}), blobs))
            except TimeoutError:
                raise self._timeout() from None
        return self._answer()

    def _answer(self) -> wire.Message:
        try:
            self._connection.settimeout(self._remaining())
            reply = wire.receive(self._connection)
        except TimeoutError:
            raise self._timeout() from None
        except (ConnectionResetError, wire.WireError):
            reply = None
        if reply is None:
            raise self._died()
        if "error" in reply.header:
            kind, reason = reply.header["error"], reply.header["reason"]
            status = STATUS_OF_ERROR.get(kind, "failed")
            friendly = kind in ("InsecureError", "BackendError", "MessageError")
            raise TrialError(status, f"{self.role}: {reason if friendly else f'{kind}: {reason}'}")
        return reply

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise self._timeout()
        return remaining

    def _timeout(self) -> TrialError:
        return TrialError("timeout", f"the trial's time ran out while the {self.role} was working; raise --timeout")

    def _died(self) -> TrialError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return TrialError("failed", f"the {self.role} closed its connection but did not end")
        if code < 0:
            name = signal.Signals(-code).name
            out_of_memory = _oom_kills() > self._oom_kills or b"bad_alloc" in self._tail()
            hint = " (out of memory)" if out_of_memory else ""
            return TrialError(
                "oom" if out_of_memory else "failed", f"{self.role} killed by signal {-code} ({name}){hint}"
            )
        return TrialError("failed", f"the {self.role} ended with exit code {code}; see {self._log.name}")

    def _tail(self) -> bytes:
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - 4096))
            return file.read()


def _oom_kills() -> int:
    """How often the kernel has killed for memory in this control group."""
    try:
        lines = CGROUP_EVENTS.read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("oom_kill ")))
    except (OSError, StopIteration):
        return 0
