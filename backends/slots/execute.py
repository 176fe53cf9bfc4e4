"""Runs a plan on a library: the client's packing on both ends, the server's program in between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from backends.slots.library import Cipher, ClientLibrary, Evaluator, Plain
from backends.slots.plan import Packed, Plan, Scalar

# -- client ------------------------------------------------------------------------------------------------------------


def pack(plan: Plan, images: np.ndarray) -> list[np.ndarray]:
    """images: (1 … plan.batch, inputs) → one complex or real vector of slots for each ciphertext."""
    slots = plan.parameters.slots
    if not plan.input.batched:
        return [_gather(images[0], real, imaginary) for real, imaginary in zip(plan.input.real, plan.input.imaginary)]
    vectors = np.zeros((images.shape[1], slots), np.complex128)
    vectors[:, : len(images[:slots])] = images[:slots].T
    vectors[:, : len(images[slots:])] += 1j * images[slots:].T
    return list(vectors)


def _gather(image: np.ndarray, real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    image = np.append(image.astype(np.float64), 0.0)  # index −1 reads this zero
    return image[real] + 1j * image[imaginary] if (imaginary >= 0).any() else image[real]


def unpack(plan: Plan, vectors: list[np.ndarray], images: int) -> np.ndarray:
    """Decrypted slots → logits (images, outputs)."""
    if not plan.input.batched:
        return vectors[0].real[np.array(plan.output_slots)].sum(axis=1)[None] * plan.output_scale
    first, second = np.split(np.real(vectors), 2)  # outputs of the images in the real, then in the imaginary parts
    return np.concatenate([first, second], axis=1)[:, :images].T * plan.output_scale


def encrypt(plan: Plan, client: ClientLibrary, images: np.ndarray) -> list[Cipher]:
    scale = 2.0**plan.parameters.input_scale_bits
    return [client.encrypt(vector, scale) for vector in pack(plan, images)]


def decrypt(plan: Plan, client: ClientLibrary, ciphers: list[Cipher], scale: float, images: int) -> np.ndarray:
    return unpack(plan, [client.decrypt(cipher, scale) for cipher in ciphers], images)


# -- server ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Terms of one output that share a giant step: positions in the list of rotated inputs, and their diagonals."""

    giant: int
    inputs: list[int]
    weights: list[Plain | Cipher]


@dataclass(frozen=True)
class _Loaded:
    """The weights of a step; of an image-in-slot step only the biases."""

    biases: list[Plain | Cipher]
    babies: list[tuple[int, list[int]]] = field(default_factory=list)  # of each input: the steps that are needed
    groups: list[list[_Group]] = field(default_factory=list)  # for each output


class Program:
    """A plan loaded into an evaluator, weights encoded before any request.

    weights: ciphertexts of ``plan.weights`` in their order, for a plan whose model is encrypted.
    """

    def __init__(
        self, plan: Plan, evaluator: Evaluator, moduli: list[int], weights: Iterable[Cipher] | None = None
    ) -> None:
        self.plan = plan
        self.evaluator = evaluator
        self.scales = plan.scales(moduli)
        if weights is None:
            weights = (evaluator.encode(w.vector, w.scale, w.level) for w in plan.weights(moduli))
        stream = iter(weights)
        self._steps = [self._load(step, stream) for step in plan.steps]

    @staticmethod
    def _load(step: Packed | Scalar, weights: Iterator[Plain | Cipher]) -> _Loaded:
        if isinstance(step, Scalar):
            return _Loaded(list(islice(weights, len(step.bias))))
        positions: dict[tuple[int, int], int] = {}
        babies: dict[int, list[int]] = defaultdict(list)
        for key in sorted({(t.input, t.baby) for t in step.terms}):
            positions[key] = len(positions)
            babies[key[0]].append(key[1])
        groups: list[dict[int, _Group]] = [{} for _ in range(step.outputs)]
        for t, weight in zip(step.terms, islice(weights, len(step.terms))):
            group = groups[t.output].setdefault(t.giant, _Group(t.giant, [], []))
            group.inputs.append(positions[t.input, t.baby])
            group.weights.append(weight)
        biases = list(islice(weights, step.outputs))
        return _Loaded(biases, list(babies.items()), [list(g.values()) for g in groups])

    def run(self, ciphers: list[Cipher]) -> list[Cipher]:
        """Ciphertexts of the request → ciphertexts of the response."""
        for index in range(len(self._steps)):
            ciphers = self.step(index, ciphers)
        return ciphers

    def step(self, index: int, ciphers: list[Cipher]) -> list[Cipher]:
        """One affine map, with the squaring before it."""
        if index:
            ciphers = [self.square(cipher) for cipher in ciphers]
        step, loaded = self.plan.steps[index], self._steps[index]
        return (
            self._scalar(index, step, loaded, ciphers)
            if isinstance(step, Scalar)
            else self._packed(step, loaded, ciphers)
        )

    def square(self, cipher: Cipher) -> Cipher:
        """Relinearised first: rescaling three polynomials would multiply its rounding error by the square of the key."""
        e = self.evaluator
        cipher = e.relinearise(e.square(cipher))
        for _ in range(self.plan.parameters.primes_per_square):
            cipher = e.rescale(cipher)
        return cipher

    def _packed(self, step: Packed, loaded: _Loaded, ciphers: list[Cipher]) -> list[Cipher]:
        e = self.evaluator
        dot, add = (self._dot_ciphers, e.add) if self.plan.encrypted else (e.dot, e.add_plain)
        rotated = [c for index, steps in loaded.babies for c in e.rotate_many(ciphers[index], steps)]
        results = []
        for groups, bias in zip(loaded.groups, loaded.biases):
            sums = [(dot([rotated[i] for i in g.inputs], g.weights), g.giant) for g in groups]
            y = sums[0][0] if len(sums) == 1 and sums[0][1] == 0 else e.rotate_sum(sums)
            for fold in step.folds:
                y = e.rotate_sum([(y, 0), *((y, s) for s in fold)])
            if step.real_part:
                y = e.add(y, e.conjugate(y))
            results.append(add(y, bias))
        return results

    def _dot_ciphers(self, ciphers: list[Cipher], weights: list[Cipher]) -> Cipher:
        """One relinearisation for a whole sum of products."""
        return self.evaluator.relinearise(self.evaluator.dot_ciphers(ciphers, weights))

    def _scalar(self, index: int, step: Scalar, loaded: _Loaded, ciphers: list[Cipher]) -> list[Cipher]:
        e = self.evaluator
        scale, level = 2.0 ** self.plan.parameters.weight_scale_bits[index], self.plan.level(index)

        def affine(inputs: list[Cipher], sign: float) -> Iterator[Cipher]:
            for weights, bias in zip(step.weight, loaded.biases):
                yield e.add_plain(e.weighted_sum(inputs, sign * weights, scale, level), bias)

        if step.split:
            first, second = [], []
            for y in affine(ciphers, 1.0):  # one after another: a layer may be gigabytes
                conjugate = e.conjugate(y)
                first.append(e.add(y, conjugate))
                second.append(e.sub(y, conjugate))
            return first + second
        half = len(ciphers) // 2
        return [*affine(ciphers[:half], 1.0), *affine(ciphers[half:], step.second_sign)]
