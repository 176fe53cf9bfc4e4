"""Features of images for logistic regression, computed by the client in the clear and whitened by it.

``pixels``: of the images themselves. ``files``: the user's own, one row an image, made by any network:
``features_{train,val,test}.npy`` (n, anything) of numbers and ``labels_{train,val,test}.npy`` (n,) or (n, 1) of class
indices or, multi-label, (n, labels) of 0 and 1. Either way principal components of the training features, scaled to unit
variance, and a constant 1 for the bias.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.tasks import SPLITS, DataError, Dataset, Task

if TYPE_CHECKING:
    import numpy as np

KINDS = {
    "pixels": "principal components of the pixels",
    "files": "principal components of features of your own (--features FOLDER)",
}
COMPONENTS = 63  # and the constant


@dataclass(frozen=True, eq=False)
class Features:
    """inputs: split → (n, components + 1). labels: split → (n, 1) or, multi-label, (n, labels). digest: of all of them.

    seconds: that the client took to compute them, of one image.
    """

    inputs: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    digest: str
    provenance: str
    seconds: float

    def targets(self, split: str, task: Task) -> np.ndarray:
        """(n, outputs) of ±1: of each class against the others, of the second alone if there are two; of each label."""
        import numpy as np

        one_each = task.outputs > 2 and not task.multi_label
        return np.where(self.labels[split] == (np.arange(task.outputs) if one_each else 1), 1.0, -1.0)


def of_pixels(dataset: Dataset) -> Features:
    parts = {name: getattr(dataset, name) for name in SPLITS}
    raw = {name: part.images.reshape(len(part), -1) / 255.0 for name, part in parts.items()}
    return _whitened(raw, {name: part.labels for name, part in parts.items()}, KINDS["pixels"])


def from_folder(folder: Path | str, task: Task) -> Features:
    """Raises DataError, in a sentence, for files that are missing, damaged, or no features and labels of the task."""
    folder = Path(folder).expanduser()
    raw, labels = {}, {}
    for split in SPLITS:
        raw[split] = _array(folder / f"features_{split}.npy", "iuf", (2,))
        labels[split] = _labels(folder / f"labels_{split}.npy", len(raw[split]), task)
    widths = {part.shape[1] for part in raw.values()}
    if len(widths) > 1:
        raise DataError(f"the splits of {folder} have {', '.join(map(str, sorted(widths)))} features: make them alike")
    return _whitened(raw, labels, KINDS["files"])


def _array(path: Path, kinds: str, dimensions: tuple[int, ...]) -> np.ndarray:
    import numpy as np

    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: a folder of features holds features_*.npy and labels_*.npy") from None
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{path} is no array of numbers: {error}; write it with numpy.save") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds or values.ndim not in dimensions:
        raise DataError(f"{path} holds no array of numbers with {dimensions[-1]} dimensions; write it with numpy.save")
    if not len(values):
        raise DataError(f"{path} has no rows")
    if not np.isfinite(values).all():
        rows = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        raise DataError(f"{path} holds NaN or infinite numbers, first in row {rows[0]}: leave such images out")
    return values


def _labels(path: Path, rows: int, task: Task) -> np.ndarray:
    import numpy as np

    values = _array(path, "iub", (1, 2))
    if len(values) != rows:
        raise DataError(f"{path} has {len(values)} rows and its features {rows}: give one label row for each image")
    labels = values.reshape(rows, -1).astype(np.int64)
    columns, most = (task.outputs, 1) if task.multi_label else (1, task.outputs - 1)
    if labels.shape[1] != columns:
        raise DataError(f"{path} has {labels.shape[1]} columns, labels of {task.name} have {columns}")
    if labels.min() < 0 or labels.max() > most:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{path} holds the label {wrong}; those of {task.name} are 0 to {most}")
    if path.stem == "labels_train" and (labels == labels[0]).all():
        raise DataError(f"{path} holds one class only ({labels[0, 0]}): there is nothing to train")
    return labels


def _whitened(raw: dict[str, np.ndarray], labels: dict[str, np.ndarray], provenance: str) -> Features:
    import numpy as np

    mean = raw["train"].mean(axis=0)
    _, spread, axes = np.linalg.svd(raw["train"] - mean, full_matrices=False)
    kept = int(min(COMPONENTS, (spread > 1e-9 * spread[0]).sum()))
    if not kept:
        raise DataError("all training images have the same features: there is nothing to train")
    axes = axes[:kept].T * (np.sqrt(len(raw["train"])) / spread[:kept])
    start, inputs = time.perf_counter(), {}
    for name, part in raw.items():
        inputs[name] = np.hstack([(part - mean) @ axes, np.ones((len(part), 1))])
    seconds = (time.perf_counter() - start) / sum(map(len, raw.values()))
    digest = hashlib.sha256()
    for name in SPLITS:
        digest.update(np.ascontiguousarray(raw[name]).tobytes() + labels[name].tobytes())
    return Features(inputs, labels, digest.hexdigest(), provenance, seconds)
