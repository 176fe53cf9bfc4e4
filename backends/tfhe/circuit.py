"""The quantised network as a function of encrypted integers, for Concrete to compile.

The client computes the first `Quantise`, and the pooling before it, in the clear and sends integers. From there on every
value of the graph is integers times a unit, and a bias that is added where it must be. A linear layer is integer weights
times integers, a sum brings two values to one unit, and all operators of one value that stand between two of these
(activation, requantising) are one table that a programmable bootstrapping (PBS) looks up. A product of two values is two
tables, ``ab = ⌊(a + b)² / 4⌋ − ⌊(a − b)² / 4⌋``, which costs what Concrete's own costs. Logits are scaled after decryption.

A `Quantise` that directly follows such a sum and precedes an activation *rounds the accumulator*: its low bits are
dropped before the PBS, approximately (Concrete's ``round_bit_pattern``), which costs nothing. The PBS then reads a few
bits whatever the bits of inputs and weights are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from backends.api import BackendError
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
    Unary,
    describe,
    operator_of,
    unary,
)

RELATIVE_TOLERANCE = 1e-6
Number = TypeVar("Number", int, np.ndarray)
Range = tuple[int, int]  # smallest and largest integer that there can be


# -- what is done with integers ----------------------------------------------------------------------------------------


class Arithmetic(Protocol):
    """What clear and encrypted integers do in different ways."""

    def convolve(self, x: Any, weight: np.ndarray, layer: Conv) -> Any: ...

    def round(self, x: Any, dropped_bits: int, bits: int) -> Any:
        """To multiples of 2^dropped_bits; bits: of x."""

    def look_up(self, function: Callable[[np.ndarray], np.ndarray], x: Any) -> Any: ...


@dataclass(frozen=True)
class Linear:
    """Integer weights; `layer` has strides, pads and groups."""

    layer: Gemm | Conv
    weight: np.ndarray

    def __call__(self, on: Arithmetic, x: Any) -> Any:
        return x @ self.weight.T if isinstance(self.layer, Gemm) else on.convolve(x, self.weight, self.layer)

    def range(self, inputs: Range) -> Range:
        axes = tuple(range(1, self.weight.ndim))
        ends = np.sort(np.multiply.outer(inputs, self.weight), axis=0)
        return int(ends[0].sum(axes).min()), int(ends[1].sum(axes).max())


@dataclass(frozen=True)
class View:
    """The same integers in another shape, without the batch axis."""

    shape: tuple[int, ...]

    def __call__(self, on: Arithmetic, x: Any) -> Any:
        return x.reshape((x.shape[0], *self.shape))


@dataclass(frozen=True)
class Sum:
    """Of two values, each times a factor."""

    factors: tuple[int, int]

    def __call__(self, on: Arithmetic, a: Any, b: Any) -> Any:
        a, b = (x if abs(k) == 1 else x * abs(k) for x, k in zip((a, b), self.factors))
        return a - b if self.factors[1] < 0 else a + b


@dataclass(frozen=True)
class Rounding:
    """What a PBS reads: an accumulator with the whole part of its bias, less its low bits.

    bits: of the accumulator. quantise: what it is in the network; None if it is there for its width. lift: bits by which it
    is shifted up first, see `levelled`; the table knows.
    """

    bits: int
    dropped_bits: int = 0
    shift: np.ndarray | None = None
    quantise: Quantise | None = None
    lift: int = 0

    def __call__(self, on: Arithmetic, x: Any) -> Any:
        x = x if self.shift is None else x + self.shift
        x = x * 2**self.lift if self.lift else x
        return on.round(x, self.dropped_bits + self.lift, self.bits + self.lift)


@dataclass(frozen=True)
class Table:
    """Integers → integers by `function`, one PBS an element."""

    function: Callable[[np.ndarray], np.ndarray]

    def __call__(self, on: Arithmetic, x: Any) -> Any:
        return on.look_up(self.function, x)


@dataclass(frozen=True)
class Activation:
    """Accumulators (multiples of `unit`) → integers: `layers`, of which the last quantises."""

    layers: tuple[Unary, ...]
    unit: float
    bias: np.ndarray | float

    def __call__(self, accumulators: np.ndarray) -> np.ndarray:
        x = (accumulators + self.bias) * self.unit
        for layer in self.layers:
            x = layer(x)
        last = self.layers[-1]
        assert isinstance(last, Quantise)
        return np.round(x / last.scale).astype(np.int64)


@dataclass(frozen=True)
class Lowered:
    """`function` of what was lifted."""

    function: Callable[[np.ndarray], np.ndarray]
    lift: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.function(x >> self.lift)


def quarter_square(x: Number) -> Number:
    return x * x // 4


@dataclass(frozen=True)
class Step:
    """``output = operation(inputs)``; values by name. range: of the output, whatever the image."""

    operation: Linear | View | Sum | Rounding | Table
    inputs: tuple[str, ...]
    output: str
    range: Range


# -- the plan ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ends:
    """What the client computes in the clear: images → integers, and accumulators of the last layer → logits.

    The integers that it sends are multiples of `input_scale`.
    """

    before: tuple[Unary, ...]
    input_scale: float
    output_unit: float
    output_bias: np.ndarray

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
        layers = tuple(unary(operator_of(one)) for one in values["before"])
        return Ends(layers, values["input_scale"], values["output_unit"], np.array(values["output_bias"]))


@dataclass(frozen=True)
class Plan:
    """ends: what the client does. source: name of the integers that it sends; source_range: what they are.

    steps: what the server computes; the last one makes the result.
    """

    ends: Ends
    source: str
    source_range: Range
    steps: tuple[Step, ...]

    @property
    def result(self) -> str:
        return self.steps[-1].output if self.steps else self.source

    @property
    def parts(self) -> int:
        """Of each logit, see `split`."""
        last = self.steps[-1].operation if self.steps else None
        return len(last.weight) // len(self.ends.output_bias) if isinstance(last, Linear) else 1

    def range(self, name: str) -> Range:
        return next((step.range for step in self.steps if step.output == name), self.source_range)

    def run(self, on: Arithmetic, x: Any) -> dict[str, Any]:
        """All values, by name."""
        values = {self.source: x}
        for step in self.steps:
            values[step.output] = step.operation(on, *(values[name] for name in step.inputs))
        return values


def plan(network: Network) -> Plan:
    """Raises BackendError for a network that has no integer circuit."""
    if len(network.inputs) != 1 or len(network.results) != 1:
        raise BackendError("a circuit has one input, the image, and one result, the logits")
    return _Planner(network).plan()


@dataclass(frozen=True)
class _Value:
    """``then((integers + bias) · unit)``, where `integers` names those of a step.

    shape and bias: without the batch axis.
    """

    integers: str
    unit: float
    shape: tuple[int, ...]
    bias: np.ndarray | float = 0.0
    then: tuple[Unary, ...] = ()


class _Planner:
    """Goes through a graph once and keeps what each of its values stands for."""

    def __init__(self, network: Network) -> None:
        self._network, self._steps = network, dict[str, Step]()
        self._tables: dict[tuple[str, tuple[int, ...]], _Value] = {}

    def plan(self) -> Plan:
        before, source, nodes = self._client()
        quantise = next(operator for operator in before if isinstance(operator, Quantise))
        self._ranges = {source: quantise.range}
        values = {source: _Value(source, quantise.scale, self._network.shapes[source])}
        for node in nodes:
            evaluate = EVALUATED[type(node.operator)]
            values[node.output] = evaluate(self, node, *(values[name] for name in node.inputs))
        result = self._integers(values[self._network.results[0]])
        bias = np.array(np.broadcast_to(np.asarray(result.bias, np.float64), result.shape))
        ends = Ends(before, quantise.scale, result.unit, bias)
        return Plan(ends, source, quantise.range, self._needed(result.integers))

    def _client(self) -> tuple[tuple[Unary, ...], str, list[Node]]:
        """What the client computes, the name of what it sends, and the nodes that are left for the server."""
        readers = defaultdict(list)
        for node in self._network.nodes:
            for name in node.inputs:
                readers[name].append(node)
        name, before, quantised = self._network.inputs[0].name, list[Node](), False
        while len(readers[name]) == 1:
            (node,) = readers[name]
            shapes, others = (Flatten, Reshape), (AveragePool, GlobalAveragePool, Quantise)
            if not isinstance(node.operator, shapes if quantised else shapes + others):
                break
            quantised = quantised or isinstance(node.operator, Quantise)
            before.append(node)
            name = node.output
        if not quantised:
            raise BackendError("the network does not quantise its input: train its integer lowering")
        left = [node for node in self._network.nodes if node not in before]
        return tuple(unary(node.operator) for node in before), name, left

    def _needed(self, result: str) -> tuple[Step, ...]:
        wanted, steps = {result}, list[Step]()
        for step in reversed(self._steps.values()):
            if step.output in wanted:
                steps.append(step)
                wanted.update(step.inputs)
        return tuple(reversed(steps))

    def _step(self, operation: Any, inputs: Sequence[str], range: Range, name: str) -> str:
        while name in self._ranges:  # a node may become several steps
            name += "'"
        self._steps[name] = Step(operation, tuple(inputs), name, range)
        self._ranges[name] = range
        return name

    # -- operators, see EVALUATED --------------------------------------------------------------------------------------

    def univariate(self, node: Node, x: _Value) -> _Value:
        return replace(x, then=(*x.then, unary(node.operator)))

    def polynomial(self, node: Node, x: _Value) -> _Value:
        """A constant that is added to an accumulator is a bias."""
        return _biased(x, node.operator) if _is_shift(node.operator) and not x.then else self.univariate(node, x)

    def view(self, node: Node, x: _Value) -> _Value:
        x, shape = self._integers(x), self._network.shapes[node.output]
        bias = np.broadcast_to(x.bias, x.shape).reshape(shape) if np.ndim(x.bias) else x.bias
        given = (-1,) if isinstance(node.operator, Flatten) else shape
        integers = self._step(View(given), [x.integers], self._ranges[x.integers], node.output)
        return replace(x, integers=integers, shape=shape, bias=bias)

    def linear(self, node: Node, x: _Value) -> _Value:
        assert isinstance(node.operator, Gemm | Conv)
        return self._linear(node.operator, node, x)

    def pool(self, node: Node, x: _Value) -> _Value:
        """A convolution with ones."""
        operator, channels = node.operator, x.shape[0]
        assert isinstance(operator, AveragePool | GlobalAveragePool)
        if isinstance(operator, GlobalAveragePool):
            operator = AveragePool((x.shape[1], x.shape[2]), (1, 1))
        if any(operator.pads) and not operator.count_include_pad:
            raise BackendError(
                f"{node.output}: an average over padded windows of different sizes has no integer weights; "
                "pool without padding, or count the padding (count_include_pad)"
            )
        share = 1 / math.prod(operator.kernel_shape)
        weight = np.full((channels, 1, *operator.kernel_shape), share)
        layer = Conv(weight, np.zeros(channels), operator.strides, operator.pads, channels, weight_scale=share)
        return self._linear(layer, node, x)

    def _linear(self, layer: Gemm | Conv, node: Node, x: _Value) -> _Value:
        if layer.weight_scale is None:
            raise BackendError(f"{node.type} {node.output} has no integer weights: train the integer lowering again")
        x = self._integers(x)
        unit = x.unit * layer.weight_scale
        linear = Linear(layer, np.round(layer.weight / layer.weight_scale).astype(np.int64))
        bias = layer.bias.reshape((-1, 1, 1) if isinstance(layer, Conv) else (-1,)) / unit
        if np.any(x.bias):
            whole = np.broadcast_to(np.asarray(x.bias, np.float64), (1, *x.shape))
            bias = bias + replace(layer, weight=linear.weight, bias=np.zeros(len(linear.weight)))(whole)[0]
        integers = self._step(linear, [x.integers], linear.range(self._ranges[x.integers]), node.output)
        return _Value(integers, unit, self._network.shapes[node.output], bias)

    def add(self, node: Node, a: _Value, b: _Value) -> _Value:
        a, b = self._pair(node, a, b)
        unit = min(a.unit, b.unit)
        factors = round(a.unit / unit), round(b.unit / unit)
        if any(abs(x.unit / unit / factor - 1) > RELATIVE_TOLERANCE for x, factor in zip((a, b), factors)):
            raise BackendError(
                f"{node.output} adds multiples of {a.unit:.6g} and of {b.unit:.6g}, of which neither is a multiple of the "
                "other: quantise one of them with the other's scale"
            )
        integers = self._sum(node, a.integers, b.integers, factors)
        bias = factors[0] * a.bias + factors[1] * b.bias
        return _Value(integers, unit, self._network.shapes[node.output], bias)

    def multiply(self, node: Node, a: _Value, b: _Value) -> _Value:
        a, b = self._pair(node, a, b)
        for value, name in zip((a, b), node.inputs):
            if np.any(value.bias):
                raise BackendError(f"{node.output} multiplies {name}, which is not quantised: quantise it first")
        squares = []
        for sign in (1, -1):
            total = self._sum(node, a.integers, b.integers, (1, sign))
            low, high = self._ranges[total]
            room = Rounding(signed_bits(low, high) if low < 0 else high.bit_length())  # for whatever the operands are
            total = self._step(room, [total], (low, high), total)
            highest = max(quarter_square(end) for end in (low, high))
            squares.append(self._step(Table(quarter_square), [total], (0, highest), node.output))
        product = self._sum(node, squares[0], squares[1], (1, -1))
        return _Value(product, a.unit * b.unit, self._network.shapes[node.output])

    def _sum(self, node: Node, a: str, b: str, factors: tuple[int, int]) -> str:
        ends = [[k * end for end in self._ranges[name]] for k, name in zip(factors, (a, b))]
        span = sum(map(min, ends)), sum(map(max, ends))
        return self._step(Sum(factors), [a, b], span, node.output)

    def _pair(self, node: Node, a: _Value, b: _Value) -> tuple[_Value, _Value]:
        if len(a.shape) != len(b.shape):
            raise BackendError(f"{node.output}: shapes {a.shape} and {b.shape} do not fit: reshape one of them")
        return self._integers(a), self._integers(b)

    def _integers(self, x: _Value) -> _Value:
        """The value as integers: what it still has to go through becomes a table, of a rounded accumulator if it says so.

        A constant that is added behind the last quantiser is a bias again.
        """
        if not x.then:
            return x
        if _is_shift(x.then[-1]):
            return _biased(self._integers(replace(x, then=x.then[:-1])), x.then[-1])
        key = (x.integers, tuple(map(id, x.then)))
        if key not in self._tables:
            self._tables[key] = self._table(x)
        return self._tables[key]

    def _table(self, x: _Value) -> _Value:
        first, last = x.then[0], x.then[-1]
        if not isinstance(last, Quantise):
            raise BackendError(f"an activation ends with {type(last).__name__}: its output must be quantised")
        source, function = x.integers, Activation(x.then, x.unit, x.bias)
        if isinstance(first, Quantise) and len(x.then) > 1:
            rounding = _rounding(first, x)
            low, high = (end << rounding.dropped_bits for end in first.range)
            source = self._step(rounding, [source], (low, high), f"{source} rounded")
            function = Activation(x.then[1:], x.unit, 0.0)
        integers = self._step(Table(function), [source], last.range, f"{x.integers} activated")
        return _Value(integers, last.scale, x.shape)


def _is_shift(operator: Operator) -> bool:
    """Whether it adds a constant."""
    return (
        isinstance(operator, Polynomial)
        and (operator.basis, operator.degree) == ("power", 1)
        and bool(np.all(operator.coefficients[1] == 1))
    )


def _biased(x: _Value, shift: Operator) -> _Value:
    """Integers, and the constant of a shift."""
    assert isinstance(shift, Polynomial)
    constant = shift.coefficients[0].reshape(-1, *[1] * (len(x.shape) - 1)) / x.unit
    return replace(x, bias=x.bias + constant)


def _rounding(quantise: Quantise, x: _Value) -> Rounding:
    dropped = round(math.log2(quantise.scale / x.unit))
    fits = abs(x.unit * 2.0**dropped / quantise.scale - 1) <= RELATIVE_TOLERANCE
    if not quantise.signed or dropped < 0 or not fits:
        raise BackendError("an accumulator is rounded to signed multiples of a power of two of its unit, nothing else")
    return Rounding(dropped + quantise.bits, dropped, np.round(x.bias).astype(np.int64), quantise)


# How a node's value comes from those that it reads: the whole list of operators that an integer network may have.
EVALUATED: dict[type, Callable[..., _Value]] = {
    Gemm: _Planner.linear,
    Conv: _Planner.linear,
    AveragePool: _Planner.pool,
    GlobalAveragePool: _Planner.pool,
    Flatten: _Planner.view,
    Reshape: _Planner.view,
    Add: _Planner.add,
    Mul: _Planner.multiply,
    Polynomial: _Planner.polynomial,
    Pow: _Planner.univariate,
    Relu: _Planner.univariate,
    Quantise: _Planner.univariate,
}


def split(plan: Plan, bits: int) -> Plan:
    """The last layer as partial sums of at most `bits` bits for all inputs that there can be; the client adds them up.

    A part takes as many inputs as fit, at least one: outputs 0, 1, … of the first part, then those of the second.
    """
    last = plan.steps[-1] if plan.steps else None
    if last is None or not isinstance(last.operation, Linear) or not isinstance(last.operation.layer, Gemm):
        return plan
    whole = last.operation.weight
    ends = np.sort(np.multiply.outer(plan.range(last.inputs[0]), whole), axis=0)
    parts, start = [], 0
    for stop in range(1, whole.shape[1] + 1):
        low, high = ends[:, :, start:stop].sum(2)
        if stop - start > 1 and signed_bits(int(low.min()), int(high.max())) > bits:
            parts.append(slice(start, stop - 1))
            start = stop - 1
    parts.append(slice(start, None))
    weight = np.zeros((len(parts), *whole.shape), whole.dtype)
    for part, inputs in zip(weight, parts, strict=True):
        part[:, inputs] = whole[:, inputs]
    linear = replace(last.operation, weight=weight.reshape(-1, whole.shape[1]))
    return replace(plan, steps=(*plan.steps[:-1], replace(last, operation=linear)))


# -- width of the accumulators -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Width:
    """Of one accumulator over the calibration images. bits: signed; read_bits: of them, those that the PBS reads.

    rounding: to how many bits, or None. elements: how many there are in an image.
    reach: largest magnitude as a share of what `read_bits` hold after rounding; beyond 1 the table would be wrong.
    """

    bits: int
    read_bits: int
    elements: int
    reach: float = 1.0
    rounding: int | None = None


def widths(plan: Plan, images: np.ndarray) -> list[Width]:
    """One for each table, and one for the result, from a run on clear integers."""
    values = simulate(plan, plan.ends.quantise(images))
    made = {step.output: step for step in plan.steps}

    def width(name: str) -> Width:
        operation, x = made[name].operation if name in made else None, values[name]
        elements = int(np.prod(x.shape[1:]))
        if isinstance(operation, Rounding) and operation.quantise:
            x = values[made[name].inputs[0]] + operation.shift
            room = (operation.quantise.range[1] + 0.5) * 2**operation.dropped_bits
            reach = max(int(x.max()), -int(x.min())) / room
            return Width(operation.bits, operation.quantise.bits, elements, reach, operation.quantise.bits)
        bits = operation.bits if isinstance(operation, Rounding) else _bits(x)
        return Width(bits, bits, elements)

    read = [step.inputs[0] for step in plan.steps if isinstance(step.operation, Table)]
    return [width(name) for name in (*read, plan.result)]


def signed_bits(low: int, high: int) -> int:
    return 1 + max(max(value, ~value).bit_length() for value in (low, high))


def _bits(x: np.ndarray) -> int:
    return signed_bits(int(x.min()), int(x.max()))


LEVEL = 2  # bits of difference from which on a value is lifted: up to 6 bits, one more costs nothing


def levelled(plan: Plan, images: np.ndarray) -> Plan:
    """With what a PBS reads shifted up where it is narrower than what it hangs together with.

    Concrete gives one width to all values that linear operations connect, so the table of a narrow value that hangs
    together with a wide one would be a wide table. Shifted up, its low bits are dropped as those of a rounding are.
    """
    values = simulate(plan, plan.ends.quantise(images))
    group = {name: {name} for name in values}
    for step in plan.steps:
        if not isinstance(step.operation, Table):
            together = set().union(*(group[name] for name in (*step.inputs, step.output)))
            group.update(dict.fromkeys(together, together))
    bits = {name: _bits(x) for name, x in values.items()}
    bits |= {step.output: step.operation.bits for step in plan.steps if isinstance(step.operation, Rounding)}
    lifts, steps = dict[str, int](), list[Step]()
    for step in plan.steps:
        operation = step.operation
        if isinstance(operation, Rounding):
            lift = max(bits[name] for name in group[step.output]) - operation.bits
            if lift >= LEVEL:
                lifts[step.output] = lift
                operation = replace(operation, lift=lift)
        elif isinstance(operation, Table) and (lift := lifts.get(step.inputs[0], 0)):
            operation = Table(Lowered(operation.function, lift))
        steps.append(replace(step, operation=operation))
    return replace(plan, steps=tuple(steps))


# -- clear and encrypted integers --------------------------------------------------------------------------------------


class Clear:
    """Without the errors of bootstrapping."""

    def convolve(self, x: np.ndarray, weight: np.ndarray, layer: Conv) -> np.ndarray:
        clear = replace(layer, weight=weight, bias=np.zeros(len(weight)))
        return np.round(clear(x.astype(np.float64))).astype(np.int64)

    def round(self, x: np.ndarray, dropped_bits: int, bits: int) -> np.ndarray:
        unit = 2**dropped_bits
        return np.floor(x / unit + 0.5).astype(np.int64) * unit

    def look_up(self, function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
        return function(x)


def simulate(plan: Plan, x: np.ndarray) -> dict[str, np.ndarray]:
    """All values, on clear integers."""
    return plan.run(Clear(), x)


def function(plan: Plan, exactness: Any) -> Callable[[Any], Any]:
    """What Concrete compiles: integers (images, …) → the result (images, outputs)."""
    from concrete import fhe

    class Encrypted:
        def convolve(self, x: Any, weight: np.ndarray, layer: Conv) -> Any:
            """Concrete's compiler refuses the padding that its `fhe.conv` accepts."""
            if any(layer.pads):
                top, left, bottom, right = layer.pads
                images, channels, height, width = x.shape
                wider = fhe.zeros((images, channels, top + height + bottom, left + width + right))
                wider[:, :, top : top + height, left : left + width] = x
                x = wider
            return fhe.conv(x, weight, strides=layer.strides, dilations=layer.dilations, group=layer.group)

        def round(self, x: Any, dropped_bits: int, bits: int) -> Any:
            if dropped_bits:
                x = fhe.hint(x, bit_width=bits)
                x = fhe.round_bit_pattern(x, lsbs_to_remove=dropped_bits, exactness=exactness)
            # else calibration images that use half of the range or less get a table of zeros from Concrete
            return fhe.hint(x, bit_width=bits)

        def look_up(self, function: Callable[[np.ndarray], np.ndarray], x: Any) -> Any:
            return fhe.univariate(lambda integers: function(integers))(x)

    return lambda x: plan.run(Encrypted(), x)[plan.result]
