"""Models on latents, and many labels, from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bench.record import Record, records_in


def sentence(found) -> str:
    """The one sentence of a usage error."""
    assert found.returncode == 2, found.stderr
    (line,) = found.stderr.strip().splitlines()
    return line


def test_sizes_that_have_no_latent_are_refused(bench, tmp_path: Path) -> None:
    random, arrays = np.random.default_rng(0), {}
    for split, count in {"train": 20, "val": 4, "test": 4}.items():
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 30, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "odd.npz", **arrays)
    for command in ("run", "train"):
        told = sentence(bench(command, "--model", "latentcnn", "--data", tmp_path / "odd.npz"))
        assert "are 30×28: crop or pad them to multiples of 4, or choose latentcnn@image" in told


def test_synthetic_data_needs_a_task_and_enough_images(bench, tmp_path: Path) -> None:
    assert "unknown task 'chest'" in sentence(bench("synthetic", "--like", "chest", "--out", tmp_path / "a.npz"))
    assert "at least 140" in sentence(bench("synthetic", "--images", 20, "--out", tmp_path / "a.npz"))
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.slow
def test_fourteen_labels_from_data_to_report(bench, tmp_path: Path) -> None:
    data, out = tmp_path / "chest.npz", tmp_path / "run"
    assert bench("synthetic", "--like", "chestmnist", "--images", 600, "--out", data).returncode == 0
    options = ("--images", 20, "--precision", 0, "--effort", "quick", "--out", out)
    ran = bench("run", "--data", data, "--model", "latentcnn", "--backend", "clear,ckks", *options)
    assert ran.returncode == 0, ran.stderr
    for record in map(Record.load, records_in(out)):
        assert record.status == "ok" and len(record.outputs.names) == 14
        assert record.notes["data"].startswith("synthetic data of the description of chestmnist")
        assert record.stage("client", "encode").wall_s
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {each["name"] for each in json.loads(rows[0]["by_class"])}
    assert len(names) == 14 and {rows[0]["auc_worst_label"], rows[0]["auc_best_label"]} <= names
    assert float(rows[0]["auc_worst"]) <= float(rows[0]["auc_best"]) and rows[0]["input_values"] == "196"
    for page in ("report.html", "results.md"):
        assert "synthetic data of the description of chestmnist" in (out / page).read_text()
    key = rows[0]["key"]
    assert "cardiomegaly" in bench("show", out, key, "--label", "cardiomegaly,3").stdout
    assert "no class or label 'heart' in clear" in sentence(bench("show", out, rows[0]["key"], "--label", "heart"))
