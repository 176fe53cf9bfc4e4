"""How long a report of a thousand trials takes to write, and to open until its first chart is drawn."""

from __future__ import annotations

import itertools

import pytest

from bench import report
from tests.bench.browser import chromium, page_of
from tests.bench.records_for_report import record

BACKENDS = ("clear", "ckks", "openfhe", "tfhe")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thousand")
    for seed, backend in itertools.product(range(250), BACKENDS):
        record(backend, seed=seed, n=50).save(folder / "records")
    report.write(folder)
    return folder


@pytest.mark.benchmark(group="report of 1000 trials")
def test_write(run, benchmark):
    benchmark.pedantic(report.write, (run,), rounds=3)


@pytest.mark.benchmark(group="report of 1000 trials")
def test_open(run, benchmark):
    with chromium() as browser:

        def open_():
            with page_of(browser, (run / "report.html").as_uri()) as page:
                page.wait_for_selector("#chart-pareto .main-svg")

        benchmark.pedantic(open_, rounds=5, warmup_rounds=1)
