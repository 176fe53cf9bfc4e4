"""Micro-benchmarks of the primitives that plans are made of, on each library, by the number of primes."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from backends.slots.library import KeyRequest, Parameters

PRIMITIVES = {
    "multiply_plain": lambda e, a, p: e.dot([a], [p]),
    "add": lambda e, a, p: e.add(a, a),
    "square": lambda e, a, p: e.square(a),
    "square and relinearise": lambda e, a, p: e.relinearise(e.square(a)),
    "rotate": lambda e, a, p: e.rotate_many(a, [1]),
    "rotate by 3 steps": lambda e, a, p: e.rotate_many(a, [1, 2, 3]),
    "sum of 3 rotations": lambda e, a, p: e.rotate_sum([(a, 1), (a, 2), (a, 3)]),
    "conjugate": lambda e, a, p: e.conjugate(a),
    "rescale": lambda e, a, p: e.rescale(e.dot([a], [p])),
}


@pytest.fixture(scope="module", params=["ckks", "openfhe"])
def library(request):
    """Library name, evaluator with keys, a fresh ciphertext and a plaintext, at ring dimension 8192 with two primes."""
    parameters = Parameters(8192, 50, 50, 1, 50, 20, (20, 20))
    made = importlib.import_module(f"backends.{request.param}").LIBRARY
    client, evaluator = made.client(parameters), made.evaluator(parameters)
    evaluator.load_keys(client.keygen(KeyRequest((1, 2, 3), True, True)))
    vector = np.random.default_rng(0).uniform(-1, 1, parameters.slots)
    cipher = evaluator.deserialise(client.serialise(client.encrypt(vector, 2.0**20)))
    return client, evaluator, cipher, evaluator.encode(vector, 2.0**20, 0), vector


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_primitive(library, primitive: str, benchmark) -> None:
    _, evaluator, cipher, plain, _ = library
    benchmark.group = primitive
    benchmark(PRIMITIVES[primitive], evaluator, cipher, plain)


def test_encrypt_and_serialise(library, benchmark) -> None:
    client, _, _, _, vector = library
    benchmark.group = "encode, encrypt and serialise a vector"
    assert len(benchmark(lambda: client.serialise(client.encrypt(vector, 2.0**20)))) > 100_000
