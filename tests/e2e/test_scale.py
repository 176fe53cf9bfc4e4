"""Runs of many trials that fail in every way: what they cost the harness, and what is left when it is killed."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from bench.record import Record, Status, records_in
from tests.e2e.command_line import CommandLine, finish, wait_for

EXPECTED: dict[str, Status] = {
    "clear": "ok",
    "fake": "ok",
    "fake:crash": "failed",
    "fake:error": "failed",
    "fake:insecure": "insecure",
    "fake:nan": "wrong",
    "fake:oom": "oom",
    "fake:slow": "ok",
    "fake:wrong": "wrong",
    "fake:hang": "timeout",
}
TRIALS_OF_A_KILLED_RUN = 5
HANG_S = 4  # of a trial that hangs, starts of its processes included
BLOCK = """
[[trials]]
backend = {backends}
task = "digits"
images = 2
threads = 1
precision = 0.0
seed = {seed}
timeout_s = {timeout}
"""


def suite(path: Path, trials: int, hanging: int) -> Path:
    """A file of so many trials, `hanging` of which never end by themselves."""
    names = [name for name in EXPECTED if name != "fake:hang"]
    blocks = [BLOCK.format(backends=["fake:hang"], seed=seed, timeout=HANG_S) for seed in range(hanging)]
    for seed in range(-(-(trials - hanging) // len(names))):
        some = names[: trials - hanging - seed * len(names)]
        blocks.append(BLOCK.format(backends=some, seed=seed, timeout=300))
    path.write_text("name = 'many'\n" + "".join(blocks))
    return path


def outcomes(run: Path) -> dict[str, tuple[object, ...]]:
    """Of each record what does not depend on time."""
    found = (Record.load(path) for path in records_in(run))
    return {r.key: (r.trial, r.status, r.outputs if r.status != "timeout" else None) for r in found}


class Watched:
    """CPU seconds and, after each finished trial, the resident memory of a process that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.cpu_s, self.resident_bytes = 0.0, []
        self._process, self._of = process, psutil.Process(process.pid)
        self.errors: list[str] = []
        reader = threading.Thread(target=self._read)
        reader.start()
        process.stdout.read()
        process.wait()
        reader.join()

    def _read(self) -> None:
        for line in self._process.stderr:
            self.errors.append(line)
            try:
                times = self._of.cpu_times()
                self.cpu_s = times.user + times.system
                self.resident_bytes.append(self._of.memory_info().rss)
            except psutil.Error:
                return


def watch(bench: CommandLine, folder: Path, trials: int, hanging: int) -> Watched:
    """A run with all outcomes, checked."""
    file = suite(folder / "many.toml", trials, hanging)
    run = bench.start("run", "--suite", file, "--out", folder / "run")
    watched = Watched(run)
    assert run.returncode == 1
    assert len(watched.errors) == trials and "Traceback" not in "".join(watched.errors)
    found = [Record.load(path) for path in records_in(folder / "run")]
    assert len(found) == trials
    for record in found:
        assert record.status == EXPECTED[record.trial.backend], record.reason
    assert len(Counter(record.trial.backend for record in found)) == len(EXPECTED)
    assert bench.processes() == []
    return watched


@pytest.mark.slow
def test_thirty_trials_that_fail_in_every_way(bench: CommandLine, tmp_path: Path) -> None:
    watch(bench, tmp_path, 30, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_hundred_trials_cost_the_harness_little(bench: CommandLine, tmp_path: Path) -> None:
    """CPU time of the harness, in which a loaded machine does not matter much; its memory does not grow."""
    watched = watch(bench, tmp_path, 500, 10)
    assert (watched.cpu_s - start_up_cpu_s(bench, tmp_path)) / 500 < 0.150
    assert max(watched.resident_bytes[450:490]) - max(watched.resident_bytes[40:80]) < 10e6


def start_up_cpu_s(bench: CommandLine, folder: Path) -> float:
    """CPU seconds of the harness for everything but trials: a run whose records are all there."""
    options = ("--backend", "clear", "--task", "digits", "--images", 2, "--out", folder / "one")
    assert bench("run", *options).returncode == 0
    return Watched(bench.start("run", *options)).cpu_s


@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=lambda n: f"{n} times"
)
def test_killed_at_random_moments_and_resumed(bench: CommandLine, tmp_path: Path, kills: int) -> None:
    """Every run is killed or interrupted once, then resumed; its records are those of a run that was left alone."""
    file = suite(tmp_path / "many.toml", TRIALS_OF_A_KILLED_RUN, 0)
    assert bench("run", "--suite", file, "--out", tmp_path / "alone").returncode == 1
    expected, moments = outcomes(tmp_path / "alone"), random.Random(0)
    assert len(expected) == TRIALS_OF_A_KILLED_RUN
    for number in range(kills):
        out = tmp_path / str(number)
        run = bench.start("run", "--suite", file, "--out", out)
        how = (signal.SIGKILL, signal.SIGINT)[number % 2]
        wait_for(out.exists)  # its modules are loaded
        reached = moments.randrange(TRIALS_OF_A_KILLED_RUN)
        while len(list(records_in(out))) < reached and run.poll() is None:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1))
        run.send_signal(how)
        assert finish(run).returncode in (-how, 130, 1)  # 1: it had already ended
        wait_for(lambda: not bench.processes())
        kept = {path: path.stat().st_mtime_ns for path in records_in(out) if Record.load(path).status == "ok"}
        assert bench("run", "--suite", file, "--out", out).returncode == 1
        assert outcomes(out) == expected
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert not list(out.rglob(".*"))
