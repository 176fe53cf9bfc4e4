"""The record: one JSON object for each trial, the only thing that reports read.

Field names carry their unit. Raw samples and raw outputs are stored; medians, intervals and accuracies are computed
from them afterwards (`bench.metrics`), so a better statistic needs no new run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

SCHEMA = 1
Status = Literal["ok", "failed", "timeout", "oom", "insecure", "wrong", "skipped"]
Role = Literal["owner", "client", "server"]


class RecordError(ValueError):
    """A record file that cannot be read; the message says which and what to do."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the matrix: what was asked for.

    backend: name, or ``name:variant``. images: how many of the test split (0: all). timeout_s: for the whole trial.
    """

    backend: str
    model: str
    task: str
    scenario: str = "single-stream"
    model_privacy: str = "plain"
    images: int = 20
    threads: int = 1
    seed: int = 0
    timeout_s: float = 600.0

    @property
    def label(self) -> str:
        parts = [self.backend, self.model, self.task, self.scenario]
        return " · ".join(parts + (["encrypted model"] if self.model_privacy == "encrypted" else []))


class Stage(msgspec.Struct, kw_only=True):
    """One operation of one party. Samples are in the order in which they were taken.

    A stage that happens once (prepare, keygen, load, load_keys) has one sample and no warm-up. For the stages of a
    request, `cold_wall_s` is the first call, `warmup_wall_s` the calls before the samples (the cold one not among them).
    peak_rss_bytes: highest resident memory of that process during this stage, cold call and warm-ups included.
    """

    role: Role
    name: str
    wall_s: list[float]
    cpu_s: list[float]
    cold_wall_s: float | None = None
    warmup_wall_s: list[float] = []
    peak_rss_bytes: int | None = None


class Outputs(msgspec.Struct, kw_only=True):
    """Raw results, from which every quality figure is recomputed. Each list has one row an image.

    labels: (n, 1) or, multi-label, (n, labels). float_logits, lowered_logits, encrypted_logits: (n, outputs): the
    float network, the lowered network in the clear, and what the client decrypted (shorter if the trial ended early).
    """

    kind: str  # MedMNIST's own name of the kind of task, as in medmnist.INFO[task]["task"]
    indices: list[int]
    labels: list[list[int]]
    float_logits: list[list[float]]
    lowered_logits: list[list[float]]
    encrypted_logits: list[list[float]]


class Record(msgspec.Struct, kw_only=True):
    """One trial: what was asked, what happened, what it cost.

    key: names the file; a hash of everything that the result depends on (see `bench.runner`).
    sizes: bytes of what crosses between the parties: ``client_artifact_bytes``, ``server_artifact_bytes``,
    ``<name>_key_bytes`` for each key, ``request_bytes``, ``response_bytes`` (of one request of `batch` images).
    parameters, security, operations, notes: as the owner reported them (`backends.api.Prepared`).
    network: model, lowering, sha256, layer summary and provenance of the lowered network.
    cpu_wall_ratio: CPU seconds over wall seconds of `Server.infer`, to be compared with ``trial.threads``.
    """

    schema: int = SCHEMA
    key: str
    trial: Trial
    status: Status
    reason: str = ""
    started_at: str
    duration_s: float
    batch: int = 1
    stages: list[Stage] = []
    sizes: dict[str, int] = {}
    parameters: dict[str, Any] = {}
    security: dict[str, Any] | None = None
    operations: dict[str, int] = {}
    notes: dict[str, Any] = {}
    network: dict[str, Any] = {}
    outputs: Outputs | None = None
    cpu_wall_ratio: float | None = None
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    git_commit: str = ""
    command: str = ""

    def stage(self, role: str, name: str) -> Stage | None:
        return next((s for s in self.stages if s.role == role and s.name == name), None)

    def save(self, folder: Path) -> Path:
        """Writes ``folder/<key>.json`` by an atomic rename: a reader never sees half a record."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.key}.json"
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".record-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(self), indent=1))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path

    @staticmethod
    def load(path: Path) -> Record:
        """Raises RecordError for a file that is not a record of this schema."""
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
        except (msgspec.DecodeError, OSError) as error:
            raise RecordError(f"cannot read record {path}: {error}; delete it and run the trial again") from error
        if record.schema != SCHEMA:
            raise RecordError(f"record {path} has schema {record.schema}, this version reads {SCHEMA}")
        return record


class Store:
    """The records of a run while it runs. Of a trial's failures on one machine only the latest is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failures: dict[tuple[Trial, str], set[Path]] = {}
        for path in folder.glob("*.json"):
            with contextlib.suppress(RecordError):  # a damaged record is reported by the report
                record = Record.load(path)
                if record.status != "ok":
                    self._failures.setdefault(_identity(record), set()).add(path)

    def get(self, key: str) -> Record | None:
        """None for a record that is not there or is damaged: the trial has to be run."""
        path = self._folder / f"{key}.json"
        try:
            return Record.load(path) if path.exists() else None
        except RecordError:
            return None

    def add(self, record: Record) -> Record:
        """Saves the record, and deletes those of earlier failures of the same trial, of other code or options."""
        path, failures = record.save(self._folder), self._failures.setdefault(_identity(record), set())
        for earlier in failures - {path}:
            earlier.unlink(missing_ok=True)
        failures.clear()
        if record.status != "ok":
            failures.add(path)
        return record


def _identity(record: Record) -> tuple[Trial, str]:
    return msgspec.structs.replace(record.trial, timeout_s=0.0), record.machine.get("host", "")


def records_in(run: Path) -> Iterator[Path]:
    """Paths of the records of a run folder, in a stable order."""
    return iter(sorted((run / "records").glob("*.json")))
