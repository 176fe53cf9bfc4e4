"""Whatever a party does, there is a record that says so, the other trials go on, and no process remains."""

from __future__ import annotations

import csv
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.record import Record
from tests.e2e.command_line import CommandLine, finish, records, wait_for

FAULTS = {
    "fake": ("ok", ""),
    "fake:slow": ("ok", ""),
    "fake:crash": ("failed", "server killed by signal 11 (SIGSEGV) in infer"),
    "fake:hang": ("timeout", "the trial's time ran out in "),
    "fake:oom": ("oom", "server: MemoryError: "),
    "fake:error": ("failed", "server: RuntimeError: the library failed"),
    "fake:wrong": ("wrong", "3 of 3 predictions differ from those of the lowered network in the clear"),
    "fake:nan": ("wrong", "the decrypted logits of image 0 are not finite"),
    "fake:insecure": ("insecure", "owner: ring dimension 1024 with log2(QP) = 200 is below 128 bits"),
    "clear": ("ok", ""),
}
QUICK = ("--task", "digits", "--precision", 0)  # no more requests than images
SUITE = """
name = "faults"

[[trials]]
backend = [{others}]
task = "digits"
images = 3
precision = 0.0

[[trials]]
backend = "fake:hang"
task = "digits"
images = 3
precision = 0.0
timeout_s = 8
"""


@pytest.fixture(scope="module")
def faults(bench: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with every fault, made by a suite file."""
    folder = tmp_path_factory.mktemp("faults")
    others = ", ".join(f'"{name}"' for name in FAULTS if name != "fake:hang")
    (folder / "faults.toml").write_text(SUITE.format(others=others))
    done = bench("run", "--suite", folder / "faults.toml", "--out", folder / "run")
    assert done.returncode == 1
    assert bench.processes() == []
    return folder / "run"


@pytest.mark.parametrize("backend", FAULTS)
def test_status_and_reason(faults: Path, backend: str) -> None:
    status, reason = FAULTS[backend]
    record = records(faults)[backend]
    assert record.status == status
    assert record.reason.startswith(reason) and bool(record.reason) == (status != "ok")


def test_a_failed_trial_keeps_what_was_measured(faults: Path) -> None:
    crashed = records(faults)["fake:crash"]
    assert {(s.role, s.name) for s in crashed.stages} >= {
        ("owner", "prepare"),
        ("client", "keygen"),
        ("client", "encrypt"),
    }
    assert crashed.sizes["server_artifact_bytes"] > 0 and crashed.outputs.encrypted_logits == []


def test_report_has_a_row_for_every_trial(faults: Path) -> None:
    with (faults / "results.csv").open() as file:
        rows = {row["backend"]: row for row in csv.DictReader(file)}
    assert {backend: row["status"] for backend, row in rows.items()} == {b: status for b, (status, _) in FAULTS.items()}
    assert "SIGSEGV" in (faults / "results.md").read_text()


def test_memory_limit(bench: CommandLine, tmp_path: Path) -> None:
    """The same trial with too little memory and with enough of it; its earlier failure is replaced."""
    arguments = ("run", "--backend", "fake:greedy", *QUICK, "--images", 2, "--threads", 1, "--out", tmp_path)
    assert bench(*arguments, "--memory-limit", 4).returncode == 1
    assert records(tmp_path)["fake:greedy"].status == "oom"
    assert bench(*arguments, "--memory-limit", 0.001).returncode == 1
    least = records(tmp_path)["fake:greedy"]
    assert least.status == "oom" and least.reason.endswith("GiB of address space; raise --memory-limit")
    assert bench(*arguments).returncode == 0
    assert records(tmp_path)["fake:greedy"].status == "ok"


def test_server_killed_in_the_middle_of_a_trial(bench: CommandLine, tmp_path: Path) -> None:
    run = bench.start("run", "--backend", "fake:slow,clear", *QUICK, "--images", 200, "--out", tmp_path)
    bench.party("server", "backends.fake").kill()
    assert finish(run).returncode == 1
    found = records(tmp_path)
    assert found["fake:slow"].status == "failed" and "server killed by signal 9 (SIGKILL)" in found["fake:slow"].reason
    assert found["clear"].status == "ok"
    assert bench.processes() == []


def test_interrupted_and_resumed(bench: CommandLine, tmp_path: Path) -> None:
    options = (*QUICK, "--images", 60, "--order", 1)  # an order that begins with the clear backend
    arguments = ("run", "--backend", "clear,fake:slow", *options, "--out", tmp_path)
    run = bench.start(*arguments)
    bench.party("server", "backends.fake")
    run.send_signal(signal.SIGINT)
    interrupted = finish(run)
    assert interrupted.returncode == 130 and f"--out {tmp_path} to resume" in interrupted.stderr
    assert bench.processes() == []
    [first] = (tmp_path / "records").iterdir()  # no half-written file either
    before = first.stat().st_mtime_ns, first.read_bytes()
    assert Record.load(first).trial.backend == "clear"

    assert bench(*arguments).returncode == 0
    assert {backend: record.status for backend, record in records(tmp_path).items()} == {
        "clear": "ok",
        "fake:slow": "ok",
    }
    assert (first.stat().st_mtime_ns, first.read_bytes()) == before


def test_no_party_survives_a_killed_harness(bench: CommandLine, tmp_path: Path) -> None:
    run = bench.start("run", "--backend", "fake:hang", "--task", "digits", "--out", tmp_path)
    bench.party("server", "backends.fake")
    run.kill()
    run.communicate()
    wait_for(lambda: not bench.processes())
    assert list((tmp_path / "records").iterdir()) == []


def test_a_failed_trial_is_run_again_and_a_damaged_record_is_made_again(bench: CommandLine, tmp_path: Path) -> None:
    arguments = ("run", "--backend", "clear,fake:error", *QUICK, "--images", 2, "--out", tmp_path)
    assert bench(*arguments).returncode == 1
    before = records(tmp_path)
    clear = tmp_path / "records" / f"{before['clear'].key}.json"
    clear.write_text(clear.read_text()[:100])
    assert bench(*arguments).returncode == 1
    after = records(tmp_path)
    assert after["clear"].status == "ok" and after["fake:error"].status == "failed"
    assert after["fake:error"].started_at != before["fake:error"].started_at
    assert {b: r.key for b, r in after.items()} == {b: r.key for b, r in before.items()}


def test_two_runs_do_not_write_to_one_folder(bench: CommandLine, tmp_path: Path) -> None:
    arguments = ("run", *QUICK, "--images", 60, "--out", tmp_path)
    first = bench.start(*arguments, "--backend", "fake:hang")
    bench.party("server", "backends.fake")
    before = (tmp_path / "run.json").read_bytes()
    second = bench(*arguments, "--backend", "clear")
    assert second.returncode == 1
    assert second.stderr == f"bench: another run writes to {tmp_path}; wait for its end or choose another --out\n"
    assert (tmp_path / "run.json").read_bytes() == before
    first.send_signal(signal.SIGINT)
    assert finish(first).returncode == 130
    assert bench(*arguments, "--backend", "clear").returncode == 0
    assert set(records(tmp_path)) == {"clear"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a file system of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk_loses_no_finished_record(bench: CommandLine, small_disk: Path) -> None:
    out = small_disk / "run"
    arguments = ("run", "--backend", "clear,fake,fake:slow", *QUICK, "--images", 20, "--out", out)
    done = bench(*arguments)
    assert done.returncode == 1
    assert "bench: the disk is full; free some space" in done.stderr and f"--out {out} to resume" in done.stderr
    before = {path: path.read_bytes() for path in (out / "records").iterdir()}
    assert before and all(record.status == "ok" for record in records(out).values())  # whole ones, and nothing else

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert bench(*arguments).returncode == 0
    assert {name: record.status for name, record in records(out).items()} == dict.fromkeys(
        ("clear", "fake", "fake:slow"), "ok"
    )
    assert {path: path.read_bytes() for path in before} == before
