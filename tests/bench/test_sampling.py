"""When sampling ends, in a trial and by the rule; and what a record says of the machine."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench import conditions, runner, sampling
from bench.session import REQUEST
from tests.bench.test_runner import TRIAL, silent, subject

STEADY = (1.0 + 0.001 * np.arange(20)).tolist()
UNSTEADY = np.linspace(0.5, 1.5, 20).tolist()
AGES = 1e6


@pytest.mark.parametrize(
    ("totals", "precision", "repeating_s", "remaining_s", "end"),
    [
        ([STEADY, STEADY], 0.05, 0.0, AGES, "precise"),
        ([STEADY, UNSTEADY], 0.05, 0.0, AGES, ""),
        ([STEADY, UNSTEADY], 0.9, 0.0, AGES, "precise"),
        ([STEADY, UNSTEADY], 0.0, 0.0, AGES, "fixed"),
        ([STEADY, UNSTEADY], 0.05, 10.0, AGES, "time"),
        ([UNSTEADY, UNSTEADY], 0.05, 0.0, 5.0, "time"),  # a further request could exceed the trial's time
        ([[1.0] * 5, [1.0] * 5], 0.05, 0.0, AGES, ""),  # five samples have no 95 % interval
        ([[1.0] * 6, [1.0] * 6], 0.05, 0.0, AGES, "precise"),
        ([UNSTEADY * 10, UNSTEADY * 10], 0.05, 0.0, AGES, "count"),
    ],
)
def test_why_sampling_ends(
    totals: list[list[float]], precision: float, repeating_s: float, remaining_s: float, end: str
) -> None:
    assert sampling.ended(totals, precision, repeating_s, 10.0, remaining_s) == end


@pytest.mark.parametrize(
    ("options", "end", "samples"),
    [
        ({"precision": 0.0}, "fixed", {7}),
        ({"precision": 1e-9, "sampling_s": 0.0}, "time", {7}),
        ({"precision": 1e-9}, "count", {sampling.MAXIMUM_SAMPLES}),
        ({"precision": 0.99}, "precise", range(7, sampling.MAXIMUM_SAMPLES)),
        ({"precision": 1e-9, "scenario": "offline", "sampling_s": 0.0}, "time", {runner.OFFLINE_REQUESTS}),
    ],
)
def test_requests_are_repeated_as_asked(tmp_path: Path, options: dict, end: str, samples: set[int]) -> None:
    record = runner.run(msgspec.structs.replace(TRIAL, **options), subject(), tmp_path, silent)
    assert (record.status, record.sampling_ended) == ("ok", end)
    stages = [stage for role, name, _ in REQUEST.values() if (stage := record.stage(role, name))]
    assert {len(stage.wall_s) for stage in stages} <= set(samples)
    assert len(record.outputs.encrypted_logits) == 7  # repeats give no further results


def test_a_long_request_is_its_own_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LONG_REQUEST_S", 0.0)
    trial = msgspec.structs.replace(TRIAL, precision=0.0, scenario="offline")
    record = runner.run(trial, subject(), tmp_path, silent)
    infer = record.stage("server", "infer")
    assert (len(infer.wall_s), infer.warmup_wall_s) == (1, []) and infer.cold_wall_s > 0
    assert len(record.outputs.encrypted_logits) == 7


def test_a_trial_that_ends_early_says_so(tmp_path: Path) -> None:
    record = runner.run(msgspec.structs.replace(TRIAL, backend="fake:crash"), subject(), tmp_path, silent)
    assert record.sampling_ended == "" and record.conditions.calibration_after_s > 0


def test_work_of_others_is_told_from_our_own() -> None:
    before = conditions.snapshot()
    if before.machine is None:
        pytest.skip("this kernel does not count CPU time")
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    after = conditions.snapshot()
    own = conditions.between(before, after)
    theirs = conditions.between(before._replace(own_cpu_s=before.own_cpu_s + 0.5), after)  # as if others had done it
    assert own.calibration_before_s > 0 and own.calibration_after_s > 0
    assert theirs.other_cores > own.other_cores


def test_calibration_is_the_median_without_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [90, 80, 6, 5]  # milliseconds
    clock = iter(np.cumsum([ms * 10**6 for pair in zip([0] * 4, rounds) for ms in pair]).tolist())
    monkeypatch.setattr(conditions.time, "perf_counter_ns", lambda: next(clock))
    monkeypatch.setattr(conditions, "_work", lambda: None)
    assert conditions.calibrate() == 0.006


def test_calibration_leaves_the_cores_of_the_process_alone() -> None:
    before = runner.available_threads()
    conditions.calibrate()
    assert runner.available_threads() == before
