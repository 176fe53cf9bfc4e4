"""``report.html``: one file that needs no network. Python writes every figure as text; JavaScript filters and draws.

Plotly's script, the figures and the raw records are in the page as gzip in base64: browsers since 2023 unpack them
(DecompressionStream), and a page of a thousand trials stays below 6 MB.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from bench.frontier import Frontier, choices
from bench.record import Record
from bench.report import claims
from bench.report.layout import AXES, CLEAR, TABLES, Trial, cell, column, headings, label, values_of
from bench.report.quantity import with_unit
from bench.report.reading import Command, Run
from bench.report.table import COLUMNS
from bench.report.verdict import verdict
from bench.session import REQUEST

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = tuple(axis for axis in AXES if axis != "seed")
RAW_RECORDS_BYTES = 4_000_000  # in the page; above it, records are cut and the whole ones are in their files

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


def render(run: Run) -> str:
    """The whole page."""
    records, trials = run.records, run.trials
    values = values_of(trials)
    markers = markers_of(values["backend"])
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pretty"] = _pretty
    tables = headings(trials)
    return environment.get_template("report.html.j2").render(
        title=run.title,
        compared=_compared(records, trials, values),
        notes=run.notes,
        answer=[sentence.partition(": ") for sentence in verdict(trials)],
        filters={f: values[f] for f in FILTERS if len(values[f]) > 1 or f == "backend"},
        markers=markers,
        tables=tables,
        failed=any(t["status"] != "ok" for t in trials),
        searched=["Accuracy, validation", *(title for title, _ in SEARCHED.values()), "Network"],
        glossary={h.title: column(h.column).meaning for of in tables.values() for h in of},
        claims=[(system, list(of)) for system, of in groupby(claims.compare(trials), key=lambda claim: claim.system)],
        machines=_distinct(record.machine for record in records),
        versions=_merged(record.versions for record in records),
        commits=sorted({record.git_commit for record in records if record.git_commit}),
        commands=run.about.commands or [Command(c) for c in _distinct(r.command for r in records)[:20]],
        searches=[(search, [_searched(row) for row in search.rows]) for search in run.searches],
        data=_packed(_data(trials, values, markers, tables) | {"searches": _points(run.searches)}),
        records=_records(records),
        plotly=_plotly(),
        css=Markup((TEMPLATES / "report.css").read_text("utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text("utf-8")),
    )


def markers_of(backends: list[str]) -> dict[str, dict[str, Any]]:
    """Colour (0: neutral, for the reference) and symbol of each backend: no two share both."""
    names = list(SYMBOLS)
    others = [b for b in backends if b != CLEAR]
    found: dict[str, dict[str, Any]] = {
        b: {"colour": i % COLOURS + 1, "symbol": names[1:][i % (len(names) - 1)]} for i, b in enumerate(others)
    }
    if CLEAR in backends:
        found[CLEAR] = {"colour": 0, "symbol": names[0]}
    return {b: found[b] | {"path": SYMBOLS[found[b]["symbol"]]} for b in backends}


def _data(trials: list[Trial], values: dict[str, list[Any]], markers: dict[str, Any], tables: dict) -> dict[str, Any]:
    """What JavaScript shows, draws and sorts by: figures and their texts as one list a column, in order of the trials."""
    listed = {h.column: h.title for of in (*TABLES.values(), *tables.values()) for h in of}
    columns = {*listed, *FILTERS, "encrypted", "telling", "seed", "public_key_bytes"}
    columns |= {f"{c.removesuffix('_median')}_{end}" for c in columns for end in ("low", "high")} & COLUMNS.keys()
    return {
        "keys": [t["key"] for t in trials],
        "figures": {name: [t.get(name) for t in trials] for name in sorted(columns)},
        "texts": {name: ["\t".join(cell(t, name)).rstrip("\t") for t in trials] for name in listed},
        "columns": {name: {"title": title, **column(name)._asdict()} for name, title in listed.items()},
        "tables": {table: [h.column for h in of] for table, of in tables.items()},
        "labels": [label(t, values) for t in trials],
        "filters": {f: [str(value) for value in values[f]] for f in FILTERS},
        "models": values["model"],
        "markers": markers,
        "stages": {prefix: role for prefix, (role, _, _) in REQUEST.items()},
    }


SEARCHED = {
    "infer_s": ("Infer", "s"),
    "encrypt_s": ("Encrypt", "s"),
    "keygen_s": ("Key generation", "s"),
    "key_bytes": ("Keys", "bytes"),
    "request_bytes": ("Request", "bytes"),
}


def _searched(row: dict[str, Any]) -> list[str]:
    """A row of the table of a search: accuracy, the columns of `SEARCHED`, the choices that made the network."""
    costs = [with_unit(row[name], unit) if name in row else "" for name, (_, unit) in SEARCHED.items()]
    return [f"{row['accuracy']:.1%}".replace("%", "\u202f%"), *costs, choices(row)]


def _points(searches: list[Frontier]) -> list[list[dict[str, Any]]]:
    """What is drawn of each search."""
    names = ("infer_s", "accuracy", "key_bytes")
    return [[{n: row[n] for n in names} | {"choices": choices(row)} for row in of.measured] for of in searches]


def _compared(records: list[Record], trials: list[Trial], values: dict[str, list[Any]]) -> str:
    """One line on what was compared."""
    finished = sum(t["status"] == "ok" for t in trials)
    images = sorted({t["images"] for t in trials if "images" in t})
    parts = [
        f"{len(trials)} trial{'s' * (len(trials) != 1)}, {finished} ok",
        *(", ".join(values[name]) for name in ("backend", "model", "task", "scenario")),
    ]
    if images:
        parts.append(f"{'–'.join(str(i) for i in dict.fromkeys((images[0], images[-1])))} test images a trial")
    parts.append(f"threads {', '.join(str(n) for n in values['threads'])}")
    parts += values["host"] if len(values["host"]) == 1 else [f"{len(values['host'])} machines"]
    return " · ".join([*parts, min(r.started_at for r in records)[:10].replace("-", "\u2011")])  # not to be broken


def _records(records: list[Record]) -> str:
    """The records as packed JSON; if they are too much for one page, without raw outputs, then without samples."""
    raw = [msgspec.to_builtins(record) for record in records]
    packed = _packed(raw)
    for bulky in ("outputs", "stages"):
        if len(packed) > RAW_RECORDS_BYTES:
            raw = [r | {bulky: f"left out to keep this page small: see records/{r['key']}.json"} for r in raw]
            packed = _packed(raw)
    return packed


def _packed(value: Any) -> str:
    return _gzip(msgspec.json.encode(value), level=6)


@lru_cache(maxsize=1)
def _plotly() -> str:
    """The partial bundle of bars and points, as npm's plotly.js-basic-dist-min 4.1.1 ships it: a quarter of the whole."""
    return _gzip((TEMPLATES / "plotly-basic.min.js").read_bytes(), level=9)


def _gzip(data: bytes, level: int) -> str:
    return base64.b64encode(gzip.compress(data, level, mtime=0)).decode()


def _distinct(objects: Iterable[Any]) -> list[Any]:
    return list({json.dumps(o, sort_keys=True, default=str): o for o in objects if o}.values())


def _merged(objects: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    """All values of each name, in alphabetical order of the names."""
    merged: dict[str, list[str]] = defaultdict(list)
    for name, value in sorted({item for o in objects for item in o.items()}):
        merged[name].append(value)
    return dict(merged)


def _pretty(value: Any, name: str = "") -> str:
    """A value of a machine or of versions on one line for people. name: whose value it is."""
    if name.endswith("_bytes") and isinstance(value, int):
        return with_unit(value, "bytes")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
