"""Synthetic data has the description of the task, and says what it is wherever it goes."""

import numpy as np
import pytest

from models import synthetic, tasks


@pytest.mark.parametrize("like", ["chestmnist", "pathmnist", "breastmnist_64"])
def test_it_is_a_file_of_that_description(like, tmp_path):
    task, path = tasks.task(like), tmp_path / "like.npz"
    path.write_bytes(synthetic.npz(task, 300, seed=1))
    made = tasks.task(str(path))
    assert (made.kind, made.input_shape, made.labels) == (task.kind, task.input_shape, task.labels)
    assert made.about.startswith(f"synthetic data of the description of {like}, drawn with seed 1")
    data = tasks.load(made)
    assert len(data.train) == 210 and len(data.val) == 30 and len(data.test) == 60
    if task.multi_label:
        assert data.train.labels.shape == (210, 14) and 0 < data.train.labels.mean(0).min() < 0.2
    path.write_bytes(synthetic.npz(task, 300, seed=1))
    assert tasks.task(str(path)).md5 == made.md5


def test_labels_can_be_seen(tmp_path):
    """Each label leaves a mark of its own: images with it differ from those without it where no other label's do."""
    path = tmp_path / "chest.npz"
    path.write_bytes(synthetic.npz(tasks.task("chestmnist"), 3000))
    data = tasks.load(tasks.task(str(path)))
    images, labels = data.train.images[:, 0].astype(float), data.train.labels.astype(bool)
    places = {int((images[has].mean(0) - images[~has].mean(0)).argmax()) for has in labels.T}
    assert len(places) == 14
    assert np.unique(data.test.images).size > 100
