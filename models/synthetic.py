"""Data of the description of a task whose files are not at hand: to try the whole path, never to claim an accuracy.

Labels are drawn at random; each of them leaves a bright spot at a place of its own, on a background of smooth noise.
"""

from __future__ import annotations

import io

import numpy as np

from models.tasks import SPLITS, Task

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
PREVALENCE = (0.05, 0.3)  # of the rarest and of the most frequent label
SPOT, NOISE = 70.0, 22.0  # grey levels


def npz(task: Task, images: int, seed: int = 0) -> bytes:
    """A file as `models.own_data` reads it, which says of itself that it is synthetic.

    images: of all splits together, at least 10 a class or label.
    """
    random, arrays = np.random.default_rng(seed), {}
    for split in SPLITS:
        count = max(1, round(images * SHARES[split]))
        if task.multi_label:
            labels = random.random((count, task.outputs)) < np.linspace(*PREVALENCE, task.outputs)
            shown = labels.astype(np.float64)
        else:
            classes = random.permutation(np.arange(count) % task.outputs)
            labels, shown = classes[:, None], np.eye(task.outputs)[classes]
        values = 110 + shown @ _spots(task.outputs, *task.size) + NOISE * _smooth(random, count, *task.size)
        values = values.clip(0, 255).astype(np.uint8).reshape(count, *task.size)
        arrays[f"{split}_images"] = values if task.channels == 1 else np.repeat(values[..., None], task.channels, -1)
        arrays[f"{split}_labels"] = labels.astype(np.int64)
    names = [task.labels[index] for index in sorted(task.labels)]
    about = f"synthetic data of the description of {task.name}, drawn with seed {seed}: no accuracy on it means anything"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, label_names=np.array(names), about=np.array([about]))
    return buffer.getvalue()


def _spots(count: int, height: int, width: int) -> np.ndarray:
    """(count, pixels): one for each label, on a spiral around the middle."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None] - 0.5
    angle, distance = 2.4 * np.arange(count), 0.4 * np.sqrt((np.arange(count) + 0.5) / count)
    cy, cx = distance * np.sin(angle), distance * np.cos(angle)
    return SPOT * np.exp(-(((y - cy[:, None, None]) ** 2 + (x - cx[:, None, None]) ** 2) / 0.006)).reshape(count, -1)


def _smooth(random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """(count, pixels) of standard deviation 1."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(random.normal(size=(count, height, width)), (0, 1.5, 1.5))
    return (noise / noise.std()).reshape(count, -1)
