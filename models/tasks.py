"""The tasks: all 2-D MedMNIST tasks, as `medmnist.INFO` describes them, the embedded `digits`, and a user's own files.

MedMNIST's images are 28×28; the same at other sizes (MedMNIST+) are tasks of their own, named ``breastmnist_64``. A file
``path/mine.npz`` is a task by its path (`models.own_data`). Nothing here knows a MedMNIST task by name. Listing tasks
imports neither torch nor NumPy, because `bench list` must answer at once; only what works on arrays imports NumPy, where it
does so.

MedMNIST: Yang et al., "MedMNIST v2", Scientific Data 10, 41 (2023).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

DATA_DIR_VARIABLE = "MEDMNIST_DATA_DIR"
APPLICATION = "fhe-medmnist-bench"
SPLITS = ("train", "val", "test")
SIZE = 28  # pixels a side, where no other size is named
SIZES = (64, 128, 224)  # of MedMNIST+
OWN = ".npz"  # how the name of a user's file ends, but for a colon and the kind of its labels
MULTI_LABEL = "multi-label, binary-class"  # MedMNIST's own string; in every other kind an image has one class
# How a user names the kinds → MedMNIST's strings.
KINDS = {kind: kind for kind in ("multi-class", "binary-class", "ordinal-regression")} | {"multi-label": MULTI_LABEL}
SILENCE_S = 10.0  # a download is given up when the network says nothing for so long


class DataError(Exception):
    """A task that is unknown, or data that is missing or damaged; the message says what to do."""


class DataFileError(DataError):
    """A file that a user gave is no data that can be used; the message says why and what to do."""


@dataclass(frozen=True)
class Task:
    """A classification task.

    kind: MedMNIST's own string, ``multi-class``, ``binary-class``, ``multi-label, binary-class`` or
        ``ordinal-regression``; it decides the loss and the metrics.
    labels: class (or, multi-label, label) index → meaning.
    samples: split → number of images.
    md5: of the data file, "" for the embedded task.
    python_class: the class of the `medmnist` package that downloads it; "" for other tasks.
    size: height and width of the images. file: the name of a user's own task (`task`); "" for others.
    about: what a reader of its figures has to know of the data, as that it is synthetic; of a user's file, see `own_data`.
    """

    name: str
    title: str
    kind: str
    channels: int
    labels: dict[int, str]
    samples: dict[str, int]
    md5: str
    url: str = ""
    license: str = ""
    python_class: str = ""
    size: tuple[int, int] = (SIZE, SIZE)
    file: str = ""
    about: str = ""

    @property
    def outputs(self) -> int:
        """Logits of a network for this task: one a class or label (so two for a binary task)."""
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    @property
    def multi_label(self) -> bool:
        return self.kind == MULTI_LABEL

    @property
    def embedded(self) -> bool:
        """The data comes inside a dependency, so it is there on every machine."""
        return not self.python_class and not self.file


@dataclass(frozen=True, eq=False)
class Split:
    """images: (n, channels, height, width) uint8. labels: (n, 1) class indices or, multi-label, (n, labels) of 0 and 1."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The three splits of a task."""

    task: Task
    train: Split
    val: Split
    test: Split
    md5: str  # of the file that it was read from


# scikit-learn's copy of the test set of the UCI "Optical Recognition of Handwritten Digits" data.
DIGITS = Task(
    name="digits",
    title="Handwritten digits (scikit-learn)",
    kind="multi-class",
    channels=1,
    labels={digit: str(digit) for digit in range(10)},
    samples={"train": 1257, "val": 180, "test": 360},
    md5="",
    url="https://archive.ics.uci.edu/dataset/80",
    license="CC BY 4.0",
)


# -- what there is -----------------------------------------------------------------------------------------------------


def tasks() -> dict[str, Task]:
    """All tasks by name: MedMNIST's in its own order, then `digits`."""
    described = {
        name: Task(
            name=name,
            title=info["python_class"],
            kind=info["task"],
            channels=info["n_channels"],
            labels={int(index): meaning for index, meaning in info["label"].items()},
            samples=dict(info["n_samples"]),
            md5=info["MD5"],
            url=info["url"],
            license=info["license"],
            python_class=info["python_class"],
        )
        for name, info in _medmnist_info().INFO.items()
        if not info["python_class"].endswith("3D")
    }
    return described | {DIGITS.name: DIGITS}


def task(name: str) -> Task:
    """The task of a name, or of a user's file: ``mine.npz`` or, where the kind of its labels is given, ``mine.npz:KIND``.

    Raises DataError, which lists the known tasks; DataFileError for a file.
    """
    if is_own(name):
        return _own(name).task
    known = tasks()
    if name in known:
        return known[name]
    base, _, side = name.rpartition("_")
    if side in map(str, SIZES) and base in known and known[base].python_class:
        return _resized(known[base], int(side))
    raise DataError(
        f"unknown task {name!r}: choose from {', '.join(known)}, MedMNIST's also at {', '.join(map(str, SIZES))} pixels "
        f"(--size), or name a file of your own (--data)"
    )


def is_own(name: str) -> bool:
    """Whether a task is named by a user's file."""
    return name.endswith(OWN) or f"{OWN}:" in name


def sized(name: str, size: int | None) -> str:
    """The name of a task of MedMNIST at another size."""
    return name if size in (None, SIZE) else f"{name}_{size}"


def _resized(task: Task, side: int) -> Task:
    info = _medmnist_info().INFO[task.name]
    about = {"md5": info[f"MD5_{side}"], "url": info[f"url_{side}"], "size": (side, side)}
    return dataclasses.replace(task, name=sized(task.name, side), **about)


def _own(name: str) -> Dataset:
    from models import own_data  # NumPy

    return own_data.read(*_parts(name))


def _parts(name: str) -> tuple[str, str]:
    """Of the name of a user's file: its path and the kind of its labels, if that is given."""
    path, _, kind = (name, "", "") if name.endswith(OWN) else name.rpartition(":")
    return path, kind


def _medmnist_info() -> ModuleType:
    """The module `medmnist.info` alone: `import medmnist` would import torch, which takes seconds."""
    if loaded := sys.modules.get("medmnist.info"):
        return loaded
    package = importlib.util.find_spec("medmnist")
    if package is None or not package.submodule_search_locations:
        raise DataError("the package medmnist is not installed: pip install medmnist")
    path = Path(package.submodule_search_locations[0]) / "info.py"
    spec = importlib.util.spec_from_file_location("_medmnist_info", path)
    assert spec is not None and spec.loader is not None  # it is a .py file
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where it cannot make ~/.medmnist, a folder that we do not use
        spec.loader.exec_module(module)
    return module


# -- where the data is -------------------------------------------------------------------------------------------------


def user_cache() -> Path:
    """Where downloads and trained networks are kept between runs."""
    import platformdirs

    return Path(platformdirs.user_cache_dir(APPLICATION))


def find(task: Task, data_dir: Path | str | None = None) -> Path | None:
    """The task's data file, if it is on this machine: in `data_dir`, then $MEDMNIST_DATA_DIR, then the user cache.

    Reads nothing and downloads nothing; for an embedded task, the file inside the package that holds it.
    """
    if task.embedded:
        return _digits_file()
    if task.file:
        return Path(_parts(task.file)[0])
    return next((path for folder in _folders(data_dir) if (path := folder / f"{task.name}.npz").is_file()), None)


def _folders(data_dir: Path | str | None) -> Iterator[Path]:
    if data_dir:
        yield Path(data_dir).expanduser()
    if variable := os.environ.get(DATA_DIR_VARIABLE):
        yield Path(variable).expanduser()
    yield user_cache()


def _digits_file() -> Path | None:
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    return path if path.is_file() else None


# -- the data ----------------------------------------------------------------------------------------------------------


def load(task: Task, data_dir: Path | str | None = None, download: bool = True) -> Dataset:
    """The three splits of a task. A file that is nowhere on this machine is downloaded into the user cache.

    Raises DataError for a file that is missing and cannot be downloaded, is damaged (MD5), or does not match the
    task's description.
    """
    if task.embedded:
        return _load_digits(task)
    if task.file:
        return _own(task.file)
    path = find(task, data_dir)
    if path is None:
        if not download:
            raise DataError(_missing(task, "there is no such file"))
        path = _download(task)
    if (found := _md5(path)) != task.md5:
        raise DataError(
            f"{path} is damaged or of another release: its MD5 is {found}, MedMNIST states {task.md5}; "
            f"delete it and download it again from {task.url}"
        )
    return _read(task, path)


def normalise(images: np.ndarray) -> np.ndarray:
    """uint8 → float32 in [0, 1]: the only preprocessing, done by the client before it encrypts."""
    import numpy as np

    return images.astype(np.float32) / np.float32(255)


def scores(kind: str, logits: np.ndarray) -> np.ndarray:
    """Logits (n, outputs) → probabilities: a sigmoid each for a multi-label task or a single output, else softmax."""
    from scipy.special import expit, softmax

    return expit(logits) if kind == MULTI_LABEL or logits.shape[1] == 1 else softmax(logits, axis=1)


def _read(task: Task, path: Path) -> Dataset:
    import numpy as np

    def split(name: str) -> Split:
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)  # MedMNIST: channels last
        columns = task.outputs if task.multi_label else 1
        if images.shape[1:] != task.input_shape or images.dtype != np.uint8 or labels.shape != (len(images), columns):
            raise ValueError(f"{name}: images {images.dtype} {images.shape}, labels {labels.shape}")
        return Split(np.ascontiguousarray(images), labels.astype(np.int64))

    try:
        with np.load(path, allow_pickle=False) as arrays:
            train, val, test = map(split, SPLITS)
            return Dataset(task, train, val, test, task.md5)
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"{path} is not the file of {task.name}: {error}; download it from {task.url}") from error


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _missing(task: Task, why: str) -> str:
    return (
        f"no data for {task.name}: {why}. On a machine with internet, download {task.url} as {task.name}.npz, "
        f"put it into a folder of your choice and name the folder with --data-dir or ${DATA_DIR_VARIABLE}; "
        f"or use the task {DIGITS.name}, which needs no download"
    )


def _download(task: Task) -> Path:
    """Lets `medmnist` download into a temporary folder of the user cache, and moves the complete file into place."""
    # A machine without network must say so at once, before torch is imported for nothing.
    address = task.url.split("/")[2]
    with contextlib.ExitStack() as stack:
        try:
            _probe(address)
            cache = user_cache()
            cache.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=cache, prefix=".download-"))
        except OSError as error:
            raise DataError(_missing(task, f"no answer from {address}, or no cache folder ({error})")) from error
        import medmnist

        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # it prints; stdout may be someone's JSON
        stack.enter_context(_socket_timeout(SILENCE_S))
        try:
            getattr(medmnist, task.python_class)(split="test", root=folder, download=True, size=task.size[0])
        except Exception as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # medmnist has a bare `except:`
                raise KeyboardInterrupt from error
            raise DataError(_missing(task, f"the download from {address} failed")) from error
        path = cache / f"{task.name}.npz"
        os.replace(Path(folder) / path.name, path)
        return path


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """For urllib inside torchvision, which sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _probe(address: str) -> None:
    """Raises OSError where no answer can be had from `address`. Uses the proxy of the environment, as urllib does."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"https://{address}/", method="HEAD")
    with contextlib.suppress(urllib.error.HTTPError):  # any answer of a server is an answer
        urllib.request.urlopen(request, timeout=SILENCE_S).close()


def _load_digits(task: Task) -> Dataset:
    """8×8 images brought to 28×28 by bilinear interpolation (pixel centres aligned, edges repeated); fixed splits."""
    import numpy as np
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    factor = (1, SIZE / 8, SIZE / 8)
    images = zoom(images, factor, order=1, mode="nearest", grid_mode=True)
    images = np.round(images * (255 / 16)).astype(np.uint8)[:, None]  # the digits' grey levels are 0 … 16

    def divide(indices: np.ndarray, size: int) -> Any:
        return train_test_split(indices, test_size=size, random_state=0, stratify=labels[indices])

    rest, test = divide(np.arange(len(labels)), task.samples["test"])
    train, val = divide(rest, task.samples["val"])
    one, two, three = (Split(images[part], labels[part, None].astype(np.int64)) for part in (train, val, test))
    path = _digits_file()
    return Dataset(task, one, two, three, _md5(path) if path else "")
