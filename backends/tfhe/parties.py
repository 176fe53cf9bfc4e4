"""Client and server, each around concrete-ml's own deployment class, with every step a call of its own."""

from __future__ import annotations

import json
import secrets
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from concrete.fhe import EvaluationKeys, Value
from concrete.ml.deployment import FHEModelClient, FHEModelServer

from backends.api import BackendError, MessageError
from backends.tfhe import frame
from backends.tfhe.library import temporaries_in
from backends.tfhe.owner import SETTINGS


class _Party:
    """Puts the artifact into a folder, because concrete-ml reads from one."""

    archive: str

    def _open(self, artifact: bytes) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="tfhe-")
        path = Path(self._folder.name, self.archive)
        path.write_bytes(artifact)
        try:
            with zipfile.ZipFile(path) as file:
                settings = json.loads(file.read(SETTINGS))
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise MessageError(f"a damaged or foreign {self.archive}: {error}; prepare the model again") from error
        self._circuit = bytes.fromhex(settings["identity"])
        self._batch: int = settings["batch"]
        self._input_shape = tuple(settings["input_shape"])
        return self._folder.name


class Client(_Party):
    archive = "client.zip"

    def load(self, artifact: bytes) -> None:
        folder = self._open(artifact)
        with temporaries_in(folder):
            self._model = FHEModelClient(folder)

    def keygen(self, seed: int) -> dict[str, bytes]:
        """`seed` is ignored: Concrete would make the secret keys from it."""
        self._model.generate_private_and_evaluation_keys(force=True)
        self._key = secrets.token_bytes(frame.IDENTITY_BYTES)
        evaluation = self._model.get_serialized_evaluation_keys()
        return {"evaluation": frame.pack(frame.KEYS, self._circuit, self._key, [evaluation])}

    def encrypt(self, images: np.ndarray) -> list[Any]:
        if not 1 <= len(images) <= self._batch or images.shape[1:] != self._input_shape:
            raise BackendError(
                f"images of shape {images.shape}: expected 1 to {self._batch} of shape {self._input_shape} a request"
            )
        return [self._model.client.encrypt(self._model.model.quantize_input(image[None])) for image in images]

    def serialise(self, ciphertexts: list[Any]) -> bytes:
        return _serialise(frame.REQUEST, self._circuit, self._key, ciphertexts)

    def deserialise(self, response: bytes) -> list[Any]:
        return _deserialise(frame.RESPONSE, self._circuit, self._key, response, self._batch)

    def decrypt(self, ciphertexts: list[Any]) -> np.ndarray:
        integers = np.concatenate([self._model.client.decrypt(value) for value in ciphertexts])
        return np.asarray(self._model.model.dequantize_output(integers), np.float64)


class Server(_Party):
    archive = "server.zip"

    def load(self, artifact: bytes) -> None:
        folder = self._open(artifact)
        with temporaries_in(folder):
            self._model = FHEModelServer(folder)

    def load_keys(self, keys: dict[str, bytes]) -> None:
        """Reads the keys; Concrete decompresses them when `infer` first uses them."""
        self._key, (evaluation,) = frame.unpack(frame.KEYS, self._circuit, None, keys["evaluation"])
        self._keys = EvaluationKeys.deserialize(evaluation)

    def deserialise(self, request: bytes) -> list[Any]:
        return _deserialise(frame.REQUEST, self._circuit, self._key, request, self._batch)

    def infer(self, ciphertexts: list[Any]) -> list[Any]:
        return [self._model.run(value, self._keys) for value in ciphertexts]

    def serialise(self, ciphertexts: list[Any]) -> bytes:
        return _serialise(frame.RESPONSE, self._circuit, self._key, ciphertexts)


def _serialise(kind: bytes, circuit: bytes, key: bytes, values: list[Any]) -> bytes:
    return frame.pack(kind, circuit, key, [value.serialize() for value in values])


def _deserialise(kind: bytes, circuit: bytes, key: bytes, data: bytes, batch: int) -> list[Any]:
    _, parts = frame.unpack(kind, circuit, key, data)
    if not 1 <= len(parts) <= batch:
        raise MessageError(f"a message of {len(parts)} images: expected 1 to {batch}")
    try:
        return [Value.deserialize(part) for part in parts]
    except RuntimeError as error:
        raise MessageError(f"not a ciphertext of Concrete: {error}") from error
