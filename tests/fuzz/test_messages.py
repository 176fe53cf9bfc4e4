"""Whole messages mutated, header and counts included, and wrong things framed rightly, for every library.

The default tests try a few hundred; the slow ones more than 10^5: 108 000 whole requests and responses and 1 800 keys and
artifacts, which die at the checksum in one process, and 8 850 with a right checksum (150 of them keys), which the library
itself gets to read in a party of its own, started anew whenever it dies.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from backends.api import Job, MessageError
from backends.registry import BackendInfo, resolve
from bench import runner
from bench.conformance import ACCIDENT, random_images, tiny_network
from bench.process import TrialError
from bench.session import Place, Session, Work
from tests.bench.test_runner import TRIAL, silent, subject
from tests.fuzz import mutations

LIBRARIES = ["ckks", "openfhe", "tfhe"]
Messages = dict[str, tuple[bytes, Callable[[bytes], object]]]  # an honest one of each kind, and who reads it


def messages_of(library: str) -> Messages:
    module, network = (
        importlib.import_module(f"backends.{library}"),
        tiny_network(resolve(library)[0].lowering, (1, 4, 4)),
    )
    prepared = module.Owner().prepare(Job(network, calibration=random_images(network, 64, seed=3)))
    client, server = module.Client(), module.Server()
    client.load(prepared.client)
    server.load(prepared.server)
    keys = client.keygen(0)
    server.load_keys(keys)
    request = client.serialise(client.encrypt(random_images(network, 1)))
    response = server.serialise(server.infer(server.deserialise(request)))
    client.decrypt(client.deserialise(response))
    return {
        "request": (request, server.deserialise),
        "response": (response, client.deserialise),
        "keys": (keys["evaluation"], lambda message: server.load_keys(keys | {"evaluation": message})),
        "client artifact": (prepared.client, lambda message: module.Client().load(message)),
        "server artifact": (prepared.server, lambda message: module.Server().load(message)),
    }


@pytest.fixture(scope="module", params=LIBRARIES)
def messages(request: pytest.FixtureRequest) -> Messages:
    return messages_of(request.param)


def refused(messages: Messages, tries: dict[str, int]) -> None:
    """Everything of a message is under its checksum: whatever is wrong with it, the library does not see it."""
    random = np.random.default_rng(1)
    for kind, times in tries.items():
        message, read = messages[kind]
        for _ in range(times):
            end = mutations.LENGTHS + 80 if random.integers(3) == 0 else None  # the header is small: it gets its share
            damaged = mutations.damaged(message, random, 0, end)
            if damaged != message:
                with pytest.raises(MessageError):
                    read(damaged)


def test_damaged_messages_die_at_the_checksum(messages: Messages) -> None:
    refused(messages, {"request": 60, "response": 60, "keys": 10, "client artifact": 10, "server artifact": 10})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_damaged_messages_die_at_the_checksum(messages: Messages) -> None:
    """18 000 requests and responses each, for each of three libraries."""
    refused(messages, {"request": 18_000, "response": 18_000} | dict.fromkeys(list(messages)[2:], 200))


def test_each_bit_of_the_header_counts(messages: Messages) -> None:
    for kind in ("request", "response"):
        message, read = messages[kind]
        for bit in range(8 * (mutations.LENGTHS + 8)):
            flipped = bytearray(message)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(MessageError):
                read(bytes(flipped))


# -- with a right checksum ---------------------------------------------------------------------------------------------


def outcomes(library: str, kinds: list[str], tries: int, folder: Path, scenario: str = "single-stream") -> Counter[str]:
    """``refused`` in words, a ``right shape`` (of whatever logits), or a ``dead`` party that the harness names and starts
    anew. Anything else fails: an accidental exception, another shape, and a call that does not end.

    tries: of each kind, in turn.
    """
    info, variant = resolve(library)
    network = tiny_network(info.lowering, (1, 4, 4))
    work = Work(info, variant, network, random_images(network, 64, seed=3), scenario)
    random, found = np.random.default_rng(4), Counter[str]()
    with Session(work, Place(folder / "party", time.monotonic() + 3600)) as session:
        batch = session.prepare().batch
        images = random_images(network, min(batch, 3))
        session.open()
        for kind in kinds * tries:
            try:
                logits = answer(session, kind, images, random)
                rows, outputs = logits.shape
                assert (
                    outputs == network.outputs and 1 <= rows <= batch
                )  # a wrong number of images may be a possible one
                found["right shape"] += 1
            except TrialError as error:
                assert error.status == "failed" and not ACCIDENT.match(error.reason), (error.status, error.reason)
                dead = [party for party in (session.client, session.server) if not party.alive]
                assert not dead or " killed by signal " in error.reason, error.reason
                found["dead" if dead else "refused"] += 1
            if kind == "keys":  # a library may keep what it has read of them
                session.server.close()
            session.revive()
        assert np.abs(session.ask(images) - network.forward(images)).max() < 0.5  # all is as before
    assert found.total() == tries * len(kinds) and found["refused"]
    return found


def answer(session: Session, kind: str, images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Logits of a round trip whose message of this kind is wrong. Raises TrialError."""

    def mutated(one: str, message: bytes) -> bytes:
        return mutations.framed(message, random) if one == kind else message

    if kind == "keys":
        keys = {name: mutated("keys", key) for name, key in session.keys.items()}
        session.server.call("load_keys", **keys)
    request = mutated("request", session.request(images))
    return session.logits(mutated("response", session.response(request)))


@pytest.mark.parametrize("library, tries", [("ckks", 40), ("openfhe", 40), ("tfhe", 4)])
def test_wrong_things_framed_rightly(library: str, tries: int, tmp_path: Path) -> None:
    """No library is killed by a ciphertext: what it cannot survive is refused before it reads it."""
    assert not outcomes(library, ["request", "response"], tries, tmp_path)["dead"]


@pytest.mark.parametrize("library", ["ckks", "openfhe"])
def test_wrong_things_framed_rightly_offline(library: str, tmp_path: Path) -> None:
    assert not outcomes(library, ["request", "response"], 6, tmp_path, "offline")["dead"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "library, scenario, tries",
    [
        ("ckks", "single-stream", 2000),
        ("openfhe", "single-stream", 2000),
        ("tfhe", "single-stream", 150),
        ("ckks", "offline", 100),
        ("openfhe", "offline", 100),
    ],
)
def test_many_wrong_things_framed_rightly(library: str, scenario: str, tries: int, tmp_path: Path) -> None:
    assert not outcomes(library, ["request", "response"], tries, tmp_path, scenario)["dead"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("library", LIBRARIES)
def test_wrong_keys_framed_rightly(library: str, tmp_path: Path) -> None:
    """Keys are too large and too many-sided to check: they may kill a server, which is then said and mended."""
    outcomes(library, ["keys"], 50, tmp_path)


# -- end to end --------------------------------------------------------------------------------------------------------


def hostile_record(library: str, kind: str, seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a trial in which one side mutates what it says; returns the status of its record."""
    honest = resolve(library)[0]
    info = BackendInfo(
        "hostile", "tests.fuzz.hostile_backend", Path(__file__).parent, "", honest.scheme, honest.lowering
    )
    monkeypatch.setattr(runner, "resolve", lambda _: (info, f"{library} {kind} {seed}"))
    trial = msgspec.structs.replace(TRIAL, backend="hostile", images=4, timeout_s=300.0, precision=0.0, threads=1)
    given = subject(1, 3)
    lowered = tiny_network(honest.lowering, given.task.input_shape)
    record = runner.run(trial, dataclasses.replace(given, lowered=lowered), folder, silent)
    assert record.status in ("ok", "wrong", "failed"), record.reason
    assert bool(record.reason) == (record.status != "ok")
    assert not ACCIDENT.match(record.reason), record.reason
    return record.status


@pytest.mark.parametrize("kind", ["request", "response"])
def test_a_trial_of_a_hostile_party_ends_with_a_record(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hostile_record("openfhe", kind, 1, tmp_path, monkeypatch) in ("failed", "wrong")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", ["request", "response", "keys"])
def test_trials_of_hostile_parties_end_with_records(
    library: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Counter(hostile_record(library, kind, seed, tmp_path, monkeypatch) for seed in range(4))
    assert ended["failed"]
