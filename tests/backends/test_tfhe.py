"""The three roles in one process, with nothing but bytes between them, on a network of 16 inputs."""

import dataclasses
import json
import zipfile
from io import BytesIO

import numpy as np
import pytest

from backends.api import BackendError, InsecureError, Job, MessageError
from backends.tfhe import Client, Owner, Server, frame, owner, security
from models.network import Flatten, Linear, Network, Quantise, ReLU

SHAPE = (1, 4, 4)
IMAGES = np.random.default_rng(0).uniform(0, 1, (300, *SHAPE)).astype(np.float32)


def tiny(fan_in: int = 6, hidden: int = 6, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    weight = np.zeros((hidden, 16))
    for row in weight:
        row[rng.choice(16, fan_in, replace=False)] = rng.choice([-1.0, 1.0], fan_in)
    layers = (
        Flatten(),
        Quantise(1 / 3, 2),
        Linear(weight, rng.normal(size=hidden), 2, 1.0),
        ReLU(),
        Quantise(1.0, 2),
        Linear(rng.integers(-3, 4, (3, hidden)) * 0.125, rng.normal(size=3), 3, 0.125),
    )
    return Network("fcnn", "tiny", "integer", SHAPE, 3, layers)


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
    images = IMAGES[: 2 * prepared.batch]
    encrypted = np.concatenate([parties.logits(images[: prepared.batch]), parties.logits(images[prepared.batch :])])
    clear = network.forward(images)
    assert encrypted.shape == clear.shape and encrypted.dtype == np.float64
    # A PBS errs with probability p_error at most, and by one level: nearly all logits are the same integers.
    assert np.mean(np.isclose(encrypted, clear, atol=1e-4)) > 0.8
    assert np.abs(encrypted - clear).max() < 1.0


def test_compiled_circuit_is_exactly_the_network(network):
    """What Concrete computes without noise: every logit, every image."""
    module = owner._compile(Job(network, calibration=IMAGES), IMAGES)
    images = IMAGES[:50]
    np.testing.assert_allclose(module.forward(images, fhe="disable"), network.forward(images), atol=1e-5)


def test_single_stream_is_one_image_a_request(network):
    assert Owner().prepare(Job(network, calibration=IMAGES)).batch == 1


def test_what_was_compiled_is_described(prepared):
    assert prepared.operations["programmable_bootstrap"] == 6  # one a hidden neuron
    assert prepared.operations["key_switch"] == 6
    p = prepared.parameters
    assert p["p_error"] == owner.P_ERROR and p["p_error_achieved"] <= owner.P_ERROR
    key = p["bootstrap_keys"][0]
    assert key["glwe_dimension"] * key["polynomial_size"] in p["lwe_dimensions"]
    assert p["accumulator_bits"][0] <= owner.ROUNDED_BITS
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
    mine = parties.client._model.client.keys.serialize()
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
    parts = [b"no ciphertext"]
    server = parties.server
    with pytest.raises(MessageError, match="not a ciphertext"):
        server.deserialise(frame.pack(frame.REQUEST, server._circuit, server._key, parts))
    with pytest.raises(MessageError, match="0 images"):
        server.deserialise(frame.pack(frame.REQUEST, server._circuit, server._key, []))
    with pytest.raises(MessageError, match="another model"):
        server.deserialise(frame.pack(frame.REQUEST, bytes(16), server._key, parts))


def test_damaged_artifacts_are_refused(prepared):
    for party, artifact in ((Client(), prepared.client), (Server(), prepared.server)):
        with pytest.raises(MessageError, match="prepare the model again"):
            party.load(artifact[: len(artifact) // 2])


def test_too_many_images_are_refused(parties, prepared):
    with pytest.raises(BackendError, match="a request"):
        parties.client.encrypt(IMAGES[: prepared.batch + 1])


# -- refusals of the owner ---------------------------------------------------------------------------------------------


def test_wide_accumulators_are_refused_before_compiling():
    wide = tiny()
    inputs, hidden = Quantise(2**-12, 12), wide.layers[2]
    hidden = dataclasses.replace(hidden, bias=hidden.bias * 0)
    network = dataclasses.replace(wide, layers=(Flatten(), inputs, hidden, *wide.layers[3:]))
    with pytest.raises(BackendError, match="accumulators of 1[0-9] bits"):
        Owner().prepare(Job(network, calibration=IMAGES))


def test_other_lowerings_and_missing_calibration_are_refused(network):
    real = Network("fcnn", "tiny", "polynomial", SHAPE, 3, (Flatten(), Linear(np.ones((3, 16)), np.zeros(3))))
    with pytest.raises(BackendError, match="integer lowering"):
        Owner().prepare(Job(real, calibration=IMAGES))
    with pytest.raises(BackendError, match="calibration"):
        Owner().prepare(Job(network, calibration=IMAGES[:0]))
    with pytest.raises(BackendError, match="model-privacy"):
        Owner().prepare(Job(network, calibration=IMAGES, model_privacy="encrypted"))


def test_accumulator_bits_counts_two_s_complement_without_the_bias():
    def bits(weight: float) -> int:
        weights = np.zeros((1, 16))
        weights[0, 0] = weight
        layers = (Flatten(), Quantise(1.0, 1), Linear(weights, np.full(1, 100.0), 6, 1.0))
        return owner.accumulator_bits(Network("m", "t", "integer", SHAPE, 1, layers), np.ones((1, *SHAPE)))[0]

    assert [bits(b) for b in (0, 1, 7, 8, -1, -8, -9)] == [1, 2, 4, 5, 1, 4, 5]


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
