"""Runs the command line as a person does, in a process of its own, and finds the processes that it leaves behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench.record import Record, records_in

ROOT = Path(__file__).parents[2]
MARK = "BENCH_TEST_MARK"
PATIENCE_S = 600.0  # of a loaded machine


class CommandLine:
    """``python -m bench`` with an empty user cache and without MedMNIST files, so that no machine's state matters."""

    def __init__(self, home: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._environment = os.environ | {MARK: self._mark, "XDG_CACHE_HOME": str(home), "COLUMNS": "200"}
        self._environment.pop("MEDMNIST_DATA_DIR", None)

    def start(
        self, *arguments: object, python: tuple[str, ...] = (), cwd: Path = ROOT, **environment: str
    ) -> subprocess.Popen[str]:
        """arguments: paths and texts; environment: variables beside the usual ones."""
        return subprocess.Popen(
            [sys.executable, *python, "-m", "bench", *map(str, arguments)],
            cwd=cwd,
            env=self._environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )

    def __call__(
        self, *arguments: object, python: tuple[str, ...] = (), cwd: Path = ROOT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return finish(self.start(*arguments, python=python, cwd=cwd, **environment))

    def processes(self) -> list[psutil.Process]:
        """All living processes that were started by this command line, directly or not."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def party(self, role: str, module: str) -> psutil.Process:
        """Waits for the process of a role."""

        def find() -> psutil.Process | None:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    if {"backends.party", role, module} <= set(process.cmdline()):
                        return process
            return None

        return wait_for(find)


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition: Callable[[], object]) -> object:
    """What `condition` returns, as soon as it is something."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail("waited in vain")


def records(run: Path) -> dict[str, Record]:
    """By backend; every record can be read."""
    loaded = [Record.load(path) for path in records_in(run)]
    assert len({record.trial.backend for record in loaded}) == len(loaded)
    return {record.trial.backend: record for record in loaded}
