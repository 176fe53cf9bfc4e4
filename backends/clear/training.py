"""Training without encryption: `models.regression`, what encrypted training is compared with."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from backends.api import Prepared, Training, TrainingJob, checked_examples
from models import regression

_MARK = b"training "  # no network begins so


def prepare(job: TrainingJob) -> Prepared:
    """The variant ``polynomial`` descends with the sigmoid's polynomial that encrypted training has, not the sigmoid."""
    values = dataclasses.asdict(job.training), job.variant == "polynomial"
    server = _MARK + json.dumps(values).encode()
    return Prepared(client=b"", server=server, batch=job.training.rows, notes={"layout": ["no encryption"]})


class Descent:
    """What a server's artifact says that is made by `prepare`."""

    @staticmethod
    def of(artifact: bytes) -> Descent | None:
        """None for the artifact of a network."""
        return Descent(bytes(artifact)) if bytes(artifact[: len(_MARK)]) == _MARK else None

    def __init__(self, artifact: bytes) -> None:
        values, polynomial = json.loads(artifact[len(_MARK) :])
        self._training = Training(**values)
        self._slope = regression.polynomial(self._training.degree) if polynomial else regression.exact

    def weights(self, examples: np.ndarray) -> np.ndarray:
        """(steps, outputs, features)."""
        features, targets = checked_examples(examples, self._training)
        return regression.descent(features, targets, self._training.steps, self._training.rate, self._slope)
