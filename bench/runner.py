"""Runs one trial: owner, client and server in processes of their own, bytes between them, one record at the end."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from backends import wire
from backends.registry import BackendInfo, resolve
from bench import machine, metrics
from bench.process import Party, TrialError
from bench.record import Outputs, Record, Role, Stage, Status, Trial
from models.network import Network
from models.tasks import Dataset, Task, normalise

CALIBRATION_IMAGES = 256
OFFLINE_REQUESTS = 3
WARMUP_REQUESTS = 1  # after the cold first one
WRONG_SHARE = 0.1  # more disagreements with the lowered network than this (and than one) mean `wrong`

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


@dataclass
class _Measured:
    """Grows while the trial runs, so that a trial that ends early keeps what it measured."""

    stages: dict[tuple[Role, str], Stage] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    owner: dict[str, Any] = field(default_factory=dict)
    logits: list[np.ndarray] = field(default_factory=list)

    def once(self, role: Role, name: str, reply: wire.Message) -> None:
        h = reply.header
        self.stages[role, name] = Stage(
            role=role, name=name, wall_s=[h["wall_s"]], cpu_s=[h["cpu_s"]], peak_rss_bytes=h["peak_rss_bytes"]
        )

    def request(self, number: int, role: Role, name: str, reply: wire.Message, warmups: int) -> None:
        stage = self.stages.setdefault((role, name), Stage(role=role, name=name, wall_s=[], cpu_s=[]))
        h = reply.header
        if number == 0:
            stage.cold_wall_s = h["wall_s"]
        elif number <= warmups:
            stage.warmup_wall_s.append(h["wall_s"])
        else:
            stage.wall_s.append(h["wall_s"])
            stage.cpu_s.append(h["cpu_s"])
        stage.peak_rss_bytes = max(stage.peak_rss_bytes or 0, h["peak_rss_bytes"])


def key(trial: Trial, subject: Subject, backend: BackendInfo) -> str:
    """Names the record: a hash of everything that its result depends on."""
    parts = {
        "trial": msgspec.to_builtins(trial),
        "data": subject.dataset.md5,
        "networks": [subject.float_network.sha256, subject.lowered.sha256],
        "source": machine.source_sha256(backend),
        "versions": machine.versions(backend.distributions),
        "machine": machine.machine(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def run(trial: Trial, subject: Subject, run_folder: Path, progress: Progress, memory_limit_bytes: int = 0) -> Record:
    """Runs the trial and returns its record, whatever happens but Ctrl-C. Raises nothing of its own."""
    backend, variant = resolve(trial.backend)
    started, start = datetime.now(timezone.utc), time.monotonic()
    indices = image_order(trial, len(subject.dataset.test.images))
    images = normalise(subject.dataset.test.images[indices])
    measured = _Measured()
    status: Status
    try:
        _measure(trial, subject, backend, variant, images, run_folder, progress, memory_limit_bytes, measured, start)
        status, reason = "ok", ""
    except TrialError as error:
        status, reason = error.status, error.reason
    outputs = _outputs(subject, indices, images, measured.logits)
    if status == "ok":
        status, reason = _verdict(outputs, len(images))
    infer = measured.stages.get(("server", "infer"))
    wall = sum(infer.wall_s) if infer else 0.0
    return Record(
        key=key(trial, subject, backend),
        trial=trial,
        status=status,
        reason=reason,
        started_at=started.isoformat(timespec="seconds"),
        duration_s=time.monotonic() - start,
        stages=list(measured.stages.values()),
        sizes=measured.sizes,
        network=describe(subject.lowered),
        outputs=outputs,
        cpu_wall_ratio=sum(infer.cpu_s) / wall if infer and wall else None,
        machine=machine.machine(),
        versions=machine.versions(backend.distributions),
        git_commit=machine.git_commit(),
        command=command(trial),
        **measured.owner,
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
    job = {
        "variant": variant,
        "scenario": trial.scenario,
        "threads": trial.threads,
        "model_privacy": trial.model_privacy,
    }
    train = subject.dataset.train.images
    chosen = np.random.default_rng(trial.seed).permutation(len(train))[:CALIBRATION_IMAGES]
    with party("owner") as owner:
        prepared = owner.call(
            "prepare",
            {"job": job},
            network=subject.lowered.to_bytes(),
            calibration=wire.array_to_bytes(normalise(train[chosen])),
        )
    measured.once("owner", "prepare", prepared)
    measured.owner = {n: prepared.header[n] for n in ("batch", "parameters", "security", "operations", "notes")}
    measured.sizes |= {f"{side}_artifact_bytes": len(prepared.blobs[side]) for side in ("client", "server")}

    with ExitStack() as stack:
        client, server = (stack.enter_context(party(role)) for role in ("client", "server"))
        progress("load", 0.1)
        measured.once("client", "load", client.call("load", artifact=prepared.blobs["client"]))
        measured.once("server", "load", server.call("load", artifact=prepared.blobs["server"]))
        progress("keygen", 0.15)
        keys = client.call("keygen", {"seed": trial.seed})
        measured.once("client", "keygen", keys)
        measured.sizes |= {f"{name}_key_bytes": len(blob) for name, blob in keys.blobs.items()}
        progress("load keys", 0.2)
        measured.once("server", "load_keys", server.call("load_keys", **keys.blobs))

        warmups, requests = _requests(images, prepared.header["batch"], trial.scenario)
        for number, request in enumerate(requests):
            progress("warm-up" if number <= warmups else "infer", 0.2 + 0.8 * number / len(requests))
            logits = _request(client, server, request, number, warmups, measured)
            if number > warmups:
                measured.logits.append(logits)


def _requests(images: np.ndarray, batch: int, scenario: str) -> tuple[int, list[np.ndarray]]:
    """Warm-ups (beside the cold call) and the images of each request, warm-ups first; they repeat measured images.

    offline: a request is always full, the test images repeated as often as it takes.
    """
    if scenario == "offline":
        full = np.resize(images, (batch, *images.shape[1:]))
        rest = [images[i : i + batch] for i in range(batch, len(images), batch)]
        return 0, [full, *[full] * OFFLINE_REQUESTS, *(np.resize(r, full.shape) for r in rest)]
    requests = [images[i : i + batch] for i in range(0, len(images), batch)]
    return WARMUP_REQUESTS, [requests[0]] * (1 + WARMUP_REQUESTS) + requests


def _request(
    client: Party, server: Party, images: np.ndarray, number: int, warmups: int, measured: _Measured
) -> np.ndarray:
    """One round trip; returns the logits (images, outputs)."""

    def step(party: Party, name: str, **blobs: bytes) -> dict[str, bytes]:
        reply = party.call(name, **blobs)
        measured.request(number, party.role, name, reply, warmups)
        return reply.blobs

    step(client, "encrypt", images=wire.array_to_bytes(images))
    request = step(client, "serialise")["message"]
    step(server, "deserialise", message=request)
    step(server, "infer")
    response = step(server, "serialise")["message"]
    step(client, "deserialise", message=response)
    logits = wire.array_from_bytes(step(client, "decrypt")["logits"])
    measured.sizes |= {"request_bytes": len(request), "response_bytes": len(response)}
    if len(logits) != len(images):
        raise TrialError("wrong", f"the client decrypted {len(logits)} results for {len(images)} images")
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
    """ok, or wrong with the reason: results that are not those of the lowered network."""
    decrypted = len(outputs.encrypted_logits)
    if decrypted < images:
        return "wrong", f"the decrypted logits of image {decrypted} are not finite"
    quality = metrics.quality(outputs)
    disagreements = round((1 - quality.agreement) * images)
    if disagreements > max(1, WRONG_SHARE * images):
        return "wrong", f"{disagreements} of {images} predictions differ from those of the lowered network in the clear"
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
    if trial.model_privacy != "plain":
        options["model-privacy"] = trial.model_privacy
    return "python -m bench run " + " ".join(f"--{name} {value}" for name, value in options.items())


def available_threads() -> int:
    return len(os.sched_getaffinity(0))
