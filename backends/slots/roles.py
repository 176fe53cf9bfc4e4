"""Owner, client and server for any `Library` of the packing engine."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from backends import security
from backends.api import Job, MessageError, Prepared
from backends.slots import blocks, costs, execute, messages, planner
from backends.slots.explain import explain
from backends.slots.library import Cipher, KeyRequest, Library, Parameters
from backends.slots.plan import Plan
from backends.slots.workers import Worker
from backends.variants import Variants


def variants(library: Library, folder: Path, *, hoisting: bool, naive: tuple[Callable, Callable, Callable]) -> Variants:
    """The variants of a backend of the packing engine; `naive` is the library's own way: owner, client and server."""
    owner = partial(SlotsOwner, library, folder, hoisting=hoisting)
    parties = (partial(SlotsClient, library), partial(SlotsServer, library))
    return {
        "": (owner, *parties),
        "upload": (partial(owner, objective="upload"), *parties),
        "memory": (partial(owner, objective="memory"), *parties),
        "logits": (partial(owner, client_adds=False), *parties),
        "naive": naive,
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
            encrypted=job.model_privacy == "encrypted",
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
        identity, key = messages.parse_keys(_purpose(self._plan.parameters, self._plan.keys), public_key)
        owner = self._library.owner(self._plan.parameters, key)
        weights = self._plan.weights(self._library.moduli(self._plan.parameters))
        parts = [owner.serialise(owner.encrypt_weight(w.vector, w.scale, w.level)) for w in weights]
        return messages.frame(messages.MODEL, identity, 0, parts)

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

    def keygen(self, seed: int) -> dict[str, bytes]:
        self._identity = secrets.token_bytes(messages.IDENTITY_BYTES)
        purpose = _purpose(self._plan.parameters, self._request)
        keys = {"evaluation": self._client.keygen(self._request)}
        if self._request.public:
            keys["public"] = self._client.public_key()
        return {name: messages.frame_keys(purpose, self._identity, key) for name, key in keys.items()}

    def encrypt(self, images: np.ndarray) -> tuple[int, list[Cipher]]:
        return len(images), execute.encrypt(self._plan, self._client, images.reshape(len(images), -1))

    def serialise(self, ciphertexts: tuple[int, list[Cipher]]) -> bytes:
        images, fresh = ciphertexts
        return messages.frame(
            messages.REQUEST, self._identity, images, [self._client.serialise(cipher) for cipher in fresh]
        )

    def deserialise(self, response: bytes) -> tuple[int, list[Cipher]]:
        images, parts = messages.parse(messages.RESPONSE, self._identity, response)
        return images, [self._client.deserialise(part) for part in parts]

    def decrypt(self, ciphertexts: tuple[int, list[Cipher]]) -> np.ndarray:
        images, ciphers = ciphertexts
        return execute.decrypt(self._plan, self._client, ciphers, self._scale, images)


class SlotsServer:
    """A library that uses one core (`Library.parallel` false) gets a worker process for each further core, if the plan
    can be shared."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def load(self, artifact: bytes) -> None:
        self._plan, request = Plan.from_bytes(artifact)
        self._purpose = _purpose(self._plan.parameters, request)
        self._evaluator = self._library.evaluator(self._plan.parameters)
        self._moduli = self._library.moduli(self._plan.parameters)
        cores = 1 if self._library.parallel else len(os.sched_getaffinity(0))
        if not self._plan.encrypted:
            self._programs = [execute.Program(plan, self._evaluator, self._moduli) for plan in self._plan.shares(cores)]

    def load_keys(self, keys: dict[str, bytes]) -> None:
        self._identity, evaluation = messages.parse_keys(self._purpose, keys.get("evaluation", b""))
        self._evaluator.load_keys(evaluation)
        self._workers = [] if self._plan.encrypted else [Worker(program) for program in self._programs[1:]]

    def load_model(self, model: bytes) -> None:
        _, parts = messages.parse(messages.MODEL, self._identity, model)
        expected = sum(len(step.terms) + 1 for step in self._plan.affines)
        if len(parts) != expected:
            raise MessageError(f"the model of this plan has {expected} ciphertexts, not {len(parts)}")
        weights = map(self._evaluator.deserialise, parts)
        self._programs = [execute.Program(self._plan, self._evaluator, self._moduli, weights)]

    def deserialise(self, request: bytes) -> tuple[int, list[Cipher]]:
        images, parts = messages.parse(messages.REQUEST, self._identity, request)
        expected = costs.request_ciphertexts(self._plan)
        if len(parts) != expected:
            raise MessageError(f"a request of this plan has {expected} ciphertexts, not {len(parts)}")
        for worker in self._workers:
            worker.read(parts)
        return images, [self._evaluator.deserialise(part) for part in parts]

    def infer(self, ciphertexts: tuple[int, list[Cipher]]) -> tuple[int, list[Cipher]]:
        images, ciphers = ciphertexts
        for worker in self._workers:
            worker.start()
        results = self._programs[0].run(ciphers)
        for worker in self._workers:
            results = [self._evaluator.add(*pair) for pair in zip(results, worker.result(), strict=True)]
        return images, results

    def serialise(self, ciphertexts: tuple[int, list[Cipher]]) -> bytes:
        images, ciphers = ciphertexts
        parts = [self._evaluator.serialise(cipher) for cipher in ciphers]
        return messages.frame(messages.RESPONSE, self._identity, images, parts)


def _purpose(parameters: Parameters, request: KeyRequest) -> bytes:
    """The same for all plans that keys of one client fit."""
    return hashlib.sha256(repr((parameters, request)).encode()).digest()[: messages.IDENTITY_BYTES]
