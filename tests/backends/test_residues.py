"""Products of matrices of residues: against integers of any length, and bit for bit against both libraries' own products."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.api import BackendError, MessageError
from backends.slots import batched, planner, residues
from backends.slots.blocks import from_network
from backends.slots.execute import Program, decrypt, encrypt
from backends.slots.library import KeyRequest, Parameters
from backends.slots.workers import share, shared_array
from tests.backends.graphs import random_graph
from tests.backends.test_slots import LIBRARIES, random_network

PARAMETERS = Parameters(8192, 50, 50, 1, 50, 20, (20, 20))


# -- without a library ---------------------------------------------------------------------------------------------------


def exact(weights: np.ndarray, values: np.ndarray, primes: list[int]) -> np.ndarray:
    """The same in Python's integers."""
    integers = np.array([[int(w) for w in row] for row in weights], dtype=object)
    modulus = np.array(primes, dtype=object)[:, None]
    return (np.tensordot(integers, values.astype(object), 1) % modulus).astype(np.uint64)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 200), st.integers(1, 3)),
    bits=st.lists(st.integers(10, 61), min_size=1, max_size=3),
    weight_bits=st.integers(1, 45),
    extreme=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_product_is_exact(
    shape: tuple[int, int, int], bits: list[int], weight_bits: int, extreme: bool, seed: int
) -> None:
    outputs, inputs, polynomials = shape
    random = np.random.default_rng(seed)
    primes = [2**b - 1 - 2 * int(random.integers(0, 2 ** (b - 8))) for b in bits]
    if extreme:  # the largest residues and weights of one sign: where a sum is closest to 2⁵³
        weights = np.full((outputs, inputs), 2.0**weight_bits) * random.choice([-1, 1])
        values = np.array(primes, np.uint64)[:, None] - random.integers(1, 3, (inputs, polynomials, 1, 4), np.uint64)
    else:
        weights = random.integers(-(2**weight_bits), 2**weight_bits + 1, (outputs, inputs)).astype(np.float64)
        weights[random.random(weights.shape) < 0.3] = 0.0
        below = np.array(primes, np.uint64)[:, None]
        values = random.integers(0, 2**63, (inputs, polynomials, len(primes), 4), np.uint64) % below
    assert np.array_equal(residues.matmul(weights, values, primes), exact(weights, values, primes))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(10, 61), st.integers(0, 52), st.integers(0, 2**32 - 1))
def test_no_sum_of_limbs_exceeds_what_floats_hold(inputs: int, prime_bits: int, weight_bits: int, seed: int) -> None:
    weights = (
        np.random.default_rng(seed).integers(-(2**weight_bits), 2**weight_bits + 1, (3, inputs)).astype(np.float64)
    )
    weights[0, 0] = 2.0**weight_bits
    try:
        limbs = residues.limbs(weights, prime_bits)
    except residues.InexactError:
        assert weight_bits > 50
        return
    assert limbs.width * limbs.count >= prime_bits
    for start in range(0, inputs, limbs.block):
        sums = np.abs(weights[:, start : start + limbs.block]).astype(object).sum(axis=1)
        assert int(max(sums)) * (2**limbs.width - 1) <= 2**53


def test_what_cannot_be_exact_is_refused() -> None:
    for weights, bits in (([[2.0**54]], 40), ([[0.5]], 40), ([[1.0]], 62), ([[1.0]], 9)):
        with pytest.raises(residues.InexactError):
            residues.limbs(np.array(weights), bits)


def test_tiles_are_all_outputs_and_those_of_a_convolution_read_little() -> None:
    side, channels = 12, 8
    weights = np.zeros((channels, side, side, side + 2, side + 2))
    for y in range(side):
        for x in range(side):
            weights[:, y, x, y : y + 3, x : x + 3] = 1.0
    weights = weights.reshape(channels * side**2, -1)
    tiles = residues.tiles(weights, side)
    assert sorted(np.concatenate(tiles).tolist()) == list(range(len(weights)))
    assert max(weights[tile].any(axis=0).sum() for tile in tiles) <= 3 * (side + 2)


# -- forks ---------------------------------------------------------------------------------------------------------------


def test_work_is_shared_and_every_task_is_done_once() -> None:
    done, workers = shared_array((37,)), shared_array((37,))

    def work(task: int) -> None:
        done[task] += np.uint64(task + 1)
        workers[task] = os.getpid()

    share(len(done), work)
    assert done.tolist() == list(range(1, 38))
    assert len(set(workers.tolist())) == min(len(done), len(os.sched_getaffinity(0)))
    share(0, work)


def test_what_a_fork_raises_is_raised_here_and_a_dead_fork_is_told() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core makes no fork")

    def refuse(task: int) -> None:
        if task == 1:
            raise MessageError("task 1")

    with pytest.raises(MessageError, match="task 1"):
        share(2, refuse)
    parent = os.getpid()

    def die(task: int) -> None:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(BackendError, match="died of signal 9"):
        share(2, die)


# -- with the libraries --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request):
    """Its evaluator and primes, and fresh ciphertexts as bytes."""
    made = importlib.import_module(f"backends.{request.param}").LIBRARY
    client, evaluator = made.client(PARAMETERS), made.evaluator(PARAMETERS)
    evaluator.load_keys(client.keygen(KeyRequest((), True, True)))
    random = np.random.default_rng(0)
    vectors = random.uniform(-1, 1, (12, PARAMETERS.slots)) + 1j * random.uniform(-1, 1, (12, PARAMETERS.slots))
    return evaluator, made.moduli(PARAMETERS), [client.serialise(client.encrypt(v, 2.0**20)) for v in vectors]


def test_residues_are_those_of_the_ciphertext(library) -> None:
    evaluator, moduli, parts = library
    for part in parts[:3]:
        cipher, read = evaluator.deserialise(part, 0), evaluator.read(part, 0)
        assert read.shape == (2, len(moduli), PARAMETERS.ring_dimension)
        assert np.array_equal(read, evaluator.residues(cipher))
        assert np.array_equal(read, evaluator.residues(evaluator.of_residues(read, 2.0**20)))
        square = evaluator.square(cipher)
        again = evaluator.of_residues(evaluator.residues(square), 2.0**40)
        for back in (lambda c: c, evaluator.relinearise, lambda c: evaluator.rescale(evaluator.relinearise(c))):
            assert np.array_equal(evaluator.residues(back(square)), evaluator.residues(back(again)))


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.tuples(st.integers(1, 4), st.integers(1, 12)), st.integers(8, 30), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_product_of_residues_is_the_librarys_own(
    library, shape: tuple[int, int], scale_bits: int, squares: bool, seed: int
) -> None:
    evaluator, moduli, parts = library
    weights = np.random.default_rng(seed).uniform(-1, 1, shape)
    ciphers = [evaluator.deserialise(part, 0) for part in parts[: shape[1]]]
    if squares:  # three polynomials
        ciphers = [evaluator.square(cipher) for cipher in ciphers]
        scale_bits -= 5  # or SEAL refuses the scale of the product
    arrays = [evaluator.residues(cipher) for cipher in ciphers]
    product = residues.matmul(residues.integers(weights, 2.0**scale_bits), arrays, moduli)
    for row, made in zip(weights, product):
        assert np.array_equal(evaluator.residues(evaluator.weighted_sum(ciphers, row, 2.0**scale_bits, 0)), made)


def test_bytes_that_are_no_ciphertext_are_refused(library) -> None:
    evaluator, _, parts = library
    random = np.random.default_rng(1)
    for part in (b"", parts[0][:-1], parts[0] + b"x", parts[0][:50], b"\xff" * len(parts[0])):
        with pytest.raises(MessageError):
            evaluator.read(part, 0)
    for _ in range(60):  # whatever it is that has changed, there is an answer or a refusal
        mutated = bytearray(parts[0])
        for _ in range(3):
            mutated[random.integers(0, 200 if random.random() < 0.5 else len(mutated))] = random.integers(0, 256)
        with contextlib.suppress(MessageError):
            assert evaluator.read(bytes(mutated), 0).shape[0] == 2


NETWORKS = {
    "two squares": lambda: random_network((12, 9, 8, 3), 1),
    "postponed": lambda: random_network((6, 8, 4, 2), 2),
    "gate whose product is postponed": lambda: random_graph(34, 1, 3),
    "polynomial with a carry": lambda: random_graph(6, 1, 3),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("backend", LIBRARIES)
def test_a_plan_on_residues_is_the_plan_on_ciphertexts(backend: str, kind: str) -> None:
    network, images = NETWORKS[kind]()
    module = importlib.import_module(f"backends.{backend}")
    blocks, flat = from_network(network, images), images.reshape(len(images), -1)
    precision = planner.Precision(16384, blocks.terms(), batched=True, first_is_largest=True)
    plan = planner.batched(blocks, precision)
    assert module.LIBRARY.admissible(plan.parameters)
    client, evaluator = module.LIBRARY.client(plan.parameters), module.LIBRARY.evaluator(plan.parameters)
    evaluator.load_keys(client.keygen(plan.keys))
    moduli = module.LIBRARY.moduli(plan.parameters)
    many = np.resize(flat, (plan.batch, flat.shape[1]))
    parts = [client.serialise(cipher) for cipher in encrypt(plan, client, many)]
    scale, expected, errors = plan.response_scale(moduli), blocks.forward(many), []
    for program in (batched.BatchedProgram(plan, evaluator, moduli), Program(plan, evaluator, moduli)):
        response = [evaluator.serialise(cipher) for cipher in program.run(program.read(parts))]
        ciphers = [client.deserialise(part, plan.dropped(-1)) for part in response]
        errors.append(np.abs(decrypt(plan, client, ciphers, scale, len(many)) - expected))
    assert errors[0].max() < 1e-2
    assert errors[0].mean() < 1.2 * errors[1].mean()
