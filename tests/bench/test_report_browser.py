"""The report as a person uses it: in headless Chromium, with no network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench import report
from tests.bench.browser import OVERLAPS, chromium, page_of, see_everything
from tests.bench.records_for_report import failed, record, search

WIDTHS = {"desktop": (1280, 800, "light"), "dark": (1280, 800, "dark"), "phone": (390, 844, "light")}
BACKENDS = ("clear", "ckks", "openfhe", "tfhe")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def records():
    done = [
        record(backend, task, model=model, n=100)
        for task in ("breastmnist", "pneumoniamnist")
        for model in ("fcnn", "polycnn")
        for backend in BACKENDS
    ]
    done += [record("ckks", scenario="offline", batch=512, n=100), record("openfhe", model_privacy="encrypted", n=100)]
    done += [record("ckks:naive", n=3, samples=3), failed("oom", "the server was killed: out of memory")]
    return done


@pytest.fixture(scope="module")
def html(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("browser")
    for each in records:
        each.save(folder / "records")
    (folder / "run.json").write_text(json.dumps({"suite": "a test", "command": "python -m bench run"}))
    search().save(folder / "searches" / "tfhe-fcnn")
    return report.write(folder).html.as_uri()


def rows(page, table="summary"):
    return page.eval_on_selector_all(
        f"#table-{table} tbody tr", "rows => rows.map((row) => row.querySelector('.open').innerText)"
    )


def test_first_screen_says_what_was_compared_the_answer_and_the_chart(browser, html):
    with page_of(browser, html) as page:
        page.wait_for_selector("#chart-pareto .main-svg")
        assert page.locator(".answer p").count() == 3
        for part in (".compared", ".answer", "#filter-box", "#legend"):
            assert page.locator(part).bounding_box()["y"] < 800
        chart = page.locator("#chart-pareto .main-svg").first.bounding_box()
        assert chart["y"] < 500


def test_filters_act_on_every_table_and_chart_and_stand_in_the_address(browser, html, records):
    with page_of(browser, html) as page:
        see_everything(page)
        assert len(rows(page)) == len(records)
        page.uncheck("input[name=backend][value=ckks]")
        kept = [r.trial.backend for r in records if r.trial.backend != "ckks"]
        assert sorted(rows(page)) == sorted(kept)
        see_everything(page)
        for chart in ("pareto", "stages", "throughput", "sizes", "memory", "accuracy", "amortised"):
            drawn = page.evaluate(f"JSON.stringify(document.getElementById('chart-{chart}').data)")
            assert "openfhe" in drawn
            assert "<b>ckks ·" not in drawn
        address = page.url
        assert "#backend=clear&backend=ckks%3Anaive" in address
    with page_of(browser, address) as page:
        page.wait_for_selector("#table-summary tbody tr", state="attached")
        assert not page.is_checked("input[name=backend][value=ckks]")
        see_everything(page)
        assert sorted(rows(page)) == sorted(kept)
        page.click("#all")
        page.wait_for_timeout(100)
        see_everything(page)
        assert len(rows(page)) == len(records)
        assert "#" not in page.url


def test_tables_sort_both_ways_and_what_was_not_measured_is_last(browser, html, records):
    with page_of(browser, html) as page:
        see_everything(page)
        heading = page.locator("#table-summary th[data-sort=server_wall_s_median]")
        assert "wall time" in heading.get_attribute("title")
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == "ascending"
        ascending = rows(page)
        heading.locator("button").click()
        descending = rows(page)
        assert set(ascending[:4]) == {"clear"}
        assert descending[0] == "tfhe"
        missing = [r.trial.backend for r in records if r.status == "oom"]
        assert ascending[-1:] == descending[-1:] == missing


def test_a_trial_opens_with_its_raw_record_and_its_own_address(browser, html, records):
    with page_of(browser, html) as page:
        see_everything(page)
        page.locator("#table-summary tbody .open").first.click()
        page.wait_for_selector("dialog[open] .raw")
        raw = json.loads(page.inner_text("dialog .raw"))
        assert raw["key"] in {r.key for r in records}
        assert raw["command"] in page.inner_text("dialog")
        address = page.url
        assert address.endswith(f"trial={raw['key']}")
        page.click("dialog button")
        assert "trial=" not in page.url
    with page_of(browser, address) as page:
        page.wait_for_selector("dialog[open] .raw")
        assert json.loads(page.inner_text("dialog .raw"))["key"] == raw["key"]


def test_a_search_is_drawn(browser, html):
    with page_of(browser, html) as page:
        see_everything(page)
        assert page.locator("#chart-search-0 .scatterlayer .point").count() == len(search().measured)


def test_failures_and_claims_are_shown(browser, html):
    with page_of(browser, html) as page:
        see_everything(page)
        assert "out of memory" in page.inner_text("#failures")
        assert "119.55 s" in page.inner_text("#claims")


@pytest.mark.parametrize("name", WIDTHS)
def test_no_text_covers_other_text_and_nothing_is_wider_than_the_window(browser, html, name, tmp_path):
    width, height, scheme = WIDTHS[name]
    with page_of(browser, html, width, height, scheme) as page:
        see_everything(page)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.evaluate(OVERLAPS) == []
        folder = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))  # to look at them
        folder.mkdir(exist_ok=True)
        page.screenshot(path=folder / f"{name}.png")
        page.screenshot(path=folder / f"{name}-whole.png", full_page=True)
        assert (folder / f"{name}.png").stat().st_size > 20_000


def test_the_test_of_overlaps_finds_one(browser, html):
    with page_of(browser, html) as page:
        page.add_style_tag(
            content=".answer p { margin-bottom: -3rem !important; } .answer { display: block !important; }"
        )
        assert page.evaluate(OVERLAPS)


def test_paper_has_everything_drawn_in_light_colours(browser, html):
    with page_of(browser, html, scheme="dark") as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(
            "[...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('.main-svg'))"
        )
        assert (
            page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()") == "#fdfdfb"
        )
        assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("only", [record(), failed("oom", "killed")], ids=["ok", "oom"])
def test_one_record_opens_without_errors(tmp_path, browser, only):
    only.save(tmp_path / "records")
    with page_of(browser, report.write(tmp_path).html.as_uri(), width=390) as page:
        see_everything(page)
        assert ("No finished trial" in page.inner_text("main")) == (only.status != "ok")


def test_a_thousand_records_open_and_long_tables_unfold(tmp_path, browser):
    for number in range(1000):
        each = record(BACKENDS[number % 4], seed=number // 4, n=20, samples=8)
        each.save(tmp_path / "records")
    with page_of(browser, report.write(tmp_path).html.as_uri()) as page:
        see_everything(page)
        assert len(rows(page)) == 100
        page.click("[data-table=summary] .more")
        assert len(rows(page)) == 1000
        assert "median of the trials" in page.inner_text("#chart-stages-note")
