"""Client and server around Concrete's own, with every step a call of its own."""

from __future__ import annotations

import json
import secrets
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from concrete import fhe

from backends.api import BackendError, MessageError
from backends.tfhe import frame
from backends.tfhe.circuit import Ends
from backends.tfhe.library import temporaries_in
from backends.tfhe.owner import SETTINGS


@dataclass(frozen=True)
class Ciphertext:
    """value: one array for the whole request, filled up to the batch. images: how many of it are asked for."""

    value: Any
    images: int


class _Party:
    """Puts the artifact into a folder, because Concrete reads from one."""

    archive: str

    def _open(self, artifact: bytes) -> tuple[Path, dict[str, Any]]:
        """The path of the archive and its settings."""
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
        return path, settings


class Client(_Party):
    archive = "client.zip"

    def load(self, artifact: bytes) -> None:
        path, settings = self._open(artifact)
        self._input_shape = tuple(settings["input_shape"])
        self._load(path, settings)

    def _load(self, path: Path, settings: dict[str, Any]) -> None:
        self._ends = Ends.read(settings["ends"])
        with temporaries_in(self._folder.name):
            self._client = fhe.Client.load(path)

    def keygen(self, seed: int) -> dict[str, bytes]:
        """`seed` is ignored: Concrete would make the secret keys from it."""
        self._client.keygen(force=True)
        self._key = secrets.token_bytes(frame.IDENTITY_BYTES)
        evaluation = self._client.evaluation_keys.serialize()
        return {"evaluation": frame.pack(frame.KEYS, self._circuit, self._key, [evaluation])}

    def encrypt(self, images: np.ndarray) -> Ciphertext:
        """A value that holds the whole request; places of a batch without an image are filled with the last one."""
        if not 1 <= len(images) <= self._batch or images.shape[1:] != self._input_shape:
            raise BackendError(
                f"images of shape {images.shape}: expected 1 to {self._batch} of shape {self._input_shape} a request"
            )
        filled = np.concatenate([images, *[images[-1:]] * (self._batch - len(images))])
        return Ciphertext(self._client.encrypt(self._quantise(filled)), len(images))

    def serialise(self, ciphertext: Ciphertext) -> bytes:
        return _serialise(frame.REQUEST, self._circuit, self._key, ciphertext)

    def deserialise(self, response: bytes) -> Ciphertext:
        return _deserialise(frame.RESPONSE, self._circuit, self._key, response, self._batch)

    def decrypt(self, ciphertext: Ciphertext) -> np.ndarray:
        return self._logits(np.asarray(self._client.decrypt(ciphertext.value)))[: ciphertext.images]

    def _quantise(self, images: np.ndarray) -> np.ndarray:
        return self._ends.quantise(images)

    def _logits(self, integers: np.ndarray) -> np.ndarray:
        return self._ends.logits(integers)


class Server(_Party):
    archive = "server.zip"

    def load(self, artifact: bytes) -> None:
        path, _ = self._open(artifact)
        with temporaries_in(self._folder.name):
            self._server = fhe.Server.load(path)

    def load_keys(self, keys: dict[str, bytes]) -> None:
        """Reads the keys; Concrete decompresses them when `infer` first uses them."""
        self._key, (evaluation,) = frame.unpack(frame.KEYS, self._circuit, None, keys.get("evaluation", b""))
        self._keys = fhe.EvaluationKeys.deserialize(evaluation)

    def deserialise(self, request: bytes) -> Ciphertext:
        return _deserialise(frame.REQUEST, self._circuit, self._key, request, self._batch)

    def infer(self, ciphertext: Ciphertext) -> Ciphertext:
        return replace(ciphertext, value=self._server.run(ciphertext.value, evaluation_keys=self._keys))

    def serialise(self, ciphertext: Ciphertext) -> bytes:
        return _serialise(frame.RESPONSE, self._circuit, self._key, ciphertext)


def _serialise(kind: bytes, circuit: bytes, key: bytes, ciphertext: Ciphertext) -> bytes:
    return frame.pack(kind, circuit, key, [bytes([ciphertext.images]), ciphertext.value.serialize()])


def _deserialise(kind: bytes, circuit: bytes, key: bytes, data: bytes, batch: int) -> Ciphertext:
    _, parts = frame.unpack(kind, circuit, key, data)
    if len(parts) != 2 or len(parts[0]) != 1 or not 1 <= parts[0][0] <= batch:
        raise MessageError(f"a message that does not hold 1 to {batch} images")
    try:
        return Ciphertext(fhe.Value.deserialize(parts[1]), parts[0][0])
    except RuntimeError as error:
        raise MessageError(f"not a ciphertext of Concrete: {error}") from error
