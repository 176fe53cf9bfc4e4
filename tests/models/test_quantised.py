"""Quantisation-aware fine-tuning: what comes out computes what was trained, and nearly what it was made from."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.network import AveragePool, Conv, Flatten, Gemm, Network, NetworkError, Polynomial, Quantise, Relu, chain
from models.quantised import Quantisation, fine_tune, fold_pooling, module

SHAPE = (1, 8, 8)
rng = np.random.default_rng(0)
POOL = torch.from_numpy(rng.integers(0, 256, (600, *SHAPE), dtype=np.uint8))
IMAGES = POOL.numpy() / 255


def polynomial(channels: int) -> Polynomial:
    return Polynomial(rng.normal(size=(3, channels)) * [[0.2], [0.5], [0.2]])


def dense(activation=None, hidden: int = 8) -> Network:
    layers = (
        AveragePool((2, 2), (2, 2)),
        Flatten(),
        Gemm(rng.normal(size=(hidden, 16)), rng.normal(size=hidden)),
        activation or polynomial(hidden),
        Gemm(rng.normal(size=(3, hidden)), rng.normal(size=3)),
    )
    return chain("fcnn", "noise", "polynomial", SHAPE, layers)


def convolutional(activation=None) -> Network:
    layers = (
        Conv(rng.normal(size=(4, 1, 3, 3)), rng.normal(size=4), strides=(2, 2), pads=(1,) * 4),
        activation or polynomial(4),
        Conv(rng.normal(size=(4, 4, 3, 3)) / 2, rng.normal(size=4), pads=(1,) * 4),
        activation or polynomial(4),
        AveragePool((2, 2), (2, 2)),
        Flatten(),
        Gemm(rng.normal(size=(3, 16)), rng.normal(size=3)),
    )
    return chain("polycnn", "noise", "polynomial", SHAPE, layers)


def targets(network: Network) -> torch.Tensor:
    return torch.from_numpy(network.forward(IMAGES)).float().softmax(1)


def quantised(network: Network, bits: Quantisation, images: int = 2000) -> Network:
    return fine_tune(network, bits, (POOL, targets(network)), functional.cross_entropy, seed=0, images=images)


WIDE = Quantisation(8, 10, 8, 8, 8)


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize("activation", [None, Relu()])
@pytest.mark.parametrize("accumulator_bits", [6, None])
def test_with_many_bits_it_is_nearly_the_real_network(make, activation, accumulator_bits):
    network = make(activation)
    wide = dataclasses.replace(WIDE, accumulator_bits=accumulator_bits and 8)
    integer = quantised(network, wide, images=256)
    assert integer.lowering == "integer"
    expected = network.forward(IMAGES)
    assert np.abs(integer.forward(IMAGES) - expected).mean() < 0.15 * expected.std()


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize("bits", [Quantisation(), Quantisation(accumulator_bits=None, weight_bits=4, pruning=0.5)])
def test_export_computes_what_was_trained(make, bits):
    real = make()
    trained = module(real, bits, POOL.numpy()).eval()
    exported = chain("m", "noise", "integer", SHAPE, trained.export())
    with torch.no_grad():
        expected = trained(POOL)[0].numpy()
    same = np.isclose(exported.forward(IMAGES), expected, atol=1e-3).mean()
    assert same > 0.97, "all but values on the border between two levels, which torch rounds in single precision"


def test_layers_are_integers_times_scales_and_fit_their_ranges():
    network = quantised(convolutional(), Quantisation())
    x, scale = IMAGES, None
    rounded = 0
    for layer, following in zip(network.operators, (*network.operators[1:], None)):
        if isinstance(layer, Gemm | Conv):
            integers = layer.weight / layer.weight_scale
            np.testing.assert_allclose(integers, np.round(integers), atol=1e-3)
            assert np.abs(integers).max() <= 2 ** (layer.weight_bits - 1) - 1 + 1e-3
            if isinstance(following, Quantise):
                ratio = np.log2(following.scale / (scale * layer.weight_scale))
                assert ratio == pytest.approx(round(ratio), abs=1e-9)
                assert np.abs(layer(x)).max() < (following.range[1] + 0.5) * following.scale
                rounded += 1
        elif isinstance(layer, Quantise):
            scale = layer.scale
        x = layer(x)
    assert rounded == 2


def test_pruning_leaves_zeros_which_training_keeps():
    network = quantised(dense(Relu()), Quantisation(accumulator_bits=None, pruning=0.5))
    hidden = next(layer for layer in network.operators if isinstance(layer, Gemm))
    assert np.mean(hidden.weight == 0) >= 0.5


def test_same_seed_same_network():
    real = dense()
    assert quantised(real, Quantisation()).sha256 == quantised(real, Quantisation()).sha256


def test_pooling_becomes_part_of_the_linear_layer():
    network = convolutional()
    folded = network.with_operators(fold_pooling(network))
    assert not any(isinstance(layer, AveragePool) for layer in folded.operators)
    np.testing.assert_allclose(folded.forward(IMAGES), network.forward(IMAGES))


def test_unsupported_layers_are_refused():
    pooled = convolutional().operators
    with pytest.raises(NetworkError, match="average pooling"):
        fold_pooling(
            chain("m", "t", "float", SHAPE, (*pooled[:5], Flatten(), Relu(), Gemm(np.ones((4, 16)), np.ones(4))))
        )
    with pytest.raises(NetworkError, match="no place"):
        module(
            chain("m", "t", "float", SHAPE, (Flatten(), Gemm(np.eye(64), np.ones(64)), Flatten())),
            WIDE,
            POOL.numpy(),
        )
