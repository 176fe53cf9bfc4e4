"""polycnn: its shapes, that folding changes nothing, and that each kind of task is learnt."""

import numpy as np
import pytest
import torch

from models import polycnn, tasks, train, zoo
from models.network import Conv, Gemm, Polynomial, Relu, chain
from tests.models.test_train import CASES, relabelled

REAL = ("float", "polynomial")
MODELS = ("polycnn", "polycnn-s")


@pytest.fixture(scope="module")
def digits():
    return tasks.load(tasks.task("digits"))


def trained_statistics(model, shape, outputs, lowering):
    """A module with batch statistics and activations that are not those of a new one, and the images that it saw."""
    torch.manual_seed(0)
    module, images = train.ARCHITECTURES[model].build(shape, outputs, lowering), torch.rand(40, *shape)
    for _ in range(20):
        module(images)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, polycnn.Quadratic):
                layer.linear.normal_()
    return module.eval(), images


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (3, 11, 9), (2, 8, 8), (1, 5, 5)], ids=str)
@pytest.mark.parametrize("lowering", REAL)
@pytest.mark.parametrize("model", MODELS)
def test_export_computes_what_was_trained(model, lowering, shape):
    module, images = trained_statistics(model, shape, 5, lowering)
    network = chain(model, "t", lowering, shape, module.export())
    with torch.no_grad():
        expected = module(images).numpy()
    assert np.abs(network.forward(images.numpy()) - expected).max() < 1e-5 * np.abs(expected).max()
    assert {type(layer) for layer in network.operators} & {Relu, Polynomial} == {
        Relu if lowering == "float" else Polynomial
    }


def shapes(model):
    return [layer.weight.shape for layer in trained_statistics(model, (1, 28, 28), 9, "polynomial")[0].export()
            if isinstance(layer, (Conv, Gemm))]  # fmt: skip


def test_shallow_is_the_network_of_lola():
    assert shapes("polycnn-s") == [(5, 1, 5, 5), (64, 720), (9, 64)]


def test_deep_has_three_convolution_blocks_and_few_values_after_each():
    *convolutions, _ = shapes("polycnn")
    assert [len(shape) for shape in convolutions] == [4, 4, 4]
    module, images = trained_statistics("polycnn", (1, 28, 28), 9, "polynomial")
    x = images.double().numpy()
    for layer in module.export():
        x = layer(x)
        assert x[0].size <= 2048


def test_widths_and_depth_are_parameters():
    design = polycnn.Design((polycnn.Convolution(3, 4, 2, 1), polycnn.Convolution(6, 3)), pool=2, hidden=(10, 7))
    layers = polycnn.PolyCnn(design, (3, 28, 28), 4, "polynomial").eval().export()
    found = [layer.weight.shape for layer in layers if isinstance(layer, (Conv, Gemm))]
    assert found == [(3, 3, 4, 4), (6, 3, 3, 3), (10, 216), (7, 10), (4, 7)]
    assert sum(isinstance(layer, Polynomial) for layer in layers) == 4


def test_the_square_can_be_completed_whatever_was_learnt():
    activation = polycnn.Quadratic(2)
    with torch.no_grad():
        activation.linear.copy_(torch.tensor([0.0, 100.0]))
    assert (activation.export().coefficients[2] == np.float32(polycnn.Quadratic.C2)).all()
    x = torch.randn(3, 2, 4, 4)
    with torch.no_grad():
        assert np.allclose(activation(x), activation.export()(x.numpy()), rtol=1e-5, atol=1e-5)


SLOW = [pytest.param("polycnn-s", case, marks=pytest.mark.slow) for case in (*CASES[:2], *CASES[3:])]


@pytest.mark.parametrize(
    "model, case", [("polycnn-s", CASES[2]), *SLOW, pytest.param("polycnn", CASES[2], marks=pytest.mark.slow)]
)
def test_learns_each_kind(digits, model, case):
    kind, channels, outputs, label, least = case
    data = relabelled(digits, kind, channels, outputs, label)
    for lowering, network in train.train(model, data.task, data, ("polynomial",), budget=0.04).items():
        assert (network.lowering, network.model, network.input_shape) == (lowering, model, (channels, 28, 28))
        assert network.provenance["test"]["accuracy"] > least


def test_penalty_is_of_inputs_beyond_the_range():
    activation = polycnn.Quadratic(1)
    activation(torch.tensor([[-4.0], [0.0], [4.0]]))
    assert activation.excess == 0
    activation(torch.tensor([[-6.0], [4.0], [0.0], [0.0]]))
    assert activation.excess == 1  # 2² / 4


@pytest.mark.parametrize("model", MODELS)
def test_digits_are_read(model, digits):
    for lowering in ("float", "polynomial"):
        network = zoo.network(model, digits.task, lowering)
        assert train.evaluate(network, digits.val, digits.task.kind)["accuracy"] > 0.95
