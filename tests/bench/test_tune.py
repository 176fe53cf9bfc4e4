"""The search: a trial that finished survives a SIGKILL; the frontier is what no trial beats."""

import os
import signal
import subprocess
import sys
import time

import optuna
import pytest

from bench import tune
from bench.frontier import Frontier
from bench.record import RecordError
from models.presets import PRESETS


def test_times_are_read():
    assert [tune.seconds(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for text in ("30", "m", "1d"):
        with pytest.raises(ValueError, match="write 90s"):
            tune.seconds(text)


def test_every_choice_of_the_space_makes_a_preset():
    study = optuna.create_study(directions=["maximize"] * 3)
    seen = set()
    for _ in range(40):
        preset, options = tune.space(study.ask(), "fcnn")
        seen.add((preset.real, preset.bits.activation_bits == 1))
        assert set(options) == {"p_error", "exactness", "glwe_dimensions"}
    assert len(seen) >= 3


def test_a_search_starts_from_the_presets():
    study = optuna.create_study(directions=["maximize"] * 3)
    points = tune.known("fcnn")
    for point in points:
        study.enqueue_trial(point)
    made = [tune.space(study.ask(), "fcnn")[0] for _ in points]
    shipped = [PRESETS[f"fcnn@{name}"] for name in ("fast", "balanced", "accurate")]
    assert [preset.bits for preset in made] == [preset.bits for preset in shipped]
    assert [preset.architecture for preset in made] == [{"pooling": 1} | preset.architecture for preset in shipped]


def test_frontier_is_written_as_data_and_chart(tmp_path):
    measured = {"infer_s": 0.2, "key_bytes": 10**7, "hidden": 8}
    rows = [
        {"number": 1, "accuracy": 0.9, "complexity": 5.0, **measured},
        {"number": 2, "accuracy": 0.8, "uncompressed_key_bytes": 1},
    ]
    found = Frontier(backend="tfhe", model="fcnn", task="digits", networks=7, rows=rows)
    found.save(tmp_path)
    assert Frontier.load(tmp_path) == found
    assert (tmp_path / "frontier.csv").read_text().startswith("number,accuracy,infer_s")
    figure = found.chart()
    assert list(figure.data[0].x) == [200.0] and list(figure.data[0].y) == [0.9]
    assert "plotly" in (tmp_path / "frontier.html").read_text()[:5000].lower()


@pytest.mark.parametrize("content", ["", "[]", '{"backend": "tfhe"}'])
def test_a_damaged_frontier_is_named(tmp_path, content):
    (tmp_path / "frontier.json").write_text(content)
    with pytest.raises(RecordError, match="frontier.json.*resume its search, or delete it"):
        Frontier.load(tmp_path)


SEARCH = """
import sys
from pathlib import Path
import models.train as train
from bench import tune
from models import tasks
train.POOL_IMAGES, train.VALIDATION_IMAGES, train.TEACHER_IMAGES, train.QUANTISED_IMAGES = 1500, 200, 2000, 3000
task = tasks.task("digits")
search = tune.Search("tfhe", "fcnn", task, tasks.load(task), Path(sys.argv[1]), 1)
print(len(search.finished), flush=True)
search.run(float(sys.argv[2]), lambda share, text: print(text, flush=True), restart_budget=0.02)
"""


def finished(folder) -> int:
    study = optuna.load_study(study_name="tfhe fcnn digits", storage=f"sqlite:///{folder / 'trials.sqlite'}")
    return len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))


@pytest.mark.slow
def test_a_killed_search_goes_on_with_every_finished_trial(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(budget_s: float) -> subprocess.Popen:
        command = [sys.executable, "-c", SEARCH, str(tmp_path), str(budget_s)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)

    process, deadline = start(600), time.monotonic() + 240
    for line in process.stdout:
        if line.startswith(("2 trials", "3 trials")) or time.monotonic() > deadline:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(tmp_path)
    assert before >= 2
    resumed = start(1)
    lines = resumed.communicate(timeout=280)[0].splitlines()
    assert resumed.returncode == 0
    assert lines[0] == str(before)
    assert finished(tmp_path) >= before
    rows = Frontier.load(tmp_path).rows
    assert rows and all(row["accuracy"] > 0 for row in rows) and "infer_s" in rows[0]
