"""A run folder, read: its records in the order of reports, and the row of figures of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.frontier import Frontier
from bench.record import Record, RecordError, records_in
from bench.report.check import warnings
from bench.report.layout import CLEAR, Trial, host, trials_of
from bench.report.table import row


@dataclass(frozen=True)
class Run:
    """records, figures (`bench.report.table.row`) and trials (`bench.report.layout.trials_of`) are in the same order.

    about: the run file, ``suite`` (str), ``notes`` (list of str, with the warnings of `bench.report.check`), ``command``
    (str), ``bandwidth_bit_per_s``, each optional.
    searches: of `bench tune`, whose folders are in ``searches/`` of the run's.
    """

    name: str
    records: list[Record]
    figures: list[dict[str, Any]]
    trials: list[Trial]
    about: dict[str, Any]
    searches: list[Frontier]

    @property
    def title(self) -> str:
        return str(self.about.get("suite") or self.name)


def read(folder: Path, bandwidth_bit_per_s: float | None = None, across_machines: bool = False) -> Run:
    """Reads ``records/*.json`` and, if they are there, ``run.json`` and ``searches/*/frontier.json``.

    Raises RecordError without a record, or for a damaged file.
    """
    records = [Record.load(path) for path in records_in(folder)]
    if not records:
        raise RecordError(f"no records in {folder / 'records'}: run `python -m bench run --out {folder}` first")
    records.sort(key=_order)
    about = _run_file(folder / "run.json")
    about["notes"] = [*map(str, about.get("notes") or ()), *_machines(records, across_machines), *warnings(records)]
    figures = [row(record, bandwidth_bit_per_s or about.get("bandwidth_bit_per_s")) for record in records]
    searches = [Frontier.load(path.parent) for path in sorted(folder.glob("searches/*/frontier.json"))]
    return Run(folder.resolve().name, records, figures, trials_of(records, figures, across_machines), about, searches)


def _machines(records: list[Record], compared: bool) -> list[str]:
    count = len({host(record.machine) for record in records if record.machine})
    if count < 2:
        return []
    if compared:
        return [f"Figures of {count} machines are compared as if they were of one: differences may be the machines'."]
    return [f"The trials ran on {count} machines; costs are ranked within each of them only."]


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
