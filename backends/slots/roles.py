"""Owner, client and server for any `Library` of the packing engine."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from backends import frames, security
from backends.api import BackendError, Job, Prepared, refusing
from backends.slots import batched, blocks, costs, execute, planner
from backends.slots.explain import explain
from backends.slots.library import Cipher, KeyRequest, Library, Parameters
from backends.slots.plan import Plan
from backends.slots.trainers import Trainer, TrainingClient, TrainingServer
from backends.variants import TRAIN, Variants


def variants(library: Library, folder: Path, *, hoisting: bool, naive: tuple[Callable, Callable, Callable]) -> Variants:
    """The variants of a backend of the packing engine; `naive` is the library's own way: owner, client and server."""
    owner = partial(SlotsOwner, library, folder, hoisting=hoisting)
    parties = (partial(SlotsClient, library), partial(SlotsServer, library))
    trainer = partial(Trainer, library, folder, hoisting=hoisting)
    trainers = (partial(TrainingClient, library), partial(TrainingServer, library))
    return {
        "": (owner, *parties),
        "upload": (partial(owner, objective="upload"), *parties),
        "memory": (partial(owner, objective="memory"), *parties),
        "logits": (partial(owner, client_adds=False), *parties),
        "naive": naive,
        TRAIN: (trainer, *trainers),
        TRAIN + "refresh": (partial(trainer, kind="refresh"), *trainers),
    }


class SlotsOwner:
    """folder: holds the library's ``costs.json``. hoisting: whether rotations of one ciphertext share work. For the others
    see `planner.plan`."""

    def __init__(
        self,
        library: Library,
        folder: Path,
        *,
        hoisting: bool,
        objective: planner.Objective = "server",
        client_adds: bool = True,
    ) -> None:
        self._library, self._hoisting = library, hoisting
        self._objective, self._client_adds = objective, client_adds
        self._costs = costs.load(folder)

    def plan(self, job: Job) -> tuple[blocks.Blocks, Plan]:
        if job.scenario != "offline" or job.model_privacy == "encrypted":
            planner.require_slots(job.network)
        network = blocks.from_network(job.network, job.calibration)
        return network, planner.plan(
            network,
            self._library,
            self._costs,
            job.calibration.reshape(len(job.calibration), -1),
            scenario=job.scenario,
            objective=self._objective,
            client_adds=self._client_adds,
            hoisting=self._hoisting,
            model_encrypted=job.model_privacy == "encrypted",
        )

    def prepare(self, job: Job) -> Prepared:
        network, plan = self.plan(job)
        self._plan = plan
        description = self._library.describe(plan.parameters)
        calibration = job.calibration.reshape(len(job.calibration), -1)
        return Prepared(
            client=plan.client_bytes(),
            server=plan.server_bytes(),
            batch=plan.batch,
            parameters=description
            | {
                "input_scale_bits": plan.parameters.input_scale_bits,
                "weight_scale_bits": list(plan.parameters.weight_scale_bits),
                "rotation_keys": len(plan.keys.rotations),
                "request_ciphertexts": costs.request_ciphertexts(plan),
                "threads": job.threads,
            },
            security=security.ckks(description),
            operations=costs.named(costs.total(plan)),
            notes={
                "layout": [plan.input.kind, *(step.kind for step in plan.affines)],
                "predicted_server_ms": round(sum(costs.predict_ms(plan, self._costs)), 1),
                "predicted_logit_error": planner.simulated_error(plan, network, calibration, self._library),
            },
        )

    def encrypt_model(self, public_key: bytes) -> bytes:
        purpose = _purpose(self._plan.parameters, self._plan.keys)
        frame = frames.unpack(frames.PUBLIC, public_key, purpose=purpose)
        (key,) = frames.exactly(1, frame.parts, "public key")
        owner = self._library.owner(self._plan.parameters, key)
        weights = self._plan.weights(self._library.moduli(self._plan.parameters))
        parts = [owner.serialise(owner.encrypt_weight(w.vector, w.scale, w.level)) for w in weights]
        return frames.pack(frames.MODEL, parts, purpose=purpose, keys=frame.keys)

    def explain(self, job: Job) -> dict[str, Any]:
        """The plan in words and figures, predicted and measured here; see `backends.slots.explain`."""
        network, plan = self.plan(job)
        return explain(plan, network, self._library, self._costs, job.calibration)


class SlotsClient:
    def __init__(self, library: Library) -> None:
        self._library = library

    def load(self, artifact: bytes) -> None:
        self._plan, self._request = Plan.from_bytes(artifact)
        self._client = self._library.client(self._plan.parameters)
        self._scale = self._plan.response_scale(self._library.moduli(self._plan.parameters))
        self._purpose = _purpose(self._plan.parameters, self._request)

    def keygen(self, seed: int) -> dict[str, bytes]:
        self._identity = secrets.token_bytes(frames.IDENTITY_BYTES)
        pack = partial(frames.pack, purpose=self._purpose, keys=self._identity)
        keys = {"evaluation": pack(frames.KEYS, self._client.keygen(self._request))}
        if self._request.public:
            keys["public"] = pack(frames.PUBLIC, [self._client.public_key()])
        return keys

    def encrypt(self, images: np.ndarray) -> tuple[int, list[Cipher]]:
        if not 1 <= len(images) <= self._plan.batch:
            raise BackendError(f"a request holds 1 to {self._plan.batch} images, not {len(images)}")
        return len(images), execute.encrypt(self._plan, self._client, images.reshape(len(images), -1))

    def serialise(self, ciphertexts: tuple[int, list[Cipher]]) -> bytes:
        images, fresh = ciphertexts
        parts = [self._client.serialise(cipher) for cipher in fresh]
        return frames.pack(frames.REQUEST, parts, purpose=self._purpose, keys=self._identity, images=images)

    def deserialise(self, response: bytes) -> tuple[int, list[Cipher]]:
        frame = frames.unpack(
            frames.RESPONSE, response, purpose=self._purpose, keys=self._identity, batch=self._plan.batch
        )
        plan = self._plan
        expected = (1 + plan.input.paired) * len(plan.output_slots) if plan.input.batched else 1
        parts = frames.exactly(expected, frame.parts, "ciphertexts of a response")
        return frame.images, [self._client.deserialise(part, plan.dropped(-1)) for part in parts]

    def decrypt(self, ciphertexts: tuple[int, list[Cipher]]) -> np.ndarray:
        images, ciphers = ciphertexts
        return execute.decrypt(self._plan, self._client, ciphers, self._scale, images)


class SlotsServer:
    def __init__(self, library: Library) -> None:
        self._library = library

    def load(self, artifact: bytes) -> None:
        self._plan, request = Plan.from_bytes(artifact)
        self._purpose = _purpose(self._plan.parameters, request)
        self._evaluator = self._library.evaluator(self._plan.parameters)
        self._moduli = self._library.moduli(self._plan.parameters)
        if not self._plan.model_encrypted:
            self._program = batched.program(self._plan, self._evaluator, self._moduli)

    def load_keys(self, keys: dict[str, bytes]) -> None:
        frame = frames.unpack(frames.KEYS, keys.get("evaluation", b""), purpose=self._purpose)
        self._evaluator.load_keys(frame.parts)
        self._identity = frame.keys

    def load_model(self, model: bytes) -> None:
        frame = frames.unpack(frames.MODEL, model, purpose=self._purpose, keys=self._identity)
        levels = [weight.level for weight in self._plan.weights(self._moduli)]
        parts = frames.exactly(len(levels), frame.parts, "ciphertexts of the model")
        weights = map(self._evaluator.deserialise, parts, levels)
        self._program = execute.Program(self._plan, self._evaluator, self._moduli, weights)

    def deserialise(self, request: bytes) -> tuple[int, Any]:
        frame = frames.unpack(
            frames.REQUEST, request, purpose=self._purpose, keys=self._identity, batch=self._plan.batch
        )
        parts = frames.exactly(costs.request_ciphertexts(self._plan), frame.parts, "ciphertexts of a request")
        return frame.images, self._program.read(parts)

    def infer(self, ciphertexts: tuple[int, Any]) -> tuple[int, list[Cipher]]:
        images, request = ciphertexts
        with refusing(self._library.name, "evaluate this request"):
            return images, self._program.run(request)

    def serialise(self, ciphertexts: tuple[int, list[Cipher]]) -> bytes:
        images, ciphers = ciphertexts
        parts = [self._evaluator.serialise(cipher) for cipher in ciphers]
        return frames.pack(frames.RESPONSE, parts, purpose=self._purpose, keys=self._identity, images=images)


def _purpose(parameters: Parameters, request: KeyRequest) -> bytes:
    """The same for all plans that keys of one client fit."""
    return frames.identity(parameters, request)
