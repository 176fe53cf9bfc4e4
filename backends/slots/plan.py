"""A plan: everything that client and server do to a network, as data.

Value 0 is the request; step i makes value i + 1 from earlier ones. `Packed` (diagonals and rotations) or `Scalar`
(image-in-slot) evaluates an affine map, `Product` multiplies two affine values, relinearises and rescales, `Carry` only
rescales. All arrays are in slots; rotation by k moves slot t + k to slot t.

Every value has a level, the number of products before it. A product at level ℓ leaves scale s_ℓ, an affine map there
scale s_ℓ · 2^w_ℓ, whatever it reads: a value from a shallower level is switched down to the fewer primes (an operation of
its own), and its weights are encoded at the scale that brings the sum to the same one. So values that meet have equal level
and scale.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backends.slots.library import KeyRequest, Parameters


@dataclass(frozen=True)
class Term:
    """One product: ciphertext `input` rotated by `baby` + `giant`, times ``diagonals[diagonal]``."""

    input: int
    baby: int
    giant: int
    diagonal: int


@dataclass(frozen=True, eq=False)
class Kernel:
    """``fold(Σ_g rot_g(Σ rot_b(x_i) ⊙ rot_{−g}(d)))`` of one value (Halevi–Shoup baby-step giant-step, then
    rotate-and-sum).

    source: the value whose ciphertexts are x. diagonals: (n, slots), each where its product is wanted. folds: groups of
    rotations; a group adds its rotations of the sum to the sum. real_part: adds the conjugate, for inputs that carry two
    values in a complex slot.
    """

    kind: str  # the layout in words, for `bench explain`
    source: int
    terms: tuple[Term, ...]
    diagonals: np.ndarray
    folds: tuple[tuple[int, ...], ...]
    real_part: bool = False

    @property
    def rotations(self) -> set[int]:
        steps = {s for t in self.terms for s in (t.baby, t.giant)} | {s for group in self.folds for s in group}
        return steps - {0}


@dataclass(frozen=True, eq=False)
class Packed:
    """The sum of kernels, and a bias (slots,)."""

    name: str
    kernels: tuple[Kernel, ...]
    bias: np.ndarray

    @property
    def sources(self) -> tuple[int, ...]:
        return tuple(kernel.source for kernel in self.kernels)

    @property
    def kind(self) -> str:
        return " + ".join(kernel.kind for kernel in self.kernels)

    @property
    def terms(self) -> tuple[Term, ...]:
        return tuple(term for kernel in self.kernels for term in kernel.terms)

    @property
    def rotations(self) -> set[int]:
        return set().union(*(kernel.rotations for kernel in self.kernels))

    @property
    def conjugates(self) -> bool:
        return any(kernel.real_part for kernel in self.kernels)


@dataclass(frozen=True, eq=False)
class Scalar:
    """``y_o = Σ_k Σ_i weights[k][o, i] · x_(sources[k], i) + bias[o]`` with one image in each slot and one number in each
    ciphertext.

    A step that splits reads ciphertexts that carry a second image in their imaginary part. It makes y + conj(y) = u and
    y − conj(y) = i·v, all u before all i·v; later steps work on the two halves alike. As (i·v)² = −v², a step that reads
    such products has the sign −1 for their second half.
    """

    name: str
    kind: str
    sources: tuple[int, ...]
    weights: tuple[np.ndarray, ...]
    bias: np.ndarray
    split: bool = False
    signs: tuple[float, ...] = ()

    rotations = frozenset[int]()

    @property
    def conjugates(self) -> bool:
        return self.split


@dataclass(frozen=True)
class Product:
    """postponed: the affine map that reads it, and it alone, relinearises and rescales its sums instead of all its terms.
    Until then its ciphertexts have three polynomials, the primes of its operands, and their scale to be divided."""

    name: str
    left: int
    right: int
    postponed: bool = False

    kind = "product"
    rotations = frozenset[int]()
    conjugates = False

    @property
    def square(self) -> bool:
        return self.left == self.right

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.left,) if self.square else (self.left, self.right)


@dataclass(frozen=True)
class Carry:
    name: str
    source: int

    kind = "times one"
    rotations = frozenset[int]()
    conjugates = False

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.source,)


Affine = Packed | Scalar
Step = Packed | Scalar | Product | Carry
STEPS: dict[str, type] = {c.__name__: c for c in (Packed, Scalar, Product, Carry)}


@dataclass(frozen=True, eq=False)
class Input:
    """How the client packs images: slot s of ciphertext c holds x[real[c, s]] + i·x[imaginary[c, s]], 0 for −1.

    batched: one image in each slot instead, ciphertext c holds input c of all images; paired: and a second one in its
    imaginary part.
    """

    kind: str
    batched: bool = False
    real: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    imaginary: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    paired: bool = False


@dataclass(frozen=True, eq=False)
class Weight:
    """A vector of slots, and the scale and level at which the server needs it."""

    vector: np.ndarray
    scale: float
    level: int


@dataclass(frozen=True, eq=False)
class Plan:
    """parameters, input packing, the steps, the level of each value in products, and where the logits are: logit k is the
    sum of the slots ``output_slots[k]`` of the response.

    model_encrypted: whether the server gets the weights as ciphertexts (and its artifact none).
    """

    parameters: Parameters
    input: Input
    steps: tuple[Step, ...]
    levels: tuple[int, ...]
    output_slots: tuple[tuple[int, ...], ...]
    output_scale: float
    model_encrypted: bool = False

    @property
    def batch(self) -> int:
        return (1 + self.input.paired) * self.parameters.slots if self.input.batched else 1

    @property
    def affines(self) -> tuple[Affine, ...]:
        return tuple(step for step in self.steps if isinstance(step, Packed | Scalar))

    @property
    def keys(self) -> KeyRequest:
        return KeyRequest(
            rotations=tuple(sorted(set[int]().union(*(step.rotations for step in self.steps)))),
            conjugation=any(step.conjugates for step in self.steps),
            relinearisation=any(isinstance(step, Product) for step in self.steps) or self.model_encrypted,
            public=self.model_encrypted,
        )

    def dropped(self, value: int) -> int:
        """The number of primes that a value has dropped."""
        return (self.levels[value] - self.postponed(value)) * self.parameters.primes_per_square

    def work(self, value: int) -> int:
        """The number of primes that have been dropped when an affine map is summed; it drops more if it has to rescale the
        products that it read."""
        postponed = (source for source in self.steps[value - 1].sources if self.postponed(source))
        return self.dropped(next(postponed, value))

    def postponed(self, value: int) -> bool:
        step = self.steps[value - 1] if value > 0 else None
        return isinstance(step, Product) and step.postponed

    def scales(self, moduli: list[int]) -> list[float]:
        """Exact scale of every value."""
        products, affines = self._by_level(moduli)
        kinds = [products, *(affines if isinstance(step, Packed | Scalar) else products for step in self.steps)]
        return [of[level] for of, level in zip(kinds, self.levels)]

    def response_scale(self, moduli: list[int]) -> float:
        """Of the logits, an affine map at the last level."""
        return self._by_level(moduli)[1][-1]

    def _by_level(self, moduli: list[int]) -> tuple[list[float], list[float]]:
        """Scales of the products and of the affine values of each level."""
        bits, per_square = self.parameters.weight_scale_bits, self.parameters.primes_per_square
        products = [2.0**self.parameters.input_scale_bits]
        for level, weight_bits in enumerate(bits[:-1]):
            top = len(moduli) - level * per_square
            products.append((products[level] * 2.0**weight_bits) ** 2 / math.prod(moduli[top - per_square : top]))
        return products, [scale * 2.0**weight_bits for scale, weight_bits in zip(products, bits)]

    def weights(self, moduli: list[int]) -> Iterator[Weight]:
        """All vectors to encode or to encrypt, in the order in which `execute.Program` takes them: for each affine step the
        diagonals of its kernels, then the biases. Of an image-in-slot step only the biases: its weights are scalars."""
        scales = self.scales(moduli)
        for value, step in enumerate(self.steps, 1):
            after, level = scales[value], self.dropped(value)
            if isinstance(step, Packed):
                for kernel in step.kernels:
                    for term in kernel.terms:
                        vector = np.roll(kernel.diagonals[term.diagonal], term.giant)
                        yield Weight(vector, after / scales[kernel.source], level)
                yield Weight(step.bias, after, level)
            elif isinstance(step, Scalar):  # the same bias for the two images of a slot, halved as the weights
                both = 0.5 + 0.5j if step.split else 1.0
                for bias in step.bias:
                    yield Weight(np.full(self.parameters.slots, bias * both), after, level)

    # -- the two artifacts -----------------------------------------------------------------------------------------

    def client_bytes(self) -> bytes:
        """Without the weights: what the client needs to encrypt and decrypt."""
        return _dump(dataclasses.replace(self, steps=()), self.keys)

    def server_bytes(self) -> bytes:
        """Without the packing, but for the number of ciphertexts; without weights if they are to be encrypted."""
        empty = self.input.real[:, :0]
        steps = self.steps
        if self.model_encrypted:
            steps = tuple(_without_weights(step) if isinstance(step, Packed) else step for step in steps)
        request = dataclasses.replace(self.input, real=empty, imaginary=empty)
        return _dump(dataclasses.replace(self, input=request, steps=steps), self.keys)

    @staticmethod
    def from_bytes(data: bytes) -> tuple[Plan, KeyRequest]:
        """The plan and the keys that the whole of it needs."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        header = json.loads(values.pop("header").tobytes())
        parameters = header["parameters"] | {"weight_scale_bits": tuple(header["parameters"]["weight_scale_bits"])}
        plan = Plan(
            parameters=Parameters(**parameters),
            input=Input(**header["input"], real=values["real"], imaginary=values["imaginary"]),
            steps=tuple(_step(spec, f"{index}.", values) for index, spec in enumerate(header["steps"])),
            levels=tuple(header["levels"]),
            output_slots=tuple(map(tuple, header["output_slots"])),
            output_scale=header["output_scale"],
            model_encrypted=header["model_encrypted"],
        )
        keys = KeyRequest(**header["keys"] | {"rotations": tuple(header["keys"]["rotations"])})
        return plan, keys


def _without_weights(step: Packed) -> Packed:
    kernels = tuple(dataclasses.replace(kernel, diagonals=kernel.diagonals[:, :0]) for kernel in step.kernels)
    return dataclasses.replace(step, kernels=kernels, bias=step.bias[:0])


def _dump(plan: Plan, keys: KeyRequest) -> bytes:
    arrays = {"real": plan.input.real, "imaginary": plan.input.imaginary}
    header = {
        "parameters": dataclasses.asdict(plan.parameters),
        "input": {name: getattr(plan.input, name) for name in ("kind", "batched", "paired")},
        "steps": [_described(step, f"{index}.", arrays) for index, step in enumerate(plan.steps)],
        "levels": plan.levels,
        "output_slots": plan.output_slots,
        "output_scale": plan.output_scale,
        "model_encrypted": plan.model_encrypted,
        "keys": dataclasses.asdict(keys),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def _described(step: Step | Kernel, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Plain JSON of a step; its arrays go into `arrays`, their names behind `prefix`."""
    values = {f.name: getattr(step, f.name) for f in dataclasses.fields(step)}
    if isinstance(step, Packed):
        kernels = enumerate(values["kernels"])
        values["kernels"] = [_described(kernel, f"{prefix}{index}.", arrays) for index, kernel in kernels]
    elif isinstance(step, Kernel):
        values["terms"] = np.array([dataclasses.astuple(t) for t in step.terms], np.int32).reshape(-1, 4)
    elif isinstance(step, Scalar):
        values |= {f"weights.{index}": weight for index, weight in enumerate(values.pop("weights"))}
    arrays |= {prefix + name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
    return {"type": type(step).__name__} | plain


def _step(spec: dict[str, Any], prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `_described`."""
    kind = spec.pop("type")
    if kind == "Packed":
        kernels = tuple(_step(kernel, f"{prefix}{i}.", arrays) for i, kernel in enumerate(spec.pop("kernels")))
        return Packed(**spec, kernels=kernels, bias=arrays[f"{prefix}bias"])
    if kind == "Kernel":
        spec["folds"] = tuple(map(tuple, spec["folds"]))
        terms = tuple(Term(*map(int, row)) for row in arrays[f"{prefix}terms"])
        return Kernel(**spec, terms=terms, diagonals=arrays[f"{prefix}diagonals"])
    if kind == "Scalar":
        sources = tuple(spec.pop("sources"))
        weights = tuple(arrays[f"{prefix}weights.{index}"] for index in range(len(sources)))
        signs = tuple(spec.pop("signs"))
        return Scalar(**spec, sources=sources, weights=weights, bias=arrays[f"{prefix}bias"], signs=signs)
    return STEPS[kind](**spec)
