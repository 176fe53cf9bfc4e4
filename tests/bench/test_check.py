"""Instability is found and explained, and a steady run is left alone."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench import report
from bench.record import Conditions, Record
from bench.report import check
from tests.bench.records_for_report import failed, record

QUIET = Conditions(calibration_before_s=0.005, calibration_after_s=0.005, other_cores=0.01, steal_share=0.0)


def steady(seed: int = 0, conditions: Conditions = QUIET, **changes: object) -> Record:
    """Thirty requests within ± 5 %, in no order."""
    made = record(seed=seed, samples=30)
    made.conditions, made.sampling_ended, made.cpu_wall_ratio = conditions, "precise", 1.0
    return msgspec.structs.replace(made, **changes)


def with_infer(made: Record, wall_s: list[float]) -> Record:
    for stage in made.stages:
        if stage.wall_s[1:]:  # of a request
            stage.wall_s = stage.wall_s[: len(wall_s)]
    made.stage("server", "infer").wall_s = wall_s
    return made


def changed(**conditions: float) -> Record:
    return steady(1, msgspec.structs.replace(QUIET, **conditions))


def random(low: float, high: float) -> list[float]:
    return np.random.default_rng(0).uniform(low, high, 30).tolist()


CASES = {
    "wide": (with_infer(steady(1), random(0.01, 0.2)), r"server time is known to ±\d+.\d%, not ±5.0%: 30 requests"),
    "wide, no time": (
        with_infer(steady(1, sampling_ended="time"), random(0.01, 0.2)),
        "the time to sample ended after 30 requests, of which the middle half took ",
    ),
    "trend": (with_infer(steady(1), np.linspace(0.02, 0.024, 30).tolist()), r"time changed by \+"),
    "few": (with_infer(steady(1), [0.02] * 3), "3 timed requests; a 95 % interval of the median needs 6"),
    "drift": (changed(calibration_after_s=0.006), r"a fixed piece of work took \+20% after the trial"),
    "drift from the run": (
        changed(calibration_before_s=0.006, calibration_after_s=0.006),
        r"a fixed piece of work took \+20% against the median of the run",
    ),
    "load": (changed(other_cores=1.2), "other processes kept 1.2 cores busy"),
    "steal": (changed(steal_share=0.25), "25% of the CPU time went to other virtual machines"),
    "threads": (steady(1, cpu_wall_ratio=2.0), "inference kept 2.0 cores busy, 1 asked for"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_unstable_is_found_and_explained(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    unstable, why = CASES[case]
    records = [steady(0), unstable, steady(2), steady(3)]
    found = check.findings(records)
    assert {finding.record.key for finding in found} == {unstable.key}
    assert case.partition(" ")[0].strip(",") in {finding.kind for finding in found}
    assert not check.show(records)
    out = capsys.readouterr().out
    assert re.search(why, out) and "1 of 4 measured trials" in out
    [warning, *_] = check.warnings(records)
    assert " in 1 of 4 trials" in warning and unstable.trial.label in warning


def test_a_steady_run_is_stable(capsys: pytest.CaptureFixture[str]) -> None:
    records = [steady(seed) for seed in range(3)] + [failed("timeout", "no answer")]
    assert check.findings(records) == [] and check.warnings(records) == []
    assert check.show(records)
    assert capsys.readouterr().out == "all 3 trials are stable\n"


def test_the_precision_that_a_trial_asked_for_is_what_counts() -> None:
    made = with_infer(steady(), random(0.018, 0.024))
    assert {f.kind for f in check.findings([made])} == {"wide"}
    lenient = msgspec.structs.replace(made, trial=msgspec.structs.replace(made.trial, precision=0.2))
    assert check.findings([lenient]) == []


def test_machines_are_held_against_themselves() -> None:
    slow = steady(1, msgspec.structs.replace(QUIET, calibration_before_s=0.009, calibration_after_s=0.009))
    records = [steady(0), steady(2), slow]
    assert [f.kind for f in check.findings(records)] == ["drift"]
    slow.machine = slow.machine | {"host": "other"}
    assert check.findings(records) == []


def test_the_report_warns(tmp_path: Path) -> None:
    changed(other_cores=1.2).save(tmp_path / "records")
    page = report.write(tmp_path).html.read_text("utf-8")
    assert "The machine was loaded by other processes in 1 of 1 trials" in page
    assert "other processes kept 1.2 cores busy" in page
