"""Runs one trial: a session between owner, client and server, and one record at the end."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from backends import wire
from backends.registry import BackendInfo, resolve
from bench import conditions, machine, metrics, sampling
from bench.files import printable
from bench.machine import available_threads
from bench.process import TrialError
from bench.record import Outputs, Record, SamplingEnd, Status, Trial
from bench.session import REQUEST, SERVER_REQUEST, Ledger, OwnerReport, Phase, Place, Session, TrainingWork, Work
from models.encoder import Encoder
from models.network import Network, Polynomial
from models.tasks import Dataset, Task, normalise

CALIBRATION_IMAGES = 256
OFFLINE_REQUESTS = 3  # samples, at least, but of long requests
LONG_REQUEST_S = 60.0  # such a request is its own warm-up, and is not repeated to fill OFFLINE_REQUESTS
WRONG_SHARE = 0.1  # see `_verdict`

Progress = Callable[[str, float], None]  # stage, share of the trial done


@dataclass(frozen=True)
class Request:
    """inputs: for `Client.encrypt`. results: how many rows of what the client decrypts count, from the first on: of images,
    those that are no repetitions to fill or to warm up."""

    inputs: np.ndarray
    phase: Phase
    results: int = 0


class Workload(Protocol):
    """What a trial does, with all its data: see `bench.trials.WORKLOADS`."""

    def identity(self) -> dict[str, Any]:
        """Digests of data and networks: what the name of a record depends on."""

    def work(self, trial: Trial) -> Work | TrainingWork:
        """What is asked of the backend."""

    def requests(self, trial: Trial, batch: int) -> list[Request]:
        """All of a trial; samples are repeated afterwards. Raises TrialError."""

    def outputs(self, trial: Trial, results: list[np.ndarray]) -> Outputs:
        """Of the test images, from what the client decrypted; the encrypted ones are fewer if the trial ended early."""

    def notes(self, trial: Trial, results: list[np.ndarray]) -> dict[str, Any]: ...

    @property
    def operators(self) -> set[str]:
        """Of the network, which the backend has to support."""

    def describe(self, trial: Trial) -> dict[str, Any]:
        """The network's entry in the record."""


@dataclass(frozen=True)
class Subject:
    """Inference: the task, its data, and the two networks.

    float_network is the trained reference, lowered what the backend's owner receives. encoder: the client's, of a model that
    reads latents.
    """

    task: Task
    dataset: Dataset
    float_network: Network
    lowered: Network
    encoder: Encoder | None = None

    def read(self, images: np.ndarray) -> np.ndarray:
        """What the networks read of images (n, channels, height, width) in [0, 1]."""
        return self.encoder(images) if self.encoder else images

    def identity(self) -> dict[str, Any]:
        networks = [one.sha256 for one in (self.float_network, self.lowered, self.encoder) if one is not None]
        return {"data": self.dataset.md5, "networks": networks}

    def work(self, trial: Trial) -> Work:
        return work(trial, self)

    def requests(self, trial: Trial, batch: int) -> list[Request]:
        return _requests(self._images(trial)[1], batch, trial.scenario)

    def outputs(self, trial: Trial, results: list[np.ndarray]) -> Outputs:
        indices, images = self._images(trial)
        logits = np.concatenate(results)[: len(images)] if results else np.zeros((0, self.lowered.outputs))
        labels = self.dataset.test.labels[indices]
        read = self.read(images)
        wanted, lowered = self.float_network.forward(read), self.lowered.forward(read)
        return outputs(self.task, indices, labels, wanted, lowered, logits)

    def notes(self, trial: Trial, results: list[np.ndarray]) -> dict[str, Any]:
        return {"data": self.task.about} if self.task.about else {}

    @property
    def operators(self) -> set[str]:
        return {node.type for node in self.lowered.nodes}

    def describe(self, trial: Trial) -> dict[str, Any]:
        return describe(self.lowered) | {"input": describe_input(self, self.read(self._images(trial)[1]))}

    def _images(self, trial: Trial) -> tuple[np.ndarray, np.ndarray]:
        indices = image_order(trial, len(self.dataset.test.images))
        return indices, normalise(self.dataset.test.images[indices])


@dataclass
class _Measured:
    """Grows while the trial runs, so that a trial that ends early keeps what it measured."""

    ledger: Ledger = field(default_factory=Ledger)
    report: OwnerReport = field(default_factory=OwnerReport)
    results: list[np.ndarray] = field(default_factory=list)
    sampling_ended: SamplingEnd = ""


def key(trial: Trial, subject: Workload | None, backend: BackendInfo) -> str:
    """Names the record: a hash of everything that its result depends on. No subject: its data or network is missing."""
    parts = {
        "trial": msgspec.to_builtins(trial) | {"timeout_s": None},  # which only decides whether there is a result
        **(subject.identity() if subject else {"data": None, "networks": None}),
        "source": machine.source_sha256(backend),
        "versions": machine.versions(backend.distributions),
        "machine": machine.machine(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def run(trial: Trial, subject: Workload, run_folder: Path, progress: Progress, memory_limit_bytes: int = 0) -> Record:
    """Runs the trial and returns its record, whatever happens but Ctrl-C. Raises nothing of its own."""
    backend, _ = resolve(trial.backend)
    before = conditions.snapshot()
    started, start = datetime.now(timezone.utc), time.monotonic()
    measured = _Measured()
    status: Status
    try:
        if trial.threads > available_threads():
            raise TrialError("skipped", f"{trial.threads} threads asked for, {available_threads()} cores here")
        place = Place(run_folder / "logs" / trial.slug, start + trial.timeout_s, memory_limit_bytes)
        with Session(subject.work(trial), place, measured.ledger) as session:
            _measure(session, trial, subject, progress, measured)
        status, reason = "ok", ""
    except TrialError as error:
        status, reason = error.status, error.reason
    duration_s, after = time.monotonic() - start, conditions.snapshot()
    outputs = subject.outputs(trial, measured.results)
    if status == "ok":
        status, reason = _verdict(outputs, len(outputs.labels))
    report, ledger = measured.report, measured.ledger
    infer = ledger.stages.get(("server", "infer"))
    wall = sum(infer.wall_s) if infer else 0.0
    return Record(
        key=key(trial, subject, backend),
        trial=trial,
        status=status,
        reason=reason,
        started_at=started.isoformat(timespec="seconds"),
        duration_s=duration_s,
        batch=report.batch,
        parameters=report.parameters,
        security=report.security,
        operations=report.operations,
        notes=report.notes | ledger.notes | subject.notes(trial, measured.results),
        stages=list(ledger.stages.values()),
        sizes=ledger.sizes,
        network=subject.describe(trial),
        outputs=outputs,
        cpu_wall_ratio=sum(infer.cpu_s) / wall if infer and wall else None,
        sampling_ended=measured.sampling_ended,
        conditions=conditions.between(before, after),
        machine=machine.machine(),
        versions=machine.versions(backend.distributions),
        git_commit=machine.git_commit(),
        command=command(trial),
    )


def unmeasured(
    trial: Trial,
    status: Status,
    reason: str,
    about_machine: dict[str, Any] | None = None,
    unsupported: bool = False,
) -> Record:
    """The record of a trial that could not start: its data or network is missing, or the machine that ran it was lost.

    about_machine: empty if the machine is unknown.
    """
    backend, _ = resolve(trial.backend)
    return Record(
        key=key(trial, None, backend),
        trial=trial,
        status=status,
        reason=reason,
        unsupported=unsupported,
        started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        duration_s=0.0,
        machine=machine.machine() if about_machine is None else about_machine,
        versions=machine.versions(backend.distributions),
        git_commit=machine.git_commit(),
        command=command(trial),
    )


def work(trial: Trial, subject: Subject) -> Work:
    """What a trial asks of its backend."""
    backend, variant = resolve(trial.backend)
    return Work(
        backend=backend,
        variant=variant,
        network=subject.lowered,
        calibration=subject.read(calibration(subject.dataset, trial.seed)),
        encoder=subject.encoder,
        scenario=trial.scenario,
        threads=trial.threads,
        model_privacy=trial.model_privacy,
    )


def calibration(dataset: Dataset, seed: int = 0) -> np.ndarray:
    """Training images (n, channels, height, width) float32 in [0, 1], for the ranges of intermediate values."""
    images = dataset.train.images
    return normalise(images[np.random.default_rng(seed).permutation(len(images))[:CALIBRATION_IMAGES]])


def _measure(session: Session, trial: Trial, subject: Workload, progress: Progress, measured: _Measured) -> None:
    """Every step of a trial, the repetitions included. Raises TrialError."""
    progress("prepare", 0.0)
    measured.report = session.prepare()
    session.open(trial.seed, lambda step: progress(step, 0.1))

    requests = subject.requests(trial, measured.report.batch)
    number = 0
    while number < len(requests):
        request, asked = requests[number], time.monotonic()
        stage = "infer" if request.phase == "sample" else request.phase
        progress(stage, 0.2 + 0.8 * number / len(requests))
        measured.results.append(session.ask(request.inputs, request.phase)[: request.results])
        if request.phase == "cold" and time.monotonic() - asked > LONG_REQUEST_S:
            requests = [request, *(r for r in requests if r.results)]
        number += 1

    samples, repeating = [r for r in requests if r.phase == "sample"], time.monotonic()
    for request in itertools.cycle(samples):
        now = time.monotonic()
        totals = [measured.ledger.totals(stages) for stages in (REQUEST, SERVER_REQUEST)]
        measured.sampling_ended = sampling.ended(
            totals, trial.precision, now - repeating, trial.sampling_s, session.deadline - now
        )
        if measured.sampling_ended:
            break
        progress("repeat", 1.0)
        session.ask(request.inputs)


def _requests(images: np.ndarray, batch: int, scenario: str) -> list[Request]:
    """All requests of a trial: the cold first call and one warm-up, both with the images of the first sample, then
    the samples. offline: each request is full, by repeating its images, and there are at least OFFLINE_REQUESTS samples.
    If the cold call takes longer than LONG_REQUEST_S, neither the warm-up nor repetitions of images are asked for.
    Raises TrialError for a batch that no message holds.
    """
    if scenario == "offline" and batch * images[0].nbytes > wire.MAX_BODY_BYTES:
        raise TrialError("failed", f"owner: a request of {batch} images is more than a message holds")
    batches = [images[i : i + batch] for i in range(0, len(images), batch)]
    full = [np.resize(b, (batch, *b.shape[1:])) if scenario == "offline" else b for b in batches]
    samples = [Request(filled, "sample", len(b)) for filled, b in zip(full, batches)]
    if scenario == "offline":
        samples += [Request(full[0], "sample")] * (OFFLINE_REQUESTS - len(samples))
    return [Request(full[0], "cold"), Request(full[0], "warm-up"), *samples]


def image_order(trial: Trial, available: int) -> np.ndarray:
    """Indices of the test images of a trial: the same for every backend and model of a task and seed."""
    random = np.random.default_rng([zlib.crc32(trial.task.encode()), trial.seed])
    order = random.permutation(available)
    return order[: trial.images] if trial.images else order


def outputs(
    task: Task,
    indices: np.ndarray,
    labels: np.ndarray,
    float_logits: np.ndarray,
    lowered_logits: np.ndarray,
    encrypted: np.ndarray,
) -> Outputs:
    """The record's entry; encrypted logits end before the first that is not finite."""
    finite = np.isfinite(encrypted).all(axis=1)
    encrypted = encrypted if finite.all() else encrypted[: int(np.argmin(finite))]

    def rows(values: np.ndarray) -> list[list[float]]:
        return [[float(f"{v:.7g}") for v in row] for row in values]

    return Outputs(
        kind=task.kind,
        indices=indices.tolist(),
        labels=labels.tolist(),
        float_logits=rows(float_logits),
        lowered_logits=rows(lowered_logits),
        encrypted_logits=rows(encrypted),
        names=[printable(task.labels[index])[:200] for index in sorted(task.labels)],
    )


def _verdict(outputs: Outputs, images: int) -> tuple[Status, str]:
    """ok, or wrong with the reason: predictions that are not those of the lowered network.

    A borderline image may flip by the noise that encryption adds, and a bootstrapping may fail now and then; so `wrong`
    are more than WRONG_SHARE of the images, and more than one, that differ by more than the noise seen on the others.
    """
    decrypted = len(outputs.encrypted_logits)
    if decrypted < images:
        return "wrong", f"the decrypted logits of image {decrypted} are not finite"
    disagreements = metrics.quality(outputs).disagreements_beyond_noise or 0
    if disagreements > max(1 if images > 2 else 0, WRONG_SHARE * images):
        return "wrong", (
            f"{disagreements} of {images} predictions differ from those of the lowered network in the clear, "
            "by more than noise"
        )
    return "ok", ""


def describe(network: Network) -> dict[str, Any]:
    layers = [" ".join([node.type, *map(str, network.shapes[node.output])]) for node in network.nodes]
    return {
        "model": network.model,
        "lowering": network.lowering,
        "sha256": network.sha256,
        "layers": layers,
        "provenance": network.provenance,
    }


def describe_input(subject: Subject, read: np.ndarray) -> dict[str, Any]:
    """What the network reads of an image, and how far gates' polynomials were from where they were fitted. read: of the
    trial's images."""
    about: dict[str, Any] = {"input_values": math.prod(subject.lowered.input_shape)}
    if (encoder := subject.encoder) is not None:
        told = encoder.described()
        about |= {"encoder": told, "encoder_trained_on": told.get("trained_on")}
        about["encoder_psnr_db"] = told.get("psnr_db", {}).get("quantised" if encoder.quantised else "latent")
        shapes = (subject.task.input_shape, encoder.network.input_shape)
        before, after = ("×".join(map(str, shape[1:])) for shape in shapes)
        about |= {"resized": f"{before} to {after}"} if before != after else {}
    network, gates = subject.lowered, dict[str, float]()
    for node in network.nodes:
        if isinstance(node.operator, Polynomial) and node.operator.basis == "chebyshev":
            gates[node.inputs[0]] = node.operator.reach
    if gates:
        values = network.evaluate({network.inputs[0].name: read}, gates)
        about["gate_values"] = sum(x.size for x in values.values())
        about["gate_values_beyond"] = sum(int((np.abs(x) > gates[name]).sum()) for name, x in values.items())
    return about


def command(trial: Trial) -> str:
    """The command line that runs this trial alone."""
    usual = Trial(backend="", model="", task="")
    training = {"workload": trial.workload, "steps": trial.steps, "rate": f"{trial.rate:g}", "features": trial.features}
    options = {
        "backend": trial.backend,
        "model": trial.model,
        "task": trial.task,
        "scenario": trial.scenario,
        "images": trial.images,
        "threads": trial.threads,
        "seed": trial.seed,
        "timeout": f"{trial.timeout_s:g}",
    }
    if trial.model_privacy != usual.model_privacy:
        options["model-privacy"] = trial.model_privacy
    if trial.precision != usual.precision:
        options["precision"] = f"{trial.precision:g}"
    if trial.sampling_s != usual.sampling_s:
        options["sampling-time"] = f"{trial.sampling_s:g}"
    if trial.workload != usual.workload:
        options |= {name: value for name, value in training.items() if value not in (0, "0", "")}
    return "python -m bench run " + " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items())
