"""A run folder's report, made from the files in it and nothing else: HTML, CSV, Parquet, Markdown and figures for papers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from bench.files import replace
from bench.report import markdown
from bench.report.page import render
from bench.report.reading import Run, read
from bench.report.table import COLUMNS, frame, rows

__all__ = ["COLUMNS", "Files", "read", "rows", "write", "write_figures", "write_files"]


class Files(NamedTuple):
    """What `write` writes: ``results.csv``, ``results.parquet``, ``results.md``, ``report.html``."""

    csv: Path
    parquet: Path
    markdown: Path
    html: Path


def write(run: Path, bandwidth_bit_per_s: float | None = None, across_machines: bool = False) -> Files:
    """Writes all of `Files` into the folder `run`; see `bench.report.reading.read` for what it reads and raises.

    bandwidth_bit_per_s: of a network to be assumed, instead of the run file's.
    across_machines: compare figures of different machines, which else stand apart.
    """
    return write_files(read(run, bandwidth_bit_per_s, across_machines), run)


def write_files(found: Run, run: Path) -> Files:
    """Writes what was read into the folder `run`."""
    files = Files(run / "results.csv", run / "results.parquet", run / "results.md", run / "report.html")
    table = frame(found.figures)
    replace(files.csv, table.to_csv(index=False, lineterminator="\n").encode())
    replace(files.parquet, _parquet(table))
    replace(files.markdown, markdown.results(found).encode())
    replace(files.html, render(found).encode())
    return files


def write_figures(run: Path) -> list[Path]:
    """Writes the figures of the run as SVG and PDF into ``figures/``; raises what `read` raises."""
    from bench.report import figures  # matplotlib

    (run / "figures").mkdir(exist_ok=True)
    written = []
    for name, content in figures.draw(read(run).trials):
        path = run / "figures" / name
        replace(path, content)
        written.append(path)
    return written


def _parquet(table: pd.DataFrame) -> bytes:
    """Units and meanings of the columns are in the metadata of the fields."""
    import pyarrow
    import pyarrow.parquet

    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    fields = [field.with_metadata(COLUMNS[field.name]._asdict()) for field in arrow.schema]
    file = io.BytesIO()
    pyarrow.parquet.write_table(arrow.cast(pyarrow.schema(fields, arrow.schema.metadata)), file)
    return file.getvalue()
