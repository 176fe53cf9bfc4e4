"""Quantisation after training: any graph becomes integers that nearly compute the same."""

import dataclasses

import numpy as np
import pytest

import models
from models import NetworkError, ptq, tasks, train, zoo
from models.network import (
    Add,
    AveragePool,
    Conv,
    Flatten,
    Gemm,
    Input,
    Mul,
    Network,
    Node,
    Polynomial,
    Quantise,
    Relu,
    chain,
)
from tests.backends.graphs import random_graph
from tests.models.user_networks import NETWORKS, seeded

WIDE = ptq.Bits(10, 12, 11, 10, 9, 10)


def images_for(network: Network, count: int = 200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *network.input_shape), dtype=np.uint8)


def difference(integer: Network, network: Network, images: np.ndarray) -> float:
    """Mean error of the logits as a share of their standard deviation."""
    expected = network.forward(images / 255)
    return float(np.abs(integer.forward(images / 255) - expected).mean() / expected.std())


@pytest.mark.parametrize("seed", range(12))
def test_with_many_bits_any_graph_is_nearly_what_it_was(seed):
    network, _ = random_graph(seed, 1 + seed % 4)
    images = images_for(network)
    integer = ptq.quantise(network, images, WIDE)
    assert (integer.lowering, integer.outputs, integer.input_shape) == ("integer", 3, network.input_shape)
    assert difference(integer, network, images) < 0.02
    assert difference(ptq.quantise(network, images), network, images) < 0.4


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_as_users_write_them(name, channels):
    import torch

    example = torch.zeros(1, channels, 28, 28)
    network = models.from_torch(seeded(NETWORKS[name], channels=channels), example)
    images = images_for(network, 30)
    assert difference(ptq.quantise(network, images, WIDE), network, images) < 0.02
    assert difference(ptq.quantise(network, images), network, images) < 0.5


@pytest.mark.parametrize("model", ["fcnn", "polycnn-s", "polycnn"])
@pytest.mark.parametrize("lowering", ["float", "polynomial"])
def test_accuracy_is_kept(model, lowering):
    data = tasks.load(tasks.task("digits"))
    network = zoo.network(model, data.task, lowering)
    integer = ptq.quantise(network, data.train.images)
    before, after = (train.evaluate(one, data.val, data.task.kind)["accuracy"] for one in (network, integer))
    assert after >= before - 0.02


def test_weights_and_roundings_are_what_integer_circuits_need():
    network = zoo.network("polycnn", tasks.task("digits"), "float")
    integer = ptq.quantise(network, tasks.load(tasks.task("digits")).train.images[:200])
    linear = [operator for operator in integer.operators if isinstance(operator, Gemm | Conv)]
    assert [layer.weight_bits for layer in linear] == [8, 8, 8, 5]
    for layer in linear:
        integers = layer.weight / layer.weight_scale
        np.testing.assert_allclose(integers, np.round(integers), atol=1e-6)
        assert np.abs(integers).max() < 2 ** (layer.weight_bits - 1)
    rounded = [o for o in integer.operators if isinstance(o, Quantise) and o.signed and o.bits == 5]
    assert len(rounded) == 3


def test_where_it_came_from_is_kept():
    network = dataclasses.replace(random_graph(0, 1)[0], provenance={"origin": {"file": "net.onnx"}})
    integer = ptq.quantise(network, images_for(network), ptq.Bits(accumulator=6))
    assert integer.provenance["origin"] == {"file": "net.onnx"}
    assert integer.provenance["quantisation"] == {
        "input": 6, "weight": 8, "accumulator": 6, "activation": 5, "factor": 4, "output_weight": 5,
        "after": "training", "images": 200,
    }  # fmt: skip
    assert integer.sha256 == ptq.quantise(network, images_for(network), ptq.Bits(accumulator=6)).sha256


def of_nodes(*nodes: Node) -> Network:
    last = Node(Flatten(), (nodes[-1].output,), "flat")
    return Network("own", "t", "float", (Input("image", (1, 4, 4)),), (*nodes, last), ("flat",))


def test_a_value_with_itself():
    network = of_nodes(
        Node(Add(), ("image", "image"), "twice"),
        Node(Mul(), ("twice", "twice"), "square"),
        Node(Relu(), ("square",), "y"),
    )
    assert difference(ptq.quantise(network, images_for(network), WIDE), network, images_for(network)) < 0.02


def test_normalisation_of_images_costs_no_table():
    """(x − mean) / deviation of three channels, before a padded convolution."""
    rng = np.random.default_rng(0)
    network = chain(
        "own", "t", "float", (3, 6, 6),
        (
            Polynomial(np.array([[-2.1, -2.0, -1.8], [4.4, 4.5, 4.4]])),
            Conv(rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4), pads=(1, 1, 1, 1)),
            Relu(), Flatten(), Gemm(rng.normal(size=(3, 144)), rng.normal(size=3)),
        ),
    )  # fmt: skip
    integer = ptq.quantise(network, images_for(network), WIDE)
    assert sum(isinstance(operator, Quantise) for operator in integer.operators) == 3  # image, accumulator, activation
    assert difference(integer, network, images_for(network)) < 0.02


def test_what_cannot_be_done_is_refused_and_the_node_named():
    padded = of_nodes(Node(AveragePool((2, 2), (1, 1), (1, 1, 0, 0)), ("image",), "pool"))
    with pytest.raises(NetworkError, match="node pool: windows of different sizes"):
        ptq.quantise(padded, images_for(padded))
    broken = of_nodes(Node(Polynomial(np.array([np.nan, 1, 1])), ("image",), "activation"))
    with pytest.raises(NetworkError, match="node activation: values that are no finite numbers"):
        ptq.quantise(broken, images_for(broken))
    network, _ = random_graph(0, 1)
    with pytest.raises(NetworkError, match="needs images"):
        ptq.quantise(network, images_for(network)[:0])
    with pytest.raises(NetworkError, match="quantised already"):
        ptq.quantise(ptq.quantise(network, images_for(network)), images_for(network))
    mixed = of_nodes(Node(Quantise(0.5, 2), ("image",), "q"))
    with pytest.raises(NetworkError, match="node q: the network has a quantiser already"):
        ptq.quantise(mixed, images_for(mixed))
