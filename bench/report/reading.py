"""A run folder, read: its records in the order of reports, and the row of figures of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import msgspec

from bench.files import printable
from bench.frontier import Frontier
from bench.record import Amount, Record, RecordError, newest
from bench.report.check import warnings
from bench.report.layout import CLEAR, Trial, host, trials_of
from bench.report.table import row


class Command(msgspec.Struct, frozen=True):
    """One that filled the folder. started_at: ISO 8601; "" if it is not known."""

    command: str
    started_at: str = ""


class About(msgspec.Struct, kw_only=True):
    """``run.json``: what the records of a folder do not say themselves. command: of runs before there was a list of them."""

    suite: str = ""
    notes: list[str] = []
    commands: list[Command] = []
    command: str = ""
    bandwidth_bit_per_s: Amount | None = None

    @staticmethod
    def load(path: Path) -> About:
        """Without a file, of a folder of which nothing is known. Raises RecordError."""
        try:
            about = msgspec.json.decode(path.read_bytes(), type=About)
        except FileNotFoundError:
            return About()
        except (OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
            raise RecordError(f"cannot read {path}: {error}; delete it (records are enough for a report)") from error
        if about.command and not about.commands:
            about.commands = [Command(about.command)]
        return about


@dataclass(frozen=True)
class Run:
    """records, figures (`bench.report.table.row`) and trials (`bench.report.layout.trials_of`) are in the same order.

    notes: of the run file, with what is known from the records (`bench.report.check`). left_out: sentences on records that
    are not among these; they are notes, too.
    searches: of `bench tune`, whose folders are in ``searches/`` of the run's.
    """

    name: str
    records: list[Record]
    figures: list[dict[str, Any]]
    trials: list[Trial]
    about: About
    notes: list[str]
    left_out: list[str]
    searches: list[Frontier]

    @property
    def title(self) -> str:
        return self.about.suite or self.name


def read(folder: Path, bandwidth_bit_per_s: float | None = None, across_machines: bool = False) -> Run:
    """Reads ``records/*.json`` and, if they are there, ``run.json`` and ``searches/*/frontier.json``.

    Of several records of one trial on one machine, the newest counts. Files that are no records are left out.
    Raises RecordError without a record, or for another damaged file.
    """
    records, left_out = newest(folder)
    records.sort(key=_order)
    about = About.load(folder / "run.json")
    notes = [*about.notes, *left_out, *data_notes(records), *_machines(records, across_machines), *warnings(records)]
    figures = [row(record, bandwidth_bit_per_s or about.bandwidth_bit_per_s) for record in records]
    trials = trials_of(records, figures, across_machines)
    searches = [Frontier.load(path.parent) for path in sorted(folder.glob("searches/*/frontier.json"))]
    return Run(printable(folder.resolve().name), records, figures, trials, about, notes, left_out, searches)


def data_notes(records: list[Record]) -> list[str]:
    """What the tasks' data say of themselves."""
    told = ((PurePath(record.trial.task).name, record.notes.get("data")) for record in records)
    return list(dict.fromkeys(printable(f"{task}: {about}")[:500] for task, about in told if isinstance(about, str)))


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
    work = trial.workload != "inference", trial.task, trial.model, trial.scenario, trial.model_privacy
    return *work, trial.backend != CLEAR, trial.backend, record.started_at, record.key
