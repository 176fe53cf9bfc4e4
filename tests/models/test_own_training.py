"""Relus of a user's network become squares, and the network learns to do without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import models
from models import NetworkError, own_training, tasks, zoo
from models.network import Polynomial, Relu
from models.tasks import Dataset, normalise
from tests.models.user_networks import LeNet, Lola, export, seeded


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return tasks.load(tasks.task("digits"))


@pytest.fixture
def short(tmp_path, monkeypatch):
    """An empty cache, and trainings of seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(own_training, "IMAGES", 10_000)
    monkeypatch.setattr(own_training, "POOL_IMAGES", 8_000)


class Residual(nn.Module):
    """One Relu behind a sum, one behind pooling, one whose input is read twice."""

    def __init__(self, outputs: int = 10) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.output = nn.Linear(4 * 49, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = torch.relu(y + self.second(torch.relu(y)))
        return self.output(torch.relu(nn.functional.avg_pool2d(y - 0.1, 2)).flatten(1))


class Small(nn.Sequential):
    def __init__(self, outputs: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, outputs))


def learnt(module: nn.Module, data: Dataset) -> nn.Module:
    """A few seconds of training, as a user does it."""
    torch.manual_seed(0)
    images, labels = torch.from_numpy(normalise(data.train.images)), torch.from_numpy(data.train.labels[:, 0])
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(8):
        for batch in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(images[batch]), labels[batch]).backward()
            optimiser.step()
    return module.eval()


@pytest.mark.parametrize("middle", [0.0, -0.7, 3.0, -3.0])
def test_a_square_starts_as_near_to_relu_as_it_can(middle):
    x = np.random.default_rng(0).normal(middle, [[0.5, 20.0]], (4000, 2))
    square = own_training.Quadratic(x)
    with torch.no_grad():
        found = square(torch.from_numpy(x).float()).numpy()
    error = np.sqrt(np.square(found - np.maximum(x, 0)).mean(0)) / x.std(0)
    assert (error < 0.2).all()


def test_the_square_can_be_completed_whatever_was_learnt_and_is_exported_as_computed():
    square = own_training.Quadratic(np.random.default_rng(0).normal(2, 3, (500, 3, 4, 4)))
    with torch.no_grad():
        square.square.fill_(-50.0)
        square.lower.normal_()
    exported, x = square.export(), torch.randn(20, 3, 4, 4) * 3 + 2
    np.testing.assert_allclose(exported.coefficients[2], square.LEAST / square.reach, rtol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(exported(x.numpy()), square(x).numpy(), rtol=1e-4, atol=1e-4)


def test_inputs_beyond_the_range_are_penalised():
    x = np.linspace(-1, 1, 1001)[:, None]
    square = own_training.Quadratic(x)
    square(torch.from_numpy(x).float())
    assert square.excess == 0
    square(torch.tensor([[3 * square.reach[0]]]).float())
    assert square.excess == pytest.approx((3 - square.RANGE) ** 2, rel=1e-3)


@pytest.mark.parametrize("make", [LeNet, Residual])
def test_network_is_exported_as_computed(make, digits):
    original = models.from_torch(seeded(make, 10), torch.zeros(1, 1, 28, 28))
    module = own_training._module(own_training._replaced(original, digits.train.images[:100]), original)
    network = own_training._exported(module.eval())
    assert network.lowering == "polynomial" and not any(isinstance(o, Relu) for o in network.operators)
    assert sum(isinstance(o, Polynomial) for o in network.operators) >= 3
    images = normalise(digits.val.images[:20])
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    assert np.abs(network.forward(images) - expected).max() < 1e-4 * np.abs(expected).max()


def test_squares_know_the_range_of_what_comes_before(digits):
    """Each is fitted to the network in which the earlier Relus are squares already."""
    original = models.from_torch(seeded(LeNet, 10), torch.zeros(1, 1, 28, 28))
    network = own_training._exported(
        own_training._module(own_training._replaced(original, digits.train.images), original)
    )
    values = network.evaluate({network.inputs[0].name: normalise(digits.train.images[:50])})
    inputs = [values[node.inputs[0]] for node in network.nodes if isinstance(node.operator, Polynomial)]
    assert len(inputs) == 4 and all(0.5 < np.abs(x).max() < 3 for x in inputs)


@pytest.mark.parametrize("make", [Small, Residual])
def test_what_was_trained_is_about_as_good_and_found_by_runs(make, digits, short, tmp_path):
    path = str(export(learnt(make(), digits), tmp_path / "relu.onnx"))
    heard: list[tuple[float, str]] = []
    trained = own_training.train(path, digits.task, digits, effort="quick", progress=lambda *said: heard.append(said))
    assert heard[0][0] == 0 and "min in all" in heard[0][1]
    assert [share for share, _ in heard] == sorted(share for share, _ in heard) and heard[-1][0] == 1
    of = trained.scores["validation"]
    assert of["original"]["accuracy"] > 0.85
    assert of["polynomial"]["accuracy"] > of["original"]["accuracy"] - 0.03
    own_training.keep(trained, digits.task)
    network = zoo.network(path, digits.task, "polynomial", dataset=digits)
    assert network.sha256 == trained.network.sha256 and network.provenance["effort"] == "quick"
    assert network.provenance["origin"]["file"] == "relu.onnx" and network.provenance["original"] == {
        split: scores["original"] for split, scores in trained.scores.items()
    }
    if make is Small:
        again = own_training.train(path, digits.task, digits, effort="quick")
        assert again.network.sha256 == trained.network.sha256


def test_a_network_without_relu_is_left_alone(digits, tmp_path):
    path = str(export(seeded(Lola, 10), tmp_path / "square.onnx"))
    with pytest.raises(NetworkError, match="has no Relu: it runs on every backend as it is"):
        own_training.train(path, digits.task, digits)
