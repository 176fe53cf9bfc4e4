"""What the figures say, in up to three sentences: fastest, most accurate, smallest request.

What is ranked is a backend or, where a run has several models, a backend with a model. They are compared only where they
did the same work (`_work`), all encrypted and ok, and per image, so that a request of many images is not held against
its sender.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from bench.report.quantity import times, with_unit

Figures = dict[str, Any]
Values = dict[str, float]  # by backend, within one comparison
ACCURACY = "accuracy_encrypted"
NAMED = 3  # of those behind the first; and the last
HEADLINE = {
    "workload": "inference",
    "scenario": "single-stream",
    "model_privacy": "plain",
}  # what is ranked, if two trials or more are so


def verdict(trials: list[Figures]) -> list[str]:
    """Sentences from rows of `bench.report.layout.trials_of`."""
    finished = [t for t in trials if t["status"] == "ok"]
    if not finished:
        return ["No trial finished; the reasons are listed under Failures."]
    encrypted = [t for t in finished if t["encrypted"]]
    if not encrypted:
        return ["Nothing was encrypted in these trials: the figures are those of the network in the clear."]
    if len({t["backend"] for t in encrypted}) == 1:
        return [_alone(encrypted)]
    for axis, wanted in HEADLINE.items():
        usual = [t for t in encrypted if t.get(axis, wanted) == wanted]
        encrypted = usual if len({t["backend"] for t in usual}) > 1 else encrypted
    sentences = [
        _cheapest(encrypted, "server_wall_s_median", "s", "Fastest on the server", "as long"),
        _most_accurate(encrypted),
        _cheapest(encrypted, "request_bytes", "bytes", "Smallest request", "as many bytes"),
    ]
    return [s for s in sentences if s] or ["No two encrypted backends did the same work, so there is nothing to rank."]


def _alone(trials: list[Figures]) -> str:
    figures = [
        ("accuracy {}", _span([t["accuracy_encrypted"] for t in trials if "accuracy_encrypted" in t], "")),
        ("server time {} an image", _span(_per_image(trials, "server_wall_s_median"), "s")),
        ("request {} an image", _span(_per_image(trials, "request_bytes"), "bytes")),
    ]
    known = ", ".join(words.format(span) for words, span in figures if span)
    return f"One encrypted backend finished: {trials[0]['backend']}, {known or 'without figures'}."


def _cheapest(trials: list[Figures], column: str, unit: str, title: str, as_much: str) -> str:
    groups = _comparisons(trials, lambda t: t[column] / t["batch"], column)
    if not groups:
        return ""
    best, wins = _leaders(groups, lambda value, group: math.log(value / min(group.values())), min)
    leader = best[0]
    ratios = {
        backend: math.exp(sum(logs) / len(logs))
        for backend, logs in _against(groups, leader, lambda other, own: math.log(other / own)).items()
        if backend not in best
    }
    ranked = [f"{name} {times(ratio)}" for name, ratio in sorted(ratios.items(), key=lambda item: item[1])]
    figure = _span([g[leader] for g in groups if leader in g], unit)
    takes = f"; {_behind(ranked)} {as_much}" if ranked else ""
    return f"{title}: {_first(best)}, {figure} an image{_of(wins, len(groups))}{takes}."


def _most_accurate(trials: list[Figures]) -> str:
    groups = _comparisons([t for t in trials if t["telling"]], lambda t: t[ACCURACY], ACCURACY)
    if not groups:
        return ""
    best, wins = _leaders(groups, lambda value, group: max(group.values()) - value, max)
    leader = best[0]
    own = [g[leader] for g in groups if leader in g]
    means = {
        name: sum(values) / len(values)
        for name, values in sorted(_against(groups, leader, lambda other, _: other).items())
        if name not in best
    }
    others = [f"{name} {mean:.3f}" for name, mean in sorted(means.items(), key=lambda item: -item[1])]
    mean = f"{sum(own) / len(own):.3f}" + (" on average" if len(own) > 1 else "")
    rest = f"; {_behind(others)}" if others else ""
    doubt = "; their 95 % intervals overlap, so the order is not settled" if others and _overlap(trials) else ""
    return f"Most accurate under encryption: {_first(best)}, {mean}{_of(wins, len(groups))}{rest}{doubt}."


def _work(trial: Figures, column: str) -> tuple[str, ...]:
    """What must be equal for a comparison of this column to be fair. Costs are those of one request: only accuracy
    depends on which images were asked for."""
    names: tuple[str, ...] = ("task", "workload", "scenario", "model_privacy", "threads", "host")
    names += ("images_asked", "seed") if column == ACCURACY else ()
    return tuple(str(trial.get(name)) for name in names)


def _comparisons(trials: list[Figures], value: Callable[[Figures], float], column: str) -> list[Values]:
    """Values by backend (and model) for each kind of work that two or more of them did."""
    groups: dict[tuple[str, ...], Values] = defaultdict(dict)
    several = len({t["model"] for t in trials}) > 1
    for trial in trials:
        if trial.get(column) is not None and (column == ACCURACY or trial[column] > 0):
            name = f"{trial['backend']} {trial['model']}" if several else trial["backend"]
            groups[_work(trial, column)][name] = value(trial)
    return [group for group in groups.values() if len(group) > 1]


def _leaders(
    groups: list[Values], regret: Callable[[float, Values], float], best_of: Callable[..., float]
) -> tuple[list[str], int]:
    """The backends with the least mean regret (several if tied), and in how many comparisons the first is best."""
    regrets: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        for backend, value in group.items():
            regrets[backend].append(regret(value, group))
    means = {backend: sum(all_) / len(all_) for backend, all_ in regrets.items()}
    least = min(means.values())
    best = sorted(backend for backend, mean in means.items() if math.isclose(mean, least, abs_tol=1e-12))
    return best, sum(group.get(best[0]) == best_of(group.values()) for group in groups)


def _against(groups: list[Values], leader: str, compare: Callable[[float, float], float]) -> dict[str, list[float]]:
    """Each other backend compared with the leader, wherever both are."""
    found: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        for backend, value in group.items():
            if backend != leader and leader in group:
                found[backend].append(compare(value, group[leader]))
    return found


def _overlap(trials: list[Figures]) -> bool:
    """Whether, in every comparison, all intervals meet that of the most accurate: then nothing is shown to be behind."""
    groups: dict[tuple[str, ...], list[Figures]] = defaultdict(list)
    for trial in trials:
        if trial["telling"] and trial.get(ACCURACY) is not None:
            groups[_work(trial, ACCURACY)].append(trial)
    lows = {work: max(group, key=lambda t: t[ACCURACY])[f"{ACCURACY}_low"] for work, group in groups.items()}
    return all(t[f"{ACCURACY}_high"] >= lows[work] for work, group in groups.items() for t in group)


def _per_image(trials: list[Figures], column: str) -> list[float]:
    return [t[column] / t["batch"] for t in trials if t.get(column) is not None]


def _span(values: list[float], unit: str) -> str:
    if not values:
        return ""
    low, high = with_unit(min(values), unit), with_unit(max(values), unit)
    return low if low == high else f"{low} to {high}"


def _of(wins: int, comparisons: int) -> str:
    return f", best in {wins} of {comparisons} comparisons" if comparisons > 1 else ""


def _first(best: list[str]) -> str:
    return _listed(best) if len(best) <= NAMED else _listed([*best[: NAMED - 1], f"{len(best) - NAMED + 1} others"])


def _behind(ranked: list[str]) -> str:
    """Those next to the first and, if some have to be left out, the last."""
    if len(ranked) <= NAMED + 1:
        return _listed(ranked)
    return f"{', '.join(ranked[:NAMED])}, …, {ranked[-1]}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
