"""``python -m bench explain``: a backend's plan in the terminal."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.record import Trial
from bench.runner import Subject, work
from bench.session import Place, Session


def show(trial: Trial, subject: Subject) -> None:
    """Raises TrialError, also for a backend that plans nothing."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "explain", time.monotonic() + trial.timeout_s)
        with Session(work(trial, subject), place) as session:
            explanation = session.explain()
    console = Console()
    if "layers" not in explanation:  # a backend whose compiler plans says what it compiled
        console.print_json(data=explanation)
        return
    console.print(f"[bold]{trial.label}[/], {explanation['batch']} image(s) a request")
    for name, value in explanation["parameters"].items():
        console.print(f"  {name}: {value:.2f}" if isinstance(value, float) else f"  {name}: {value}", highlight=False)
    console.print(f"  scales (bits) of input and weights: {explanation['scales_bits']}", highlight=False)
    console.print(_table(explanation))
    share, primitives = explanation["python_share"], explanation["primitives_ms"]
    console.print(f"primitives {primitives:.1f} ms; Python above them {share:.1%} of the inference")
    console.print(f"worst logit error against the network in the clear {explanation['worst_logit_error']:.1e}")


def _table(explanation: dict[str, Any]) -> Table:
    table = Table()
    for name in ("layer", "reads", "layout", "level", "operations"):
        table.add_column(name, overflow="fold")
    for name in ("predicted ms", "measured ms"):
        table.add_column(name, justify="right", overflow="fold")
    for layer in explanation["layers"]:
        operations = ", ".join(f"{times} {name}" for name, times in layer["operations"].items())
        figures = [f"{layer[name]:.1f}" for name in ("predicted_ms", "measured_ms")]
        table.add_row(layer["layer"], layer["reads"], layer["layout"], str(layer["level"]), operations, *figures)
    totals = [f"{sum(layer[name] for layer in explanation['layers']):.1f}" for name in ("predicted_ms", "measured_ms")]
    table.add_section()
    table.add_row("total", "", "", "", "", *totals)
    return table
