"""CKKS on plain NumPy vectors: the reference executor of plans, and the smallest example of a `Library`.

Given `noise_of`, a ring dimension, it adds to every operation the error that CKKS adds there, as independent Gaussians of
the standard deviation that the literature gives for ternary secrets (Costache, Curtis, Hales, Murphy, Ogilvie, Player, "On
the precision loss in approximate homomorphic encryption", SAC 2023, section 3), which is how the planner chooses the
moduli. It encrypts nothing.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.slots.library import BOOTSTRAP_LEVELS, KeyRequest, Library, Parameters

ERROR_STDDEV = 3.2
ROUNDING_STDDEV = 1 / np.sqrt(12)
BOOTSTRAP_STDDEV = 3e-5  # measured, OpenFHE with scales of 53 bits below a first prime of 60


@dataclass(frozen=True)
class Vector:
    """A "ciphertext": slot values, their scale, and the moduli left."""

    values: np.ndarray
    scale: float
    level: int


class Simulator:
    """`Library`, `ClientLibrary` and `Evaluator` in one."""

    name = "simulator"
    first_is_largest = False
    switching_bias = 0.0

    def __init__(self, noise_of: int = 0, library: Library | None = None, switching_bias: float = 0.0) -> None:
        """noise_of: ring dimension. library: whose public-key encryption is simulated. switching_bias: see `Library`."""
        self._switching_bias = switching_bias
        self._noise_of, self._random = noise_of, np.random.default_rng(0)
        self._library = library or self
        self._keys: set[int] = set()
        self._stacked: tuple[Sequence[Vector], np.ndarray] = (), np.zeros(0)
        self.counts: dict[str, int] = {}

    # Library
    def admissible(self, parameters: Parameters) -> bool:
        return True

    def client(self, parameters: Parameters) -> Simulator:
        self._parameters = parameters
        return self

    def owner(self, parameters: Parameters, public_key: bytes | memoryview) -> Simulator:
        return self.client(parameters)

    def evaluator(self, parameters: Parameters) -> Simulator:
        return self.client(parameters)

    def public_stddev(self, ring_dimension: int, level: int) -> float:
        return ERROR_STDDEV

    def moduli(self, parameters: Parameters) -> list[int]:
        return [2**parameters.first_bits] + [2**parameters.rescale_bits] * parameters.levels

    def describe(self, parameters: Parameters) -> dict[str, Any]:
        return {"ring_dimension": parameters.ring_dimension, "log2_qp": 0.0}

    # Client
    def keygen(self, request: KeyRequest) -> list[bytes]:
        self._keys = set(request.rotations)
        return []

    def public_key(self) -> bytes:
        return b"no key"

    def encrypt(self, vector: np.ndarray, scale: float) -> Vector:
        return Vector(self._noisy(self._rounded(vector, scale), scale, ERROR_STDDEV), scale, 0)

    def decrypt(self, cipher: Vector, scale: float) -> np.ndarray:
        return cipher.values.astype(np.complex128)

    # Owner
    def encrypt_weight(self, vector: np.ndarray, scale: float, level: int) -> Vector:
        stddev = self._library.public_stddev(self._noise_of, level)
        return Vector(self._noisy(self._rounded(np.asarray(vector), scale), scale, stddev), scale, level)

    # Both
    def serialise(self, cipher: Vector) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, values=cipher.values, scale=cipher.scale, level=cipher.level)
        return buffer.getvalue()

    def deserialise(self, data: bytes | memoryview, level: int | None = None) -> Vector:
        with np.load(io.BytesIO(data)) as file:
            return Vector(file["values"], float(file["scale"]), int(file["level"]))

    # Server
    def load_keys(self, parts: Sequence[bytes | memoryview]) -> None:
        pass

    def encode(self, vector: np.ndarray, scale: float, level: int) -> Vector:
        return Vector(self._rounded(np.asarray(vector), scale), scale, level)

    def add(self, a: Vector, b: Vector) -> Vector:
        assert abs(a.scale / b.scale - 1) < 1e-9 and a.level == b.level, "a plan adds values of different scales"
        return self._made("add", a.values + b.values, a.scale, a.level)

    def sub(self, a: Vector, b: Vector) -> Vector:
        return self._made("add", a.values - b.values, a.scale, a.level)

    def add_plain(self, a: Vector, p: Vector) -> Vector:
        assert abs(a.scale / p.scale - 1) < 1e-9 and a.level == p.level, "a plan adds values of different scales"
        return self._made("add_plain", a.values + p.values, a.scale, a.level)

    def dot(self, ciphers: Sequence[Vector], plains: Sequence[Vector]) -> Vector:
        self._count("multiply_plain", len(ciphers))
        self._count("add", len(ciphers) - 1)
        values = sum(c.values * p.values for c, p in zip(ciphers, plains, strict=True))
        return Vector(values, ciphers[0].scale * plains[0].scale, ciphers[0].level)

    def dot_ciphers(self, ciphers: Sequence[Vector], weights: Sequence[Vector]) -> Vector:
        self._count("multiply", len(ciphers))
        self._count("add", len(ciphers) - 1)
        assert all(c.level == w.level for c, w in zip(ciphers, weights)), "a plan multiplies values of different levels"
        values = sum(c.values * w.values for c, w in zip(ciphers, weights, strict=True))
        return Vector(values, ciphers[0].scale * weights[0].scale, ciphers[0].level)

    def weighted_sum(self, ciphers: Sequence[Vector], weights: Sequence[float], scale: float, level: int) -> Vector:
        self._count("multiply_scalar", np.count_nonzero(weights))
        self._count("add", np.count_nonzero(weights) - 1)
        rounded = np.round(np.asarray(weights) * scale) / scale if self._noise_of else np.asarray(weights)
        if self._stacked[0] is not ciphers:  # the sums of a layer are all over the same ciphertexts
            self._stacked = ciphers, np.array([c.values for c in ciphers])
        return Vector(rounded @ self._stacked[1], ciphers[0].scale * scale, level)

    def square(self, a: Vector) -> Vector:
        return self._made("square", a.values**2, a.scale**2, a.level)

    def relinearise(self, a: Vector) -> Vector:
        return self._made("relinearise", self._switched(a), a.scale, a.level)

    def rescale(self, a: Vector) -> Vector:
        moduli = self.moduli(self._parameters)
        scale = a.scale / moduli[len(moduli) - 1 - a.level]
        return self._made("rescale", self._noisy(a.values, scale, self._rounding), scale, a.level + 1)

    def mod_switch(self, a: Vector, primes: int) -> Vector:
        return self._made("mod_switch", a.values, a.scale, a.level + primes)

    def conjugate(self, a: Vector) -> Vector:
        return self._made("conjugate", self._switched(a).conj(), a.scale, a.level)

    def rotate_many(self, a: Vector, steps: Sequence[int]) -> list[Vector]:
        return [self._rotate(a, step) for step in steps]

    def rotate_sum(self, pairs: Sequence[tuple[Vector, int]]) -> Vector:
        self._count("add", len(pairs) - 1)
        first = pairs[0][0]
        return Vector(functools.reduce(np.add, (self._rotate(a, s).values for a, s in pairs)), first.scale, first.level)

    def bootstrap(self, a: Vector) -> Vector:
        period = self._parameters.bootstrap_slots
        assert a.level < self._parameters.levels, "a plan bootstraps a ciphertext of one prime"
        assert np.allclose(a.values, np.roll(a.values, period), atol=0.1), "a plan bootstraps what has no period"
        stddev = BOOTSTRAP_STDDEV if self._noise_of else 0.0
        error = self._random.normal(scale=stddev, size=(period, 2)) @ np.array([1, 1j])
        return self._made("bootstrap", a.values + np.tile(error, len(a.values) // period), a.scale, BOOTSTRAP_LEVELS)

    # -- noise and counts ------------------------------------------------------------------------------------------

    def _rotate(self, a: Vector, step: int) -> Vector:
        if step == 0:
            return a
        assert step in self._keys or not self._keys, f"the plan did not ask for the key of rotation {step}"
        return self._made("rotate", np.roll(self._switched(a), -step), a.scale, a.level)

    def _made(self, operation: str, values: np.ndarray, scale: float, level: int) -> Vector:
        self._count(operation, 1)
        return Vector(values, scale, level)

    def _count(self, operation: str, times: int) -> None:
        self.counts[operation] = self.counts.get(operation, 0) + times

    @property
    def _rounding(self) -> float:
        """Standard deviation of a coefficient of the rounding error (1 + s)·e of a division, s ternary."""
        return float(np.sqrt((1 + 2 * self._noise_of / 3) / 12))

    def _switched(self, a: Vector) -> np.ndarray:
        """Key switching multiplies a digit for each prime by a fresh error, and ends with a division by the special prime
        and its rounding."""
        parameters = self._parameters
        digits = self.moduli(parameters)[: parameters.levels + 1 - a.level]
        # a digit of several primes has special primes of its size
        ratios = (
            [digit / 2.0**parameters.special_bits for digit in digits] if not parameters.digits else [1.0] * len(digits)
        )
        errors = sum(ratio**2 for ratio in ratios) * self._noise_of / 12
        noisy = self._noisy(a.values, a.scale, math.hypot(self._rounding, ERROR_STDDEV * math.sqrt(errors)))
        return noisy + _biased(len(noisy), self._switching_bias) / a.scale if self._switching_bias else noisy

    def _rounded(self, values: np.ndarray, scale: float) -> np.ndarray:
        """Encoding, exactly: independent errors would be too good for a vector with few values, all coefficients of whose
        polynomial may round to zero, and too bad for one with a period, whose polynomial has few coefficients."""
        if not self._noise_of:
            return values
        powers, root = _embedding(len(values))
        evaluations = np.zeros(2 * len(values), np.complex128)
        evaluations[powers], evaluations[-1 - powers] = values, np.conj(values)
        coefficients = np.round((np.fft.fft(evaluations) / root).real * (scale / len(evaluations)))
        rounded = (np.fft.ifft(coefficients * root)[powers]) * (len(evaluations) / scale)
        return rounded if np.iscomplexobj(values) else rounded.real

    def _noisy(self, values: np.ndarray, scale: float, coefficient_stddev: float) -> np.ndarray:
        """A slot is a sum of N coefficients times roots of unity: half of the variance is in its real part."""
        if not self._noise_of:
            return values
        stddev = coefficient_stddev * np.sqrt(self._noise_of / 2) / scale
        noise = self._random.normal(scale=stddev, size=values.shape)
        return (
            values
            + noise
            + (1j * self._random.normal(scale=stddev, size=values.shape) if np.iscomplexobj(values) else 0)
        )


@functools.lru_cache(maxsize=4)
def _biased(slots: int, bias: float) -> np.ndarray:
    """What a mean rounding error of all coefficients of the second polynomial makes of the slots.

    Σ bias·X^i = 2·bias/(1 − X) times the secret, the parts of whose value at a root have a variance of N/3: three standard
    deviations of it. It stands almost alone in slot 0, whose root is next to 1.
    """
    powers, _ = _embedding(slots)
    root = np.exp(1j * np.pi * (2 * powers + 1) / (2 * slots))
    return np.abs(2 * bias / (1 - root)) * 3 * np.sqrt(2 * slots / 3)


@functools.lru_cache(maxsize=4)
def _embedding(slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Slot j is the polynomial at the root ζ^(5^j): the positions (5^j − 1)/2 among its odd powers; and ζ^i for the
    coefficients i. ζ = exp(πi / 2·slots) (Cheon, Kim, Kim, Song, ASIACRYPT 2017, section 3.2)."""
    powers, power = np.zeros(slots, np.int64), 1
    for j in range(slots):
        powers[j], power = (power - 1) // 2, power * 5 % (4 * slots)
    return powers, np.exp(1j * np.pi * np.arange(2 * slots) / (2 * slots))
