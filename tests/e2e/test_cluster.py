"""Runs on a Dask cluster: the same records, whatever happens to workers and to whoever asked."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster

from bench.record import records_in
from tests.e2e.command_line import CommandLine, finish, records, wait_for

OPTIONS = ("--task", "digits", "--images", 2, "--threads", 1, "--precision", 0)
LOCAL = ("--cluster", "local")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Of a cluster of two workers that outlives the runs."""
    workers = {"n_workers": 2, "threads_per_worker": 1, "resources": {"trial": 1}, "memory_limit": 0}
    with LocalCluster(**workers, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def parties() -> list[psutil.Process]:
    """Of the workers of `scheduler`, which are descendants of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [process] if "backends.party" in process.cmdline() else []
    return found


def test_records_are_those_of_a_run_here(bench: CommandLine, tmp_path: Path) -> None:
    backends = ("--backend", "clear,fake:crash,fake:error")
    assert bench("run", *backends, *OPTIONS, "--out", tmp_path / "here").returncode == 1
    arguments = ("run", *backends, *OPTIONS, *LOCAL, "--out", tmp_path / "cluster")
    assert bench(*arguments).returncode == 1
    assert bench.processes() == []
    here, there = records(tmp_path / "here"), records(tmp_path / "cluster")
    for name, expected in here.items():
        found = there[name]
        assert (found.key, found.status, found.reason) == (expected.key, expected.status, expected.reason)
        assert (found.outputs, found.machine) == (expected.outputs, expected.machine)
    logs = sorted(path.name for path in (tmp_path / "here" / "logs").iterdir())
    assert sorted(path.name for path in (tmp_path / "cluster" / "logs").iterdir()) == logs

    assert bench(*arguments).returncode == 1  # resumed: only what failed runs again
    again = records(tmp_path / "cluster")
    assert again["clear"] == there["clear"] and again["fake:crash"].key == there["fake:crash"].key


@pytest.mark.slow
def test_the_trial_of_a_lost_worker_is_run_again(bench: CommandLine, tmp_path: Path) -> None:
    arguments = ("--backend", "fake:slow,clear", "--task", "digits", "--images", 60, "--precision", 0)
    run = bench.start("run", *arguments, *LOCAL, "--out", tmp_path)
    bench.party("server", "backends.fake").parent().kill()
    assert finish(run).returncode == 0
    assert {name: record.status for name, record in records(tmp_path).items()} == {"fake:slow": "ok", "clear": "ok"}
    assert bench.processes() == []


@pytest.mark.slow
def test_a_trial_that_loses_every_worker_fails(bench: CommandLine, tmp_path: Path) -> None:
    run = bench.start("run", "--backend", "fake:hang", *OPTIONS, *LOCAL, "--out", tmp_path)
    while run.poll() is None:
        with contextlib.suppress(psutil.Error):
            for process in bench.processes():
                if {"server", "backends.fake"} <= set(process.cmdline()):
                    process.parent().kill()
        time.sleep(0.1)
    assert finish(run).returncode == 1
    record = records(tmp_path)["fake:hang"]
    assert (record.status, record.reason) == ("failed", "every worker that ran it was lost") and record.machine == {}


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_interrupted_and_resumed(bench: CommandLine, scheduler: str, tmp_path: Path, how: signal.Signals) -> None:
    """On workers that go on: the trials of a run that is gone end at once."""
    arguments = ("run", "--task", "digits", "--cluster", scheduler, "--images", 60, "--threads", 1, "--precision", 0)
    run = bench.start(*arguments, "--backend", "clear,fake:slow,fake:hang", "--out", tmp_path)
    wait_for(lambda: len(list(records_in(tmp_path))) == 2)
    run.send_signal(how)
    if how == signal.SIGINT:
        interrupted = finish(run)
        assert interrupted.returncode == 130 and f"--out {tmp_path} to resume" in interrupted.stderr
    else:
        run.communicate()
    wait_for(lambda: not parties())
    before = {path: path.read_bytes() for path in records_in(tmp_path)}

    assert bench(*arguments, "--backend", "clear,fake:slow", "--out", tmp_path).returncode == 0
    assert {path: path.read_bytes() for path in records_in(tmp_path)} == before
    assert "Several workers ran on machine" in (tmp_path / "report.html").read_text()


def test_a_killed_run_takes_its_local_cluster_with_it(bench: CommandLine, tmp_path: Path) -> None:
    run = bench.start("run", "--backend", "fake:hang", *OPTIONS, *LOCAL, "--out", tmp_path)
    bench.party("server", "backends.fake")
    run.kill()
    run.communicate()
    wait_for(lambda: not bench.processes())


def test_workers_that_take_several_trials_at_once_are_refused(bench: CommandLine, tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address=":0") as cluster:
        options = ("--cluster", cluster.scheduler_address, "--out", tmp_path)
        done = bench("run", "--backend", "clear", *OPTIONS, *options)
    assert done.returncode == 1 and "--nthreads 1 --resources trial=1" in done.stderr


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("tcp://127.0.0.1:9", marks=pytest.mark.slow),
        "nonsense://",
        "tcp://no-such-host.invalid:80",
        "tcp://127.0.0.1",
        "tls://127.0.0.1:9",
        "ucx://127.0.0.1:9",
    ],
)
def test_nobody_answers(bench: CommandLine, tmp_path: Path, address: str) -> None:
    done = bench("run", "--backend", "clear", *OPTIONS, "--cluster", address, "--out", tmp_path)
    assert done.returncode == 1 and f"no Dask scheduler with a worker answers at {address}" in done.stderr


def test_who_accepts_and_is_silent_is_given_up(bench: CommandLine, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        done = bench("run", "--backend", "clear", *OPTIONS, "--cluster", address, "--out", tmp_path)
    assert done.returncode == 1 and f"no Dask scheduler with a worker answers at {address}" in done.stderr
