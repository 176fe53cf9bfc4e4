"""From a network to affine maps and products of two encrypted values, the only things that CKKS has to do.

::

    value 0, the image ──► Affine ──► Product ──► Affine ──► … ──► Affine, the logits

Affine maps read the image and products, any number of them; products multiply affine values, element by element. Whatever
is linear disappears into the matrices: flattening, pooling, the batch normalisation that `models` already folded, sums of
branches, broadcasting. So a gate whose first map is linear starts from the value before the convolution that it gates.

A degree-2 activation is completed to a square, ``c2·x² + c1·x + c0 = c2·(x + c1/2c2)² + (c0 − c1²/4c2)``: the shift goes
into the map before it, factor and constant into the map after it, so that an activation costs one squaring and no
plaintext product (as in LoLa, Brutzkus et al. 2019, section 4, and HElayers). A polynomial of degree d > 2 takes
⌈log2(d + 1)⌉ levels: Chebyshev polynomials by ``T_(a+b) = 2·T_a·T_b − T_(a−b)``, and Paterson and Stockmeyer's division by
one of them at a time (Chen, Chillotti, Song, "Improved bootstrapping for approximate homomorphic encryption", EUROCRYPT
2019, section 3).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.polynomial import chebyshev
from scipy import sparse

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
    Polynomial,
    Pow,
    Relu,
    Reshape,
)

RANGE_MARGIN = 1.5  # how far beyond the calibration images an intermediate value may go
SMALLEST_RANGE = 1e-3  # of one value, relative to the largest of its layer
SMALLEST_COEFFICIENT = 1e-12  # of a series, relative to its largest
BASIS_VECTORS = 512  # through which an operator is sent at a time, to learn its matrix

Matrix: TypeAlias = "sparse.csr_matrix"
Shape = tuple[int, ...]
Linear = Gemm | Conv | AveragePool | GlobalAveragePool


@dataclass(frozen=True, eq=False)
class Affine:
    """``u = Σ_k weights[k] · x_k + bias`` over the values `inputs`.

    weights: (outputs, size of the input) each; bias: (outputs,).
    shape: of the outputs before they were flattened, (channels, height, width) behind a convolution. name: of the value of
    the network that it computes.
    """

    inputs: tuple[int, ...]
    weights: tuple[Matrix, ...]
    bias: np.ndarray
    shape: Shape = ()
    name: str = ""

    @property
    def terms(self) -> int:
        """The largest number of products in one output."""
        return max(1, int(np.sum([np.diff(weight.indptr) for weight in self.weights], axis=0).max()))


@dataclass(frozen=True)
class Product:
    """Of two affine values of one size, element by element; a square if they are the same."""

    left: int
    right: int
    name: str = ""


@dataclass(frozen=True)
class Carry:
    """An affine value as one that an affine map may read: rescaled once, like a product of it with one."""

    source: int
    name: str = ""


Step = Affine | Product | Carry


@dataclass(frozen=True, eq=False)
class Blocks:
    """``logits = output_scale · value n`` where value 0 is the image and value i + 1 is what ``steps[i]`` makes.

    shape: of the image. Every affine map is scaled so that its outputs stay within [−1, 1] on the calibration images times
    `RANGE_MARGIN`: then two bits of head room serve every network.
    """

    steps: tuple[Step, ...]
    output_scale: float
    shape: Shape = ()

    @property
    def affines(self) -> tuple[Affine, ...]:
        return tuple(step for step in self.steps if isinstance(step, Affine))

    @functools.cached_property
    def levels(self) -> tuple[int, ...]:
        """How many products lie before each value; an affine map waits for the latest product that can use it, because
        it is cheaper at a deeper level."""
        earliest = [0]
        for step in self.steps:
            earliest.append(_earliest(step, earliest))
        levels = list(earliest)
        for value, step in enumerate(self.steps, 1):
            if isinstance(step, Affine):
                uses = [earliest[v] - 1 for v, s in enumerate(self.steps, 1) if value in operands(s)]
                levels[value] = min(uses, default=earliest[value])
        return tuple(levels)

    @property
    def depth(self) -> int:
        return max(self.levels)

    def terms(self) -> list[int]:
        """The largest number of products in an output of the affine maps of each level."""
        found = [1] * (self.depth + 1)
        for value, step in enumerate(self.steps, 1):
            if isinstance(step, Affine):
                found[self.levels[value]] = max(found[self.levels[value]], step.terms)
        return found

    def forward(self, x: np.ndarray) -> np.ndarray:
        """x: (batch, inputs), flattened images → logits (batch, outputs)."""
        return self.values(x)[-1] * self.output_scale

    def values(self, x: np.ndarray) -> list[np.ndarray]:
        """All values (batch, size)."""
        found = [x]
        for step in self.steps:
            found.append(_evaluate(step, found))
        return found

    def chain(self) -> tuple[Affine, ...]:
        """The affine maps, if between two of them there is a square and nothing else. Raises BackendError."""
        expected = [Affine if i % 2 == 0 else Product for i in range(len(self.steps))]
        reads = [(i,) if i % 2 == 0 else (i, i) for i in range(len(self.steps))]
        if [type(step) for step in self.steps] != expected or [sources(step) for step in self.steps] != reads:
            raise BackendError(
                "this variant evaluates a chain of affine maps and squares; use the default one for branches, gates and "
                "polynomials of a higher degree"
            )
        return self.affines


def sources(step: Step) -> tuple[int, ...]:
    """The values that a step reads."""
    return step.inputs if isinstance(step, Affine) else operands(step)


def operands(step: Step) -> tuple[int, ...]:
    """The affine values that a step multiplies or carries on."""
    match step:
        case Product(left=left, right=right):
            return left, right
        case Carry(source=source):
            return (source,)
    return ()


def _earliest(step: Step, levels: list[int]) -> int:
    return max(levels[v] for v in sources(step)) + (not isinstance(step, Affine))


def _evaluate(step: Step, values: list[np.ndarray]) -> np.ndarray:
    match step:
        case Affine():
            return sum((weight @ values[v].T).T for v, weight in zip(step.inputs, step.weights)) + step.bias
        case Product():
            return values[step.left] * values[step.right]
        case Carry():
            return values[step.source]


# -- the values of a network as affine maps of products -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Form:
    """A value that was not computed yet: ``Σ weights[v] · value v + bias``, of this shape."""

    weights: dict[int, Matrix]
    bias: np.ndarray
    shape: Shape

    def rows(self, index: np.ndarray, shape: Shape) -> Form:
        """The elements at these places, in this order."""
        return Form({v: w[index] for v, w in self.weights.items()}, self.bias[index], shape)

    def scaled(self, factor: np.ndarray | float, shift: np.ndarray | float = 0.0) -> Form:
        diagonal = sparse.diags(np.broadcast_to(factor, self.bias.shape), format="csr")
        return Form({v: diagonal @ w for v, w in self.weights.items()}, self.bias * factor + shift, self.shape)

    def __add__(self, other: Form) -> Form:
        weights = dict(self.weights)
        for value, weight in other.weights.items():
            weights[value] = weights[value] + weight if value in weights else weight
        return Form(weights, self.bias + other.bias, self.shape)


class _Builder:
    """Turns the nodes of a network into steps, each as late as it can be."""

    def __init__(self, network: Network, reaches: dict[str, float]) -> None:
        self.steps: list[Step] = []
        self._shapes, self._reaches = network.shapes, reaches
        self._made: dict[tuple[int, str], int] = {}

    def emit(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps)

    def affine(self, form: Form, name: str) -> int:
        """The value of a form."""
        for weight in form.weights.values():
            weight.eliminate_zeros()
        weights = {v: w for v, w in form.weights.items() if w.nnz or len(form.weights) == 1}
        return self.emit(Affine(tuple(weights), tuple(weights.values()), form.bias, form.shape, name))

    def product(self, left: Form, right: Form, name: str) -> Form:
        a = self.affine(left, name)
        b = a if left is right else self.affine(right, name)
        return identity(self.emit(Product(a, b, name)), left.shape)

    def node(self, node: Node, values: list[Form]) -> Form:
        """Raises BackendError for an operator that is not in `OPERATORS`."""
        if type(node.operator) not in OPERATORS:
            names = ", ".join(sorted(operator.__name__ for operator in OPERATORS))
            raise BackendError(
                f"CKKS cannot evaluate {node.type} (node {node.output}), only {names}; train the polynomial lowering"
            )
        return OPERATORS[type(node.operator)](self, node.operator, node.output, *values)

    def linear(self, operator: Linear, name: str, x: Form) -> Form:
        matrix, constant = _matrix(operator, x.shape)
        weights = {v: matrix @ w for v, w in x.weights.items()}
        return Form(weights, matrix @ x.bias + constant, self._shapes[name])

    def reshape(self, operator: Flatten | Reshape, name: str, x: Form) -> Form:
        return dataclasses.replace(x, shape=self._shapes[name])

    def add(self, operator: Add, name: str, a: Form, b: Form) -> Form:
        shape = self._shapes[name]
        return _broadcast(a, shape) + _broadcast(b, shape)

    def multiply(self, operator: Mul, name: str, a: Form, b: Form) -> Form:
        shape = self._shapes[name]
        if a is b:
            return self.product(a, a, name)
        return self.product(_broadcast(a, shape), _broadcast(b, shape), name)

    def power(self, operator: Pow, name: str, x: Form) -> Form:
        coefficients = np.zeros(operator.exponent + 1)
        coefficients[-1] = 1.0
        return self.polynomial(Polynomial(coefficients), name, x)

    def polynomial(self, operator: Polynomial, name: str, x: Form) -> Form:
        c = _per_element(operator, x.shape)
        if len(c) <= 2 and operator.basis == "power":
            return x.scaled(c[1] if len(c) > 1 else 0.0, c[0])
        if len(c) == 3 and operator.basis == "power":
            shift, factor, constant = _complete_square(c)
            shifted = x.scaled(1.0, shift)
            return self.product(shifted, shifted, name).scaled(factor, constant)
        reach = self._reaches[name]
        if operator.basis == "power":
            c = _chebyshev(c, reach)
        return _Series(self, x.scaled(1 / reach), name).sum(c)


class _Series:
    """A sum of Chebyshev polynomials of u in [−1, 1] with the fewest levels."""

    def __init__(self, builder: _Builder, u: Form, name: str) -> None:
        self._builder, self._u, self._name = builder, u, name

    @functools.cached_property
    def _value(self) -> int:
        return self._builder.affine(self._u, self._name)

    @functools.cache  # noqa: B019 (lives as long as its series)
    def term(self, k: int) -> Form:
        """T_k, k ≥ 1, at level ⌈log2 k⌉; T_1 one level later."""
        name = f"{self._name}·T{k}"
        if k == 1:
            return identity(self._builder.emit(Carry(self._value, name)), self._u.shape)
        half = 1 << (k.bit_length() - 1)
        if k == half:
            half //= 2
        rest = k - half
        result = identity(self._builder.emit(Product(self._operand(half), self._operand(rest), name)), self._u.shape)
        result = result.scaled(2.0, -1.0 if half == rest else 0.0)
        return result if half == rest else result + self.term(half - rest).scaled(-1.0)

    @functools.cache  # noqa: B019
    def _operand(self, k: int) -> int:
        """T_k as an affine value."""
        return self._value if k == 1 else self._builder.affine(self.term(k), f"{self._name}·T{k}")

    def sum(self, c: np.ndarray, babies: int = 0) -> Form:
        """c: (degree + 1, elements). babies: a power of two; series of a lower degree are sums over the basis."""
        small = SMALLEST_COEFFICIENT * np.abs(c).max(initial=1e-300)
        used = np.flatnonzero(np.abs(c).max(axis=1) > small)
        degree = int(used.max(initial=0))
        # products that make the basis grow with the babies, divisions with degree / babies
        babies = babies or max(2, 1 << -(-degree.bit_length() // 2))
        if degree < babies:
            form = self._u.scaled(0.0, c[0]) if degree == 0 else Form({}, c[0].copy(), self._u.shape)
            for k in used[used > 0].tolist():
                form = form + self.term(k).scaled(c[k])
            return form
        half = 1 << (degree.bit_length() - 1)
        quotient, rest = _divided(c[: degree + 1], half)
        if np.abs(quotient[1:]).max(initial=0.0) <= small:
            return self.term(half).scaled(quotient[0]) + self.sum(rest, babies)
        left = self._builder.affine(self.sum(quotient, babies), self._name)
        product = self._builder.emit(Product(left, self._operand(half), self._name))
        return identity(product, self._u.shape) + self.sum(rest, babies)


def _divided(c: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Quotient and remainder of a series by T_m, of degree below 2·m: ``2·T_m·T_a = T_(m+a) + T_|m−a|``."""
    c = c.copy()
    quotient = np.zeros((len(c) - m, *c.shape[1:]))
    for k in range(len(c) - 1, m, -1):
        quotient[k - m] = 2 * c[k]
        c[2 * m - k] -= c[k]
    quotient[0] = c[m]
    return quotient, c[:m]


def identity(value: int, shape: Shape) -> Form:
    """A value itself."""
    size = math.prod(shape)
    return Form({value: sparse.identity(size, format="csr")}, np.zeros(size), shape)


# (builder, operator, name of its output, values that it reads) → value
OPERATORS: dict[type, Callable[..., Form]] = {
    Gemm: _Builder.linear,
    Conv: _Builder.linear,
    AveragePool: _Builder.linear,
    GlobalAveragePool: _Builder.linear,
    Flatten: _Builder.reshape,
    Reshape: _Builder.reshape,
    Add: _Builder.add,
    Mul: _Builder.multiply,
    Pow: _Builder.power,
    Polynomial: _Builder.polynomial,
}


def from_network(network: Network, calibration: np.ndarray) -> Blocks:
    """calibration: images (n, channels, height, width) in [0, 1], for the ranges of all values.

    Raises BackendError for a network that is not of the polynomial lowering, and for an activation that is almost linear.
    """
    if network.lowering != "polynomial":
        raise BackendError(f"CKKS needs the polynomial lowering of {network.model}, not {network.lowering!r}")
    if not len(calibration):
        raise BackendError("the owner needs calibration images to know the range of the intermediate values")
    builder = _Builder(network, _reaches(network, calibration))
    image = network.inputs[0]
    values = {image.name: identity(0, image.shape)}
    for node in network.nodes:
        values[node.output] = builder.node(node, [values[name] for name in node.inputs])
    builder.affine(values[network.results[0]], network.results[0])
    steps = _needed(builder.steps)
    return _normalise(steps, image.shape, calibration.reshape(len(calibration), -1))


def approximated(network: Network, degree: int, calibration: np.ndarray) -> Network:
    """The float network with each ReLU a Chebyshev interpolant of this degree, over the range of the calibration images
    times `RANGE_MARGIN`."""
    before = [node.inputs[0] for node in network.nodes if isinstance(node.operator, Relu)]
    values = network.evaluate({network.inputs[0].name: calibration}, before)
    series = chebyshev.chebinterpolate(lambda x: np.maximum(x, 0), degree)

    def polynomial(node: Node) -> Node:
        if not isinstance(node.operator, Relu):
            return node
        reach = RANGE_MARGIN * max(float(np.abs(values[node.inputs[0]]).max()), 1e-12)
        return dataclasses.replace(node, operator=Polynomial(series * reach, "chebyshev", reach))

    return dataclasses.replace(network, lowering="polynomial", nodes=tuple(map(polynomial, network.nodes)))


def _reaches(network: Network, calibration: np.ndarray) -> dict[str, float]:
    """By node: how far from zero the argument of a polynomial may be."""
    of = {n.output: n for n in network.nodes if isinstance(n.operator, Polynomial | Pow)}
    values = network.evaluate({network.inputs[0].name: calibration}, {n.inputs[0] for n in of.values()})
    return {
        name: node.operator.reach
        if isinstance(node.operator, Polynomial) and node.operator.basis == "chebyshev"
        else RANGE_MARGIN * max(float(np.abs(values[node.inputs[0]]).max()), 1e-12)
        for name, node in of.items()
    }


def _needed(steps: Iterable[Step]) -> list[Step]:
    """Without the steps that nothing reads, the values numbered anew."""
    steps = list(steps)
    used = {len(steps)}
    for value in range(len(steps), 0, -1):
        if value in used:
            used |= set(sources(steps[value - 1]))
    number = {value: index for index, value in enumerate(sorted(used | {0}))}
    kept: list[Step] = []
    for value, step in enumerate(steps, 1):
        if value not in used:
            continue
        match step:
            case Affine():
                kept.append(dataclasses.replace(step, inputs=tuple(number[v] for v in step.inputs)))
            case Product():
                kept.append(dataclasses.replace(step, left=number[step.left], right=number[step.right]))
            case Carry():
                kept.append(dataclasses.replace(step, source=number[step.source]))
    return kept


def _matrix(operator: Linear, shape: Shape) -> tuple[Matrix, np.ndarray]:
    """Matrix (outputs, inputs) and constant of an affine operator on values of this shape, learnt by applying it."""
    size, parts = math.prod(shape), []
    constant = np.asarray(operator(np.zeros((1, *shape)))).reshape(-1)
    if isinstance(operator, Gemm | Conv):
        operator = dataclasses.replace(operator, bias=np.zeros_like(operator.bias))
    for start in range(0, size, BASIS_VECTORS):
        stop = min(size, start + BASIS_VECTORS)
        basis = np.zeros((stop - start, size))
        basis[np.arange(stop - start), np.arange(start, stop)] = 1.0
        parts.append(sparse.csr_matrix(np.asarray(operator(basis.reshape(-1, *shape))).reshape(stop - start, -1)))
    return sparse.vstack(parts).T.tocsr(), constant


def _broadcast(form: Form, shape: Shape) -> Form:
    if form.shape == shape:
        return form
    index = np.arange(math.prod(form.shape)).reshape(form.shape)
    return form.rows(np.broadcast_to(index, shape).reshape(-1), shape)


def _per_element(operator: Polynomial, shape: Shape) -> np.ndarray:
    """Coefficients (degree + 1, elements) of a value of this shape."""
    c = np.asarray(operator.coefficients, dtype=np.float64)
    per_channel = c if c.ndim == 2 else np.repeat(c[:, None], shape[0], 1)
    return np.repeat(np.broadcast_to(per_channel, (len(c), shape[0])), int(np.prod(shape[1:], dtype=int)), axis=1)


def _complete_square(c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift before the square, factor and constant after it."""
    c0, c1, c2 = c
    if np.any(np.abs(c2) < 1e-6 * np.maximum(1.0, np.abs(c1))):
        raise BackendError("an activation has (almost) no quadratic term: the square cannot be completed; train again")
    return c1 / (2 * c2), c2, c0 - c1**2 / (4 * c2)


def _chebyshev(c: np.ndarray, reach: float) -> np.ndarray:
    """Coefficients of powers of x → of Chebyshev polynomials of x / reach."""
    scaled = c * reach ** np.arange(len(c))[:, None]
    powers = np.array([np.pad(chebyshev.poly2cheb([*[0] * k, 1]), (0, len(c) - 1 - k)) for k in range(len(c))])
    return powers.T @ scaled


def _normalise(steps: list[Step], shape: Shape, images: np.ndarray) -> Blocks:
    """Divides each output of an affine map by its largest value, so that the noise is small against every one of them;
    whatever reads it takes the factor back. The logits have one factor for all."""
    scaled: list[Step] = []
    values, factors = [images], [np.ones(images.shape[1])]
    for index, step in enumerate(steps):
        if isinstance(step, Affine):
            weights = [w @ sparse.diags(factors[v], format="csr") for v, w in zip(step.inputs, step.weights)]
            raw = sum((w @ values[v].T).T for v, w in zip(step.inputs, weights)) + step.bias
            largest = np.abs(raw).max(axis=0)
            overall = max(float(largest.max()), 1e-12)
            # a unit that hardly ever differs from zero is not blown up without limit: other images may move it more
            last = index == len(steps) - 1
            largest = np.full_like(largest, overall) if last else np.maximum(largest, SMALLEST_RANGE * overall)
            factor = RANGE_MARGIN * largest
            inverse = sparse.diags(1 / factor, format="csr")
            step = dataclasses.replace(
                step, weights=tuple((inverse @ w).tocsr() for w in weights), bias=step.bias / factor
            )
        elif isinstance(step, Product):
            factor = factors[step.left] * factors[step.right]
        else:
            factor = factors[step.source]
        scaled.append(step)
        factors.append(factor)
        values.append(_evaluate(step, values))
    return Blocks(tuple(scaled), float(factors[-1][0]), shape)
