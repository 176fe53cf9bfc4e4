"""The FCNN on each CKKS library: planned, by hand and naive, each with its ratio to the fastest of its group."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from backends.api import Job
from models.network import Flatten, Gemm, Network, Polynomial, chain
from tests.benchmarks.by_hand import OpenfheByHand, SealByHand

HAND = {"ckks": SealByHand, "openfhe": OpenfheByHand}
PLANNED = ["ckks", "openfhe", "ckks:logits", "openfhe:logits"]
VARIANTS = [*PLANNED, *(pytest.param(f"{name}:naive", marks=pytest.mark.slow) for name in HAND)]


def fcnn(outputs: int) -> Network:
    """784 → 64 → outputs with a square in between; weights are random, which changes no time."""
    random = np.random.default_rng(0)
    layers = (
        Flatten(),
        Gemm(random.normal(size=(64, 784)) / 28, random.normal(size=64) / 4),
        Polynomial(np.array([0.0, 0.0, 1.0])),
        Gemm(random.normal(size=(outputs, 64)) / 8, random.normal(size=outputs) / 4),
    )
    return chain("fcnn", "random", "polynomial", (1, 28, 28), layers)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 1, (count, 1, 28, 28)).astype(np.float32)


def parties(name: str, network: Network, scenario: str = "single-stream"):
    backend, _, variant = name.partition(":")
    module = importlib.import_module(f"backends.{backend}")
    job = Job(network, variant=variant, scenario=scenario, threads=2, calibration=images(64))
    prepared = module.Owner().prepare(job)
    client, server = module.Client(), module.Server()
    client.load(prepared.client)
    server.load(prepared.server)
    server.load_keys(client.keygen(0))
    return client, server, prepared.batch


@pytest.fixture(scope="module")
def single(request):
    return parties(request.param, fcnn(9))


@pytest.mark.benchmark(group="784-64-9, one image: server (read, infer, write)", min_rounds=3, max_time=5)
@pytest.mark.parametrize("single", VARIANTS, indirect=True, scope="module")
def test_server(single, benchmark) -> None:
    client, server, _ = single
    request = client.serialise(client.encrypt(images(1)))
    response = benchmark(lambda: server.serialise(server.infer(server.deserialise(request))))
    assert client.decrypt(client.deserialise(response)).shape == (1, 9)


@pytest.mark.benchmark(group="784-64-9, one image: encrypt and serialise")
@pytest.mark.parametrize("single", VARIANTS, indirect=True, scope="module")
def test_encryption(single, benchmark) -> None:
    client, _, _ = single
    image = images(1)
    benchmark.extra_info["request_bytes"] = len(benchmark(lambda: client.serialise(client.encrypt(image))))


@pytest.fixture(scope="module", params=["ckks", "openfhe"])
def hand(request):
    network = fcnn(9)
    return request.param, HAND[request.param](network.operators[1].weight, network.operators[3].weight)


@pytest.mark.benchmark(group="784-64-9, one image: inference alone")
def test_inference_by_hand(hand, benchmark) -> None:
    _, implementation = hand
    network, image = fcnn(9), images(1)
    result = benchmark(implementation.infer, implementation.encrypt(image.reshape(-1)))
    expected = np.square(image.reshape(-1) @ network.operators[1].weight.T) @ network.operators[3].weight.T
    assert np.abs(implementation.decrypt(result, 9) - expected).max() < 0.1


@pytest.mark.benchmark(group="784-64-9, one image: inference alone")
@pytest.mark.parametrize("single", PLANNED, indirect=True, scope="module")
def test_inference(single, benchmark) -> None:
    client, server, _ = single
    benchmark(server.infer, server.deserialise(client.serialise(client.encrypt(images(1)))))


@pytest.mark.benchmark(group="784-64-9, one image: encryption alone")
def test_encryption_by_hand(hand, benchmark) -> None:
    benchmark(hand[1].encrypt, images(1).reshape(-1))


@pytest.mark.benchmark(group="784-64-9, one image: encryption alone")
@pytest.mark.parametrize("single", ["ckks", "openfhe"], indirect=True, scope="module")
def test_encryption_planned(single, benchmark) -> None:
    client, _, _ = single
    benchmark(client.encrypt, images(1))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ckks", "openfhe"])
def test_offline(backend: str, benchmark) -> None:
    client, server, batch = parties(backend, fcnn(2), "offline")
    request = client.serialise(client.encrypt(images(batch)))
    ciphertexts = server.deserialise(request)
    benchmark.group = f"784-64-2, {batch} images a request: inference"
    benchmark.pedantic(server.infer, (ciphertexts,), rounds=2)
    if benchmark.stats:
        benchmark.extra_info["images_per_s"] = batch / benchmark.stats.stats.median
