"""The workload ``train``: logistic regression on encrypted features and labels; see ``docs/training-encrypted.md``.

Number of steps and rate are chosen on the validation split, with the sigmoid's polynomial in the clear. Test images are
classified with the weights that the client decrypted; the same steps with the sigmoid itself are the float reference.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_expit

from backends.api import Training
from backends.registry import resolve
from bench import metrics, runner
from bench.record import Outputs, Trial
from bench.runner import Request
from bench.session import TrainingWork
from models import features, regression, tasks
from models.features import Features
from models.tasks import DataError, Task

MOST_STEPS = 6  # that are tried on validation if none are asked for
RATES = tuple(2.0**k for k in range(-3, 5))  # those that are tried


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingSubject:
    task: Task
    features: Features
    training: Training

    def identity(self) -> dict[str, Any]:
        return {"data": self.features.digest, "networks": dataclasses.asdict(self.training)}

    def work(self, trial: Trial) -> TrainingWork:
        return TrainingWork(*resolve(trial.backend), self.training, trial.threads, trial.model_privacy)

    def requests(self, trial: Trial, batch: int) -> list[Request]:
        """One: a training is its own warm-up."""
        return [Request(np.hstack(self._train), "sample", self.training.steps)]

    def outputs(self, trial: Trial, results: list[np.ndarray]) -> Outputs:
        indices = runner.image_order(trial, len(self.features.inputs["test"]))
        inputs, labels = self.features.inputs["test"][indices], self.features.labels["test"][indices]
        wanted, lowered = (inputs @ weights[-1].T for weights in (self._exact, self._lowered))
        trained = inputs @ results[0][-1].T if results else np.zeros((0, self.training.outputs))
        return runner.outputs(self.task, indices, labels, wanted, lowered, trained)

    def notes(self, trial: Trial, results: list[np.ndarray]) -> dict[str, Any]:
        training, found = self.training, {}
        if results:  # of the last steps only, where the client sees no others
            last = len(results[0])
            errors = np.abs(results[0] - self._lowered[-last:]).reshape(last, -1).max(axis=1)
            found["weight_error_by_step"] = [float(f"{error:.3g}") for error in errors]
            found["accuracy_by_step"] = [round(self._accuracy(weights), 4) for weights in results[0]]
        exact = [round(self._accuracy(weights), 4) for weights in self._exact]
        return found | {
            "training": dataclasses.asdict(training),
            "exact_sigmoid_accuracy_by_step": exact,
            "converged_accuracy": self._converged(),
            "feature_ms_an_image": float(f"{1000 * self.features.seconds:.3g}"),
        }

    @property
    def operators(self) -> set[str]:
        return set()

    def describe(self, trial: Trial) -> dict[str, Any]:
        shape = f"Logistic regression {self.training.features} {self.training.outputs}"
        return {"model": "logistic regression", "layers": [shape], "provenance": self.features.provenance}

    @property
    def _train(self) -> tuple[np.ndarray, np.ndarray]:
        return self.features.inputs["train"], self.features.targets("train", self.task)

    @functools.cached_property
    def _exact(self) -> np.ndarray:
        """Weights after each step in the clear, with the sigmoid itself."""
        return regression.descent(*self._train, self.training.steps, self.training.rate, regression.exact)

    @functools.cached_property
    def _lowered(self) -> np.ndarray:
        """The same with the sigmoid's polynomial."""
        slope = regression.polynomial(self.training.degree)
        return regression.descent(*self._train, self.training.steps, self.training.rate, slope)

    def _accuracy(self, weights: np.ndarray) -> float:
        """On the whole test split."""
        score = tasks.scores(self.task.kind, self.features.inputs["test"] @ weights.T)
        return metrics.accuracy(self.features.labels["test"], score, self.task.kind)

    def _converged(self) -> dict[str, float]:
        """Accuracy on the whole test split of regression without a limit of steps, with its 95 % interval."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        inputs, targets = self._train
        weights = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # data that a plane separates have no optimum
            for column in targets.T:
                if (column == column[0]).all():  # a label that no image or each image has
                    weights.append(np.append(np.zeros(inputs.shape[1] - 1), 20 * column[0]))
                    continue
                found = LogisticRegression(penalty=None, fit_intercept=False, max_iter=2000).fit(inputs, column)
                weights.append(found.coef_[0])
        accuracy, n = self._accuracy(np.array(weights)), len(self.features.inputs["test"])
        low, high = metrics.wilson_interval(accuracy, n)
        return {"accuracy": round(accuracy, 4), "low": round(low, 4), "high": round(high, 4), "images": n}


def subject(trial: Trial, data_dir: Path | None) -> TrainingSubject:
    """Raises DataError."""
    task = tasks.task(trial.task)
    found = _features(trial.task, trial.model, trial.features, data_dir)
    return TrainingSubject(task, found, chosen(found, task, trial.steps, trial.rate))


@functools.lru_cache(maxsize=1)  # the trials of a task stand together
def _features(task_name: str, model: str, folder: str, data_dir: Path | None) -> Features:
    task = tasks.task(task_name)
    if model == "files":
        return features.from_folder(folder, task)
    return features.of_pixels(tasks.load(task, data_dir))


def chosen(found: Features, task: Task, steps: int = 0, rate: float = 0.0) -> Training:
    """The training; what is 0 is chosen by the log loss on the validation split. Raises DataError for one of no use."""
    inputs, targets = found.inputs["train"], found.targets("train", task)
    validation, wanted = found.inputs["val"], found.targets("val", task)
    options = []
    for tried in (rate,) if rate else RATES:
        most = steps or MOST_STEPS
        degree = regression.degree_for(most)
        with np.errstate(all="ignore"):
            history = regression.descent(inputs, targets, most, tried, regression.polynomial(degree))
            for done in range(1, most + 1):
                if not np.abs(inputs @ history[done - 1].T).max() <= regression.RANGE:  # nor a number
                    break  # where the polynomial is no sigmoid
                loss = -log_expit(wanted * (validation @ history[done - 1].T)).mean()
                if done == steps or (not steps and done > 1):
                    options.append((loss, done, tried, degree))
    if not options:
        raise DataError(
            f"logits of {steps or 2} steps leave the range of ±{regression.RANGE:g} in which the polynomial is a sigmoid: "
            "choose a lower --rate or fewer --steps"
        )
    _, done, tried, degree = min(options)
    return Training(len(inputs), inputs.shape[1], targets.shape[1], done, tried, degree)
