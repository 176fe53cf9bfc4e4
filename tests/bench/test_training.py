"""Runs that have to train first: nothing is trained twice or lost, and whoever waits is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import cli
from bench.record import Record, records_in
from models import own_training, train, zoo
from tests.models.test_own_training import Small
from tests.models.test_zoo import small
from tests.models.user_networks import Lola, export, seeded


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No shipped weights, and a cache in which no folder can be made; the models that were trained, which is instant."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(zoo, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(zoo, "_unkept", {})
    done: list[str] = []

    def instant(model, task, dataset, lowerings, *, seed=0, effort="full", keep=False, progress=None):
        assert not keep
        for percent in range(101):
            progress(percent / 100, f"step {percent}")
        done.append(model if effort == "full" else f"{model}, {effort}")
        return {lowering: small(lowering, task.name, seed) for lowering in lowerings}

    monkeypatch.setattr(train, "train", instant)
    return done


def bench(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_a_run_that_cannot_keep_its_networks_says_so_and_goes_on(
    trainings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--backend", "clear", "--task", "digits", "--scenario", "single-stream,offline", "--images", 2)
    assert bench(monkeypatch, "run", *options, "--precision", 0, "--out", tmp_path / "run") == 0
    assert trainings == ["fcnn"]
    found = [Record.load(path) for path in records_in(tmp_path / "run")]
    assert len(found) == 2 and {record.status for record in found} == {"ok"}
    printed = capsys.readouterr()
    assert "This run trains fcnn for digits and does not keep the networks" in printed.out
    assert "set XDG_CACHE_HOME" in json.loads((tmp_path / "run" / "run.json").read_text())["notes"][0]
    lines = [line for line in printed.err.splitlines() if "training fcnn for digits" in line]
    assert len(lines) == 11 and all("min left" in line for line in lines[1:-1])
    assert "0%: nobody has trained it yet; step 0" in lines[0] and "100%" in lines[-1]


def test_training_that_would_be_lost_does_not_start(
    trainings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert bench(monkeypatch, "train") == 1
    assert "could not be kept" in (error := capsys.readouterr().err) and "give --out" in error
    assert bench(monkeypatch, "train", "--out", tmp_path / "file" / "out") == 2
    assert "cannot write to" in capsys.readouterr().err
    assert trainings == []
    assert bench(monkeypatch, "train", "--out", tmp_path / "out") == 0 and trainings == ["fcnn"]
    assert (tmp_path / "out" / "digits.float.json").is_file()


def test_effort_is_that_of_the_option(
    trainings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--backend", "clear", "--task", "digits", "--images", 2, "--precision", 0, "--effort", "quick")
    assert bench(monkeypatch, "run", *options, "--out", tmp_path / "run") == 0
    assert bench(monkeypatch, "train", "--effort", "quick", "--out", tmp_path / "out") == 0
    assert trainings == ["fcnn, quick", "fcnn, quick"]
    assert bench(monkeypatch, "train", "--effort", "some", "--out", tmp_path / "out") == 2
    assert "--effort" in capsys.readouterr().err


def test_training_from_a_file_and_a_run_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(own_training, "IMAGES", 2_000)
    monkeypatch.setattr(own_training, "POOL_IMAGES", 4_000)
    relu, square = (str(export(seeded(m, 10), tmp_path / f"{m.__name__}.onnx")) for m in (Small, Lola))
    assert bench(monkeypatch, "train", "--from", relu, "--effort", "quick", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("validation   accuracy ") and "% with polynomials\ntest " in printed.out
    assert "min in all" in printed.err
    assert (tmp_path / "out" / "digits.polynomial.json").is_file()
    options = ("--backend", "ckks", "--task", "digits", "--scenario", "single-stream", "--images", 1, "--precision", 0)
    assert bench(monkeypatch, "run", "--model", relu, *options, "--out", tmp_path / "run") == 0
    (record,) = (Record.load(path) for path in records_in(tmp_path / "run"))
    assert record.status == "ok" and "fine-tuned" in str(record.network["provenance"]["origin"]["how"])
    capsys.readouterr()
    assert bench(monkeypatch, "train", "--from", square) == 1
    assert "has no Relu" in capsys.readouterr().err
    assert bench(monkeypatch, "train", "--from", relu, "--model", "fcnn") == 2
    assert "give one of them" in capsys.readouterr().err
    assert bench(monkeypatch, "train", "--from", tmp_path / "none.onnx") == 2
