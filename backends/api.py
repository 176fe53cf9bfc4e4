"""The interface of a backend: three roles, and nothing but bytes between them.

::

      owner                          client                               server
      prepare ── client artifact ──► load
              ── server artifact ────────────────────────────────────────► load
                                     keygen ──────── keys (bytes) ───────► load_keys
              ◄─ public key ──────── (if the model is to be encrypted)
              encrypt_model ─────────────────────────────────────────────► load_model
                                     encrypt, serialise ─ request (bytes) ► deserialise, infer
                                     deserialise, decrypt ◄ response (bytes) serialise

A backend is a package that exports the classes `Owner`, `Client` and `Server` (each made without arguments, in a
process of its own) and has a ``backend.toml`` beside it (see `backends.registry`). Rules that every backend keeps:

* it has no clock and prints nothing: the harness measures;
* it does not cache between calls, and a call returns when its work is done;
* the secret key stays in the client: no artifact, key or request carries it;
* it raises `BackendError` with a message that names the cure for what a person can mend.

This module needs only the standard library and NumPy.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from models.network import Network


class BackendError(Exception):
    """Something that a person can mend; the message says how. Becomes the reason of a ``failed`` record."""


class InsecureError(BackendError):
    """Parameters below 128 bits of security. Becomes a record of status ``insecure``."""


class MessageError(BackendError):
    """A key, request or response that is damaged, truncated or foreign."""


@contextlib.contextmanager
def refusing(library: str, task: str, data: bytes | memoryview = b"") -> Iterator[None]:
    """What a library raises for bytes of another party becomes MessageError: ``refusing("SEAL", "read this request")``.

    data: what is read, if it is; wrong bytes may ask for any amount of memory. A real lack of it stays a MemoryError.
    """
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:  # how bindings hand on the exceptions of C++
        reason = textwrap.shorten(str(error), 200) or type(error).__name__
        raise MessageError(f"{library} cannot {task}: {reason}") from error
    except MemoryError as error:
        if not data:
            raise
        np.empty(8 * len(data), np.uint8)  # as much as a right message takes at most: is it there?
        raise MessageError(f"{library} cannot {task}: it asks for absurdly much memory") from error


@dataclass(frozen=True)
class Training:
    """Logistic regression to be trained on encrypted examples: see `models.regression`.

    rows: examples. features: numbers of each, the constant 1 for the bias among them. outputs: regressions, each of one
    label against all others. steps: of the descent. rate: its learning rate. degree: of the sigmoid's polynomial.
    """

    rows: int
    features: int
    outputs: int
    steps: int
    rate: float
    degree: int = 3


def checked_examples(examples: np.ndarray, training: Training) -> tuple[np.ndarray, np.ndarray]:
    """features (rows, features) and targets (rows, outputs). Raises BackendError for examples that are not those that were
    prepared for."""
    expected = (training.rows, training.features + training.outputs)
    if examples.shape != expected or not np.isfinite(examples).all():
        raise BackendError(f"a training was prepared for {expected} finite numbers, not {examples.shape}")
    return examples[:, : training.features].astype(np.float64), examples[:, training.features :].astype(np.float64)


@dataclass(frozen=True)
class Job:
    """What the owner is asked to prepare: inference with a network.

    network: in the lowering that ``backend.toml`` names.
    variant: "" or one of the variants of ``backend.toml``.
    scenario: ``single-stream`` (one image a request) or ``offline`` (as many images as the backend packs best).
    threads: cores that each party may use.
    model_privacy: ``plain`` (the server reads the weights) or ``encrypted`` (it sees only ciphertexts of them).
    calibration: training images (n, channels, height, width) in [0, 1], for ranges of intermediate values.
    options: of the backend's own compiler, by name (a search sets them; a plain run leaves them to the backend).
    """

    network: Network
    variant: str = ""
    scenario: str = "single-stream"
    threads: int = 1
    model_privacy: str = "plain"
    calibration: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 28, 28), np.float32))
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingJob:
    """What the owner is asked to prepare where ``backend.toml`` names the workload ``train``. The others as of `Job`."""

    training: Training
    variant: str = ""
    threads: int = 1
    model_privacy: str = "plain"


@dataclass(frozen=True)
class Prepared:
    """What the owner hands out.

    client, server: the artifacts that the two parties load.
    batch: images in one request. rounds: requests and responses that one request of the harness takes: after each response
    but the last the client makes the next one by `Client.refresh`.
    parameters: the parameters really used, as plain JSON (ring dimension, modulus bits, LWE dimensions, p_error, …).
    security: see `backends.security`: at least ``bits`` (int) and ``standard`` (str); ``None`` for a clear backend.
    operations: counts of primitive operations in one `Server.infer` (rotations, programmable bootstraps, …).
    notes: anything else worth a line in the report.
    """

    client: bytes
    server: bytes
    batch: int = 1
    rounds: int = 1
    parameters: dict[str, Any] = field(default_factory=dict)
    security: dict[str, Any] | None = None
    operations: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


class Owner(Protocol):
    def prepare(self, job: Any) -> Prepared:
        """Compiles or encodes the network of a `Job`, or plans a `TrainingJob` if the backend trains. Raises BackendError,
        InsecureError."""

    def encrypt_model(self, public_key: bytes) -> bytes:
        """The weights of the prepared network, encrypted under the client's key named ``public``. Called only if
        ``job.model_privacy`` is ``encrypted``; a backend that cannot do that raises BackendError in `prepare`."""


class Client(Protocol):
    def load(self, artifact: bytes) -> None: ...

    def keygen(self, seed: int) -> dict[str, bytes]:
        """Makes the keys; returns those that the server needs, serialised, by name (``evaluation``, ``public``, …).

        `seed` may only steer what is not secret (a library that cannot seed ignores it).
        """

    def encrypt(self, images: np.ndarray) -> Any:
        """images: (1 … batch, channels, height, width) float32 in [0, 1] → ciphertexts. For a training (rows, features +
        outputs) float64: the last columns are the targets, ±1."""

    def refresh(self, ciphertexts: Any) -> Any:
        """Of a response but the last, if there are `Prepared.rounds`: what to `serialise` as the next request."""

    def serialise(self, ciphertexts: Any) -> bytes: ...

    def deserialise(self, response: bytes) -> Any:
        """Raises MessageError for bytes that are no response to this client."""

    def decrypt(self, ciphertexts: Any) -> np.ndarray:
        """Logits (images of the request, outputs) float64; of a training the weights (steps, outputs, features): after each
        of its last steps, as far as the client sees them."""


class Server(Protocol):
    def load(self, artifact: bytes) -> None: ...

    def load_keys(self, keys: dict[str, bytes]) -> None: ...

    def load_model(self, model: bytes) -> None:
        """What `Owner.encrypt_model` made, after the keys."""

    def deserialise(self, request: bytes) -> Any:
        """Raises MessageError for bytes that are no request."""

    def infer(self, ciphertexts: Any) -> Any: ...

    def serialise(self, ciphertexts: Any) -> bytes: ...
