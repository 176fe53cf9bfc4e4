"""A network as a torch module: computes the same, trains, comes back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import NetworkError
from models.network import (
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
    Polynomial,
    Pow,
    Quantise,
    Relu,
    Reshape,
    chain,
)
from models.torch_graph import to_torch


def random_network(rng: np.random.Generator) -> Network:
    """Branches that join again, gates, pools, uneven pads; values stay around 1."""
    channels, side = int(rng.integers(1, 4)), int(rng.integers(5, 9))
    nodes: list[Node] = []
    shapes: dict[str, tuple[int, ...]] = {"image": (channels, side, side)}

    def add(operator, *inputs: str) -> str:
        name = f"v{len(nodes)}"
        nodes.append(Node(operator, inputs, name))
        shapes[name] = operator(*(np.zeros((1, *shapes[one])) for one in inputs)).shape[1:]
        return name

    def convolution(x: str, outputs: int, same: bool) -> str:
        inputs, group = shapes[x][0], 1
        if outputs % inputs == 0 and rng.random() < 0.3:
            group = inputs
        pads = (1, 1, 1, 1) if same else tuple(int(p) for p in rng.integers(int(min(shapes[x][1:]) < 3), 3, 4))
        strides = (1, 1) if same else (int(rng.integers(1, 3)), 1)
        weight = rng.normal(size=(outputs, inputs // group, 3, 3)) / np.sqrt(9 * inputs / group)
        return add(Conv(weight, rng.normal(size=outputs), strides, pads, group), x)

    def activation(x: str) -> str:
        kind, width = rng.integers(5), shapes[x][0]
        if kind == 0:
            return add(Relu(), x)
        if kind == 1:
            return add(Pow(2), x)
        coefficients = rng.normal(size=(int(rng.integers(2, 6)), width)) / 4
        if kind == 2:
            return add(Polynomial(coefficients, "chebyshev", 8.0), x)
        return add(Polynomial(coefficients[:3] if kind == 3 else coefficients[:3, 0]), x)

    x = "image"
    for _ in range(int(rng.integers(1, 4))):
        x = activation(convolution(x, int(rng.integers(1, 5)), same=False))
        if rng.random() < 0.5:
            x = add(Add(), x, activation(convolution(x, shapes[x][0], same=True)))
        if rng.random() < 0.5:
            x = add(Mul(), x, activation(add(GlobalAveragePool(), x)))
        if rng.random() < 0.5 and min(shapes[x][1:]) > 2:
            pads = tuple(int(p) for p in rng.integers(0, 2, 4))
            x = add(AveragePool((2, 2), (1, 2), pads, int(rng.integers(2))), x)
    size = int(np.prod(shapes[x]))
    x = add(Reshape((size,)) if rng.random() < 0.5 else Flatten(), x)
    add(Gemm(rng.normal(size=(3, size)) / np.sqrt(size), rng.normal(size=3)), x)
    return Network("m", "t", "polynomial", (Input("image", shapes["image"]),), tuple(nodes), (nodes[-1].output,))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_module_computes_the_network_and_comes_back(seed):
    rng = np.random.default_rng(seed)
    network = random_network(rng)
    images = rng.uniform(0, 1, (3, *network.input_shape))
    module, expected = to_torch(network), network.forward(images)
    scale = 1 + np.abs(expected).max()
    with torch.no_grad():
        found = module.double()(torch.from_numpy(images)).numpy()
    assert np.abs(found - expected).max() < 1e-5 * scale
    again = module.export()
    assert [n.inputs for n in again.nodes] == [n.inputs for n in network.nodes]
    assert np.abs(again.forward(images) - expected).max() < 1e-5 * scale


def test_what_was_trained_is_exported():
    rng = np.random.default_rng(0)
    network = random_network(rng)
    module, images = to_torch(network), torch.rand(8, *network.input_shape)
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        module(images).square().mean().backward()
        assert all(p.grad is not None for p in module.parameters())
        optimiser.step()
    with torch.no_grad():
        expected = module(images).numpy()
    trained = module.export()
    assert trained.sha256 != network.sha256
    np.testing.assert_allclose(trained.forward(images.numpy()), expected, atol=1e-3 * (1 + np.abs(expected).max()))


def test_integer_networks_are_refused():
    with pytest.raises(NetworkError, match="Quantise has no gradient: train the float"):
        to_torch(chain("m", "t", "integer", (1, 2, 2), (Quantise(0.5, 2), Flatten())))
