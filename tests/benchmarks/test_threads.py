"""Ways in which the threads of a server wait: alone, and beside one process that is always busy.

``python -m pytest -m "" --benchmark-enable -s tests/benchmarks/test_threads.py`` prints a table for each library: the median
of `infer` alone over that of the first way alone, and the median beside the busy process over the way's own alone. Nothing
else may run.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import registry
from bench import process
from bench.machine import available_threads
from bench.session import Place, Session, Work
from models.network import Network
from tests.benchmarks.test_networks import fcnn, images

WAYS: dict[str, dict[str, str]] = {
    "the library's own": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1000, bound": {"GOMP_SPINCOUNT": "1000", "OMP_PROC_BIND": "close", "OMP_PLACES": "cores"},
    "passive, bound": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_PROC_BIND": "close", "OMP_PLACES": "cores"},
    "dynamic": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_DYNAMIC": "TRUE"},
    "chosen": process.WAITING,
}
SAMPLES, AT_LEAST_S, LIMIT_S = 15, 5.0, 3600


@contextlib.contextmanager
def busy() -> Iterator[None]:
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def infer_s(backend: str, network: Network, way: dict[str, str], folder: Path) -> tuple[float, float]:
    """Median seconds alone and beside a busy process."""
    work = Work(registry.backends()[backend], "", network, images(64), threads=available_threads())
    with pytest.MonkeyPatch.context() as patch, Session(work, Place(folder / "log", time.monotonic() + LIMIT_S)) as session:
        patch.setattr(process, "WAITING", way)
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC", "KMP_BLOCKTIME"):
            patch.delenv(name, raising=False)
        session.prepare()
        session.open()
        request = session.request(images(1))

        def median() -> float:
            session.server.call("deserialise", message=request)
            found, end = [], time.monotonic() + AT_LEAST_S
            while len(found) < SAMPLES or time.monotonic() < end:
                session.server.call("deserialise", message=request)
                found.append(session.server.call("infer").header["wall_s"])
            return statistics.median(found)

        alone = median()
        with busy():
            return alone, median()


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("backend", ["openfhe", "ckks"])
def test_waiting(backend: str, benchmark, tmp_path) -> None:
    if not benchmark.enabled:
        pytest.skip("times are wanted")

    def table() -> dict[str, tuple[float, float]]:
        return {name: infer_s(backend, fcnn(9), way, tmp_path) for name, way in WAYS.items()}

    found = benchmark.pedantic(table, rounds=1)
    first = next(iter(found.values()))[0]
    print(f"\n{backend:20} {'alone ms':>9} {'over first':>10} {'beside ms':>10} {'over alone':>10}")
    for name, (alone, beside) in found.items():
        print(f"{name:20} {1e3 * alone:9.1f} {alone / first:10.2f} {1e3 * beside:10.1f} {beside / alone:10.2f}")
    benchmark.extra_info["ways"] = found
