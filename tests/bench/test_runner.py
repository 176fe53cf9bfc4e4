"""The runner on tasks of any shape and kind, and what names a record."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from backends.registry import resolve
from bench import machine, runner
from bench.record import Trial
from bench.runner import Subject
from models.network import Flatten, Gemm, Relu, chain
from models.tasks import MULTI_LABEL, Dataset, Split, Task

TRIAL = Trial(backend="clear", model="random", task="synthetic", images=7)
KINDS = {
    "RGB ordinal": (3, 5, "ordinal-regression"),
    "multi-label": (1, 14, MULTI_LABEL),
    "binary": (1, 2, "binary-class"),
}


def subject(channels: int = 1, outputs: int = 3, kind: str = "multi-class", seed: int = 0, images: int = 12) -> Subject:
    """Random images, labels and network of a task that nobody has seen."""
    random = np.random.default_rng(seed)
    labels = {index: str(index) for index in range(outputs)}
    task = Task("synthetic", "Synthetic", kind, channels, labels, dict.fromkeys(("train", "val", "test"), images), "")

    def split() -> Split:
        shape = (images, outputs) if task.multi_label else (images, 1)
        values = random.integers(0, 2 if task.multi_label else outputs, shape)
        return Split(random.integers(0, 256, (images, *task.input_shape), dtype=np.uint8), values)

    pixels = int(np.prod(task.input_shape))
    layers = (
        Flatten(),
        Gemm(random.normal(size=(8, pixels)) / np.sqrt(pixels), random.normal(size=8)),
        Relu(),
        Gemm(random.normal(size=(outputs, 8)), random.normal(size=outputs)),
    )
    network = chain("random", task.name, "float", task.input_shape, layers)
    return Subject(task, Dataset(task, split(), split(), split(), md5=f"data {seed}"), network, network)


def silent(stage: str, share: float) -> None:
    assert 0 <= share <= 1, stage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_any_task_runs(tmp_path: Path, kind: str, scenario: str) -> None:
    given = subject(*KINDS[kind])
    trial = msgspec.structs.replace(TRIAL, scenario=scenario)
    record = runner.run(trial, given, tmp_path, silent)
    assert (record.status, record.reason) == ("ok", "")
    outputs, indices = record.outputs, record.outputs.indices
    assert len(set(indices)) == 7 and outputs.kind == given.task.kind
    assert outputs.labels == given.dataset.test.labels[indices].tolist()
    expected = given.lowered.forward(given.dataset.test.images[indices] / 255)
    np.testing.assert_allclose(outputs.encrypted_logits, expected, atol=1e-5)
    np.testing.assert_allclose(outputs.lowered_logits, expected, atol=1e-5)


def test_failure_of_a_task_nobody_has_seen(tmp_path: Path) -> None:
    trial = msgspec.structs.replace(TRIAL, backend="fake:crash")
    record = runner.run(trial, subject(*KINDS["RGB ordinal"]), tmp_path, silent)
    assert record.status == "failed" and "SIGSEGV" in record.reason
    assert record.outputs.encrypted_logits == [] and len(record.outputs.float_logits) == 7


def test_image_order_is_a_matter_of_task_and_seed_alone() -> None:
    def order(**change: object) -> list[int]:
        return runner.image_order(msgspec.structs.replace(TRIAL, **change), 100).tolist()

    for change in ({"backend": "ckks"}, {"model": "other"}, {"scenario": "offline"}, {"threads": 9}):
        assert order(**change) == order()
    assert order(task="other") != order() and order(seed=1) != order() and order(seed=2) != order(seed=1)
    assert order(images=3) == order()[:3]  # fewer images are some of the same
    assert sorted(order(images=0)) == list(range(100))


def test_key_changes_with_whatever_the_result_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given, backend = subject(), resolve("clear")[0]

    def key(**change: object) -> str:
        return runner.key(msgspec.structs.replace(TRIAL, **change), given, backend)

    changes = (
        {"backend": "fake"}, {"model": "other"}, {"task": "other"}, {"scenario": "offline"},
        {"model_privacy": "encrypted"}, {"images": 8}, {"threads": 2}, {"seed": 1},
    )  # fmt: skip
    keys = [key(), *(key(**change) for change in changes)]
    other = subject(seed=1)
    keys += [
        runner.key(TRIAL, dataclasses.replace(given, dataset=other.dataset), backend),
        runner.key(TRIAL, dataclasses.replace(given, lowered=other.lowered), backend),
        runner.key(TRIAL, dataclasses.replace(given, float_network=other.float_network), backend),
        runner.key(TRIAL, None, backend),
    ]
    for name, value in (("machine", {"host": "other"}), ("source_sha256", "other"), ("versions", {"numpy": "0"})):
        with monkeypatch.context() as patch:
            patch.setattr(runner.machine, name, lambda *_, value=value: value)
            keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == keys[0] and key(timeout_s=1.0) == keys[0]  # more time makes no other result


def test_the_source_of_a_result_includes_the_readers_of_its_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "models"
    shutil.copytree(machine.MODELS, copy, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    backend = resolve("clear")[0]
    monkeypatch.setattr(machine, "MODELS", copy)
    digests = []
    for changed in ("train.py", "network.py"):  # of which only the second is read by a party
        machine._source_sha256.cache_clear()
        digests.append(machine.source_sha256(backend))
        (copy / changed).write_text((copy / changed).read_text() + "# changed\n")
    machine._source_sha256.cache_clear()
    digests.append(machine.source_sha256(backend))
    machine._source_sha256.cache_clear()
    assert digests[0] == digests[1] != digests[2]
