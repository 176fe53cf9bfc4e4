"""Backends with the mistakes that a newcomer's may have become records; and what a party is measured by."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from backends.registry import BackendInfo
from bench import cli, files, record, runner
from bench.process import Party
from bench.record import Record
from tests.bench.test_runner import TRIAL, silent, subject

ODD = BackendInfo("odd", "tests.bench.odd_backend", Path(__file__).parent, "", scheme="test", lowering="float")
Odd = Callable[..., Record]


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Odd:
    """Runs a trial of four images on the odd backend with a mistake."""

    def run(mistake: str, info: BackendInfo = ODD) -> Record:
        monkeypatch.setattr(runner, "resolve", lambda _: (info, mistake))
        trial = msgspec.structs.replace(TRIAL, backend="odd", images=4, timeout_s=120.0, precision=0.0)
        return runner.run(trial, subject(3, 5), tmp_path, silent)

    return run


@pytest.mark.parametrize(
    "mistake, status, reason",
    [
        ("report no JSON", "failed", "owner: TypeError: Object of type int64 is not JSON serializable"),
        ("report of wrong type", "failed", "owner: prepare returned a malformed report: Expected `int`, got `str`"),
        ("no images in a request", "failed", "owner: prepare returned a malformed report: Expected `int` >= 1"),
        ("insecure and silent", "insecure", "the stated level of security is 100 bits; 128 bits are required"),
        ("security as text", "insecure", "the stated level of security is 128 bits"),
        ("message no bytes", "failed", "client: TypeError: "),
        ("logits flat", "wrong", "the client decrypted float64 (10,), not real numbers (2, 5)"),
        ("logits twice", "wrong", "the client decrypted float64 (2, 2, 5), not real numbers (2, 5)"),
        ("logits of fewer images", "wrong", "the client decrypted float64 (1, 5), not real numbers (2, 5)"),
        ("logits complex", "wrong", "the client decrypted complex128 (2, 5), not real numbers (2, 5)"),
        ("exits", "failed", "the server ended with exit code 3 in infer: license expired"),
        ("exits with escapes", "failed", "the server ended with exit code 3 in infer: license \\x1b[2Jexpired"),
        ("refuses with escapes", "failed", "server: \\x1b]0;owned\\x07\\x9b31m bad\\rkey"),
        ("names with escapes", "failed", "the client names a message '\\x1b[31mred': use printable characters"),
        ("none", "ok", ""),
    ],
)
def test_mistakes_of_a_backend_become_a_record(
    odd: Odd, tmp_path: Path, mistake: str, status: str, reason: str
) -> None:
    done = odd(mistake)
    assert done.status == status
    assert done.reason.startswith(reason) and bool(done.reason) == (status != "ok")
    assert Record.load(done.save(tmp_path)) == done


def test_keys_are_counted_by_name(odd: Odd) -> None:
    sizes = odd("none").sizes
    assert (sizes["header_key_bytes"], sizes["self_key_bytes"], sizes["blobs_key_bytes"]) == (1, 2, 0)


def test_children_of_a_party_end_with_it_and_their_work_counts_as_our_own(odd: Odd) -> None:
    def used() -> float:
        return sum(os.times()[:4])

    start = used()
    none = odd("none").status, used() - start
    start = used()
    child = odd("child").status, used() - start
    assert none[0] == child[0] == "ok"
    assert child[1] - none[1] > 1.5  # of two requests and their warm-up, a second each
    assert not [p for p in psutil.process_iter(["cmdline"]) if f"sleep(3600 + {os.getpid()})" in str(p.info["cmdline"])]


def test_escape_sequences_of_a_backend_are_shown_as_text(odd: Odd) -> None:
    assert odd("notes with escapes").notes == {"\\x1b]0;owned\\x07": ["\\x1b[2J", "\\udcff"]}


def test_children_in_sessions_of_their_own_end_with_the_trial(odd: Odd) -> None:
    assert odd("sessions").status == "ok"
    assert not [p for p in psutil.process_iter(["cmdline"]) if f"sleep(3600 + {os.getpid()})" in str(p.info["cmdline"])]


def test_a_backend_whose_interpreter_is_missing_is_skipped(odd: Odd) -> None:
    done = odd("none", dataclasses.replace(ODD, python="/nowhere/python3.12"))
    assert (done.status, done.reason) == ("skipped", "cannot start /nowhere/python3.12: No such file or directory")


def test_a_backend_whose_library_is_missing_is_skipped(odd: Odd) -> None:
    done = odd("none", dataclasses.replace(ODD, module="no_such_library"))
    assert done.status == "skipped" and "No module named 'no_such_library'" in done.reason


# -- what is measured --------------------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_the_stage(odd: Odd) -> None:
    """Memory that a stage allocates and releases counts in that stage alone."""
    released = odd("releases")
    infer, serialise = (released.stage("server", name).peak_rss_bytes for name in ("infer", "serialise"))
    assert 150e6 < infer - serialise < 300e6  # of 200 MB, some of it in pages that were free
    assert "peak_rss" not in released.notes
    assert released.stage("server", "infer").kept_rss_bytes < 50e6
    kept = odd("allocates")
    assert kept.stage("server", "infer").kept_rss_bytes > 150e6
    assert kept.stage("server", "serialise").peak_rss_bytes > 150e6
    assert kept.stage("client", "decrypt").peak_rss_bytes < 150e6


def test_memory_that_a_call_keeps_is_that_of_its_result(odd: Odd) -> None:
    """Keys of 64 MB that the server copies; and ciphertexts, though memory of their size has just become free."""
    stages = odd("large keys and messages").stages
    kept = {(stage.role, stage.name): stage.kept_rss_bytes for stage in stages}
    assert 63e6 < kept["server", "load_keys"] < 66e6
    assert 31e6 < kept["server", "deserialise"] < 34e6
    assert 31e6 < kept["client", "deserialise"] < 34e6
    assert abs(kept["server", "load"]) < 5e6


def test_cpu_time_is_that_of_the_work(odd: Odd) -> None:
    hard, easy = odd("works hard").stage("server", "infer"), odd("none").stage("server", "infer")
    assert min(hard.cpu_s) > 2 * max(easy.cpu_s)
    assert len(hard.wall_s) == len(hard.cpu_s) == 2  # four images, two a request
    assert hard.cold_wall_s and len(hard.warmup_wall_s) == 1


def test_threads_are_set_before_the_party_starts(tmp_path: Path) -> None:
    with Party("server", ODD, 1, tmp_path / "log", time.monotonic() + 60) as party:
        process = psutil.Process(party.pid)
        assert len(process.cpu_affinity()) == 1
        environment = process.environ()
        assert {environment[v] for v in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS")} == {"1"}
    assert not process.is_running()


def test_full_disk_ends_the_run_and_says_how_to_resume_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """While the first record is written; `tests/e2e/test_failures.py` has a disk that is really full."""
    whole = files.replace

    def full(path: Path, content: bytes) -> None:
        if path.parent.name == "records":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, content)

    options = ["--backend", "clear", "--task", "digits", "--images", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench", "run", *options])
    monkeypatch.setattr(record, "replace", full)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "bench: the disk is full; free some space" in error and f"--out {tmp_path} to resume" in error
    assert list((tmp_path / "records").iterdir()) == []
