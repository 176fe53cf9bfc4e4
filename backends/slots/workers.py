"""All cores for work on independent ciphertexts: forks of this process, each on one core, that write into shared memory.

A fork shares keys, weights and inputs as they are and lasts for one call. No randomness is drawn in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import math
import mmap
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from backends.api import BackendError

PR_SET_PDEATHSIG = 1


def shared_array(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, uint64, that forks of this process write for all."""
    return np.frombuffer(mmap.mmap(-1, max(8, 8 * math.prod(shape))), np.uint64, math.prod(shape)).reshape(shape)


class Turns:
    """A lock between forks: a context manager that one process at a time is in. One that dies in it leaves it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this)

    def __enter__(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def share(count: int, work: Callable[[int], None]) -> None:
    """``work(0)`` … ``work(count − 1)`` over all cores that this process may use; each leaves its result in a
    `shared_array`.

    Raises whatever `work` raises: what failed in a fork is done again here. BackendError if a fork died.
    """
    forks = min(count, cores())
    children: dict[int, range] = {}
    with _one_thread():
        try:
            for core in range(1, forks):
                tasks = range(core, count, forks)
                children[_forked(tasks, work)] = tasks
            for task in range(0, count, max(1, forks)):
                work(task)
        except BaseException:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise
        for pid, tasks in children.items():
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status < 0:
                raise BackendError(f"a worker process of the server died of signal {-status}; its log says more")
            for task in tasks if status else ():
                work(task)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Libraries of this process use the thread that calls them and no other: all cores are taken, and a fork that waits for
    the threads of its parent's pool waits for ever.

    A number of threads would not do: OpenFHE states its own in every parallel region. Regions of no level have one.
    """
    libraries = [ctypes.CDLL(about["filepath"]) for about in threadpool_info() if about["user_api"] == "openmp"]
    levels = [library.omp_get_max_active_levels() for library in libraries]
    try:
        for library in libraries:
            library.omp_set_max_active_levels(0)
        with threadpool_limits(1, "blas"):
            yield
    finally:
        for library, level in zip(libraries, levels):
            library.omp_set_max_active_levels(level)


def _forked(tasks: range, work: Callable[[int], None]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    status = 1
    try:
        with contextlib.suppress(OSError, AttributeError):  # its copy of the server's socket must close with the server
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            for task in tasks:
                work(task)
            status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
