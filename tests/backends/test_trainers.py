"""Training on ciphertexts: the circuit against the same descent in the clear, simulated and encrypted, and its roles."""

from __future__ import annotations

import dataclasses
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import security
from backends.api import BackendError, Training, checked_examples
from backends.registry import resolve
from backends.slots import costs, training
from backends.slots.library import Parameters
from backends.slots.simulator import Simulator
from bench.process import TrialError
from bench.session import Place, Session, TrainingWork
from models import regression

LIBRARIES = ("ckks", "openfhe")
LIMIT = 1e-2  # of a weight's error


def library_of(name: str):
    module = resolve(name)[0].load()
    return module.LIBRARY, costs.load(Path(module.__file__).parent)


def examples(rows: int, features: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, features))
    logits = x @ random.normal(scale=2 / np.sqrt(features), size=(features, outputs))
    return x, np.where(logits + random.logistic(size=logits.shape) > 0, 1.0, -1.0)


def in_the_clear(t: Training, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return regression.descent(x, y, t.steps, t.rate, regression.polynomial(t.degree))


# -- the circuit -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 90),
    features=st.integers(1, 12),
    outputs=st.integers(1, 3),
    steps=st.integers(2, 4),
    degree=st.sampled_from(regression.DEGREES),
    width=st.integers(0, 4),
    narrow=st.booleans(),
    refresh=st.booleans(),
    radix=st.sampled_from([2, 4, 8]),
)
def test_every_circuit_descends_as_in_the_clear(
    seed, rows, features, outputs, steps, degree, width, narrow, refresh, radix
):
    """Exactly, without noise: every layout, both orders of products, one output or several, rows that fill a ciphertext or
    not."""
    t = Training(rows, features, outputs, steps, 1.5, degree)
    depth = training.levels(t, narrow, refresh)
    parameters = Parameters(64, 30, 30, depth, 60, 30, (), kept=1)
    circuit = training.Circuit(t, parameters, 1 << width, narrow, refresh, radix)
    x, y = examples(rows, features, outputs, seed)
    weights = training.train(circuit, Simulator(), x, y)
    assert np.allclose(weights, in_the_clear(t, x, y)[-1], atol=1e-9)


@pytest.mark.parametrize(("features", "steps", "degree"), [(1, 12, 3), (4, 9, 3), (7, 11, 5), (11, 7, 3)])
def test_circuits_that_bootstrap_descend_as_in_the_clear(features, steps, degree):
    """Exactly, without noise; the simulator refuses what has no period or no levels left."""
    t, width = Training(90, features, 2, steps, 1.5, degree), training.power_of_two(features)
    depth = training.bootstrapping_levels(degree)
    parameters = Parameters(1024, 60, 53, depth, 60, 53, (), digits=3, bootstrap_slots=width)
    circuit, simulator = training.Circuit(t, parameters, width), Simulator()
    x, y = examples(t.rows, features, t.outputs)
    assert np.allclose(training.train(circuit, simulator, x, y), in_the_clear(t, x, y)[-1], atol=1e-9)
    tally = training.price(circuit, dict.fromkeys(PRIMITIVES, [1.0])).operations
    assert simulator.counts["bootstrap"] == tally["bootstrap"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_bootstrapped_weights_are_those_in_the_clear():
    library, table = library_of("openfhe")
    t = Training(40, 6, 1, 7, 1.0)
    circuit = training.plan(t, library, table, bootstrap=True, hoisting=True)
    description = library.describe(circuit.parameters)
    assert description["secret_weight"] == 192 and security.ckks(description)["bits"] == 128
    x, y = examples(t.rows, t.features, t.outputs)
    assert np.abs(training.train(circuit, library, x, y) - in_the_clear(t, x, y)[-1]).max() < LIMIT


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize(("refresh", "steps", "degree"), [(True, 4, 3), (True, 3, 5), (False, 2, 3)])
def test_encrypted_weights_are_those_in_the_clear(name, refresh, steps, degree):
    library, table = library_of(name)
    t = Training(90, 6, 2, steps, 1.0, degree)
    circuit = training.plan(t, library, table, refresh=refresh, hoisting=name == "openfhe")
    x, y = examples(t.rows, t.features, t.outputs, steps)
    assert np.abs(training.train(circuit, library, x, y) - in_the_clear(t, x, y)[-1]).max() < LIMIT
    description = library.describe(circuit.parameters)
    assert security.ckks(description)["bits"] >= 128 and "secret_weight" not in description


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_momentum_and_masks_on_ciphertexts(name):
    library, table = library_of(name)
    t = Training(40, 6, 1, 4, 1.0)
    circuit = training.plan(t, library, table, hoisting=name == "openfhe")
    x, y = examples(t.rows, t.features, t.outputs)
    assert np.abs(training.train(circuit, library, x, y) - in_the_clear(t, x, y)[-1]).max() < LIMIT


def test_the_simulated_error_decides_the_bits():
    library, table = library_of("ckks")
    circuit = training.plan(Training(90, 6, 1, 3, 1.0), library, table, refresh=True)
    assert training.simulated_error(circuit, library) <= training.TARGET_WEIGHT_ERROR
    coarse = dataclasses.replace(circuit.parameters, rescale_bits=16, input_scale_bits=16)
    worse = training.simulated_error(dataclasses.replace(circuit, parameters=coarse), library)
    assert worse > training.TARGET_WEIGHT_ERROR


@pytest.mark.parametrize("refresh", [True, False])
def test_operations_are_counted(refresh):
    """The tally counts what an evaluator does."""
    t = Training(50, 4, 2, 3, 1.0)
    parameters = Parameters(64, 30, 30, training.levels(t, False, refresh), 60, 30, (), kept=1)
    circuit, simulator = training.Circuit(t, parameters, 4, refresh=refresh), Simulator()
    training.train(circuit, simulator, *examples(50, 4, 2))
    counted = costs.named(training.price(circuit, dict.fromkeys(PRIMITIVES, [1.0])).operations)
    rounds = circuit.rounds
    for primitive in ("rotate", "relinearise", "rescale", "multiply", "square"):
        assert counted.get(primitive, 0) * rounds == simulator.counts.get(primitive, 0), primitive


PRIMITIVES = """deserialise add add_plain multiply multiply_plain multiply_scalar square relinearise conjugate rescale
rotate_many_step rotate_many_call rotate_sum_step rotate_sum_input rotate_sum_call""".split()


def test_steps_that_do_not_fit_are_refused_with_the_bound():
    library, table = library_of("ckks")
    with pytest.raises(BackendError, match="40 steps, 154 levels, .*take fewer steps, or the variant refresh"):
        training.plan(Training(100, 64, 1, 40, 1.0), library, table)
    with pytest.raises(BackendError, match="two steps or more"):
        training.plan(Training(100, 64, 1, 1, 1.0), library, table)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(training, "MEMORY_BYTES", 1e6)
    library, table = library_of("ckks")
    with pytest.raises(BackendError, match=r"need \d+\.\d GiB or more for keys and ciphertexts"):
        training.plan(Training(100, 64, 1, 4, 1.0), library, table)


# -- the sigmoid -------------------------------------------------------------------------------------------------------


def test_the_cubic_sigmoid_is_that_of_the_literature():
    assert np.allclose(regression.slope_coefficients(3), (0.15012, -0.001593), atol=1e-5)


@pytest.mark.parametrize("degree", regression.DEGREES)
def test_the_slope_is_sums_and_squares(degree):
    slope, t = training.Slope.of(degree), np.linspace(-8, 8, 99)
    h = slope.scale * t
    for constant in slope.constants:
        h = h**2 + constant
    assert np.allclose(slope.sign * t * h, regression.polynomial(degree)(t))


# -- the roles ---------------------------------------------------------------------------------------------------------


def session(tmp_path: Path, spec: str, t: Training) -> Session:
    work = TrainingWork(*resolve(spec), t)
    return Session(work, Place(tmp_path / "party", time.monotonic() + 300))


class Listening(Session):
    """Keeps every byte that the server receives."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.heard: list[bytes] = []

    def call(self, party, operation, header=None, /, **options):
        if party.role == "server":
            self.heard += [value for value in options.values() if isinstance(value, bytes)]
        return super().call(party, operation, header, **options)


@pytest.mark.parametrize("spec", ["clear:polynomial", "ckks:refresh", "openfhe:refresh"])
def test_roles_train_what_descends_in_the_clear(tmp_path, spec):
    t = Training(70, 5, 2, 3, 1.0)
    x, y = examples(t.rows, t.features, t.outputs)
    with session(tmp_path, spec, t) as s:
        report = s.prepare()
        s.open()
        weights = s.ask(np.hstack([x, y]))
    wanted = in_the_clear(t, x, y)
    assert weights.shape == wanted.shape
    assert np.abs(weights - wanted).max() < LIMIT
    infer = s.ledger.stages["server", "infer"]
    rounds = t.steps - 1 if "refresh" in spec else 1
    assert report.rounds == rounds and len(infer.wall_s) == 1
    if rounds > 1:
        assert len(infer.round_wall_s) == rounds and infer.wall_s[0] == pytest.approx(sum(infer.round_wall_s))
        assert len(s.ledger.stages["client", "refresh"].wall_s) == 1


@pytest.mark.parametrize("spec", ["ckks:refresh", "openfhe:refresh"])
def test_the_server_receives_no_example(tmp_path, spec):
    """Nothing that is sent to it holds a number of an example, and what depends on examples looks like noise."""
    t = Training(40, 4, 1, 3, 1.0)
    x, y = examples(t.rows, t.features, t.outputs)
    work = TrainingWork(*resolve(spec), t)
    with Listening(work, Place(tmp_path / "party", time.monotonic() + 300)) as s:
        s.prepare()
        s.open()
        before = len(s.heard)
        weights = s.ask(np.hstack([x, y]))
    requests = s.heard[before:]
    assert len(requests) == t.steps - 1
    everything = b"".join(s.heard)
    for dtype, together in ((np.float32, 2), (np.float64, 1)):  # eight bytes: fewer occur by chance
        numbers = np.concatenate([x.ravel(), weights.ravel()]).astype(dtype)
        for i in range(0, len(numbers) - 1, together):
            assert numbers[i : i + together].tobytes() not in everything
        assert y.astype(dtype).tobytes() not in everything
    for request in requests:
        sample = request[-20_000:]
        residue = np.frombuffer(sample[: len(sample) // 8 * 8], np.uint8).reshape(-1, 8)[:, :3]  # low bytes of residues
        assert len(zlib.compress(residue.tobytes())) > 0.95 * residue.size


def test_a_damaged_or_foreign_round_is_refused(tmp_path):
    t = Training(40, 4, 1, 3, 1.0)
    x, y = examples(t.rows, t.features, t.outputs)
    with session(tmp_path, "ckks:refresh", t) as s:
        s.prepare()
        s.open()
        first = s.request(np.hstack([x, y]))
        second = s.refresh(s.response(first), "sample", 1)
        for damaged in (second[:-9], second[:200] + b"\0\1\2" + second[203:], b""):
            with pytest.raises(TrialError, match="checksum|cut short"):
                s.response(damaged)
        server = s.start("server")
        server.call("load", artifact=s.artifacts["server"])
        server.call("load_keys", **s.keys)
        with pytest.raises(TrialError, match="expected a request, received a request of a further round"):
            server.call("deserialise", message=second)  # before its features


def test_a_variant_that_does_not_train_says_so(tmp_path):
    with (
        session(tmp_path, "ckks:naive", Training(40, 4, 1, 3, 1.0)) as s,
        pytest.raises(TrialError, match="not for training; choose from the default one, refresh"),
    ):
        s.prepare()


def test_examples_are_those_that_were_prepared_for():
    with pytest.raises(BackendError, match="not \\(3, 5\\)"):
        checked_examples(np.zeros((3, 5)), Training(4, 4, 1, 3, 1.0))
