"""Runs one trial: owner, client and server in processes of their own, bytes between them, one record at the end."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from backends import wire
from backends.registry import BackendInfo, resolve
from bench import conditions, machine, metrics, sampling
from bench.machine import available_threads
from bench.process import Party, TrialError
from bench.record import Outputs, Record, Role, SamplingEnd, Stage, Status, Trial
from models.network import Network
from models.tasks import Dataset, Task, normalise

CALIBRATION_IMAGES = 256
OFFLINE_REQUESTS = 3  # samples, at least, but of long requests
LONG_REQUEST_S = 60.0  # such a request is its own warm-up, and is not repeated to fill OFFLINE_REQUESTS
REQUEST_STAGES: list[tuple[Role, str]] = [
    ("client", "encrypt"), ("client", "serialise"), ("server", "deserialise"), ("server", "infer"),
    ("server", "serialise"), ("client", "deserialise"), ("client", "decrypt"),
]  # fmt: skip
SERVER_STAGES = [stage for stage in REQUEST_STAGES if stage[0] == "server"]
MINIMUM_SECURITY_BITS = 128
WRONG_SHARE = 0.1  # see `_verdict`

Progress = Callable[[str, float], None]  # stage, share of the trial done


@dataclass(frozen=True)
class Subject:
    """What a trial runs on: the task, its data, and the two networks.

    float_network is the trained reference, lowered what the backend's owner receives.
    """

    task: Task
    dataset: Dataset
    float_network: Network
    lowered: Network


class OwnerReport(msgspec.Struct, frozen=True):
    """What `backends.api.Prepared` says beside the artifacts, with its types checked: a backend may get them wrong."""

    batch: Annotated[int, msgspec.Meta(ge=1)]
    parameters: dict[str, Any]
    security: dict[str, Any] | None
    operations: dict[str, int]
    notes: dict[str, Any]


Phase = Literal["cold", "warm-up", "sample"]


@dataclass(frozen=True)
class _Request:
    """results: how many of its images, from the first on, are test images and not repetitions to fill or to warm up."""

    images: np.ndarray
    phase: Phase
    results: int = 0


@dataclass
class _Measured:
    """Grows while the trial runs, so that a trial that ends early keeps what it measured."""

    stages: dict[tuple[Role, str], Stage] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    report: OwnerReport = field(default_factory=lambda: OwnerReport(1, {}, None, {}, {}))
    notes: dict[str, str] = field(default_factory=dict)
    logits: list[np.ndarray] = field(default_factory=list)
    sampling_ended: SamplingEnd = ""

    def add(self, party: Party, name: str, reply: wire.Message, phase: Phase = "sample") -> None:
        stage = self.stages.setdefault((party.role, name), Stage(role=party.role, name=name, wall_s=[], cpu_s=[]))
        cost = reply.header
        if phase == "cold":
            stage.cold_wall_s = cost["wall_s"]
        elif phase == "warm-up":
            stage.warmup_wall_s.append(cost["wall_s"])
        else:
            stage.wall_s.append(cost["wall_s"])
            stage.cpu_s.append(cost["cpu_s"])
        stage.kept_rss_bytes = cost.get("kept_rss_bytes", stage.kept_rss_bytes)
        stage.peak_rss_bytes = max(stage.peak_rss_bytes or 0, cost["peak_rss_bytes"])
        if cost["peak_rss_is_of"] != "operation":
            self.notes["peak_rss"] = "of the process so far, not of each stage: this kernel cannot reset the peak"

    def totals(self, stages: list[tuple[Role, str]]) -> list[float]:
        """Wall seconds of each timed request over these stages."""
        return [sum(request) for request in zip(*(self.stages[stage].wall_s for stage in stages), strict=True)]


def key(trial: Trial, subject: Subject | None, backend: BackendInfo) -> str:
    """Names the record: a hash of everything that its result depends on. No subject: its data or network is missing."""
    parts = {
        "trial": msgspec.to_builtins(trial) | {"timeout_s": None},  # which only decides whether there is a result
        "data": subject and subject.dataset.md5,
        "networks": subject and [subject.float_network.sha256, subject.lowered.sha256],
        "source": machine.source_sha256(backend),
        "versions": machine.versions(backend.distributions),
        "machine": machine.machine(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def run(trial: Trial, subject: Subject, run_folder: Path, progress: Progress, memory_limit_bytes: int = 0) -> Record:
    """Runs the trial and returns its record, whatever happens but Ctrl-C. Raises nothing of its own."""
    backend, variant = resolve(trial.backend)
    before = conditions.snapshot()
    started, start = datetime.now(timezone.utc), time.monotonic()
    indices = image_order(trial, len(subject.dataset.test.images))
    images = normalise(subject.dataset.test.images[indices])
    measured = _Measured()
    status: Status
    try:
        if trial.threads > available_threads():
            raise TrialError("skipped", f"{trial.threads} threads asked for, {available_threads()} cores here")
        _measure(trial, subject, backend, variant, images, run_folder, progress, memory_limit_bytes, measured, start)
        status, reason = "ok", ""
    except TrialError as error:
        status, reason = error.status, error.reason
    duration_s, after = time.monotonic() - start, conditions.snapshot()
    outputs = _outputs(subject, indices, images, measured.logits)
    if status == "ok":
        status, reason = _verdict(outputs, len(images))
    report = measured.report
    infer = measured.stages.get(("server", "infer"))
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
        notes=report.notes | measured.notes,
        stages=list(measured.stages.values()),
        sizes=measured.sizes,
        network=describe(subject.lowered),
        outputs=outputs,
        cpu_wall_ratio=sum(infer.cpu_s) / wall if infer and wall else None,
        sampling_ended=measured.sampling_ended,
        conditions=conditions.between(before, after),
        machine=machine.machine(),
        versions=machine.versions(backend.distributions),
        git_commit=machine.git_commit(),
        command=command(trial),
    )


def unmeasured(trial: Trial, status: Status, reason: str, about_machine: dict[str, Any] | None = None) -> Record:
    """The record of a trial that could not start: its data or network is missing, or the machine that ran it was lost.

    about_machine: empty if the machine is unknown.
    """
    backend, _ = resolve(trial.backend)
    return Record(
        key=key(trial, None, backend),
        trial=trial,
        status=status,
        reason=reason,
        started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        duration_s=0.0,
        machine=machine.machine() if about_machine is None else about_machine,
        versions=machine.versions(backend.distributions),
        git_commit=machine.git_commit(),
        command=command(trial),
    )


def _measure(
    trial: Trial,
    subject: Subject,
    backend: BackendInfo,
    variant: str,
    images: np.ndarray,
    run_folder: Path,
    progress: Progress,
    memory_limit_bytes: int,
    measured: _Measured,
    start: float,
) -> None:
    """The protocol of `backends.api`, step by step. Raises TrialError."""
    deadline = start + trial.timeout_s
    logs = run_folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def party(role: Role) -> Party:
        log = logs / f"{trial.backend.replace(':', '-')}-{trial.model}-{trial.task}-{trial.scenario}-{role}.log"
        return Party(role, backend, trial.threads, log, deadline, memory_limit_bytes)

    progress("prepare", 0.0)
    with ExitStack() as owners, ExitStack() as stack:
        owner = owners.enter_context(party("owner"))
        prepared = ask_owner(owner, "prepare", trial, variant, subject)
        if trial.model_privacy == "plain":
            owners.close()
        measured.add(owner, "prepare", prepared)
        measured.sizes |= {f"{side}_artifact_bytes": len(prepared.blobs[side]) for side in ("client", "server")}
        try:
            measured.report = msgspec.convert(prepared.header, OwnerReport)
        except msgspec.ValidationError as error:
            raise TrialError("failed", f"owner: prepare returned a malformed report: {error}") from error
        _require_security(backend, measured.report)

        client, server = (stack.enter_context(party(role)) for role in ("client", "server"))
        progress("load", 0.1)
        measured.add(client, "load", client.call("load", artifact=prepared.blobs["client"]))
        measured.add(server, "load", server.call("load", artifact=prepared.blobs["server"]))
        progress("keygen", 0.15)
        keys = client.call("keygen", {"seed": trial.seed})
        measured.add(client, "keygen", keys)
        measured.sizes |= {f"{name}_key_bytes": len(blob) for name, blob in keys.blobs.items()}
        progress("load keys", 0.2)
        public = keys.blobs.pop("public", b"")  # for the owner alone
        measured.add(server, "load_keys", server.call("load_keys", **keys.blobs))
        if trial.model_privacy == "encrypted":
            progress("encrypt model", 0.2)
            model = owner.call("encrypt_model", public=public)
            owners.close()
            measured.add(owner, "encrypt_model", model)
            measured.sizes["encrypted_model_bytes"] = len(model.blobs["model"])
            measured.add(server, "load_model", server.call("load_model", **model.blobs))

        requests = _requests(images, measured.report.batch, trial.scenario)
        number = 0
        while number < len(requests):
            request, asked = requests[number], time.monotonic()
            stage = "infer" if request.phase == "sample" else request.phase
            progress(stage, 0.2 + 0.8 * number / len(requests))
            logits = _ask(client, server, request, subject.lowered.outputs, measured)
            measured.logits.append(logits[: request.results])
            if request.phase == "cold" and time.monotonic() - asked > LONG_REQUEST_S:
                requests = [request, *(r for r in requests if r.results)]
            number += 1

        samples, repeating = [r for r in requests if r.phase == "sample"], time.monotonic()
        for request in itertools.cycle(samples):
            now = time.monotonic()
            totals = [measured.totals(stages) for stages in (REQUEST_STAGES, SERVER_STAGES)]
            measured.sampling_ended = sampling.ended(
                totals, trial.precision, now - repeating, trial.sampling_s, deadline - now
            )
            if measured.sampling_ended:
                break
            progress("repeat", 1.0)
            _ask(client, server, request, subject.lowered.outputs, measured)


def _require_security(backend: BackendInfo, report: OwnerReport) -> None:
    """A backend refuses insecure parameters itself; this holds for one that does not, too."""
    bits = (report.security or {}).get("bits")
    if backend.scheme != "clear" and not (isinstance(bits, int) and bits >= MINIMUM_SECURITY_BITS):
        stated = "no level of security is stated" if bits is None else f"the stated level of security is {bits} bits"
        raise TrialError("insecure", f"{stated}; {MINIMUM_SECURITY_BITS} bits are required")


def ask_owner(owner: Party, operation: str, trial: Trial, variant: str, subject: Subject) -> wire.Message:
    """``prepare`` or ``explain``, for the job that a trial describes. Raises TrialError."""
    train = subject.dataset.train.images
    chosen = np.random.default_rng(trial.seed).permutation(len(train))[:CALIBRATION_IMAGES]
    job = {
        "variant": variant,
        "scenario": trial.scenario,
        "threads": trial.threads,
        "model_privacy": trial.model_privacy,
    }
    calibration = wire.array_to_bytes(normalise(train[chosen]))
    return owner.call(operation, {"job": job}, network=subject.lowered.to_bytes(), calibration=calibration)


def _requests(images: np.ndarray, batch: int, scenario: str) -> list[_Request]:
    """All requests of a trial: the cold first call and one warm-up, both with the images of the first sample, then
    the samples. offline: each request is full, by repeating its images, and there are at least OFFLINE_REQUESTS samples.
    If the cold call takes longer than LONG_REQUEST_S, neither the warm-up nor repetitions of images are asked for.
    """
    batches = [images[i : i + batch] for i in range(0, len(images), batch)]
    full = [np.resize(b, (batch, *b.shape[1:])) if scenario == "offline" else b for b in batches]
    samples = [_Request(filled, "sample", len(b)) for filled, b in zip(full, batches)]
    if scenario == "offline":
        samples += [_Request(full[0], "sample")] * (OFFLINE_REQUESTS - len(samples))
    return [_Request(full[0], "cold"), _Request(full[0], "warm-up"), *samples]


def _ask(client: Party, server: Party, request: _Request, outputs: int, measured: _Measured) -> np.ndarray:
    """One round trip; returns the logits (images, outputs)."""

    def step(party: Party, name: str, **blobs: bytes) -> dict[str, bytes]:
        reply = party.call(name, **blobs)
        measured.add(party, name, reply, request.phase)
        return reply.blobs

    step(client, "encrypt", images=wire.array_to_bytes(request.images))
    upload = step(client, "serialise")["message"]
    step(server, "deserialise", message=upload)
    step(server, "infer")
    download = step(server, "serialise")["message"]
    step(client, "deserialise", message=download)
    logits = wire.array_from_bytes(step(client, "decrypt")["logits"])
    measured.sizes |= {"request_bytes": len(upload), "response_bytes": len(download)}
    expected = (len(request.images), outputs)
    if logits.shape != expected or logits.dtype.kind not in "fiu":
        raise TrialError("wrong", f"the client decrypted {logits.dtype} {logits.shape}, not real logits {expected}")
    return logits


def image_order(trial: Trial, available: int) -> np.ndarray:
    """Indices of the test images of a trial: the same for every backend and model of a task and seed."""
    random = np.random.default_rng([zlib.crc32(trial.task.encode()), trial.seed])
    order = random.permutation(available)
    return order[: trial.images] if trial.images else order


def _outputs(subject: Subject, indices: np.ndarray, images: np.ndarray, logits: list[np.ndarray]) -> Outputs:
    encrypted = np.concatenate(logits)[: len(images)] if logits else np.zeros((0, subject.lowered.outputs))
    finite = np.isfinite(encrypted).all(axis=1)
    encrypted = encrypted if finite.all() else encrypted[: int(np.argmin(finite))]

    def rows(values: np.ndarray) -> list[list[float]]:
        return [[float(f"{v:.7g}") for v in row] for row in values]

    return Outputs(
        kind=subject.task.kind,
        indices=indices.tolist(),
        labels=subject.dataset.test.labels[indices].tolist(),
        float_logits=rows(subject.float_network.forward(images)),
        lowered_logits=rows(subject.lowered.forward(images)),
        encrypted_logits=rows(encrypted),
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
    layers = [
        " ".join([layer.type, *(f"{len(w)}" for w in [getattr(layer, "weight", None)] if w is not None)])
        for layer in network.layers
    ]
    return {
        "model": network.model,
        "lowering": network.lowering,
        "sha256": network.sha256,
        "layers": layers,
        "provenance": network.provenance,
    }


def command(trial: Trial) -> str:
    """The command line that runs this trial alone."""
    usual = Trial(backend="", model="", task="")
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
    return "python -m bench run " + " ".join(f"--{name} {value}" for name, value in options.items())
