"""Published figures beside what was measured here. The figures are data, with their sources: ``claims.toml``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import msgspec

from bench.report.layout import Trial
from bench.report.quantity import interval, times, with_unit
from bench.report.table import COLUMNS
from models import catalogue

FILE = Path(__file__).parent / "claims.toml"
ACCURACY = "accuracy_encrypted"
MORE_IS_BETTER = (ACCURACY, "throughput_images_per_s")


class Claim(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One published figure; the fields are explained in ``claims.toml``."""

    system: str
    figure: str
    column: str
    value: float
    per_image: bool = False
    ours: dict[str, str]
    hardware: str
    source: str
    comparable: Literal["yes", "partly", "no"]
    why: str
    contradicts: str = ""


class Compared(msgspec.Struct, kw_only=True):
    """A claim as text beside our best trial of that work; `trial` and `ratio` are empty if there is none."""

    system: str
    figure: str
    published: str
    ours: str
    trial: str
    ratio: str
    comparable: str
    why: str
    hardware: str
    source: str
    contradicts: str


def read() -> list[Claim]:
    return msgspec.toml.decode(FILE.read_bytes(), type=dict[str, list[Claim]])["claim"]


def compare(trials: list[Trial]) -> list[Compared]:
    """Every claim beside the best of `trials` (rows of `bench.report.layout.trials_of`) that does the same work."""
    return [_compare(claim, trials) for claim in read()]


def ours(claim: Claim, trials: list[Trial]) -> tuple[float, Trial] | None:
    """Our best figure for a claim, and the trial it is of: encrypted, ok and, for an accuracy, over the most images."""
    found = [t for t in trials if t["status"] == "ok" and t["encrypted"] and _same_work(claim, t)]
    found = [t for t in found if t.get(claim.column) is not None]
    if claim.column == ACCURACY:  # of those over the most images: the best of many small samples is luck
        found = [t for t in found if t["telling"]]
        found = [t for t in found if t["images"] == max(t["images"] for t in found)]
    if not found:
        return None
    best = max if claim.column in MORE_IS_BETTER else min
    value, index = best((t[claim.column] / (t["batch"] if claim.per_image else 1), i) for i, t in enumerate(found))
    return value, found[index]


def _same_work(claim: Claim, trial: Trial) -> bool:
    if trial.get("workload", "inference") != claim.ours.get("workload", "inference"):
        return False
    known = trial | {"lowering": json.loads(trial.get("network") or "{}").get("lowering")}
    if not catalogue.preset(claim.ours.get("model", "")):  # a model stands for all its presets
        known["model"] = catalogue.base(trial["model"])
    return all(known.get(name) == wanted for name, wanted in claim.ours.items())


def _compare(claim: Claim, trials: list[Trial]) -> Compared:
    unit = COLUMNS[claim.column].unit
    value, trial = ours(claim, trials) or (None, {})
    names = [trial[name] for name in ("backend", "model", "task", "scenario") if name in trial]
    if claim.column == ACCURACY and trial:
        names.append(f"{trial['images']} images, {interval(trial[ACCURACY + '_low'], trial[ACCURACY + '_high'], unit)}")
    return Compared(
        system=claim.system,
        figure=claim.figure,
        published=_text(claim.value, unit),
        ours=_text(value, unit) if value else "not measured in this run",
        trial=" · ".join(names),
        ratio=_ratio(claim, value) if value else "",
        comparable=claim.comparable,
        why=claim.why,
        hardware="" if claim.hardware == "no matter" else claim.hardware,
        source=claim.source,
        contradicts=claim.contradicts,
    )


def _ratio(claim: Claim, value: float) -> str:
    """Ours against the published figure: ``85.6× less``; of an accuracy, the difference in points."""
    if claim.column == ACCURACY:
        return f"{100 * (value - claim.value):+.1f} points".replace("-", "−")
    return f"{times(value / claim.value)} more" if value > claim.value else f"{times(claim.value / value)} less"


def _text(value: float, unit: str) -> str:
    text = with_unit(value, unit)
    return f"{text} {unit}" if unit not in ("s", "bytes", "") else text
