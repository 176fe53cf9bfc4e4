"""What a CKKS library has to offer to run a plan: about a dozen operations. A new library is one file.

`level` counts the primes already dropped: 0 is a fresh ciphertext. Scales are exact floats that the plan tracks from
the primes really used; a library only encodes at the scale it is told. Plaintexts and ciphertexts are the library's own
objects. Vectors have one entry for each slot and may be complex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Plain = Any
Cipher = Any
BOOTSTRAP_LEVELS = (
    12  # that `Bootstrapping.bootstrap` takes: two linear transforms of a level each, and the sine between
)


@dataclass(frozen=True)
class Parameters:
    """Moduli and scales of one plan, in bits.

    ring_dimension: N; there are N/2 slots. first_bits: the prime that is never dropped. depth: number of products, one
    behind another. rescale_bits: of each prime that rescaling drops, `primes_per_square` for each product, and of those
    that are `kept` beside the first one, for logits that need more bits than one prime has. special_bits: the key-switching
    prime where the library lets it be chosen; digits: of key switching, for a library that can group primes (0: each prime
    is one). input_scale_bits; weight_scale_bits: of the affine maps of each level. bootstrap_slots: see `Bootstrapping`;
    0: there is none. With it the secret key is sparse, and each scale that is bootstrapped is ``2 ** rescale_bits``.
    """

    ring_dimension: int
    first_bits: int
    rescale_bits: int
    depth: int
    special_bits: int
    input_scale_bits: int
    weight_scale_bits: tuple[int, ...]
    primes_per_square: int = 1
    kept: int = 0
    digits: int = 0
    bootstrap_slots: int = 0

    @property
    def levels(self) -> int:
        """How many primes there are beside the first one."""
        return self.depth * self.primes_per_square + self.kept

    @property
    def slots(self) -> int:
        return self.ring_dimension // 2


@dataclass(frozen=True)
class KeyRequest:
    """The evaluation keys that a plan needs, and no other; `public`: and a public key, to encrypt a model under."""

    rotations: tuple[int, ...]
    conjugation: bool
    relinearisation: bool
    public: bool = False


class ClientLibrary(Protocol):
    def keygen(self, request: KeyRequest) -> list[bytes]:
        """Makes the secret key (kept) and returns the evaluation keys, serialised, in as many parts as the library likes."""

    def public_key(self) -> bytes:
        """The public key of the last `keygen`, serialised."""

    def encrypt(self, vector: np.ndarray, scale: float) -> Cipher: ...

    def serialise(self, fresh: Cipher) -> bytes:
        """A fresh ciphertext, in the library's smallest form."""

    def deserialise(self, data: bytes | memoryview, level: int | None = None) -> Cipher:
        """level: that the ciphertext must have; None: any. Raises MessageError for all but a ciphertext of two polynomials
        of these parameters."""

    def decrypt(self, cipher: Cipher, scale: float) -> np.ndarray:
        """All slots, complex."""


class OwnerLibrary(Protocol):
    """The owner's side where the model is encrypted."""

    def encrypt_weight(self, vector: np.ndarray, scale: float, level: int) -> Cipher:
        """Under the client's public key."""

    def serialise(self, cipher: Cipher) -> bytes: ...


class Evaluator(Protocol):
    """The server's side. No operation changes its arguments."""

    def load_keys(self, parts: Sequence[bytes | memoryview]) -> None:
        """What `ClientLibrary.keygen` returned."""

    def deserialise(self, data: bytes | memoryview, level: int | None = None) -> Cipher:
        """As `ClientLibrary.deserialise`."""

    def serialise(self, cipher: Cipher) -> bytes: ...

    def encode(self, vector: np.ndarray, scale: float, level: int) -> Plain: ...

    def add(self, a: Cipher, b: Cipher) -> Cipher: ...

    def sub(self, a: Cipher, b: Cipher) -> Cipher: ...

    def add_plain(self, a: Cipher, p: Plain) -> Cipher: ...

    def dot(self, ciphers: Sequence[Cipher], plains: Sequence[Plain]) -> Cipher:
        """Σ cipher · plain."""

    def dot_ciphers(self, ciphers: Sequence[Cipher], weights: Sequence[Cipher]) -> Cipher:
        """Σ cipher · weight without relinearisation: three polynomials."""

    def weighted_sum(self, ciphers: Sequence[Cipher], weights: Sequence[float], scale: float, level: int) -> Cipher:
        """Σ weight · cipher for real scalars, each encoded at `scale`."""

    def square(self, a: Cipher) -> Cipher:
        """Without relinearisation: three polynomials."""

    def relinearise(self, a: Cipher) -> Cipher: ...

    def rescale(self, a: Cipher) -> Cipher: ...

    def mod_switch(self, a: Cipher, primes: int) -> Cipher:
        """Drops so many primes; value and scale stay."""

    def conjugate(self, a: Cipher) -> Cipher: ...

    def rotate_many(self, a: Cipher, steps: Sequence[int]) -> list[Cipher]:
        """a rotated to the left by each step (0 allowed); hoisted where the library can."""

    def rotate_sum(self, pairs: Sequence[tuple[Cipher, int]]) -> Cipher:
        """Σ cipher rotated by its step (0 allowed); with one modulus-down for all where the library can."""


class Bootstrapping(Evaluator, Protocol):
    """An evaluator for parameters with `bootstrap_slots`; keys that it needs for that are made without being asked for."""

    def bootstrap(self, a: Cipher) -> Cipher:
        """The vector of a, complex, which repeats itself after `bootstrap_slots`, at level `BOOTSTRAP_LEVELS`. a: with two
        primes or more."""


class ResidueEvaluator(Evaluator, Protocol):
    """An evaluator that hands out residues, so that image-in-slot plans become matrix products (`backends.slots.batched`).

    Residues are (polynomials, primes, N) uint64, each modulo its own prime, in evaluation form. Operations may run in forks.
    """

    def read(self, data: bytes | memoryview, level: int) -> np.ndarray:
        """Of a ciphertext as `ClientLibrary.serialise` wrote it, a view of the data if it can be. Raises MessageError."""

    def residues(self, cipher: Cipher) -> np.ndarray:
        """Also of three polynomials, before relinearisation."""

    def of_residues(self, residues: np.ndarray, scale: float) -> Cipher: ...


class Library(Protocol):
    """Made without arguments; imports its FHE library only in these methods."""

    name: str
    first_is_largest: bool  # whether no other prime of a fresh ciphertext may be larger than the first one
    switching_bias: float  # mean rounding error of a coefficient by key switching: 0 if it rounds, 1/2 if it cuts off

    def admissible(self, parameters: Parameters) -> bool:
        """Whether the library can build these parameters at 128 bits."""

    def public_stddev(self, ring_dimension: int, level: int) -> float:
        """Standard deviation of a coefficient of the noise of `OwnerLibrary.encrypt_weight`."""

    def client(self, parameters: Parameters) -> ClientLibrary: ...

    def owner(self, parameters: Parameters, public_key: bytes | memoryview) -> OwnerLibrary: ...

    def evaluator(self, parameters: Parameters) -> Evaluator: ...

    def moduli(self, parameters: Parameters) -> list[int]:
        """The primes of a fresh ciphertext as really built: first prime, then the others; the last is dropped first."""

    def describe(self, parameters: Parameters) -> dict[str, Any]:
        """Of the context really built: ``ring_dimension``, ``log2_qp``, ``moduli_bits``, ``special_moduli_bits``,
        ``secret`` and ``error_stddev``, for the record and for `backends.security`."""
