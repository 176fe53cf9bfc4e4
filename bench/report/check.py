"""``python -m bench check``: which figures of a run are unstable, and why (after pyperf's command of that name)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.stats import kendalltau

from bench.metrics import median_interval
from bench.record import Conditions, Record
from bench.report.quantity import with_unit
from bench.report.table import totals
from bench.sampling import half_width
from bench.session import REQUEST, SERVER_REQUEST

PRECISION = 0.05  # where a trial asked for none
DRIFT = 0.1  # share by which the machine's speed may differ
OTHER_CORES = 0.2  # that other processes may keep busy
STEAL_SHARE = 0.02
BUSY_CORES = 0.1  # that a party may use above those asked for: CPU and wall time come from two clocks
MEASURABLE_S = 0.2  # of inference, below which CPU time is too coarse
TREND_P = 0.001


@dataclass(frozen=True)
class Finding:
    """kind: a key of `KINDS`. why: one sentence on this trial. size: how bad, among findings of one kind."""

    record: Record
    kind: str
    why: str
    size: float


# What a finding means for a reader of the report, in the order of its importance.
KINDS = {
    "threads": "A party used more cores than it was given",
    "drift": "The machine's speed drifted",
    "load": "The machine was loaded by other processes",
    "steal": "The hypervisor took CPU time away",
    "trend": "Requests grew slower or faster while they were timed",
    "wide": "Medians are less certain than asked for",
    "few": "There are too few samples for an interval",
}


def findings(records: Iterable[Record]) -> list[Finding]:
    """Of all trials that were measured, in the order of the records."""
    measured = [record for record in records if record.stages and record.status in ("ok", "wrong")]
    speeds: dict[str, list[float]] = defaultdict(list)
    for record in measured:
        if record.conditions:
            c = record.conditions
            speeds[record.machine.get("host", "")] += [c.calibration_before_s, c.calibration_after_s]
    found = []
    for record in measured:
        found += _samples(record)
        if record.conditions:
            found += _conditions(record, record.conditions, median(speeds[record.machine.get("host", "")]))
        found += _threads(record)
    return found


def warnings(records: Iterable[Record]) -> list[str]:
    """A line for the report on each kind of finding, with the worst of them."""
    records = list(records)
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings(records):
        by_kind[finding.kind].append(finding)
    lines = []
    for kind, title in KINDS.items():
        if found := by_kind[kind]:
            worst = max(found, key=lambda finding: finding.size)
            trials = len({finding.record.key for finding in found})
            lines.append(
                f"{title} in {trials} of {len(records)} trials; the worst is {worst.record.trial.label}: {worst.why}. "
                "`python -m bench check` names all."
            )
    return lines


def show(records: list[Record], write: Callable[[str], None] = print) -> bool:
    """Prints all findings by trial, with what to do; returns whether the run is stable."""
    found = findings(records)
    for record in records:
        if own := [finding for finding in found if finding.record is record]:
            write(f"{record.trial.label} ({record.key})")
            for finding in own:
                write(f"  {KINDS[finding.kind].lower()}: {finding.why}")
    unstable = len({finding.record.key for finding in found})
    measured = sum(bool(record.stages) for record in records)
    write(f"{unstable} of {measured} measured trials are unstable" if found else f"all {measured} trials are stable")
    if found:
        write("Close other programs, fix the clock of the CPU, and run them again with a longer --sampling-time.")
    return not found


def _samples(record: Record) -> list[Finding]:
    found = []
    asked = record.trial.precision or PRECISION
    for name, stages in (("server", SERVER_REQUEST), ("request", REQUEST)):
        samples = totals(record, stages)
        if not samples:
            continue
        interval = median_interval(samples)
        if interval.low is None:
            why = f"{len(samples)} timed requests; a 95 % interval of the median needs 6"
            return [Finding(record, "few", why, -len(samples))]
        if (width := half_width(interval)) > asked:
            low, high = np.quantile(samples, (0.25, 0.75))
            why = (
                f"{name} time is known to ±{width:.1%}, not ±{asked:.1%}: {_end(record, len(samples))}, "
                f"of which the middle half took {with_unit(float(low), 's')} to {with_unit(float(high), 's')}"
            )
            found.append(Finding(record, "wide", why, width))
        half = len(samples) // 2
        change = median(samples[half:]) / median(samples[:half]) - 1
        if abs(change) > asked and kendalltau(range(len(samples)), samples).pvalue < TREND_P:
            why = f"{name} time changed by {change:+.0%} from the first half of the requests to the second"
            found.append(Finding(record, "trend", why, abs(change)))
    return found


def _end(record: Record, samples: int) -> str:
    ends = {
        "time": f"the time to sample ended after {samples} requests",
        "count": f"{samples} requests, the most, were timed",
    }
    return ends.get(record.sampling_ended, f"{samples} requests were timed")


def _conditions(record: Record, seen: Conditions, usual_s: float) -> list[Finding]:
    found = []
    change = seen.calibration_after_s / seen.calibration_before_s - 1
    apart = (
        max(seen.calibration_before_s, seen.calibration_after_s, key=lambda s: abs(np.log(s / usual_s))) / usual_s - 1
    )
    if abs(change) > DRIFT:
        why = f"a fixed piece of work took {change:+.0%} after the trial against before it"
        found.append(Finding(record, "drift", why, abs(change)))
    elif abs(apart) > DRIFT:
        why = f"a fixed piece of work took {apart:+.0%} against the median of the run"
        found.append(Finding(record, "drift", why, abs(apart)))
    if seen.other_cores is not None and seen.other_cores > OTHER_CORES:
        why = f"other processes kept {seen.other_cores:.1f} cores busy"
        found.append(Finding(record, "load", why, seen.other_cores))
    if seen.steal_share is not None and seen.steal_share > STEAL_SHARE:
        why = f"{seen.steal_share:.0%} of the CPU time went to other virtual machines"
        found.append(Finding(record, "steal", why, seen.steal_share))
    return found


def _threads(record: Record) -> list[Finding]:
    infer, ratio = record.stage("server", "infer"), record.cpu_wall_ratio
    if not infer or ratio is None or sum(infer.wall_s) < MEASURABLE_S or ratio <= record.trial.threads + BUSY_CORES:
        return []
    why = f"inference kept {ratio:.1f} cores busy, {record.trial.threads} asked for"
    return [Finding(record, "threads", why, ratio / record.trial.threads)]
