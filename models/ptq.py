"""Quantisation after training: a float or polynomial network of any shape → an integer network for TFHE.

No step of training and no label is needed, only images. What makes up for that:

* each channel of an accumulator is scaled and shifted to use the whole range of its rounding, and the table behind it takes
  that back; each channel of an activation has a step of its own, of least squared error, which the next layer's weights
  take back (Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019, whose bias
  correction is here too: each layer's mean is that of the original network);
* a linear layer keeps the freedom of its scale until it is known what reads it: a rounding wants a unit that is its step
  over a power of two, a sum wants that of its other operand.

An accumulator that a table reads is rounded to a few bits, as in `models.quantised`: encrypted inference pays for these.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from models import NetworkError
from models.network import (
    Add,
    AveragePool,
    Conv,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Mul,
    Network,
    Node,
    Operator,
    Polynomial,
    Pow,
    Quantise,
    Relu,
    Reshape,
)

MARGIN = (
    1.4  # of a rounded accumulator's range over the largest value that the original network reaches: others reach more
)
ROOM = 1.02  # of that range over the largest value that the integer network reaches
VALUES = 30_000_000  # of the network that are held at once while scales are fitted
FEWEST, MOST = 32, 1000  # images on which scales are fitted
SHARES = np.linspace(0.1, 1, 19)  # of the largest value, which a quantiser's range may reach
SPREAD = 4.0  # of the channels' largest weights after scaling, over their median
RESULT = 8  # bits of a result that comes from a table
WIDEST = 12  # bits of a value that meets weights; a wider one is quantised first
FINEST = 64  # parts of another value's step that a sum may need


@dataclass(frozen=True)
class Bits:
    """Of every kind of value.

    accumulator: that a PBS reads, after rounding. activation: of a table's output. factor: of one that a product takes; its
    PBS read one more. The accumulator's is what encrypted inference pays for, twice as much for a sixth bit.
    """

    input: int = 6
    weight: int = 8
    accumulator: int = 5
    activation: int = 5
    factor: int = 4
    output_weight: int = 5


def quantise(network: Network, images: np.ndarray, bits: Bits = Bits()) -> Network:
    """The integer lowering of `network`.

    images: (n, channels, height, width) uint8, of the training split, or what the network reads instead (`models.inputs`),
    as floats; ranges are those of all of them.
    Raises NetworkError, which names the node, for what has no integer form.
    """
    if network.lowering == "integer":
        raise NetworkError(f"{network.model} is quantised already")
    if len(images) == 0:
        raise NetworkError(
            "quantisation after training needs images to find the ranges of values: pass some of training"
        )
    network = _prepared(network)
    ranges, margin = _ranges(network, images), MARGIN
    for _ in range(8):
        quantiser = _Quantiser(network, images, ranges, bits, margin)
        found = quantiser.network()
        reach = _reach(found, quantiser.rounded, images)
        if reach * ROOM <= 1:
            break
        margin *= reach * ROOM
    else:
        raise NetworkError(f"{network.model}: no range holds its accumulators; give more images or more bits")
    provenance = {"quantisation": dataclasses.asdict(bits) | {"after": "training", "images": len(images)}}
    return dataclasses.replace(found, provenance=network.provenance | provenance)


def _prepared(network: Network) -> Network:
    """Of a value with itself, a product becomes a power and a sum a factor. Refuses what has no integer form."""
    if len(network.inputs) != 1 or len(network.results) != 1:
        raise NetworkError(f"{network.model} must have one input, the image, and one result, the logits")
    nodes = []
    for node in network.nodes:
        operator = node.operator
        if isinstance(operator, AveragePool) and any(operator.pads) and not operator.count_include_pad:
            raise NetworkError(
                f"node {node.output}: windows of different sizes have no common integer weight; "
                "pool without padding, or count the padding (count_include_pad)"
            )
        if isinstance(operator, Add | Mul) and node.inputs[0] == node.inputs[1]:
            operator = Pow(2) if isinstance(operator, Mul) else Polynomial(np.array([0.0, 2.0]))
            node = Node(operator, node.inputs[:1], node.output)
        nodes.append(node)
    return dataclasses.replace(network, nodes=tuple(nodes))


def _apply(operator: Operator, *values: np.ndarray) -> np.ndarray:
    """What `operator(*values)` is, faster where torch is: convolutions of many images."""
    if not isinstance(operator, Conv):
        return operator(*values)
    x, weight, bias = (torch.tensor(a, dtype=torch.double) for a in (values[0], operator.weight, operator.bias))
    top, left, bottom, right = operator.pads
    x = functional.pad(x, (left, right, top, bottom))
    return functional.conv2d(x, weight, bias, operator.strides, 0, operator.dilations, operator.group).numpy()


def _evaluate(network: Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """All values of images (uint8), or of what the network reads instead (floats)."""
    values = {network.inputs[0].name: images / 255 if images.dtype == np.uint8 else images.astype(np.float64)}
    for node in network.nodes:
        values[node.output] = _apply(node.operator, *(values[name] for name in node.inputs))
    return values


def _chunks(network: Network, images: np.ndarray) -> list[np.ndarray]:
    size = sum(math.prod(shape) for shape in network.shapes.values())
    return np.array_split(images, min(-(-len(images) * size // VALUES), len(images)))


def _ranges(network: Network, images: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Smallest and largest value of each channel of each value."""
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for chunk in _chunks(network, images):
        for name, x in _evaluate(network, chunk).items():
            axes = (0, *range(2, x.ndim))
            parts[name].append((x.min(axes), x.max(axes)))
    found = {n: (np.min([p[0] for p in of], 0), np.max([p[1] for p in of], 0)) for n, of in parts.items()}
    for name, ends in found.items():
        if not np.isfinite(ends).all():
            raise NetworkError(f"node {name}: values that are no finite numbers on the images; look at the weights")
    return found


def _reach(network: Network, rounded: list[Node], images: np.ndarray) -> float:
    """The largest accumulator, as a share of what its rounding holds."""
    reach = 0.0
    for chunk in _chunks(network, images):
        values = _evaluate(network, chunk)
        for node in rounded:
            assert isinstance(node.operator, Quantise)
            room = (node.operator.range[1] + 0.5) * node.operator.scale
            reach = max(reach, float(np.abs(values[node.inputs[0]]).max()) / room)
    return reach


# -- values while they are quantised -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Integers:
    """Of the new graph: multiples of `unit` (and a bias), which times `factor` are the original's values.

    values: on the images; bits: of the integers. quantised: whether a product may take them.
    """

    name: str
    unit: float
    values: np.ndarray
    bits: int
    factor: np.ndarray | float = 1.0
    quantised: bool = False


@dataclass(frozen=True, eq=False)
class _Linear:
    """Weights (real numbers) for integers, whose scale is still free."""

    name: str
    layer: Gemm | Conv
    source: _Integers

    def finest(self, bits: int, divisor: np.ndarray | float = 1.0) -> float:
        """The smallest unit of the accumulator whose weights have so many bits."""
        largest = self.largest / divisor
        return self.source.unit * max(float(np.max(largest)), 1e-12) / (2 ** (bits - 1) - 1)

    @property
    def largest(self) -> np.ndarray:
        """Weight of each output channel."""
        return np.abs(self.layer.weight).reshape(len(self.layer.weight), -1).max(1)


@dataclass(frozen=True, eq=False)
class _Sum:
    name: str
    terms: tuple[_Integers | _Linear | _Sum, ...]


@dataclass(frozen=True, eq=False)
class _Run:
    """Operators of one value that wait for the quantiser of their output."""

    source: str
    operators: tuple[Operator, ...]


_Accumulator = _Integers | _Linear | _Sum
_Value = _Accumulator | _Run


class _Quantiser:
    """Goes through the original graph once and writes the new one."""

    def __init__(self, network: Network, images: np.ndarray, ranges: dict, bits: Bits, margin: float) -> None:
        self._old, self._ranges, self._bits, self._margin = network, ranges, bits, margin
        size = sum(math.prod(shape) for shape in network.shapes.values())
        count = min(max(VALUES // size, FEWEST), MOST, len(images))
        self._real = _evaluate(network, images[np.linspace(0, len(images) - 1, count).astype(int)])
        self._readers: dict[str, list[Node]] = defaultdict(list)
        for node in network.nodes:
            for name in set(node.inputs):
                self._readers[name].append(node)
        self._nodes: list[Node] = []
        self._names = {network.inputs[0].name}
        self._values: dict[str, _Value] = {}
        self._tables: dict[tuple[str, float | None], _Integers] = {}
        self.rounded: list[Node] = []

    def network(self) -> Network:
        image, result = self._old.inputs[0].name, self._old.results[0]
        left = self._client(image)
        for node in left:
            self._values[node.output] = QUANTISED[type(node.operator)](self, node)
        name = self._result(result).name
        nodes = tuple(self._nodes)
        return dataclasses.replace(self._old, lowering="integer", nodes=nodes, results=(name,))

    def _client(self, name: str) -> list[Node]:
        """Leading pooling, flattening and the quantiser of the image; returns the nodes that are left."""
        left, x = list(self._old.nodes), self._real[name]
        while len(self._readers[name]) == 1 and isinstance(
            self._readers[name][0].operator, AveragePool | GlobalAveragePool | Flatten | Reshape
        ):
            (node,) = self._readers[name]
            left.remove(node)
            self._nodes.append(node)
            self._names.add(node.output)
            name, x = node.output, self._real[node.output]
        bits, (low, high) = self._bits.input, self._ranges[name]
        quantise = Quantise(1 / (2**bits - 1), bits)  # images are in [0, 1]; what else there is has a sign
        if low.min() < 0:
            quantise = Quantise(float(max(-low.min(), high.max())) / (2 ** (bits - 1) - 1), bits, signed=True)
        new, values = self._emit(quantise, [(name, x)], f"{name} quantised")
        self._values[name] = _Integers(new, quantise.scale, values, bits, quantised=True)
        return left

    def _emit(self, operator: Operator, inputs: list[tuple[str, np.ndarray]], name: str) -> tuple[str, np.ndarray]:
        """Name and values of a new node."""
        while name in self._names:
            name += "'"
        self._names.add(name)
        self._nodes.append(Node(operator, tuple(one[0] for one in inputs), name))
        return name, _apply(operator, *(one[1] for one in inputs))

    def _uses(self, name: str) -> set[str]:
        """What a value is read by in the end, behind pooling and views: linear, add, mul, table, reshape, result."""
        uses = {"result"} if name in self._old.results else set()
        for node in self._readers[name]:
            if isinstance(node.operator, AveragePool | GlobalAveragePool | Flatten | Reshape):
                uses |= self._uses(node.output)
                if isinstance(node.operator, Reshape) and len(node.operator.shape) > 1:
                    uses.add("reshape")  # what was a value may be a channel now
            else:
                uses.add({Gemm: "linear", Conv: "linear", Add: "add", Mul: "mul"}.get(type(node.operator), "table"))
        return uses

    # -- operators, see QUANTISED --------------------------------------------------------------------------------------

    def linear(self, node: Node) -> _Value:
        x, layer = self._integers(node.inputs[0]), node.operator
        assert isinstance(layer, Gemm | Conv)
        if x.bits > WIDEST:
            x = self._quantised(node.inputs[0])
        weight = layer.weight.astype(np.float64)
        if np.ndim(x.factor):
            if isinstance(layer, Gemm):
                weight = weight * x.factor
            else:
                factor = np.broadcast_to(x.factor, x.values.shape[1:])[:, 0, 0].reshape(layer.group, 1, -1, 1, 1)
                grouped = weight.reshape(layer.group, -1, *weight.shape[1:])
                weight = (grouped * factor).reshape(weight.shape)
        else:
            weight = weight * x.factor
        return _Linear(node.output, dataclasses.replace(layer, weight=weight), x)

    def pool(self, node: Node) -> _Value:
        x, operator = self._integers(node.inputs[0]), node.operator
        window = x.values.shape[2:] if isinstance(operator, GlobalAveragePool) else operator.kernel_shape  # type: ignore[union-attr]
        count = math.prod(window)
        name, values = self._emit(operator, [(x.name, x.values)], node.output)
        factor = x.factor[:, :1, :1] if np.ndim(x.factor) else x.factor  # type: ignore[index]
        return _Integers(name, x.unit / count, values, x.bits + math.ceil(math.log2(count)), factor)

    def view(self, node: Node) -> _Value:
        x = self._integers(node.inputs[0])
        name, values = self._emit(node.operator, [(x.name, x.values)], node.output)
        factor = (
            np.broadcast_to(x.factor, x.values.shape[1:]).reshape(values.shape[1:]) if np.ndim(x.factor) else x.factor
        )
        return dataclasses.replace(x, name=name, values=values, factor=factor)

    def univariate(self, node: Node) -> _Value:
        x = self._values[node.inputs[0]]
        if isinstance(x, _Run):
            return _Run(x.source, (*x.operators, node.operator))
        return _Run(node.inputs[0], (node.operator,))

    def polynomial(self, node: Node) -> _Value:
        """One of degree 1 costs nothing where a linear layer can do it."""
        x, operator = self._values[node.inputs[0]], node.operator
        assert isinstance(operator, Polynomial)
        c = operator.coefficients.astype(np.float64)
        if operator.basis == "power" and operator.degree == 1 and np.all(c[1] != 0):
            if isinstance(x, _Linear):
                channels = len(x.layer.weight)
                c0, c1 = (np.broadcast_to(one, channels) for one in c)
                weight = x.layer.weight * c1.reshape(-1, *[1] * (x.layer.weight.ndim - 1))
                return _Linear(
                    node.output, dataclasses.replace(x.layer, weight=weight, bias=x.layer.bias * c1 + c0), x.source
                )
            if isinstance(x, _Integers) and self._uses(node.output) <= {"linear"}:
                c0, c1 = (one.reshape(-1, *[1] * (x.values.ndim - 2)) if one.ndim else one for one in c)
                factor = x.factor * c1
                shift = np.round(c0 / factor / x.unit) * x.unit
                return self._shifted(dataclasses.replace(x, factor=factor), shift, node.output)
        return self.univariate(node)

    def add(self, node: Node) -> _Value:
        a, b = (self._values[name] for name in node.inputs)
        if isinstance(a, _Run) and not isinstance(b, _Run):
            (b, a), names = (a, b), node.inputs[::-1]
        else:
            names = node.inputs
        if isinstance(a, _Run):
            a = self._integers(names[0])
        steps = [leaf.unit for leaf in _leaves(a) if isinstance(leaf, _Integers)]
        if isinstance(b := self._values[names[1]], _Run):
            b = self._quantised(names[1], steps[0] if steps else None)
        for leaf in _leaves(b):
            if steps and isinstance(leaf, _Integers) and not _is_power(leaf.unit / steps[0]):
                b = self._quantised(names[1], steps[0])
                break
        return _Sum(node.output, (a, b))

    def multiply(self, node: Node) -> _Value:
        a, b = (self._quantised(name, widest=self._bits.factor) for name in node.inputs)
        name, values = self._emit(Mul(), [(a.name, a.values), (b.name, b.values)], node.output)
        return _Integers(name, a.unit * b.unit, values, a.bits + b.bits)

    def refuse(self, node: Node) -> _Value:
        raise NetworkError(f"node {node.output}: the network has a quantiser already")

    # -- from what waits to integers -----------------------------------------------------------------------------------

    def _integers(self, name: str) -> _Integers:
        """Whatever there is, as integers."""
        value = self._values[name]
        if isinstance(value, _Run):
            return self._quantised(name)
        if not isinstance(value, _Integers):
            unit, terms, _ = self._units(value, self._bits.weight)
            value = self._accumulated(value, name, unit, terms, fraction=0.0)
            self._values[name] = value
        return value

    def _result(self, name: str) -> _Integers:
        value = self._values[name]
        if isinstance(value, _Run):
            return self._quantised(name)
        unit, terms, _ = self._units(value, self._bits.output_weight)
        return self._accumulated(value, name, unit, terms)

    def _quantised(self, name: str, step: float | None = None, widest: int = RESULT) -> _Integers:
        """From a quantiser. step: that its own must be a power of two away from. widest: bits of what is good enough."""
        value = self._values[name]
        if isinstance(value, _Integers) and value.quantised and value.bits <= widest and step is None:
            return value
        if (name, step) not in self._tables:
            run = value if isinstance(value, _Run) else _Run(name, ())
            self._tables[name, step] = self._stepped(name, self._looked_up(name, run), step)
        if isinstance(value, _Run):
            self._values[name] = self._tables[name, step]
        return self._tables[name, step]

    def _looked_up(self, name: str, run: _Run) -> tuple[str, np.ndarray]:
        """The run's output, before its quantiser."""
        accumulator = self._values[run.source]
        assert not isinstance(accumulator, _Run)
        low, high = self._ranges[run.source]
        middle, divisor, bits = (low + high) / 2, self._divisor(accumulator, low, high), self._bits.accumulator
        reach = np.max((high - low) / 2 / np.abs(divisor))
        least = self._margin * max(float(reach), 1e-9) / (2 ** (bits - 1) - 0.5)
        unit, terms, step = self._units(accumulator, self._bits.weight, divisor, least)
        total = self._accumulated(accumulator, run.source, unit, terms, divisor, middle / divisor, fraction=0.25)
        x = self._emit(Quantise(step, bits, signed=True), [(total.name, total.values)], f"{run.source} rounded")
        self.rounded.append(self._nodes[-1])
        real = self._real[run.source]
        axes, ones = (0, *range(2, real.ndim)), (-1, *[1] * (real.ndim - 2))
        middle = (real - x[1] * np.reshape(divisor, ones)).mean(axes)  # what rounding does to the mean is taken back
        restore = Polynomial(np.stack([middle, np.broadcast_to(divisor, len(low))]))
        x = self._emit(restore, [x], f"{run.source} restored")
        for operator in run.operators:
            x = self._emit(operator, [x], name)
        return x

    def _divisor(self, accumulator: _Accumulator, low: np.ndarray, high: np.ndarray) -> np.ndarray | float:
        """Of each channel, so that all have about the same range."""
        if isinstance(accumulator, _Integers):
            return np.reshape(accumulator.factor, -1) if np.ndim(accumulator.factor) else accumulator.factor
        leaves = _leaves(accumulator)
        if any(isinstance(leaf, _Integers) for leaf in leaves):
            return 1.0
        weights = np.max([leaf.largest * leaf.source.unit for leaf in leaves if isinstance(leaf, _Linear)], 0)
        divisor = np.maximum((high - low) / 2, 1e-9 * max(high.max() - low.min(), 1.0))
        return np.maximum(divisor, weights / (SPREAD * max(np.median(weights / divisor), 1e-12)))

    def _stepped(self, name: str, x: tuple[str, np.ndarray], step: float | None) -> _Integers:
        """A quantiser with the steps of least squared error, one a channel where the readers can take that back."""
        uses, y = self._uses(name), x[1]
        bits = self._bits.factor if "mul" in uses else self._bits.activation if uses != {"result"} else RESULT
        ones = (-1, *[1] * (y.ndim - 2))
        sample = y[:: -(-y.size // 1_000_000)]
        by_channel = np.moveaxis(sample, 1, 0).reshape(y.shape[1], -1)
        apart = uses <= {"linear"}
        steps, zeros, signed = _steps(by_channel if apart else by_channel.reshape(1, -1), bits, "mul" not in uses, step)
        if apart:
            x = self._emit(Polynomial(np.stack([-zeros, 1 / steps])), [x], f"{name} scaled")
            new, values = self._emit(Quantise(1.0, bits, signed), [x], f"{name} quantised")
            found = _Integers(new, 1.0, values, bits, steps.reshape(ones))
            return self._shifted(found, zeros.reshape(ones), name)
        unit, zero = float(steps[0]), float(zeros[0])
        if zero:
            x = self._emit(Polynomial(np.array([-zero * unit, 1.0])), [x], f"{name} centred")
        new, values = self._emit(Quantise(unit, bits, signed), [x], f"{name} quantised")
        return self._shifted(_Integers(new, unit, values, bits, quantised=not zero), np.array(zero * unit), name)

    def _shifted(self, x: _Integers, shift: np.ndarray, name: str) -> _Integers:
        """With a constant added: no work for the server, who adds it up with the biases."""
        if not np.any(shift):
            return x
        shift = np.broadcast_to(shift, (x.values.shape[1], *[1] * (x.values.ndim - 2))).reshape(-1)
        new, values = self._emit(
            Polynomial(np.stack([shift, np.ones_like(shift)])), [(x.name, x.values)], f"{name} shifted"
        )
        return dataclasses.replace(x, name=new, values=values)

    # -- accumulators --------------------------------------------------------------------------------------------------

    def _units(
        self, accumulator: _Accumulator, bits: int, divisor: np.ndarray | float = 1.0, least: float = 0.0
    ) -> tuple[float, float, float]:
        """The accumulator's unit, that of its linear terms, and the step of its rounding: the smallest from `least` on.

        bits: of weights. least: 0 if it is not rounded.
        """
        leaves = _leaves(accumulator)
        fixed = [leaf.unit for leaf in leaves if isinstance(leaf, _Integers)]
        finest = max((leaf.finest(bits, divisor) for leaf in leaves if isinstance(leaf, _Linear)), default=0.0)
        if not fixed:
            dropped = max(math.floor(math.log2(least / finest)), 0) if least else 0
            unit = max(least / 2**dropped, finest)
            return unit, unit, unit * 2**dropped
        whole = min(fixed)
        parts = min(max(int(whole / finest), 1), FINEST) if finest else 1
        options = []
        for k in range(1, parts + 1) if least else [parts]:
            dropped = max(math.ceil(math.log2(least * k / whole) - 1e-9), 0) if least else 0
            options.append((whole / k * 2**dropped, -k))
        step, k = min(options)
        unit = whole / -k
        return unit, unit * max(math.ceil(finest / unit - 1e-9), 1), step

    def _accumulated(
        self,
        accumulator: _Accumulator,
        name: str,
        unit: float,
        terms: float,
        divisor: np.ndarray | float = 1.0,
        shift: np.ndarray | float = 0.0,
        fraction: float | None = None,
    ) -> _Integers:
        """The nodes that compute it, over `divisor` and less `shift`, with the original's mean of each channel.

        fraction: None, or the bias must be so much more than a whole multiple of the unit. A quarter decides ties as
        Concrete does, half up.
        """
        real = self._real[name]
        ones, axes = (-1, *[1] * (real.ndim - 2)), (0, *range(2, real.ndim))
        target = (real - np.reshape(shift * divisor, ones)) / np.reshape(divisor, ones)
        leaves = _leaves(accumulator)
        linear = [leaf for leaf in leaves if isinstance(leaf, _Linear)]
        done: dict[int, _Integers] = {id(leaf): leaf for leaf in leaves if isinstance(leaf, _Integers)}
        rest = sum((leaf.values for leaf in leaves if isinstance(leaf, _Integers)), np.zeros(1))
        for leaf in reversed(linear):  # the first one carries what is missing to the mean
            channels, scale = len(leaf.layer.weight), terms / leaf.source.unit
            by = np.broadcast_to(divisor, channels).reshape(-1, *[1] * (leaf.layer.weight.ndim - 1))
            integers, bias = np.round(leaf.layer.weight / by / scale), np.zeros(channels)
            bits = max(int(np.abs(integers).max()).bit_length() + 1, 2)
            layer = dataclasses.replace(
                leaf.layer, weight=integers * scale, bias=bias, weight_bits=bits, weight_scale=scale
            )
            values = _apply(layer, leaf.source.values)
            if leaf is linear[0]:
                bias = np.broadcast_to((target - values - rest).mean(axes), channels)
                if fraction is not None:
                    bias = (np.round(bias / unit) + (fraction if terms == unit else 0)) * unit
                layer, values = dataclasses.replace(layer, bias=np.array(bias)), values + bias.reshape(ones)
            new, _ = self._emit(layer, [(leaf.source.name, leaf.source.values)], leaf.name)
            width = leaf.source.bits + bits + math.ceil(math.log2(max(integers[0].size, 1)))
            done[id(leaf)] = _Integers(new, terms, values, width)
            rest = rest + values

        def together(part: _Accumulator) -> _Integers:
            if not isinstance(part, _Sum):
                return done[id(part)]
            a, b = map(together, part.terms)
            new, values = self._emit(Add(), [(a.name, a.values), (b.name, b.values)], part.name)
            unit = min(a.unit, b.unit)
            width = max(x.bits + math.ceil(math.log2(x.unit / unit) - 1e-9) for x in (a, b))
            return _Integers(new, unit, values, width + 1)

        total = together(accumulator)
        if (linear and terms == unit) or not (fraction or np.any(shift)):
            return total
        missing = np.broadcast_to((target - total.values).mean(axes), real.shape[1])
        return self._shifted(total, ((np.round(missing / unit) + (fraction or 0)) * unit).reshape(ones), name)


def _leaves(accumulator: _Accumulator) -> list[_Integers | _Linear]:
    if isinstance(accumulator, _Sum):
        return [leaf for term in accumulator.terms for leaf in _leaves(term)]
    return [accumulator]


def _is_power(ratio: float) -> bool:
    """Of two."""
    return abs(math.log2(ratio) - round(math.log2(ratio))) < 1e-9


def _steps(y: np.ndarray, bits: int, may_shift: bool, near: float | None) -> tuple[np.ndarray, np.ndarray, bool]:
    """Step and (whole) zero point of each row of y with the least squared error, and whether integers are signed.

    near: that every step must be a power of two away from.
    """
    low, high = y.min(1), y.max(1)
    signed = bool(low.min() < 0)
    smallest, largest = Quantise(1.0, bits, signed).range
    origin = np.zeros(len(y))  # what the integer 0 stands for
    if may_shift:
        origin = (low + high) / 2 if signed else low
    reach = np.maximum(origin - low, high - origin) if signed else high - origin
    reach = np.where(reach > 0, reach, 1.0)
    best = np.full(len(y), np.inf)
    steps, zeros = reach / largest, np.zeros(len(y))
    for share in SHARES:
        step = reach * share / largest
        if near is not None:
            step = near * 2.0 ** np.round(np.log2(step / near))
        zero = np.round(origin / step)
        levels = np.clip(np.round(y / step[:, None] - zero[:, None]), smallest, largest) + zero[:, None]
        error = np.square(levels * step[:, None] - y).mean(1)
        better = error < best
        best, steps, zeros = (np.where(better, new, old) for new, old in ((error, best), (step, steps), (zero, zeros)))
    return steps, zeros, signed


# How a node of the original network is quantised.
QUANTISED: dict[type, Callable[[_Quantiser, Node], _Value]] = {
    Gemm: _Quantiser.linear,
    Conv: _Quantiser.linear,
    AveragePool: _Quantiser.pool,
    GlobalAveragePool: _Quantiser.pool,
    Flatten: _Quantiser.view,
    Reshape: _Quantiser.view,
    Add: _Quantiser.add,
    Mul: _Quantiser.multiply,
    Relu: _Quantiser.univariate,
    Pow: _Quantiser.univariate,
    Polynomial: _Quantiser.polynomial,
    Quantise: _Quantiser.refuse,
}
