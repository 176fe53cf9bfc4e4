"""Parquet, Markdown, claims, figures for papers, the terminal and the files of other tools, against the records."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from rich.console import Console

from bench import export, report
from bench.report import claims, markdown, terminal
from bench.report.layout import trials_of
from bench.report.quantity import with_unit
from bench.report.table import COLUMNS, row
from tests.bench.records_for_report import REQUEST_STAGES, failed, record

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def records():
    return [
        *(record(backend, n=100) for backend in ("clear", "ckks", "openfhe", "tfhe")),
        record("ckks", scenario="offline", batch=64, n=100),
        record("ckks", model="polycnn", n=100),
        record("ckks:naive", n=3, samples=3),
        failed("timeout", "no answer in 600 s\nat all | <b>", "tfhe"),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("formats")
    for each in records:
        each.save(folder / "records")
    report.write(folder)
    return folder


def total(r, stages=REQUEST_STAGES):
    return list(map(sum, zip(*(r.stage(*stage).wall_s for stage in stages), strict=True)))


def test_parquet_is_the_csv_with_units(run):
    import pyarrow.parquet

    csv = pd.read_csv(run / "results.csv", float_precision="round_trip")
    parquet = pd.read_parquet(run / "results.parquet")
    assert list(parquet.columns) == list(csv.columns) == list(COLUMNS)
    for name in COLUMNS:
        for a, b in zip(csv[name], parquet[name], strict=True):
            assert (pd.isna(a) and pd.isna(b)) or a == b, name
    schema = pyarrow.parquet.read_schema(run / "results.parquet")
    assert schema.field("infer_wall_s_median").metadata == {
        b"unit": b"s",
        b"meaning": COLUMNS["infer_wall_s_median"].meaning.encode(),
    }


def test_markdown_is_a_table_with_the_figures_of_the_records(run, records):
    lines = (run / "results.md").read_text().splitlines()
    table = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    assert len(table) == len(records) + 2
    assert {len(line) for line in table} == {len(table[0])}
    by_request = {line[table[0].index("Round trip")].split(" (")[0] for line in table[2:]}
    assert by_request - {""} == {with_unit(statistics.median(total(r)), "s") for r in records if r.status == "ok"}
    assert "no answer in 600 s at all | &lt;b>" in "\n".join(lines)


def test_documented_schema_and_claims_are_the_real_ones():
    assert markdown.schema() in (ROOT / "docs" / "results-schema.md").read_text()
    page = (ROOT / "docs" / "claims.md").read_text()
    for claim in claims.read():
        assert claim.figure in page
        assert claim.source in page


def test_claims_name_columns_and_sources():
    for claim in claims.read():
        assert claim.column in COLUMNS
        assert claim.value > 0
        assert claim.source and "issue" not in claim.source  # which a reader of this repository cannot see
    contradictory = [claim for claim in claims.read() if claim.contradicts]
    assert {0.15, 119.55, 137.68, 966.68} <= {claim.value for claim in contradictory}


def test_claims_stand_beside_our_best_trial_of_the_same_work():
    records = [
        record("tfhe", n=100),
        record("tfhe", n=100, seed=1, model="fcnn@fast"),
        record("tfhe", "pneumoniamnist", n=3, seed=2),
        failed("oom", "x"),
    ]
    small = [record("tfhe", n=40, seed=seed) for seed in range(3, 9)]
    fastest = (
        statistics.median(total(records[0], REQUEST_STAGES[2:5])),
        statistics.median(total(records[1], REQUEST_STAGES[2:5])),
    )
    compared = {(c.figure, c.system[:8]): c for c in claims.compare(trials_of(records, [row(r) for r in records]))}
    breast = compared["Latency of a BreastMNIST image", "Sadhana "]
    assert breast.published == "138 s"
    assert breast.ours == with_unit(min(fastest), "s")
    assert breast.ratio.endswith("less")
    assert compared["Latency of a BloodMNIST image", "Sadhana "].ours == "not measured in this run"
    assert compared["Inference, 784 → 64 → 9, one image", "HElayers"].ratio == ""
    best = max(row(r)["accuracy_encrypted"] for r in records[:2])
    assert max(row(r)["accuracy_encrypted"] for r in small) > best
    records += small
    compared = {(c.figure, c.system[:8]): c for c in claims.compare(trials_of(records, [row(r) for r in records]))}
    accuracy = compared["Encrypted accuracy, BreastMNIST", "Sadhana "]
    assert accuracy.ratio == f"{100 * (best - 0.8181):+.1f} points".replace("-", "−")


def test_figures_for_papers_are_svg_and_pdf(run):
    files = {path.name: path.read_bytes() for path in report.write_figures(run)}
    assert set(files) == {
        f"{name}.{kind}" for name in ("pareto", "stages", "bytes", "memory", "accuracy") for kind in ("svg", "pdf")
    }
    for name, content in files.items():
        if name.endswith("pdf"):
            assert content.startswith(b"%PDF")
            continue
        words = " ".join(text for element in ElementTree.fromstring(content).iter() for text in [element.text or ""])
        assert ("server latency of a request" if name == "pareto.svg" else "ckks") in words
        assert re.search(r"server latency|round trip|bytes|resident memory|accuracy", words)


def test_a_run_in_the_terminal(run, records):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    terminal.show_run(report.read(run), console)
    text = console.export_text()
    for r in records:
        assert r.status in text
    slowest = next(r for r in records if r.trial.backend == "tfhe")
    assert with_unit(statistics.median(total(slowest, REQUEST_STAGES[2:5])), "s") in text
    assert "no answer in 600 s" in text


def test_one_trial_in_the_terminal(run, records):
    found = report.read(run)
    (index,) = terminal.find(found, records[1].key[:10])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    terminal.show_trial(found, index, console)
    text = console.export_text()
    assert with_unit(statistics.median(records[1].stage("server", "infer").wall_s), "s") in text
    assert terminal.sparkline(records[1].stage("server", "infer").wall_s) in text
    assert len(terminal.find(found, "naive")) == 1


def test_bars_and_sparklines():
    assert terminal.sparkline([1, 2, 3]) == "▁▅█"
    assert terminal.sparkline([1, 1]) == "▁▁"
    assert len(terminal.sparkline(list(range(1000)))) == 40
    assert terminal.bar(1, 1, 100) == "█"
    assert terminal.bar(100, 1, 100) == "█" * terminal.BAR


def test_pyperf_reads_its_export(run, records):
    import pyperf

    suite = pyperf.BenchmarkSuite.loads(export.pyperf(report.read(run)))
    r = next(r for r in records if r.trial.backend == "tfhe" and r.status == "ok")
    benchmark = suite.get_benchmark(f"{r.trial.label} · request")
    assert benchmark.get_values() == pytest.approx(total(r))
    assert benchmark.get_unit() == "second"
    assert len(suite.get_benchmarks()) == 2 * sum(r.status == "ok" for r in records)


def test_pytest_benchmark_reads_its_export(run, records, tmp_path):
    path = tmp_path / "0001_run.json"
    path.write_text(export.pytest_benchmark(report.read(run)))
    command = [
        sys.executable,
        "-m",
        "pytest_benchmark",
        "compare",
        str(path),
        "--columns=median,rounds",
        "--csv",
        str(tmp_path / "out.csv"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out.csv")
    expected = [
        statistics.median(total(r, stages))
        for r in records
        if r.status == "ok"
        for stages in (REQUEST_STAGES, REQUEST_STAGES[2:5])
    ]
    assert sorted(table["median"]) == pytest.approx(sorted(expected))


def test_commands(run, tmp_path):
    def bench(*arguments):
        return subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, cwd=ROOT)

    assert "Fastest" in bench("show", str(run)).stdout
    missing = bench("show", str(run), "no such trial")
    assert (missing.returncode, "lists them" in missing.stderr) == (2, True)
    exported = bench("export", "--to", "pyperf", "--out", str(tmp_path / "x.json"), str(run))
    assert exported.returncode == 0, exported.stderr
    assert json.loads((tmp_path / "x.json").read_text())["benchmarks"]
    assert bench("export", "--to", "csv", str(run)).returncode == 2
    assert bench("claims", str(run)).stdout.startswith("| System |")
    assert bench("show", str(tmp_path)).returncode == 1
