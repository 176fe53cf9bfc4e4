"""Owner, client and server of training for any `Library`: `backends.slots.training` behind `backends.api`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends import frames, security
from backends.api import BackendError, Prepared, TrainingJob, checked_examples, refusing
from backends.slots import costs, training
from backends.slots.library import Cipher, Library
from backends.slots.training import Circuit, Descent, Program

_FIRST = 1  # what a request or response counts as in its frame: one training


class Trainer:
    """folder: holds the library's ``costs.json``. kind: ``refresh``, ``bootstrap`` or ""; hoisting: see `training.plan`."""

    def __init__(self, library: Library, folder: Path, *, kind: str = "", hoisting: bool) -> None:
        self._library, self._kind, self._hoisting = library, kind, hoisting
        self._costs = costs.load(folder)

    def prepare(self, job: TrainingJob) -> Prepared:
        if job.model_privacy != "plain":
            raise BackendError("a model that is trained on ciphertexts is encrypted anyway; use --model-privacy plain")
        circuit = training.plan(
            job.training,
            self._library,
            self._costs,
            refresh=self._kind == "refresh",
            bootstrap=self._kind == "bootstrap",
            hoisting=self._hoisting,
        )
        description, price = self._library.describe(circuit.parameters), training.price(circuit, self._costs)
        artifact = json.dumps(circuit.to_json()).encode()
        return Prepared(
            client=artifact,
            server=artifact,
            batch=job.training.rows,
            rounds=circuit.rounds,
            parameters=description
            | {
                "levels": circuit.parameters.depth,
                "key_switching_digits": circuit.parameters.digits or circuit.parameters.levels + 1,
                "scale_bits": circuit.parameters.input_scale_bits,
                "rotation_keys": len(circuit.keys.rotations),
                "request_ciphertexts": circuit.request_ciphertexts,
                "response_ciphertexts": circuit.response_ciphertexts,
                "threads": job.threads,
            },
            security=security.ckks(description),
            operations=costs.named(price.operations),
            notes={
                "layout": [
                    f"{circuit.rows} rows of {circuit.width} features in a ciphertext",
                    f"{circuit.blocks} × {circuit.groups} ciphertexts",
                    "one level for the sigmoid's product" if circuit.narrow else "products of the sigmoid in parallel",
                ],
                "predicted_server_ms": round(price.milliseconds * circuit.rounds, 1),
                "predicted_weight_error": training.simulated_error(circuit, self._library),
            },
        )


class _Party:
    def __init__(self, library: Library) -> None:
        self._library = library

    def _read(self, artifact: bytes) -> None:
        self._circuit = Circuit.from_json(json.loads(bytes(artifact)))
        self._moduli = self._library.moduli(self._circuit.parameters)
        self._purpose = frames.identity(self._circuit)


@dataclass(frozen=True)
class _Outgoing:
    """Fresh ciphertexts, and the kind of their frame."""

    kind: bytes
    ciphers: list[Cipher]


class TrainingClient(_Party):
    """Keeps what it knows of a training between its rounds: weights and momentum."""

    def load(self, artifact: bytes) -> None:
        self._read(artifact)
        self._client = self._library.client(self._circuit.parameters)
        self._sums = training.sums(self._circuit, self._moduli)

    def keygen(self, seed: int) -> dict[str, bytes]:
        self._identity = secrets.token_bytes(frames.IDENTITY_BYTES)
        parts = self._client.keygen(self._circuit.keys)
        return {"evaluation": frames.pack(frames.KEYS, parts, purpose=self._purpose, keys=self._identity)}

    def encrypt(self, examples: np.ndarray) -> _Outgoing:
        features, targets = checked_examples(examples, self._circuit.training)
        self._descent = Descent(self._circuit, self._circuit.constant(features, targets))
        return _Outgoing(frames.REQUEST, self._encrypted(training.request(self._circuit, features, targets)))

    def refresh(self, response: Sequence[Cipher]) -> _Outgoing:
        """The next point of the descent, encrypted anew."""
        gradient, _ = training.decrypt(self._circuit, self._client, response, self._sums.scale)
        self._descent.step(gradient)
        return _Outgoing(frames.ROUND, self._encrypted(self._circuit.pack_weights(self._descent.point)))

    def _encrypted(self, vectors: Any) -> list[Cipher]:
        return [self._client.encrypt(vector, self._circuit.fresh_scale) for vector in vectors]

    def serialise(self, outgoing: _Outgoing) -> bytes:
        parts = [self._client.serialise(cipher) for cipher in outgoing.ciphers]
        return frames.pack(outgoing.kind, parts, purpose=self._purpose, keys=self._identity, images=_FIRST)

    def deserialise(self, response: bytes) -> list[Cipher]:
        frame = frames.unpack(frames.RESPONSE, response, purpose=self._purpose, keys=self._identity, batch=_FIRST)
        parts = frames.exactly(self._circuit.response_ciphertexts, frame.parts, "ciphertexts of a response")
        return [self._client.deserialise(part, self._sums.level) for part in parts]

    def decrypt(self, response: Sequence[Cipher]) -> np.ndarray:
        gradient, point = training.decrypt(self._circuit, self._client, response, self._sums.scale)
        if not self._circuit.refresh:
            return (point - gradient)[None]
        self._descent.step(gradient)
        return np.array(self._descent.history)


class TrainingServer(_Party):
    """Keeps the encrypted features of a training for its rounds."""

    def load(self, artifact: bytes) -> None:
        self._read(artifact)
        self._evaluator = self._library.evaluator(self._circuit.parameters)
        self._program = Program(self._circuit, self._evaluator, self._moduli)
        self._features: list[Cipher] = []

    def load_keys(self, keys: dict[str, bytes]) -> None:
        frame = frames.unpack(frames.KEYS, keys.get("evaluation", b""), purpose=self._purpose)
        self._evaluator.load_keys(frame.parts)
        self._identity = frame.keys

    def deserialise(self, request: bytes) -> list[Cipher]:
        circuit = self._circuit
        further = circuit.refresh and bool(self._features) and frames.kind(request) == frames.ROUND
        kind = frames.ROUND if further else frames.REQUEST
        frame = frames.unpack(kind, request, purpose=self._purpose, keys=self._identity, batch=_FIRST)
        held = circuit.groups * circuit.blocks
        expected = circuit.request_ciphertexts - (held if further else 0)
        parts = frames.exactly(expected, frame.parts, "ciphertexts of a request")
        ciphers = [self._evaluator.deserialise(part, 0) for part in parts]
        if not further:
            self._features, ciphers = ciphers[:held], ciphers[held:]
        return ciphers

    def infer(self, ciphers: Sequence[Cipher]) -> list[Cipher]:
        with refusing(self._library.name, "train on this request"):
            return self._program.run([*self._features, *ciphers])

    def serialise(self, ciphers: Sequence[Cipher]) -> bytes:
        parts = [self._evaluator.serialise(cipher) for cipher in ciphers]
        return frames.pack(frames.RESPONSE, parts, purpose=self._purpose, keys=self._identity, images=_FIRST)
