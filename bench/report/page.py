"""``report.html``: one file that needs no network. Python writes every figure as text; JavaScript filters and draws."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bench.record import Record
from bench.report.quantity import interval, with_unit
from bench.report.table import COLUMNS, ONCE, REQUEST
from bench.report.verdict import verdict

TEMPLATES = Path(__file__).parent.parent / "templates"
FILTERS = ("backend", "model", "task", "scenario", "model_privacy", "threads")
IN_WORDS = {"threads": "threads {}", "seed": "seed {}", "model_privacy": "{} model"}  # in the name of a trial
RAW_RECORDS_BYTES = 700_000  # keeps the page of a usual run below 6 MB, of which Plotly takes 4.8
CLEAR = "clear"  # the backend that is the reference: neutral colour, first in every list

# Marker of the n-th backend: Plotly's symbol and the same shape as an SVG path in a 16 × 16 box.
SYMBOLS = {
    "circle": "M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0-11z",
    "square": "M3 3h10v10H3z",
    "diamond": "M8 1.5L14.5 8L8 14.5L1.5 8z",
    "triangle-up": "M8 2L14.5 13.5H1.5z",
    "cross": "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z",
    "triangle-down": "M8 14L1.5 2.5h13z",
    "hexagon": "M8 1.5L13.6 4.75v6.5L8 14.5L2.4 11.25v-6.5z",
    "star-square": "M2 2L8 4.5L14 2L11.5 8L14 14L8 11.5L2 14L4.5 8z",
}
COLOURS = 6  # of report.css: --series-1 …


class Heading(NamedTuple):
    """A column of a table in the report: its name in `COLUMNS`, and a short heading."""

    column: str
    title: str


SUMMARY = [
    Heading("status", "Status"),
    Heading("accuracy_encrypted", "Accuracy, encrypted"),
    Heading("agreement", "Agreement"),
    Heading("server_wall_s_median", "Server latency"),
    Heading("request_wall_s_median", "Round trip"),
    Heading("batch", "Batch"),
    Heading("throughput_images_per_s", "Images/s"),
    Heading("request_bytes", "Request"),
    Heading("response_bytes", "Response"),
    Heading("evaluation_key_bytes", "Evaluation keys"),
    Heading("client_peak_rss_bytes", "Client memory"),
    Heading("server_peak_rss_bytes", "Server memory"),
    Heading("security_bits", "Security (bits)"),
    Heading("precision_bits_worst", "Precision (bits)"),
]
STAGES = [
    Heading("samples", "Timed requests"),
    *(Heading(f"{prefix}_wall_s_median", prefix.replace("_", " ").capitalize()) for prefix in REQUEST),
    Heading("request_wall_s_median", "Round trip"),
    Heading("infer_cold_wall_s", "First infer"),
    Heading("infer_cpu_s_median", "Infer, CPU time"),
    Heading("sampling_ended", "Sampling ended"),
    Heading("request_wall_s_over_100", "Round trip and keys / 100"),
    Heading("network_request_s", "Network, assumed"),
    Heading("network_keys_s", "Network, keys"),
]
ONCE_STAGES = [Heading(f"{prefix}_wall_s", prefix.replace("_", " ").capitalize()) for prefix in ONCE]
SIZES = [
    Heading("public_key_bytes", "Public key"),
    Heading("evaluation_key_bytes", "Evaluation keys"),
    Heading("request_bytes", "Request"),
    Heading("response_bytes", "Response"),
    Heading("client_artifact_bytes", "Client artifact"),
    Heading("server_artifact_bytes", "Server artifact"),
    Heading("model_memory_bytes", "Network in memory"),
    Heading("evaluation_key_memory_bytes", "Keys in memory"),
    Heading("request_memory_bytes", "Request in memory"),
    Heading("owner_peak_rss_bytes", "Owner memory"),
    Heading("client_peak_rss_bytes", "Client memory"),
    Heading("server_peak_rss_bytes", "Server memory"),
]
QUALITY = [
    Heading("images", "Images"),
    Heading("accuracy_float", "Accuracy, float"),
    Heading("accuracy_lowered", "Accuracy, lowered"),
    Heading("accuracy_encrypted", "Accuracy, encrypted"),
    Heading("auc_float", "AUC, float"),
    Heading("auc_lowered", "AUC, lowered"),
    Heading("auc_encrypted", "AUC, encrypted"),
    Heading("sensitivity_encrypted", "Sensitivity, encrypted"),
    Heading("specificity_encrypted", "Specificity, encrypted"),
    Heading("mcnemar_p_lowered", "McNemar p, against lowered"),
    Heading("mcnemar_p_float", "McNemar p, against float"),
    Heading("agreeing_images", "Images that agree"),
    Heading("disagreements_beyond_noise", "Disagreements beyond noise"),
    Heading("logit_error_max", "Worst logit error"),
    Heading("logit_error_mean", "Mean logit error"),
]
CONDITIONS = [
    Heading("threads", "Threads asked"),
    Heading("cpu_wall_ratio", "Threads busy (CPU/wall)"),
    Heading("calibration_before_s", "Fixed work, before"),
    Heading("calibration_after_s", "Fixed work, after"),
    Heading("other_cores", "Cores busy for others"),
    Heading("seed", "Seed"),
    Heading("started_at", "Started"),
    Heading("duration_s", "Whole trial"),
    Heading("git_commit", "Commit"),
]
TABLES = {
    "summary": SUMMARY,
    "stages": STAGES,
    "once": ONCE_STAGES,
    "sizes": SIZES,
    "quality": QUALITY,
    "conditions": CONDITIONS,
}
HEADINGS = list(dict.fromkeys(heading for table in TABLES.values() for heading in table))


def render(records: list[Record], figures: list[dict[str, Any]], about: dict[str, Any], name: str) -> str:
    """The whole page.

    figures: `bench.report.table.row` of each record. about: the run file (see `bench.report.write`). name: of the run.
    """
    trials = [
        figure | {"encrypted": record.security is not None, "host": _host(record.machine)}
        for figure, record in zip(figures, records, strict=True)
    ]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}  # order is kept
    environment.filters |= {"pretty": _pretty, "urlquote": lambda text: quote(text, safe="")}
    values = {f: sorted({t[f] for t in trials}, key=lambda value: (value != CLEAR, value)) for f in (*FILTERS, "seed")}
    markers = _markers(values["backend"])
    return environment.get_template("report.html.j2").render(
        title=about.get("suite") or name,
        compared=_compared(records, trials, values),
        notes=[str(note) for note in about.get("notes") or ()],
        answer=verdict(trials),
        filters={f: values[f] for f in FILTERS},
        markers=markers,
        trials=[
            t | {"index": i, "label": _label(t, values), "cells": {h.column: _cell(t, h.column) for h in HEADINGS}}
            for i, t in enumerate(trials)
        ],
        security=_cards(records, trials, values, ("security", "parameters", "notes")),
        operations=_cards(records, trials, values, ("operations",)),
        raw=_raw(records),
        tables=TABLES,
        glossary={h.title: COLUMNS[h.column] for h in HEADINGS},
        columns=COLUMNS,
        machines=_distinct(record.machine for record in records),
        versions=_merged(record.versions for record in records),
        commands=list(dict.fromkeys(c for c in (about.get("command"), *(r.command for r in records)) if c)),
        data=_data(trials, values, markers),
        plotly=Markup(get_plotlyjs()),
        css=Markup((TEMPLATES / "report.css").read_text("utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text("utf-8")),
    )


def _data(trials: list[dict[str, Any]], values: dict[str, list[Any]], markers: dict[str, Any]) -> dict[str, Any]:
    """What JavaScript draws and sorts by: figures as one list a column, in the order of the trials."""
    columns = {h.column for h in HEADINGS} | {*FILTERS, "encrypted"}
    columns |= {f"{c.removesuffix('_median')}_{end}" for c in columns for end in ("low", "high")} & COLUMNS.keys()
    return {
        "figures": {column: [t.get(column) for t in trials] for column in sorted(columns)},
        "labels": [_label(t, values) for t in trials],
        "filters": {f: [str(value) for value in values[f]] for f in FILTERS},
        "markers": {backend: {"symbol": m["symbol"], "colour": m["colour"]} for backend, m in markers.items()},
        "stages": {prefix: role for prefix, (role, _, _) in REQUEST.items()},
    }


def _markers(backends: list[str]) -> dict[str, dict[str, Any]]:
    """Colour (0: neutral, for the reference) and symbol of each backend: no two share both."""
    names = list(SYMBOLS)
    others = [b for b in backends if b != CLEAR]
    found = {b: {"colour": i % COLOURS + 1, "symbol": names[1:][i % (len(names) - 1)]} for i, b in enumerate(others)}
    if CLEAR in backends:
        found[CLEAR] = {"colour": 0, "symbol": names[0]}
    return {b: found[b] | {"path": SYMBOLS[found[b]["symbol"]]} for b in backends}


def _compared(records: list[Record], trials: list[dict[str, Any]], values: dict[str, list[Any]]) -> str:
    """One line on what was compared."""
    finished = sum(t["status"] == "ok" for t in trials)
    images = sorted({t["images"] for t in trials if "images" in t})
    parts = [
        f"{len(trials)} trial{'s' * (len(trials) != 1)}, {finished} ok",
        *(f"{name}: {', '.join(values[name])}" for name in ("backend", "model", "task", "scenario")),
    ]
    if images:
        parts.append(f"{'–'.join(str(i) for i in dict.fromkeys((images[0], images[-1])))} test images a trial")
    parts.append(f"threads: {', '.join(str(n) for n in values['threads'])}")
    return " · ".join([*parts, min(r.started_at for r in records)[:10].replace("-", "\u2011")])  # not to be broken


def _label(trial: dict[str, Any], values: dict[str, list[Any]]) -> list[str]:
    """The backend, and whatever else tells this trial from the others."""
    others = [f for f in values if f != "backend" and len(values[f]) > 1]
    return [trial["backend"], *(IN_WORDS.get(f, "{}").format(trial[f]) for f in others)]


def _cards(
    records: list[Record], trials: list[dict[str, Any]], values: dict[str, list[Any]], fields: tuple[str, ...]
) -> list[dict[str, Any]]:
    """What the backend reported in `fields`, once for all trials of a backend that share it."""
    cards: dict[str, dict[str, Any]] = {}
    for index, record in enumerate(records):
        content = {field: getattr(record, field) for field in fields}
        if any(content.values()):
            identity = json.dumps([record.trial.backend, content], sort_keys=True, default=str)
            card = cards.setdefault(identity, {"backend": record.trial.backend, "trials": [], **content})
            card["trials"].append(index)
    sizes = Counter(record.trial.backend for record in records if record.stages)
    for card in cards.values():
        everywhere = len(card["trials"]) == sizes[card["backend"]]
        card["labels"] = [] if everywhere else [" · ".join(_label(trials[i], values)[1:]) for i in card["trials"]]
    return list(cards.values())


def _cell(trial: dict[str, Any], column: str) -> dict[str, str]:
    """Text of a figure and of its interval; both empty if it was not measured."""
    value, unit = trial.get(column), COLUMNS[column].unit
    if value is None:
        return {"text": "", "interval": ""}
    if isinstance(value, str):
        return {"text": value[:12] if column == "git_commit" else value, "interval": ""}
    low, high = (trial.get(f"{column.removesuffix('_median')}_{end}") for end in ("low", "high"))
    return {"text": with_unit(value, unit), "interval": "" if low is None else interval(low, high, unit)}


def _raw(records: list[Record]) -> list[Any]:
    """The records as plain JSON; if they are too much for one page, without raw outputs, then without samples."""
    raw = [msgspec.to_builtins(record) for record in records]
    for bulky in ("outputs", "stages"):
        if len(json.dumps(raw)) > RAW_RECORDS_BYTES:
            raw = [r | {bulky: f"left out to keep this page small: see records/{r['key']}.json"} for r in raw]
    return raw


def _host(machine: dict[str, Any]) -> tuple[str, ...]:
    """What tells machines apart: names, not numbers such as the load, which differ between trials of one machine."""
    return tuple(value for _, value in sorted(machine.items()) if isinstance(value, str))


def _distinct(objects: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(o, sort_keys=True, default=str): o for o in objects if o}.values())


def _merged(objects: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    """All values of each name, in alphabetical order of the names."""
    merged: dict[str, list[str]] = defaultdict(list)
    for name, value in sorted({item for o in objects for item in o.items()}):
        merged[name].append(value)
    return dict(merged)


def _pretty(value: Any, name: str = "") -> str:
    """A JSON value on one line for people: no quotes around text, lists without brackets. name: whose value it is."""
    if name.endswith("_bytes") and isinstance(value, int):
        return with_unit(value, "bytes")
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, (int, float)):
        return f"{value:,}".replace(",", "\u2009") if isinstance(value, int) else f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_pretty(v) for v in value)
    if isinstance(value, dict):
        return "; ".join(f"{k}: {_pretty(v, k)}" for k, v in value.items())
    return str(value)
