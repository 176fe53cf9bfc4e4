"""The neutral network description: a graph of operators with NumPy weights, read by every backend.

Operators have the names and attributes of ONNX where ONNX has one; `Polynomial` and `Quantise` are of our own domain. A
value has a name and a shape without the batch axis; a node computes one value from earlier ones. Weights are constants of
an operator: they belong to the owner, and cross encrypted where a trial asks for an encrypted model.

A network is *lowered* in one of three ways, named by `Network.lowering`:

* ``float``      the trained reference (ReLU), never encrypted;
* ``polynomial`` every activation is a polynomial, for CKKS;
* ``integer``    every value is quantised (`Quantise`), weights are integers times a scale, for TFHE.

This module needs only the standard library and NumPy, because it is loaded in every party process.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.polynomial import chebyshev

from models import NetworkError
from models.catalogue import LOWERINGS

IMAGE = "image"  # the usual name of the one input
Pair = tuple[int, int]
FORWARD_VALUES = 40_000_000  # of the images that are computed at once: a limit of memory, for many or large images
Pads = tuple[int, int, int, int]  # before the first row and column, after the last row and column


# -- operators: called with the values of their inputs, batch axis first ------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gemm:
    """``y = W x + b``.

    weight: (outputs, inputs); bias: (outputs,). In an integer network, ``weight / weight_scale`` holds integers of
    `weight_bits` bits; elsewhere both are ``None``.
    """

    weight: np.ndarray
    bias: np.ndarray
    weight_bits: int | None = None
    weight_scale: float | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class Conv:
    """Cross-correlation. weight: (outputs, inputs / group, kernel_h, kernel_w); bias: (outputs,)."""

    weight: np.ndarray
    bias: np.ndarray
    strides: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    group: int = 1
    dilations: Pair = (1, 1)
    weight_bits: int | None = None
    weight_scale: float | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        outputs, per_group, kh, kw = self.weight.shape
        windows = _windows(_padded(x, self.pads), (kh, kw), self.strides, self.dilations)
        batch, _, height, width = windows.shape[:4]
        windows = windows.reshape(batch, self.group, per_group, height, width, kh, kw)
        weight = self.weight.reshape(self.group, outputs // self.group, per_group, kh, kw)
        y = np.einsum("bgchwij,gocij->bgohw", windows, weight, optimize=True)
        return y.reshape(batch, outputs, height, width) + self.bias[:, None, None]


@dataclass(frozen=True, eq=False)
class AveragePool:
    """Average over windows; `count_include_pad`: whether padded zeros count."""

    kernel_shape: Pair
    strides: Pair
    pads: Pads = (0, 0, 0, 0)
    count_include_pad: int = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        windows = _windows(_padded(x, self.pads), self.kernel_shape, self.strides)
        if not any(self.pads) or self.count_include_pad:
            return windows.mean(axis=(-2, -1))
        inside = _windows(_padded(np.ones((1, *x.shape[1:])), self.pads), self.kernel_shape, self.strides)
        return windows.sum(axis=(-2, -1)) / inside.sum(axis=(-2, -1))


@dataclass(frozen=True, eq=False)
class GlobalAveragePool:
    """(batch, channels, height, width) → (batch, channels, 1, 1)."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x.mean(axis=(2, 3), keepdims=True)


@dataclass(frozen=True, eq=False)
class Flatten:
    """(batch, …) → (batch, values), row-major."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1)


@dataclass(frozen=True, eq=False)
class Reshape:
    """shape: of one sample, without the batch axis; row-major."""

    shape: tuple[int, ...]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), *self.shape)


@dataclass(frozen=True, eq=False)
class Relu:
    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)


@dataclass(frozen=True, eq=False)
class Add:
    """Sum of two values, broadcast as in NumPy."""

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b


@dataclass(frozen=True, eq=False)
class Mul:
    """Product of two values, broadcast as in NumPy: a gate of shape (channels, 1, 1) scales whole channels."""

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a * b


@dataclass(frozen=True, eq=False)
class Pow:
    """Element by element, to a whole power of at least 1."""

    exponent: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x**self.exponent


@dataclass(frozen=True, eq=False)
class Polynomial:
    """``y = Σ_k coefficients[k] · x^k``, element by element; or, with Chebyshev's polynomials, ``Σ_k … · T_k(x / reach)``.

    coefficients: (degree + 1,), or (degree + 1, channels) for one polynomial a channel (axis 1 of the input). A series of
    Chebyshev polynomials means something for |x| ≤ reach.
    """

    coefficients: np.ndarray
    basis: Literal["power", "chebyshev"] = "power"
    reach: float = 1.0

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    def __call__(self, x: np.ndarray) -> np.ndarray:
        c = self.coefficients
        c = c.reshape(c.shape[:2] + (1,) * (x.ndim - 2)) if c.ndim == 2 else c
        if self.basis == "chebyshev":
            return chebyshev.chebval(x / self.reach, c, tensor=False)
        y = np.broadcast_to(c[-1], x.shape)
        for lower in c[-2::-1]:
            y = y * x + lower
        return y


@dataclass(frozen=True, eq=False)
class Quantise:
    """``y = scale · clip(round(x / scale), low, high)`` with `bits` bits; round half to even, as in torch."""

    scale: float
    bits: int
    signed: bool = False

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest integer: narrow signed range, as brevitas uses it, or 0 … 2^bits − 1."""
        return (-(2 ** (self.bits - 1)) + 1, 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.clip(np.round(x / self.scale), *self.range) * self.scale


Affine = Gemm | Conv | AveragePool | GlobalAveragePool | Flatten | Reshape  # of one value, without products of values
Unary = Affine | Relu | Pow | Polynomial | Quantise  # of one value
Operator = Unary | Add | Mul
OPERATORS: dict[str, type] = {
    c.__name__: c
    for c in (
        Gemm, Conv, AveragePool, GlobalAveragePool, Flatten, Reshape, Relu, Add, Mul, Pow, Polynomial, Quantise
    )
}  # fmt: skip


def operands(operator: type) -> int:
    """How many values an operator takes."""
    return 2 if operator in (Add, Mul) else 1


def unary(operator: Operator) -> Unary:
    """The operator itself. Raises NetworkError for one that takes two values."""
    if isinstance(operator, Add | Mul):
        raise NetworkError(f"{type(operator).__name__} takes two values, where only operators of one have a place")
    return operator


def _padded(x: np.ndarray, pads: Pads) -> np.ndarray:
    top, left, bottom, right = pads
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))


def _windows(x: np.ndarray, kernel: Pair, strides: Pair, dilations: Pair = (1, 1)) -> np.ndarray:
    """(batch, channels, height, width, kernel_h, kernel_w)"""
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations))
    every = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))  # type: ignore[call-overload]  # one axis only
    return every[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


# -- graphs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """A value from outside. shape: without the batch axis. holder: who has it; encrypted: whether it crosses so."""

    name: str
    shape: tuple[int, ...]
    holder: Literal["client", "owner"] = "client"
    encrypted: bool = True


@dataclass(frozen=True, eq=False)
class Node:
    """``output = operator(*inputs)``; values by name."""

    operator: Operator
    inputs: tuple[str, ...]
    output: str

    @property
    def type(self) -> str:
        return type(self.operator).__name__


def chained(operators: Iterable[Operator], source: str = IMAGE) -> tuple[Node, ...]:
    """One operator after another."""
    nodes: list[Node] = []
    for index, operator in enumerate(operators):
        nodes.append(Node(operator, (source,), f"{type(operator).__name__}_{index}"))
        source = nodes[-1].output
    return tuple(nodes)


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network. Most have one input, images (batch, channels, height, width) in [0, 1], and one result, logits
    (batch, outputs).

    nodes: in topological order. results: names of the values that come out. `provenance` says how it was made (seed,
    epochs, validation score, versions) and plays no part in inference. Raises NetworkError if the nodes make no sense.
    """

    model: str
    task: str
    lowering: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    results: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lowering not in LOWERINGS:
            raise NetworkError(f"unknown lowering {self.lowering!r}: expected one of {', '.join(LOWERINGS)}")
        known = {one.name for one in self.inputs}
        for node in self.nodes:
            if missing := set(node.inputs) - known:
                raise NetworkError(
                    f"node {node.output} reads {', '.join(sorted(missing))}, which no earlier node makes"
                )
            if node.output in known:
                raise NetworkError(f"two values have the name {node.output}")
            if len(node.inputs) != operands(type(node.operator)):
                raise NetworkError(f"node {node.output}: {node.type} does not take {len(node.inputs)} values")
            known.add(node.output)
        if missing := set(self.results) - known:
            raise NetworkError(f"no node makes the result {', '.join(sorted(missing))}")
        if not all(len(self.shapes[name]) == 1 for name in self.results):
            raise NetworkError(f"the results have shapes {[self.shapes[name] for name in self.results]}, not vectors")

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every value, without the batch axis."""
        values = {one.name: np.zeros((1, *one.shape)) for one in self.inputs}
        for node in self.nodes:
            try:
                values[node.output] = np.asarray(node.operator(*(values[name] for name in node.inputs)))
            except (ValueError, IndexError, TypeError) as error:
                shapes = ", ".join(str(values[name].shape[1:]) for name in node.inputs)
                raise NetworkError(f"node {node.output}: {node.type} does not take {shapes}: {error}") from error
        return {name: value.shape[1:] for name, value in values.items()}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the one input."""
        return self._image.shape

    @property
    def outputs(self) -> int:
        """How many logits there are."""
        return self.shapes[self._logits][0]

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Of all nodes, in order."""
        return tuple(node.operator for node in self.nodes)

    @property
    def is_chain(self) -> bool:
        """Whether each node reads the value before it, and nothing else."""
        before = [self.inputs[0].name, *(node.output for node in self.nodes)]
        return self.nodes == () or (
            len(self.inputs) == 1
            and all(node.inputs == (source,) for node, source in zip(self.nodes, before))
            and self.results == (before[-1],)
        )

    def with_operators(self, operators: Iterable[Operator]) -> Network:
        """The same network with these operators, one after another."""
        nodes = chained(operators, self._image.name)
        return dataclasses.replace(self, nodes=nodes, results=(nodes[-1].output,))

    @property
    def _image(self) -> Input:
        if len(self.inputs) != 1:
            raise NetworkError(f"{self.model} has {len(self.inputs)} inputs, not one image")
        return self.inputs[0]

    @property
    def _logits(self) -> str:
        if len(self.results) != 1:
            raise NetworkError(f"{self.model} has {len(self.results)} results, not one vector of logits")
        return self.results[0]

    def forward(self, images: np.ndarray) -> np.ndarray:
        """Logits (batch, outputs) in float64: the clear reference of this lowering."""
        each = max(1, FORWARD_VALUES // math.prod(self.input_shape))
        parts = [images[start : start + each] for start in range(0, max(1, len(images)), each)]
        found = [self.evaluate({self._image.name: part}, self.results)[self._logits] for part in parts]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def evaluate(self, inputs: Mapping[str, np.ndarray], wanted: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """The values of these names (default: all), batch axis first, float64."""
        keep = set(self.shapes if wanted is None else wanted)
        last = {name: index for index, node in enumerate(self.nodes) for name in node.inputs}
        values = {name: np.asarray(value, np.float64) for name, value in inputs.items()}
        for index, node in enumerate(self.nodes):
            values[node.output] = node.operator(*(values[name] for name in node.inputs))
            for name in set(node.inputs):
                if last[name] == index and name not in keep:
                    del values[name]
        return {name: values[name] for name in keep}

    @property
    def sha256(self) -> str:
        """Identity of what is computed: graph and weights, without the provenance."""
        digest = hashlib.sha256(json.dumps(_header(self) | {"provenance": None}, sort_keys=True).encode())
        for name, array in sorted(_arrays(self).items()):
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()

    # -- one file for weights (safetensors), one for everything a person reads (JSON) ------------------------------

    def save(self, stem: Any) -> None:
        """Writes ``stem.safetensors`` and ``stem.json``."""
        from safetensors.numpy import save_file

        stem = Path(stem)
        stem.parent.mkdir(parents=True, exist_ok=True)
        save_file(_arrays(self), stem.with_name(stem.name + ".safetensors"))
        stem.with_name(stem.name + ".json").write_text(json.dumps(_header(self), indent=1) + "\n")

    @staticmethod
    def load(stem: Any) -> Network:
        """Reads what `save` wrote. Raises NetworkError for files that are damaged or do not belong together."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        stem = Path(stem)
        try:
            header = json.loads(stem.with_name(stem.name + ".json").read_text())
            return _build(header, load_file(stem.with_name(stem.name + ".safetensors")))
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise NetworkError(f"damaged network {stem}: {error}; delete it and train again") from error

    # -- one block of bytes, for the message to a party (no library but NumPy) -------------------------------------

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, header=np.frombuffer(json.dumps(_header(self)).encode(), np.uint8), **_arrays(self))
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Network:
        """Raises NetworkError for bytes that `to_bytes` did not write."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in arrays.files}
            return _build(json.loads(values.pop("header").tobytes()), values)
        except NetworkError:
            raise
        except Exception as error:  # zipfile, NumPy and JSON each raise their own kinds for damaged bytes
            raise NetworkError(f"damaged network message: {error}") from error


def chain(
    model: str,
    task: str,
    lowering: str,
    input_shape: tuple[int, ...],
    operators: Iterable[Operator],
    provenance: dict[str, Any] | None = None,
) -> Network:
    """A network of one operator after another, from an image to logits."""
    nodes = chained(operators)
    result = nodes[-1].output if nodes else IMAGE
    return Network(model, task, lowering, (Input(IMAGE, tuple(input_shape)),), nodes, (result,), provenance or {})


def describe(operator: Operator) -> dict[str, Any]:
    """Name and attributes as plain JSON, without the arrays; `operator_of` is the inverse."""
    attributes = {f.name: getattr(operator, f.name) for f in dataclasses.fields(operator)}
    return {"op": type(operator).__name__} | {k: v for k, v in attributes.items() if not isinstance(v, np.ndarray)}


def operator_of(description: dict[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> Operator:
    """Raises NetworkError for a name that this version does not know, TypeError for attributes that do not fit it."""
    attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items() if k != "op"}
    cls = OPERATORS.get(description["op"])
    if cls is None:
        raise NetworkError(f"operator {description['op']!r} is unknown; this network needs a newer version")
    return cls(**attributes, **(arrays or {}))


def _arrays(network: Network) -> dict[str, np.ndarray]:
    return {
        f"{node.output}.{f.name}": np.ascontiguousarray(getattr(node.operator, f.name))
        for node in network.nodes
        for f in dataclasses.fields(node.operator)
        if isinstance(getattr(node.operator, f.name), np.ndarray)
    }


def _header(network: Network) -> dict[str, Any]:
    names = ("model", "task", "lowering", "results", "provenance")
    return {
        **{name: getattr(network, name) for name in names},
        "inputs": [dataclasses.asdict(one) for one in network.inputs],
        "nodes": [describe(n.operator) | {"inputs": n.inputs, "output": n.output} for n in network.nodes],
    }


def _build(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Network:
    nodes = []
    for spec in header["nodes"]:
        spec = dict(spec)
        inputs, output = tuple(spec.pop("inputs")), spec.pop("output")
        own = {n.removeprefix(f"{output}."): a for n, a in arrays.items() if n.rpartition(".")[0] == output}
        nodes.append(Node(operator_of(spec, own), inputs, output))
    inputs = tuple(Input(**one | {"shape": tuple(one["shape"])}) for one in header["inputs"])
    fields = {name: header[name] for name in ("model", "task", "lowering", "provenance")}
    return Network(**fields, inputs=inputs, nodes=tuple(nodes), results=tuple(header["results"]))
