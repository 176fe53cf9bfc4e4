"""The frontier that a search found, as files: `bench tune` writes them, a report shows those in its run's ``searches/``."""

from __future__ import annotations

import csv
import io
from operator import le
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.files import replace
from bench.record import RecordError

if TYPE_CHECKING:
    import plotly.graph_objects as go

# First in frontier.csv; a row's other figures are the choices that made the network.
COLUMNS = ("number", "accuracy", "infer_s", "encrypt_s", "keygen_s", "key_bytes", "request_bytes", "complexity",
           "uncompressed_key_bytes")  # fmt: skip
BESIDE = (*COLUMNS, "operations", "reason")


class Frontier(msgspec.Struct, kw_only=True):
    """What no other network of a search beats in accuracy, cost and key bytes, the most accurate first.

    Networks that were measured are beaten by measured ones, in ``infer_s`` and ``key_bytes``; the others by any, in what
    the compiler says of both.

    networks: that were tried and could be compiled. rows: ``accuracy`` on validation images in the clear,
    ``complexity`` and ``uncompressed_key_bytes`` by the compiler, the choices, ``operations`` (counts); encrypted
    medians ``infer_s``, ``encrypt_s`` and ``keygen_s`` (seconds) with ``key_bytes`` and ``request_bytes`` of those that
    were measured, or the ``reason`` why that failed.
    """

    backend: str
    model: str
    task: str
    networks: int
    rows: list[dict[str, Any]]

    @property
    def measured(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "infer_s" in row]

    def save(self, folder: Path) -> None:
        """Writes frontier.json, frontier.csv and frontier.html into the folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / "frontier.json", msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        names = [*COLUMNS, *sorted({name for row in self.rows for name in row} - set(BESIDE))]
        table = io.StringIO()
        writer = csv.DictWriter(table, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        replace(folder / "frontier.csv", table.getvalue().encode())
        replace(folder / "frontier.html", self.chart().to_html(include_plotlyjs=True).encode())

    @classmethod
    def load(cls, folder: Path) -> Frontier:
        """Raises RecordError if the file is not one of `save`."""
        path = folder / "frontier.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise RecordError(f"cannot read {path}: {error}; resume its search, or delete it") from error

    def chart(self) -> go.Figure:
        """Accuracy over latency of the measured networks, the area of a point its keys."""
        import plotly.graph_objects as go

        largest = max((row["key_bytes"] for row in self.measured), default=0) or 1
        points = go.Scatter(
            x=[1e3 * row["infer_s"] for row in self.measured],
            y=[row["accuracy"] for row in self.measured],
            mode="markers",
            marker={"size": [8 + 30 * (row["key_bytes"] / largest) ** 0.5 for row in self.measured]},
            text=[choices(row) for row in self.measured],
            hovertemplate="%{x:.0f} ms, %{y:.3f}<br>%{text}<extra></extra>",
        )
        figure = go.Figure(points)
        figure.update_xaxes(title="inference of an image (ms)", type="log")
        figure.update_yaxes(title="accuracy on validation images")
        return figure


def unbeaten(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the measured rows that a measured one beats: worse in none of accuracy, time and key bytes, better in one."""

    def costs(row: dict[str, Any]) -> tuple[float, ...]:
        return -row["accuracy"], row["infer_s"], row["key_bytes"]

    measured = [costs(row) for row in rows if "infer_s" in row]
    return [
        row
        for row in rows
        if "infer_s" not in row
        or not any(all(map(le, other, costs(row))) and other != costs(row) for other in measured)
    ]


def choices(row: dict[str, Any]) -> str:
    """What made the network, in words."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name not in BESIDE)
