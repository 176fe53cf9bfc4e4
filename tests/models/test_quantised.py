import numpy as np
import pytest
import torch

from models import quantised
from models.network import AvgPool2d, Conv2d, Flatten, Linear, Network, NetworkError, Quantise, ReLU
from models.quantised import MULTI_LABEL, to_torch, train_integer

SHAPE = (1, 6, 6)


def blobs(images: int, seed: int, outputs: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Each class is a bright column at its own place, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, outputs, (images, 1))
    pixels = rng.uniform(0, 0.6, (images, *SHAPE)).astype(np.float32)
    pixels[np.arange(images), 0, :, 2 * labels[:, 0]] += 0.4
    return pixels, labels


def train(kind: str = "multi-class", outputs: int = 2, seed: int = 0, data=None, **options) -> Network:
    return train_integer(
        data or blobs(256, 1, outputs),
        blobs(64, 2, outputs) if data is None else data,
        model="fcnn",
        task="blobs",
        kind=kind,
        input_shape=SHAPE,
        outputs=outputs,
        hidden=8,
        seed=seed,
        images=20_000,
        **options,
    )


@pytest.fixture(scope="module")
def network() -> Network:
    return train()


def logits(module: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        y = module(torch.from_numpy(images))
    return getattr(y, "value", y).numpy()


def test_training_learns_the_classes(network):
    images, labels = blobs(200, 3)
    assert np.mean(network.forward(images).argmax(1) == labels[:, 0]) > 0.9


def test_layers_are_integers_times_scales(network):
    assert network.lowering == "integer"
    assert [layer.type for layer in network.layers] == ["flatten", "quantise", "linear", "relu", "quantise", "linear"]
    _, inputs, hidden, _, activation, output = network.layers
    assert (inputs.bits, activation.bits) == (quantised.INPUT_BITS, quantised.ACTIVATION_BITS)
    for layer in (hidden, output):
        integers = layer.weight / layer.weight_scale
        np.testing.assert_allclose(integers, np.round(integers), atol=1e-6)
        assert np.abs(integers).max() <= 2 ** (layer.weight_bits - 1) - 1


def test_numpy_and_brevitas_agree(network):
    images = blobs(100, 4)[0]
    np.testing.assert_allclose(logits(to_torch(network), images), network.forward(images), atol=1e-5)


def test_brevitas_import_survives_the_file(network, tmp_path):
    network.save(tmp_path / "net")
    images = blobs(20, 5)[0]
    np.testing.assert_array_equal(
        logits(to_torch(Network.load(tmp_path / "net")), images), logits(to_torch(network), images)
    )


def test_accumulators_stay_in_their_range(network):
    images = blobs(500, 6)[0]
    _, inputs, hidden, *_ = network.layers
    units = inputs(images.reshape(len(images), -1)) @ hidden.weight.T / (inputs.scale * hidden.weight_scale)
    assert np.abs(units).max() < 2 ** (quantised.ACCUMULATOR_BITS - 1)


def test_same_seed_same_network(network):
    assert train().sha256 == network.sha256
    assert train(seed=1).sha256 != network.sha256


def test_multi_label_uint8_and_soft_labels_are_learnt():
    images, labels = blobs(256, 7, outputs=3)
    several = np.eye(3, dtype=int)[labels[:, 0]]
    several[:, 0] = 1  # on in every image
    data = (np.round(images * 255).astype(np.uint8), several)
    network = train(MULTI_LABEL, 3, data=data)
    assert np.mean((network.forward(images) > 0) == several) > 0.85
    soft = train(outputs=3, data=(images, np.eye(3)[labels[:, 0]] * 0.9 + 0.1 / 3))
    assert np.mean(soft.forward(images).argmax(1) == labels[:, 0]) > 0.85


def test_convolution_and_signed_quantiser_reach_brevitas():
    rng = np.random.default_rng(0)
    network = Network(
        "cnn",
        "t",
        "integer",
        SHAPE,
        3,
        (
            Quantise(0.25, 2),
            Conv2d(rng.integers(-1, 2, (4, 1, 3, 3)) * 0.5, np.zeros(4), 2, 1, weight_bits=2, weight_scale=0.5),
            Quantise(0.375, 3, signed=True),
            Flatten(),
            Linear(rng.integers(-3, 4, (3, 36)) * 0.125, np.zeros(3), 3, 0.125),
        ),
    )
    images = rng.uniform(0, 1, (50, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(logits(to_torch(network), images), network.forward(images), atol=1e-5)


@pytest.mark.parametrize(
    ("lowering", "layers", "message"),
    [
        ("float", (Flatten(), Linear(np.ones((2, 36)), np.zeros(2))), "no integers"),
        ("integer", (Flatten(), Linear(np.ones((2, 36)), np.zeros(2))), "no weight_bits"),
        ("integer", (Flatten(), Linear(np.full((2, 36), 3.0), np.zeros(2), 2, 1.0)), "beyond 2 bits"),
        ("integer", (AvgPool2d(3, 3), Flatten(), ReLU(), Linear(np.ones((2, 4)), np.zeros(2), 2, 1.0)), "avgpool2d"),
    ],
)
def test_networks_without_integer_counterpart_are_refused(lowering, layers, message):
    with pytest.raises(NetworkError, match=message):
        to_torch(Network("m", "t", lowering, SHAPE, 2, layers))
