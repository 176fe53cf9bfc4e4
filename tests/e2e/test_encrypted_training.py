"""``bench run --workload train`` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from bench import metrics
from bench.record import records_in
from tests.e2e.command_line import CommandLine, records, wait_for
from tests.models.test_features import DEFECTS, write

TRAIN = ("run", "--workload", "train", "--threads", 1, "--precision", 0, "--images", 0)


def test_features_of_the_user_are_trained_on_and_a_run_resumes(bench: CommandLine, tmp_path: Path) -> None:
    options = (*TRAIN, "--features", write(tmp_path), "--task", "breastmnist", "--out", tmp_path / "run")
    specs = "clear,clear:polynomial,ckks:refresh"
    done = bench(*options, "--backend", specs)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "run")
    assert set(found) == set(specs.split(","))
    for record in found.values():
        assert record.trial.workload == "train" and record.trial.model == "files" and record.status == "ok"
        assert len(record.outputs.encrypted_logits) == 20
        quality = metrics.quality(record.outputs)
        assert quality.encrypted.accuracy.value >= 0.8 and quality.float_.auc is not None
        assert record.notes["training"]["rows"] == 60 and 0 <= record.notes["converged_accuracy"]["accuracy"] <= 1
    encrypted = found["ckks:refresh"]
    steps = encrypted.notes["training"]["steps"]
    assert len(encrypted.notes["weight_error_by_step"]) == steps and max(encrypted.notes["weight_error_by_step"]) < 1e-2
    assert metrics.quality(encrypted.outputs).disagreements_beyond_noise == 0  # one of 20 images may lie on the border
    assert len(encrypted.stage("server", "infer").round_wall_s) == steps - 1
    assert encrypted.security["bits"] >= 128
    assert "train" in (tmp_path / "run" / "results.csv").read_text()
    times = {path: path.stat().st_mtime_ns for path in records_in(tmp_path / "run")}
    assert bench(*options, "--backend", specs).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in records_in(tmp_path / "run")} == times
    again = bench(*encrypted.command.split()[3:], "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert records(tmp_path / "again")["ckks:refresh"].key == encrypted.key


def test_steps_that_do_not_fit_are_a_record_with_the_bound(bench: CommandLine, tmp_path: Path) -> None:
    options = ("--features", write(tmp_path), "--task", "breastmnist", "--steps", 30, "--rate", 0.01)
    done = bench(*TRAIN, *options, "--backend", "ckks", "--out", tmp_path / "run")
    assert done.returncode == 1
    (record,) = records(tmp_path / "run").values()
    assert record.status == "failed" and "30 steps" in record.reason and "refresh" in record.reason


def test_a_backend_that_does_not_train_is_skipped(bench: CommandLine, tmp_path: Path) -> None:
    done = bench(*TRAIN, "--task", "digits", "--backend", "clear,tfhe,ckks:naive", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "run")
    assert found["clear"].status == "ok"
    for spec in ("tfhe", "ckks:naive"):
        assert found[spec].status == "skipped" and "does not do the workload train" in found[spec].reason


def test_a_killed_training_leaves_no_process_and_starts_again(bench: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = (*TRAIN, "--task", "digits", "--backend", "ckks:refresh", "--steps", 3, "--out", out)
    process = bench.start(*options)
    server = bench.party("server", "backends.ckks")
    wait_for(lambda: server.cpu_times().user > 0.5)
    process.kill()
    process.communicate()
    psutil.wait_procs(bench.processes(), timeout=60)
    assert not bench.processes() and not any(records_in(out))
    done = bench(*options)
    assert done.returncode == 0, done.stderr
    (record,) = records(out).values()
    assert record.status == "ok" and len(record.outputs.encrypted_logits[0]) == 10


@pytest.mark.parametrize("reason", DEFECTS)
def test_features_of_no_use_are_an_error_of_usage(bench: CommandLine, tmp_path: Path, reason: str) -> None:
    DEFECTS[reason](write(tmp_path))
    done = bench(*TRAIN, "--features", tmp_path, "--task", "breastmnist", "--backend", "clear")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workload", "guess"), "Invalid enum value 'guess'"),
        (("--workload", "train", "--model", "fcnn"), "choose pixels, or name a folder with --features"),
        (("--backend", "clear", "--steps", "3"), "of --workload train"),
        (("--workload", "train", "--backend", "clear", "--rate", "-1"), "rate"),
    ],
)
def test_trainings_that_cannot_be(bench: CommandLine, options: tuple[str, ...], message: str) -> None:
    done = bench("run", "--task", "digits", *options)
    assert done.returncode == 2 and message in done.stderr, done.stderr
