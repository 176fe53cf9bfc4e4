"""What the command line prints agrees with what the report says."""

from __future__ import annotations

import pytest

from bench import cli
from bench.report.layout import cell
from bench.report.table import row
from tests.bench.records_for_report import record


@pytest.mark.parametrize("backend", ["ckks", "openfhe"])
def test_the_table_of_a_run_has_the_figures_of_the_report(backend: str) -> None:
    made = record(backend)
    printed = dict(zip(cli.ROW, cli._row(made), strict=True))
    figures = row(made)
    assert printed["server"] == cell(figures, "server_wall_s_median")[0] != cell(figures, "infer_wall_s_median")[0]
    assert printed["request"] == cell(figures, "request_bytes")[0]
