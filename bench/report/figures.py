"""Figures for papers: SVG and PDF with matplotlib, which needs neither browser nor network.

Colours, symbols, fills and hatches are those of the page: read from its style sheet and `bench.report.page.SYMBOLS`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator
from functools import partial

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.typing import FillStyleType

from bench.report.layout import Trial, label, values_of
from bench.report.page import TEMPLATES, markers_of
from bench.report.quantity import THIN_SPACE, grouped, with_unit
from bench.session import REQUEST

MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "triangle-down": "v",
    "hexagon": "h", "star-square": "X",
}  # fmt: skip
FILLS: tuple[FillStyleType, ...] = ("full", "none", "left", "bottom")  # of the first, second, … model
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
         "pdf.fonttype": 42, "axes.grid": True, "grid.linewidth": 0.4, "grid.color": "0.85",
         "axes.axisbelow": True, "svg.hashsalt": "bench"}  # fmt: skip
STAGE_LOOKS = {
    "encode": ("client-4", "++++"), "encrypt": ("client-1", "////"), "serialise_request": ("client-2", "...."),
    "deserialise_request": ("server-1", ""), "infer": ("server-2", ""), "serialise_response": ("server-3", ""),
    "deserialise_response": ("client-3", "xxxx"), "decrypt": ("client-4", "\\\\\\\\"), "refresh": ("client-4", "oooo"),
}  # fmt: skip
WIDTH_IN = 6.9  # both columns of a paper


def draw(trials: list[Trial]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file; only finished trials are drawn, and only figures that some trial has."""
    finished = [trial for trial in trials if trial["status"] == "ok"]
    markers = markers_of(values_of(trials)["backend"])  # as on the page
    charts: dict[str, Callable[[list[Trial]], Figure | None]] = {
        "pareto": partial(_pareto, markers=markers),
        "stages": _stages,
        "bytes": _bytes,
        "memory": _memory,
        "accuracy": _accuracy,
    }
    for name, chart in charts.items():
        with plt.rc_context(STYLE):
            figure = chart(finished)
            if figure is None:
                continue
            for kind in ("svg", "pdf"):
                file = io.BytesIO()
                figure.savefig(
                    file,
                    format=kind,
                    bbox_inches="tight",
                    metadata={"Date": None} if kind == "svg" else {"CreationDate": None},
                )
                yield f"{name}.{kind}", file.getvalue()
            plt.close(figure)


def _colours() -> dict[str, str]:
    """The light colours of the page's style sheet by name."""
    light = (TEMPLATES / "report.css").read_text("utf-8").partition("@media")[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", light))


def _pareto(trials: list[Trial], markers: dict[str, dict]) -> Figure | None:
    trials = [
        t for t in trials if t["telling"] and t.get("accuracy_encrypted") is not None and t.get("server_wall_s_median")
    ]
    if not trials:
        return None
    values, colours = values_of(trials), _colours()
    panels: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        panels.setdefault((trial["task"], _kind(trial), trial["model_privacy"]), []).append(trial)
    rows = (len(panels) + 1) // 2
    figure, grid = plt.subplots(
        rows, min(2, len(panels)), figsize=(WIDTH_IN, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (work, here) in zip(
        grid.flat, sorted(panels.items(), key=lambda item: (item[0][1:] != ("single-stream", "plain"), item[0]))
    ):
        axes.set_title(" · ".join(part for part in work if part != "plain"), loc="left", fontsize=8, fontweight="bold")
        axes.set_xscale("log")
        axes.set_xlabel("server latency of a request")
        axes.set_ylabel("accuracy, encrypted")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x, "s")))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
        frontier = _frontier(here)
        if len(frontier) > 1:
            axes.step(*zip(*frontier), where="post", color="0.4", linestyle="--", linewidth=0.9)
        for t in here:
            marker = markers[t["backend"]]
            colour = colours[f"series-{marker['colour']}"]
            low, high = t.get("server_wall_s_low"), t.get("server_wall_s_high")
            x, y = t["server_wall_s_median"], t["accuracy_encrypted"]
            axes.errorbar(
                x, y, yerr=[[y - t["accuracy_encrypted_low"]], [t["accuracy_encrypted_high"] - y]],
                xerr=[[x - low], [high - x]] if low else None, fmt=MARKERS[marker["symbol"]], color=colour, linewidth=0.7,
                markersize=_size(t.get("request_bytes", 0)), fillstyle=FILLS[values["model"].index(t["model"]) % len(FILLS)],
                capsize=1.5,
            )  # fmt: skip
    entries = [
        plt.Line2D(
            [], [], marker=MARKERS[m["symbol"]], color=colours[f"series-{m['colour']}"], linestyle="", label=backend
        )
        for backend, m in markers.items()
        if backend in values["backend"]
    ]
    if len(values["model"]) > 1:
        entries += [
            plt.Line2D([], [], marker="o", color="0.4", fillstyle=FILLS[i % len(FILLS)], linestyle="", label=model)
            for i, model in enumerate(values["model"])
        ]
    entries += [
        plt.Line2D(
            [],
            [],
            marker="o",
            color="0.8",
            linestyle="",
            markersize=_size(size),
            label=f"request {_tick(size, 'bytes')}",
        )
        for size in (1e4, 1e6, 1e8)
    ]
    figure.legend(handles=entries, loc="outside upper center", ncols=6, frameon=False)
    return figure


def _kind(trial: Trial) -> str:
    return trial["scenario"] if trial["workload"] == "inference" else trial["workload"]


def _frontier(trials: list[Trial]) -> list[tuple[float, float]]:
    """Latency and accuracy of the encrypted trials that no other beats in both."""
    points = sorted((t["server_wall_s_median"], -t["accuracy_encrypted"]) for t in trials if t["encrypted"])
    frontier: list[tuple[float, float]] = []
    for latency, loss in points:
        if not frontier or -loss > frontier[-1][1]:
            frontier.append((latency, -loss))
    return frontier


def _size(size_bytes: float) -> float:
    return max(4.0, 3 + 2 * math.log10(max(size_bytes, 1000) / 1000))


def _stages(trials: list[Trial]) -> Figure | None:
    trials = [t for t in trials if t.get("request_wall_s_median")]
    if not trials:
        return None
    figure, axes = _rows(trials)
    colours, starts = _colours(), [0.0] * len(trials)
    totals = [sum(t.get(f"{stage}_wall_s_median") or 0 for stage in REQUEST) for t in trials]
    for stage in (s for s in REQUEST if any(t.get(f"{s}_wall_s_median") is not None for t in trials)):
        colour, hatch = STAGE_LOOKS[stage]
        shares = [(t.get(f"{stage}_wall_s_median") or 0) / total for t, total in zip(trials, totals)]
        who = REQUEST[stage][0]
        axes.barh(range(len(trials)), shares, left=starts, height=0.65, color=colours[colour], hatch=hatch,
                  edgecolor="white", linewidth=0.3, label=f"{stage.replace('_', ' ')} ({who})")  # fmt: skip
        starts = [start + share for start, share in zip(starts, shares)]
    for index, trial in enumerate(trials):
        axes.text(1.01, index, with_unit(trial["request_wall_s_median"], "s"), va="center")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the round trip; its median at the right")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _bytes(trials: list[Trial]) -> Figure | None:
    columns = {
        "evaluation_key_bytes": ("evaluation keys", "s", "series-4"),
        "request_bytes": ("request", ">", "series-1"),
        "response_bytes": ("response", "<", "series-2"),
        "public_key_bytes": ("public key", "X", "series-5"),
    }
    return _dots(trials, columns, "bytes", "bytes", logarithmic=True)


def _memory(trials: list[Trial]) -> Figure | None:
    columns = {
        "client_peak_rss_bytes": ("client", "o", "series-1"),
        "server_peak_rss_bytes": ("server", "s", "series-2"),
    }
    return _dots(trials, columns, "bytes", "highest resident memory of the process")


def _accuracy(trials: list[Trial]) -> Figure | None:
    columns = {"accuracy_float": ("float, clear", "o", "series-0"), "accuracy_lowered": ("lowered, clear", "D", "series-5"),
               "accuracy_encrypted": ("lowered, encrypted", "s", "series-1")}  # fmt: skip
    return _dots([t for t in trials if t["telling"]], columns, "", "accuracy, 95 % Wilson intervals", shift=0.22)


def _dots(
    trials: list[Trial],
    columns: dict[str, tuple[str, str, str]],
    unit: str,
    title: str,
    logarithmic: bool = False,
    shift: float = 0,
) -> Figure | None:
    trials = [t for t in trials if any(t.get(column) is not None for column in columns)]
    if not trials:
        return None
    figure, axes = _rows(trials)
    colours = _colours()
    for number, (column, (name, marker, colour)) in enumerate(columns.items()):
        known = [(i + shift * (number - 1), t) for i, t in enumerate(trials) if t.get(column) is not None]
        if not known:
            continue
        at, here = zip(*known)
        x = [t[column] for t in here]
        ends = [[abs(t[column] - t[f"{column}_{end}"]) for t in here] for end in ("low", "high")] if shift else None
        axes.errorbar(
            x, at, xerr=ends, fmt=marker, color=colours[colour], label=name, markersize=4, linewidth=0.7, capsize=1.5
        )
    if logarithmic:
        axes.set_xscale("log")
    if unit:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x, unit)))
    axes.set_xlabel(title)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _rows(trials: list[Trial]) -> tuple[Figure, Axes]:
    """A row a trial, the first at the top."""
    values = values_of(trials)
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 0.8 + 0.17 * len(trials)), layout="constrained")
    axes.set_yticks(range(len(trials)), [" · ".join(label(trial, values)) for trial in trials])
    axes.set_ylim(len(trials) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _tick(value: float, unit: str) -> str:
    """``10 ms``: a round figure without the zeros that say how exactly a measured one is known."""
    number, _, name = with_unit(value, unit).partition(" ")
    return f"{float(number.replace(THIN_SPACE, '')):g} {name}" if name else grouped(value)
