"""Features of a training: whitened, and the user's own files refused in a sentence where they are of no use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models import features, regression, tasks
from models.tasks import DataError

TASK = tasks.task("breastmnist")
ROWS = {"train": 60, "val": 20, "test": 20}


def write(folder: Path, width: int = 7, seed: int = 0) -> Path:
    """Files that are in order."""
    random = np.random.default_rng(seed)
    for split, rows in ROWS.items():
        x = random.normal(size=(rows, width)).astype(np.float32) * np.arange(1, width + 1)
        np.save(folder / f"features_{split}.npy", x)
        np.save(folder / f"labels_{split}.npy", (x[:, 0] > 0).astype(np.uint8))
    return folder


def test_features_are_whitened_and_end_with_the_bias(tmp_path):
    found = features.from_folder(write(tmp_path), TASK)
    x = found.inputs["train"]
    assert x.shape == (60, 8) and (x[:, -1] == 1).all()
    assert np.allclose(x[:, :-1].T @ x[:, :-1] / 60, np.eye(7), atol=1e-8) and np.allclose(x[:, :-1].mean(0), 0)
    assert {split: len(part) for split, part in found.inputs.items()} == ROWS
    assert found.digest != features.from_folder(write(tmp_path, seed=1), TASK).digest


def test_at_most_63_components_and_those_of_pixels():
    found = features.of_pixels(tasks.load(tasks.task("digits")))
    assert found.inputs["test"].shape == (360, 64)
    targets = found.targets("train", tasks.task("digits"))
    assert targets.shape == (1257, 10) and (targets.sum(axis=1) == -8).all()


def test_two_classes_have_one_target(tmp_path):
    found = features.from_folder(write(tmp_path), TASK)
    assert np.array_equal(found.targets("val", TASK)[:, 0] == 1, found.labels["val"][:, 0] == 1)


def nan(folder):
    x = np.load(folder / "features_val.npy")
    x[3, 2] = np.nan
    np.save(folder / "features_val.npy", x)


DEFECTS = {
    "NaN or infinite numbers, first in row 3": nan,
    "has 19 rows and its features 20": lambda f: np.save(f / "labels_test.npy", np.zeros(19, int)),
    "the label 2; those of breastmnist are 0 to 1": lambda f: np.save(f / "labels_val.npy", np.full(20, 2)),
    "the label -1; those": lambda f: np.save(f / "labels_val.npy", np.full(20, -1)),
    r"one class only \(1\)": lambda f: np.save(f / "labels_train.npy", np.ones(60, int)),
    "is missing": lambda f: (f / "features_test.npy").unlink(),
    "no array of numbers": lambda f: (f / "features_train.npy").write_bytes(b"PK\x03\x04 no array"),
    "have 3, 7 features": lambda f: np.save(f / "features_test.npy", np.ones((20, 3))),
    "with 2 dimensions": lambda f: np.save(f / "features_test.npy", np.ones((20, 3, 3))),
    "has 3 columns": lambda f: np.save(f / "labels_test.npy", np.ones((20, 3), int)),
    "has no rows": lambda f: np.save(f / "features_test.npy", np.ones((0, 7))),
    "the same features": lambda f: [np.save(f / f"features_{s}.npy", np.ones((n, 7))) for s, n in ROWS.items()],
}


@pytest.mark.parametrize("reason", DEFECTS)
@pytest.mark.filterwarnings("error")
def test_files_of_no_use_are_refused(tmp_path, reason):
    DEFECTS[reason](write(tmp_path))
    with pytest.raises(DataError, match=reason):
        features.from_folder(tmp_path, TASK)


def test_accelerated_descent_approaches_the_converged_regression(tmp_path):
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    x = random.normal(size=(400, 5))
    y = np.where(x @ random.normal(size=5) + random.logistic(size=400) > 0, 1.0, -1.0)
    best = LogisticRegression(penalty=None, fit_intercept=False).fit(x, y).coef_[0]
    weights = regression.descent(x, y[:, None], 200, 4.0, regression.exact)
    assert np.abs(weights[-1][0] - best).max() < 1e-2
    # accelerated: plain descent is further away after as many steps
    plain = np.zeros(5)
    for _ in range(15):
        plain += 1.0 / 400 * (x.T @ (y / 2 - regression.exact(x @ plain)))
    fast = regression.descent(x, y[:, None], 15, 1.0, regression.exact)[-1][0]
    assert np.abs(fast - best).max() < np.abs(plain - best).max()
