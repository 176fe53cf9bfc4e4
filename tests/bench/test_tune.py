"""The search: a trial that finished survives a SIGKILL; the frontier is what no trial beats."""

import os
import signal
import subprocess
import sys
import time

import optuna
import pytest

from bench import tune
from bench.files import RunError
from bench.frontier import Frontier, unbeaten
from bench.record import RecordError
from models import tasks, train
from models.presets import PRESETS


def test_times_are_read():
    assert [tune.seconds(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for text in ("30", "m", "1d", "0s", "0.0h"):
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
    for point in points.values():
        study.enqueue_trial(point)
    made = [tune.space(study.ask(), "fcnn")[0] for _ in points]
    assert list(points) == ["fcnn@fast", "fcnn@balanced", "fcnn@accurate"]
    shipped = [PRESETS[name] for name in points]
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


def test_only_measured_networks_beat_measured_ones():
    def row(accuracy, infer_s=None, key_bytes=None):
        measured = {} if infer_s is None else {"infer_s": infer_s, "key_bytes": key_bytes}
        return {"accuracy": accuracy, "complexity": 1.0, **measured}

    best, slower, worse, small, unmeasured = (
        row(0.9, 1.0, 5),
        row(0.9, 2.0, 5),
        row(0.8, 1.5, 6),
        row(0.8, 2.0, 4),
        row(0.1),
    )
    assert unbeaten([best, slower, worse, small, unmeasured]) == [best, small, unmeasured]
    assert unbeaten([best, best]) == [best, best]


@pytest.mark.parametrize("content", ["", "[]", '{"backend": "tfhe"}'])
def test_a_damaged_frontier_is_named(tmp_path, content):
    (tmp_path / "frontier.json").write_text(content)
    with pytest.raises(RecordError, match="frontier.json.*resume its search, or delete it"):
        Frontier.load(tmp_path)


def search_in(folder, task="digits") -> tune.Search:
    return tune.Search("tfhe", "fcnn", tasks.task(task), None, folder, 1)


def test_a_preset_that_a_killed_search_had_begun_is_tried_again(tmp_path):
    begun = search_in(tmp_path).study.ask()
    waiting = search_in(tmp_path).study.get_trials(states=(optuna.trial.TrialState.WAITING,))
    presets = [trial.user_attrs["preset"] for trial in waiting]
    assert begun.user_attrs["preset"] == "fcnn@fast"
    assert sorted(presets) == ["fcnn@accurate", "fcnn@balanced", "fcnn@fast"]


def test_a_preset_that_was_tried_is_not_tried_again(tmp_path):
    first = search_in(tmp_path)
    for values in ((0.9, 2, 1), (0.8, 1, 1), (0.7, 1, 1)):
        first.study.tell(first.study.ask(), values)
    assert len(search_in(tmp_path).study.get_trials()) == 3


def test_searching_stops_when_the_frontier_still_has_to_be_measured(tmp_path):
    search = search_in(tmp_path)
    assert search._measuring_s() == 0
    search.study.tell(search.study.ask(), (0.9, tune.OPERATIONS_PER_S, 1))
    one = search._measuring_s()
    assert one > tune.REQUESTS
    search.study.tell(search.study.ask(), (0.8, tune.OPERATIONS_PER_S, 2))  # dominated
    assert search._measuring_s() == one
    search.study.set_user_attr("measured 0", {})
    assert search._measuring_s() == 0


def test_a_folder_of_another_search_is_refused(tmp_path):
    search_in(tmp_path)
    with pytest.raises(RunError, match="a search for tfhe fcnn digits.*choose another --out"):
        search_in(tmp_path, "breastmnist")


@pytest.mark.parametrize("share", [0.5, None])
def test_damaged_trials_are_named(tmp_path, share):
    search_in(tmp_path)
    path = tmp_path / "trials.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)] if share else b"no database" * 99)
    with pytest.raises(RunError, match="trials.sqlite: .*delete it to start anew"), tune.writing(tmp_path):
        search_in(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and then nothing"])
def test_damaged_views_are_named(tmp_path, content):
    search = search_in(tmp_path)
    (tmp_path / "views.npz").write_bytes(content)
    with pytest.raises(RunError, match="damaged .*views.npz.*delete it"):
        search._views(None, None)


@pytest.fixture
def small(monkeypatch):
    """A recipe of seconds."""
    sizes = {
        "POOL_IMAGES": 300,
        "VALIDATION_IMAGES": 180,
        "TEACHER_IMAGES": 300,
        "QUANTISED_IMAGES": 300,
        "TEACHERS": 1,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(train, name, value)


def small_search(folder, backend) -> tune.Search:
    task = tasks.task("digits")
    return tune.Search(backend, "fcnn", task, tasks.load(task), folder, 1)


def test_a_search_whose_owner_always_dies_ends_with_the_reason(tmp_path, small):
    search = small_search(tmp_path, "fake:dead")
    with pytest.raises(RunError, match="died 3 times over the same network: owner killed by signal 9"):
        search.run(600, lambda share, text: None, restart_budget=0.001)
    again = small_search(tmp_path, "fake:dead")  # what was not finished is tried again
    assert len(again.study.get_trials(states=(optuna.trial.TrialState.WAITING,))) == 3


def test_an_owner_that_died_is_started_again_and_no_trial_is_lost(tmp_path, small):
    search = small_search(tmp_path, "fake:mortal")
    search._measuring_s = lambda: 600.0 if len(search.finished) == 3 else 0.0
    frontier = search.run(600, lambda share, text: None, restart_budget=0.001)
    assert frontier.networks == 3 and len(search.study.get_trials()) == 3


def test_a_budget_that_is_too_short_says_so_in_time(tmp_path, small):
    start = time.monotonic()
    with pytest.raises(RunError, match="before one network was trained and compiled; give a longer --budget"):
        small_search(tmp_path, "fake:dead").run(1e-3, lambda share, text: None)
    assert time.monotonic() - start < 60  # the whole recipe would take minutes


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
    resumed = start(60)
    lines = resumed.communicate(timeout=280)[0].splitlines()
    assert resumed.returncode == 0
    assert lines[0] == str(before)
    assert finished(tmp_path) >= before
    rows = Frontier.load(tmp_path).rows
    assert rows and all(row["accuracy"] > 0 for row in rows) and "infer_s" in rows[0]
