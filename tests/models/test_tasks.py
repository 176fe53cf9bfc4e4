"""Tasks: described by medmnist.INFO alone, files found, checked and read; the embedded task is always there."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import medmnist
import numpy as np
import pytest

from models import tasks
from models.tasks import DataError

TWO_D = {
    name: info
    for name, info in medmnist.INFO.items()
    if issubclass(getattr(medmnist, info["python_class"]), medmnist.dataset.MedMNIST2D)
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No data folder but those that a test makes, and no network."""
    monkeypatch.delenv(tasks.DATA_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def unreachable(address):
        raise OSError("no network in tests")

    monkeypatch.setattr(tasks, "_probe", unreachable)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Writes a small file of a task, as MedMNIST would, and lets INFO state its MD5. Returns the folder."""

    def write(name, **replaced):
        task, rng, arrays = tasks.task(name), np.random.default_rng(0), {}
        for split, count in zip(tasks.SPLITS, (30, 10, 12), strict=True):
            shape = (count, 28, 28) if task.channels == 1 else (count, 28, 28, task.channels)
            arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
            labels = np.arange(count)[:, None] % task.outputs
            if task.multi_label:
                labels = rng.integers(0, 2, (count, task.outputs))
            arrays[f"{split}_labels"] = labels.astype(np.uint8)
        arrays |= replaced
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        monkeypatch.setitem(medmnist.INFO[name], "MD5", hashlib.md5(path.read_bytes()).hexdigest())
        return tmp_path, arrays

    return write


def test_all_twelve_2d_tasks_are_described_by_info():
    known = tasks.tasks()
    assert len(TWO_D) == 12
    assert set(known) == set(TWO_D) | {"digits"}
    for name, info in TWO_D.items():
        task = known[name]
        assert task.kind == info["task"]
        assert task.input_shape == (info["n_channels"], 28, 28)
        assert task.outputs == len(info["label"])
        assert task.multi_label == ("multi-label" in info["task"])
        assert task.samples == info["n_samples"]
        assert not task.embedded


def test_listing_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from models import tasks, zoo; t = tasks.tasks(); [tasks.find(x) for x in t.values()]; "
        "[zoo.is_trained('fcnn', x) for x in t.values()]; print({'torch', 'numpy', 'medmnist'} & set(sys.modules))"
    )
    root = Path(tasks.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["bloodmnist", "retinamnist", "chestmnist", "breastmnist"])
def test_reads_every_shape(make, name):
    folder, arrays = make(name)
    task = tasks.task(name)
    data = tasks.load(task, folder, download=False)
    for split in tasks.SPLITS:
        part = getattr(data, split)
        assert part.images.shape == (len(arrays[f"{split}_images"]), *task.input_shape)
        assert part.images.dtype == np.uint8
        assert np.array_equal(part.labels, arrays[f"{split}_labels"])
    first = arrays["train_images"][3]
    expected = first[None] if task.channels == 1 else np.moveaxis(first, -1, 0)
    assert np.array_equal(data.train.images[3], expected)


def test_folders_in_order(make, tmp_path, monkeypatch):
    folder, _ = make("retinamnist")
    task, name = tasks.task("retinamnist"), "retinamnist.npz"
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    cache, variable, named = tasks.user_cache(), tmp_path / "variable", tmp_path / "named"
    monkeypatch.setenv(tasks.DATA_DIR_VARIABLE, str(variable))
    assert tasks.find(task, named) is None
    for place in (cache, variable, named):  # each is searched before the one before it
        place.mkdir(parents=True)
        (place / name).write_bytes(content)
        assert tasks.find(task, named) == place / name
    assert len(tasks.load(task, named).train) == 30


@pytest.mark.parametrize("download", [True, False])
def test_missing_file_names_the_cure(tmp_path, download):
    task = tasks.task("bloodmnist")
    with pytest.raises(DataError) as caught:
        tasks.load(task, tmp_path, download=download)
    for part in (task.url, "--data-dir", tasks.DATA_DIR_VARIABLE, "digits"):
        assert part in str(caught.value)


def test_damaged_file(make):
    folder, _ = make("bloodmnist")
    path = folder / "bloodmnist.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged.*delete it"):
        tasks.load(tasks.task("bloodmnist"), folder)


@pytest.mark.parametrize(
    "replaced",
    [
        {"val_images": None},
        {"train_images": np.zeros((30, 64, 64, 3), np.uint8)},
        {"train_images": np.zeros((30, 28, 28), np.uint8)},
        {"test_labels": np.zeros((12, 14), np.uint8)},
        {"test_labels": np.zeros((11, 1), np.uint8)},
    ],
)
def test_file_that_does_not_match_the_description(make, replaced):
    folder, _ = make("bloodmnist", **replaced)
    with pytest.raises(DataError, match="is not the file of"):
        tasks.load(tasks.task("bloodmnist"), folder)


def test_download_goes_to_the_cache_through_medmnist(make, monkeypatch, capsys):
    folder, _ = make("retinamnist")
    source = (folder / "retinamnist.npz").rename(folder / "elsewhere.npz")

    class Fake:
        def __init__(self, split, root, download, size):
            print("Downloading")
            assert download
            os.link(source, Path(root) / "retinamnist.npz")

    monkeypatch.setattr(tasks, "_probe", lambda address: None)
    monkeypatch.setattr(medmnist, "RetinaMNIST", Fake)
    data = tasks.load(tasks.task("retinamnist"), folder)
    assert len(data.val) == 10
    assert tasks.find(tasks.task("retinamnist")) == tasks.user_cache() / "retinamnist.npz"
    assert capsys.readouterr().out == ""
    assert [p.name for p in tasks.user_cache().iterdir()] == ["retinamnist.npz"]  # nothing temporary is left


@pytest.mark.parametrize("cause, expected", [(OSError(), DataError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_download_that_breaks_off(monkeypatch, cause, expected):
    class Fake:
        def __init__(self, **arguments):
            try:
                raise cause
            except BaseException:
                raise RuntimeError("Automatic download failed!")  # noqa: B904  (as medmnist does)

    monkeypatch.setattr(tasks, "_probe", lambda address: None)
    monkeypatch.setattr(medmnist, "RetinaMNIST", Fake)
    with pytest.raises(expected):
        tasks.load(tasks.task("retinamnist"))
    assert list(tasks.user_cache().iterdir()) == []


def test_unknown_task_lists_the_known():
    with pytest.raises(DataError, match="unknown task 'brestmnist'.*breastmnist.*digits"):
        tasks.task("brestmnist")


def test_digits_need_nothing_and_are_always_the_same():
    task = tasks.task("digits")
    assert task.embedded
    assert tasks.find(task).is_file()
    data, again = tasks.load(task, download=False), tasks.load(task, download=False)
    seen = set()
    for split in tasks.SPLITS:
        part = getattr(data, split)
        assert part.images.shape == (task.samples[split], 1, 28, 28)
        assert part.images.dtype == np.uint8
        assert part.labels.shape == (task.samples[split], 1)
        assert np.array_equal(part.images, getattr(again, split).images)
        share = np.bincount(part.labels[:, 0]) / len(part)
        assert np.all(np.abs(share - 0.1) < 0.02)  # stratified
        seen |= {image.tobytes() for image in part.images}
    assert data.train.images.max() == 255
    assert len(seen) == sum(task.samples.values())  # no image in two splits


def test_normalise():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    assert tasks.normalise(images).dtype == np.float32
    assert tasks.normalise(images).ravel() == pytest.approx([0, 0.2, 1])


def test_scores_are_probabilities_of_the_kind():
    logits = np.array([[2.0, 0.0, -2.0]])
    assert tasks.scores("ordinal-regression", logits).sum() == pytest.approx(1)
    assert tasks.scores(tasks.MULTI_LABEL, logits)[0] == pytest.approx([0.880797, 0.5, 0.119203], abs=1e-6)
