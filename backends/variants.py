"""Several implementations behind one backend: the owner's choice travels with the artifacts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from backends import frames
from backends.api import BackendError, Job, MessageError, Prepared, TrainingJob

Variants = dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]]  # name → owner, client, server


TRAIN = "train:"  # before the name of a variant: its implementation of training


class VariantOwner:
    def __init__(self, variants: Variants) -> None:
        self._variants = variants

    def prepare(self, job: Job | TrainingJob) -> Prepared:
        name = self._name(job)
        self._implementation = self._variants[name][0]()
        prepared = self._implementation.prepare(job)
        client, server = (
            frames.pack(kind, [name.encode(), artifact])
            for kind, artifact in ((frames.CLIENT, prepared.client), (frames.SERVER, prepared.server))
        )
        return dataclasses.replace(prepared, client=client, server=server)

    def encrypt_model(self, public_key: bytes) -> bytes:
        return self._implementation.encrypt_model(public_key)

    def explain(self, job: Job) -> dict[str, Any]:
        """Raises BackendError for an implementation that has no plan to explain."""
        owner = self._variants[self._name(job)][0]()
        if not hasattr(owner, "explain"):
            raise BackendError("this variant has no plan to explain; choose the default one")
        return owner.explain(job)

    def _name(self, job: Job | TrainingJob) -> str:
        """Raises BackendError for a variant that does not do this work."""
        prefix = TRAIN if isinstance(job, TrainingJob) else ""
        if prefix + job.variant not in self._variants:
            fitting = [name.removeprefix(prefix) for name in self._variants if name.startswith(TRAIN) == bool(prefix)]
            raise BackendError(
                f"the variant {job.variant or 'default'!r} is not for {'training' if prefix else 'inference'}; choose from "
                + ", ".join(name or "the default one" for name in fitting)
            )
        return prefix + job.variant


class VariantParty:
    """Client (`index` 1) or server (2): loads an artifact, then behaves as the implementation that made it."""

    def __init__(self, variants: Variants, index: int) -> None:
        self._variants, self._index = variants, index

    def load(self, artifact: bytes) -> None:
        """Raises MessageError for bytes that no owner of this backend made for this party."""
        variant, rest = opened((frames.CLIENT, frames.SERVER)[self._index - 1], artifact)
        if variant not in self._variants:
            raise MessageError(f"this artifact is for the variant {variant!r}, which this version does not have")
        self._implementation = self._variants[variant][self._index]()
        self._implementation.load(rest)

    def __getattr__(self, name: str) -> Any:
        if name == "_implementation":
            raise AttributeError("load an artifact first")
        return getattr(self._implementation, name)


def opened(kind: bytes, artifact: bytes) -> tuple[str, bytes]:
    """The variant and the artifact of its implementation. Raises MessageError."""
    variant, rest = frames.exactly(2, frames.unpack(kind, artifact).parts, "parts of an artifact")
    return bytes(variant).decode(errors="replace"), bytes(rest)
