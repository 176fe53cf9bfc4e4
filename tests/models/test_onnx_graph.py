"""Files of other exporters: every network that is read computes what torch and onnxruntime compute."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import models
from models import NetworkError, NetworkFileError, onnx_graph
from models.network import Network
from tests.models.user_networks import NETWORKS, Gated, LeNet, Lola, Square, export, seeded

FLOAT = TensorProto.FLOAT


def types(network: Network) -> list[str]:
    return [node.type for node in network.nodes]


def assert_equal(network: Network, module: nn.Module, shape: tuple[int, ...], images: int = 3) -> None:
    x = torch.rand(images, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module(x).numpy()
    assert np.abs(network.forward(x.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()


# -- networks of torch -------------------------------------------------------------------------------------------------

CHAIN = ["Conv", "Polynomial", "Flatten", "Gemm", "Polynomial", "Gemm"]
EXPECTED = {
    "lola": CHAIN,
    "lenet": ["Conv", "Relu", "AveragePool"] * 2 + ["Flatten", "Gemm", "Relu", "Gemm", "Relu", "Gemm"],
    "residual": ["Conv", "Polynomial", "Conv", "Polynomial", "Conv", "Add", "GlobalAveragePool", "Flatten", "Gemm"],
    "mlp": ["Flatten", "Gemm", "Polynomial", "Gemm", "Polynomial", "Gemm", "Polynomial", "Gemm"],
    "gated": [
        "Conv", "Polynomial", "GlobalAveragePool", "Flatten", "Gemm", "Polynomial", "Gemm", "Reshape", "Mul",
        "Flatten", "Gemm",
    ],
}  # fmt: skip


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torch(name, opset, dynamic, tmp_path):
    module, shape = seeded(NETWORKS[name], 4, channels=3), (3, 28, 28)
    network = onnx_graph.load(export(module, tmp_path / "net.onnx", shape, opset, dynamic))
    assert types(network) == EXPECTED[name]
    assert (network.input_shape, network.outputs) == (shape, 4)
    assert network.lowering == ("float" if name == "lenet" else "polynomial")
    assert_equal(network, module, shape)


def test_a_written_out_polynomial_is_one_node_of_its_degree(tmp_path):
    network = onnx_graph.load(export(seeded(Gated, expand=True), tmp_path / "net.onnx"))
    assert types(network) == EXPECTED["gated"]
    quadratic, cubic = (n.operator for n in network.nodes if n.type == "Polynomial")
    assert quadratic.coefficients.shape == (3, 6)
    assert np.allclose(cubic.coefficients, [0.1, 0.5, -0.2, 0.1])


def test_the_origin_names_the_file_and_what_it_holds(tmp_path):
    path = export(seeded(Lola), tmp_path / "net.onnx")
    origin = onnx_graph.load(path).provenance["origin"]
    assert origin["file"] == "net.onnx" and len(origin["sha256"]) == 64 and origin["how"] == "as it is"
    assert onnx_graph.load(path).model == str(path)


def test_from_torch_needs_no_file_and_no_eval():
    module = seeded(LeNet, 3).train()
    network = models.from_torch(module, torch.rand(1, 1, 28, 28))
    assert module.training
    assert_equal(network, module.eval(), (1, 28, 28))
    assert (network.model, types(network)) == ("LeNet", EXPECTED["lenet"])


@pytest.mark.parametrize("module", [nn.LSTM(28, 3), nn.Sequential(nn.Flatten(), nn.Linear(784, 2), nn.Tanh())])
def test_from_torch_refuses_in_one_sentence(module):
    with pytest.raises(NetworkFileError) as caught:
        models.from_torch(module, torch.rand(1, 28, 28))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(-1), nn.Sigmoid()])
def test_probabilities_at_the_end_are_left_out_and_it_is_said(end, tmp_path):
    module = seeded(Lola, 3)
    network = onnx_graph.load(export(nn.Sequential(module, end), tmp_path / "net.onnx"))
    assert types(network) == CHAIN
    assert type(end).__name__ in network.provenance["origin"]["how"]
    assert_equal(network, module, (1, 28, 28))


# -- random networks of torch ------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.factor, self.shift = (nn.Parameter(torch.rand(shape) + 0.5) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -(x - self.shift) / self.factor


class Cubic(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.1 * x**3 + (x - 0.5) * (0.2 - x) * 0.5


class Branches(nn.Module):
    """The sum or the product of two paths that keep the shape."""

    def __init__(self, a: nn.Module, b: nn.Module, product: bool) -> None:
        super().__init__()
        self.a, self.b, self.product = a, b, product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.a(x), self.b(x)
        return a * b if self.product else a - b


@st.composite
def torch_modules(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Convolutions, pools, normalisations, activations, branches; then linear layers."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    channels, height, width = shape = draw(st.sampled_from([(1, 8, 8), (3, 9, 7), (1, 6, 11)]))
    layers: list[nn.Module] = []

    def elementwise() -> nn.Module:
        return draw(
            st.sampled_from(
                [nn.ReLU(), Square(), Cubic(), nn.Identity(), nn.Dropout(0.3), nn.BatchNorm2d(channels),
                 Scaled((channels, 1, 1)), Scaled((1,)), Scaled((channels, height, width)), Scaled((width,))]
            )
        )  # fmt: skip

    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "pool", "elementwise", "elementwise", "branches"]))
        if kind == "conv":
            out, kernel, stride, pad = draw(st.sampled_from([(2, 3, 1, 1), (4, 2, 1, 0), (3, 3, 2, 1), (4, 3, 1, 2)]))
            group = channels if out % channels == 0 and draw(st.booleans()) else 1
            layers.append(nn.Conv2d(channels, out, kernel, stride, pad, groups=group, bias=draw(st.booleans())))
        elif kind == "pool":
            kernel, pad = draw(st.sampled_from([(2, 0), (2, 1), (1, 0)]))
            layers.append(nn.AvgPool2d(kernel, 1, pad, count_include_pad=draw(st.booleans())))
        elif kind == "branches":
            paths = (nn.Sequential(nn.Conv2d(channels, channels, 1), elementwise()), elementwise())
            layers.append(Branches(*paths, draw(st.booleans())))
        else:
            layers.append(elementwise())
        channels, height, width = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).shape[1:]
        if min(height, width) < 3:
            break
    width = channels * height * width
    layers.append(nn.Flatten())
    for out in draw(st.lists(st.integers(1, 6), max_size=2)):
        layers += [nn.Linear(width, out), draw(st.sampled_from([nn.ReLU(), Square(), Cubic(), nn.BatchNorm1d(out)]))]
        width = out
    return seeded(lambda: nn.Sequential(*layers, nn.Linear(width, 3)), seed=draw(st.integers(0, 9))), shape


@settings(max_examples=60)
@given(torch_modules())
def test_random_networks_of_torch(case):
    module, shape = case
    network = models.from_torch(module, torch.rand(2, *shape))
    assert_equal(network, module, shape)
    again = Network.from_bytes(network.to_bytes())
    assert np.array_equal(again.forward(np.ones((1, *shape))), network.forward(np.ones((1, *shape))))


# -- networks of other exporters: nodes written by hand ----------------------------------------------------------------


def model_of(nodes, constants=(), shape=("n", 3, 6, 6), output="y", opset=17, kind=FLOAT, **options):
    """constants: name → array. The output has any shape."""
    constants = {name: np.asarray(value) for name, value in dict(constants).items()}
    initialisers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(output, kind, None)],
        initialisers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **options)


def read(tmp_path, *arguments, **options) -> Network:
    """`load` compares with onnxruntime itself."""
    path = tmp_path / "hand.onnx"
    onnx.save(model_of(*arguments, **options), path)
    return onnx_graph.load(path)


def refused(tmp_path, *arguments, **options) -> str:
    with pytest.raises(NetworkFileError) as caught:
        read(tmp_path, *arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


random = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


END = [helper.make_node("Flatten", ["z"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]


def ended(node, values: int, others=(), **options):
    """A node that makes z of x, flattened and multiplied."""
    return ([node, *END], {"w": weights(values, 2), **dict(others)})


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_automatic_pads(mode, strides, tmp_path):
    side = -(-6 // strides[0]) if mode != "VALID" else (6 - 4) // strides[0] + 1
    conv = helper.make_node("Conv", ["x", "k"], ["z"], auto_pad=mode, strides=strides, kernel_shape=(4, 4))
    network = read(tmp_path, *ended(conv, 2 * side * side, {"k": weights(2, 3, 4, 4)}))
    assert types(network) == ["Conv", "Flatten", "Gemm"]
    pool = helper.make_node("AveragePool", ["x"], ["z"], auto_pad=mode, strides=strides, kernel_shape=(4, 4))
    assert types(read(tmp_path, *ended(pool, 3 * side * side))) == ["AveragePool", "Flatten", "Gemm"]


def test_channels_last_as_keras_exports_it(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=(0, 3, 1, 2)),
        helper.make_node("Conv", ["a", "k"], ["b"], strides=(2, 2), auto_pad="SAME_UPPER"),
        helper.make_node("Add", ["b", "b1"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=(0, 2, 3, 1)),
        helper.make_node("Mul", ["d", "g"], ["e"]),
        helper.make_node("Relu", ["e"], ["h"]),
        helper.make_node("Reshape", ["h", "to"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Add", ["m", "b2"], ["y"]),
    ]
    constants = {
        "k": weights(4, 3, 3, 3), "b1": weights(1, 4, 1, 1), "g": weights(4), "to": np.array([-1, 36]),
        "w": weights(36, 5), "b2": weights(5),
    }  # fmt: skip
    network = read(tmp_path, nodes, constants, shape=("n", 6, 6, 3))
    assert types(network) == ["Conv", "Relu", "Flatten", "Gemm"]
    assert network.input_shape == (3, 6, 6)


def test_the_mean_over_transposed_axes(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=(0, 2, 3, 1)),
        helper.make_node("ReduceMean", ["b"], ["f"], axes=(1, 2), keepdims=0),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    network = read(tmp_path, nodes, {"k": weights(4, 3, 3, 3), "w": weights(4, 2)})
    assert types(network) == ["Conv", "GlobalAveragePool", "Flatten", "Gemm"]


@pytest.mark.parametrize("trans, bias", [(0, (2,)), (1, (1, 2)), (1, ()), (0, None)])
def test_gemm_in_all_its_forms(trans, bias, tmp_path):
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node(
            "Gemm", ["f", "w", *(["b"] if bias is not None else [])], ["y"], transB=trans, alpha=0.5, beta=2.0
        ),
    ]
    constants = {"w": weights(2, 108) if trans else weights(108, 2)}
    constants |= {"b": weights(*bias)} if bias is not None else {}
    assert types(read(tmp_path, nodes, constants)) == ["Flatten", "Gemm"]


def test_means_and_sums_of_pixels(tmp_path):
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"]),  # a number for each pixel
        helper.make_node("Div", ["a", "std"], ["b"]),
        helper.make_node("Sum", ["b", "x", "b", "one"], ["z"]),
    ]
    network = read(tmp_path, [*nodes, *END], {"mean": weights(1, 3, 6, 6), "std": weights(3, 1, 1) + 5,
                                              "one": np.float32(1), "w": weights(108, 2)})  # fmt: skip
    assert network.lowering == "polynomial"


def test_an_affine_map_of_the_image_is_folded_into_the_layer_behind_it(tmp_path):
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"]),
        helper.make_node("Div", ["a", "std"], ["b"]),
        helper.make_node("Conv", ["b", "k"], ["z"]),
    ]
    constants = {
        "mean": weights(1, 3, 1, 1),
        "std": weights(3, 1, 1) + 5,
        "k": weights(4, 3, 3, 3),
        "w": weights(64, 2),
    }
    assert types(read(tmp_path, [*nodes, *END], constants)) == ["Conv", "Flatten", "Gemm"]


def test_what_two_nodes_read_is_not_changed_for_both(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"]),
        helper.make_node("Identity", ["a"], ["i"]),
        helper.make_node("Mul", ["i", "two"], ["b"]),  # i has one reader, but is a, which has two
        helper.make_node("Relu", ["a"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["z"]),
    ]
    network = read(tmp_path, [*nodes, *END], {"k": weights(4, 3, 3, 3), "two": np.float32(2), "w": weights(64, 2)})
    assert types(network) == ["Conv", "Relu", "Polynomial", "Add", "Flatten", "Gemm"]


def test_powers_beyond_a_useful_polynomial_are_products_of_values(tmp_path):
    powers = [helper.make_node("Pow", [a, "five"], [b]) for a, b in [("f", "p1"), ("p1", "p2"), ("p2", "f5")]]
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), *powers, helper.make_node("MatMul", ["f5", "w"], ["y"])]
    network = read(tmp_path, nodes, {"five": np.float32(5), "w": weights(108, 2)})
    assert types(network) == ["Polynomial", "Polynomial", "Polynomial", "Flatten", "Gemm"]
    mul = [helper.make_node("Mul", ["f", "f"], ["a0"])]
    mul += [helper.make_node("Mul", [f"a{i}", f"a{i}"], [f"a{i + 1}"]) for i in range(5)]
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), *mul, helper.make_node("MatMul", ["a5", "w"], ["y"])]
    assert "Mul" in types(read(tmp_path, nodes, {"w": weights(108, 2)}))


def test_constants_as_nodes_and_initialisers_as_inputs(tmp_path):
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weights(108, 2)))
    model = model_of([constant, helper.make_node("Flatten", ["x"], ["f"]), END[1]], {"b": weights(2)})
    model.graph.node.append(helper.make_node("Add", ["y", "b"], ["out"]))
    model.graph.input.append(helper.make_tensor_value_info("b", FLOAT, (2,)))
    model.graph.output[0].name = "out"
    onnx.save(model, tmp_path / "net.onnx")
    assert types(onnx_graph.load(tmp_path / "net.onnx")) == ["Flatten", "Gemm"]


def test_functions_of_the_model_are_written_out(tmp_path):
    square = helper.make_function(
        "own", "Square", ["a"], ["b"], [helper.make_node("Mul", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [helper.make_node("Square", ["x"], ["z"], domain="own"), *END]
    model = model_of(nodes, {"w": weights(108, 2)}, functions=[square])
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, tmp_path / "net.onnx")
    assert types(onnx_graph.load(tmp_path / "net.onnx")) == ["Polynomial", "Flatten", "Gemm"]


def test_nodes_that_nothing_reads_do_not_matter(tmp_path):
    dead = helper.make_node("MaxPool", ["x"], ["dead"], kernel_shape=(2, 2))
    network = read(tmp_path, [dead, helper.make_node("Relu", ["x"], ["z"]), *END], {"w": weights(108, 2)})
    assert types(network) == ["Relu", "Flatten", "Gemm"]


def test_flat_inputs_double_precision_and_weights_in_another_file(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    network = read(tmp_path, nodes, {"w": weights(49, 2).astype(np.float64)}, shape=("n", 49), kind=TensorProto.DOUBLE)
    assert (network.input_shape, types(network)) == ((49,), ["Gemm"])
    onnx.save(
        model_of(nodes, {"w": weights(49, 2)}, shape=(1, 49)), tmp_path / "two.onnx", save_as_external_data=True,
        location="two.data", size_threshold=0,
    )  # fmt: skip
    assert onnx_graph.load(tmp_path / "two.onnx").input_shape == (49,)
    (tmp_path / "two.data").unlink()
    with pytest.raises(NetworkFileError, match="has its weights in another file"):
        onnx_graph.load(tmp_path / "two.onnx")


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "node, said",
    [
        (
            helper.make_node("MaxPool", ["x"], ["z"], "pool1", kernel_shape=(2, 2)),
            "MaxPool node pool1.*average pooling",
        ),
        (helper.make_node("Sigmoid", ["x"], ["z"]), "not the end of the network"),
        (helper.make_node("LeakyRelu", ["x"], ["z"]), "LeakyRelu.*supported are Add, AveragePool, BatchNormalization"),
        (helper.make_node("AveragePool", ["x"], ["z"], kernel_shape=(2, 2), strides=(3, 3), ceil_mode=1), "ceil_mode"),
        (helper.make_node("ReduceMean", ["x"], ["z"], axes=(1,)), "height and width"),
        (helper.make_node("Pow", ["x", "half"], ["z"]), "whole powers"),
        (helper.make_node("Div", ["half", "x"], ["z"]), "divides by values"),
        (helper.make_node("Div", ["x", "zero"], ["z"]), "divides by zero"),
        (helper.make_node("Reshape", ["x", "flat"], ["z"]), "axis 0 is not the batch"),
        (helper.make_node("Transpose", ["x"], ["z"], perm=(1, 0, 2, 3)), "batch axis"),
        (helper.make_node("Add", ["x", "row"], ["z"]), "constant of shape"),
        (helper.make_node("Cast", ["x"], ["z"], to=TensorProto.INT32), "integers"),
        (helper.make_node("MatMul", ["x", "w"], ["z"]), "flatten its input"),
        (helper.make_node("RandomNormalLike", ["x"], ["z"]), "not supported"),
    ],
    ids=lambda value: value.op_type if hasattr(value, "op_type") else "",
)
def test_what_is_not_supported_is_named(node, said, tmp_path):
    constants = {"half": np.float32(0.5), "zero": np.float32(0), "flat": np.array([-1]), "row": weights(5),
                 "w": weights(108, 2)}  # fmt: skip
    assert re.search(said, refused(tmp_path, [node, *END], constants))


def test_operators_of_another_domain(tmp_path):
    model = model_of([helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft"), *END], {"w": weights(108, 2)})
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(NetworkFileError, match="operator com.microsoft.Gelu"):
        onnx_graph.load(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "shape, said",
    [
        (("n", 3, "h", "w"), "only the batch may be free"),
        (("n", 3, 6), "batch, channels, height, width"),
        ((), "batch"),
    ],
)
def test_wrong_input_shapes(shape, said, tmp_path):
    assert said in refused(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], shape=shape)


def test_other_ends(tmp_path):
    relu = helper.make_node("Relu", ["x"], ["y"])
    assert "not the logits" in refused(tmp_path, [relu])
    assert "of type int64" in refused(tmp_path, [helper.make_node("Identity", ["x"], ["y"])], kind=TensorProto.INT64)
    model = model_of([relu])
    model.graph.output.append(helper.make_tensor_value_info("x", FLOAT, None))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(NetworkFileError, match="2 outputs \\(y, x\\)"):
        onnx_graph.load(tmp_path / "two.onnx")
    model = model_of([helper.make_node("Add", ["x", "x2"], ["y"])])
    model.graph.input.append(helper.make_tensor_value_info("x2", FLOAT, ("n", 3, 6, 6)))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(NetworkFileError, match="2 inputs \\(x, x2\\)"):
        onnx_graph.load(tmp_path / "two.onnx")
    constant = helper.make_node("Identity", ["w"], ["y"])
    assert "does not depend on the images" in refused(tmp_path, [constant], {"w": weights(1, 2)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(value, tmp_path):
    w = weights(108, 2)
    w[3, 1] = value
    nodes = [helper.make_node("Identity", ["x"], ["z"]), *END]
    assert "w holds NaN or infinite weights" in refused(tmp_path, nodes, {"w": w})


def test_negative_variance_and_logits_that_overflow(tmp_path):
    normalise = helper.make_node("BatchNormalization", ["x", "o", "o", "o", "v"], ["z"])
    constants = {"o": np.ones(3, np.float32), "v": -np.ones(3, np.float32), "w": weights(108, 2)}
    assert "NaN" in refused(tmp_path, [normalise, *END], constants)
    large = {"w": np.full((108, 2), 3e38, np.float32)}
    assert "not finite" in refused(tmp_path, [helper.make_node("Identity", ["x"], ["z"]), *END], large)


@pytest.mark.parametrize("content", [b"", b"not ONNX", b"PK\x03\x04", bytes(100), b"\x08\x01"])
def test_files_that_are_no_onnx(content, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(NetworkFileError, match="export the network again") as caught:
        onnx_graph.load(path)
    assert "\n" not in str(caught.value)


def test_missing_folders_and_files_that_are_too_large(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path, "/dev/zero"):
        with pytest.raises(NetworkFileError, match="name an ONNX file"):
            onnx_graph.load(path)
    large = tmp_path / "large.onnx"
    with large.open("wb") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(NetworkFileError, match="2048 MiB: keep it below 512 MiB"):
        onnx_graph.load(large)


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_files_are_refused_in_one_sentence(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    onnx.save(model_of([helper.make_node("Relu", ["x"], ["z"]), *END], {"w": weights(108, 2)}), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1)) if data.draw(st.booleans()) else data.draw(st.integers(0, 200))
        content[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(content)
    try:
        assert onnx_graph.load(path).outputs
    except NetworkError as error:
        assert "\n" not in str(error)
