"""Where a command runs: plug-ins of others, folders in the way, terminals of few characters, paths of any bytes, signals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from bench.record import records_in
from tests.e2e.command_line import ROOT, CommandLine, finish, records

OPTIONS = ("--task", "digits", "--images", 2, "--threads", 1, "--precision", 0)
GOOD = 'title = "theirs"\nscheme = "clear"\nlowering = "float"\nscenarios = ["single-stream", "offline"]\n'


def plugin(site: Path, name: str, toml: str, module: str = "from backends.clear import *\n") -> None:
    """An installed distribution with a backend."""
    package, about = (site / f"of_{abs(hash(name))}", site / f"of_{abs(hash(name))}-1.dist-info")
    package.mkdir(parents=True)
    about.mkdir()
    (package / "__init__.py").write_text(module)
    (package / "backend.toml").write_text(toml)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[fhe_medmnist_bench.backends]\n{name} = {package.name}\n")


HARNESS = """
from backends import clear
from backends.clear import Client, Server
import dataclasses

class Owner(clear.Owner):
    def prepare(self, job):
        return dataclasses.replace(super().prepare(job), {change})
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of packages with backends: sound ones, broken ones, and ones that break the harness."""
    site = tmp_path_factory.mktemp("site")
    plugin(site, "sound", GOOD)
    plugin(site, "nonsense", "title = ")
    plugin(site, "clear", GOOD)
    plugin(site, "../../esc", GOOD)
    plugin(site, "endless", GOOD, HARNESS.format(change="batch=10**9"))
    plugin(site, "surrogate", GOOD, HARNESS.format(change="notes={'layout': '\\ud800'}"))
    plugin(site, "typed", GOOD, HARNESS.format(change="operations={'rotations': 10**30}"))
    return site


def test_broken_plugins_keep_no_command_from_working(bench: CommandLine, site: Path, tmp_path: Path) -> None:
    done = bench("run", "--backend", "sound,clear", *OPTIONS, "--out", tmp_path / "run", PYTHONPATH=str(site))
    assert done.returncode == 0
    assert {name: record.status for name, record in records(tmp_path / "run").items()} == {"sound": "ok", "clear": "ok"}
    for name in ("nonsense", "clear", "../../esc"):
        assert done.stderr.count(f"the backend {name!r} of ") == 1
    listed = bench("list", PYTHONPATH=str(site))
    assert listed.returncode == 0 and listed.stderr == ""
    assert listed.stdout.count("  broken: the backend ") == 3 and "NumPy, no encryption" in listed.stdout
    asked = bench("run", "--backend", "nonsense", PYTHONPATH=str(site))
    assert asked.returncode == 2 and "bench: the backend 'nonsense' of " in asked.stderr.splitlines()[-1]


def test_what_breaks_the_harness_is_one_failed_record(bench: CommandLine, site: Path, tmp_path: Path) -> None:
    names = ("endless", "surrogate", "typed", "clear")
    options = ("--scenario", "offline", *OPTIONS, "--out", tmp_path)
    assert bench("run", "--backend", ",".join(names), *options, PYTHONPATH=str(site)).returncode == 1
    found = records(tmp_path)
    statuses = {"endless": "failed", "typed": "failed", "surrogate": "ok", "clear": "ok"}
    assert {name: found[name].status for name in names} == statuses
    assert "a request of 1000000000 images is more than a message holds" in found["endless"].reason
    assert found["surrogate"].notes["layout"] == "\\ud800"
    assert "Expected `int` <= " in found["typed"].reason


def test_a_cached_network_of_absurd_shape_is_one_record(bench: CommandLine, tmp_path: Path) -> None:
    weights = tmp_path / "home" / "fhe-medmnist-bench" / "weights" / "fcnn"
    weights.mkdir(parents=True)
    for name in ("organamnist.float", "organamnist.polynomial", "organamnist.integer"):
        (weights / f"{name}.json").write_text('{"input_shape": [1, 99999999, 99999999]}')
        (weights / f"{name}.safetensors").write_bytes(b"")
    (tmp_path / "organamnist.npz").touch()
    options = ("--task", "organamnist,digits", *OPTIONS[2:], "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert bench("run", "--backend", "clear", *options, XDG_CACHE_HOME=str(tmp_path / "home")).returncode == 1
    found = [json.loads(path.read_text()) for path in records_in(tmp_path / "run")]
    assert {record["trial"]["task"]: record["status"] for record in found} == {"organamnist": "skipped", "digits": "ok"}


def test_a_folder_called_as_a_package_of_ours_is_not_taken_for_it(bench: CommandLine, tmp_path: Path) -> None:
    for name in ("models", "backends", "bench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not this one')\n")
    (tmp_path / "bench").rename(tmp_path / "own")  # `python -m bench` itself has to be ours
    run = ("run", "--backend", "clear", *OPTIONS, "--out", "run")
    done = bench(*run, cwd=tmp_path, python=("-X", "utf8"), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "run")["clear"].status == "ok"


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_a_terminal_of_few_characters(bench: CommandLine, tmp_path: Path, encoding: str) -> None:
    surroundings = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = bench("run", "--backend", "clear", *OPTIONS, "--out", tmp_path / "run", **surroundings)
    assert done.returncode == 0 and "clear" in done.stdout
    for command in (("list",), ("show", tmp_path / "run"), ("show", tmp_path / "run", "clear"), ("schema",), ("-h",)):
        assert bench(*command, **surroundings).returncode == 0, command
    assert bench("claims", tmp_path / "run", **surroundings).returncode == 0
    assert bench("report", tmp_path / "run", "--figures", **surroundings).returncode == 0


def test_paths_that_are_no_text(bench: CommandLine, tmp_path: Path) -> None:
    folder = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    suite = f"{folder}/\udcff.toml"
    Path(suite).write_text('name = "x"\n[[trials]]\nbackend = "clear"\ntask = "digits"\nimages = 2\nprecision = 0.0\n')
    out = f"{folder}/run"
    done = bench("run", "--suite", suite, "--data-dir", folder, "--out", out)
    assert done.returncode == 0 and "caf\\udce9" in done.stdout
    for command in (("report", out), ("show", out), ("check", out), ("compare", out, out)):
        assert bench(*command).returncode in (0, 1), command
    assert "caf\\udce9" in (Path(out) / "report.html").read_text()
    missing = bench("report", f"{folder}/nothing")
    assert missing.returncode == 1 and "no records in" in missing.stderr


def test_forty_columns_cut_no_figure(bench: CommandLine, tmp_path: Path) -> None:
    done = bench("run", "--backend", "clear", *OPTIONS, "--out", tmp_path, COLUMNS="40")
    assert done.returncode == 0 and "…" not in done.stdout
    shown = bench("show", tmp_path, COLUMNS="40")
    assert shown.returncode == 0 and "…" not in shown.stdout
    compared = bench("compare", tmp_path, tmp_path, COLUMNS="40")
    assert compared.returncode == 0 and "…" not in compared.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_parties_and_reports_what_is_done(
    bench: CommandLine, tmp_path: Path, number: signal.Signals
) -> None:
    options = ("--backend", "clear,fake:hang", *OPTIONS, "--order", 1)  # an order that begins with the clear backend
    run = bench.start("run", *options, "--out", tmp_path)
    bench.party("server", "backends.fake")
    run.send_signal(number)
    done = finish(run)
    assert done.returncode == 128 + number
    word = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert f"bench: {word}; finished records are in {tmp_path}" in done.stderr
    assert bench.processes() == []
    assert "clear" in (tmp_path / "results.csv").read_text()
