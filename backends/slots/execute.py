"""Runs a plan on a library: the client's packing on both ends, the server's program in between."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

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
        return vectors[0].real[list(plan.output_slots)][None] * plan.output_scale
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
    """Terms of one output that share a giant step: positions in the list of rotated inputs, and encoded diagonals."""

    giant: int
    inputs: list[int]
    plains: list[Plain]


@dataclass(frozen=True)
class _Program:
    """A `Packed` step with every weight encoded at its level and scale."""

    babies: list[tuple[int, list[int]]]  # for each input ciphertext: the steps by which it is needed
    groups: list[list[_Group]]  # for each output
    folds: tuple[tuple[int, ...], ...]
    biases: list[Plain]
    real_part: bool


class Program:
    """A plan loaded into an evaluator: weights are encoded here, before any request."""

    def __init__(self, plan: Plan, evaluator: Evaluator, moduli: list[int]) -> None:
        self.plan = plan
        self.evaluator = evaluator
        self.scales = plan.scales(moduli)
        self._steps = [self._load(level, step) for level, step in enumerate(plan.steps)]

    def _load(self, level: int, step: Packed | Scalar) -> Any:
        encode, weight_scale = self.evaluator.encode, 2.0 ** self.plan.parameters.weight_scale_bits[level]
        scale = self.scales[level] * weight_scale
        if isinstance(step, Scalar):
            both = (
                0.5 + 0.5j if step.split else 1.0
            )  # the same bias for the two images of a slot, halved as the weights
            return [encode(np.full(self.plan.parameters.slots, b * both), scale, level) for b in step.bias]
        diagonals = [encode(d, weight_scale, level) for d in step.diagonals]
        positions: dict[tuple[int, int], int] = {}
        babies: dict[int, list[int]] = defaultdict(list)
        for key in sorted({(t.input, t.baby) for t in step.terms}):
            positions[key] = len(positions)
            babies[key[0]].append(key[1])
        groups: list[dict[int, _Group]] = [{} for _ in range(step.outputs)]
        for t in step.terms:
            group = groups[t.output].setdefault(t.giant, _Group(t.giant, [], []))
            group.inputs.append(positions[t.input, t.baby])
            group.plains.append(diagonals[t.diagonal])
        biases = [encode(b, scale, level) for b in step.bias]
        return _Program(list(babies.items()), [list(g.values()) for g in groups], step.folds, biases, step.real_part)

    def run(self, ciphers: list[Cipher]) -> list[Cipher]:
        """Ciphertexts of the request → ciphertexts of the response."""
        for level in range(len(self._steps)):
            ciphers = self.step(level, ciphers)
        return ciphers

    def step(self, level: int, ciphers: list[Cipher]) -> list[Cipher]:
        """One affine map, with the squaring before it."""
        if level:
            ciphers = [self.square(cipher) for cipher in ciphers]
        return self.affine(level, self.plan.steps[level], self._steps[level], ciphers)

    def square(self, cipher: Cipher) -> Cipher:
        """Relinearised first: rescaling three polynomials would multiply its rounding error by the square of the key."""
        e = self.evaluator
        return e.rescale(e.relinearise(e.square(cipher)))

    def affine(self, level: int, step: Packed | Scalar, program: Any, ciphers: list[Cipher]) -> list[Cipher]:
        if isinstance(step, Scalar):
            return self._scalar(level, step, program, ciphers)
        e = self.evaluator
        rotated = [c for index, steps in program.babies for c in e.rotate_many(ciphers[index], steps)]
        results = []
        for groups, bias in zip(program.groups, program.biases):
            sums = [(e.dot([rotated[i] for i in g.inputs], g.plains), g.giant) for g in groups]
            y = sums[0][0] if len(sums) == 1 and sums[0][1] == 0 else e.rotate_sum(sums)
            for fold in program.folds:
                y = e.rotate_sum([(y, 0), *((y, s) for s in fold)])
            if program.real_part:
                y = e.add(y, e.conjugate(y))
            results.append(e.add_plain(y, bias))
        return results

    def _scalar(self, level: int, step: Scalar, biases: list[Plain], ciphers: list[Cipher]) -> list[Cipher]:
        e = self.evaluator
        scale = 2.0 ** self.plan.parameters.weight_scale_bits[level]

        def affine(inputs: list[Cipher], sign: float) -> list[Cipher]:
            return [
                e.add_plain(e.weighted_sum(inputs, sign * weights, scale, level), bias)
                for weights, bias in zip(step.weight, biases)
            ]

        if step.split:
            sums = affine(ciphers, 1.0)
            conjugates = [e.conjugate(y) for y in sums]
            return [e.add(*pair) for pair in zip(sums, conjugates)] + [e.sub(*pair) for pair in zip(sums, conjugates)]
        half = len(ciphers) // 2
        return affine(ciphers[:half], 1.0) + affine(ciphers[half:], step.second_sign)
