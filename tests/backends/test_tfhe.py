"""The three roles in one process, with nothing but bytes between them, on a network of 16 inputs."""

import dataclasses
import hashlib
import json
import socket
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import frames, wire
from backends.api import BackendError, InsecureError, Job, MessageError
from backends.tfhe import Client, Owner, Server, circuit, owner, security
from models import catalogue, ptq, tasks, zoo
from models.network import (
    Add,
    AveragePool,
    Conv,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Input,
    Mul,
    Network,
    Node,
    Polynomial,
    Pow,
    Quantise,
    Relu,
    Reshape,
    chain,
)

SHAPE = (1, 4, 4)
IMAGES = np.random.default_rng(0).uniform(0, 1, (300, *SHAPE)).astype(np.float32)


def tiny(hidden: int = 6, seed: int = 0) -> Network:
    """Pooled images of 4 bits, 6-bit weights, accumulators of 11 bits that are rounded to 4, a square."""
    rng = np.random.default_rng(seed)
    scale, step = 1 / 32, 1 / 15
    weight = rng.integers(-31, 32, (hidden, 4)) * scale
    bias = (np.round(-weight.sum(1) / 2 / (scale * step)) + 0.25) * scale * step  # accumulators about symmetric
    dropped = int(np.ceil(np.log2(np.abs(weight).sum(1).max() / 2 / (scale * step) / 7)))
    layers = (
        AveragePool((2, 2), (2, 2)),
        Quantise(step, 4),
        Flatten(),
        Gemm(weight, bias, 6, scale),
        Quantise(scale * step * 2**dropped, 4, signed=True),
        Polynomial(3 * rng.normal(size=(3, hidden))),
        Quantise(0.7, 3, signed=True),
        Gemm(rng.integers(-3, 4, (3, hidden)) * 0.125, rng.normal(size=3), 3, 0.125),
    )
    return chain("fcnn", "tiny", "integer", SHAPE, layers)


def exact(fan_in: int = 6, hidden: int = 6, seed: int = 0) -> Network:
    """Accumulators that are narrow without rounding, and Relu."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((hidden, 16))
    for row in weight:
        row[rng.choice(16, fan_in, replace=False)] = rng.choice([-1.0, 1.0], fan_in)
    layers = (
        Flatten(),
        Quantise(1 / 3, 2),
        Gemm(weight, rng.normal(size=hidden), 2, 1.0),
        Relu(),
        Quantise(1.0, 2),
        Gemm(rng.integers(-3, 4, (3, hidden)) * 0.125, rng.normal(size=3), 3, 0.125),
    )
    return chain("fcnn", "tiny", "integer", SHAPE, layers)


def convolutional() -> Network:
    """Two convolutions, of which the first is strided and padded; both kinds of activation."""
    rng = np.random.default_rng(3)

    def integers(*shape: int) -> np.ndarray:
        return rng.integers(-1, 2, shape).astype(float)

    layers = (
        Quantise(1 / 3, 2),
        Conv(integers(2, 1, 3, 3), np.zeros(2) + 0.25 / 3, (2, 2), (1,) * 4, 1, (1, 1), 2, 1.0),
        Quantise(2 / 3, 4, signed=True),
        Polynomial(rng.normal(size=(3, 2)) / 4),
        Quantise(0.5, 2, signed=True),
        Conv(integers(2, 2, 2, 2), np.ones(2), weight_bits=2, weight_scale=1.0),
        Relu(),
        Quantise(1.0, 2),
        Flatten(),
        Gemm(integers(3, 2), np.arange(3.0), 2, 1.0),
    )
    return chain("polycnn", "tiny", "integer", SHAPE, layers)


def graph(nodes: list[tuple], result: str) -> Network:
    """nodes: (operator, names of its inputs, name)"""
    made = tuple(Node(operator, tuple(inputs.split()), name) for operator, inputs, name in nodes)
    return Network("own", "tiny", "integer", (Input("image", SHAPE),), made, (result,))


def residual() -> Network:
    """A block whose input joins its second convolution again: units 1 to 4, one accumulator rounded for one activation."""
    rng = np.random.default_rng(5)

    def conv(*shape: int, pads: int = 1) -> Conv:
        weight = rng.integers(-1, 2, shape).astype(float) / 4
        return Conv(weight, np.zeros(shape[0]) + 0.25 / 4, pads=(pads,) * 4, weight_bits=2, weight_scale=0.25)

    first = Conv(
        rng.integers(-1, 2, (2, 1, 2, 2)).astype(float), rng.normal(size=2), (2, 2), weight_bits=2, weight_scale=1.0
    )
    return graph(
        [
            (Quantise(1 / 3, 2), "image", "q"),
            (first, "q", "c1"),
            (Relu(), "c1", "r1"),
            (Quantise(1.0, 2), "r1", "x"),
            (conv(2, 2, 3, 3), "x", "c2"),
            (Pow(2), "c2", "p"),
            (Quantise(1.0, 2), "p", "s"),
            (conv(2, 2, 3, 3), "s", "c3"),
            (Add(), "x c3", "sum"),
            (Quantise(0.5, 5, signed=True), "sum", "rounded"),
            (Relu(), "rounded", "r2"),
            (Quantise(1.0, 2), "r2", "y"),
            (Flatten(), "y", "flat"),
            (Gemm(rng.integers(-3, 4, (3, 8)) * 0.5, rng.normal(size=3), 3, 0.5), "flat", "logits"),
        ],
        "logits",
    )


def gate() -> Network:
    """Squeeze and excitation: channels are multiplied by what a small layer makes of their means."""
    rng = np.random.default_rng(6)
    first = Conv(rng.integers(-1, 2, (2, 1, 2, 2)).astype(float), np.zeros(2), (2, 2), weight_bits=2, weight_scale=1.0)
    return graph(
        [
            (Quantise(1 / 3, 2), "image", "q"),
            (first, "q", "c1"),
            (Relu(), "c1", "r1"),
            (Quantise(0.5, 3), "r1", "x"),
            (GlobalAveragePool(), "x", "mean"),
            (Flatten(), "mean", "means"),
            (Gemm(np.array([[1.0, -1], [1, 1]]), np.array([0.3, 0.1]), 2, 1.0), "means", "excited"),
            (Polynomial(np.array([0.5, 0.25])), "excited", "sigmoid"),
            (Quantise(1 / 3, 2), "sigmoid", "weights"),
            (Reshape((2, 1, 1)), "weights", "gate"),
            (Mul(), "x gate", "scaled"),
            (AveragePool((2, 2), (2, 2)), "scaled", "pooled"),
            (Flatten(), "pooled", "flat"),
            (Gemm(rng.integers(-3, 4, (3, 2)) * 0.5, rng.normal(size=3), 3, 0.5), "flat", "logits"),
        ],
        "logits",
    )


def real(kind: str) -> Network:
    """A residual block with squares or a gate, with real weights, as a user trains them."""
    rng = np.random.default_rng(7)

    def conv(size: int, mean: float, **options) -> Conv:
        return Conv(rng.normal(mean, 1, (1, 1, size, size)), rng.normal(size=1) / 4, **options)

    stem = [(conv(2, 0.5, strides=(2, 2)), "image", "c1"), (Relu(), "c1", "x")]
    if kind == "residual":
        body = [(conv(3, 0, pads=(1,) * 4), "x", "c2"), (Pow(2), "c2", "square"), (Add(), "x square", "y")]
    else:
        body = [
            (GlobalAveragePool(), "x", "mean"),
            (Flatten(), "mean", "means"),
            (Gemm(np.full((1, 1), 1.5), np.zeros(1)), "means", "excited"),
            (Relu(), "excited", "weights"),
            (Reshape((1, 1, 1)), "weights", "gate"),
            (Mul(), "x gate", "y"),
        ]
    end = [(Flatten(), "y", "flat"), (Gemm(rng.normal(size=(3, 4)), rng.normal(size=3)), "flat", "logits")]
    return dataclasses.replace(graph([*stem, *body, *end], "logits"), lowering="float")


def steady_images(network: Network) -> np.ndarray:
    """Images none of whose accumulators is near to where rounding turns to the next level; different logits first.

    Noise moves an accumulator by some share of a level, so elsewhere an encrypted logit may rightly differ.
    """
    images = np.random.default_rng(1).uniform(0, 1, (50_000, *SHAPE)).astype(np.float32)
    plan = circuit.plan(network)
    steady = np.ones(len(images), bool)
    values = circuit.simulate(plan, plan.ends.quantise(images))
    for step in plan.steps:
        if isinstance(step.operation, circuit.Rounding) and step.operation.quantise:
            accumulators = (values[step.inputs[0]] + step.operation.shift).reshape(len(images), -1)
            steady &= (np.abs(accumulators / 2**step.operation.dropped_bits % 1 - 0.5) >= 0.25).all(1)
    images = images[steady]
    _, different = np.unique(network.forward(images), axis=0, return_index=True)
    return np.concatenate([images[different], images])


@pytest.fixture(scope="module")
def network() -> Network:
    return tiny()


@pytest.fixture(scope="module")
def prepared(network):
    return Owner().prepare(Job(network, calibration=IMAGES, scenario="offline"))


class Parties:
    def __init__(self, prepared):
        self.client, self.server = Client(), Server()
        self.client.load(prepared.client)
        self.server.load(prepared.server)
        self.keys = self.client.keygen(0)
        self.server.load_keys(self.keys)

    def request(self, images: np.ndarray) -> bytes:
        return self.client.serialise(self.client.encrypt(images))

    def answer(self, request: bytes) -> bytes:
        return self.server.serialise(self.server.infer(self.server.deserialise(request)))

    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.client.decrypt(self.client.deserialise(self.answer(self.request(images))))


@pytest.fixture(scope="module")
def parties(prepared):
    return Parties(prepared)


def test_encrypted_logits_are_those_of_the_network(parties, prepared, network):
    images = steady_images(network)[: 2 * prepared.batch]
    encrypted = np.concatenate([parties.logits(images[: prepared.batch]), parties.logits(images[prepared.batch :])])
    clear = network.forward(images)
    assert encrypted.shape == clear.shape and encrypted.dtype == np.float64
    assert np.mean(np.isclose(encrypted, clear, atol=1e-4)) > 0.8  # the default p_error leaves some noise
    assert np.abs(encrypted - clear).max() < 1.0  # a level that turned is a neighbour


def clear(plan: circuit.Plan, images: np.ndarray) -> np.ndarray:
    """Logits of what is compiled, on clear integers."""
    return plan.ends.logits(circuit.simulate(plan, plan.ends.quantise(images))[plan.result])


@pytest.mark.parametrize("make", [tiny, exact, convolutional, residual, gate])
def test_circuit_is_exactly_the_network(make):
    """Every logit, every image."""
    network = make()
    logits = clear(circuit.plan(network), IMAGES)
    np.testing.assert_allclose(logits, network.forward(IMAGES), atol=1e-9)
    assert logits.std(0).max() > 0.05


def test_what_hangs_together_has_one_width():
    """A gate's operand is also wide, where its mean goes through a linear layer: its narrow tables are lifted."""
    nodes = list(gate().nodes)
    wide = Gemm(np.array([[100.0, -100], [90, 120]]), np.array([0.3, 0.1]), 8, 1.0)
    nodes[6] = dataclasses.replace(nodes[6], operator=wide)
    nodes[7] = dataclasses.replace(nodes[7], operator=Polynomial(np.array([0.5, 0.0025])))
    nodes.insert(7, Node(Quantise(64 * 0.125, 6, signed=True), ("excited",), "rounded"))
    nodes[8] = dataclasses.replace(nodes[8], inputs=("rounded",))
    network = dataclasses.replace(gate(), nodes=tuple(nodes))
    plan = circuit.plan(network)
    lifted = circuit.levelled(plan, IMAGES)
    assert sum(isinstance(s.operation, circuit.Rounding) and s.operation.lift > 1 for s in lifted.steps) == 2
    np.testing.assert_array_equal(clear(lifted, IMAGES), clear(plan, IMAGES))
    parameters = Owner().explain(Job(network, calibration=IMAGES))["parameters"]
    assert max(key["polynomial_size"] for key in parameters["bootstrap_keys"]) <= 8192


def test_plans_of_shipped_networks_stay_what_they_were():
    """Widths, units, tables and logits by the first version, which knew chains only."""
    expected = json.loads(Path(__file__).with_name("tfhe_plans.json").read_text())
    images = tasks.normalise(tasks.load(tasks.task("digits")).train.images[:64])
    for name, values in expected.items():
        model, task = name.split("/")
        plan = circuit.plan(zoo.network(model, tasks.task(task), "integer"))
        assert summary(plan, images) == values, name
        assert circuit.levelled(plan, images) == plan, name


def summary(plan: circuit.Plan, images: np.ndarray) -> dict:
    def digest(array: np.ndarray) -> str:
        return hashlib.sha256(np.ascontiguousarray(array).astype(np.int64).tobytes()).hexdigest()[:16]

    sent = plan.ends.quantise(images)
    values = circuit.simulate(plan, sent)
    rounded = [step for step in plan.steps if isinstance(step.operation, circuit.Rounding)]
    tables = [step.operation.function for step in plan.steps if isinstance(step.operation, circuit.Table)]
    accumulators = [*(values[step.inputs[0]] + step.operation.shift for step in rounded), values[plan.result]]
    return {
        "widths": [[w.bits, w.read_bits, w.elements, round(w.reach, 6)] for w in circuit.widths(plan, images)],
        "units": [*(table.unit for table in tables), plan.ends.output_unit],
        "dropped": [*(step.operation.dropped_bits for step in rounded), 0],
        "input": digest(sent),
        "accumulators": [digest(x) for x in accumulators],
        "parts": circuit.split(plan, 8).parts,
        "logits": digest(np.round(plan.ends.logits(values[plan.result]) * 1e6)),
    }


@pytest.mark.slow
def test_compiled_shipped_network_stays_what_it_was():
    task = tasks.task("digits")
    images = tasks.normalise(tasks.load(task).train.images[:256])
    network = zoo.network("fcnn@fast", task, "integer")
    prepared = Owner().prepare(Job(network, threads=2, calibration=images))
    assert prepared.operations == {
        "programmable_bootstrap": 16,
        "key_switch": 16,
        "clear_multiplication": 3456,
        "clear_addition": 48,
        "encrypted_addition": 3456,
    }
    assert prepared.parameters["complexity"] == 1585139520
    assert prepared.parameters["lwe_dimensions"] == [2048, 780]


@settings(deadline=None, max_examples=50)
@given(hidden=st.integers(1, 30), bits=st.integers(2, 12), seed=st.integers(0, 1000))
def test_split_logits_are_narrow_and_add_up(hidden, bits, seed):
    whole = circuit.plan(tiny(hidden, seed))
    parts = circuit.split(whole, bits)
    np.testing.assert_array_equal(clear(parts, IMAGES), clear(whole, IMAGES))
    last = parts.steps[-1].operation.weight
    for part in last.reshape(parts.parts, 3, hidden):
        widest = circuit.signed_bits(0, int(3 * np.abs(part).sum(1).max()))  # activations of 3 bits are -3 … 3
        assert widest <= bits or np.count_nonzero(part.any(0)) == 1
    assert 1 <= parts.parts <= hidden
    if parts.parts > 1:  # no more parts than it takes
        first_two = last[: 2 * 3].reshape(2, 3, -1).sum(0)
        assert circuit.signed_bits(0, int(3 * np.abs(first_two).sum(1).max())) > bits


def test_logits_are_split_where_it_pays_unless_the_variant_leaves_the_sum_to_the_server():
    task = tasks.task("digits")
    images = tasks.normalise(tasks.load(task).train.images[:100])
    shipped = zoo.network("fcnn@balanced", task, "integer")

    def explained(network: Network, calibration: np.ndarray, variant: str = "") -> dict:
        return Owner().explain(Job(network, calibration=calibration, variant=variant))["parameters"]

    split, whole = explained(shipped, images), explained(shipped, images, "logits")
    assert split["logit_parts"] > 1 == whole["logit_parts"]
    assert split["complexity"] < whole["complexity"]
    assert explained(tiny(), IMAGES)["logit_parts"] == 1


def unused_range() -> Network:
    """A step whose accumulators stay in the middle of their range on all images."""
    layers = list(tiny().operators)
    wide = dataclasses.replace(layers[4], scale=2 * layers[4].scale)
    return tiny().with_operators((*layers[:4], wide, Relu(), Quantise(wide.scale, 1), *layers[7:]))


def test_no_activation_becomes_constant():
    network = unused_range()
    width, _ = circuit.widths(circuit.plan(network), IMAGES)
    assert width.reach < 0.5
    assert_encrypted_is_clear(network)


@pytest.mark.slow
@pytest.mark.parametrize("make", [exact, convolutional, residual, gate])
def test_other_networks_run_encrypted(make):
    assert_encrypted_is_clear(make())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["residual", "gate"])
def test_networks_quantised_after_training_run_encrypted(kind):
    images = (IMAGES * 255).astype(np.uint8)
    network = ptq.quantise(real(kind), images)
    assert max(width.read_bits for width in circuit.widths(circuit.plan(network), images / 255)[:-1]) <= 6
    assert_encrypted_is_clear(network, p_error=1e-6)


def assert_encrypted_is_clear(network: Network, p_error: float = 1e-15) -> None:
    images = steady_images(network)[:6]
    assert len(images) > 1
    parties = Parties(Owner().prepare(Job(network, calibration=IMAGES, options={"p_error": p_error})))
    encrypted = np.concatenate([parties.logits(image[None]) for image in images])
    np.testing.assert_allclose(encrypted, network.forward(images), atol=1e-4)


def test_single_stream_is_one_image_a_request(network):
    assert Owner().prepare(Job(network, calibration=IMAGES)).batch == 1


def test_what_was_compiled_is_described(prepared):
    assert prepared.operations["programmable_bootstrap"] == 6 * prepared.batch  # one a hidden neuron
    assert prepared.operations["key_switch"] == 6 * prepared.batch
    p = prepared.parameters
    assert p["p_error_achieved"] <= p["p_error"] == owner.Options().p_error
    key = p["bootstrap_keys"][0]
    assert key["glwe_dimension"] * key["polynomial_size"] in p["lwe_dimensions"]
    assert p["accumulator_bits"][0] == 11 and p["bootstrap_bits"] == [4] and p["rounding"] == ["4 bits"]
    assert p["client_pooling"] == 2 and p["encrypted_inputs"] == 4
    assert prepared.security["bits"] >= 128
    json.dumps([p, prepared.security, prepared.operations, prepared.notes])


# -- secrets -----------------------------------------------------------------------------------------------------------


def secret_keys(keyset: bytes) -> list[np.ndarray]:
    """The secret keys in a serialised keyset: bits, one a 64-bit word, so long runs of the words 0 and 1."""
    words = np.frombuffer(keyset[: len(keyset) // 8 * 8], np.uint64)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], words <= 1, [False]]).astype(int)))
    runs = [words[start:end] for start, end in edges.reshape(-1, 2) if end - start >= 450]
    return [run.astype(np.uint8) for run in runs if 0.4 < run.mean() < 0.6]


def encodings(bits: np.ndarray) -> list[bytes]:
    """Ways to write 256 bits from the middle of a key: as words of 64, 32 and 8 bits."""
    part = bits[len(bits) // 2 :][:256]
    return [part.astype(kind).tobytes() for kind in (np.uint64, np.uint32, np.uint8)]


def test_server_receives_no_secret_key(parties, prepared):
    mine = parties.client._client.keys.serialize()
    secrets = secret_keys(mine)
    lengths = {len(bits) for bits in secrets}
    assert any(abs(length - n) < 4 for n in prepared.parameters["lwe_dimensions"] for length in lengths)
    with zipfile.ZipFile(BytesIO(prepared.server)) as archive:
        received = [archive.read(name) for name in archive.namelist()]
    received += [*parties.keys.values(), parties.request(IMAGES[:1])]
    for bits in secrets:
        forms = encodings(bits)
        assert forms[0] in mine
        assert not any(form in data for form in forms for data in received)
    assert not any(secret_keys(data) for data in received)


def test_client_deserialises_no_foreign_keys_and_each_keygen_is_new(prepared, parties):
    other = Parties(prepared)
    assert other.keys["evaluation"] != parties.keys["evaluation"]
    with pytest.raises(MessageError, match="other keys"):
        other.server.deserialise(parties.request(IMAGES[:1]))
    with pytest.raises(MessageError, match="other keys"):
        other.client.deserialise(parties.answer(parties.request(IMAGES[:1])))


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:40],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\0" * len(data),
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: data[:40] + b"\xff" * 8 + data[48:],
    ],
)
def test_damaged_bytes_are_refused(parties, damage):
    request = parties.request(IMAGES[:1])
    response = parties.answer(request)
    with pytest.raises(MessageError):
        parties.server.deserialise(damage(request))
    with pytest.raises(MessageError):
        parties.client.deserialise(damage(response))
    with pytest.raises(MessageError):
        parties.server.load_keys({"evaluation": damage(parties.keys["evaluation"])})


def test_messages_of_another_kind_or_count_are_refused(parties):
    request = parties.request(IMAGES[:1])
    with pytest.raises(MessageError, match="expected a response"):
        parties.client.deserialise(request)
    with pytest.raises(MessageError, match="expected a request"):
        parties.server.deserialise(parties.answer(request))
    server, whose = parties.server, {"purpose": parties.server._circuit, "keys": parties.server._key}
    for reason, parts, values in (
        ("cannot read this ciphertext", [b"no ciphertext"], whose | {"images": 1}),
        ("expected 1 ciphertext, received 0", [], whose | {"images": 1}),
        ("holds 1 to 8 images here, not 9", [b"no ciphertext"], whose | {"images": 9}),
        ("another network", [b"no ciphertext"], whose | {"images": 1, "purpose": bytes(16)}),
    ):
        with pytest.raises(MessageError, match=reason):
            server.deserialise(frames.pack(frames.REQUEST, parts, **values))


def test_a_closed_connection_is_an_exception_while_concrete_is_in_the_process(parties):
    """Its runtime takes SIGPIPE for the end of the process."""
    parties.logits(IMAGES[:1])
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(BrokenPipeError):
        wire.send(ours, wire.Message({"operation": "infer"}))


def test_damaged_artifacts_are_refused(prepared):
    for party, artifact in ((Client(), prepared.client), (Server(), prepared.server)):
        with pytest.raises(MessageError, match="prepare the model again"):
            party.load(artifact[: len(artifact) // 2])


def test_too_many_images_are_refused(parties, prepared):
    with pytest.raises(BackendError, match="a request"):
        parties.client.encrypt(IMAGES[: prepared.batch + 1])


# -- refusals of the owner ---------------------------------------------------------------------------------------------


def test_wide_accumulators_are_refused_before_compiling_and_the_message_says_what_they_cost():
    layers = exact().operators
    network = exact().with_operators((Flatten(), Quantise(2**-8, 8), *layers[2:]))
    with pytest.raises(BackendError, match=r"6 programmable bootstraps would read accumulators of 1\d bits.*\d+ times"):
        Owner().prepare(Job(network, calibration=IMAGES))
    with pytest.raises(BackendError, match="read accumulators of 4 bits"):
        Owner().prepare(Job(tiny(), calibration=IMAGES, options={"widest_bits": 3}))


def test_only_the_published_preset_may_be_wide():
    def widest(model: str) -> int:
        return owner.options(Job(dataclasses.replace(tiny(), model=model))).widest_bits

    assert widest("fcnn@sadhana2025") == 16
    assert {widest(model) for model in catalogue.MODELS if model != "fcnn@sadhana2025"} == {owner.Options().widest_bits}
    with pytest.raises(BackendError, match="unknown option of tfhe.*p_error"):
        owner.options(Job(tiny(), options={"p_eror": 0.1}))


def test_accumulators_beyond_their_range_are_refused():
    layers = list(tiny().operators)
    layers[4] = Quantise(layers[4].scale / 8, 4, signed=True)
    with pytest.raises(BackendError, match="leaves its range"):
        Owner().prepare(Job(tiny().with_operators(layers), calibration=IMAGES))


def test_accumulators_are_rounded_to_powers_of_two_only():
    layers = list(tiny().operators)
    layers[4] = Quantise(layers[4].scale * 0.9, 4, signed=True)
    with pytest.raises(BackendError, match="power of two"):
        circuit.plan(tiny().with_operators(layers))


@pytest.mark.parametrize(
    "operators, inputs, message",
    [
        ((Add(),), ("x", "odd"), "multiples of 0.5 and of 0.7.* quantise one of them"),
        ((Mul(),), ("x", "c1"), "multiplies c1, which is not quantised"),
        ((Relu(), Add()), ("x", "x"), "ends with Relu: its output must be quantised"),
        ((AveragePool((2, 2), (1, 1), (1, 1, 0, 0)),), ("x",), "padded windows of different sizes"),
    ],
)
def test_what_integers_cannot_do_is_refused_with_a_cure(operators, inputs, message):
    conv = Conv(np.ones((1, 1, 2, 2)), np.ones(1), (2, 2), weight_bits=2, weight_scale=1.0)
    nodes = [
        (Quantise(1 / 3, 2), "image", "q"),
        (conv, "q", "c1"),
        (Relu(), "c1", "r"),
        (Quantise(0.5, 3), "r", "x"),
        (Quantise(0.7, 3), "r", "odd"),
    ]
    first, second = inputs[0], inputs[-1]
    if isinstance(operators[0], Relu):
        nodes.append((operators[0], "x", "bare"))
        first = "bare"
    last = operators[-1]
    nodes.append((last, f"{first} {second}" if isinstance(last, Add | Mul) else first, "y"))
    nodes.append((Flatten(), "y", "flat"))
    with pytest.raises(BackendError, match=message):
        circuit.plan(graph(nodes, "flat"))


def test_products_of_wide_values_are_refused_with_the_reason():
    wide = Quantise(1 / 64, 7)
    nodes = (dataclasses.replace(n, operator=wide) if n.output == "weights" else n for n in gate().nodes)
    network = dataclasses.replace(gate(), nodes=tuple(nodes))
    with pytest.raises(BackendError, match="read accumulators of 8 bits"):
        Owner().prepare(Job(network, calibration=IMAGES))


def test_other_lowerings_and_missing_calibration_are_refused(network):
    real = chain("fcnn", "tiny", "polynomial", SHAPE, (Flatten(), Gemm(np.ones((3, 16)), np.zeros(3))))
    with pytest.raises(BackendError, match="integer lowering"):
        Owner().prepare(Job(real, calibration=IMAGES))
    with pytest.raises(BackendError, match="calibration"):
        Owner().prepare(Job(network, calibration=IMAGES[:0]))
    with pytest.raises(BackendError, match="model-privacy"):
        Owner().prepare(Job(network, calibration=IMAGES, model_privacy="encrypted"))


def test_bits_are_those_of_twos_complement():
    assert [circuit.signed_bits(b, b) for b in (0, 1, 7, 8, -1, -8, -9)] == [1, 2, 4, 5, 1, 4, 5]


# -- security ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [600, 854, 2048])
def test_security_is_judged_by_the_curve(dimension):
    def level(bits: int, factor: float = 1.0) -> int:
        noise = factor * 2 ** security.CURVES[bits].log2_std(dimension)
        return security.tfhe([security.Sample("key", dimension, noise**2)])["bits"]

    assert level(128) == 128
    assert level(132) == 132
    with pytest.raises(InsecureError, match="below 128 bits"):
        level(128, factor=0.99)


def test_the_weakest_sample_counts():
    strong = security.Sample("strong", 900, 2.0**-30)
    weak = security.Sample("weak", 900, 2.0**-60)
    with pytest.raises(InsecureError, match="weak"):
        security.tfhe([strong, weak])
    with pytest.raises(InsecureError, match="450"):
        security.tfhe([security.Sample("short", 449, 2.0**-4)])
    with pytest.raises(InsecureError):
        security.tfhe([security.Sample("noiseless", 2048, 0.0)])
