"""When a trial has timed enough requests."""

from __future__ import annotations

from bench.metrics import Interval, median_interval
from bench.record import SamplingEnd

MAXIMUM_SAMPLES = 200  # of a trial with fewer images: the interval is then ± a tenth of the standard deviation


def half_width(interval: Interval) -> float:
    """The larger distance of the bounds from the median, as a share of it; infinite without bounds."""
    if interval.low is None or interval.high is None or not interval.value:
        return float("inf")
    return max(interval.high - interval.value, interval.value - interval.low) / interval.value


def ended(
    totals: list[list[float]], precision: float, repeating_s: float, sampling_s: float, remaining_s: float
) -> SamplingEnd:
    """Why sampling ends now; empty: another request shall be timed.

    totals: wall seconds of each request so far, one list for each figure that shall be precise. repeating_s: seconds since
    every image was asked for. remaining_s: until the trial's time is over, which is left before a request could exceed it.
    """
    if not precision:
        return "fixed"
    if all(half_width(median_interval(samples)) <= precision for samples in totals):
        return "precise"
    if len(totals[0]) >= MAXIMUM_SAMPLES:
        return "count"
    # a request of a clear network takes much of its time between the stages: hence the factor
    if repeating_s >= sampling_s or remaining_s < 3 * max(map(max, totals)) + 1:
        return "time"
    return ""
