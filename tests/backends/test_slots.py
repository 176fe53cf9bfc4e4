"""The packing engine: every layout against NumPy on random networks, and a sample of plans encrypted on each library."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from backends import frames, security
from backends.api import BackendError, InsecureError, Job, MessageError
from backends.slots import costs, packing, planner
from backends.slots.blocks import Affine, Blocks, from_network
from backends.slots.blocks import Product as SquareOf
from backends.slots.execute import Program, decrypt, encrypt
from backends.slots.library import KeyRequest, Parameters
from backends.slots.plan import Packed, Plan, Product
from backends.slots.simulator import Simulator
from backends.variants import opened
from models.network import AveragePool, Conv, Flatten, Gemm, Network, Polynomial, Relu, chain
from tests.backends.graphs import random_graph

LIBRARIES = ("ckks", "openfhe")
SLOTS = 4096
PRIMITIVES = """deserialise add add_plain multiply multiply_plain multiply_scalar square relinearise conjugate rescale
rotate_many_step rotate_many_call rotate_sum_step rotate_sum_input rotate_sum_call""".split()
COSTS = {primitive: [1.0, 2.0] for primitive in PRIMITIVES}


def random_network(widths: tuple[int, ...], seed: int) -> tuple[Network, np.ndarray]:
    """A network of linear layers and quadratic activations, and images for it."""
    random = np.random.default_rng(seed)
    layers: list = [Flatten()]
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        if index:
            c1 = random.uniform(-0.5, 0.5, widths[index])
            layers.append(Polynomial(np.array([c1 / 3, c1, random.uniform(0.1, 0.5, widths[index])])))
        layers.append(Gemm(random.normal(size=(outputs, inputs)) / np.sqrt(inputs), random.normal(size=outputs) / 4))
    network = chain("random", "none", "polynomial", (1, 1, widths[0]), layers)
    return network, random.uniform(0, 1, (8, 1, 1, widths[0]))


def random_cnn(random: np.random.Generator, depth: int) -> tuple[Network, np.ndarray]:
    """Convolutions of random stride, padding, kernel, channels and groups, perhaps a pooling, one or two linear layers."""
    channels, side = int(random.choice([1, 2, 3, 4])), int(random.integers(6, 17))
    shape: tuple[int, ...] = (channels, side, side)
    layers: list = []

    def square(units: int) -> Polynomial:
        return Polynomial(
            np.array([np.full(units, 0.1), random.uniform(-0.5, 0.5, units), random.uniform(0.1, 0.5, units)])
        )

    def normal(*size: int) -> np.ndarray:
        return random.normal(size=size) / np.sqrt(np.prod(size[1:]))

    for _ in range(depth):
        groups = int(random.choice([g for g in (1, 2, 4) if shape[0] % g == 0]))
        outputs, kernel = groups * int(random.integers(1, 4)), int(random.integers(1, min(5, shape[1]) + 1))
        stride, padding = int(random.integers(1, 4)), int(random.integers(0, kernel))
        weight = normal(outputs, shape[0] // groups, kernel, kernel)
        layers += [Conv(weight, normal(outputs, 1)[:, 0], (stride,) * 2, (padding,) * 4, groups), square(outputs)]
        shape = layers[-2](np.zeros((1, *shape))).shape[1:]
    if random.integers(2) and shape[1] > 1:
        layers.append(AveragePool((2, 2), (int(random.integers(1, 3)),) * 2))
        shape = layers[-1](np.zeros((1, *shape))).shape[1:]
    layers.append(Flatten())
    widths = [int(np.prod(shape)), *random.integers(1, 40, random.integers(0, 2)).tolist(), int(random.integers(1, 12))]
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [square(inputs)] * (index > 0) + [Gemm(normal(outputs, inputs), normal(outputs, 1)[:, 0])]
    network = chain("cnn", "none", "polynomial", (channels, side, side), layers)
    return network, random.uniform(0, 1, (8, *network.input_shape))


def affine_of(weight: np.ndarray, bias: np.ndarray) -> Affine:
    """Of value 0."""
    return Affine((0,), (sparse.csr_matrix(weight),), bias)


def packed(candidate: packing.Candidate, affine: Affine, source: int) -> Packed:
    return Packed("", (candidate.complete(source),), candidate.place(affine.bias))


def scaled(ring_dimension: int, terms: list[int], *bits: int) -> Parameters:
    precision = planner.Precision(ring_dimension, terms)
    return precision.parameters(precision.scales(*bits))


def simulated(plan: Plan, images: np.ndarray) -> np.ndarray:
    simulator = Simulator()
    evaluator = simulator.evaluator(plan.parameters)
    evaluator.keygen(plan.keys)  # from here a rotation without a key fails
    moduli, weights = simulator.moduli(plan.parameters), None
    if plan.model_encrypted:
        weights = [simulator.encrypt_weight(w.vector, w.scale, w.level) for w in plan.weights(moduli)]
    program = Program(plan, evaluator, moduli, weights)
    requests = [images] if plan.input.batched else list(images[:, None])
    return np.concatenate(
        [
            decrypt(plan, evaluator, program.run(encrypt(plan, evaluator, r)), program.scales[-1], len(r))
            for r in requests
        ]
    )


widths = st.tuples(st.integers(1, 2000), *[st.integers(1, 300)] * 2) | st.tuples(
    st.integers(1, 2000), st.integers(1, 300)
)
three_layers = st.tuples(st.integers(1, 2000), *[st.integers(1, 300)] * 3)


@settings(max_examples=5, deadline=None)
@given(widths | three_layers, st.sampled_from(["single-stream", "offline"]), st.integers(0, 2**32 - 1))
def test_a_plan_computes_its_network(shape: tuple[int, ...], scenario: str, seed: int) -> None:
    network, images = random_network(shape, seed)
    flat = images.reshape(len(images), -1)
    blocks = from_network(network, images)
    plan = planner.plan(blocks, Simulator(), COSTS, flat, scenario=scenario, hoisting=bool(seed % 2))
    np.testing.assert_allclose(simulated(plan, flat), network.forward(images), atol=1e-9 * blocks.output_scale)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.sampled_from(["plain", "encrypted", "offline"]), st.integers(0, 2**32 - 1))
def test_a_plan_computes_its_convolutions(depth: int, mode: str, seed: int) -> None:
    network, images = random_cnn(np.random.default_rng(seed), depth)
    flat = images.reshape(len(images), -1)
    blocks = from_network(network, images)
    scenario = mode if mode == "offline" else "single-stream"
    plan = planner.plan(blocks, Simulator(), COSTS, flat, scenario=scenario, model_encrypted=mode == "encrypted")
    assert plan.model_encrypted == (mode == "encrypted")
    np.testing.assert_allclose(simulated(plan, flat), network.forward(images), atol=1e-9 * blocks.output_scale)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 4), st.sampled_from(["plain", "encrypted", "offline"]), st.integers(0, 2**32 - 1))
def test_a_plan_computes_its_graph(depth: int, mode: str, seed: int) -> None:
    """Branches, gates, polynomials of several degrees; and the operations that it counts are those that it does."""
    network, images = random_graph(seed, depth)
    flat = images.reshape(len(images), -1)
    blocks = from_network(network, images)
    scenario = mode if mode == "offline" else "single-stream"
    plan = planner.plan(blocks, Simulator(), COSTS, flat, scenario=scenario, model_encrypted=mode == "encrypted")
    np.testing.assert_allclose(simulated(plan, flat), network.forward(images), atol=1e-9 * blocks.output_scale)
    assert_counts(plan, flat)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_needs_few_diagonals_on_the_grid_of_its_inputs(stride: int) -> None:
    """A 3 × 3 convolution of c channels: at most 9 · c offsets, times 4 for the gaps that its outputs fill."""
    random = np.random.default_rng(stride)
    first = Conv(random.normal(size=(4, 1, 3, 3)), np.zeros(4), pads=(1,) * 4)
    second = Conv(random.normal(size=(4, 4, 3, 3)), np.zeros(4), strides=(stride,) * 2, pads=(1,) * 4)
    square, outputs = Polynomial(np.array([0, 0, 1.0])), second(np.zeros((1, 4, 16, 16))).size
    layers = (first, square, second, square, Flatten(), Gemm(random.normal(size=(2, outputs)), np.zeros(2)))
    network = chain("cnn", "none", "polynomial", (1, 16, 16), layers)
    images = random.uniform(0, 1, (8, 1, 16, 16))
    plan = planner.plan(from_network(network, images), Simulator(), COSTS, images.reshape(8, -1))
    assert len(plan.affines[1].terms) <= 9 * 4 * stride**2 < outputs
    assert len(plan.affines[1].rotations) <= 2 * np.sqrt(9 * 4 * stride**2) + 4


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_every_layout_of_a_layer_computes_it(inputs: int, outputs: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    affine = affine_of(random.normal(size=(outputs, inputs)), random.normal(size=outputs))
    image = random.uniform(-1, 1, (1, inputs))
    expected = image @ affine.weights[0].toarray().T + affine.bias
    parameters = scaled(2 * SLOTS, [inputs], 12)
    output_slots = tuple((slot,) for slot in range(outputs))
    candidates = list(packing.first_layer(affine, packing.compact(outputs), SLOTS, (2, 4)))
    assert candidates
    for first in candidates:
        steps = (packed(first, affine, 0),)
        plan = Plan(parameters, first.request, steps, (0, 0), output_slots, 1.0)
        np.testing.assert_allclose(simulated(plan, image), expected)

    # the same map as a last layer, behind an input of every period that holds it
    identity = affine_of(np.eye(inputs), np.zeros(inputs))
    if packing.power_of_two(inputs) <= 256:
        source = packing.compact(inputs)
        first = next(packing.first_layer(identity, source, SLOTS, (2,)))
        parameters = scaled(2 * SLOTS, [inputs, inputs], 12)
        for last in itertools.chain(
            *(packing.last_layer(affine.weights[0], source, SLOTS, (2, 8), adds) for adds in (True, False))
        ):
            steps = packed(first, identity, 0), Product("square", 1, 1), packed(last, affine, 2)
            result = simulated(Plan(parameters, first.request, steps, (0, 0, 1, 1), last.output_slots, 1.0), image)
            np.testing.assert_allclose(result, image**2 @ affine.weights[0].toarray().T + affine.bias)


def test_convolution_and_pooling_become_matrices() -> None:
    random = np.random.default_rng(0)
    network = chain(
        "cnn",
        "none",
        "polynomial",
        (3, 8, 8),
        (
            Conv(random.normal(size=(6, 3, 3, 3)), random.normal(size=6), strides=(2, 2), pads=(1,) * 4),
            Polynomial(random.uniform(0.2, 1, (3, 6))),
            AveragePool((2, 2), (2, 2)),
            Flatten(),
            Gemm(random.normal(size=(4, 24)), random.normal(size=4)),
        ),
    )
    images = random.uniform(size=(5, 3, 8, 8))
    blocks = from_network(network, images)
    assert len(blocks.affines) == 2
    np.testing.assert_allclose(blocks.forward(images.reshape(5, -1)), network.forward(images))


def test_intermediate_values_are_normalised() -> None:
    network, images = random_network((50, 20, 3), 1)
    blocks = from_network(network, images)
    x = images.reshape(len(images), -1)
    for value in blocks.values(x)[1:]:
        assert np.abs(value).max() <= 1


def test_networks_that_ckks_cannot_run_are_refused_with_the_reason() -> None:
    images = np.zeros((1, 1, 1, 4))
    linear = Gemm(np.ones((2, 4)), np.zeros(2))
    with pytest.raises(BackendError, match="polynomial lowering"):
        from_network(chain("x", "t", "float", (1, 1, 4), (Flatten(), linear, Relu())), images)
    flat = chain("x", "t", "polynomial", (1, 1, 4), (Flatten(), linear, Polynomial(np.array([0, 1.0, 0]))))
    with pytest.raises(BackendError, match="quadratic"):
        from_network(flat, images)
    true_relu = chain("x", "t", "polynomial", (1, 1, 4), (Flatten(), linear, Relu()))
    with pytest.raises(BackendError, match=r"cannot evaluate Relu \(node Relu_2\), only Add, .*Polynomial"):
        from_network(true_relu, images)


def test_a_plan_survives_its_serialisation() -> None:
    network, images = random_network((30, 10, 3), 2)
    blocks, flat = from_network(network, images), images.reshape(8, -1)
    for scenario in ("single-stream", "offline"):
        plan = planner.plan(blocks, Simulator(), COSTS, flat, scenario=scenario)
        server, _ = Plan.from_bytes(plan.server_bytes())
        client, keys = Plan.from_bytes(plan.client_bytes())
        assert server.keys == keys == plan.keys
        assert client.steps == () and client.response_scale([2**40] * 2) == plan.scales([2**40] * 2)[-1]
        assert costs.request_ciphertexts(server) == costs.request_ciphertexts(plan)


def test_objectives_trade_what_they_name() -> None:
    network, images = random_network((784, 64, 9), 3)
    blocks, flat = from_network(network, images), images.reshape(8, -1)
    by = {o: planner.plan(blocks, Simulator(), COSTS, flat, objective=o) for o in ("server", "upload", "memory")}
    ciphertexts = {o: costs.request_ciphertexts(plan) for o, plan in by.items()}
    milliseconds = {o: sum(costs.predict_ms(plan, COSTS)) for o, plan in by.items()}
    assert ciphertexts["upload"] == 1
    assert milliseconds["server"] == min(milliseconds.values())
    assert len(by["memory"].keys.rotations) <= len(by["server"].keys.rotations)


def test_the_client_adds_up_the_last_products_unless_the_server_has_to() -> None:
    network, images = random_network((784, 64, 9), 3)
    blocks, flat = from_network(network, images), images.reshape(8, -1)
    adding, logits = (planner.plan(blocks, Simulator(), COSTS, flat, client_adds=adds) for adds in (True, False))
    assert not adding.steps[-1].rotations and [len(slots) for slots in adding.output_slots] == [64] * 9
    assert logits.steps[-1].rotations and [len(slots) for slots in logits.output_slots] == [1] * 9
    for plan in (adding, logits):
        np.testing.assert_allclose(simulated(plan, flat), network.forward(images), atol=1e-9 * blocks.output_scale)


def test_predicted_operations_are_the_executed_ones() -> None:
    network, images = random_network((784, 64, 9), 4)
    blocks, flat = from_network(network, images), images.reshape(8, -1)
    plan = planner.plan(blocks, Simulator(), COSTS, flat)
    assert_counts(plan, flat)


COUNTED = """multiply_plain multiply multiply_scalar add_plain add square relinearise rescale mod_switch conjugate
    rotate""".split()


def assert_counts(plan: Plan, images: np.ndarray) -> None:
    predicted = costs.named(costs.total(plan))
    simulator = Simulator().evaluator(plan.parameters)
    moduli, weights = simulator.moduli(plan.parameters), None
    if plan.model_encrypted:
        weights = [simulator.encrypt_weight(w.vector, w.scale, w.level) for w in plan.weights(moduli)]
    program = Program(plan, simulator, moduli, weights)
    simulator.counts.clear()
    program.run(encrypt(plan, simulator, images[:1]))
    assert {name: simulator.counts.get(name, 0) for name in COUNTED} == {
        name: predicted.get(name, 0) for name in COUNTED
    }


# -- the libraries ------------------------------------------------------------------------------------------------------


def forget_keys() -> None:
    """OpenFHE keeps all keys that a process ever had in its own tables: gigabytes, for the parties of many tests."""
    import openfhe

    openfhe.ClearEvalMultKeys()
    openfhe.CryptoContext.ClearEvalAutomorphismKeys()


def parties(backend: str, job: Job):
    module = importlib.import_module(f"backends.{backend}")
    if backend == "openfhe":
        forget_keys()
    owner = module.Owner()
    prepared = owner.prepare(job)
    client, server = module.Client(), module.Server()
    client.load(prepared.client)
    server.load(prepared.server)
    keys = client.keygen(0)
    public = keys.pop("public", None)
    server.load_keys(keys)
    if public:
        server.load_model(owner.encrypt_model(public))
    return prepared, client, server


def answer(client, server, images: np.ndarray) -> np.ndarray:
    request = client.serialise(client.encrypt(images))
    response = server.serialise(server.infer(server.deserialise(request)))
    return client.decrypt(client.deserialise(response))


@pytest.mark.parametrize("backend", LIBRARIES)
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.tuples(st.integers(1, 900), st.integers(1, 100), st.integers(1, 12)), st.integers(0, 2**32 - 1))
def test_an_encrypted_plan_computes_its_network(backend: str, shape: tuple[int, ...], seed: int) -> None:
    network, images = random_network(shape, seed)
    prepared, client, server = parties(backend, Job(network, calibration=images))
    assert prepared.security["bits"] >= 128
    for image in images[:2]:
        assert np.abs(answer(client, server, image[None]) - network.forward(image[None])).max() < 1e-2


# OpenFHE switches keys by truncation, and by chance of the keys a logit now and then errs by a little more than 1e-2.
TOLERANCE = {"ckks": 1e-2, "openfhe": 3e-2}


@pytest.mark.parametrize("privacy", ["plain", "encrypted"])
@pytest.mark.parametrize("backend", LIBRARIES)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 2), st.integers(0, 2**32 - 1))
def test_an_encrypted_plan_computes_its_convolutions(backend: str, privacy: str, depth: int, seed: int) -> None:
    network, images = random_cnn(np.random.default_rng(seed), depth)
    prepared, client, server = parties(backend, Job(network, calibration=images, model_privacy=privacy))
    assert prepared.security["bits"] >= 128
    assert np.abs(answer(client, server, images[:1]) - network.forward(images[:1])).max() < TOLERANCE[backend]


@pytest.mark.parametrize("backend", LIBRARIES)
def test_the_naive_way_refuses_what_it_cannot_evaluate(backend: str) -> None:
    owner = importlib.import_module(f"backends.{backend}").Owner()
    graph, images = random_graph(GATE, 1, 6)
    with pytest.raises(BackendError, match="a chain of affine maps and squares; use the default one"):
        owner.prepare(Job(graph, variant="naive", calibration=images))


def test_a_network_that_is_too_deep_for_the_naive_way_of_tenseal_is_refused() -> None:
    network, images = random_network((8,) * 15, 1)
    with pytest.raises(BackendError, match="29 primes .* need a ring dimension above 32768.*fewer layers"):
        importlib.import_module("backends.ckks").Owner().prepare(Job(network, variant="naive", calibration=images))


def test_adding_leaves_its_arguments_as_they_were() -> None:
    library, parameters = importlib.import_module("backends.ckks").LIBRARY, scaled(8192, [8, 8], 10)
    client, evaluator = library.client(parameters), library.evaluator(parameters)
    evaluator.load_keys(client.keygen(KeyRequest((), False, True)))
    a, b = (
        client.deserialise(client.serialise(client.encrypt(np.ones(parameters.slots), s)))
        for s in (2.0**20, 2.0**20 + 1)
    )
    plain = evaluator.encode(np.ones(parameters.slots), 2.0**20 + 1, 0)
    for operation, other in ((evaluator.add, b), (evaluator.sub, b), (evaluator.add_plain, plain)):
        operation(a, other)
        assert (a.scale, other.scale) == (2.0**20, 2.0**20 + 1)


def check_graph(backend: str, privacy: str, depth: int, seed: int, side: int) -> None:
    network, images = random_graph(seed, depth, side)
    try:
        prepared, client, server = parties(backend, Job(network, calibration=images, model_privacy=privacy))
    except BackendError as error:  # a ring dimension of 32768 is not enough for every graph
        assert "use a shallower network" in str(error)
        return
    assert prepared.security["bits"] >= 128
    assert np.abs(answer(client, server, images[:1]) - network.forward(images[:1])).max() < 1e-2


GATE = 0  # a seed of `random_graph` with a gate of a quadratic and a cubic activation


@pytest.mark.parametrize("privacy", ["plain", "encrypted"])
@pytest.mark.parametrize("backend", LIBRARIES)
def test_an_encrypted_plan_computes_a_graph(backend: str, privacy: str) -> None:
    check_graph(backend, privacy, depth=1, seed=GATE, side=6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("privacy", ["plain", "encrypted"])
@pytest.mark.parametrize("backend", LIBRARIES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_an_encrypted_plan_computes_any_graph(backend: str, privacy: str, depth: int, seed: int) -> None:
    check_graph(backend, privacy, depth, seed, side=8)


@pytest.mark.parametrize("backend", LIBRARIES)
def test_the_server_has_no_weight_of_an_encrypted_model(backend: str) -> None:
    network, images = random_network((12, 6, 2), 8)
    module = importlib.import_module(f"backends.{backend}")
    owner, client, server = module.Owner(), module.Client(), module.Server()
    prepared = owner.prepare(Job(network, calibration=images, model_privacy="encrypted"))
    plan, _ = Plan.from_bytes(opened(frames.SERVER, prepared.server)[1])
    assert plan.model_encrypted
    assert not any(k.diagonals.size or step.bias.size for step in plan.affines for k in step.kernels)
    client.load(prepared.client)
    server.load(prepared.server)
    keys = client.keygen(0)
    server.load_keys({"evaluation": keys["evaluation"]})
    model = owner.encrypt_model(keys["public"])
    for damaged in (model[:-1], model[:8] + frames.REQUEST + model[12:], b""):
        with pytest.raises(MessageError):
            server.load_model(damaged)
    server.load_model(model)
    assert np.abs(answer(client, server, images[:1]) - network.forward(images[:1])).max() < 1e-2


@pytest.mark.parametrize("backend", LIBRARIES)
def test_two_images_share_a_slot_offline(backend: str) -> None:
    network, _ = random_network((12, 6, 2), 5)
    images = np.random.default_rng(0).uniform(0, 1, (2 * SLOTS, 1, 1, 12))
    prepared, client, server = parties(backend, Job(network, scenario="offline", calibration=images[:64]))
    assert prepared.batch == 2 * SLOTS and "rotate" not in prepared.operations
    assert np.abs(answer(client, server, images) - network.forward(images)).max() < 1e-2
    assert answer(client, server, images[:5]).shape == (5, 2)


@pytest.mark.parametrize("backend", LIBRARIES)
def test_damaged_and_foreign_messages_are_refused(backend: str) -> None:
    network, images = random_network((20, 8, 2), 6)
    _, client, server = parties(backend, Job(network, calibration=images))
    request = client.serialise(client.encrypt(images[:1]))
    flipped = bytearray(request)
    flipped[len(request) // 2] ^= 1
    foreign = request[:8] + frames.RESPONSE + request[12:]
    for damaged in (b"", request[:10], request[:-1], bytes(flipped), foreign, request + b"x"):
        with pytest.raises(MessageError):
            server.deserialise(damaged)
    _, other, _ = parties(backend, Job(network, calibration=images))
    with pytest.raises(MessageError, match="other keys"):
        server.deserialise(other.serialise(other.encrypt(images[:1])))


def test_security_is_looked_up_for_the_parameters_used() -> None:
    description = {"ring_dimension": 8192, "secret": "uniform ternary", "error_stddev": 3.19}
    assert "not IND-CPA-D" in security.ckks(description | {"log2_qp": 218.0})["sharing"]
    with pytest.raises(InsecureError, match="standard deviation 2.5 of the error"):
        security.ckks(description | {"log2_qp": 100.0, "error_stddev": 2.5})
    assert security.ckks(description | {"log2_qp": 218.0})["bits"] == 128
    assert security.ckks(description | {"log2_qp": 150.0})["bits"] == 192
    assert not security.ckks(description | {"log2_qp": 216.0})["meets_2024_guidelines"]
    for insecure in ({"log2_qp": 218.5}, {"log2_qp": 100.0, "secret": "sparse ternary"}):
        with pytest.raises(InsecureError, match="larger ring dimension"):
            security.ckks(description | insecure)


def test_secret_and_error_of_seal_are_those_of_the_context_that_was_built() -> None:
    """The error is measured: SEAL's is a centred binomial of standard deviation √10.5 (or a Gaussian of 3.2, as built)."""
    described = importlib.import_module("backends.ckks").LIBRARY.describe(scaled(8192, [8, 8], 10))
    assert described["error_stddev"] == pytest.approx(10.5**0.5, rel=0.05)
    assert security.ckks(described)["error_stddev"] == described["error_stddev"]


def test_secret_and_error_of_openfhe_are_those_of_the_context_that_was_built() -> None:
    import openfhe

    from backends.openfhe.library import FEATURES, describe

    options = openfhe.CCParamsCKKSRNS()
    options.SetMultiplicativeDepth(1)
    options.SetSecretKeyDist(openfhe.SecretKeyDist.SPARSE_TERNARY)
    options.SetStandardDeviation(3.5)
    context = openfhe.GenCryptoContext(options)
    for feature in FEATURES:
        context.Enable(feature)
    described = describe(context)
    assert (described["secret"], described["error_stddev"]) == ("sparse ternary", 3.5)
    with pytest.raises(InsecureError, match="sparse ternary secret is below 128 bits"):
        security.ckks(described)


@pytest.mark.parametrize("backend", LIBRARIES)
def test_parameters_below_128_bits_are_not_admissible(backend: str) -> None:
    library = importlib.import_module(f"backends.{backend}").LIBRARY
    parameters = scaled(8192, [784, 64, 64, 64, 64], 12)
    assert not library.admissible(parameters)


def test_blocks_forward_is_the_scaled_network() -> None:
    last = dataclasses.replace(affine_of(np.ones((1, 2)), np.ones(1)), inputs=(2,))
    blocks = Blocks((affine_of(np.eye(2), np.zeros(2)), SquareOf(1, 1), last), 3.0)
    np.testing.assert_allclose(blocks.forward(np.array([[1.0, 2.0]])), [[18.0]])


def test_the_keys_of_seal_are_evaluation_keys_and_nothing_else() -> None:
    import tenseal.sealapi as seal

    from backends.ckks import seal as ours

    library, parameters = importlib.import_module("backends.ckks").LIBRARY, scaled(8192, [8, 8], 10)
    parts = library.client(parameters).keygen(KeyRequest((1, 2), True, True))
    context = ours._context(parameters)
    relin = ours._load(seal.RelinKeys, context, parts[0])
    galois = ours._load(seal.GaloisKeys, context, parts[1])
    assert ours._save(relin) and galois.size() == 3  # two rotations and the conjugation: all bytes are accounted for
    assert len(parts) == 2
    for part in parts:
        with pytest.raises(MessageError):
            ours._load(seal.SecretKey, context, part)


def test_no_part_of_the_secret_key_of_openfhe_reaches_the_server() -> None:
    import openfhe

    library, parameters = importlib.import_module("backends.openfhe").LIBRARY, scaled(8192, [8, 8], 10, 2)
    client = library.client(parameters)
    blob = b"".join(client.keygen(KeyRequest((1, 2), True, True)))
    secret = openfhe.Serialize(client._secret, openfhe.BINARY)
    windows = [secret[start : start + 32] for start in range(len(secret) // 4, len(secret) - 32, 4096)]
    assert len(windows) > 10 and not any(window in blob for window in windows)


@pytest.mark.parametrize("backend", ["openfhe"])
def test_true_relu_is_a_series_of_the_float_network(backend: str) -> None:
    from backends.openfhe import relu

    random = np.random.default_rng(11)
    layers = (
        Conv(random.normal(size=(2, 1, 3, 3)), random.normal(size=2), strides=(2, 2)),
        Relu(),
        Flatten(),
        Gemm(random.normal(size=(3, 18)), random.normal(size=3)),
    )
    network, images = chain("cnn", "none", "float", (1, 8, 8), layers), random.uniform(0, 1, (16, 1, 8, 8))
    prepared, client, server = parties(backend, Job(network, variant="relu", calibration=images))
    approximate, chosen = relu.with_series(network, images)
    assert prepared.security["bits"] >= 128 and chosen.items() <= prepared.parameters.items()
    assert np.abs(answer(client, server, images[:1]) - approximate.forward(images[:1])).max() < 1e-2
    agreement = approximate.forward(images).argmax(axis=1) == network.forward(images).argmax(axis=1)
    assert agreement.mean() == chosen["relu_agreement"] >= relu.AGREEMENT


def test_scales_that_differ_by_rounding_add_up() -> None:
    """As those of an encrypted bias and of the sum it belongs to, in deep networks."""
    library, parameters = (
        importlib.import_module("backends.ckks").LIBRARY,
        Parameters(8192, 50, 50, 1, 50, 20, (20, 20)),
    )
    client, evaluator = library.client(parameters), library.evaluator(parameters)
    evaluator.load_keys(client.keygen(KeyRequest((), False, True)))
    vector, scales = np.linspace(-1, 1, parameters.slots), (2.0**40, 2.0**40 * (1 + 1e-12))
    a, b = (evaluator.deserialise(client.serialise(client.encrypt(vector, scale))) for scale in scales)
    np.testing.assert_allclose(client.decrypt(evaluator.add(a, b), scales[0]), 2 * vector, atol=1e-5)
