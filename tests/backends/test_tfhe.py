"""The three roles in one process, with nothing but bytes between them, on a network of 16 inputs."""

import dataclasses
import json
import zipfile
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import frames
from backends.api import BackendError, InsecureError, Job, MessageError
from backends.tfhe import Client, Owner, Server, circuit, owner, security
from models import tasks, zoo
from models.network import AveragePool, Conv, Flatten, Gemm, Network, Polynomial, Quantise, Relu, chain

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


def steady_images(network: Network) -> np.ndarray:
    """Images none of whose accumulators is near to where rounding turns to the next level; different logits first.

    Noise moves an accumulator by some share of a level, so elsewhere an encrypted logit may rightly differ.
    """
    images = np.random.default_rng(1).uniform(0, 1, (50_000, *SHAPE)).astype(np.float32)
    plan = circuit.plan(network)
    steady = np.ones(len(images), bool)
    for affine, accumulators in zip(plan.affines, circuit.simulate(plan, plan.quantise(images)), strict=True):
        if affine.rounding:
            position = accumulators.reshape(len(images), -1) / 2**affine.dropped_bits % 1
            steady &= (np.abs(position - 0.5) >= 0.25).all(1)
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


@pytest.mark.parametrize("make", [tiny, exact, convolutional])
def test_circuit_is_exactly_the_network(make):
    """What is compiled, on clear integers: every logit, every image."""
    network = make()
    plan = circuit.plan(network)
    logits = circuit.Ends.of(plan).logits(circuit.simulate(plan, plan.quantise(IMAGES))[-1])
    np.testing.assert_allclose(logits, network.forward(IMAGES), atol=1e-9)
    assert logits.std(0).max() > 0.05


@settings(deadline=None, max_examples=50)
@given(hidden=st.integers(1, 30), bits=st.integers(2, 12), seed=st.integers(0, 1000))
def test_split_logits_are_narrow_and_add_up(hidden, bits, seed):
    whole = circuit.plan(tiny(hidden, seed))
    parts = circuit.split(whole, bits)
    x = whole.quantise(IMAGES)
    expected, sent = circuit.simulate(whole, x)[-1], circuit.simulate(parts, x)[-1]
    np.testing.assert_array_equal(circuit.Ends.of(parts).logits(sent), circuit.Ends.of(whole).logits(expected))
    last = parts.affines[-1].weight
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
@pytest.mark.parametrize("make", [exact, convolutional])
def test_other_networks_run_encrypted(make):
    assert_encrypted_is_clear(make())


def assert_encrypted_is_clear(network: Network) -> None:
    images = steady_images(network)[:6]
    assert len(images) > 1
    parties = Parties(Owner().prepare(Job(network, calibration=IMAGES, options={"p_error": 1e-15})))
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
    assert {widest(model) for model in zoo.MODELS if model != "fcnn@sadhana2025"} == {owner.Options().widest_bits}
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
