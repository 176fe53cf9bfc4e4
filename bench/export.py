"""``python -m bench export``: the timings of a run in the files of pytest-benchmark and pyperf, by these tools' own code."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from bench.files import RunError
from bench.record import Record
from bench.report.reading import Run
from bench.report.table import totals
from bench.session import REQUEST, SERVER_REQUEST


@dataclass(frozen=True)
class Timing:
    """Seconds of each request of one trial: of the whole round trip, or of the server alone."""

    name: str
    record: Record
    what: str
    seconds: list[float]


def timings(run: Run) -> list[Timing]:
    """Of all trials that are ok, each with a name of its own. Raises RunError if there is none."""
    labels = Counter(record.trial.label for record in run.records)
    found = []
    for record in run.records:
        label = record.trial.label if labels[record.trial.label] == 1 else f"{record.trial.label} · {record.key}"
        for what, stages in (("request", REQUEST), ("server", SERVER_REQUEST)):
            seconds = totals(record, stages)
            if record.status == "ok" and seconds:
                found.append(Timing(f"{label} · {what}", record, what, seconds))
    if not found:
        raise RunError("there are no timings to export: no trial is ok")
    return found


def pytest_benchmark(run: Run) -> str:
    """The JSON of ``pytest --benchmark-json``, as ``pytest-benchmark compare`` and its GitHub actions read it."""
    from pytest_benchmark import __version__
    from pytest_benchmark.stats import Stats

    benchmarks = []
    for timing in timings(run):
        stats = Stats()
        for seconds in timing.seconds:
            stats.update(seconds)
        trial = timing.record.trial
        benchmarks.append({
            "group": f"{trial.task} · {trial.scenario} · {timing.what}",
            "name": timing.name,
            "fullname": f"bench::{timing.name}",
            "params": {"backend": trial.backend, "model": trial.model, "task": trial.task},
            "param": trial.backend,
            "extra_info": {"key": timing.record.key, "batch": timing.record.batch},
            "options": {"timer": "perf_counter", "warmup": True},
            "stats": stats.as_dict() | {"data": timing.seconds, "iterations": 1},
        })  # fmt: skip
    first = run.records[0]
    commit = {
        "id": first.git_commit.rstrip("+"),
        "dirty": first.git_commit.endswith("+"),
        "time": first.started_at,
        "project": "fhe-medmnist-bench",
        "branch": "",
    }
    machine = {
        "node": first.machine.get("host", ""),
        "system": first.machine.get("system", ""),
        "python_version": first.machine.get("python", ""),
        "cpu": {"brand_raw": first.machine.get("cpu", "")},
    }
    whole = {"machine_info": machine, "commit_info": commit, "benchmarks": benchmarks,
             "datetime": first.started_at, "version": __version__}  # fmt: skip
    return json.dumps(whole, indent=1)


def pyperf(run: Run) -> str:
    """A suite, as ``python -m pyperf show`` and ``compare_to`` read it: a benchmark a trial, a value a request."""
    import pyperf as library

    suite = []
    for timing in timings(run):
        trial = timing.record.trial
        started = datetime.fromisoformat(timing.record.started_at).astimezone(timezone.utc)
        metadata = {
            "name": timing.name,
            "unit": "second",
            "loops": 1,
            "backend": trial.backend,
            "model": trial.model,
            "task": trial.task,
            "key": timing.record.key,
            "hostname": timing.record.machine.get("host", ""),
            "cpu_model_name": timing.record.machine.get("cpu", ""),
            "date": f"{started:%Y-%m-%d %H:%M:%S}",
        }
        metadata = {name: value for name, value in metadata.items() if value != ""}
        values = [max(seconds, 1e-9) for seconds in timing.seconds]  # pyperf takes no zero
        suite.append(library.Benchmark([library.Run(values, metadata=metadata, collect_metadata=False)]))
    file = io.StringIO()
    library.BenchmarkSuite(suite).dump(file)
    return file.getvalue()


FORMATS: dict[str, Callable[[Run], str]] = {"pytest-benchmark": pytest_benchmark, "pyperf": pyperf}
