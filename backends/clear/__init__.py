"""The reference: the float network in NumPy, without encryption. Also the shortest example of a backend."""

from __future__ import annotations

import numpy as np

from backends.api import Job, MessageError, Prepared, TrainingJob
from backends.clear import training
from backends.wire import WireError, array_from_bytes, array_to_bytes
from models.network import Network


class Owner:
    def prepare(self, job: Job | TrainingJob) -> Prepared:
        if isinstance(job, TrainingJob):
            return training.prepare(job)
        batch = 256 if job.scenario == "offline" else 1
        return Prepared(client=b"", server=job.network.to_bytes(), batch=batch, notes={"layout": ["no encryption"]})


class Client:
    def load(self, artifact: bytes) -> None:
        pass

    def keygen(self, seed: int) -> dict[str, bytes]:
        return {}

    def encrypt(self, images: np.ndarray) -> np.ndarray:
        return images

    def serialise(self, ciphertexts: np.ndarray) -> bytes:
        return array_to_bytes(ciphertexts)

    def deserialise(self, response: bytes) -> np.ndarray:
        return _array(response)

    def decrypt(self, ciphertexts: np.ndarray) -> np.ndarray:
        return ciphertexts


class Server:
    def load(self, artifact: bytes) -> None:
        self._descent = training.Descent.of(artifact)
        if not self._descent:
            self._network = Network.from_bytes(artifact)

    def load_keys(self, keys: dict[str, bytes]) -> None:
        pass

    def deserialise(self, request: bytes) -> np.ndarray:
        images = _array(request)
        if not self._descent and images.shape[1:] != self._network.input_shape:
            raise MessageError(f"a request holds images {self._network.input_shape}, not {images.shape[1:]}")
        return images

    def infer(self, ciphertexts: np.ndarray) -> np.ndarray:
        return self._descent.weights(ciphertexts) if self._descent else self._network.forward(ciphertexts)

    def serialise(self, ciphertexts: np.ndarray) -> bytes:
        return array_to_bytes(ciphertexts)


def _array(message: bytes) -> np.ndarray:
    try:
        return array_from_bytes(message)
    except WireError as error:
        raise MessageError(f"damaged or truncated message: {error}") from error
