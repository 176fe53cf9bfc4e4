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

from backends import frames
from backends.api import BackendError, MessageError, refusing
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
    _key: bytes

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

    def _pack(self, kind: bytes, ciphertext: Ciphertext) -> bytes:
        parts = [ciphertext.value.serialize()]
        return frames.pack(kind, parts, purpose=self._circuit, keys=self._key, images=ciphertext.images)

    def _unpack(self, kind: bytes, message: bytes) -> Ciphertext:
        frame = frames.unpack(kind, message, purpose=self._circuit, keys=self._key, batch=self._batch)
        (value,) = frames.exactly(1, frame.parts, "ciphertext")
        with refusing("Concrete", "read this ciphertext", value):
            return Ciphertext(fhe.Value.deserialize(bytes(value)), frame.images)


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
        self._key = secrets.token_bytes(frames.IDENTITY_BYTES)
        evaluation = self._client.evaluation_keys.serialize()
        return {"evaluation": frames.pack(frames.KEYS, [evaluation], purpose=self._circuit, keys=self._key)}

    def encrypt(self, images: np.ndarray) -> Ciphertext:
        """A value that holds the whole request; places of a batch without an image are filled with the last one."""
        if not 1 <= len(images) <= self._batch or images.shape[1:] != self._input_shape:
            raise BackendError(
                f"images of shape {images.shape}: expected 1 to {self._batch} of shape {self._input_shape} a request"
            )
        filled = np.concatenate([images, *[images[-1:]] * (self._batch - len(images))])
        return Ciphertext(self._client.encrypt(self._quantise(filled)), len(images))

    def serialise(self, ciphertext: Ciphertext) -> bytes:
        return self._pack(frames.REQUEST, ciphertext)

    def deserialise(self, response: bytes) -> Ciphertext:
        return self._unpack(frames.RESPONSE, response)

    def decrypt(self, ciphertext: Ciphertext) -> np.ndarray:
        with refusing("Concrete", "decrypt this response"):
            integers = np.asarray(self._client.decrypt(ciphertext.value))
        return self._logits(integers)[: ciphertext.images]

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
        frame = frames.unpack(frames.KEYS, keys.get("evaluation", b""), purpose=self._circuit)
        (evaluation,) = frames.exactly(1, frame.parts, "set of evaluation keys")
        with refusing("Concrete", "read these keys", evaluation):
            self._keys = fhe.EvaluationKeys.deserialize(bytes(evaluation))
        self._key = frame.keys

    def deserialise(self, request: bytes) -> Ciphertext:
        return self._unpack(frames.REQUEST, request)

    def infer(self, ciphertext: Ciphertext) -> Ciphertext:
        with refusing("Concrete", "evaluate this request"):
            return replace(ciphertext, value=self._server.run(ciphertext.value, evaluation_keys=self._keys))

    def serialise(self, ciphertext: Ciphertext) -> bytes:
        return self._pack(frames.RESPONSE, ciphertext)
