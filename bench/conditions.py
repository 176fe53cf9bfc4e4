"""How the machine is while a trial runs: its speed at a fixed piece of work, and who else used its cores."""

from __future__ import annotations

import os
import resource
import statistics
import threading
import time
from typing import NamedTuple

import numpy as np
import psutil

from bench.record import Conditions

ROUNDS = 3  # the median of so many, each of about five milliseconds
_LENGTH = 1 << 15  # 64-bit words: 256 kB, in the second-level cache as a ciphertext's polynomial is
_PASSES = 250


def calibrate() -> float:
    """Median seconds of a fixed piece of work: modular products of 64-bit words and a Fourier transform, as in FHE.

    On one thread that is pinned to the first core of this process, where the parties of a trial run, too.
    """
    samples: list[float] = []

    def rounds() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread alone
        for _ in range(1 + ROUNDS):
            start = time.perf_counter_ns()
            _work()
            samples.append((time.perf_counter_ns() - start) / 1e9)

    thread = threading.Thread(target=rounds)
    thread.start()
    thread.join()
    return statistics.median(samples[1:])  # the first one warms up


def _work() -> None:
    words, wave = np.arange(_LENGTH, dtype=np.uint64), np.linspace(0.0, 1.0, _LENGTH)
    for _ in range(_PASSES):
        words = (words * np.uint64(6364136223846793005)) >> np.uint64(3)
    np.fft.rfft(wave)


class Snapshot(NamedTuple):
    """Counters at one moment, from which `between` makes what a record keeps."""

    calibration_s: float
    at: float
    machine: tuple[float, float, float] | None
    own_cpu_s: float
    load: float | None
    cpu_mhz: float | None


def snapshot() -> Snapshot:
    return Snapshot(calibrate(), time.monotonic(), _machine_cpu_s(), _own_cpu_s(), _load(), _cpu_mhz())


def between(before: Snapshot, after: Snapshot) -> Conditions:
    """The conditions of a trial, after all its processes have ended: only then their CPU time is known."""
    other_cores = steal_share = None
    if before.machine and after.machine:
        busy, stolen, all_ = (b - a for a, b in zip(before.machine, after.machine))
        own = after.own_cpu_s - before.own_cpu_s
        other_cores = max(0.0, busy - own) / max(after.at - before.at, 1e-9)
        steal_share = stolen / all_ if all_ > 0 else 0.0
    return Conditions(
        calibration_before_s=before.calibration_s,
        calibration_after_s=after.calibration_s,
        other_cores=other_cores,
        steal_share=steal_share,
        load_before=before.load,
        load_after=after.load,
        cpu_mhz_before=before.cpu_mhz,
        cpu_mhz_after=after.cpu_mhz,
    )


def _machine_cpu_s() -> tuple[float, float, float] | None:
    """CPU seconds of all cores since boot: busy, given to other virtual machines, all; None where they do not count."""
    times = psutil.cpu_times()
    stolen, waiting = (getattr(times, name, 0.0) for name in ("steal", "iowait"))
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return (busy, stolen, busy + stolen + times.idle + waiting) if times.idle else None


def _own_cpu_s() -> float:
    """Of this process and of all children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _cpu_mhz() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return frequency.current if frequency else None
