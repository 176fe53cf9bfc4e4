"""The environment of a party."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from backends import registry
from bench.process import THREAD_VARIABLES, WAITING, Party


def test_threads_of_a_party_are_as_many_and_wait_as_the_harness_says(tmp_path, monkeypatch) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("this system does not show the environment of a process")
    monkeypatch.setenv("GOMP_SPINCOUNT", "infinity")
    with Party("server", registry.backends()["clear"], 1, tmp_path / "log", time.monotonic() + 60) as party:
        lines = Path(f"/proc/{party.pid}/environ").read_bytes().decode().split("\0")
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    assert environment.items() >= (WAITING | dict.fromkeys(THREAD_VARIABLES, "1")).items()
