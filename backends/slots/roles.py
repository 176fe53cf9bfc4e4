"""Owner, client and server for any `Library` of the packing engine."""

from __future__ import annotations

import secrets
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from backends import security
from backends.api import BackendError, Job, MessageError, Prepared
from backends.slots import blocks, costs, execute, planner
from backends.slots.explain import explain
from backends.slots.library import Cipher, KeyRequest, Library
from backends.slots.plan import Plan

_HEADER = struct.Struct("<4s8sIII")  # magic, key identity, images, ciphertexts, checksum of the rest
_LENGTH = struct.Struct("<Q")


class SlotsOwner:
    """folder: holds the library's ``costs.json``. hoisting: whether rotations of one ciphertext share work."""

    def __init__(
        self, library: Library, folder: Path, *, hoisting: bool, objective: planner.Objective = "server"
    ) -> None:
        self._library, self._folder, self._hoisting, self._objective = library, folder, hoisting, objective

    def plan(self, job: Job) -> tuple[blocks.Blocks, Plan]:
        if job.model_privacy != "plain":
            raise BackendError("this backend does not encrypt the model yet; use --model-privacy plain")
        network = blocks.from_network(job.network, job.calibration)
        calibration = job.calibration.reshape(len(job.calibration), -1)
        table = costs.load(self._folder)
        return network, planner.plan(
            network,
            self._library,
            table,
            calibration,
            scenario=job.scenario,
            objective=self._objective,
            hoisting=self._hoisting,
        )

    def prepare(self, job: Job) -> Prepared:
        network, plan = self.plan(job)
        description = self._library.describe(plan.parameters)
        calibration = job.calibration.reshape(len(job.calibration), -1)
        operations = [(name, times) for count in costs.operations(plan) for (_, name), times in count.items()]
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
            operations=costs.named(operations),
            notes={
                "layout": [plan.input.kind, *(step.kind for step in plan.steps)],
                "predicted_server_ms": round(sum(costs.predict_ms(plan, costs.load(self._folder))), 1),
                "predicted_logit_error": planner.simulated_error(plan, network, calibration),
            },
        )

    def explain(self, job: Job) -> dict[str, Any]:
        """The plan in words and figures, predicted and measured here; see `backends.slots.explain`."""
        network, plan = self.plan(job)
        return explain(plan, network, self._library, costs.load(self._folder), job.calibration)


class SlotsClient:
    def __init__(self, library: Library) -> None:
        self._library = library

    def load(self, artifact: bytes) -> None:
        self._plan, extra = Plan.from_bytes(artifact)
        keys = extra["keys"]
        self._request = KeyRequest(tuple(keys["rotations"]), keys["conjugation"], keys["relinearisation"])
        self._client = self._library.client(self._plan.parameters)
        self._scale = self._plan.scales(self._library.moduli(self._plan.parameters), extra["steps"])[-1]

    def keygen(self, seed: int) -> dict[str, bytes]:
        self._identity = secrets.token_bytes(8)
        return {"evaluation": self._identity + self._client.keygen(self._request)}

    def encrypt(self, images: np.ndarray) -> tuple[int, list[Cipher]]:
        return len(images), execute.encrypt(self._plan, self._client, images.reshape(len(images), -1))

    def serialise(self, ciphertexts: tuple[int, list[Cipher]]) -> bytes:
        images, fresh = ciphertexts
        return _frame(b"REQ1", self._identity, images, [self._client.serialise(cipher) for cipher in fresh])

    def deserialise(self, response: bytes) -> tuple[int, list[Cipher]]:
        images, parts = _parts(b"RES1", self._identity, response)
        return images, [self._client.deserialise(part) for part in parts]

    def decrypt(self, ciphertexts: tuple[int, list[Cipher]]) -> np.ndarray:
        images, ciphers = ciphertexts
        return execute.decrypt(self._plan, self._client, ciphers, self._scale, images)


class SlotsServer:
    def __init__(self, library: Library) -> None:
        self._library = library

    def load(self, artifact: bytes) -> None:
        plan, _ = Plan.from_bytes(artifact)
        self._evaluator = self._library.evaluator(plan.parameters)
        self._program = execute.Program(plan, self._evaluator, self._library.moduli(plan.parameters))

    def load_keys(self, keys: dict[str, bytes]) -> None:
        blob = keys["evaluation"]
        self._identity = blob[:8]
        self._evaluator.load_keys(blob[8:])

    def deserialise(self, request: bytes) -> tuple[int, list[Cipher]]:
        images, parts = _parts(b"REQ1", self._identity, request)
        expected = costs.request_ciphertexts(self._program.plan)
        if len(parts) != expected:
            raise MessageError(f"a request of this plan has {expected} ciphertexts, not {len(parts)}")
        return images, [self._evaluator.deserialise(part) for part in parts]

    def infer(self, ciphertexts: tuple[int, list[Cipher]]) -> tuple[int, list[Cipher]]:
        images, ciphers = ciphertexts
        return images, self._program.run(ciphers)

    def serialise(self, ciphertexts: tuple[int, list[Cipher]]) -> bytes:
        images, ciphers = ciphertexts
        return _frame(b"RES1", self._identity, images, [self._evaluator.serialise(cipher) for cipher in ciphers])


def _frame(magic: bytes, identity: bytes, images: int, parts: list[bytes]) -> bytes:
    body = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    return _HEADER.pack(magic, identity, images, len(parts), zlib.crc32(body)) + body


def _parts(magic: bytes, identity: bytes, message: bytes) -> tuple[int, list[bytes]]:
    """Number of images and the serialised ciphertexts. Raises MessageError before a library sees a byte."""
    if len(message) < _HEADER.size:
        raise MessageError("truncated message: shorter than its header")
    found, sender, images, count, checksum = _HEADER.unpack_from(message)
    if found != magic:
        raise MessageError(f"foreign message: expected {magic.decode()}, got {found!r}")
    if sender != identity:
        raise MessageError("this message belongs to other keys; load the keys of its client first")
    body = memoryview(message)[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise MessageError("damaged or truncated message: the checksum does not match; send it again")
    parts, position = [], 0
    for _ in range(count):
        if position + _LENGTH.size > len(body):
            raise MessageError("truncated message")
        (length,) = _LENGTH.unpack_from(body, position)
        position += _LENGTH.size
        if position + length > len(body):
            raise MessageError("truncated message")
        parts.append(bytes(body[position : position + length]))
        position += length
    return images, parts
