"""`latentcnn` and `hefnet`: the shapes of the issue, and an export that computes what was trained."""

import numpy as np
import pytest
import torch

from models import catalogue, inputs, latentcnn, tasks, train
from models.network import IMAGE, Conv, Gemm, Input, Mul, Network, Polynomial

DIGITS = tasks.task("digits")
MODELS = [name for name in catalogue.MODELS if name.startswith(("latentcnn", "hefnet"))]


def network(module: latentcnn.LatentCnn, model: str, lowering: str, shape: tuple[int, ...]) -> Network:
    nodes = module.export()
    return Network(model, "t", lowering, (Input(IMAGE, shape),), nodes, (nodes[-1].output,))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lowering", ["float", "polynomial"])
def test_export_computes_what_was_trained(model, lowering):
    torch.manual_seed(0)
    shape = inputs.shape(model, DIGITS)
    module = train.ARCHITECTURES[model].build(shape, 14, lowering)
    values = torch.randn(20, *shape)
    for _ in range(20):  # so that the batch statistics are not those of a new module
        module(values)
    with torch.no_grad():
        for cubic in (m for m in module.modules() if isinstance(m, latentcnn.Cubic)):
            cubic.coefficients.copy_(torch.tensor([0.4, 0.3, -0.02]))
        expected = module.eval()(values).numpy()
    exported = network(module, model, lowering, shape)
    assert np.abs(exported.forward(values.numpy()) - expected).max() < 1e-4 * np.abs(expected).max()
    assert any(isinstance(operator, Mul) for operator in exported.operators) == ("-se" in model)


def layers(model: str, task: tasks.Task = DIGITS) -> tuple[list, list]:
    """(outputs, inputs / groups, groups) of the convolutions, (outputs, inputs) of the linear layers."""
    shape = inputs.shape(model, task)
    found = network(train.ARCHITECTURES[model].build(shape, 14, "polynomial").eval(), model, "polynomial", shape)
    convolutions = [(*o.weight.shape[:2], o.group) for o in found.operators if isinstance(o, Conv)]
    return convolutions, [o.weight.shape for o in found.operators if isinstance(o, Gemm)]


def test_shapes_are_those_that_were_published():
    small = [(16, 4, 1), (32, 4, 4)]
    large = [(64, 4, 1), (128, 8, 8), (256, 16, 8), (256, 32, 8)]
    assert layers("latentcnn") == (small, [(14, 32)])
    assert layers("latentcnn-se") == (small, [(8, 32), (32, 8), (14, 32)])
    assert layers("hefnet") == (large, [(14, 1024)])
    assert layers("hefnet-se") == (large, [(16, 256), (256, 16), (14, 1024)])
    assert layers("latentcnn-se@image")[0] == [(16, 1, 1), (32, 4, 4)]


def test_what_models_read():
    assert inputs.shape("latentcnn", DIGITS) == (4, 7, 7)
    assert inputs.shape("latentcnn@quantised", tasks.task("pathmnist_64")) == (4, 8, 8)
    assert inputs.shape("latentcnn-se@image", DIGITS) == (1, 28, 28)
    assert inputs.shape("hefnet-se", DIGITS) == inputs.shape("hefnet", tasks.task("chestmnist_224")) == (4, 32, 32)
    assert set(inputs.LATENTS) <= set(catalogue.MODELS)


def test_cubic_is_exported_in_the_interval_that_it_was_held_in():
    cubic = latentcnn.Cubic()
    exported = cubic.export()
    assert isinstance(exported, Polynomial) and exported.reach == cubic.REACH
    x = np.linspace(-6, 6, 25)
    np.testing.assert_allclose(exported(x[None]), [-1e-5 * x**3 + 0.12 * x + 0.5], atol=1e-6)
    cubic(torch.tensor([3.0, -4.0]))
    assert cubic.excess == 0
    cubic(torch.tensor([3.0, -6.0]))
    assert cubic.excess == 2


def test_the_integer_network_is_judged_itself():
    """It is quantised after training, from the adjusted polynomial network, and what is said of it is its own."""
    data = tasks.load(DIGITS)
    trained = train.train("latentcnn-se@image", DIGITS, data, budget=0.01)
    polynomial, integer = trained["polynomial"], trained["integer"]
    assert integer.lowering == "integer" and integer.provenance["quantisation"]["after"] == "training"
    for name in ("validation", "test"):
        split = getattr(data, name[:3] if name == "validation" else name)
        assert integer.provenance[name] == train.evaluate(integer, split, DIGITS.kind)
    logits = polynomial.forward(data.test.images[:50] / 255)
    error = np.abs(integer.forward(data.test.images[:50] / 255) - logits).max()
    assert 0 < error < 0.5 * np.ptp(logits)
