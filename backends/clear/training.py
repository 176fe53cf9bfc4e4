"""Training without encryption: `models.regression`, what encrypted training is compared with."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from backends.api import Job, MessageError, Prepared, Training, checked_examples
from backends.wire import WireError, array_from_bytes, array_to_bytes
from models import regression


class Owner:
    """polynomial: descend with the sigmoid's polynomial that encrypted training has, not with the sigmoid itself."""

    def __init__(self, polynomial: bool) -> None:
        self._polynomial = polynomial

    def prepare(self, job: Job) -> Prepared:
        artifact = json.dumps([dataclasses.asdict(job.training), self._polynomial]).encode()
        return Prepared(client=artifact, server=artifact, batch=job.training.rows, notes={"layout": ["no encryption"]})


class _Party:
    def load(self, artifact: bytes) -> None:
        values, self._polynomial = json.loads(bytes(artifact))
        self._training = Training(**values)

    def serialise(self, values: np.ndarray) -> bytes:
        return array_to_bytes(values)

    def deserialise(self, message: bytes) -> np.ndarray:
        try:
            return array_from_bytes(message)
        except WireError as error:
            raise MessageError(f"damaged or truncated message: {error}") from error


class Client(_Party):
    def keygen(self, seed: int) -> dict[str, bytes]:
        return {}

    def encrypt(self, examples: np.ndarray) -> np.ndarray:
        checked_examples(examples, self._training)
        return examples

    def decrypt(self, weights: np.ndarray) -> np.ndarray:
        return weights


class Server(_Party):
    def load_keys(self, keys: dict[str, bytes]) -> None:
        pass

    def infer(self, examples: np.ndarray) -> np.ndarray:
        training = self._training
        slope = regression.polynomial(training.degree) if self._polynomial else regression.exact
        features, targets = checked_examples(examples, training)
        return regression.descent(features, targets, training.steps, training.rate, slope)
