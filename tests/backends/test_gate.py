"""The circuit of squeeze and excitation: how many levels it takes, and that it computes the network."""

import numpy as np
import pytest
import torch

from backends.api import BackendError
from backends.slots import planner
from backends.slots.blocks import Affine, Blocks, Product, from_network
from models import inputs, tasks, train
from models.network import IMAGE, Input, Network


def network(model: str, outputs: int = 2) -> tuple[Network, np.ndarray]:
    """With weights as they are at the start of training, and inputs of it."""
    torch.manual_seed(0)
    shape = inputs.shape(model, tasks.task("digits"))
    module = train.ARCHITECTURES[model].build(shape, outputs, "polynomial")
    for _ in range(10):
        module(torch.randn(64, *shape))
    nodes = module.eval().export()
    made = Network(model, "digits", "polynomial", (Input(IMAGE, shape),), nodes, (nodes[-1].output,))
    return made, torch.randn(32, *shape).numpy()


def blocks(model: str) -> tuple[Blocks, Network, np.ndarray]:
    made, images = network(model)
    return from_network(made, images), made, images


@pytest.mark.parametrize("model", ["latentcnn", "latentcnn-se"])
def test_blocks_compute_the_network(model):
    found, made, images = blocks(model)
    expected = made.forward(images)
    assert np.abs(found.forward(images.reshape(32, -1)) - expected).max() < 1e-9 * np.abs(expected).max()


def test_the_first_map_of_a_gate_runs_beside_the_convolution_that_it_gates():
    """It reads what that convolution reads, so the gate takes five levels: map, square, map, and two for the cubic."""
    found, made, _ = blocks("latentcnn-se")
    steps = dict(enumerate(found.steps, 1))
    squeeze, convolution = (
        next(s for s in steps.values() if isinstance(s, Affine) and s.name.startswith(name) and s.bias.size == size)
        for name, size in (("Polynomial_6", 8), ("Mul", 32 * 49))
    )
    assert squeeze.inputs == convolution.inputs == (2,)
    assert isinstance(steps[2], Product) and steps[2].name == "Polynomial_1"  # the first activation
    # products before: of the first activation 1; of the gate 2 (square), 3 and 4 (cubic); 5 (channels); 6 (last activation)
    level = {s.name: found.levels[v] for v, s in steps.items() if isinstance(s, Product)}
    assert [level[n.output] for n in made.nodes if n.output in level] == [1, 2, 4, 5, 6]
    assert found.depth == 6 and blocks("latentcnn")[0].depth == 2


def test_a_value_that_no_ciphertext_holds_is_refused_at_once():
    made, _ = network("hefnet-se")
    with pytest.raises(BackendError, match="Polynomial_1 makes 57600 values, .* at most 32768 slots"):
        planner.require_slots(made)
    planner.require_slots(network("latentcnn-se@image")[0])
