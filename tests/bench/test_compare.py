"""Two runs compared: ratios, the rank test, what counts as a regression, and runs that cannot be compared."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from bench.record import Record
from bench.report import compare
from bench.report.compare import CompareError, ratio_of_medians
from tests.bench.records_for_report import record


def saved(folder: Path, *records: Record) -> Path:
    for each in records:
        each.save(folder / "records")
    return folder


def slower(made: Record, factor: float, stage: str = "infer") -> Record:
    """The same trial by other code: another key, and one stage that takes longer."""
    copy = msgspec.convert(msgspec.to_builtins(made), Record)
    copy.key = f"{made.key}x"
    walls = copy.stage("server", stage)
    walls.wall_s = [factor * s for s in walls.wall_s]
    return copy


def compared(tmp_path: Path, a: list[Record], b: list[Record], *limits: str, force: bool = False) -> compare.Result:
    return compare.compare(
        saved(tmp_path / "a", *a), saved(tmp_path / "b", *b), compare.limits(limits or ["infer_s:10%"]), force
    )


def of(result: compare.Result, figure: str) -> compare.Comparison:
    return next(c for c in result.comparisons if c.figure == figure)


@pytest.mark.parametrize(("factor", "regression"), [(1.0, False), (1.05, False), (1.3, True), (0.7, False)])
def test_regression_is_a_ratio_above_the_limit_that_is_no_chance(
    tmp_path: Path, factor: float, regression: bool
) -> None:
    result = compared(tmp_path, [record()], [slower(record(), factor)])
    found = of(result, "infer_s")
    assert found.ratio.value == pytest.approx(factor)
    assert found.ratio.low < found.ratio.value < found.ratio.high
    a, b = record().stage("server", "infer").wall_s, slower(record(), factor).stage("server", "infer").wall_s
    assert found.p == mannwhitneyu(a, b).pvalue
    assert bool(result.regressions) == regression
    assert found.verdict == {1.0: "no difference shown", 0.7: "faster"}.get(factor, "slower")


def test_a_large_ratio_by_chance_is_no_regression(tmp_path: Path) -> None:
    noisy = [record(seed=0), record(seed=0)]
    for index, made in enumerate(noisy):
        infer = made.stage("server", "infer")
        infer.wall_s = np.random.default_rng(index).uniform(0.01, 1.0, len(infer.wall_s)).tolist()
    noisy[1].key += "x"
    noisy.sort(key=lambda made: np.median(made.stage("server", "infer").wall_s))
    result = compared(tmp_path, noisy[:1], noisy[1:], "infer_s:1%")
    assert of(result, "infer_s").ratio.value > 1.01 and result.regressions == []


def test_too_few_samples_are_undecided(tmp_path: Path) -> None:
    result = compared(tmp_path, [record(samples=3)], [slower(record(samples=3), 2.0)])
    found = of(result, "infer_s")
    assert (found.p, found.ratio.low, found.verdict) == (None, None, "too few samples")
    assert result.regressions == [] and result.undecided == [found]


def test_sizes_are_compared_exactly(tmp_path: Path) -> None:
    larger = slower(record(), 1.0)
    larger.sizes["request_bytes"] += 1
    result = compared(tmp_path, [record()], [larger], "request_bytes:0%", "response_bytes:0%")
    assert [c.figure for c in result.regressions] == ["request_bytes"]


def test_trials_are_matched_by_what_was_asked_for(tmp_path: Path) -> None:
    """Not by key; how long a trial might take does not matter; of several records the last one counts."""
    old, new = slower(record(), 9.0), record()
    old.started_at = "2000-01-01T00:00:00+00:00"
    patient = slower(record(), 1.0)
    patient.trial = msgspec.structs.replace(patient.trial, timeout_s=1.0, precision=0.5)
    alone = record(threads=2)
    result = compared(tmp_path, [old, new, alone], [patient])
    assert of(result, "infer_s").ratio.value == pytest.approx(1.0)
    assert result.only == [f"{tmp_path / 'a'}: {alone.trial.label}"]


def test_a_trial_that_is_ok_no_more_is_broken(tmp_path: Path) -> None:
    broken = slower(record(), 1.0)
    broken.status, broken.reason = "failed", "crash"
    assert compared(tmp_path, [record()], [broken]).broken == [(record().trial, "failed, crash")]


def test_different_machines_are_refused_unless_forced(tmp_path: Path) -> None:
    other = slower(record(), 1.0)
    other.machine = other.machine | {"cpu": "another"}
    with pytest.raises(CompareError, match="different machines .* or pass --force"):
        compared(tmp_path, [record()], [other])
    assert "Different machines" in compared(tmp_path, [record()], [other], force=True).notes[0]


@pytest.mark.parametrize(
    ("limit", "message"),
    [("infer_s", "write a figure and a limit"), ("infer_s:x%", "write"), ("speed:10%", "unknown figure 'speed'")],
)
def test_limits_that_cannot_be_understood(limit: str, message: str) -> None:
    with pytest.raises(CompareError, match=message):
        compare.limits([limit])


def test_runs_without_a_trial_in_common(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="no trial in common"):
        compared(tmp_path, [record()], [record("tfhe")])
    with pytest.raises(CompareError, match="no records in"):
        compare.compare(tmp_path / "a", tmp_path / "nowhere", {})


def test_interval_of_the_ratio_covers_it() -> None:
    """In about 95 of 100 pairs of samples of which the ratio is known."""
    random = np.random.default_rng(1)
    intervals = [ratio_of_medians(*(random.lognormal(m, 0.2, 20).tolist() for m in (0, np.log(2)))) for _ in range(60)]
    assert sum(i.low <= 2 <= i.high for i in intervals) >= 50
    assert all(i.low > 1 for i in intervals)
