"""``python -m bench show``: a run, or one of its trials, in the terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bench.metrics import by_class
from bench.record import Record
from bench.report.layout import SUMMARY, Heading, Trial, cell, column, headings, label, values_of
from bench.report.quantity import with_unit
from bench.report.reading import Run
from bench.report.verdict import verdict
from bench.session import ONCE, REQUEST

BAR = 12  # characters of the longest bar
BLOCKS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
BARS = {"server_wall_s_median", "request_bytes", "server_peak_rss_bytes"}  # columns of the summary with a bar
SHOWN = [h for h in SUMMARY if h.column not in ("agreement", "response_bytes", "client_peak_rss_bytes", "batch")]


def fitting(
    console: Console, titles: Sequence[str], rows: Iterable[Sequence[str | Text | Group]], left: Collection[str] = ()
) -> RenderableType:
    """A table or, where the console is too narrow for its words, a list: each row's first cell, then its others with titles.

    left: titles of columns that are aligned to the left, beside the first.
    """
    rows, table = list(rows), _table(*titles)
    for column_ in table.columns:
        if column_.header in left:
            column_.justify = "left"
    for row in rows:
        table.add_row(*row)
    if console.measure(table, options=console.options.update(max_width=1000)).minimum <= console.width:
        return table
    parts: list[RenderableType] = []
    for first, *others in rows:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(overflow="fold", style="dim")
        grid.add_column(overflow="fold")
        for title, cell_ in zip(titles[1:], others, strict=True):
            if str(cell_):
                grid.add_row(title, cell_)
        parts += [Text(str(first), style="bold"), Padding(grid, (0, 0, 1, 2))]
    return Group(*parts)


def show_run(run: Run, console: Console) -> None:
    """What was measured: the verdict, the summary with a logarithmic bar beside the main costs, and the failures."""
    values = values_of(run.trials)
    console.print(f"[bold]{escape(run.title)}[/bold]: {len(run.trials)} trials")
    for sentence in verdict(run.trials):
        console.print(escape(sentence))
    for note in run.notes:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    shown = [h for h in SHOWN if any(t.get(h.column) is not None for t in run.trials)]
    rows = [
        (Text(" · ".join(label(trial, values))), *(_cell(trial, heading, run.trials) for heading in shown))
        for trial in run.trials
    ]
    console.print(fitting(console, ["Trial", *(h.title for h in shown)], rows))
    for trial in run.trials:
        if trial["status"] != "ok":
            console.print(
                f"[red]{trial['status']}[/red] {escape(' · '.join(label(trial, values)))}: {escape(trial.get('reason', ''))}"
            )
    console.print(f"One trial: python -m bench show RUN KEY, as {run.trials[0]['key']}.", style="dim")


def show_trial(run: Run, index: int, console: Console) -> None:
    """All figures of one trial: each stage with its samples as a sparkline, then every other figure with its meaning."""
    record, trial = run.records[index], run.trials[index]
    console.print(f"[bold]{escape(record.trial.label)}[/bold]  {record.key}")
    console.print(f"{record.status}{': ' if record.reason else ''}{escape(record.reason)}")
    if record.stages:
        console.print(_stages(record, trial))
    for title, of in headings([trial]).items():
        rows = [(h, *cell(trial, h.column)) for h in of if h.column not in ("status", "reason")]
        if title in ("summary", "stages", "once", "failures") or not rows:
            continue
        table = _table(title.capitalize(), "", "")
        for heading, figure, interval in rows:
            meaning = Text(column(heading.column).meaning, style="dim")
            table.add_row(Text(heading.title), Text(f"{figure} ({interval})" if interval else figure), meaning)
        table.columns[2].justify = "left"
        console.print(table)
    console.print(escape(record.command), style="dim")


def find(run: Run, wanted: str) -> list[int]:
    """Indices of the trials whose key starts with `wanted`, or whose name contains it."""
    keys = [i for i, record in enumerate(run.records) if record.key.startswith(wanted)]
    return keys or [i for i, record in enumerate(run.records) if wanted in record.trial.label]


class UnknownLabel(LookupError):
    """No class or label of the trial has this name; the message lists those that exist."""


def show_labels(run: Run, index: int, wanted: list[str], console: Console) -> None:
    """Quality of some classes or labels of one trial, by name or number. Raises UnknownLabel."""
    record = run.records[index]
    outputs = record.outputs
    found = {str(each.label): each for each in by_class(outputs)} if outputs else {}
    names = {str(number): name for number, name in enumerate(outputs.names)} if outputs else {}
    numbers = {name: number for number, name in names.items()}
    table = _table("Label", "Images", "AUC", "Sensitivity", "Specificity")
    for name in wanted:
        if (each := found.get(numbers.get(name, name))) is None:
            known = ", ".join(names.get(number, number) for number in found) or "none: nothing was decrypted"
            raise UnknownLabel(f"no class or label {name!r} in {record.trial.label}: choose from {known}")
        figures = (
            "" if one is None else f"{one.value:.3f}" + ("" if one.low is None else f" ({one.low:.3f} to {one.high:.3f})")
            for one in (each.auc, each.sensitivity, each.specificity)
        )
        table.add_row(Text(names.get(str(each.label), str(each.label))), str(each.positives), *figures)
    console.print(f"[bold]{escape(record.trial.label)}[/bold]  {record.key}")
    console.print(table)


def _stages(record: Record, trial: Trial) -> Table:
    table = _table("Stage", "median", "share", "samples in order")
    table.columns[3].justify = "left"
    total = trial.get("request_wall_s_median") or math.inf
    for prefix, (role, name, _) in (ONCE | REQUEST).items():
        stage = record.stage(role, name)
        if not stage or not stage.wall_s:
            continue
        per_request = prefix in REQUEST
        figure, interval = cell(trial, f"{prefix}_wall_s_median" if per_request else f"{prefix}_wall_s")
        share = trial.get(f"{prefix}_wall_s_median", 0) / total if per_request else None
        table.add_row(
            f"{role}: {prefix.replace('_', ' ')}",
            f"{figure} ({interval})" if interval else figure,
            "once" if share is None else f"{share:.1%}",
            sparkline(stage.wall_s) if per_request else "",
        )
    if "request_wall_s_median" in trial:
        table.add_row("round trip", with_unit(trial["request_wall_s_median"], "s"), "", "")
    return table


def _cell(trial: Trial, heading: Heading, trials: list[Trial]) -> Text | Group:
    figure, interval = cell(trial, heading.column)
    text = Text(figure, style="red" if heading.column == "status" and figure != "ok" else "")
    if heading.column in BARS and figure:
        known = [t[heading.column] for t in trials if (t.get(heading.column) or 0) > 0]
        drawn = Text(bar(trial[heading.column], min(known), max(known)), style="cyan", justify="left")
        return Group(text, *([Text(interval, style="dim")] if interval else []), drawn)
    return Group(text, Text(interval, style="dim")) if interval else text


def bar(value: float, low: float, high: float) -> str:
    """A bar on a logarithmic scale: one block for `low`, `BAR` for `high`."""
    share = math.log(value / low) / math.log(high / low) if high > low and value > 0 else 0.0
    eighths = round(8 * (1 + (BAR - 1) * min(1.0, max(0.0, share))))
    return BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8].strip()


def sparkline(samples: list[float], width: int = 40) -> str:
    """Samples in order, from the least to the greatest; of more than `width`, the greatest of each stretch."""
    count = min(width, len(samples))
    stretches = [samples[i * len(samples) // count : (i + 1) * len(samples) // count] for i in range(count)]
    heights = [max(stretch) for stretch in stretches]
    low, span = min(samples), max(samples) - min(samples)
    return "".join(LEVELS[round((len(LEVELS) - 1) * (h - low) / span)] if span else LEVELS[0] for h in heights)


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    return table
