"""Seconds a step of encrypted training, planned and by hand, in one run: ``pytest tests/benchmarks/test_training_steps.py
--benchmark-enable``. Sizes: BENCH_TRAINING_ROWS (default 100; 512 and 4608 are those of the documented ratios)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from backends.api import Training
from backends.registry import resolve
from backends.slots import costs, training
from models import regression
from tests.benchmarks.by_hand_training import ByHand

ROWS = int(os.environ.get("BENCH_TRAINING_ROWS", "100"))
RINGS = {"ckks": 8192, "openfhe": 16384}


def examples() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 64))
    return x, np.where(x @ random.normal(size=(64, 1)) / 4 + random.logistic(size=(ROWS, 1)) > 0, 1.0, -1.0)


@pytest.mark.parametrize("name", RINGS)
def test_a_step_by_hand(benchmark, name):
    x, y = examples()
    by_hand = ByHand(resolve(name)[0].load().LIBRARY, RINGS[name], x, y, 0.5)
    wanted = regression.descent(x, y, 3, 0.5, regression.polynomial(3))[-1][0]
    assert np.abs(by_hand.train(3, 64) - wanted).max() < 2e-2
    benchmark(by_hand.step, by_hand.point(by_hand.constant))


@pytest.mark.parametrize("name", RINGS)
def test_a_step_as_planned(benchmark, name):
    x, y = examples()
    module = resolve(name)[0].load()
    library, table = module.LIBRARY, costs.load(Path(module.__file__).parent)
    circuit = training.plan(Training(ROWS, 64, 1, 3, 0.5), library, table, refresh=True, hoisting=name == "openfhe")
    client, evaluator = library.client(circuit.parameters), library.evaluator(circuit.parameters)
    evaluator.load_keys(client.keygen(circuit.keys))
    program = training.Program(circuit, evaluator, library.moduli(circuit.parameters))
    vectors = training.request(circuit, x, y)
    ciphers = [
        evaluator.deserialise(client.serialise(client.encrypt(vector, circuit.fresh_scale)), 0) for vector in vectors
    ]
    benchmark(program.run, ciphers)
