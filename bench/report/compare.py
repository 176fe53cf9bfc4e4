"""``python -m bench compare``: two runs, trial by trial, and whether the second is a regression."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from scipy.stats import bootstrap, mannwhitneyu

from bench.metrics import CONFIDENCE, Interval
from bench.record import Record, RecordError, Trial, newest
from bench.report.table import COLUMNS, row, totals
from bench.session import ONCE, REQUEST, SERVER_REQUEST

SIGNIFICANT = 0.01
RESAMPLES = 9999
SHOWN = ("server_s", "request_s")  # whatever the limits are
TIMES = {f"{name}_s": {name: stage} for name, stage in REQUEST.items()} | {
    "server_s": SERVER_REQUEST,
    "request_s": REQUEST,
}
SINGLE_TIMES = {f"{name}_s": f"{name}_wall_s" for name in ONCE}
SIZES = [name for name, column in COLUMNS.items() if column.unit == "bytes" and "_over_" not in name]
MACHINE = ("host", "cpu", "cores")
LIMIT = re.compile(r"(?P<figure>\w+):(?P<percent>\d+(\.\d+)?)%")


class CompareError(ValueError):
    """Runs that cannot be compared, or a limit that cannot be understood."""


@dataclass(frozen=True)
class Comparison:
    """One figure of one trial in both runs.

    ratio: of the medians, second run over first, with its bootstrap interval (no bounds below 6 samples, or for a size).
    p: of the two-sided Mann-Whitney rank test; ``None`` if the samples are so few that it could never be significant.
    """

    trial: Trial
    figure: str
    first: float
    second: float
    ratio: Interval
    p: float | None
    exact: bool = False

    @property
    def verdict(self) -> str:
        if self.exact:
            return "same" if self.ratio.value == 1 else "more" if self.ratio.value > 1 else "less"
        if self.p is None:
            return "too few samples"
        return "no difference shown" if self.p >= SIGNIFICANT else "slower" if self.ratio.value > 1 else "faster"

    def exceeds(self, limit: float) -> bool:
        """Whether the ratio is above 1 + limit, and not by chance."""
        return self.verdict in ("more", "slower") and self.ratio.value > 1 + limit


@dataclass(frozen=True)
class Result:
    """comparisons: of trials that are ok in both. broken: ok in the first run alone, with what they are in the second.
    only: labels of the trials that one run lacks. undecided: figures with a limit and too few samples.
    """

    comparisons: list[Comparison]
    regressions: list[Comparison]
    undecided: list[Comparison]
    broken: list[tuple[Trial, str]]
    only: list[str]
    notes: list[str]


def limits(texts: Iterable[str]) -> dict[str, float]:
    """``infer_s:10%`` → {"infer_s": 0.1}. Raises CompareError."""
    found = {}
    for text in texts:
        match = LIMIT.fullmatch(text)
        if not match:
            raise CompareError(f"cannot read {text!r}: write a figure and a limit, as infer_s:10%")
        known = [*TIMES, *SINGLE_TIMES, *SIZES]
        if match["figure"] not in known:
            raise CompareError(f"unknown figure {match['figure']!r}: choose from {', '.join(known)}")
        found[match["figure"]] = float(match["percent"]) / 100
    return found


def compare(first: Path, second: Path, allowed: dict[str, float], force: bool = False) -> Result:
    """allowed: by figure, the share by which it may grow. force: also across machines. Raises CompareError."""
    (before, left_out), (after, left_out_after) = _latest(first), _latest(second)
    both = [identity for identity in before if identity in after]
    if not both:
        raise CompareError(f"{first} and {second} have no trial in common")
    pairs = [(before[identity], after[identity]) for identity in both]
    different = [a for a, b in pairs if any(a.machine.get(name) != b.machine.get(name) for name in MACHINE)]
    if different and not force:
        raise CompareError(
            f"{len(different)} of {len(pairs)} trials ran on different machines ({different[0].trial.label}), "
            "so their times say nothing about the code: run both on one machine, or pass --force"
        )
    figures = dict.fromkeys((*SHOWN, *allowed))
    measured = [(a, b) for a, b in pairs if a.status == b.status == "ok"]
    comparisons = [c for a, b in measured for figure in figures if (c := _comparison(a, b, figure))]
    limited = [c for c in comparisons if c.figure in allowed]
    return Result(
        comparisons,
        regressions=[c for c in limited if c.exceeds(allowed[c.figure])],
        undecided=[c for c in limited if not c.exact and c.p is None and c.ratio.value > 1 + allowed[c.figure]],
        broken=[(a.trial, f"{b.status}, {b.reason}") for a, b in pairs if a.status == "ok" and b.status != "ok"],
        only=[
            f"{run}: {record.trial.label}"
            for run, own, other in ((first, before, after), (second, after, before))
            for identity, record in own.items()
            if identity not in other
        ],
        notes=[*left_out, *left_out_after, *_notes(measured, bool(different))],
    )


def _latest(run: Path) -> tuple[dict[Trial, Record], list[str]]:
    """The last record of each trial, and what was left out. Raises CompareError."""
    try:
        records, left_out = newest(run, _asked)
    except RecordError as error:
        raise CompareError(str(error)) from error
    return {_asked(record): record for record in records}, left_out


def _asked(record: Record) -> Trial:
    """What was asked for; how long and how precisely does not matter, nor where."""
    return msgspec.structs.replace(record.trial, timeout_s=0.0, precision=0.0, sampling_s=0.0)


def _comparison(first: Record, second: Record, figure: str) -> Comparison | None:
    if figure in TIMES:
        a, b = totals(first, TIMES[figure]), totals(second, TIMES[figure])
    else:
        values = [row(record).get(SINGLE_TIMES.get(figure, figure)) for record in (first, second)]
        a, b = ([] if value is None else [value] for value in values)
    if not a or not b or median(a) <= 0:
        return None
    exact = figure in SIZES
    ratio = Interval(median(b) / median(a), None, None) if exact else ratio_of_medians(a, b)
    return Comparison(first.trial, figure, median(a), median(b), ratio, None if exact else rank_test(a, b), exact)


def ratio_of_medians(a: list[float], b: list[float]) -> Interval:
    """median(b) / median(a) with its percentile bootstrap interval; without bounds if either has fewer than 6 samples."""

    def statistic(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.median(y, axis=axis) / np.median(x, axis=axis)

    value = median(b) / median(a)
    if min(len(a), len(b)) < 6:
        return Interval(value, None, None)
    bounds = bootstrap(
        (a, b),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Interval(value, float(bounds.low), float(bounds.high))


def rank_test(a: list[float], b: list[float]) -> float | None:
    if 2 / comb(len(a) + len(b), len(a)) >= SIGNIFICANT:  # the least p that the exact test can give
        return None
    return float(mannwhitneyu(a, b).pvalue)


def _notes(pairs: list[tuple[Record, Record]], forced: bool) -> list[str]:
    notes = ["Different machines: the ratios are of the machines, too."] if forced else []
    speeds = [
        (b.conditions.calibration_before_s + b.conditions.calibration_after_s)
        / (a.conditions.calibration_before_s + a.conditions.calibration_after_s)
        for a, b in pairs
        if a.conditions and b.conditions
    ]
    if speeds and abs(median(speeds) - 1) > 0.05:
        notes.append(
            f"In the second run a fixed piece of work took {median(speeds) - 1:+.0%}: the machine changed, too."
        )
    return notes


def show(result: Result) -> None:
    from rich.console import Console
    from rich.text import Text

    from bench.report.quantity import with_unit
    from bench.report.terminal import fitting

    rows = []
    for c in result.comparisons:
        unit = "bytes" if c.exact else "s"
        interval = "" if c.ratio.low is None else f"{c.ratio.low:.3f}–{c.ratio.high:.3f}"
        p = "" if c.p is None else f"{c.p:.2g}"
        figures = (with_unit(c.first, unit), with_unit(c.second, unit), f"{c.ratio.value:.3f}", interval, p)
        regression = c in result.regressions
        verdict = Text(f"{c.verdict}: regression" if regression else c.verdict, style="red" if regression else "")
        rows.append((c.trial.label, c.figure, *figures, verdict))
    titles = ("trial", "figure", "first", "second", "ratio", "95 % interval", "p", "verdict")
    console = Console()
    console.print(fitting(console, titles, rows, left=("figure", "verdict")))
    for trial, outcome in result.broken:
        console.print(f"{trial.label}: was ok, is {outcome}", style="red", markup=False)
    for label in result.only:
        console.print(f"only in {label}", markup=False)
    for c in result.undecided:
        console.print(f"{c.trial.label}: {c.figure} is over its limit, with too few samples to tell", markup=False)
    for note in result.notes:
        console.print(note, markup=False)
