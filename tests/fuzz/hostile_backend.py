"""A backend whose client or server sends wrong things under right checksums. The variant says which: ``openfhe request 3``
is the backend ``openfhe`` whose requests are mutated from the seed 3."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np

from backends.api import Job, Prepared
from tests.fuzz.mutations import framed


class Owner:
    def prepare(self, job: Job) -> Prepared:
        owner = importlib.import_module(f"backends.{job.variant.split()[0]}").Owner()
        prepared, tag = owner.prepare(dataclasses.replace(job, variant="")), job.variant.encode() + b"\0"
        return dataclasses.replace(prepared, client=tag + prepared.client, server=tag + prepared.server)


class _Party:
    """What an honest party of the library says, mutated if it is of the kind that the variant names."""

    def load(self, artifact: bytes) -> None:
        variant, _, rest = artifact.partition(b"\0")
        library, self._kind, seed = variant.decode().split()
        self._random = np.random.default_rng(int(seed))
        self._honest = getattr(importlib.import_module(f"backends.{library}"), type(self).__name__)()
        self._honest.load(rest)

    def serialise(self, ciphertexts: Any) -> bytes:
        return self._said(self.SAYS, self._honest.serialise(ciphertexts))

    def _said(self, kind: str, message: bytes) -> bytes:
        return framed(message, self._random) if kind == self._kind else message

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_honest"], name)


class Client(_Party):
    SAYS = "request"

    def keygen(self, seed: int) -> dict[str, bytes]:
        return {name: self._said("keys", key) for name, key in self._honest.keygen(seed).items()}


class Server(_Party):
    SAYS = "response"
