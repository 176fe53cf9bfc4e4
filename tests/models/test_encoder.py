"""The client's encoder: what it computes, what is told of it, and what does not belong to it."""

import dataclasses
import json

import numpy as np
import pytest

from models import NetworkError, NetworkFileError, encoder_training, inputs, tasks, zoo
from models.encoder import Encoder, resized
from models.inputs import Latent
from models.network import Conv, Network, chain
from models.tasks import DataFileError, Dataset, Split


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = tasks.load(tasks.task("digits"))
    splits = (Split(s.images[:128], s.labels[:128]) for s in (whole.train, whole.val, whole.test))
    return Dataset(whole.task, *splits, md5="")


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> Network:
    return encoder_training.train(Latent(), digits, share=0.05)


def test_latents_are_standardised_and_show_the_image(digits, trained):
    encoder = Encoder(trained)
    latents = encoder.read(digits.train.images)
    assert latents.shape == (128, 4, 7, 7) and latents.dtype == np.float32 and encoder.shape == (4, 7, 7)
    np.testing.assert_allclose(latents.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(latents.std((0, 2, 3)), 1, atol=1e-3)
    told = encoder.described()
    assert told["trained_on"] == "digits, training split" and told["reads"] == [1, 28, 28]
    flat = -10 * np.log10(np.square(digits.test.images / 255 - digits.test.images.mean() / 255).mean((1, 2, 3))).mean()
    assert told["psnr_db"]["quantised"] > flat + 2  # more than the same grey for all


def test_quantised_latents_are_the_values_of_codes(digits, trained):
    encoder = Encoder(trained, quantised=True)
    latents = encoder.read(digits.test.images[:8])
    score, values = (node.operator for node in trained.nodes[-3:-1])
    codes = values.weight[:, :, 0, 0].T
    near = np.abs(latents.transpose(0, 2, 3, 1)[..., None, :] - codes).max(-1).min(-1)
    assert codes.shape == (256, 4) and near.max() < 1e-6
    plain = Encoder(trained).read(digits.test.images[:8]).astype(np.float64)
    best = score(plain).argmax(1)  # the code of the largest score, at each position
    np.testing.assert_allclose(latents, np.moveaxis(codes[best], -1, 1), atol=1e-6)
    assert encoder.sha256 != Encoder(trained).sha256


def test_larger_images_have_latents_of_an_eighth_and_small_ones_are_resized(digits):
    network = encoder_training.train(Latent(side=64), digits, share=0.001)
    encoder = Encoder(network)
    assert encoder.shape == (4, 8, 8) and encoder.read(digits.test.images[:2]).shape == (2, 4, 8, 8)
    assert network.provenance["resized"] == [[28, 28], [64, 64]]


def test_resizing_is_that_of_torch():
    import torch

    images = np.random.default_rng(0).random((2, 3, 28, 20))
    for size in ((64, 50), (14, 20), (28, 20)):
        expected = torch.nn.functional.interpolate(torch.from_numpy(images), size, mode="bilinear", align_corners=False)
        np.testing.assert_allclose(resized(images, size), expected.numpy(), atol=1e-12)


def test_another_network_is_no_encoder(trained):
    with pytest.raises(NetworkError, match="no encoder"):
        Encoder(chain("encoder", "digits", "float", (1, 4, 4), trained.operators[-1:]))


@pytest.mark.parametrize("height, width, square", [(30, 28, 4), (28, 30, 4), (68, 64, 8)])
def test_sizes_that_the_factor_does_not_divide(height, width, square):
    task = dataclasses.replace(tasks.DIGITS, size=(height, width))
    for call in (inputs.shape, zoo.check, zoo.trainable):
        with pytest.raises(DataFileError, match=rf"squares of {square}×{square}.*crop or pad.*latentcnn@image"):
            call("latentcnn", task)
    assert inputs.shape("latentcnn@image", task) == (1, height, width)


def test_an_encoder_that_a_network_was_not_trained_with(digits, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "SHIPPED", tmp_path / "shipped")
    trained.save(zoo.SHIPPED / "encoder" / "digits.float")
    network = chain("latentcnn", "digits", "float", (4, 7, 7), trained.operators[-1:])
    network = dataclasses.replace(network, provenance={"encoder": zoo.encoder("latentcnn", digits.task).described()})
    network.save(zoo.SHIPPED / "latentcnn" / "digits.float")
    zoo.check("latentcnn", digits.task)
    first = trained.operators[0]
    assert isinstance(first, Conv)
    other = dataclasses.replace(trained.nodes[0], operator=dataclasses.replace(first, bias=first.bias + 1))
    nodes = (other, *trained.nodes[1:])
    dataclasses.replace(trained, nodes=nodes).save(zoo.SHIPPED / "encoder" / "digits.float")
    with pytest.raises(NetworkFileError, match="encoder of digits is not the one that .* was trained with: put back"):
        zoo.check("latentcnn", digits.task)


def test_an_encoder_is_trained_once(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(zoo, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(encoder_training, "IMAGES", 640)
    made = zoo.encoder("latentcnn", digits.task, dataset=digits)
    monkeypatch.setattr(encoder_training, "train", None)
    zoo._unkept.clear()
    again = zoo.encoder("latentcnn-se@quantised", digits.task, dataset=digits)
    assert again.quantised and again.network.sha256 == made.network.sha256
    assert zoo.encoder("latentcnn@image", digits.task) is None
    assert json.loads(next(tmp_path.rglob("digits.float.json")).read_text())["model"] == "encoder"
