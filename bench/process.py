"""Starts the process of a role, calls it over a socket, and says in words how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from backends import wire
from backends.registry import BackendInfo
from bench.files import printable
from bench.record import Role, Status

ROOT = Path(__file__).parents[1]
# `python -m MODULE …`, but no folder of the current one is taken for a package of ours that has its name
RUN_MODULE = """
import runpy, sys
sys.path[:] = filter(None, sys.path)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
# every library's own name for the number of its threads
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
# How threads of OpenMP wait for their next region. By default GNU's spin for milliseconds, and beside another busy process
# they take the core from the very thread that they wait for; here they sleep after a short spin. The ways are compared by
# tests/benchmarks/test_threads.py.
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
# kills for memory: of this control group or, outside of one, of the system
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))

STATUS_OF_ERROR: dict[str, Status] = {
    "InsecureError": "insecure",
    "MemoryError": "oom",
    "ModuleNotFoundError": "skipped",
}
FOR_PEOPLE = ("InsecureError", "BackendError", "MessageError")  # their messages need no class name before them
# what C++, Rust, the C library and the dynamic loader say when memory is refused
MEMORY_REFUSED = re.compile(
    r"bad_alloc|memory allocation of \d+ bytes failed|Cannot allocate memory|failed to map segment|\bMemoryError\b"
)

PR_SET_CHILD_SUBREAPER = 36
MARK = "BENCH_PARTY"  # in the environment of a party and of what it starts


class TrialError(Exception):
    """Ends a trial: `status` as in the record, and the reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Party:
    """One party process, ready to be called; as a context manager, leaving it ends the process and its children.

    log: receives what the process prints. deadline: on `time.monotonic`. memory_limit_bytes: of its address space.
    Raises TrialError if the process does not come up.
    """

    def __init__(
        self, role: Role, backend: BackendInfo, threads: int, log: Path, deadline: float, memory_limit_bytes: int = 0
    ) -> None:
        self.role, self._deadline, self._log = role, deadline, log
        self._log_start = log.stat().st_size if log.exists() else 0
        self._oom_kills = _oom_kills()
        self._operation = "start"
        self._connection, theirs = socket.socketpair()
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | WAITING
        self._mark = environment[MARK] = uuid.uuid4().hex
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        arguments = [str(theirs.fileno()), role, backend.module, str(threads), str(memory_limit_bytes)]
        interpreter = backend.python or sys.executable
        _adopt_orphans()
        with theirs, log.open("ab") as output:
            try:
                self._process = subprocess.Popen(
                    [interpreter, "-c", RUN_MODULE, "backends.party", *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    start_new_session=True,  # so that Ctrl-C reaches only the harness, and `close` reaches children
                )
            except OSError as error:
                self._connection.close()
                raise TrialError("skipped", f"cannot start {interpreter}: {error.strerror}") from error
        _alive.add(self)
        try:
            self._answer()  # the greeting, after its imports
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Party:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        _alive.discard(self)
        self._connection.close()
        strays = self.kill()
        self._process.wait()
        # its children are ours since it ended, see `_adopt_orphans`
        while strays:
            for pid in strays:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            strays = self._kill_strays()  # which those have started meanwhile
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self._process.pid, 0)

    def kill(self) -> list[int]:
        """With all that it started, which is returned. A call that waits for the answer raises TrialError."""
        strays = self._kill_strays()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return strays

    def _kill_strays(self) -> list[int]:
        """Its descendants, in whatever session they are (Linux only): as the tree of processes or their mark tells."""
        mark = f"{MARK}={self._mark}".encode()
        own = set(_descendants(self._process.pid)) if self.alive else set()
        strays = [pid for pid in _descendants(os.getpid()) if pid in own or mark in _environment(pid)]
        strays = [pid for pid in strays if pid != self._process.pid]
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return strays

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, operation: str, header: dict[str, Any] | None = None, /, **blobs: bytes) -> wire.Message:
        """Raises TrialError when the operation fails, the process dies, or the trial's time is over."""
        self._operation = operation
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead party is explained by `_answer`
            self._connection.settimeout(self._remaining())
            try:
                wire.send(self._connection, wire.Message({"operation": operation} | (header or {}), blobs))
            except TimeoutError:
                raise self._timeout() from None
            except wire.WireError as error:
                raise TrialError("failed", f"cannot send to the {self.role}: {error}") from error
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
        reply = wire.Message(printable(reply.header), reply.blobs)
        if unprintable := [name for name in reply.blobs if name != printable(name)]:
            raise TrialError("failed", f"the {self.role} names a message {unprintable[0]!a}: use printable characters")
        if "error" in reply.header:
            raise self._failed(reply.header["error"], reply.header["reason"])
        return reply

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise self._timeout()
        return remaining

    def _timeout(self) -> TrialError:
        return TrialError("timeout", f"the trial's time ran out in {self.role}.{self._operation}; raise --timeout")

    def _failed(self, kind: str, reason: str) -> TrialError:
        status = "oom" if MEMORY_REFUSED.search(reason) else STATUS_OF_ERROR.get(kind, "failed")
        return TrialError(status, f"{self.role}: {reason if kind in FOR_PEOPLE else f'{kind}: {reason}'}")

    def _died(self) -> TrialError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return TrialError("failed", f"the {self.role} closed its connection but did not end")
        printed = self._printed()
        if code >= 0:
            last = (printed.strip().splitlines() or [f"see {self._log}"])[-1]
            status: Status = "oom" if MEMORY_REFUSED.search(printed) else "failed"
            return TrialError(status, f"the {self.role} ended with exit code {code} in {self._operation}: {last}")
        name = {number.value: number.name for number in signal.Signals}.get(-code, "of no name")
        killed = f"{self.role} killed by signal {-code} ({name}) in {self._operation}"
        if _oom_kills() > self._oom_kills or MEMORY_REFUSED.search(printed):
            return TrialError("oom", f"{killed}: out of memory")
        return TrialError("failed", killed)

    def _printed(self) -> str:
        """The end of what this process printed."""
        with self._log.open("rb") as file:
            file.seek(max(self._log_start, self._log.stat().st_size - 4096))
            return printable(file.read().decode(errors="replace"))


_alive: set[Party] = set()


def kill_all() -> None:
    """Kills every party of this process, whichever thread waits for it."""
    for party in list(_alive):
        party.kill()


def _adopt_orphans() -> None:
    """Children of a killed party become ours (Linux only), so that their CPU time counts as the trial's own."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _descendants(pid: int) -> list[int]:
    """Parents before their children; none where there is no ``/proc``."""
    found = []
    with contextlib.suppress(OSError):  # the process has ended
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _environment(pid: int) -> list[bytes]:
    """As the process was started; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _oom_kills() -> int:
    """How often the kernel has killed for memory so far; 0 where it does not tell."""
    for counter in OOM_COUNTERS:
        with contextlib.suppress(OSError):
            lines = counter.read_text().splitlines()
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    return 0
