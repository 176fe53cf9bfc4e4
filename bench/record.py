"""The record: one JSON object for each trial, the only thing that reports read.

Field names carry their unit. Raw samples and raw outputs are stored; medians, intervals and accuracies are computed
from them afterwards (`bench.metrics`), so a better statistic needs no new run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from datetime import datetime
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import msgspec

from bench.files import RunError, replace
from models.tasks import MULTI_LABEL

SCHEMA = 2
READABLE = (1, 2)  # 2 only adds fields: of a record of schema 1 they are empty
Status = Literal["ok", "failed", "timeout", "oom", "insecure", "wrong", "skipped"]
Role = Literal["owner", "client", "server"]
SamplingEnd = Literal["", "precise", "time", "count", "fixed"]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]  # what every reader of JSON keeps exactly
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*\Z")]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class RecordError(RunError):
    """A record file that cannot be read; the message says which and what to do."""


class NewerRecord(RecordError):
    """A record of a later schema, which is not damaged: it must not be deleted or written over."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One point of the matrix: what was asked for.

    backend: name, or ``name:variant``. model, task: a name, or the path of a user's file as it was given (`models.own`,
    `models.own_data`). images: how many of the test split (0: all). timeout_s: for the whole trial.
    precision: once every image was asked for, requests are repeated until the 95 % intervals of the medians of server and
    request time are within ± this share of the median (0: nothing is repeated), or sampling_s seconds of repeating are over.
    workload: ``inference`` or ``train`` (`bench.trials.WORKLOADS`). steps, rate, features: of a training: 0 steps and rate 0
    are chosen on validation; features: a folder of the user's own, of which `model` is then ``files``.
    """

    backend: Name
    model: Name
    task: Name
    scenario: Name = "single-stream"
    model_privacy: Name = "plain"
    images: Count = 20
    threads: Positive = 1
    seed: Count = 0
    timeout_s: Amount = 600.0
    precision: Amount = 0.05
    sampling_s: Amount = 10.0
    workload: Name = "inference"
    steps: Count = 0
    rate: Amount = 0.0
    features: str = ""

    @property
    def label(self) -> str:
        trains = self.workload != "inference"
        names = (PurePath(self.model).stem, PurePath(self.task).stem)  # of a file, its stem
        parts = [self.backend, *names, self.workload if trains else self.scenario]
        parts += [f"{self.steps} steps"] if self.steps else []
        parts += [f"rate {self.rate:g}"] if self.rate else []
        parts += ["encrypted model"] if self.model_privacy == "encrypted" else []
        return " · ".join([*parts, f"{self.threads} thread{'s' * (self.threads != 1)}"])

    @property
    def slug(self) -> str:
        """The label as a part of a file's name, with a digest of the whole trial: no two trials share it."""
        words = re.sub(r"[^\w.@-]+", "-", self.label, flags=re.ASCII)
        return f"{words[:120]}-{hashlib.sha256(msgspec.json.encode(_work(self))).hexdigest()[:8]}"


class Stage(msgspec.Struct, kw_only=True):
    """One operation of one party. Samples are in the order in which they were taken.

    A stage that happens once (prepare, keygen, load, load_keys) has one sample and no warm-up. For the stages of a
    request, `cold_wall_s` is the first call, `warmup_wall_s` the calls before the samples (the cold one not among them).
    round_wall_s: of each call, where a request takes several rounds, which `wall_s` adds up.
    peak_rss_bytes: highest resident memory of that process during this stage, cold call and warm-ups included.
    kept_rss_bytes: growth of the resident memory of that process over the first call: what its result (the model, the keys,
    the ciphertexts) takes in memory, and whatever else the library keeps.
    """

    role: Role
    name: str
    wall_s: list[Amount]
    cpu_s: list[Amount]
    cold_wall_s: Amount | None = None
    warmup_wall_s: list[Amount] = []
    round_wall_s: list[Amount] = []
    peak_rss_bytes: Count | None = None
    kept_rss_bytes: Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)] | None = None


class Conditions(msgspec.Struct, kw_only=True):
    """How the machine was while the trial ran; ``None`` where it does not tell.

    calibration_before_s, calibration_after_s: the same fixed work on one core (`bench.conditions.calibrate`), before and
    after the trial: they differ if the machine's speed did.
    other_cores: cores that other processes kept busy, on average over the trial. steal_share: share of all CPU time that
    the hypervisor gave to others. load_before, load_after: load average of one minute. cpu_mhz_before, cpu_mhz_after: clock.
    """

    calibration_before_s: Annotated[float, msgspec.Meta(gt=0)]
    calibration_after_s: Annotated[float, msgspec.Meta(gt=0)]
    other_cores: float | None = None
    steal_share: float | None = None
    load_before: float | None = None
    load_after: float | None = None
    cpu_mhz_before: float | None = None
    cpu_mhz_after: float | None = None


class Outputs(msgspec.Struct, kw_only=True):
    """Raw results, from which every quality figure is recomputed. Each list has one row an image.

    labels: (n, 1) or, multi-label, (n, labels). float_logits, lowered_logits, encrypted_logits: (n, outputs): the
    float network, the lowered network in the clear, and what the client decrypted (shorter if the trial ended early).
    names: what the classes or labels mean, in order; empty in records of before.
    """

    kind: str  # MedMNIST's own name of the kind of task, as in medmnist.INFO[task]["task"]
    indices: list[int]
    labels: list[list[Count]]
    float_logits: list[list[float]]
    lowered_logits: list[list[float]]
    encrypted_logits: list[list[float]]
    names: list[Name] = []


class Record(msgspec.Struct, kw_only=True):
    """One trial: what was asked, what happened, what it cost.

    key: names the file; a hash of everything that the result depends on (see `bench.runner`).
    unsupported: skipped because the backend says that it does not do such work, which is no failure of a run.
    sizes: bytes of what crosses between the parties: ``client_artifact_bytes``, ``server_artifact_bytes``,
    ``<name>_key_bytes`` for each key, ``request_bytes``, ``response_bytes`` (of one request of `batch` images).
    parameters, security, operations, notes: as the owner reported them (`backends.api.Prepared`).
    network: model, lowering, sha256, layer summary and provenance of the lowered network.
    cpu_wall_ratio: CPU seconds over wall seconds of `Server.infer`, to be compared with ``trial.threads``.
    sampling_ended: why no more requests were timed: ``precise`` (the intervals are as narrow as asked), ``time`` (sampling_s
    or the trial's time is over), ``count`` (`bench.sampling.MAXIMUM_SAMPLES`), ``fixed`` (precision 0); empty: ended early.
    conditions: of the machine during the trial; ``None`` if the trial did not start.
    """

    schema: int = SCHEMA
    key: Annotated[str, msgspec.Meta(pattern=r"^[\w-]{1,64}\Z")]
    trial: Trial
    status: Status
    reason: str = ""
    unsupported: bool = False
    started_at: str
    duration_s: Amount
    batch: Positive = 1
    stages: list[Stage] = []
    sizes: dict[str, Count] = {}
    parameters: dict[str, Any] = {}
    security: dict[str, Any] | None = None
    operations: dict[str, Count] = {}
    notes: dict[str, Any] = {}
    network: dict[str, Any] = {}
    outputs: Outputs | None = None
    cpu_wall_ratio: float | None = None
    sampling_ended: SamplingEnd = ""
    conditions: Conditions | None = None
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
        replace(path, msgspec.json.format(msgspec.json.encode(self), indent=1))
        return path

    @staticmethod
    def load(path: Path) -> Record:
        """Raises RecordError for a file that is not a record of this schema."""
        try:
            record = Record.decode(path.read_bytes())
        except NewerRecord as error:
            raise NewerRecord(f"cannot read record {path}: {error}") from error
        except (RecordError, OSError) as error:
            raise RecordError(f"cannot read record {path}: {error}; delete it and run the trial again") from error
        if record.key != path.stem:
            raise RecordError(f"cannot read record {path}: it is a copy of {record.key}.json; delete it")
        return record

    @staticmethod
    def decode(content: bytes) -> Record:
        """Raises RecordError for anything that is not a record of this schema whose parts fit together."""
        try:
            if (schema := msgspec.json.decode(content, type=_Header).schema) > max(READABLE):
                raise NewerRecord(f"it has schema {schema}, this version reads up to {max(READABLE)}: upgrade")
            record = msgspec.json.decode(content, type=Record)
            if schema not in READABLE:
                raise RecordError(f"it has schema {schema}, this version reads {READABLE}")
            _check(record)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise RecordError(str(error)) from error
        return record


class _Header(msgspec.Struct):
    schema: int = SCHEMA


def _check(record: Record) -> None:
    """What the types alone do not say. Raises ValueError."""
    datetime.fromisoformat(record.started_at)
    if not all(isinstance(record.machine.get(name, ""), str) for name in ("host", "cpu")):
        raise ValueError("the machine has no name")
    security = {"bits": 0, "standard": ""} | (record.security or {})
    if type(security["bits"]) is not int or abs(security["bits"]) > 2**31 or not isinstance(security["standard"], str):
        raise ValueError("the security level is no number of bits by a standard")
    if record.status == "ok" and not record.stages:
        raise ValueError("its trial is ok and has no stages")
    if (outputs := record.outputs) is None:
        return
    images = len(outputs.indices)
    logits = (outputs.float_logits, outputs.lowered_logits, outputs.encrypted_logits)
    if not len(outputs.labels) == len(logits[0]) == len(logits[1]) == images >= len(logits[2]):
        raise ValueError(f"its outputs are not of the same {images} images")
    widths = {len(row) for rows in logits for row in rows}
    columns = widths if outputs.kind == MULTI_LABEL else {1}
    if len(widths) > 1 or not {len(row) for row in outputs.labels} <= columns:
        raise ValueError("its outputs have rows of different lengths")


class Store:
    """The records of a run while it runs. Of a trial's failures on one machine only the latest is kept.

    damaged: a sentence for each file that is no record, of which all else is ignored.
    """

    def __init__(self, folder: Path) -> None:
        """Raises NewerRecord: what a later version wrote is left to it."""
        self._folder = folder
        self._failures: dict[tuple[Trial, str], set[Path]] = {}
        self._finished: dict[Trial, dict[str, str]] = {}
        self.damaged: list[str] = []
        for path in sorted(folder.glob("*.json")):
            try:
                record = Record.load(path)
            except NewerRecord as error:
                raise NewerRecord(f"{error}, or choose another --out") from error
            except RecordError as error:
                self.damaged.append(str(error))
                continue
            if record.status == "ok":
                self._finished.setdefault(_work(record.trial), {})[record.key] = _host(record)
            else:
                self._failures.setdefault((_work(record.trial), _host(record)), set()).add(path)

    def finished(self, trial: Trial) -> dict[str, str]:
        """The keys of the trial's records that are ok and were here at the start, and the host of each."""
        return self._finished.get(_work(trial), {})

    def get(self, key: str) -> Record:
        """Raises RecordError."""
        return Record.load(self._folder / f"{key}.json")

    def add(self, record: Record) -> Record:
        """Saves the record, and deletes those of earlier failures of the same trial, of other code or options."""
        path, failure = record.save(self._folder), (_work(record.trial), _host(record))
        for earlier in {*self._failures.pop(failure, ()), *self._failures.pop((failure[0], ""), ())} - {path}:
            earlier.unlink(missing_ok=True)
        if record.status != "ok":
            self._failures[failure] = {path}
        return record


def _work(trial: Trial) -> Trial:
    return msgspec.structs.replace(trial, timeout_s=0.0)


def _host(record: Record) -> str:
    """Empty for a trial that was lost together with its machine."""
    return record.machine.get("host", "")


def records_in(run: Path) -> Iterator[Path]:
    """Paths of the records of a run folder, in a stable order."""
    return iter(sorted((run / "records").glob("*.json")))


def same(record: Record) -> Hashable:
    """What one trial on one machine is told by, however long it may take."""
    return _work(record.trial), _host(record)


def newest(run: Path, by: Callable[[Record], Hashable] = same) -> tuple[list[Record], list[str]]:
    """The newest record of each trial of a run folder, and sentences on the files that are left out.

    by: what records of one trial have in common. Raises RecordError if nothing is left.
    """
    loaded, notes, found = [], [], dict[Hashable, Record]()
    for path in records_in(run):
        try:
            loaded.append(Record.load(path))
        except RecordError as error:
            notes.append(f"{error}. Until then it is left out.")
    if not loaded and not notes:
        raise RecordError(f"no records in {run / 'records'}: run `python -m bench run --out {run}` first")
    if not loaded:
        raise RecordError(notes[0])
    superseded = []
    for record in sorted(loaded, key=lambda record: datetime.fromisoformat(record.started_at).timestamp()):
        if (earlier := found.pop(by(record), None)) is not None:
            superseded.append((earlier, record))
        found[by(record)] = record
    return list(found.values()), [*notes, *_superseded(superseded)]


def _superseded(pairs: Iterable[tuple[Record, Record]]) -> list[str]:
    """pairs: an earlier record and the one that is shown instead."""
    pairs = list(pairs)
    if not pairs:
        return []
    about = {"commit": "git_commit", "versions": "versions", "machine": "machine", "network": "network"}
    other = [word for word, name in about.items() if any(getattr(a, name) != getattr(b, name) for a, b in pairs)]
    return [
        f"Left out: {len(pairs)} record{'s' * (len(pairs) > 1)} of trials that were run again later, with other "
        f"{', '.join(other) or 'code'} ({pairs[0][0].trial.label}); the files are still in records/."
    ]
