"""A user's data file is a task of any size and kind; one that does not fit is refused in one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import medmnist
import numpy as np
import pytest

from models import tasks, train
from models.network import Gemm
from models.tasks import MULTI_LABEL, DataFileError

COUNTS = {"train": 30, "val": 8, "test": 9}


def arrays(size=(12, 9), channels=1, label=lambda n: np.arange(n) % 3, **replaced) -> dict[str, np.ndarray]:
    random, found = np.random.default_rng(0), {}
    for split, count in COUNTS.items():
        shape = (count, *size) if channels == 1 else (count, *size, channels)
        found[f"{split}_images"] = random.integers(0, 256, shape, dtype=np.uint8)
        found[f"{split}_labels"] = label(count)
    return {name: value for name, value in (found | replaced).items() if value is not None}


def write(folder: Path, name: str = "mine.npz", **options) -> str:
    path = folder / name
    np.savez(path, **arrays(**options))
    return str(path)


def few_columns(n: int) -> np.ndarray:
    return np.arange(n)[:, None] >> np.arange(3) & 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "label, kind, outputs",
    [
        (lambda n: np.arange(n) % 2, "binary-class", 2),
        (lambda n: np.arange(n)[:, None] % 4, "multi-class", 4),
        (lambda n: (np.arange(n) % 2 == 0)[:, None], "binary-class", 2),
        (lambda n: (np.arange(n) % 3).astype(np.float64), "multi-class", 3),
        (few_columns, MULTI_LABEL, 3),
    ],
)
def test_kinds_are_derived(label, kind, outputs, channels, tmp_path):
    name = write(tmp_path, channels=channels, label=label)
    task = tasks.task(name)
    assert (task.kind, task.outputs, task.input_shape) == (kind, outputs, (channels, 12, 9))
    assert task.samples == COUNTS and not task.embedded
    data = tasks.load(task)
    assert data.md5 == task.md5 and tasks.find(task) == Path(name)
    with np.load(name) as found:
        assert np.array_equal(data.test.labels, found["test_labels"].reshape(9, -1))
        first = found["val_images"][1]
    assert np.array_equal(data.val.images[1], first[None] if channels == 1 else np.moveaxis(first, -1, 0))


def test_a_kind_that_is_given(tmp_path):
    name = write(tmp_path)
    task = tasks.task(f"{name}:ordinal-regression")
    assert task.kind == "ordinal-regression" and tasks.load(task).task == task
    assert tasks.task(f"{write(tmp_path, label=few_columns)}:multi-label").kind == MULTI_LABEL


def test_the_name_is_safe_and_tells_files_apart(tmp_path):
    (tmp_path / "a").mkdir()
    first, second = write(tmp_path, "my data (1).npz"), write(tmp_path / "a", "my data (1).npz", size=(5, 5))
    names = [tasks.task(path).name for path in (first, second)]
    assert len(set(names)) == 2 and all(name.startswith("my_data_1_-") for name in names)


def test_a_file_that_changes_is_read_again(tmp_path):
    before = tasks.task(write(tmp_path))
    assert tasks.task(write(tmp_path, size=(6, 6))).name != before.name


BAD = {
    "no such file": ({}, "no data file"),
    "labels are missing": ({"val_labels": None}, "lacks val_labels"),
    "float images": ({"train_images": np.zeros((30, 12, 9))}, "scale them to 0 … 255"),
    "channels first": ({"train_images": np.zeros((30, 3, 12, 9), np.uint8)}, "height, width, 3"),
    "sizes differ": ({"test_images": np.zeros((9, 10, 9), np.uint8)}, "differ in shape"),
    "empty split": ({"val_images": np.zeros((0, 12, 9), np.uint8), "val_labels": np.zeros(0, int)}, "are empty"),
    "tiny images": ({"size": (3, 9)}, "4 pixels"),
    "other number of rows": ({"train_labels": np.arange(29) % 3}, "29 rows for 30 images"),
    "negative": ({"label": lambda n: np.arange(n) % 3 - 1}, "negative or broken"),
    "broken": ({"label": lambda n: np.arange(n) / 2}, "negative or broken"),
    "NaN": ({"label": lambda n: np.full(n, np.nan)}, "negative or broken"),
    "gap": ({"label": lambda n: np.array([0, 255, 1])[np.arange(n) % 3]}, "0, 1, 255; number them 0 … 2"),
    "one class": ({"label": lambda n: np.zeros(n, int)}, "one class alone"),
    "class without training image": ({"test_labels": np.arange(9) % 4}, "the class 3, of which train has no image"),
    "names": ({"label": lambda n: np.array(["cat", "dog"])[np.arange(n) % 2]}, "numbers of the classes"),
    "objects": ({"test_labels": np.array([None] * 9)}, "plain arrays"),
    "columns of classes": ({"label": lambda n: np.arange(n)[:, None] % [2, 3]}, "more than 0 and 1"),
    "columns differ": ({"label": few_columns, "val_labels": np.zeros((8, 2), int)}, "columns in different splits"),
    "three axes": ({"label": lambda n: np.zeros((n, 2, 2), int)}, "save them as"),
}


@pytest.mark.parametrize("options, said", BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_in_one_sentence(options, said, tmp_path):
    name = write(tmp_path, **options) if options else str(tmp_path / "none.npz")
    with pytest.raises(DataFileError) as caught:
        tasks.task(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind, label, said",
    [
        ("binary-class", lambda n: np.arange(n) % 3, "3 classes are not binary-class"),
        ("multi-label", lambda n: np.arange(n) % 2, "a column of 0 and 1 for each label"),
        ("multi-class", few_columns, "one column of class numbers"),
        (
            "regression",
            lambda n: np.arange(n) % 2,
            "choose from multi-class, binary-class, ordinal-regression, multi-label",
        ),
    ],
)
def test_kinds_that_do_not_fit(kind, label, said, tmp_path):
    with pytest.raises(DataFileError, match=said):
        tasks.task(f"{write(tmp_path, label=label)}:{kind}")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "an array", "text", "a folder"])
def test_damaged_files(damage, tmp_path):
    path = Path(write(tmp_path))
    content = bytearray(path.read_bytes())
    if damage == "an array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        content[200:210] = bytes(10) if damage == "flipped" else content[200:210]
        content = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"a,b\n1,2\n"}.get(damage, content)
        path.write_bytes(content)
    with pytest.raises(DataFileError) as caught:
        tasks.task(str(path))
    assert "\n" not in str(caught.value)


# -- MedMNIST at other sizes -------------------------------------------------------------------------------------------


def test_medmnist_at_other_sizes_are_tasks_by_name(tmp_path):
    small, large = tasks.task("breastmnist"), tasks.task("breastmnist_64")
    assert (large.name, large.size, large.input_shape) == ("breastmnist_64", (64, 64), (1, 64, 64))
    assert large.md5 != small.md5 and "breastmnist_64.npz" in large.url
    assert dataclasses.replace(large, name=small.name, size=small.size, md5=small.md5, url=small.url) == small
    (tmp_path / "breastmnist_64.npz").touch()
    assert tasks.find(large, tmp_path) == tmp_path / "breastmnist_64.npz"
    for unknown in ("breastmnist_63", "digits_64", "breastmnist_64_64", "organmnist3d_64"):
        with pytest.raises(tasks.DataError, match="unknown task"):
            tasks.task(unknown)


def test_a_large_file_is_read_by_its_own_md5(tmp_path, monkeypatch):
    path = Path(write(tmp_path, "breastmnist_64.npz", size=(64, 64), label=lambda n: np.arange(n)[:, None] % 2))
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "MD5_64", hashlib.md5(path.read_bytes()).hexdigest())
    assert tasks.load(tasks.task("breastmnist_64"), tmp_path).train.images.shape == (30, 1, 64, 64)


# -- our own models on it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, size, channels",
    [("fcnn", (4, 4), 1), ("fcnn@fast", (21, 13), 3), ("polycnn", (4, 4), 1), ("polycnn", (21, 13), 3),
     ("polycnn-s", (64, 64), 1)],
)  # fmt: skip
def test_our_models_train_on_any_size(model, size, channels, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "TEACHERS", 1)
    monkeypatch.setattr(train, "RESTARTS", 1)
    data = tasks.load(tasks.task(write(tmp_path, size=size, channels=channels)))
    lowerings = ("integer",) if "@" in model else ("float", "polynomial", "integer")
    trained = train.train(model, data.task, data, lowerings, budget=0.002)
    for network in trained.values():
        assert network.input_shape == (channels, *size)
        assert np.isfinite(network.forward(data.test.images / 255)).all()


def test_a_teacher_of_large_images_looks_at_small_ones(tmp_path, monkeypatch):
    import torch

    from models.teacher import Teacher

    teacher, seen = Teacher(1, 2).eval(), []
    teacher.features[0].register_forward_hook(lambda module, given, made: seen.append(tuple(given[0].shape[2:])))
    for side in (28, 64, 224, 9):
        teacher(torch.zeros(1, 1, side, side))
    assert seen == [(28, 28), (32, 32), (28, 28), (9, 9)]


def test_pools_of_large_images_stay_within_memory(tmp_path, monkeypatch):
    data = tasks.load(tasks.task(write(tmp_path)))
    recipe = train.Recipe(data.task, 0, 0.01)
    assert len(recipe.views(data.train, train.POOL_IMAGES)) == 600
    monkeypatch.setattr(train, "POOL_BYTES", 100 * 12 * 9)
    assert len(train.Recipe(data.task, 0, 1.0).views(data.train, train.POOL_IMAGES)) == 90


def test_many_large_images_are_computed_in_parts(tmp_path, monkeypatch):
    from models import network as description
    from models.network import Flatten, chain

    weight = np.random.default_rng(0).normal(size=(2, 108))
    network = chain("x", "y", "float", (1, 12, 9), (Flatten(), Gemm(weight, np.zeros(2))))
    images = np.random.default_rng(1).uniform(size=(7, 1, 12, 9))
    whole = network.forward(images)
    monkeypatch.setattr(description, "FORWARD_VALUES", 3 * 108)
    assert np.allclose(network.forward(images), whole)


def test_a_file_may_say_what_labels_mean_and_what_it_is(tmp_path):
    task = tasks.task(write(tmp_path, label_names=np.array(["a", "b", "c"]), about=np.array("of nobody")))
    assert task.labels == {0: "a", 1: "b", 2: "c"} and task.about == "of nobody"


@pytest.mark.parametrize(
    "replaced, said",
    [
        ({"label_names": np.array(["a", "b"])}, "label_names are 2 names for 3 classes or labels; save a different one"),
        ({"label_names": np.array(["a", "b", "b"])}, "label_names are 3 names for 3 classes or labels; save a different"),
        ({"label_names": np.arange(3)}, "label_names holds more than plain text; save it as a list of strings"),
        ({"about": np.array("two\nlines")}, "about holds more than plain text"),
    ],
)
def test_names_that_do_not_fit(replaced, said, tmp_path):
    with pytest.raises(DataFileError, match=said):
        tasks.task(write(tmp_path, **replaced))
