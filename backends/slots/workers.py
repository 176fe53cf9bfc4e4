"""All cores for work on independent ciphertexts: forks of this process, each on one core, that write into shared memory.

A fork shares keys, weights and inputs as they are and lasts for one call. No randomness is drawn in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from backends.api import BackendError

PR_SET_PDEATHSIG = 1


def shared_array(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, uint64, that forks of this process write for all."""
    return np.frombuffer(mmap.mmap(-1, max(8, 8 * math.prod(shape))), np.uint64, math.prod(shape)).reshape(shape)


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
    # libraries that have threads would use more than their core; one thread needs no pool, which a fork does not inherit
    with threadpool_limits(1):
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


def _forked(tasks: range, work: Callable[[int], None]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    status = 1
    try:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            # the harness must see the server's socket close when the server ends, so the fork may not hold it
            os.closerange(3, os.sysconf("SC_OPEN_MAX") if 0 < os.sysconf("SC_OPEN_MAX") < 1 << 20 else 4096)
            for task in tasks:
                work(task)
            status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
