"""A user's own network and data from the command line: what works, and every file that does not."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from bench.record import Record, records_in
from models import tasks
from tests.e2e.command_line import PATIENCE_S, ROOT, CommandLine
from tests.models.user_networks import LeNet, Lola, export, seeded

CLEAR = ("--backend", "clear", "--images", "2", "--precision", "0")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx, a/net.onnx, relu.onnx and mine.npz, and one bad file of each sort."""
    folder = tmp_path_factory.mktemp("a user's files")
    (folder / "a").mkdir()
    export(seeded(Lola, 3), folder / "net.onnx")
    export(seeded(Lola, 3, seed=1), folder / "a" / "net.onnx")
    export(seeded(LeNet, 3), folder / "relu.onnx")
    export(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(196, 3)), folder / "pool.onnx")
    export(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), folder / "small.onnx", (1, 8, 8))
    (folder / "text.onnx").write_text("not a network")
    with (folder / "large.onnx").open("wb") as file:
        file.truncate(2 * 2**30)
    model = onnx.load(folder / "net.onnx")
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, model.graph.initializer[0].name))
    onnx.save(model, folder / "nan.onnx")
    random = np.random.default_rng(0)
    arrays = {f"{s}_images": random.integers(0, 256, (12, 28, 28), dtype=np.uint8) for s in tasks.SPLITS}
    arrays |= {f"{s}_labels": np.arange(12) % 3 for s in tasks.SPLITS}
    np.savez(folder / "mine.npz", **arrays)
    np.savez(folder / "gap.npz", **arrays | {"train_labels": np.arange(12) % 3 * 2})
    np.savez(folder / "rows.npz", **arrays | {"test_labels": np.arange(11) % 3})
    (folder / "broken.npz").write_bytes((folder / "mine.npz").read_bytes()[:5000])
    return folder


def found(run: Path) -> list[Record]:
    return [Record.load(path) for path in records_in(run)]


def test_a_network_and_data_of_a_user(bench: CommandLine, files: Path, tmp_path: Path) -> None:
    models = f"{files / 'net.onnx'},{files / 'a' / 'net.onnx'}"
    options = ("run", "--model", models, "--data", files / "mine.npz", *CLEAR, "--out", tmp_path)
    done = bench(*options)
    assert done.returncode == 0, done.stderr
    first, second = found(tmp_path)
    assert first.key != second.key and first.network["sha256"] != second.network["sha256"]
    assert {r.network["provenance"]["origin"]["file"] for r in (first, second)} == {"net.onnx"}
    assert first.trial.label.startswith("clear · net · mine · ")
    assert len(list((tmp_path / "logs").glob("*-server.log"))) == 2
    assert (tmp_path / "report.html").is_file()

    before = {path: path.stat().st_mtime_ns for path in records_in(tmp_path)}
    assert bench(*options).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in records_in(tmp_path)} == before

    again = shlex.split(first.command.removeprefix("python -m bench"))
    assert bench(*again, "--out", tmp_path / "again").returncode == 0
    assert [record.key for record in found(tmp_path / "again")] == [first.key]


def test_a_relu_network_runs_in_the_clear_and_is_skipped_where_it_must_be_trained(
    bench: CommandLine, files: Path, tmp_path: Path
) -> None:
    files_ = ("--model", files / "relu.onnx", "--data", files / "mine.npz")
    bench("run", *files_, "--backend", "clear,ckks", "--images", "2", "--precision", "0", "--out", tmp_path)
    clear, ckks = sorted(found(tmp_path), key=lambda record: record.trial.backend != "clear")
    assert clear.status == "ok"
    assert ckks.status == "skipped"
    command = shlex.join(["python", "-m", "bench", "train", "--from", *map(str, (files_[1], *files_[2:]))])
    assert command in ckks.reason


def test_a_suite_with_files(bench: CommandLine, files: Path, tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        'name = "mine"\n[[trials]]\nbackend = "clear"\nimages = 2\nprecision = 0\n'
        f'model = "{files}/net.onnx"\ndata = "{files}/mine.npz:ordinal-regression"\n'
    )
    done = bench("run", "--suite", suite, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (record,) = found(tmp_path / "run")
    assert record.outputs is not None and record.outputs.kind == "ordinal-regression"


def test_explain_of_a_network(bench: CommandLine, files: Path) -> None:
    done = bench("explain", "--model", files / "net.onnx", "--data", files / "mine.npz", "--backend", "ckks")
    assert done.returncode == 0, done.stderr
    assert "net · mine" in done.stdout


BAD = {
    "no file": (("--model", "none.onnx"), "cannot read", "name an ONNX file"),
    "no ONNX": (("--model", "text.onnx"), "is no ONNX file", "export the network again"),
    "operator": (("--model", "pool.onnx"), "operator MaxPool, which is not supported", "average pooling"),
    "shape": (("--model", "small.onnx"), "takes images of 1×8×8", "export it for 1×28×28"),
    "NaN": (("--model", "nan.onnx"), "holds NaN", "export a network that is trained"),
    "2 GB": (("--model", "large.onnx"), "has 2048 MiB", "keep it below 512 MiB"),
    "no data file": (("--data", "none.npz"), "there is no data file", "name an .npz file"),
    "another format": (("--data", "mine.csv"), "is no .npz file", "save images and labels with numpy.savez"),
    "damaged data": (("--data", "broken.npz"), "is no .npz file", "save it again with numpy.savez"),
    "labels with gaps": (("--data", "gap.npz"), "train_labels hold the classes 0, 2, 4", "number them 0 … 2"),
    "labels of other rows": (("--data", "rows.npz"), "11 rows for 12 images", "save one row for each image"),
    "kind": (("--kind", "binary-class"), "3 classes are not binary-class", "leave out --kind"),
    "kind of nothing": (("--kind", "nope"), "unknown kind of labels 'nope'", "choose from multi-class"),
    "task and data": (("--task", "digits"), "--data takes the place of --task", "give one of them"),
    "outputs": (("--task", "digits", "--data", ""), "has 3 outputs, and digits has 10", "one logit for each"),
}


@pytest.mark.parametrize("options, said, cure", BAD.values(), ids=BAD)
def test_bad_files_end_with_a_sentence_and_lose_nothing(
    bench: CommandLine, files: Path, tmp_path: Path, options: tuple[str, ...], said: str, cure: str
) -> None:
    asked = {"--model": "net.onnx", "--data": "mine.npz"} | dict(zip(options[::2], options[1::2]))
    words = [
        word
        for name, value in asked.items()
        if value
        for word in (name, str(files / value) if name in ("--model", "--data") else value)
    ]
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "finished.json").write_text("{}")
    done = bench("run", *words, *CLEAR, "--out", tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("bench: ") and done.stderr.count("\n") == 1 and done.stdout == ""
    assert said in done.stderr and cure in done.stderr
    assert [path.name for path in tmp_path.rglob("*.json")] == ["finished.json"]
    explained = bench("explain", *words)
    if "--task" not in asked or "--data" not in words:
        assert explained.returncode == 2 and explained.stderr == done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (("--task", "breastmnist", "--size", "63"), "Invalid value for '--size'"),
        (("--task", "digits", "--size", "64"), "unknown task 'digits_64'"),
        (("--size", "64"), "no MedMNIST files of 64 pixels were found"),
        (("--kind", "binary-class"), "Invalid value for '--kind'"),
        (("--model", "x" * 300), "unknown model"),
        (("--model", "x" * 300 + ".onnx"), "name an ONNX file"),
    ],
)
def test_sizes_that_there_are_not(bench: CommandLine, options: tuple[str, ...], message: str) -> None:
    done = bench("run", *CLEAR, *options)
    assert done.returncode == 2 and message in done.stderr


def test_larger_medmnist_images_are_asked_for_by_their_own_name(bench: CommandLine, tmp_path: Path) -> None:
    bench("run", "--task", "breastmnist", "--size", "64", *CLEAR, "--out", tmp_path, "--data-dir", tmp_path)
    (record,) = found(tmp_path)
    assert record.trial.task == "breastmnist_64"
    assert record.status == "skipped" and "breastmnist_64.npz" in record.reason
    assert "--size N" in bench("list").stdout


@pytest.mark.slow
def test_the_worked_example_of_the_documentation(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "own-models.md").read_text()
    (program,), (commands,) = (
        re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("python", "sh")
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "200"}
    environment.pop("MEDMNIST_DATA_DIR", None)

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-c", program)
    for command in commands.splitlines():
        python, *words = shlex.split(command)
        assert python == "python"
        run(*words, *(["--sampling-time", "0.1"] if "run" in words[:3] else []))  # the figures do not matter here
    records = found(tmp_path / "run")
    assert {record.trial.backend for record in records} == {"clear", "ckks"}
    assert all(record.status == "ok" for record in records)

    from models import onnx_graph  # the example is worth measuring: it has learnt

    with np.load(tmp_path / "mine.npz") as data:
        network = onnx_graph.load(tmp_path / "net.onnx")
        answers = network.forward(data["test_images"][:, None] / 255).argmax(1)
        assert np.mean(answers == data["test_labels"]) > 0.75
