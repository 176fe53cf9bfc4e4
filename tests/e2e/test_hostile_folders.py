"""Folders of runs that something happened to: nothing is lost, shown twice or written over without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.record import SCHEMA, records_in
from tests.e2e.command_line import CommandLine

OPTIONS = ("--backend", "clear", "--task", "digits", "--images", 3, "--threads", 1, "--precision", 0)


@pytest.fixture(scope="module")
def made(bench: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert bench("run", *OPTIONS, "--out", folder).returncode == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder of a run of one trial, without its report."""
    shutil.copytree(made / "records", tmp_path / "run" / "records")
    shutil.copy(made / "run.json", tmp_path / "run")
    return tmp_path / "run"


def add(run: Path, change: Callable[[dict[str, Any]], None], key: str = "0123456789abcdef") -> Path:
    """Another record, made from the one that is there."""
    content = json.loads(next(records_in(run)).read_text())
    change(content)
    content["key"] = key
    path = run / "records" / f"{key}.json"
    path.write_text(json.dumps(content))
    return path


def test_a_trial_that_was_run_again_with_other_code_stands_in_the_report_once(bench: CommandLine, run: Path) -> None:
    older = add(run, lambda record: record.update(started_at="2020-01-01T00:00:00+00:00", git_commit="0" * 40))
    [key] = {path.stem for path in records_in(run)} - {older.stem}
    note = "Left out: 1 record of trials that were run again later, with other commit (clear · fcnn · digits"
    for command in (("report", run), ("run", *OPTIONS, "--out", run)):
        done = bench(*command)
        assert done.returncode == 0 and note in done.stderr
        assert list(pd.read_csv(run / "results.csv")["key"]) == [key]
        assert note in (run / "report.html").read_text()
        assert f'"{older.stem}"' not in (run / "report.html").read_text()
    assert note in bench("check", run).stderr
    assert "Left out: 1 record" in bench("show", run).stdout
    assert note in bench("compare", run, run).stdout
    assert older.is_file()


def test_a_record_of_a_later_version_is_left_to_it(bench: CommandLine, run: Path) -> None:
    later = add(run, lambda record: record.update(schema=SCHEMA + 1, status="excellent", stages={}))
    before = later.read_bytes()
    done = bench("run", *OPTIONS, "--out", run)
    assert done.returncode == 1 and done.stdout == ""
    assert f"bench: cannot read record {later}: it has schema {SCHEMA + 1}, this version reads up to" in done.stderr
    assert "upgrade, or choose another --out" in done.stderr and "delete" not in done.stderr
    done = bench("report", run)
    assert done.returncode == 0 and "upgrade" in done.stderr and "delete" not in done.stderr
    assert len(pd.read_csv(run / "results.csv")) == 1
    assert later.read_bytes() == before


def test_a_stray_damaged_record_is_named_and_left_out(bench: CommandLine, run: Path) -> None:
    stray = run / "records" / "stray.json"
    stray.write_text("{")
    backup = run / "records" / "backup.json"
    shutil.copy(next(path for path in records_in(run) if path != stray), backup)
    wrong = add(run, lambda record: record["outputs"].update(labels=[[0], [1]]))
    for command in (("report", run), ("run", *OPTIONS, "--out", run), ("check", run)):
        done = bench(*command)
        assert done.returncode in (0, 1 if command[0] == "check" else 0)
        for path, why in ((stray, "Input data was truncated"), (backup, "it is a copy of"), (wrong, "its outputs are")):
            assert f"bench: cannot read record {path}: {why}" in done.stderr
    assert len(pd.read_csv(run / "results.csv")) == 1
    assert str(stray) in (run / "report.html").read_text()
    for path in set(records_in(run)) - {stray, backup, wrong}:
        path.unlink()
    done = bench("report", run)
    assert done.returncode == 1 and done.stderr.startswith("bench: cannot read record ")


@pytest.mark.parametrize("content", ["[]", '{"notes": 3}', '{"suite": []}', '{"bandwidth_bit_per_s": "fast"}', "{"])
def test_a_run_file_of_the_wrong_types(bench: CommandLine, run: Path, content: str) -> None:
    (run / "run.json").write_text(content)
    for command in (("report", run), ("run", *OPTIONS, "--out", run)):
        done = bench(*command)
        assert done.returncode == 1
        assert done.stderr.startswith(f"bench: cannot read {run / 'run.json'}: ") and "delete it" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert (run / "run.json").read_text() == content


def test_the_page_names_every_command_that_filled_the_folder(bench: CommandLine, run: Path) -> None:
    """The first one, of a version that kept one command, too."""
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({"suite": "quick", "command": "python -m bench run --mine"}))
    assert about["commands"][0]["command"].startswith("python -m bench run --backend clear")
    for seed in (1, 2):
        assert bench("run", *OPTIONS, "--seed", seed, "--out", run).returncode == 0
    page = (run / "report.html").read_text()
    assert "<pre>python -m bench run --mine</pre>" in page
    for seed in (1, 2):
        assert f"--precision 0 --seed {seed} --out {run}</pre>" in page
    commands = json.loads((run / "run.json").read_text())["commands"]
    assert len(commands) == 3 and all(command["started_at"] for command in commands[1:])
