"""Suites: files and their mistakes, and the combinations that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import suite
from bench.suite import Block, SuiteError


def never() -> list[str]:
    raise AssertionError("asked for the small tasks although no block names them")


def test_expand_makes_every_combination_once() -> None:
    block = Block(
        backend=["a", "b"], task=["t", "u"], scenario=["single-stream", "offline"], threads=[1, 2], images=7, seed=3
    )
    trials = suite.expand([block, block], [], never, 4)
    assert len(trials) == len(set(trials)) == 16
    assert {(t.backend, t.task, t.scenario, t.threads) for t in trials} == {
        (b, t, s, n) for b in "ab" for t in "tu" for s in ("single-stream", "offline") for n in (1, 2)
    }
    assert {(t.images, t.seed) for t in trials} == {(7, 3)}
    assert [t.task for t in trials] == ["t"] * 8 + ["u"] * 8  # trials of one task stand together


def test_expand_replaces_the_names_that_stand_for_several() -> None:
    trials = suite.expand([Block(backend=["@all", "c:v"])], ["a", "b"], lambda: ["t", "u"], 4)
    assert [(t.backend, t.task) for t in trials] == [(b, t) for t in "tu" for b in ("a", "b", "c:v")]
    assert {t.threads for t in trials} == {4}


def test_trials_of_a_task_are_interleaved_by_a_seed_and_stay_together() -> None:
    block = Block(backend=["a", "b", "c"], task=["t", "u"], threads=[1, 2])
    written = suite.expand([block], [], never, 4)
    orders = [suite.interleave(written, seed) for seed in range(20)]
    assert orders[0] == suite.interleave(written, 0) and orders[0] not in (written, *orders[1:])
    for order in orders:
        assert set(order) == set(written) and len(order) == len(written)
        assert [trial.task for trial in order] == ["t"] * 6 + ["u"] * 6
    assert {order[0].backend for order in orders} == {"a", "b", "c"}  # no backend always comes first


@pytest.mark.parametrize("name", suite.names())
def test_shipped_suites_can_be_read_and_expanded(name: str) -> None:
    assert suite.expand(suite.read(name).trials, ["clear"], lambda: ["digits"], 1)


def test_unknown_suite_lists_those_that_exist() -> None:
    with pytest.raises(SuiteError, match=r"no suite 'nonsense': give a TOML file or one of .*quick"):
        suite.read("nonsense")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('name = "x"\n[[trials]]\nbackends = "clear"\n', "backends"),
        ('name = "x"\n[[trials]]\nscenario = "online"\n', "online"),
        ('name = "x"\n[[trials]]\nimages = "many"\n', "images"),
        ("[[trials]]\n", "name"),
        ("name = \n", "line 1"),
    ],
)
def test_mistake_in_a_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SuiteError) as error:
        suite.read(str(path))
    assert str(path) in str(error.value) and named in str(error.value)
