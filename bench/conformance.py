"""The conformance suite: what every backend has to do, whatever its library. ``python -m bench test --backend NAME``.

It drives the three roles exactly as a trial does, as processes that exchange bytes, on a tiny network in the lowering
that ``backend.toml`` names. The environment variable BENCH_CONFORMANCE_BACKENDS holds the backends (``name`` or
``name:variant``, comma separated; default: all that are registered).
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.registry import backends, resolve
from bench.process import Party, TrialError
from bench.session import Place, Session, Work
from models.network import Add, Flatten, Gemm, Mul, Network, Node, Operator, Polynomial, Quantise, Relu, chain

VARIABLE = "BENCH_CONFORMANCE_BACKENDS"
HIDDEN = 5
IMAGES = 6
ONE_LEVEL = 3 / 8  # the most that a logit of the integer `tiny_network` moves when one activation moves by a level
TIMEOUT_S = 1800.0  # of a party's life: the one deployment that most tests share outlives all of them
# An accidental exception, which names its class; a refusal is a sentence for a person.
ACCIDENT = re.compile(r"^\w+: [\w.]*(Error|Exception|Interrupt)\b")


def chosen() -> list[str]:
    """The backends to test."""
    asked = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    return asked or [info.name for info in backends().values() if not info.test_only]


# -- what is run -------------------------------------------------------------------------------------------------------


def tiny_network(lowering: str, input_shape: tuple[int, int, int] = (3, 4, 4), outputs: int = 3) -> Network:
    """Two linear layers with random weights and the activation of the lowering between them."""
    random = np.random.default_rng(1)
    inputs = int(np.prod(input_shape))
    layers: tuple[Operator, ...]
    if lowering == "integer":
        step = 1 / 3  # of inputs of two bits
        weight = np.zeros((HIDDEN, inputs))
        for row in weight:  # few inputs a neuron, so that accumulators stay within 5 bits
            row[random.choice(inputs, 4, replace=False)] = random.choice([-1.0, 1.0], 4)
        layers = (
            Flatten(),
            Quantise(step, 2),
            Gemm(weight, step * np.ones(HIDDEN), 2, 1.0),
            Relu(),
            Quantise(3 * step, 2),
            Gemm(random.integers(-3, 4, (outputs, HIDDEN)) / 8, np.zeros(outputs), 3, 1 / 8),
        )
    else:
        activation = Relu() if lowering == "float" else Polynomial(np.array([0.1, 0.5, 0.25]))
        hidden, output = ((HIDDEN, inputs), (outputs, HIDDEN))
        layers = (
            Flatten(),
            Gemm(random.normal(size=hidden) / np.sqrt(inputs), random.normal(size=HIDDEN) / 4),
            activation,
            Gemm(random.normal(size=output), random.normal(size=outputs)),
        )
    return chain("tiny", "conformance", lowering, input_shape, layers)


def branching_network(lowering: str, outputs: int = 3) -> Network:
    """A residual sum, or a gate and a residual sum where values are real: for backends that declare these operators."""
    tiny = tiny_network(lowering, (1, 4, 4), HIDDEN)
    trunk, random = tiny.results[0], np.random.default_rng(7)
    output: Operator = Gemm(random.normal(size=(outputs, HIDDEN)), random.normal(size=outputs))
    if lowering == "integer":
        quantise, hidden = (
            tiny.nodes[-2].operator,
            tiny.nodes[-2].output,
        )  # the sum of two quantised values of one scale
        square = Gemm(random.integers(-1, 2, (HIDDEN, HIDDEN)) * 1.0, np.zeros(HIDDEN), 3, 1.0)
        output = Gemm(random.integers(-3, 4, (outputs, HIDDEN)) / 8, np.zeros(outputs), 3, 1 / 8)
        more: tuple[Node, ...] = (
            Node(square, (hidden,), "branch"),
            Node(Relu(), ("branch",), "positive"),
            Node(quantise, ("positive",), "quantised"),
            Node(Add(), (hidden, "quantised"), "sum"),
            Node(output, ("sum",), "logits"),
        )
        nodes = (*tiny.nodes[:-1], *more)
    else:
        gate = Gemm(random.normal(size=(HIDDEN, HIDDEN)) / 4, np.ones(HIDDEN))
        more = (
            Node(gate, (trunk,), "gate"),
            Node(Mul(), (trunk, "gate"), "gated"),
            Node(Add(), ("gated", trunk), "sum"),
            Node(output, ("sum",), "logits"),
        )
        nodes = (*tiny.nodes, *more)
    return dataclasses.replace(tiny, nodes=nodes, results=("logits",))


def random_images(network: Network, count: int, seed: int = 2) -> np.ndarray:
    """(count, channels, height, width) float32 in [0, 1]."""
    return np.random.default_rng(seed).uniform(0, 1, (count, *network.input_shape)).astype(np.float32)


def assert_close(lowering: str, logits: np.ndarray, expected: np.ndarray) -> None:
    """float: to rounding; polynomial: CKKS is approximate; integer: exact, but for a bootstrapping that rarely fails.

    Such a failure turns one activation of `tiny_network` into its neighbour. A run makes thousands, so one image in
    ten may have one, and at least one image.
    """
    assert logits.shape == expected.shape
    error = np.abs(logits - expected)
    limit = {"float": 1e-5, "polynomial": 1e-2, "integer": ONE_LEVEL + 1e-4}[lowering]
    assert error.max() < limit, f"worst logit error {error.max():.2g}, the limit is {limit:g}"
    if lowering == "integer":
        wrong = np.any(error > 1e-4, axis=1).sum()
        assert wrong <= max(1, len(error) // 10), f"{wrong} of {len(error)} images have logits that are not exact"


class Deployment(Session):
    """A session that compares its answers with the network's."""

    @property
    def encrypts(self) -> bool:
        return self.work.backend.scheme != "clear"

    @property
    def lowering(self) -> str:
        return self.work.backend.lowering

    @property
    def network(self) -> Network:
        assert isinstance(self.work, Work) and self.work.network is not None
        return self.work.network

    def with_server(self, server: Party) -> Deployment:
        """The same client with another server."""
        other = copy.copy(self)
        other.server = server
        return other

    def check(self, images: np.ndarray) -> None:
        """Answers are right, in as many requests as it takes."""
        batch = self.report.batch
        parts = [self.ask(images[i : i + batch]) for i in range(0, len(images), batch)]
        assert_close(self.lowering, np.concatenate(parts), self.network.forward(images))

    def reads(self, client: Party, response: bytes, images: np.ndarray) -> bool:
        """Whether the client gets the logits of `images` from the response."""
        try:
            logits = self.logits(response, client=client)
        except TrialError:
            return False
        return bool(np.abs(logits - self.network.forward(images)).max() < 0.1)


@contextmanager
def deploy(spec: str, network: Network, folder: Path, **job: Any) -> Iterator[Deployment]:
    """Raises TrialError, as a trial does."""
    info, variant = resolve(spec)
    work = Work(info, variant, network, random_images(network, 64, seed=3), **job)
    with Deployment(work, Place(folder / "party", time.monotonic() + TIMEOUT_S)) as deployment:
        deployment.prepare()
        deployment.open()
        yield deployment


@pytest.fixture(scope="module", params=chosen())
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Skips, and says so, where the backend's library is not installed."""
    info, _ = resolve(request.param)
    try:
        with Party("owner", info, 1, tmp_path_factory.mktemp("probe") / "owner.log", time.monotonic() + TIMEOUT_S):
            return request.param
    except TrialError as error:
        if error.status == "skipped":
            pytest.skip(error.reason)
        raise


@pytest.fixture(scope="module")
def deployed(spec: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An RGB network, one image a request."""
    network = tiny_network(resolve(spec)[0].lowering)
    with deploy(spec, network, tmp_path_factory.mktemp("deployment")) as deployed:
        yield deployed


@pytest.fixture
def deployment(deployed: Deployment) -> Deployment:
    """A party that died in one test is there for the next one."""
    deployed.revive()
    return deployed


@pytest.fixture
def encrypting(deployment: Deployment) -> Deployment:
    if not deployment.encrypts:
        pytest.skip("scheme clear: there are no keys")
    return deployment


def assert_refused(call: Callable[[], Any], role: str) -> None:
    """By a message for people, and not by whatever the library happened to raise; the process lives on."""
    with pytest.raises(TrialError) as refusal:
        call()
    assert refusal.value.status == "failed"
    assert refusal.value.reason.startswith(f"{role}: ")
    assert not ACCIDENT.match(refusal.value.reason), f"raise MessageError instead of: {refusal.value.reason}"


# -- right answers -----------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_network(deployment: Deployment) -> None:
    deployment.check(random_images(deployment.network, IMAGES))


def test_requests_do_not_depend_on_earlier_ones(deployment: Deployment) -> None:
    first, second = random_images(deployment.network, 2, seed=4)[:, None]
    answers = np.concatenate([deployment.ask(images) for images in (first, second, first)])
    assert_close(deployment.lowering, answers, deployment.network.forward(np.concatenate([first, second, first])))


def test_extreme_images(deployment: Deployment) -> None:
    shape = (1, *deployment.network.input_shape)
    deployment.check(np.concatenate([np.zeros(shape, np.float32), np.ones(shape, np.float32)]))


def test_one_output(spec: str, tmp_path: Path) -> None:
    """Gray images; one logit is a number and not a vector for some libraries."""
    network = tiny_network(resolve(spec)[0].lowering, (1, 4, 4), outputs=1)
    with deploy(spec, network, tmp_path) as deployment:
        deployment.check(random_images(network, 2))


def test_branches(spec: str, tmp_path: Path) -> None:
    """Where the backend declares their operators: a value that is read twice, a sum, a product."""
    info = resolve(spec)[0]
    network = branching_network(info.lowering)
    if why := info.refuses("single-stream", "plain", (node.type for node in network.nodes)):
        pytest.skip(why)
    with deploy(spec, network, tmp_path) as deployment:
        deployment.check(random_images(network, 2))


def test_offline(spec: str, tmp_path: Path) -> None:
    """Many outputs; a full request and one of fewer images. A backend without this scenario says so."""
    network = tiny_network(resolve(spec)[0].lowering, (1, 4, 4), outputs=14)
    with ExitStack() as stack:
        try:
            deployment = stack.enter_context(deploy(spec, network, tmp_path, scenario="offline"))
        except TrialError as error:
            assert not ACCIDENT.match(error.reason), error.reason
            pytest.skip(error.reason)
        images = random_images(network, deployment.report.batch)
        assert_close(deployment.lowering, deployment.ask(images), network.forward(images))
        fewer = images[: max(1, len(images) // 3)]
        assert_close(deployment.lowering, deployment.ask(fewer), network.forward(fewer))


def test_encrypted_model(spec: str, tmp_path: Path) -> None:
    """It answers right, or the owner says that it cannot; the weights never stay readable in silence."""
    network = tiny_network(resolve(spec)[0].lowering, (1, 4, 4))
    if resolve(spec)[0].scheme == "clear":
        pytest.skip("scheme clear: nothing is encrypted")
    with ExitStack() as stack:
        try:
            deployment = stack.enter_context(deploy(spec, network, tmp_path, model_privacy="encrypted"))
        except TrialError as error:
            assert error.reason.startswith("owner: ") and not ACCIDENT.match(error.reason), error.reason
            pytest.skip(error.reason)
        deployment.check(random_images(network, 1))
        weights = [layer.weight for layer in network.operators if isinstance(layer, Gemm)]
        assert not any(w.tobytes() in deployment.artifacts["server"] for w in weights)


# -- what the owner reports --------------------------------------------------------------------------------------------


def test_security(deployment: Deployment) -> None:
    security = deployment.report.security
    if deployment.encrypts:
        assert security is not None
        assert isinstance(security["bits"], int) and security["bits"] >= 128
        assert isinstance(security["standard"], str) and security["standard"]
    else:
        assert security is None


def test_report_of_the_owner(deployment: Deployment) -> None:
    assert all(count > 0 for count in deployment.report.operations.values())
    assert bool(deployment.report.parameters) == deployment.encrypts


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_strangers_read_nothing(encrypting: Deployment) -> None:
    """Whoever has the client artifact but no keys, or keys of their own; their requests are of no use either."""
    images = random_images(encrypting.network, 1)
    response, stranger = encrypting.response(encrypting.request(images)), encrypting.start("client")
    stranger.call("load", artifact=encrypting.artifacts["client"])
    with pytest.raises(TrialError):
        encrypting.logits(response, client=stranger)

    stranger.call("keygen", {"seed": 1})
    assert not encrypting.reads(stranger, response, images)
    try:
        foreign = encrypting.response(encrypting.request(images, client=stranger))
    except TrialError as error:
        assert not ACCIDENT.match(error.reason), error.reason
    else:  # evaluated with the keys of another client
        assert not any(encrypting.reads(client, foreign, images) for client in (encrypting.client, stranger))
    encrypting.check(images)


def test_same_image_encrypts_differently(encrypting: Deployment) -> None:
    """Encryption is randomised: equal images must not be seen to be equal."""
    images = random_images(encrypting.network, 1)
    assert encrypting.request(images) != encrypting.request(images)


# -- damaged messages --------------------------------------------------------------------------------------------------


def damaged(message: bytes) -> dict[str, bytes]:
    noise = np.random.default_rng(5).bytes(len(message))
    return {
        "empty": b"",
        "one byte": message[:1],
        "half": message[: len(message) // 2],
        "without the last byte": message[:-1],
        "random bytes": noise,
        "random bytes after a good start": message[:16] + noise[16:],
    }


def flipped(message: bytes) -> Iterator[tuple[int, bytes]]:
    """One bit wrong, at the start, at the end and in between."""
    for position in (0, len(message) // 3, len(message) // 2, len(message) - 1):
        yield position, message[:position] + bytes([message[position] ^ 0x10]) + message[position + 1 :]


def test_server_refuses_damaged_requests_and_lives(deployment: Deployment) -> None:
    images = random_images(deployment.network, 1)
    for bad in damaged(deployment.request(images)).values():
        assert_refused(partial(deployment.server.call, "deserialise", message=bad), "server")
    deployment.check(images)


def test_server_refuses_a_flipped_bit_and_lives(encrypting: Deployment) -> None:
    images = random_images(encrypting.network, 1)
    for _, bad in flipped(encrypting.request(images)):
        assert_refused(partial(encrypting.server.call, "deserialise", message=bad), "server")
    encrypting.check(images)


def test_server_refuses_a_response_for_a_request(encrypting: Deployment) -> None:
    images = random_images(encrypting.network, 1)
    response = encrypting.response(encrypting.request(images))
    assert_refused(lambda: encrypting.server.call("deserialise", message=response), "server")
    encrypting.check(images)


def test_server_refuses_damaged_keys_and_lives(encrypting: Deployment) -> None:
    server = encrypting.start("server")
    server.call("load", artifact=encrypting.artifacts["server"])
    assert_refused(lambda: server.call("load_keys"), "server")
    for name, key in encrypting.keys.items():
        for bad in (*damaged(key).values(), *(bad for _, bad in flipped(key))):
            assert_refused(partial(server.call, "load_keys", **encrypting.keys | {name: bad}), "server")
    server.call("load_keys", **encrypting.keys)
    encrypting.with_server(server).check(random_images(encrypting.network, 1))


def test_server_refuses_keys_for_another_network(encrypting: Deployment, spec: str, tmp_path: Path) -> None:
    """At once, or a request of whoever made them; where the parameters happen to be the same, keys may be loaded."""
    with deploy(spec, tiny_network(encrypting.lowering, (1, 4, 4), outputs=9), tmp_path) as other:
        server = encrypting.start("server")
        server.call("load", artifact=encrypting.artifacts["server"])

        def use() -> None:
            server.call("load_keys", **other.keys)
            server.call("deserialise", message=other.request(random_images(other.network, 1)))
            server.call("infer")

        assert_refused(use, "server")
        server.call("load_keys", **encrypting.keys)
        encrypting.with_server(server).check(random_images(encrypting.network, 1))


def test_client_refuses_damaged_responses_and_lives(encrypting: Deployment) -> None:
    images = random_images(encrypting.network, 1)
    response = encrypting.response(encrypting.request(images))
    for bad in (*damaged(response).values(), *(bad for _, bad in flipped(response))):
        assert_refused(partial(encrypting.client.call, "deserialise", message=bad), "client")
    assert_close(encrypting.lowering, encrypting.logits(response), encrypting.network.forward(images))
