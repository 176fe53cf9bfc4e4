"""The report: figures recomputed from the records, and the page read and used as a person would."""

from __future__ import annotations

import base64
import gzip
import html
import itertools
import json
import re
import statistics
from html.parser import HTMLParser

import msgspec
import pandas as pd
import pytest

from bench import report
from bench.record import Record, RecordError
from bench.report.quantity import digits, interval, with_unit
from bench.report.verdict import verdict
from tests.bench.records_for_report import REQUEST_STAGES, failed, record, search

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> \u2028 {{ 7 * 7 }} é"


@pytest.fixture(scope="module")
def records():
    tasks = [("breastmnist", "binary-class", 2), ("chestmnist", "multi-label, binary-class", 14)]
    done = [
        record(backend, task, kind, outputs)
        for backend in ("clear", "ckks", "openfhe", "tfhe")
        for task, kind, outputs in tasks
    ]
    offline = [record(backend, scenario="offline", batch=64) for backend in ("ckks", "ckks:naive")]
    statuses = [failed("failed", HOSTILE), failed("timeout", "no answer in 600 s", "ckks")]
    statuses += [failed("insecure", "N=64", "ckks:naive")]
    return done + offline + statuses


@pytest.fixture(scope="module")
def run(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("run")
    for each in records:
        each.save(folder / "records")
    notes = ["MedMNIST not found: ran on digits", HOSTILE]
    (folder / "run.json").write_text(json.dumps({"suite": "quick & dirty", "notes": notes, "command": "bench <run>"}))
    search().save(folder / "searches" / "tfhe-fcnn")
    names = ("results.csv", "results.parquet", "results.md", "report.html")
    assert report.write(folder) == tuple(folder / name for name in names)
    return folder


@pytest.fixture(scope="module")
def table(run):
    return pd.read_csv(run / "results.csv", float_precision="round_trip").set_index("key")


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text("utf-8")


# ---- The table -------------------------------------------------------------------------------------------------------


def test_every_column_is_documented_and_every_trial_has_its_row(run, records):
    table = pd.read_csv(run / "results.csv")
    assert list(table.columns) == list(report.COLUMNS)
    assert sorted(table["key"]) == sorted(r.key for r in records)
    assert all(meaning for _, meaning in report.COLUMNS.values())


def test_times_of_the_table_are_those_of_the_records(table, records):
    for r in [r for r in records if r.status == "ok"]:
        row = table.loc[r.key]
        walls = [r.stage(*stage).wall_s for stage in REQUEST_STAGES]
        assert row["infer_wall_s_median"] == statistics.median(r.stage("server", "infer").wall_s)
        assert row["infer_cpu_s_median"] == statistics.median(r.stage("server", "infer").cpu_s)
        assert row["encrypt_wall_s_median"] == statistics.median(r.stage("client", "encrypt").wall_s)
        assert row["serialise_request_wall_s_median"] == statistics.median(r.stage("client", "serialise").wall_s)
        assert row["serialise_response_wall_s_median"] == statistics.median(r.stage("server", "serialise").wall_s)
        assert row["request_wall_s_median"] == pytest.approx(statistics.median(map(sum, zip(*walls, strict=True))))
        server = statistics.median(map(sum, zip(*walls[2:5], strict=True)))
        assert row["server_wall_s_median"] == pytest.approx(server)
        assert row["throughput_images_per_s"] == pytest.approx(r.batch / server)
        # 20 samples: the 6th smallest and the 6th largest cover the median with 95.9 %
        ordered = sorted(r.stage("server", "infer").wall_s)
        assert (row["infer_wall_s_low"], row["infer_wall_s_high"]) == (ordered[5], ordered[14])
        assert row["keygen_wall_s"] == r.stage("client", "keygen").wall_s[0]
        assert row["infer_cold_wall_s"] == r.stage("server", "infer").cold_wall_s


def test_sizes_and_memory_of_the_table_are_those_of_the_records(table, records):
    for r in [r for r in records if r.status == "ok"]:
        row = table.loc[r.key]
        assert row["request_bytes"] == r.sizes["request_bytes"]
        assert row["response_bytes"] == r.sizes["response_bytes"]
        keys = [v for k, v in r.sizes.items() if k.endswith("_key_bytes") and k != "public_key_bytes"]
        assert row["evaluation_key_bytes"] == sum(keys) if keys else pd.isna(row["evaluation_key_bytes"])
        for role in ("client", "server"):
            peak = max(s.peak_rss_bytes for s in r.stages if s.role == role and s.peak_rss_bytes)
            assert row[f"{role}_peak_rss_bytes"] == peak


def test_cost_of_keys_is_shared_by_the_requests(table, records):
    for r in [r for r in records if r.status == "ok"]:
        row = table.loc[r.key]
        keys = sum(v for k, v in r.sizes.items() if k.endswith("_key_bytes"))
        once = r.stage("client", "keygen").wall_s[0] + r.stage("server", "load_keys").wall_s[0]
        ends = r.sizes["request_bytes"] + r.sizes["response_bytes"]
        for n in (1, 100, 10_000):
            assert row[f"request_wall_s_over_{n}"] == pytest.approx(once / n + row["request_wall_s_median"])
            assert row[f"request_bytes_over_{n}"] == pytest.approx(keys / n + ends)


def test_network_time_is_derived_for_a_stated_bandwidth_and_in_no_other_column(tmp_path):
    r = record()
    r.save(tmp_path / "records")
    plain = pd.read_csv(report.write(tmp_path)[0]).iloc[0]
    network = ["bandwidth_bit_per_s", "network_request_s", "network_keys_s"]
    assert plain[network].isna().all()
    slow = pd.read_csv(report.write(tmp_path, 8e6)[0]).iloc[0]
    assert slow["network_request_s"] == (r.sizes["request_bytes"] + r.sizes["response_bytes"]) / 1e6
    assert slow["network_keys_s"] == 41_480_000 / 1e6
    pd.testing.assert_series_equal(plain.drop(network), slow.drop(network))
    (tmp_path / "run.json").write_text('{"bandwidth_bit_per_s": 8e6}')
    assert pd.read_csv(report.write(tmp_path)[0])["network_keys_s"][0] == slow["network_keys_s"]


def test_sensitivity_and_specificity_of_a_binary_task_are_of_class_one(table, records):
    r = next(r for r in records if r.status == "ok" and r.outputs.kind == "binary-class")
    row, truth = table.loc[r.key], [label for (label,) in r.outputs.labels]
    said = [int(b > a) for a, b in r.outputs.encrypted_logits]
    hits = [s for s, t in zip(said, truth, strict=True) if t]
    misses = [s for s, t in zip(said, truth, strict=True) if not t]
    assert row["sensitivity_encrypted"] == pytest.approx(sum(hits) / len(hits))
    assert row["specificity_encrypted"] == pytest.approx(1 - sum(misses) / len(misses))
    assert row["sensitivity_encrypted_low"] < row["sensitivity_encrypted"] < row["sensitivity_encrypted_high"]
    by_class = json.loads(row["by_class"])
    assert by_class[0]["sensitivity"]["value"] == by_class[1]["specificity"]["value"] == row["specificity_encrypted"]


def test_memory_that_a_call_keeps_is_that_of_its_stage(tmp_path):
    r = record()
    for index, stage in enumerate(r.stages):
        stage.kept_rss_bytes = index
    row = report.rows([r]).iloc[0]
    expected = {"model": ("server", "load"), "evaluation_key": ("server", "load_keys"),
                "request": ("server", "deserialise"), "response": ("client", "deserialise")}  # fmt: skip
    for name, stage in expected.items():
        assert row[f"{name}_memory_bytes"] == r.stage(*stage).kept_rss_bytes


def test_accuracies_of_the_table_are_those_of_the_records(table, records):
    for r in [r for r in records if r.status == "ok"]:
        row = table.loc[r.key]
        for step in ("float", "lowered", "encrypted"):
            logits = getattr(r.outputs, f"{step}_logits")
            if r.outputs.kind == "binary-class":
                hits = [int(b > a) == label for (a, b), (label,) in zip(logits, r.outputs.labels, strict=True)]
            else:
                pairs = zip(sum(logits, []), sum(r.outputs.labels, []), strict=True)
                hits = [int(logit > 0) == label for logit, label in pairs]
            assert row[f"accuracy_{step}"] == pytest.approx(sum(hits) / len(hits), abs=1e-12)
            assert row[f"accuracy_{step}_low"] < row[f"accuracy_{step}"] < row[f"accuracy_{step}_high"]
        errors = [
            abs(a - b)
            for one, other in zip(r.outputs.lowered_logits, r.outputs.encrypted_logits, strict=True)
            for a, b in zip(one, other, strict=True)
        ]
        assert row["logit_error_max"] == max(errors)
        assert row["images"] == len(r.outputs.labels)


def test_parameters_of_the_table_are_those_of_the_records(table, records):
    for r in [r for r in records if r.trial.backend == "openfhe"]:
        row = table.loc[r.key]
        assert (row["ring_dimension"], row["log2_qp"], row["security_bits"]) == (16384, 210.0, 128)
        assert json.loads(row["parameters"]) == r.parameters
        assert json.loads(row["operations"]) == r.operations
        assert json.loads(row["versions"]) == r.versions


def test_a_trial_that_failed_has_a_status_a_reason_and_no_figures(table, records):
    for r in [r for r in records if r.status != "ok"]:
        row = table.loc[r.key]
        assert (row["status"], row["reason"]) == (r.status, r.reason)
        figures = [name for name, (unit, _) in report.COLUMNS.items() if unit in ("s", "bytes", "images/s", "bits")]
        figures += ["batch", "accuracy_float", "agreement", "images"]
        assert row[figures].drop("duration_s").isna().all()


def test_few_samples_have_a_median_and_no_interval():
    row = report.rows([record(samples=3)]).iloc[0]
    assert row["infer_wall_s_median"] > 0
    assert pd.isna(row["infer_wall_s_low"])


def test_whole_numbers_stay_whole_beside_missing_ones(run):
    sizes = pd.read_csv(run / "results.csv", dtype=str)["request_bytes"].dropna()
    assert sizes.str.fullmatch(r"\d+").all()


def test_no_records_is_an_error_that_names_the_cure(tmp_path):
    with pytest.raises(RecordError, match="python -m bench run"):
        report.write(tmp_path)


def test_a_damaged_run_file_is_named(tmp_path):
    record().save(tmp_path / "records")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RecordError, match="run.json"):
        report.write(tmp_path)


# ---- The page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.inside = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)


def packed(page, name):
    """What the page carries as gzip in base64."""
    return json.loads(gzip.decompress(base64.b64decode(re.search(rf'id="{name}">(.*?)</script>', page, re.S)[1])))


def test_the_page_carries_every_trial_and_shows_every_note(page, records):
    data = packed(page, "data")
    assert sorted(data["keys"]) == sorted(r.key for r in records)
    assert "no answer in 600 s" in data["texts"]["reason"]
    text = "".join(Page(page).text)
    assert "MedMNIST not found: ran on digits" in text


def test_the_page_shows_every_network_of_a_search_and_draws_those_measured(page):
    found = search()
    points = packed(page, "data")["searches"]
    assert [[point["infer_s"] for point in of] for of in points] == [[row["infer_s"] for row in found.measured]]
    text = " ".join("".join(Page(page).text).split())
    assert "Search: tfhe · fcnn · pneumoniamnist" in text and "no other of its 75" in text
    cells = ("95.8\u202f%", "724\u202fms", "25.0\u202fMB", "hidden 64", "91.7\u202f%", "hidden 4, activation square")
    assert [cell for cell in cells if cell.replace("\u202f", " ") not in text.replace("\u202f", " ")] == []


def test_a_damaged_search_is_named(tmp_path):
    record().save(tmp_path / "records")
    search().save(tmp_path / "searches" / "one")
    (tmp_path / "searches" / "one" / "frontier.json").write_text("{")
    with pytest.raises(RecordError, match="one/frontier.json.*delete it"):
        report.write(tmp_path)


def test_figures_of_the_page_are_those_of_the_table(page, table):
    data = packed(page, "data")
    shown = {c for c in data["figures"] if c in report.COLUMNS and report.COLUMNS[c].unit != "JSON"}
    assert len(shown) > 60
    for index, key in enumerate(data["keys"]):
        for column in shown:
            figure, expected = data["figures"][column][index], table.loc[key, column]
            assert figure == expected if figure is not None else pd.isna(expected), (column, key)
    for column, texts in data["texts"].items():
        if column in shown and report.COLUMNS[column].unit in ("s", "bytes"):
            for figure, text in zip(data["figures"][column], texts, strict=True):
                said = with_unit(figure, report.COLUMNS[column].unit) if figure is not None else ""
                assert text.split("\t")[0] == said


def test_counts_of_operations_are_those_of_the_records(page, records):
    data, counts = packed(page, "data"), {r.key: r.operations for r in records}
    for index, key in enumerate(data["keys"]):
        for name in ("rotations", "multiply_plain", "rescale"):
            assert data["figures"][f"operation: {name}"][index] == counts[key].get(name)


def test_the_page_loads_nothing(page):
    for tag, attributes in Page(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert not re.match(r"(https?:)?//", attributes.get("href") or "")
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, re.S))
    assert "url(" not in styles
    assert "@import" not in styles
    assert "default-src 'none'" in page


def test_hostile_text_stays_text(page):
    parsed = Page(page)
    assert not [tag for tag, attributes in parsed.tags if tag == "img" or "onerror" in attributes]
    assert [tag for tag, _ in parsed.tags].count("script") == 4  # three packed, one program
    assert html.escape(HOSTILE, quote=False).split(" \u2028")[0].replace("'", "&#39;") in page
    assert "{{ 7 * 7 }}" in page


def test_the_page_is_small(page):
    assert len(page.encode()) < 6_000_000


def test_raw_records_are_in_the_page(page, records):
    raw = {r["key"]: r for r in packed(page, "records")}
    assert raw == {r.key: msgspec.to_builtins(r) for r in records}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thousand")
    work = itertools.product(
        range(63), ("clear", "ckks", "openfhe", "tfhe"), ("fcnn", "polycnn"), ("breastmnist", "digits")
    )
    for number, (seed, backend, model, task) in enumerate(itertools.islice(work, 1000)):
        each = record(backend, task, seed=seed, model=model, n=50, samples=20)
        each.key = f"{number:020x}"
        each.save(folder / "records")
    return report.write(folder).html


def test_a_page_of_a_thousand_records_is_below_6_mb_and_says_what_it_left_to_the_files(thousand):
    page = thousand.read_text()
    assert len(page.encode()) < 6_000_000
    assert len(packed(page, "data")["keys"]) == 1000
    raw = packed(page, "records")
    assert len(raw) == 1000
    for r in raw:
        assert r["outputs"] == f"left out to keep this page small: see records/{r['key']}.json"
        assert r["parameters"] or r["trial"]["backend"] == "clear"


@pytest.mark.parametrize("only", [record(), failed("oom", "killed"), record("clear")], ids=["ok", "oom", "clear"])
def test_one_record_is_enough(tmp_path, only):
    only.save(tmp_path / "records")
    files = report.write(tmp_path)
    assert len(pd.read_csv(files.csv)) == 1
    assert packed(files.html.read_text("utf-8"), "data")["keys"] == [only.key]


# ---- What the figures say --------------------------------------------------------------------------------------------


def trial(backend, wall, request, accuracy, **changes):
    spread = {"accuracy_encrypted_low": accuracy - 0.01, "accuracy_encrypted_high": accuracy + 0.01}
    return {
        "backend": backend, "model": "fcnn", "task": "breastmnist", "scenario": "single-stream",
        "model_privacy": "plain", "status": "ok", "encrypted": True, "batch": 1, "server_wall_s_median": wall,
        "telling": True, "request_bytes": request, "accuracy_encrypted": accuracy, **spread, **changes,
    }  # fmt: skip


def test_verdict_names_the_fastest_the_most_accurate_and_the_smallest():
    clear = trial("clear", 1e-5, 10, 0.99, encrypted=False)
    broken = trial("broken", 1e-5, 10, 0.99, status="wrong")
    insecure = trial("weak", 1e-5, 10, 0.99, status="insecure")
    said = verdict([trial("ckks", 0.02, 300_000, 0.8), trial("tfhe", 2.0, 30_000, 0.9), clear, broken, insecure])
    assert said == [
        "Fastest on the server: ckks, 20.0 ms an image; tfhe 100× as long.",
        "Most accurate under encryption: tfhe, 0.900; ckks 0.800.",
        "Smallest request: tfhe, 30.0 kB an image; ckks 10.0× as many bytes.",
    ]


def test_verdict_compares_only_the_same_work_and_per_image():
    other = {"task": "pneumoniamnist", "batch": 10}
    said = verdict(
        [trial("a", 1.0, 100, 0.80), trial("b", 4.0, 100, 0.81), trial("a", 90.0, 1000, 0.8, **other),
         trial("b", 10.0, 1000, 0.8, **other), trial("c", 1e-9, 1, 1.0, task="digits")]
    )  # fmt: skip
    fastest = "Fastest on the server: b, 1.00 s to 4.00 s an image, best in 1 of 2 comparisons; a 1.50× as long."
    assert said[0] == fastest
    assert said[1].endswith("their 95 % intervals overlap, so the order is not settled.")
    assert said[2] == "Smallest request: a and b, 100 B an image, best in 2 of 2 comparisons."


def test_verdict_never_compares_different_threads():
    assert verdict([trial("a", 1, 1, 1, threads=1), trial("b", 1, 1, 1, threads=2)])[0].startswith("No two encrypted")


def test_costs_of_different_machines_are_ranked_only_if_asked_for(tmp_path):
    for backend, host in (("ckks", "a"), ("openfhe", "b")):
        made = record(backend)
        msgspec.structs.replace(made, machine=made.machine | {"host": host}).save(tmp_path / "records")

    def page(**options):
        return report.write(tmp_path, **options).html.read_text("utf-8")

    assert "Fastest on the server" not in page()
    assert "The trials ran on 2 machines; costs are ranked within each of them only." in page()
    assert "Fastest on the server" in page(across_machines=True)
    assert "Figures of 2 machines are compared as if they were of one" in page(across_machines=True)


def test_trials_that_differ_in_threads_or_seed_have_different_names(tmp_path):
    for threads, seed in [(1, 0), (2, 0), (1, 1)]:
        record(threads=threads, seed=seed).save(tmp_path / "records")
    labels = packed(report.write(tmp_path).html.read_text("utf-8"), "data")["labels"]
    expected = (["ckks", "threads 1", "seed 0"], ["ckks", "threads 2", "seed 0"], ["ckks", "threads 1", "seed 1"])
    assert sorted(labels) == sorted(expected)


def test_verdict_without_a_comparison():
    assert verdict([trial("a", 1, 1, 1, status="failed")])[0].startswith("No trial finished")
    assert verdict([trial("clear", 1, 1, 1, encrypted=False)])[0].startswith("Nothing was encrypted")
    assert verdict([trial("a", 1.0, 2000, 0.5)]) == [
        "One encrypted backend finished: a, accuracy 0.500, server time 1.00 s an image, request 2.00 kB an image."
    ]
    assert verdict([trial("a", 1, 1, 1), trial("b", 1, 1, 1, task="digits")])[0].startswith("No two encrypted")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0172, "s", "17.2 ms"), (0.99996, "s", "1.00 s"), (137.68, "s", "138 s"), (4e-10, "s", "0.400 ns"),
     (36_123, "bytes", "36.1 kB"), (999, "bytes", "999 B"), (61_100_000, "bytes", "61.1 MB"), (0.875, "", "0.875"),
     (8192, "coefficients", "8\u202f192"), (0.000063, "", "6.3e-05"), (0, "bytes", "0 B"), (1.0, "", "1.00")],
)  # fmt: skip
def test_figures_for_people(value, unit, text):
    assert with_unit(value, unit) == text


def test_intervals_for_people():
    assert interval(0.0211, 0.0219, "s") == "21.1–21.9 ms"
    assert interval(0.00098, 0.0011, "s") == "980 µs – 1.10 ms"
    assert interval(0.838, 0.952, "") == "0.838–0.952"
    assert digits(float("nan")) == "nan"


def test_the_committed_schema_is_what_the_report_reads(run, records):
    loaded = {Record.load(path).key for path in (run / "records").glob("*.json")}
    assert loaded == {r.key for r in records}
