"""A user's network is fitted to a task and lowered for a backend, and says how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models import NetworkError, NetworkFileError, catalogue, own, tasks, zoo
from models.tasks import Dataset, Split, Task
from tests.models.user_networks import LeNet, Lola, Square, export, seeded

BREAST = tasks.task("breastmnist")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def lola(tmp_path) -> str:
    return str(export(seeded(Lola), tmp_path / "net.onnx"))


@pytest.fixture
def lenet(tmp_path) -> str:
    return str(export(seeded(LeNet), tmp_path / "relu.onnx"))


def data(task: Task = BREAST, images: int = 20) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (images, *task.input_shape), dtype=np.uint8)
    split = Split(pixels, np.arange(images)[:, None] % task.outputs)
    return Dataset(task, split, split, split, md5="")


def test_a_name_is_no_file_unless_it_is_one(lola, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fcnn").touch()
    (tmp_path / "network").touch()
    assert zoo.is_own(lola) and zoo.is_own("none.onnx") and zoo.is_own("network")
    assert not zoo.is_own("fcnn") and not zoo.is_own("resnet")
    assert zoo.is_trained(lola, BREAST)
    with pytest.raises(catalogue.UnknownModel, match="or name an ONNX file"):
        zoo.check("resnet", BREAST)
    with pytest.raises(catalogue.UnknownModel, match="bench train --from"):
        zoo.train(lola, BREAST, data())


@pytest.mark.parametrize("lowering", ["float", "polynomial"])
def test_a_polynomial_network_is_used_as_it_is(lola, lowering):
    network = zoo.network(lola, BREAST, lowering, dataset=data())
    assert (network.lowering, network.task, network.model) == ("polynomial", "breastmnist", lola)
    assert network.provenance["origin"]["how"] == "as it is"


def test_a_relu_network_waits_for_its_training(lenet):
    assert zoo.network(lenet, BREAST, "float", dataset=data()).lowering == "float"
    with pytest.raises(NetworkError, match="run `python -m bench train --from .*relu.onnx --task breastmnist` first"):
        zoo.network(lenet, BREAST, "polynomial", dataset=data())


def test_what_was_trained_from_the_file_is_found_by_its_content(lenet, lola, tmp_path):
    origin = own.fitted(lenet, BREAST).provenance["origin"]
    trained = own.fitted(lola, BREAST)
    trained.save(own.stem(origin["sha256"], BREAST, "polynomial"))
    copy = tmp_path / "copy.onnx"
    copy.write_bytes((tmp_path / "relu.onnx").read_bytes())
    network = zoo.network(str(copy), BREAST, "polynomial", dataset=data())
    assert np.array_equal(network.forward(data().test.images / 255), trained.forward(data().test.images / 255))
    assert (network.model, network.provenance["origin"]["file"]) == (str(copy), "copy.onnx")
    assert "fine-tuned" in network.provenance["origin"]["how"]
    with pytest.raises(NetworkError, match="--task pneumoniamnist"):
        zoo.network(str(copy), tasks.task("pneumoniamnist"), "polynomial", dataset=data())


def test_integers_are_made_by_quantisation_after_training(lenet):
    pytest.importorskip("models.ptq")
    network = zoo.network(lenet, BREAST, "integer", dataset=data())
    assert (network.lowering, network.model, network.task) == ("integer", lenet, "breastmnist")
    assert network.provenance["origin"]["how"] == "as it is; quantised after training, from 20 training images"


def test_a_file_that_changes_is_read_again(tmp_path):
    path = tmp_path / "net.onnx"
    before = own.fitted(str(export(seeded(Lola), path)), BREAST).sha256
    assert own.fitted(str(export(seeded(Lola, seed=1), path)), BREAST).sha256 != before


def test_pixels_in_a_row(tmp_path):
    module = seeded(lambda: nn.Sequential(nn.Linear(784, 8), Square(), nn.Linear(8, 2)))
    path = str(export(module, tmp_path / "flat.onnx", (784,)))
    network = own.fitted(path, BREAST)
    images = data().test.images / 255
    with torch.no_grad():
        expected = module(torch.from_numpy(images).float().flatten(1)).numpy()
    assert network.input_shape == BREAST.input_shape
    assert np.allclose(network.forward(images), expected, atol=1e-4)


@pytest.mark.parametrize("end", [[nn.Linear(8, 1)], [nn.Linear(8, 1), nn.Sigmoid()], [nn.Linear(8, 1), nn.ReLU()]])
def test_one_logit_is_enough_for_two_classes(end, tmp_path):
    body = [nn.Flatten(), nn.Linear(784, 8), Square()]
    module = seeded(lambda: nn.Sequential(*body, *end))
    network = own.fitted(str(export(module, tmp_path / "one.onnx")), BREAST)
    images = data().test.images / 255
    with torch.no_grad():
        logit = nn.Sequential(*[part for part in module if not isinstance(part, nn.Sigmoid)])(
            torch.from_numpy(images).float()
        ).numpy()
    assert np.allclose(network.forward(images), np.hstack([0 * logit, logit]), atol=1e-4)
    assert "one logit z became (0, z)" in network.provenance["origin"]["how"]
    with pytest.raises(NetworkFileError, match="has 1 outputs, and octmnist has 4"):
        own.fitted(str(tmp_path / "one.onnx"), tasks.task("octmnist"))


def test_networks_that_do_not_fit_the_task(lola, tmp_path):
    with pytest.raises(NetworkFileError, match="takes images of 1×28×28, and those of pathmnist have 3×28×28"):
        own.fitted(lola, tasks.task("pathmnist"))
    with pytest.raises(NetworkFileError, match="has 2 outputs, and digits has 10 classes or labels"):
        own.fitted(lola, tasks.task("digits"))
    large = seeded(lambda: nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 2)))
    path = str(export(large, tmp_path / "large.onnx", (1, 64, 64)))
    with pytest.raises(NetworkFileError, match="or take larger images \\(--size 64\\)"):
        own.fitted(path, BREAST)
    assert own.fitted(path, tasks.task("breastmnist_64")).outputs == 2


def test_the_command_that_trains_can_be_pasted(tmp_path):
    np.savez(
        tmp_path / "my data.npz",
        **{f"{s}_images": np.zeros((4, 28, 28), np.uint8) for s in tasks.SPLITS},
        **{f"{s}_labels": np.arange(4) % 2 for s in tasks.SPLITS},
    )
    task = tasks.task(f"{tmp_path / 'my data.npz'}:ordinal-regression")
    assert own.training("a b.onnx", task).endswith(f"--from 'a b.onnx' --data '{task.file}'")
