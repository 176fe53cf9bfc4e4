"""The quantised network as a function of encrypted integers, for Concrete to compile.

The client computes the layers up to the first `Quantise` in the clear and sends integers. From there on each linear or
convolutional layer is integer weights times integers, and everything between two of them (bias, activation, requantising)
is one table that a programmable bootstrapping (PBS) looks up. The logits are scaled after decryption.

A `Quantise` that directly follows a linear layer and precedes an activation *rounds the accumulator*: its low bits are
dropped before the PBS, approximately (Concrete's ``round_bit_pattern``), which costs nothing. The PBS then reads a few
bits whatever the bits of inputs and weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from backends.api import BackendError
from models.network import Conv, Flatten, Gemm, Network, Operator, Quantise, describe, operator_of

RELATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Affine:
    """Integer weights. unit: what 1 of the accumulator stands for. rounding: None, or how it is cut before the PBS.

    bias: in units; part of the accumulator if that is rounded, else of the table, or added after decryption.
    """

    layer: Gemm | Conv
    weight: np.ndarray
    bias: np.ndarray
    unit: float
    rounding: Quantise | None

    @property
    def dropped_bits(self) -> int:
        return round(math.log2(self.rounding.scale / self.unit)) if self.rounding else 0

    def accumulate(self, x: Any, convolve: Callable[..., Any]) -> Any:
        """Of clear or encrypted integers; `convolve` does what `fhe.conv` does."""
        if isinstance(self.layer, Gemm):
            y = x @ self.weight.T
        else:
            y = convolve(x, self.weight, pads=self.layer.pads, strides=self.layer.strides, group=self.layer.group)
        return y + np.round(self.bias).astype(np.int64) if self.rounding else y


@dataclass(frozen=True)
class Table:
    """Accumulators (multiples of `unit`) → integers: `layers`, of which the last quantises. One PBS an element."""

    layers: tuple[Operator, ...]
    unit: float
    bias: np.ndarray | float

    def __call__(self, accumulators: np.ndarray) -> np.ndarray:
        x = (accumulators + self.bias) * self.unit
        for layer in self.layers:
            x = layer(x)
        return np.round(x / self.layers[-1].scale).astype(np.int64)  # type: ignore[union-attr]


Step = Affine | Table | Flatten


@dataclass(frozen=True)
class Plan:
    """before: what the client computes in the clear; its integers are multiples of `input_scale`.

    steps: what the server computes; the last one is an `Affine`.
    """

    before: tuple[Operator, ...]
    input_scale: float
    steps: tuple[Step, ...]

    def quantise(self, images: np.ndarray) -> np.ndarray:
        return Ends.of(self).quantise(images)

    @property
    def affines(self) -> list[Affine]:
        return [step for step in self.steps if isinstance(step, Affine)]

    @property
    def parts(self) -> int:
        """Of each logit, see `split`."""
        last = self.affines[-1]
        return len(last.weight) // last.bias.size


@dataclass(frozen=True)
class Ends:
    """What the client computes in the clear: images → integers, and accumulators of the last layer → logits."""

    before: tuple[Operator, ...]
    input_scale: float
    output_unit: float
    output_bias: np.ndarray

    @staticmethod
    def of(plan: Plan) -> Ends:
        last = plan.affines[-1]
        return Ends(plan.before, plan.input_scale, last.unit, last.bias.reshape(-1))

    def quantise(self, images: np.ndarray) -> np.ndarray:
        x = np.asarray(images, np.float64)
        for layer in self.before:
            x = layer(x)
        return np.round(x / self.input_scale).astype(np.int64)

    def logits(self, integers: np.ndarray) -> np.ndarray:
        """integers: (images, parts · outputs), as `split` orders them."""
        sums = integers.reshape(len(integers), -1, len(self.output_bias)).sum(1)
        return (sums + self.output_bias) * self.output_unit

    def describe(self) -> dict[str, Any]:
        """As plain JSON, which `read` reads."""
        return asdict(self) | {"before": list(map(describe, self.before)), "output_bias": self.output_bias.tolist()}

    @staticmethod
    def read(values: dict[str, Any]) -> Ends:
        layers = tuple(map(operator_of, values["before"]))
        return Ends(layers, values["input_scale"], values["output_unit"], np.array(values["output_bias"]))


def plan(network: Network) -> Plan:
    """Raises BackendError for a network that has no integer circuit."""
    if not network.is_chain:
        raise BackendError("the integer network has branches, which this backend does not compile yet")
    layers = list(network.operators)
    first = next((i for i, layer in enumerate(layers) if isinstance(layer, Quantise)), None)
    if first is None:
        raise BackendError("the network does not quantise its input: train its integer lowering")
    scale, end = layers[first].scale, first + 1
    while end < len(layers) and isinstance(layers[end], Flatten):
        end += 1
    before, rest, input_scale = tuple(layers[:end]), layers[end:], scale
    steps: list[Step] = []
    while rest:
        layer = rest.pop(0)
        if isinstance(layer, Flatten):
            steps.append(layer)
        elif isinstance(layer, Gemm | Conv):
            after = []
            while rest and not isinstance(rest[0], Gemm | Conv | Flatten):
                after.append(rest.pop(0))
            affine = _affine(layer, scale, after)
            steps.append(affine)
            if after:
                steps.append(_table(affine, after))
                scale = after[-1].scale
        else:
            raise BackendError(
                f"{type(layer).__name__} on encrypted integers is not supported: fold it before lowering"
            )
    if not steps or not isinstance(steps[-1], Affine):
        raise BackendError("the last layer of an integer network must be linear")
    return Plan(before, input_scale, tuple(steps))


def split(plan: Plan, bits: int) -> Plan:
    """The last layer as partial sums of at most `bits` bits for all inputs that there can be; the client adds them up.

    A part takes as many inputs as fit, at least one: outputs 0, 1, … of the first part, then those of the second.
    """
    last = plan.affines[-1]
    if not isinstance(last.layer, Gemm):
        return plan
    tables = [step for step in plan.steps if isinstance(step, Table)]
    source = tables[-1].layers[-1] if tables else next(layer for layer in plan.before if isinstance(layer, Quantise))
    ends = np.sort(np.multiply.outer(source.range, last.weight), axis=0)  # type: ignore[union-attr]
    parts, start = [], 0
    for stop in range(1, last.weight.shape[1] + 1):
        low, high = ends[:, :, start:stop].sum(2)
        if stop - start > 1 and signed_bits(int(low.min()), int(high.max())) > bits:
            parts.append(slice(start, stop - 1))
            start = stop - 1
    parts.append(slice(start, None))
    weight = np.zeros((len(parts), *last.weight.shape), last.weight.dtype)
    for part, inputs in zip(weight, parts, strict=True):
        part[:, inputs] = last.weight[:, inputs]
    return replace(plan, steps=(*plan.steps[:-1], replace(last, weight=weight.reshape(-1, last.weight.shape[1]))))


def _affine(layer: Gemm | Conv, scale: float, after: list[Operator]) -> Affine:
    """Takes the rounding `Quantise`, if there is one, from the start of `after`."""
    if layer.weight_scale is None:
        raise BackendError(f"{type(layer).__name__} has no integer weights: train the integer lowering again")
    unit = scale * layer.weight_scale
    weight = np.round(layer.weight / layer.weight_scale).astype(np.int64)
    shape = (-1, 1, 1) if isinstance(layer, Conv) else (-1,)
    rounds = len(after) > 1 and isinstance(after[0], Quantise)
    affine = Affine(layer, weight, layer.bias.reshape(shape) / unit, unit, after.pop(0) if rounds else None)  # type: ignore[arg-type]
    if affine.rounding and (
        not affine.rounding.signed
        or affine.dropped_bits < 0
        or abs(unit * 2.0**affine.dropped_bits / affine.rounding.scale - 1) > RELATIVE_TOLERANCE
    ):
        raise BackendError("an accumulator is rounded to signed multiples of a power of two of its unit, nothing else")
    return affine


def _table(affine: Affine, layers: list[Operator]) -> Table:
    if not isinstance(layers[-1], Quantise):
        raise BackendError(f"an activation ends with {type(layers[-1]).__name__}: its output must be quantised")
    return Table(tuple(layers), affine.unit, 0.0 if affine.rounding else affine.bias)


# -- width of the accumulators -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Width:
    """Of one accumulator over the calibration images. bits: signed; read_bits: of them, those that the PBS reads.

    reach: largest magnitude as a share of what `read_bits` hold after rounding; beyond 1 the table would be wrong.
    """

    bits: int
    read_bits: int
    elements: int
    reach: float


def widths(plan: Plan, images: np.ndarray) -> list[Width]:
    """One for each affine layer, from a run on clear integers."""
    found = []
    for affine, x in zip(plan.affines, simulate(plan, plan.quantise(images)), strict=True):
        low, high = int(x.min()), int(x.max())
        bits = read = signed_bits(low, high)
        reach = 1.0
        if affine.rounding:
            read = affine.rounding.bits
            bits = affine.dropped_bits + read
            reach = max(high, -low) / ((affine.rounding.range[1] + 0.5) * 2**affine.dropped_bits)
        found.append(Width(bits, read, int(np.prod(x.shape[1:])), reach))
    return found


def simulate(plan: Plan, x: np.ndarray) -> list[np.ndarray]:
    """The accumulators of each affine layer, on clear integers and without the errors of bootstrapping."""
    found = []
    for step in plan.steps:
        if isinstance(step, Affine):
            x = step.accumulate(x, convolve)
            found.append(x)
            if step.rounding:
                unit = 2**step.dropped_bits
                x = np.floor(x / unit + 0.5).astype(np.int64) * unit
        else:
            x = step(x)
    return found


def signed_bits(low: int, high: int) -> int:
    return 1 + max(max(value, ~value).bit_length() for value in (low, high))


def convolve(x: np.ndarray, weight: np.ndarray, pads: Sequence[int], strides: Sequence[int], group: int) -> np.ndarray:
    """`fhe.conv` on clear integers."""
    layer = Conv(weight, np.zeros(len(weight)), tuple(strides), tuple(pads), group)
    return np.round(layer(x.astype(np.float64))).astype(np.int64)


def function(plan: Plan, widths: Sequence[Width], exactness: Any) -> Callable[[Any], Any]:
    """What Concrete compiles: integers (images, …) → accumulators of the last layer (images, outputs)."""
    from concrete import fhe

    affines = dict(zip(map(id, plan.affines), widths, strict=True))

    def convolve(x: Any, weight: np.ndarray, pads: Sequence[int], strides: Sequence[int], group: int) -> Any:
        """Concrete's compiler refuses the padding that its `fhe.conv` accepts."""
        if any(pads):
            top, left, bottom, right = pads
            images, channels, height, width = x.shape
            wider = fhe.zeros((images, channels, top + height + bottom, left + width + right))
            wider[:, :, top : top + height, left : left + width] = x
            x = wider
        return fhe.conv(x, weight, strides=strides, group=group)

    def evaluate(x: Any) -> Any:
        for step in plan.steps:
            if isinstance(step, Affine):
                x = step.accumulate(x, convolve)
                if step.rounding:
                    x = fhe.hint(x, bit_width=affines[id(step)].bits)
                    x = fhe.round_bit_pattern(x, lsbs_to_remove=step.dropped_bits, exactness=exactness)
                    # else calibration images that use half of the range or less get a table of zeros from Concrete
                    x = fhe.hint(x, bit_width=affines[id(step)].bits)
            elif isinstance(step, Table):
                x = fhe.univariate(step.__call__)(x)
            else:
                x = x.reshape((x.shape[0], -1))
        return x

    return evaluate
