"""Markdown: the results of a run for a pull request or a paper, the claims, and the schema of the CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.report import claims
from bench.report.layout import SUMMARY, Trial, cell, label, values_of
from bench.report.reading import Run, data_notes
from bench.report.table import COLUMNS, describe_machine
from bench.report.verdict import verdict

LEFT = ("status",)


def results(run: Run) -> str:
    """What was compared, the verdict, the summary with intervals, reasons of failures, and the machine."""
    values = values_of(run.trials)
    rows = [
        [" · ".join(label(trial, values)), *(_with_interval(trial, heading.column) for heading in SUMMARY)]
        for trial in run.trials
    ]
    titles = ["Trial", *(heading.title for heading in SUMMARY)]
    failures = [
        f"- {' · '.join(label(trial, values))}: {trial['status']}, {trial.get('reason', 'no reason was recorded')}"
        for trial in run.trials
        if trial["status"] != "ok"
    ]
    parts = [
        f"## {run.title}",
        "\n".join(f"- {sentence}" for sentence in verdict(run.trials)),
        *(["\n".join(f"- {_one_line(told)}" for told in told_of_data)] if (told_of_data := data_notes(run.records)) else []),
        _table(titles, rows, left=[0, *(i for i, h in enumerate(SUMMARY, 1) if h.column in LEFT)]),
        *(["Failures\n", "\n".join(map(_one_line, failures))] if failures else []),
        "Medians, in brackets 95 % intervals (order statistics; accuracy: Wilson). "
        + "; ".join(dict.fromkeys(describe_machine(record.machine) for record in run.records if record.machine))
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def claims_page(trials: list[Trial]) -> str:
    """Every published figure beside ours (see `bench.report.claims`)."""
    rows = [
        [
            c.system, c.figure,
            c.published + (f" (≠ {c.contradicts})" if c.contradicts else ""),
            c.ours + (f" ({c.trial})" if c.trial else ""),
            c.ratio, f"{c.comparable}: {c.why}", c.hardware, c.source,
        ]
        for c in claims.compare(trials)
    ]  # fmt: skip
    titles = ["System", "Figure", "Published", "Measured here", "Ours is", "Comparable", "Hardware", "Source"]
    return _table(titles, rows, left=range(len(titles))) + "\n"


def schema() -> str:
    """The columns of ``results.csv`` and ``results.parquet``."""
    rows = [[f"`{name}`", column.unit, column.meaning] for name, column in COLUMNS.items()]
    return _table(["Column", "Unit", "Meaning"], rows, left=range(3)) + "\n"


def _with_interval(trial: Trial, column: str) -> str:
    figure, interval = cell(trial, column)
    return f"{figure} ({interval})" if interval else figure


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int]) -> str:
    left = set(left)
    lines = [titles, [":--" if i in left else "--:" for i in range(len(titles))], *rows]
    return "\n".join("| " + " | ".join(_one_line(text).replace("|", "\\|") for text in line) + " |" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.replace("<", "&lt;").split())
