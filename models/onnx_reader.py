"""An ONNX graph → operators of the network description.

Nodes are read in order. What is computed from constants alone, shapes included, is computed (by ONNX's reference
implementation). Every other value is known as a *view*: a polynomial, element by element, of a value of the network, seen
in some shape and order of its elements. So views, transpositions, constants and products of a value with itself cost no
operator until something reads them that is not element by element; then one `Polynomial` is emitted, or an affine map is
folded into the affine operator before or behind it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from models import NetworkFileError
from models.network import (
    IMAGE,
    Add,
    AveragePool,
    Conv,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Input,
    Mul,
    Network,
    Node,
    Operator,
    Polynomial,
    Relu,
    Reshape,
)

FREE_BATCH = 61  # stands for a batch axis of any length where shapes are computed; no view of one sample starts with it
DEGREE = 16  # of one polynomial; a product that would have more is one of two values
FLOATS: dict[int, type[np.floating]] = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.DOUBLE: np.float64}
CURES = {
    "MaxPool": "train it with average pooling instead",
    "Sigmoid": "train it with a polynomial instead, or a Relu",
    "LeakyRelu": "train it with Relu instead",
    "Clip": "train it with Relu instead",
    "HardSigmoid": "train it with a polynomial instead",
    "ArgMax": "export the logits",
    "LSTM": "only networks on images can be read",
}


@dataclass(frozen=True, eq=False)
class View:
    """``polynomial(base)``, element by element.

    base: name of a value of the network, with `base_shape` of one sample.
    shape: in which ONNX sees it, without the batch axis, before it is repeated to the shape `expanded` (if not None).
    order: the place in the flattened base of each of the flattened elements that ONNX sees; None: 0, 1, 2, …
    coefficients: of powers, (degree + 1, 1) or (degree + 1, channels of the base).
    sole: at most one node reads the base, and through this view.
    """

    base: str
    base_shape: tuple[int, ...]
    shape: tuple[int, ...]
    order: np.ndarray | None = None
    coefficients: np.ndarray = dataclasses.field(default_factory=lambda: np.array([[0.0], [1.0]]))
    sole: bool = False
    expanded: tuple[int, ...] | None = None

    @property
    def seen(self) -> tuple[int, ...]:
        return self.expanded or self.shape

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    @property
    def is_plain(self) -> bool:
        return np.array_equal(self.coefficients, [[0.0], [1.0]])

    @property
    def lined_up(self) -> bool:
        """Whether ONNX sees the base as it is, but for a polynomial."""
        return self.order is None and self.shape == self.base_shape

    def like(self, other: View) -> bool:
        """Whether elements of the two bases at one place are elements of the two views at one place."""
        if self.order is None or other.order is None:
            ordered = self.order is other.order
        else:
            ordered = np.array_equal(self.order, other.order)
        return ordered and self.base_shape == other.base_shape and self.shape == other.shape


def _trimmed(coefficients: np.ndarray) -> np.ndarray:
    """Without leading powers that nothing uses, down to degree 1, and one column where all are equal."""
    while len(coefficients) > 2 and not coefficients[-1].any():
        coefficients = coefficients[:-1]
    equal = (coefficients == coefficients[:, :1]).all()
    return coefficients[:, :1] if equal else coefficients


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    longest = max(len(a), len(b))
    a, b = (np.pad(c, ((0, longest - len(c)), (0, 0))) for c in (a, b))
    return _trimmed(a + b)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    result = np.zeros((len(a) + len(b) - 1, max(a.shape[1], b.shape[1])))
    for power, factor in enumerate(a):
        result[power : power + len(b)] += factor * b
    return _trimmed(result)


class Reader:
    """Reads one graph. `network` is what it found; left_out: an operator at the end that is no part of it."""

    def __init__(self, model: onnx.ModelProto, source: str) -> None:
        """source: what messages call the model. Raises NetworkFileError."""
        self.source, self.opsets = source, model.opset_import
        self.left_out: NodeProto | None = None
        self._operators: dict[str, tuple[Operator, tuple[str, ...]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._emitted: dict[tuple[Any, ...], str] = {}
        graph = model.graph
        self._constants = {one.name: self._finite(one.name, numpy_helper.to_array(one)) for one in graph.initializer}
        self.input = self._input(graph)
        self.output = self._output(graph)
        self.nodes = _living(graph, self.output)
        self._uses = Counter(name for node in self.nodes for name in node.input)
        self._uses[self.output] += 1
        self._views = {self.input.name: self._image()}
        for node in self.nodes:
            self._read(node)

    def network(self, name: str, provenance: dict[str, Any]) -> Network:
        if self.output not in self._views:
            raise NetworkFileError(f"{self.source}: the output does not depend on the images; export the trained network")
        view = self._views[self.output]
        if sorted(view.shape)[:-1] != [1] * (len(view.shape) - 1):
            raise NetworkFileError(
                f"{self.source}: its output has the shape (batch, {', '.join(map(str, view.shape))}), which are not "
                "the logits of images; export a network whose output is (batch, classes)"
            )
        result = self._placed(dataclasses.replace(view, shape=(math.prod(view.shape),)), "the output")
        needed, nodes = {result}, []
        for output, (operator, inputs) in reversed(self._operators.items()):
            if output in needed:
                nodes.append(Node(operator, inputs, output))
                needed |= set(inputs)
        nodes = [self._final(node) for node in reversed(nodes)]
        lowering = "float" if any(isinstance(node.operator, Relu) for node in nodes) else "polynomial"
        image = Input(IMAGE, self._shapes[IMAGE])
        return Network(name, "", lowering, (image,), tuple(nodes), (result,), provenance)

    def _final(self, node: Node) -> Node:
        if not isinstance(node.operator, Gemm | Conv):
            return node
        weights = {name: getattr(node.operator, name).astype(np.float32) for name in ("weight", "bias")}
        for value in weights.values():
            self._finite(f"the weights of a {node.type} with what is folded into it", value)
        return dataclasses.replace(node, operator=dataclasses.replace(node.operator, **weights))

    # -- the ends ------------------------------------------------------------------------------------------------------

    def _input(self, graph: onnx.GraphProto) -> onnx.ValueInfoProto:
        inputs = [one for one in graph.input if one.name not in self._constants]
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs) or "none"
            raise NetworkFileError(f"{self.source} has {len(inputs)} inputs ({names}); export it with images alone")
        tensor = inputs[0].type.tensor_type
        if tensor.elem_type not in FLOATS:
            kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            raise NetworkFileError(
                f"{self.source}: its input {inputs[0].name} is of type {kind}; export it with float images in [0, 1]"
            )
        return inputs[0]

    def _output(self, graph: onnx.GraphProto) -> str:
        if len(graph.output) != 1:
            names = ", ".join(one.name for one in graph.output) or "none"
            raise NetworkFileError(
                f"{self.source} has {len(graph.output)} outputs ({names}); export it with the logits alone"
            )
        return graph.output[0].name

    def _image(self) -> View:
        """Channels first or, where only the last axis can be that of grey or RGB, last."""
        axes = self.input.type.tensor_type.shape.dim
        sides = tuple(axis.dim_value for axis in axes)
        if len(sides) not in (2, 4) or not all(sides[1:]):
            shown = ", ".join(str(axis.dim_value or axis.dim_param or "?") for axis in axes)
            raise NetworkFileError(
                f"{self.source}: its input has the shape ({shown}); export it for images "
                "(batch, channels, height, width), or (batch, pixels), of which only the batch may be free"
            )
        self.batch, shape = sides[0] or FREE_BATCH, sides[1:]
        self.any_batch = not sides[0]
        base, order = shape, None
        if len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3):
            base = (shape[2], *shape[:2])
            order = _order(np.arange(math.prod(base)).reshape(base).transpose(1, 2, 0))
        self._shapes[IMAGE] = base
        return View(IMAGE, base, shape, order)

    def as_seen(self, images: np.ndarray) -> np.ndarray:
        """Images (batch, channels, height, width), or (batch, pixels), as the file wants them."""
        view = self._views[self.input.name]
        flat = images.reshape(len(images), -1)
        return (flat if view.order is None else flat[:, view.order]).reshape(-1, *view.shape)

    # -- one node ------------------------------------------------------------------------------------------------------

    def _read(self, node: NodeProto) -> None:
        given = [name for name in node.input if name]
        ours = node.domain in ("", "ai.onnx")
        if ours and not node.op_type.startswith("Random") and all(name in self._constants for name in given):
            for name, value in zip(node.output, self._folded(node), strict=False):
                self._constants[name] = self._finite(name, value)
            return
        if not ours or node.op_type not in READERS:
            self.refuse(node)
        if node.op_type == "Shape":
            ends = _attributes(node)
            shape = (self.batch, *self.view(node).seen)
            self._constants[node.output[0]] = np.array(shape[ends.get("start", 0) : ends.get("end")], np.int64)
            return
        view = READERS[node.op_type](self, node)
        self._views[node.output[0]] = dataclasses.replace(view, sole=view.sole and self._uses[node.output[0]] == 1)

    def _folded(self, node: NodeProto) -> list[np.ndarray]:
        if node.op_type == "Constant" and "value" in (found := _attributes(node)):
            return [numpy_helper.to_array(found["value"])]
        from onnx.reference import ReferenceEvaluator

        known = [numpy_helper.from_array(self._constants[name], name) for name in set(node.input) if name]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        model = helper.make_model(helper.make_graph([node], "one", [], outputs, known), opset_imports=self.opsets)
        try:
            return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, {})]
        except Exception as error:  # whatever an operator raises for constants that it does not take
            self.refuse(node, f"cannot be computed from its constants: {error}")

    def _finite(self, name: str, value: np.ndarray) -> np.ndarray:
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise NetworkFileError(f"{self.source}: {name} holds NaN or infinite weights; export a network that is trained")
        return value

    def refuse(self, node: NodeProto, why: str = "") -> NoReturn:
        name = f"{node.op_type} node {node.name or node.output[0]}"
        if why:
            raise NetworkFileError(f"{self.source}: the {name} {why}")
        cure = f"{CURES[node.op_type]}; " if node.op_type in CURES else ""
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        supported = ", ".join(sorted({*READERS, "Constant", "ConstantOfShape"}))
        raise NetworkFileError(
            f"{self.source}: the {name} has the operator {operator}, which is not supported; {cure}supported are {supported}"
        )

    # -- what a node reads ---------------------------------------------------------------------------------------------

    def operand(self, node: NodeProto, index: int) -> View | np.ndarray | None:
        if index >= len(node.input) or not node.input[index]:
            return None
        name = node.input[index]
        if name not in self._constants and name not in self._views:
            self.refuse(node, f"reads {name}, a second output of another node; export the network after .eval()")
        return self._constants[name] if name in self._constants else self._views[name]

    def given(self, node: NodeProto, index: int) -> View | np.ndarray:
        """An input that no node of this operator may leave out."""
        found = self.operand(node, index)
        assert found is not None  # `onnx.checker` has refused the file otherwise
        return found

    def view(self, node: NodeProto, index: int = 0) -> View:
        found = self.operand(node, index)
        if not isinstance(found, View):
            self.refuse(node, f"needs values for input {index}, not constants; export it with constants folded")
        if found.expanded and node.op_type not in BROADCASTING:
            self.refuse(node, "reads values that are repeated (Expand), which only Add, Sub and Mul may")
        return found

    def constant(self, node: NodeProto, index: int, name: str = "", default: Any = None) -> Any:
        """An attribute of old opsets, or an input of new ones; both may be left out if there is a default."""
        found = self.operand(node, index)
        if isinstance(found, View):
            self.refuse(node, f"reads values that are not constant at input {index}; export it with constants there")
        return found if found is not None else _attributes(node).get(name, default)

    # -- what a node makes ---------------------------------------------------------------------------------------------

    def emit(self, operator: Operator, *inputs: str) -> str:
        name = f"{type(operator).__name__}_{len(self._operators)}"
        try:
            shape = np.shape(operator(*(np.zeros((1, *self._shapes[one])) for one in inputs)))[1:]
        except (ValueError, IndexError, TypeError) as error:
            shapes = " and ".join(str(self._shapes[one]) for one in inputs)
            raise NetworkFileError(f"{self.source}: {type(operator).__name__} does not take {shapes}: {error}") from error
        self._operators[name], self._shapes[name] = (operator, inputs), shape
        return name

    def once(self, operator: Operator, source: str, *key: Any) -> str:
        """As `emit`, unless it was emitted for the same key before."""
        where = (type(operator), source, *key)
        if where not in self._emitted:
            self._emitted[where] = self.emit(operator, source)
        return self._emitted[where]

    def made(self, operator: Operator, *inputs: str) -> View:
        name = self.emit(operator, *inputs)
        return View(name, self._shapes[name], self._shapes[name], sole=True)

    def settled(self, view: View) -> str:
        """The value that has the polynomial applied, in the base's shape and order."""
        if view.is_plain:
            return view.base
        c = view.coefficients
        c = c[:, 0] if c.shape[1] == 1 else c
        return self.once(Polynomial(c.copy()), view.base, c.shape, c.tobytes())

    def placed(self, node: NodeProto, view: View) -> str:
        """The value as ONNX sees it."""
        return self._placed(view, f"the {node.op_type} node {node.name or node.output[0]}")

    def _placed(self, view: View, reader: str) -> str:
        if view.order is not None:
            raise NetworkFileError(
                f"{self.source}: {reader} reads transposed values; export the network with channels first (NCHW)"
            )
        name = self.settled(view)
        if view.shape == view.base_shape:
            return name
        if len(view.shape) == 1:
            return self.once(Flatten(), name)
        return self.once(Reshape(view.shape), name, view.shape)

    # -- element by element --------------------------------------------------------------------------------------------

    def columns(self, node: NodeProto, view: View, constant: np.ndarray) -> tuple[View, np.ndarray]:
        """The constant as one number for each channel of the base (or for all); the base is flattened where it must be."""
        full = (1, *view.shape)
        constant = np.asarray(constant, np.float64)
        if constant.ndim == len(full) and len(constant) > 1:
            if not (constant == constant[:1]).all():
                self.refuse(node, "has a constant that differs from image to image; export it for a batch of 1")
            constant = constant[:1]
        if constant.size == 1:
            return view, constant.reshape(1)
        try:
            whole = np.broadcast_to(constant, full).reshape(-1)
        except ValueError:
            shapes = f"{constant.shape} for values of shape (batch, {', '.join(map(str, view.shape))})"
            self.refuse(node, f"has a constant of shape {shapes}; export it with a constant for each channel")
        there = whole
        if view.order is not None:
            there = np.empty_like(whole)
            there[view.order] = whole
        by_channel = there.reshape(view.base_shape[0], -1)
        if (by_channel == by_channel[:, :1]).all():
            return view, by_channel[:, 0].copy()
        flat = self.once(Flatten(), self.settled(view))
        plain = View(flat, self._shapes[flat], view.shape, view.order)
        return plain, there

    def affine(self, view: View, scale: np.ndarray, shift: np.ndarray) -> View:
        """``scale · view + shift``, both (1,) or one for each channel of the base; part of the operator that makes the
        base, if it is affine and nothing else reads it."""
        operator, inputs = self._operators.get(view.base, (None, ()))
        if isinstance(operator, Gemm | Conv) and view.sole and view.is_plain:
            weight = operator.weight * scale.reshape(-1, *[1] * (operator.weight.ndim - 1))
            folded = dataclasses.replace(operator, weight=weight, bias=operator.bias * scale + shift)
            self._operators[view.base] = (folded, inputs)
            return view
        coefficients = _sum(view.coefficients * scale, shift[None])
        return dataclasses.replace(view, coefficients=coefficients)

    def combined(self, node: NodeProto, a: View, b: View, operator: Add | Mul) -> View:
        if len(a.shape) != len(b.shape):
            self.refuse(node, "combines values of different ranks, whose batch axes do not meet; reshape them before")
        if np.broadcast_shapes(a.shape, b.shape) != np.broadcast_shapes(a.seen, b.seen):
            self.refuse(node, "reads values that are repeated (Expand) to more than the other value has")
        a, b = (dataclasses.replace(one, expanded=None) for one in (a, b))
        if a.base == b.base and a.like(b):
            if isinstance(operator, Add):
                return dataclasses.replace(a, coefficients=_sum(a.coefficients, b.coefficients))
            if a.degree + b.degree <= DEGREE:
                return dataclasses.replace(a, coefficients=_product(a.coefficients, b.coefficients))
        if a.like(b):
            made = self.made(operator, self.settled(a), self.settled(b))
            return dataclasses.replace(made, shape=a.shape, order=a.order)
        return self.made(operator, self.placed(node, a), self.placed(node, b))

    # -- shapes --------------------------------------------------------------------------------------------------------

    def reshaped(self, node: NodeProto, view: View, full: tuple[int, ...]) -> View:
        """full: the new shape with the batch axis, which must stay first."""
        if not full or full[0] != self.batch or math.prod(full[1:]) != math.prod(view.shape):
            self.refuse(
                node, f"turns (batch, {', '.join(map(str, view.shape))}) into {full}, in which axis 0 is not the batch; "
                "keep the images of a batch apart"
            )
        return dataclasses.replace(view, shape=tuple(int(side) for side in full[1:]))


def _order(places: np.ndarray) -> np.ndarray | None:
    order = places.reshape(-1)
    return None if np.array_equal(order, np.arange(order.size)) else order


def _living(graph: onnx.GraphProto, output: str) -> list[NodeProto]:
    """The nodes that the output depends on."""
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    return nodes[::-1]


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


# -- operators ---------------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Reader, NodeProto], View]] = {}
BROADCASTING = ("Add", "Sub", "Mul", "Identity", "Cast", "Dropout", "Shape")


def _reads(*types: str) -> Callable[[Callable[[Reader, NodeProto], View]], Callable[[Reader, NodeProto], View]]:
    def register(function: Callable[[Reader, NodeProto], View]) -> Callable[[Reader, NodeProto], View]:
        READERS.update(dict.fromkeys(types, function))
        return function

    return register


@_reads("Identity", "Dropout", "Cast", "Shape")  # Shape is read before
def _nothing(reader: Reader, node: NodeProto) -> View:
    if node.op_type == "Cast" and _attributes(node)["to"] not in (*FLOATS, onnx.TensorProto.FLOAT16):
        reader.refuse(node, "makes integers of values; leave it out")
    return reader.view(node)


@_reads("Softmax", "LogSoftmax", "Sigmoid")
def _probabilities(reader: Reader, node: NodeProto) -> View:
    """At the end alone, where it is left out: it changes no prediction, and metrics take probabilities from logits."""
    view = reader.view(node)
    at_end = node.output[0] == reader.output and len(view.shape) == 1
    if not at_end or _attributes(node).get("axis", 1) not in (1, -1):
        reader.refuse(node, "is not the end of the network, where alone it may be; replace it by a polynomial")
    reader.left_out = node
    return view


# -- affine


@_reads("Gemm")
def _gemm(reader: Reader, node: NodeProto) -> View:
    found = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | _attributes(node)
    weight, bias = reader.constant(node, 1), reader.operand(node, 2)
    if found["transA"]:
        reader.refuse(node, "has transA=1, which mixes the images of a batch; export it with transA=0")
    weight = np.asarray(weight, np.float64) if found["transB"] else np.asarray(weight, np.float64).T
    if not isinstance(bias, View):
        known = np.zeros(1) if bias is None else np.asarray(bias, np.float64) * found["beta"]
        return _linear(reader, node, weight * found["alpha"], known)
    made = _linear(reader, node, weight * found["alpha"], np.zeros(1))
    return reader.combined(node, made, reader.affine(bias, np.array([found["beta"]]), np.zeros(1)), Add())


@_reads("MatMul")
def _matmul(reader: Reader, node: NodeProto) -> View:
    return _linear(reader, node, np.asarray(reader.constant(node, 1), np.float64).T, np.zeros(1))


def _linear(reader: Reader, node: NodeProto, weight: np.ndarray, bias: np.ndarray) -> View:
    """weight: (outputs, inputs); an affine view is folded into it."""
    view = reader.view(node)
    if len(view.shape) != 1 or weight.ndim != 2 or weight.shape[1] != view.shape[0]:
        reader.refuse(
            node, f"multiplies (batch, {', '.join(map(str, view.shape))}) by a matrix of {weight.shape[::-1]}; "
            "flatten its input to (batch, values)"
        )  # fmt: skip
    if bias.size not in (1, len(weight)):
        reader.refuse(node, f"has {len(weight)} outputs and a bias of shape {bias.shape}; export one number for each output")
    bias = np.broadcast_to(bias.reshape(-1), len(weight))
    if view.order is not None:
        there = np.empty_like(weight)
        there[:, view.order] = weight
        weight = there
    if view.degree == 1:
        shift, scale = (np.repeat(c, weight.shape[1] // len(c)) for c in view.coefficients)
        weight, bias, name = weight * scale, bias + weight @ shift, view.base
    else:
        name = reader.settled(view)
    if len(view.base_shape) != 1:
        name = reader.once(Flatten(), name)
    return reader.made(Gemm(weight, np.array(bias)), name)


@_reads("Conv")
def _conv(reader: Reader, node: NodeProto) -> View:
    view, weight, bias = reader.view(node), reader.constant(node, 1), reader.constant(node, 2)
    weight = np.asarray(weight, np.float64)
    if len(view.shape) != 3 or weight.ndim != 4:
        reader.refuse(node, "is not over the two axes of images; only two-dimensional convolutions can be read")
    found = _attributes(node)
    group, dilations = found.get("group", 1), tuple(found.get("dilations", (1, 1)))
    strides, pads = _steps(reader, node, view.shape[1:], weight.shape[2:], dilations)
    outputs, inputs = len(weight), weight.shape[1]
    if inputs * group != view.shape[0] or outputs % group:
        reader.refuse(node, f"has weights {weight.shape} in {group} groups for {view.shape[0]} channels; export it again")
    bias = np.zeros(outputs) if bias is None else np.asarray(bias, np.float64)
    name = ""
    if view.lined_up and view.degree == 1 and not (any(pads) and view.coefficients[0].any()):
        shift, scale = (np.broadcast_to(c, view.shape[0]).reshape(group, 1, inputs) for c in view.coefficients)
        each = lambda c: np.broadcast_to(c, (group, outputs // group, inputs)).reshape(outputs, inputs, 1, 1)  # noqa: E731
        bias = bias + (weight * each(shift)).sum(axis=(1, 2, 3))
        weight, name = weight * each(scale), view.base
    operator = Conv(weight, bias, strides, pads, group, dilations)
    return reader.made(operator, name or reader.placed(node, view))


@_reads("AveragePool")
def _average_pool(reader: Reader, node: NodeProto) -> View:
    view, found = reader.view(node), _attributes(node)
    kernel = tuple(found["kernel_shape"])
    if len(view.shape) != 3 or len(kernel) != 2:
        reader.refuse(node, "is not over the two axes of images; only two-dimensional pooling can be read")
    if any(step != 1 for step in found.get("dilations", ())):
        reader.refuse(node, "has dilations; export it without")
    strides, pads = _steps(reader, node, view.shape[1:], kernel)
    reaches = [side + pads[i] + pads[i + 2] - kernel[i] for i, side in enumerate(view.shape[1:])]
    if found.get("ceil_mode") and any(reach % step for reach, step in zip(reaches, strides)):
        reader.refuse(node, "has ceil_mode=1, where the last window is cut off; export it with ceil_mode=0")
    return _averaged(reader, node, AveragePool(kernel, strides, pads, found.get("count_include_pad", 0)), view)


@_reads("GlobalAveragePool")
def _global_average_pool(reader: Reader, node: NodeProto) -> View:
    view = reader.view(node)
    if len(view.shape) != 3:
        reader.refuse(node, "is not over the two axes of images; only two-dimensional pooling can be read")
    return _averaged(reader, node, GlobalAveragePool(), view)


@_reads("ReduceMean")
def _reduce_mean(reader: Reader, node: NodeProto) -> View:
    """Over two of three axes, which are the height and width of images in some order of axes."""
    view, rank = reader.view(node), len(reader.view(node).shape) + 1
    axes = sorted({int(axis) % rank for axis in np.ravel(reader.constant(node, 1, "axes", ()))})
    if rank != 4 or len(axes) != 2 or 0 in axes:
        reader.refuse(node, f"averages over the axes {axes}; only the height and width of images can be averaged")
    kept = next(axis for axis in (1, 2, 3) if axis not in axes)
    pooled = _averaged(reader, node, GlobalAveragePool(), _transposed(view, (kept - 1, *(axis - 1 for axis in axes))))
    keep = _attributes(node).get("keepdims", 1)
    shape = tuple(view.shape[kept - 1] if axis == kept else 1 for axis in (1, 2, 3) if keep or axis == kept)
    return dataclasses.replace(pooled, shape=shape)


def _averaged(reader: Reader, node: NodeProto, operator: AveragePool | GlobalAveragePool, view: View) -> View:
    """An affine view is averaged before it is scaled and shifted, unless padded zeros count."""
    padded = isinstance(operator, AveragePool) and any(operator.pads) and operator.count_include_pad
    if view.lined_up and view.degree == 1 and not padded:
        return dataclasses.replace(reader.made(operator, view.base), coefficients=view.coefficients)
    return reader.made(operator, reader.placed(node, view))


def _steps(
    reader: Reader,
    node: NodeProto,
    sides: tuple[int, ...],
    kernel: tuple[int, ...],
    dilations: tuple[int, ...] = (1, 1),
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Strides and pads, those of auto_pad computed."""
    found = _attributes(node)
    strides, mode = tuple(found.get("strides", (1, 1))), found.get("auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", ""):
        pads = tuple(found.get("pads", (0, 0, 0, 0)))
    elif mode == "VALID":
        pads = (0, 0, 0, 0)
    else:
        reaches = [d * (k - 1) + 1 for k, d in zip(kernel, dilations)]
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sides, strides, reaches)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = (*less, *more) if mode == "SAME_UPPER" else (*more, *less)
    if any(pad < 0 for pad in pads):
        reader.refuse(node, "has negative pads; export it with pads of at least 0")
    return strides, pads


@_reads("BatchNormalization")
def _batch_normalization(reader: Reader, node: NodeProto) -> View:
    view, found = reader.view(node), _attributes(node)
    if found.get("training_mode"):
        reader.refuse(node, "is in training mode; export the network after .eval()")
    scale, bias, mean, variance = (np.asarray(reader.constant(node, i), np.float64) for i in (1, 2, 3, 4))
    factor = scale / np.sqrt(variance + found.get("epsilon", 1e-5))
    shape = (1, -1, *[1] * (len(view.shape) - 1))
    view, factors = reader.columns(node, view, factor.reshape(shape))
    view, shifts = reader.columns(node, view, (bias - mean * factor).reshape(shape))
    return reader.affine(view, factors, shifts)


# -- element by element


@_reads("Relu")
def _relu(reader: Reader, node: NodeProto) -> View:
    view = reader.view(node)
    return dataclasses.replace(reader.made(Relu(), reader.settled(view)), shape=view.shape, order=view.order)


@_reads("Add", "Sub", "Mul", "Sum")
def _binary(reader: Reader, node: NodeProto) -> View:
    first, *others = (reader.given(node, index) for index in range(len(node.input)))
    for other in others:
        first = _pair(reader, node, first, other)
    if not isinstance(first, View):
        reader.refuse(node, "adds constants; export it with constants folded")
    return first


def _pair(reader: Reader, node: NodeProto, a: View | np.ndarray, b: View | np.ndarray) -> View | np.ndarray:
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Sub":
        b = reader.affine(b, -one, zero) if isinstance(b, View) else -b
    if not isinstance(a, View):
        if not isinstance(b, View):
            return a + b
        a, b = b, a
    if isinstance(b, View):
        return reader.combined(node, a, b, Mul() if node.op_type == "Mul" else Add())
    view, columns = reader.columns(node, a, b)
    return reader.affine(view, columns, zero) if node.op_type == "Mul" else reader.affine(view, one, columns)


@_reads("Neg")
def _neg(reader: Reader, node: NodeProto) -> View:
    return reader.affine(reader.view(node), -np.ones(1), np.zeros(1))


@_reads("Div")
def _div(reader: Reader, node: NodeProto) -> View:
    divisor = reader.given(node, 1)
    if isinstance(divisor, View):
        reader.refuse(node, "divides by values that are not constant, which no backend can; replace it by a polynomial")
    if not np.all(divisor):
        reader.refuse(node, "divides by zero; export a network that is trained")
    view, columns = reader.columns(node, reader.view(node), divisor)
    return reader.affine(view, 1 / columns, np.zeros(1))


@_reads("Pow")
def _pow(reader: Reader, node: NodeProto) -> View:
    view, exponents = reader.view(node), np.unique(reader.constant(node, 1))
    if exponents.size != 1 or exponents[0] != round(exponents[0]) or not 1 <= exponents[0] <= DEGREE:
        reader.refuse(node, f"has the exponent {exponents}; only whole powers of 1 to {DEGREE} are polynomials")
    exponent = int(exponents[0])
    if view.degree * exponent > DEGREE:
        view = View(reader.settled(view), view.base_shape, view.shape, view.order)
    coefficients = np.ones((1, 1))
    for _ in range(exponent):
        coefficients = _product(coefficients, view.coefficients)
    return dataclasses.replace(view, coefficients=coefficients)


# -- shapes


@_reads("Reshape")
def _reshape(reader: Reader, node: NodeProto) -> View:
    view = reader.view(node)
    before, target = (reader.batch, *view.shape), [int(side) for side in np.ravel(reader.constant(node, 1, "shape", ()))]
    if not _attributes(node).get("allowzero"):
        target = [before[i] if side == 0 and i < len(before) else side for i, side in enumerate(target)]
    if target.count(-1) == 1:
        target[target.index(-1)] = math.prod(before) // max(1, -math.prod(target))
    return reader.reshaped(node, view, tuple(target))


@_reads("Flatten")
def _flatten(reader: Reader, node: NodeProto) -> View:
    view = reader.view(node)
    before = (reader.batch, *view.shape)
    axis = _attributes(node).get("axis", 1)
    return reader.reshaped(node, view, (math.prod(before[:axis]), math.prod(before[axis:])))


@_reads("Squeeze", "Unsqueeze")
def _squeeze(reader: Reader, node: NodeProto) -> View:
    view = reader.view(node)
    before = (reader.batch, *view.shape)
    axes = [int(axis) for axis in np.ravel(reader.constant(node, 1, "axes", ()))]
    if node.op_type == "Unsqueeze":
        rank = len(before) + len(axes)
        rest = iter(before)
        added = {axis % rank for axis in axes}
        return reader.reshaped(node, view, tuple(1 if i in added else next(rest) for i in range(rank)))
    dropped = {axis % len(before) for axis in axes} or {i for i, side in enumerate(before) if side == 1}
    if 0 in dropped:
        reader.refuse(node, "takes away the batch axis; export the network with a free batch axis (dynamic_axes)")
    return reader.reshaped(node, view, tuple(side for i, side in enumerate(before) if i not in dropped))


@_reads("Expand")
def _expand(reader: Reader, node: NodeProto) -> View:
    view = reader.view(node)
    target = tuple(int(side) for side in np.ravel(reader.constant(node, 1)))
    seen = np.broadcast_shapes((reader.batch, *view.shape), target)
    if len(seen) != len(view.shape) + 1 or seen[0] != reader.batch:
        reader.refuse(node, f"repeats values to {target}, over the batch; repeat those of one image alone")
    return view if seen[1:] == view.shape else dataclasses.replace(view, expanded=seen[1:])


@_reads("Transpose")
def _transpose(reader: Reader, node: NodeProto) -> View:
    view = reader.view(node)
    axes = tuple(_attributes(node).get("perm", range(len(view.shape), -1, -1)))
    if axes[0] != 0:
        reader.refuse(node, f"moves the batch axis ({axes}); keep the images of a batch apart (axis 0)")
    return _transposed(view, tuple(axis - 1 for axis in axes[1:]))


def _transposed(view: View, axes: tuple[int, ...]) -> View:
    places = np.arange(math.prod(view.shape)) if view.order is None else view.order
    order = _order(places.reshape(view.shape).transpose(axes))
    return dataclasses.replace(view, shape=tuple(view.shape[axis] for axis in axes), order=order)
