"""What a person types: listing, errors that name the cure, the default run, reports and the other commands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from bench.record import Conditions, Record, records_in
from tests.bench.records_for_report import record
from tests.e2e.command_line import CommandLine, records

SLOW_TO_IMPORT = {"torch", "pandas", "matplotlib", "pyarrow", "scipy", "sklearn", "medmnist"}
FHE_LIBRARIES = {"tenseal", "openfhe", "concrete", "brevitas"}


def imported(stderr: str) -> set[str]:
    """Top-level packages in the output of ``-X importtime``."""
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in stderr.splitlines() if line.count("|") == 2}


@pytest.mark.parametrize("arguments", [("--help",), ("list",), ("run", "--help"), ("run", "--backend", "nope")])
def test_fast_commands_import_nothing_slow(bench: CommandLine, arguments: tuple[str, ...]) -> None:
    packages = imported(bench(*arguments, python=("-X", "importtime")).stderr)
    assert "typer" in packages  # the output was understood
    assert not packages & (SLOW_TO_IMPORT | FHE_LIBRARIES)


@pytest.fixture(scope="module")
def plain(bench: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a short run, and what ``-X importtime`` says of it."""
    folder = tmp_path_factory.mktemp("plain")
    options = ("--backend", "clear", "--task", "digits", "--images", 3, "--seed", 7, "--threads", 1, "--precision", 0)
    done = bench("run", *options, "--out", folder, python=("-X", "importtime"))
    assert done.returncode == 0
    return folder, done.stderr


def test_a_run_and_its_report_import_no_fhe_library(plain: tuple[Path, str]) -> None:
    """The harness, that is: parties are processes of their own. Nor torch, because nothing is trained."""
    packages = imported(plain[1])
    assert "pandas" in packages and not packages & (FHE_LIBRARIES | {"torch"})


def test_list(bench: CommandLine) -> None:
    done = bench("list")
    assert done.returncode == 0
    for name in ("clear", "ckks", "ckks:naive", "tfhe", "fcnn", "breastmnist", "digits", "quick"):
        assert re.search(rf"^  {name} *\b", done.stdout, re.MULTILINE), name
    assert not re.search(r"^  fake\b", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--backend", "nope"), "unknown backend 'nope': choose from "),
        (("--backend", "clear:nope"), "backend 'clear' has no variant 'nope'"),
        (("--model", "nope"), "unknown model 'nope': choose from fcnn"),
        (("--task", "nope"), "unknown task 'nope': choose from "),
        (("--scenario", "nope"), "Invalid enum value 'nope'"),
        (("--suite", "nope"), "no suite 'nope': give a TOML file or one of latent, quick, reference, train"),
        (("--timeout", "inf"), "invalid option: Expected `float`"),
        (("--threads", "-1"), "invalid option: Expected `int` >= 0"),
        (("--threads", "two"), "Invalid value for '--threads'"),
        (("--threads", "1,two"), "Invalid value for '--threads'"),
        (("--precision", "1"), "invalid option: Expected `float` < 1"),
        (("--bandwidth", "100Mb"), "Invalid value for '--bandwidth'"),
        (("--images", "-1"), "Invalid value for '--images'"),
        (("--nope",), "No such option"),
        (("--backend", "clear", "--task", "digits", "--out", "/dev/null/run"), "cannot write to /dev/null/run"),
    ],
)
def test_usage_errors(bench: CommandLine, options: tuple[str, ...], message: str) -> None:
    done = bench("run", *options)
    assert done.returncode == 2
    assert message in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    "options, message",
    [
        (("--backend", "ckks"), "nothing to search for ckks and fcnn"),
        (("--model", "fcnn@fast"), "nothing to search for tfhe and fcnn@fast"),
        (("--task", "nope"), "unknown task 'nope': choose from "),
        (("--budget", "0s"), "'0s' is no time: write 90s, 30m or 2h"),
    ],
)
def test_searches_that_cannot_be(bench: CommandLine, options: tuple[str, ...], message: str) -> None:
    done = bench("tune", *options)
    assert done.returncode == 2
    assert message in done.stderr and done.stdout == ""


def test_a_search_with_damaged_trials_names_the_cure(bench: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "trials.sqlite").write_bytes(b"no database" * 99)
    done = bench("tune", "--task", "digits", "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("bench: ") and "delete it to start anew" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "toml, message",
    [
        ("name = 'x'\n[[trials]]\nbackends = 'clear'", "unknown field `backends`"),
        ("name = 'x'\n[[trials]]\nimages = 'all'", "Expected `int`, got `str`"),
        ("name = 'x'\n[[trials]]\nscenario = 'nope'", "Invalid enum value 'nope'"),
        ("[[trials]]", "missing required field `name`"),
        ("name = ", "Invalid value"),
    ],
)
def test_suite_files_that_cannot_be_understood(bench: CommandLine, tmp_path: Path, toml: str, message: str) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(toml)
    done = bench("run", "--suite", suite)
    assert done.returncode == 2
    assert done.stderr.startswith(f"bench: {suite}: ") and message in done.stderr


def test_without_medmnist_the_quick_suite_runs_on_digits_and_says_so(bench: CommandLine, tmp_path: Path) -> None:
    done = bench("run", "--backend", "clear", "--images", 5, "--precision", 0, "--out", tmp_path)
    assert done.returncode == 0
    note = "MedMNIST files were not found, so this run uses the embedded task digits (scikit-learn)."
    assert note in done.stdout
    assert json.loads((tmp_path / "run.json").read_text())["notes"] == [note]
    assert note in (tmp_path / "report.html").read_text()
    assert records(tmp_path)["clear"].trial.task == "digits"


def test_missing_data_skips_its_own_trials_only(bench: CommandLine, tmp_path: Path) -> None:
    """The file is there and damaged, so that the test is the same with and without a network."""
    (tmp_path / "breastmnist.npz").write_bytes(b"damaged")
    run = tmp_path / "run"
    options = ("--backend", "clear", "--task", "breastmnist,digits", "--images", 5, "--precision", 0)
    done = bench("run", *options, "--data-dir", tmp_path, "--out", run)
    assert done.returncode == 1
    found = {json.loads(path.read_text())["trial"]["task"]: json.loads(path.read_text()) for path in records_in(run)}
    assert found["digits"]["status"] == "ok"
    assert (
        found["breastmnist"]["status"] == "skipped"
        and "delete it and download it again" in found["breastmnist"]["reason"]
    )


def test_more_threads_than_cores_is_skipped(bench: CommandLine, tmp_path: Path) -> None:
    done = bench("run", "--backend", "clear", "--task", "digits", "--threads", 10_000, "--out", tmp_path)
    assert done.returncode == 1
    record = records(tmp_path)["clear"]
    assert record.status == "skipped" and record.reason.startswith("10000 threads asked for")


def test_offline_scenario_answers_for_every_image_in_order(bench: CommandLine, tmp_path: Path) -> None:
    """More images than fit one request, the last of them not full."""
    options = ("--backend", "clear", "--task", "digits", "--scenario", "offline", "--images", 0, "--precision", 0)
    assert bench("run", *options, "--out", tmp_path).returncode == 0
    record = records(tmp_path)["clear"]
    images = len(record.outputs.indices)
    assert record.batch < images and images % record.batch
    assert record.outputs.encrypted_logits == record.outputs.lowered_logits
    infer = record.stage("server", "infer")
    assert len(infer.wall_s) >= 3 and infer.cold_wall_s and len(infer.warmup_wall_s) == 1


def test_report_is_made_again_from_records_alone(plain: tuple[Path, str], bench: CommandLine, tmp_path: Path) -> None:
    shutil.copytree(plain[0] / "records", tmp_path / "records")
    assert bench("report", tmp_path).returncode == 0
    assert (tmp_path / "results.csv").read_text() == (plain[0] / "results.csv").read_text()
    assert (tmp_path / "report.html").is_file()


def test_report_of_a_folder_without_records(bench: CommandLine, tmp_path: Path) -> None:
    done = bench("report", tmp_path)
    assert done.returncode == 1 and "no records in" in done.stderr


def test_the_command_in_a_record_makes_the_same_record(
    plain: tuple[Path, str], bench: CommandLine, tmp_path: Path
) -> None:
    first = records(plain[0])["clear"]
    assert bench(*first.command.removeprefix("python -m bench ").split(), "--out", tmp_path).returncode == 0
    second = records(tmp_path)["clear"]
    assert (second.key, second.trial, second.outputs) == (first.key, first.trial, first.outputs)


def test_a_sweep_of_threads_and_an_assumed_network(bench: CommandLine, tmp_path: Path) -> None:
    options = ("--backend", "clear", "--task", "digits", "--images", 2, "--threads", "1,2", "--precision", 0)
    assert bench("run", *options, "--bandwidth", "100Mbit", "--out", tmp_path).returncode in (0, 1)  # 1: one core here
    loaded = [Record.load(path) for path in records_in(tmp_path)]
    assert sorted(record.trial.threads for record in loaded) == [1, 2]
    assert loaded[0].trial.precision == 0 and "--precision 0" in loaded[0].command
    table = pd.read_csv(tmp_path / "results.csv")
    assert set(table["bandwidth_bit_per_s"]) == {1e8}
    assert bench("report", tmp_path, "--bandwidth", "1kbit").returncode == 0
    again = pd.read_csv(tmp_path / "results.csv")
    assert again["network_request_s"][0] == pytest.approx(1e5 * table["network_request_s"][0])
    assert "Invalid value for '--bandwidth'" in bench("report", tmp_path, "--bandwidth", "fast").stderr


def test_check_explains_what_is_unstable(bench: CommandLine, tmp_path: Path) -> None:
    made = record(samples=30)
    made.save(tmp_path / "records")
    assert bench("check", tmp_path).returncode == 0
    made.conditions = Conditions(calibration_before_s=0.005, calibration_after_s=0.008)
    made.save(tmp_path / "records")
    done = bench("check", tmp_path)
    assert done.returncode == 1 and "a fixed piece of work took +60% after the trial" in done.stdout
    empty = bench("check", tmp_path / "nothing")
    assert empty.returncode == 1 and "no records in" in empty.stderr


@pytest.mark.parametrize("privacy", ["plain", "encrypted"])
def test_explain_shows_the_plan_and_runs_it(bench: CommandLine, privacy: str) -> None:
    done = bench("explain", "--backend", "ckks", "--task", "digits", "--model-privacy", privacy, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "ring_dimension: " in done.stdout and "Gemm_3" in done.stdout
    error = re.search(r"worst logit error against the network in the clear (\S+)", done.stdout)
    assert error and 0 < float(error[1]) < 0.05


def test_explain_of_what_is_not_there(bench: CommandLine) -> None:
    assert "'single-stream', 'offline'" in bench("explain", "--scenario", "nope").stderr
    refused = bench("explain", "--backend", "tfhe", "--task", "digits", "--model-privacy", "encrypted")
    assert refused.returncode == 1 and "use --model-privacy plain" in refused.stderr


def test_compare_fails_on_a_regression(bench: CommandLine, tmp_path: Path) -> None:
    before, after, other = (tmp_path / name for name in "abc")
    made = record()
    made.save(before / "records")
    infer = made.stage("server", "infer")
    infer.wall_s = [1.5 * s for s in infer.wall_s]
    made.save(after / "records")
    made.machine = {"cpu": "another"}
    made.save(other / "records")
    assert bench("compare", before, after).returncode == 0
    assert bench("compare", before, before, "--fail-if", "infer_s:10%").returncode == 0
    done = bench("compare", before, after, "--fail-if", "request_bytes:0%", "--fail-if", "infer_s:10%")
    assert done.returncode == 3 and re.search(r"infer_s .* 1\.500 .* slower: regression", done.stdout)
    assert bench("compare", before, after, "--fail-if", "infer_s:90%").returncode == 0
    refused = bench("compare", before, other)
    assert refused.returncode == 2 and "pass --force" in refused.stderr
    assert bench("compare", before, other, "--force").returncode == 0
    assert bench("compare", before, after, "--fail-if", "nonsense:1%").returncode == 2


def test_conformance_from_the_command_line(bench: CommandLine) -> None:
    done = bench("test", "--backend", "clear")
    assert done.returncode == 0 and "passed" in done.stdout
    assert bench("test", "--backend", "nope").returncode == 2
