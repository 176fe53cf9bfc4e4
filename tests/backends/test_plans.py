"""The plans of the shipped networks are those that were measured: a change of the planner that changes them says so here.

``plans.json`` was written by the planner that the figures of reports/reference were measured with; the plans of
image-in-slot requests by the one that first evaluated them on residues. Planning a deep network takes long, so only one is
planned by default.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from backends.api import Job
from bench.runner import calibration
from models import tasks, zoo

RECORDED = json.loads((Path(__file__).parent / "plans.json").read_text())
MEASURED = ("error_stddev",)  # SEAL's is estimated anew each time


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "/fcnn/" in name else pytest.mark.slow) for name in RECORDED]
)
def test_a_plan_is_the_recorded_one(name: str) -> None:
    backend, model, task_name, scenario, privacy = name.split("/")
    backend, _, variant = backend.partition(":")
    task = tasks.task(task_name)
    job = Job(
        zoo.network(model, task, "polynomial"),
        variant=variant,
        scenario=scenario,
        threads=2,
        model_privacy=privacy,
        calibration=calibration(tasks.load(task)),
    )
    prepared = importlib.import_module(f"backends.{backend}").Owner().prepare(job)
    found = {
        "batch": prepared.batch,
        "parameters": {k: v for k, v in prepared.parameters.items() if k not in MEASURED},
        "operations": prepared.operations,
        "layout": prepared.notes["layout"],
    }
    assert found == RECORDED[name]
