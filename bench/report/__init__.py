"""A run folder's report: ``results.csv`` and ``report.html``, made from its records and nothing else."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from bench.record import Record, RecordError, records_in
from bench.report.check import warnings
from bench.report.page import CLEAR, render
from bench.report.table import COLUMNS, frame, row, rows

__all__ = ["COLUMNS", "rows", "write"]


def write(run: Path, bandwidth_bit_per_s: float | None = None) -> tuple[Path, Path]:
    """Writes ``results.csv`` and ``report.html`` into `run` from ``records/*.json`` and the optional ``run.json``.

    run.json: what only the runner knows: ``suite`` (str), ``notes`` (list of str, shown at the top with the warnings of
    `bench.report.check`), ``command`` (str), ``bandwidth_bit_per_s`` (of a network to be assumed, if none is given here).
    Raises RecordError if there is no record, or one that cannot be read.
    """
    records = [Record.load(path) for path in records_in(run)]
    if not records:
        raise RecordError(f"no records in {run / 'records'}: run `python -m bench run --out {run}` first")
    records.sort(key=_order)
    about = _run_file(run / "run.json")
    about["notes"] = [*(about.get("notes") or ()), *warnings(records)]
    figures = [row(record, bandwidth_bit_per_s or about.get("bandwidth_bit_per_s")) for record in records]
    csv, html = run / "results.csv", run / "report.html"
    _replace(csv, frame(figures).to_csv(index=False, lineterminator="\n"))
    _replace(html, render(records, figures, about, name=run.resolve().name))
    return csv, html


def _order(record: Record) -> tuple[object, ...]:
    """By the work done, so that what can be compared stands together; the clear network, the reference, first."""
    trial = record.trial
    work = trial.task, trial.model, trial.scenario, trial.model_privacy
    return *work, trial.backend != CLEAR, trial.backend, record.started_at, record.key


def _run_file(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RecordError(f"cannot read {path}: {error}; delete it (the records are enough for a report)") from error
    if not isinstance(about, dict):
        raise RecordError(f"{path} is not a JSON object; delete it (the records are enough for a report)")
    return about


def _replace(path: Path, text: str) -> None:
    """Writes by an atomic rename: an interrupted report leaves the last whole one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
