"""A plan: everything that client and server do to a network, as data.

Server: for each step, `Packed` (diagonals and rotations) or `Scalar` (image-in-slot) evaluates an affine map; between
two steps every ciphertext is squared, relinearised and rescaled. All arrays are in slots; rotation by k moves slot
t + k to slot t.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from backends.slots.library import KeyRequest, Parameters


@dataclass(frozen=True)
class Term:
    """One product: ciphertext `input` rotated by `baby` + `giant`, times ``diagonals[diagonal]``."""

    output: int
    input: int
    baby: int
    giant: int
    diagonal: int


@dataclass(frozen=True, eq=False)
class Packed:
    """``y_o = fold(Σ_g rot_g(Σ rot_b(x_i) ⊙ rot_{−g}(d))) + bias_o`` (Halevi–Shoup baby-step giant-step, then
    rotate-and-sum).

    diagonals: (n, slots), each where its product is wanted. folds: groups of rotations; a group adds its rotations of
    the sum to the sum. real_part: adds the conjugate, for inputs that carry two values in a complex slot. bias: (output
    ciphertexts, slots).
    """

    kind: str  # the layout in words, for `bench explain`
    outputs: int
    terms: tuple[Term, ...]
    diagonals: np.ndarray
    folds: tuple[tuple[int, ...], ...]
    bias: np.ndarray
    real_part: bool = False

    @property
    def rotations(self) -> set[int]:
        steps = {s for t in self.terms for s in (t.baby, t.giant)} | {s for group in self.folds for s in group}
        return steps - {0}

    @property
    def conjugates(self) -> bool:
        return self.real_part


@dataclass(frozen=True, eq=False)
class Scalar:
    """``y_o = Σ_i weight[o, i] · x_i + bias[o]`` with one image in each slot and one value in each ciphertext.

    The first of these steps (`split`) reads ciphertexts that carry a second image in their imaginary part. It makes
    y + conj(y) = u and y − conj(y) = i·v, all u before all i·v; later steps work on the two halves alike. As
    (i·v)² = −v², the step after it has `second_sign` −1.
    """

    kind: str
    weight: np.ndarray
    bias: np.ndarray
    split: bool = False
    second_sign: float = 1.0

    rotations = frozenset[int]()

    @property
    def conjugates(self) -> bool:
        return self.split


Step = Packed | Scalar


@dataclass(frozen=True, eq=False)
class Input:
    """How the client packs images: slot s of ciphertext c holds x[real[c, s]] + i·x[imaginary[c, s]], 0 for −1.

    batched: one image in each slot instead (two with the imaginary part); ciphertext c holds input c of all images.
    """

    kind: str
    batched: bool = False
    real: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    imaginary: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))


@dataclass(frozen=True, eq=False)
class Weight:
    """A vector of slots, and the scale and level at which the server needs it."""

    vector: np.ndarray
    scale: float
    level: int


@dataclass(frozen=True, eq=False)
class Plan:
    """parameters, input packing, one step for each affine map, and where the logits are: logit k is the sum of the slots
    ``output_slots[k]`` of the response.

    encrypted: whether the server gets the weights as ciphertexts (and its artifact none).
    """

    parameters: Parameters
    input: Input
    steps: tuple[Step, ...]
    output_slots: tuple[tuple[int, ...], ...]
    output_scale: float
    encrypted: bool = False

    @property
    def batch(self) -> int:
        return 2 * self.parameters.slots if self.input.batched else 1

    @property
    def keys(self) -> KeyRequest:
        return KeyRequest(
            rotations=tuple(sorted(set[int]().union(*(step.rotations for step in self.steps)))),
            conjugation=any(step.conjugates for step in self.steps),
            relinearisation=len(self.steps) > 1 or self.encrypted,
            public=self.encrypted,
        )

    def shares(self, count: int) -> list[Plan]:
        """Plans whose responses add up to this one's, each with part of the units of the last hidden layer and all layers
        before it; this one alone if it rotates, for which every share would have to do almost everything."""
        if len(self.steps) < 2 or not all(isinstance(step, Scalar) for step in self.steps):
            return [self]
        *before, hidden, last = self.steps
        plans = []
        for index in range(min(count, len(hidden.weight))):
            rows = slice(index, None, count)
            part = dataclasses.replace(hidden, weight=hidden.weight[rows], bias=hidden.bias[rows])
            bias = last.bias if index == 0 else np.zeros_like(last.bias)
            end = dataclasses.replace(last, weight=last.weight[:, rows], bias=bias)
            plans.append(dataclasses.replace(self, steps=(*before, part, end)))
        return plans

    def level(self, step: int) -> int:
        """The number of primes already dropped when a step is made."""
        return step * self.parameters.primes_per_square

    def scales(self, moduli: list[int]) -> list[float]:
        """Exact scale before each step, and after the last one."""
        weights = self.parameters.weight_scale_bits
        scale = 2.0**self.parameters.input_scale_bits
        scales = [scale]
        for index, bits in enumerate(weights):
            scale *= 2.0**bits
            if index < len(weights) - 1:
                top = len(moduli) - self.level(index)
                scale = scale**2 / math.prod(moduli[top - self.parameters.primes_per_square : top])
            scales.append(scale)
        return scales

    def weights(self, moduli: list[int]) -> Iterator[Weight]:
        """All vectors to encode or to encrypt, in the order in which `execute.Program` takes them: for each step the
        diagonals of its terms, then the biases. Of an image-in-slot step only the biases: its weights are scalars."""
        scales = self.scales(moduli)
        for index, step in enumerate(self.steps):
            scale = 2.0 ** self.parameters.weight_scale_bits[index]
            after, level = scales[index] * scale, self.level(index)
            if isinstance(step, Packed):
                for term in step.terms:
                    yield Weight(np.roll(step.diagonals[term.diagonal], term.giant), scale, level)
                biases = step.bias
            else:  # the same bias for the two images of a slot, halved as the weights
                both = 0.5 + 0.5j if step.split else 1.0
                biases = [np.full(self.parameters.slots, bias * both) for bias in step.bias]
            for bias in biases:
                yield Weight(bias, after, level)

    # -- the two artifacts -----------------------------------------------------------------------------------------

    def client_bytes(self) -> bytes:
        """Without the weights: what the client needs to encrypt and decrypt."""
        return _dump(dataclasses.replace(self, steps=()), self.keys)

    def server_bytes(self) -> bytes:
        """Without the packing, but for the number of ciphertexts; without weights if they are to be encrypted."""
        empty = self.input.real[:, :0]
        steps = self.steps
        if self.encrypted:
            steps = tuple(dataclasses.replace(s, diagonals=s.diagonals[:, :0], bias=s.bias[:, :0]) for s in steps)
        request = dataclasses.replace(self.input, real=empty, imaginary=empty)
        return _dump(dataclasses.replace(self, input=request, steps=steps), self.keys)

    @staticmethod
    def from_bytes(data: bytes) -> tuple[Plan, KeyRequest]:
        """The plan and the keys that the whole of it needs."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        header = json.loads(values.pop("header").tobytes())
        parameters = header["parameters"] | {"weight_scale_bits": tuple(header["parameters"]["weight_scale_bits"])}
        steps: list[Step] = []
        for index, spec in enumerate(header["steps"]):
            own = {n.split(".", 1)[1]: a for n, a in values.items() if n.startswith(f"{index}.")}
            if spec.pop("type") == "scalar":
                steps.append(Scalar(**spec, **own))
                continue
            terms = tuple(Term(*map(int, row)) for row in own.pop("terms"))
            steps.append(Packed(**spec | {"folds": tuple(map(tuple, spec["folds"]))}, terms=terms, **own))
        plan = Plan(
            parameters=Parameters(**parameters),
            input=Input(**header["input"], real=values["real"], imaginary=values["imaginary"]),
            steps=tuple(steps),
            output_slots=tuple(map(tuple, header["output_slots"])),
            output_scale=header["output_scale"],
            encrypted=header["encrypted"],
        )
        return plan, KeyRequest(**header["keys"] | {"rotations": tuple(header["keys"]["rotations"])})


def _dump(plan: Plan, keys: KeyRequest) -> bytes:
    arrays = {"real": plan.input.real, "imaginary": plan.input.imaginary}
    steps = []
    for index, step in enumerate(plan.steps):
        values = {f.name: getattr(step, f.name) for f in dataclasses.fields(step)}
        if isinstance(step, Packed):
            values["terms"] = np.array([dataclasses.astuple(t) for t in step.terms], np.int32).reshape(-1, 5)
        arrays |= {f"{index}.{n}": v for n, v in values.items() if isinstance(v, np.ndarray)}
        plain = {n: v for n, v in values.items() if not isinstance(v, np.ndarray)}
        steps.append({"type": "packed" if isinstance(step, Packed) else "scalar"} | plain)
    header = {
        "parameters": dataclasses.asdict(plan.parameters),
        "input": {"kind": plan.input.kind, "batched": plan.input.batched},
        "steps": steps,
        "output_slots": plan.output_slots,
        "output_scale": plan.output_scale,
        "encrypted": plan.encrypted,
        "keys": dataclasses.asdict(keys),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return buffer.getvalue()
