"""Data that a user brings: one ``.npz`` in MedMNIST's format, ``{train,val,test}_{images,labels}``.

Images are uint8, (n, height, width) or (n, height, width, 3), of any size. Labels are (n,) or (n, 1) class indices, or
(n, labels) of 0 and 1; what kind they are is derived from them or given. Two more arrays may be there: ``label_names``, what
the classes or labels mean, in order; ``about``, a sentence that belongs to all figures of the data.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from models.tasks import KINDS, MULTI_LABEL, SPLITS, DataFileError, Dataset, Split, Task

LABEL_NAMES, ABOUT = "label_names", "about"
NAMES = tuple(f"{split}_{what}" for split in SPLITS for what in ("images", "labels"))
SMALLEST = 4  # pixels a side: what the teacher of our own models can pool


def read(path: Path | str, kind: str = "") -> Dataset:
    """The data and the task that it makes; kind: one of `KINDS`, or "" to derive it.

    The task is named by the file's stem and MD5, so that what is trained for one file is never used for another. Raises
    DataFileError, in one sentence, for a file that is missing, damaged, or holds what does not fit.
    """
    path = Path(path)
    if kind and kind not in (*KINDS, *KINDS.values()):
        raise DataFileError(f"unknown kind of labels {kind!r}: choose from {', '.join(KINDS)}")
    try:
        if not path.is_file():
            raise DataFileError(f"there is no data file {path}: name an .npz file in MedMNIST's format")
        about = path.stat()
        images, labels, told, md5 = _read(path, (about.st_mtime_ns, about.st_size))
    except OSError as error:
        raise DataFileError(f"cannot read {path}: {error.strerror or error}; name an .npz file that can be read") from error
    given, (kind, outputs) = kind, _kind(path, KINDS.get(kind, kind), labels)
    _, channels, height, width = images["train"].shape
    task = Task(
        name=f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', path.stem)[:60]}-{md5[:8]}",
        title=path.name,
        kind=kind,
        channels=channels,
        labels=_label_names(path, outputs, told[LABEL_NAMES]),
        about=" ".join(told[ABOUT]),
        samples={split: len(part) for split, part in images.items()},
        md5=md5,
        size=(height, width),
        file=f"{path}:{given}" if given else str(path),
    )
    train, val, test = (Split(images[split], labels[split]) for split in SPLITS)
    return Dataset(task, train, val, test, md5)


@functools.lru_cache(maxsize=1)  # asked for the task, then for the data
def _read(
    path: Path, version: tuple[int, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, list[str]], str]:
    """Images and labels of each split, the texts that may be there, and the MD5 of the file."""
    arrays = _arrays(path)
    images = {split: _images(path, split, arrays[f"{split}_images"]) for split in SPLITS}
    shapes = {split: part.shape[1:] for split, part in images.items()}
    if len(set(shapes.values())) > 1:
        raise DataFileError(f"{path}: images differ in shape ({shapes}); bring all to one shape")
    labels = {split: _labels(path, split, arrays[f"{split}_labels"], len(images[split])) for split in SPLITS}
    told = {name: _texts(path, name, arrays.get(name, np.array([], "U1"))) for name in (LABEL_NAMES, ABOUT)}
    return images, labels, told, hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array")
        with found:
            if missing := [name for name in NAMES if name not in found.files]:
                raise DataFileError(f"{path} lacks {', '.join(missing)}: save all of {', '.join(NAMES)} (numpy.savez)")
            return {name: found[name] for name in (*NAMES, LABEL_NAMES, ABOUT) if name in found.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, MemoryError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DataFileError(f"{path} is no .npz file of plain arrays ({reason}); save it again with numpy.savez") from error


def _texts(path: Path, name: str, array: np.ndarray) -> list[str]:
    if array.ndim > 1 or array.dtype.kind != "U" or any(not text.isprintable() for text in array.ravel().tolist()):
        raise DataFileError(f"{path}: {name} holds more than plain text; save it as a list of strings")
    return [text.strip() for text in array.ravel().tolist()]


def _label_names(path: Path, outputs: int, names: list[str]) -> dict[int, str]:
    if names and (len(names) != outputs or len({*names, ""}) <= outputs):
        raise DataFileError(
            f"{path}: label_names are {len(names)} names for {outputs} classes or labels; save a different one for each"
        )
    return dict(enumerate(names or map(str, range(outputs))))


def _images(path: Path, split: str, images: np.ndarray) -> np.ndarray:
    """(n, channels, height, width)"""
    where = f"{path}: {split}_images"
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataFileError(f"{where} have the shape {images.shape}; save (n, height, width) or (n, height, width, 3)")
    if images.dtype != np.uint8:
        raise DataFileError(f"{where} are of type {images.dtype}; scale them to 0 … 255 and save them as uint8")
    if not len(images):
        raise DataFileError(f"{where} are empty; each of {', '.join(SPLITS)} needs images")
    if min(images.shape[1:3]) < SMALLEST:
        raise DataFileError(f"{where} are {images.shape[1]}×{images.shape[2]}; they need {SMALLEST} pixels a side")
    return np.ascontiguousarray(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))


def _labels(path: Path, split: str, labels: np.ndarray, images: int) -> np.ndarray:
    """(n, columns) of whole numbers from 0 on"""
    where = f"{path}: {split}_labels"
    labels = labels[:, None] if labels.ndim == 1 else labels
    if labels.ndim != 2 or not labels.shape[1]:
        raise DataFileError(f"{where} have the shape {labels.shape}; save them as (n, 1), or (n, labels) of 0 and 1")
    if len(labels) != images:
        raise DataFileError(f"{where} have {len(labels)} rows for {images} images; save one row for each image")
    if labels.dtype.kind not in "biuf":
        raise DataFileError(f"{where} are of type {labels.dtype}; save the numbers of the classes")
    if not (labels >= 0).all() or (labels != np.floor(labels)).any() or labels.max() > np.iinfo(np.int32).max:
        raise DataFileError(f"{where} hold negative or broken numbers; number the classes 0, 1, 2, …")
    return labels.astype(np.int64)


def _kind(path: Path, kind: str, labels: dict[str, np.ndarray]) -> tuple[str, int]:
    """Of the labels, and how many classes (or labels) there are."""
    columns = {part.shape[1] for part in labels.values()}
    if len(columns) > 1:
        raise DataFileError(f"{path}: labels have {sorted(columns)} columns in different splits; save as many in each")
    (width,) = columns
    if (width > 1) != (kind == MULTI_LABEL) and kind:
        wanted = "one column of class numbers" if width > 1 else "a column of 0 and 1 for each label"
        raise DataFileError(f"{path}: labels of {width} column(s) are not {kind}; save {wanted}, or leave out --kind")
    if width > 1:
        if max(part.max() for part in labels.values()) > 1:
            raise DataFileError(f"{path}: labels of {width} columns hold more than 0 and 1; save one of class numbers")
        return MULTI_LABEL, width
    known = np.unique(labels["train"])
    classes = len(known)
    if classes < 2:
        raise DataFileError(f"{path}: train_labels hold one class alone ({known[0]}); two are needed at least")
    if known[-1] != classes - 1:
        shown = ", ".join(map(str, known[:8])) + ", …" * (classes > 8)
        raise DataFileError(f"{path}: train_labels hold the classes {shown}; number them 0 … {classes - 1} without gaps")
    for split, part in labels.items():
        if part.max() >= classes:
            raise DataFileError(f"{path}: {split}_labels hold the class {part.max()}, of which train has no image; add some")
    if kind == "binary-class" and classes != 2:
        raise DataFileError(f"{path}: {classes} classes are not binary-class; leave out --kind, or merge them into two")
    return kind or ("binary-class" if classes == 2 else "multi-class"), classes

