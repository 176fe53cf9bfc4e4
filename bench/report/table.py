"""The results table: one tidy row a trial, and what each of its columns means.

`COLUMNS` is the one place where a column is defined; the CSV has exactly these columns in this order, and the report
shows their meanings when the pointer rests on a heading. A figure that was not measured is empty, never zero.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from bench.metrics import (
    BINARY,
    ClassQuality,
    Interval,
    Paired,
    Quality,
    amortised,
    by_class,
    median_interval,
    quality,
    throughput,
)  # fmt: skip
from bench.record import Outputs, Record
from bench.sampling import half_width
from bench.session import ONCE, OPTIONAL, REQUEST, SERVER_REQUEST


class Column(NamedTuple):
    """unit: "" for text and plain numbers. meaning: one line, for people."""

    unit: str
    meaning: str


STEPS = {
    "float": "float network in the clear",
    "lowered": "lowered (integer or polynomial) network in the clear",
    "encrypted": "lowered network under encryption",
}
ROLES = ("owner", "client", "server")
# What a call keeps in memory: column → (role, stage of the record, meaning).
KEPT = {
    "model_memory_bytes": ("server", "load", "the prepared network"),
    "evaluation_key_memory_bytes": ("server", "load_keys", "the evaluation keys, as loaded"),
    "request_memory_bytes": ("server", "deserialise", "the ciphertexts of one request"),
    "response_memory_bytes": ("client", "deserialise", "the ciphertexts of one response"),
}
QUERIES = (1, 100, 10_000)  # requests that share a client's keys
CONDITIONS = {
    "calibration_before_s": Column("s", "a fixed piece of work on one core, before the trial"),
    "calibration_after_s": Column("s", "the same work after the trial"),
    "other_cores": Column("", "cores that other processes kept busy during the trial, on average"),
    "steal_share": Column("", "share of CPU time that the hypervisor gave to other machines during the trial"),
}
PARAMETERS = {
    "ring_dimension": Column("coefficients", "ring dimension of the ciphertexts (CKKS)"),
    "log2_qp": Column("bits", "size of the whole ciphertext modulus, special primes with it (CKKS)"),
    "log2_qp_limit": Column(
        "bits", "largest log2_qp that the standard allows at 128 bits for this ring dimension (CKKS)"
    ),
    "meets_2024_guidelines": Column("", "whether log2_qp is within the tighter guidelines of 2024 too (CKKS)"),
    "lwe_dimension": Column("coefficients", "LWE dimension of the ciphertexts that bootstrapping acts on (TFHE)"),
    "p_error": Column("", "error probability of one programmable bootstrap (TFHE)"),
    "global_p_error": Column("", "probability that any programmable bootstrap of an inference errs (TFHE)"),
    "secret": Column("", "distribution of the secret key"),
    "error_stddev": Column("", "standard deviation of the encryption error, in coefficients of the ciphertext (CKKS)"),
}
INPUT = (
    "input_values", "encoder_psnr_db", "encoder_trained_on", "resized", "gate_values", "gate_values_beyond"
)  # fmt: skip
KINDS = dict.fromkeys(PARAMETERS, (int, float)) | {"secret": (str,), "meets_2024_guidelines": (bool,)}


def _timing_columns(name: str, meaning: str) -> dict[str, Column]:
    return {
        f"{name}_median": Column("s", f"{meaning}: median"),
        f"{name}_low": Column("s", f"{meaning}: lower end of the 95 % interval of the median (empty below 6 samples)"),
        f"{name}_high": Column("s", f"{meaning}: upper end of the 95 % interval of the median (empty below 6 samples)"),
    }


def _columns() -> dict[str, Column]:
    columns = {
        "key": Column("", "hash that names the record file, records/<key>.json"),
        "backend": Column("", "backend, or backend:variant"),
        "model": Column("", "network architecture"),
        "task": Column("", "MedMNIST task, or digits"),
        "workload": Column("", "inference, or train: logistic regression on encrypted features and labels"),
        "steps": Column("steps", "of the descent of a training; empty: chosen on the validation images"),
        "scenario": Column("", "single-stream: one image a request; offline: as many as the backend packs best"),
        "model_privacy": Column("", "plain: the server reads the weights; encrypted: it sees only ciphertexts of them"),
        "status": Column("", "ok, failed, timeout, oom (out of memory), insecure, wrong or skipped"),
        "reason": Column("", "why a trial is not ok"),
        "images_asked": Column("images", "test images asked for (0: all)"),
        "images": Column("images", "test images that the quality figures are computed from"),
        "batch": Column("images", "images in one request"),
        "threads": Column("threads", "cores that each party was allowed to use"),
        "cpu_wall_ratio": Column("", "CPU seconds over wall seconds of inference: the threads really busy"),
        "seed": Column("", "seed of the trial"),
    }
    for step, meaning in STEPS.items():
        columns[f"accuracy_{step}"] = Column("", f"accuracy (MedMNIST's ACC) of the {meaning}")
        columns[f"accuracy_{step}_low"] = Column("", f"lower end of the 95 % Wilson interval of accuracy_{step}")
        columns[f"accuracy_{step}_high"] = Column("", f"upper end of the 95 % Wilson interval of accuracy_{step}")
    for step, meaning in STEPS.items():
        columns[f"auc_{step}"] = Column("", f"AUC (MedMNIST's) of the {meaning}; empty where a class is missing")
    columns |= {
        "agreeing_images": Column("images", "images predicted alike by the lowered network encrypted and in the clear"),
        "agreement": Column("", "share of images predicted alike by the lowered network encrypted and in the clear"),
        "disagreements_beyond_noise": Column(
            "images", "predictions changed by encryption though the margin exceeded the worst logit error elsewhere"
        ),
        "logit_error_max": Column("", "largest absolute difference of encrypted and clear logits"),
        "logit_error_mean": Column("", "mean absolute difference of encrypted and clear logits"),
        "precision_bits_worst": Column("bits", "−log2 of logit_error_max as a share of the range of the clear logits"),
        "precision_bits_mean": Column("bits", "−log2 of logit_error_mean as a share of the range of the clear logits"),
    }
    for step in ("lowered", "float"):
        columns |= {
            f"gained_{step}": Column("images", f"right only under encryption, against the {STEPS[step]}"),
            f"lost_{step}": Column("images", f"wrong only under encryption, against the {STEPS[step]}"),
            f"mcnemar_p_{step}": Column(
                "", f"McNemar's exact p of gained_{step} and lost_{step}: below 0.05 they differ"
            ),
        }
    for name, whose in (
        ("sensitivity", "images of a class found"),
        ("specificity", "images of other classes not found"),
    ):
        meaning = f"share of {whose}, under encryption: of class 1 (binary), else the mean over classes or labels"
        columns |= {
            f"{name}_encrypted": Column("", meaning),
            f"{name}_encrypted_low": Column("", "lower end of its 95 % Wilson interval (binary tasks)"),
            f"{name}_encrypted_high": Column("", "upper end of its 95 % Wilson interval (binary tasks)"),
        }
    columns |= {
        "auc_worst": Column("", "smallest AUC of a class or label, under encryption (more than two of them)"),
        "auc_worst_low": Column("", "lower end of its 95 % interval by DeLong (empty if the images cannot support one)"),
        "auc_worst_high": Column("", "upper end of its 95 % interval by DeLong (empty if the images cannot support one)"),
        "auc_worst_label": Column("", "class or label that has it"),
        "auc_best": Column("", "largest AUC of a class or label, under encryption (more than two of them)"),
        "auc_best_low": Column("", "lower end of its 95 % interval by DeLong (empty if the images cannot support one)"),
        "auc_best_high": Column("", "upper end of its 95 % interval by DeLong (empty if the images cannot support one)"),
        "auc_best_label": Column("", "class or label that has it"),
        "auc_change_max": Column("", "largest change of a class's or label's AUC by encryption, either way"),
        "auc_labels": Column("", "classes or labels that have an AUC: of which there are images, and others"),
        "by_class": Column("JSON", "images, sensitivity, specificity and AUC (each with its interval) of each class"),
        "samples": Column("requests", "timed requests, warm-up not among them"),
        "sampling_ended": Column(
            "", "precise: intervals as narrow as asked; time or count: given up before; fixed: one sample an image"
        ),
        "precision_asked": Column("", "half-width of the intervals at which sampling ends, as a share of the median"),
        "precision_reached": Column("", "half-width of the interval of server_wall_s_median, as a share of it"),
    }
    columns |= _timing_columns("request_wall_s", "one request from images to logits, all stages, wall time")
    columns |= _timing_columns("server_wall_s", "one request on the server (read, infer, write), wall time")
    columns["throughput_images_per_s"] = Column("images/s", "images of a request over server_wall_s_median")
    for prefix, (_, _, meaning) in REQUEST.items():
        columns |= _timing_columns(f"{prefix}_wall_s", f"{meaning}, wall time")
        columns[f"{prefix}_cpu_s_median"] = Column("s", f"{meaning}, CPU time: median")
    columns["infer_cold_wall_s"] = Column("s", "first inference of the process, not among the samples, wall time")
    for prefix, (_, _, meaning) in ONCE.items():
        columns[f"{prefix}_wall_s"] = Column("s", f"once: {meaning}, wall time")
        columns[f"{prefix}_cpu_s"] = Column("s", f"once: {meaning}, CPU time")
    for n in QUERIES:
        columns[f"request_wall_s_over_{n}"] = Column(
            "s", f"one of {n} requests: request_wall_s_median and its share of keygen and load_keys"
        )
        columns[f"request_bytes_over_{n}"] = Column(
            "bytes", f"one of {n} requests: request, response and its share of all keys"
        )
    columns |= {
        "bandwidth_bit_per_s": Column("bit/s", "stated, not measured: the network that network_… columns assume"),
        "network_request_s": Column("s", "derived: request and response over bandwidth_bit_per_s; in no other column"),
        "network_keys_s": Column("s", "derived: all keys over bandwidth_bit_per_s; in no other column"),
    }
    columns |= {
        "request_bytes": Column("bytes", "one serialised request of `batch` images"),
        "response_bytes": Column("bytes", "the serialised response to one request"),
        "evaluation_key_bytes": Column("bytes", "all keys that the server needs to compute, sent once"),
        "public_key_bytes": Column("bytes", "the public (encryption) key, where it is sent"),
        "client_artifact_bytes": Column("bytes", "what the owner hands to the client"),
        "server_artifact_bytes": Column("bytes", "what the owner hands to the server: the prepared network"),
        "encoder_bytes": Column("bytes", "the client's encoder, where the model reads latents"),
        "input_values": Column("", "numbers that are encrypted of one image: its pixels, or its latent"),
        "encoder_psnr_db": Column(
            "dB", "peak signal-to-noise ratio of test images that come back from such latents, mean: what they still show"
        ),
        "encoder_trained_on": Column("", "data that the client's encoder was trained on"),
        "resized": Column("", "sizes from and to which the client resizes images before it encodes them"),
        "gate_values": Column("", "arguments of gates' polynomials, over the images and the lowered network in the clear"),
        "gate_values_beyond": Column("", "those of them outside the interval that their polynomial was fitted on"),
    }
    for name, (role, stage, meaning) in KEPT.items():
        columns[name] = Column("bytes", f"{meaning}: growth of the {role}'s resident memory over its first {stage}")
    for role in ROLES:
        columns[f"{role}_peak_rss_bytes"] = Column("bytes", f"highest resident memory of the {role} process")
    columns |= {
        "security_bits": Column("bits", "security level of the weakest parameter set; empty: not encrypted"),
        "security_standard": Column("", "table or estimator that the security level comes from"),
        **PARAMETERS,
        "parameters": Column("JSON", "all parameters really used"),
        "operations": Column("JSON", "primitive operations of one inference, by name"),
        "network": Column("JSON", "model, lowering, hash and provenance of the network"),
        "notes": Column("JSON", "what else the backend reported"),
        **CONDITIONS,
        "machine": Column("", "processor, cores and memory"),
        "versions": Column("JSON", "versions of the libraries"),
        "git_commit": Column("", "commit of this benchmark"),
        "started_at": Column("", "start of the trial, ISO 8601"),
        "duration_s": Column("s", "the whole trial, process starts included, wall time"),
        "command": Column("", "command that made the record"),
    }
    return columns


COLUMNS: dict[str, Column] = _columns()


def rows(records: Iterable[Record], bandwidth_bit_per_s: float | None = None) -> pd.DataFrame:
    """One row a trial with exactly the columns of `COLUMNS`; what was not measured is missing."""
    return frame([row(record, bandwidth_bit_per_s) for record in records])


def frame(found: list[dict[str, Any]]) -> pd.DataFrame:
    """The table of rows made by `row`."""
    return pd.DataFrame({name: _series([r.get(name) for r in found]) for name in COLUMNS})


def row(record: Record, bandwidth_bit_per_s: float | None = None) -> dict[str, Any]:
    """The figures of one trial by column name; columns without a value are left out.

    bandwidth_bit_per_s: of a network that is assumed, for columns of their own.
    """
    trial = record.trial
    found = {
        "key": record.key,
        "backend": trial.backend,
        "model": trial.model,
        "task": trial.task,
        "workload": trial.workload,
        "steps": trial.steps or None,
        "scenario": trial.scenario,
        "model_privacy": trial.model_privacy,
        "status": record.status,
        "reason": record.reason,
        "images_asked": trial.images,
        "batch": record.batch if record.stages else None,  # unknown until the owner has prepared
        "threads": trial.threads,
        "cpu_wall_ratio": record.cpu_wall_ratio,
        "sampling_ended": record.sampling_ended,
        "precision_asked": trial.precision if record.sampling_ended else None,
        "seed": trial.seed,
        **_timings(record),
        **_sizes(record),
        **_input(record),
        **_peaks(record),
        **_kept(record),
        **_parameters(record),
        **{name: getattr(record.conditions, name, None) for name in CONDITIONS},
        "machine": describe_machine(record.machine),
        "versions": _json(record.versions),
        "git_commit": record.git_commit,
        "started_at": record.started_at,
        "duration_s": record.duration_s,
        "command": record.command,
    }
    if record.outputs and record.outputs.labels:
        found |= _quality(quality(record.outputs)) | _classes(by_class(record.outputs), record.outputs)
    found |= _amortised(found)
    if bandwidth_bit_per_s:
        found |= _network(found, bandwidth_bit_per_s)
    return {name: value for name, value in found.items() if value is not None and value != ""}


def describe_machine(machine: dict[str, Any]) -> str:
    """The machine in one line, from whatever of it is known."""
    return ", ".join(f"{name} {value}" for name, value in machine.items() if not isinstance(value, (dict, list)))


def _quality(found: Quality) -> dict[str, Any]:
    figures: dict[str, Any] = {"images": found.n}
    for name, step in zip(STEPS, (found.float_, found.lowered, found.encrypted), strict=True):
        if step:
            figures |= _interval(f"accuracy_{name}", step.accuracy, value="")
            figures[f"auc_{name}"] = step.auc
    return figures | {
        "agreeing_images": found.agreeing,
        "agreement": found.agreement,
        "disagreements_beyond_noise": found.disagreements_beyond_noise,
        "logit_error_max": found.logit_error_max,
        "logit_error_mean": found.logit_error_mean,
        "precision_bits_worst": found.precision_bits_worst,
        "precision_bits_mean": found.precision_bits_mean,
        **_paired("lowered", found.against_lowered),
        **_paired("float", found.against_float),
    }


def _paired(step: str, found: Paired | None) -> dict[str, Any]:
    return {f"gained_{step}": found.gained, f"lost_{step}": found.lost, f"mcnemar_p_{step}": found.p} if found else {}


def _classes(found: list[ClassQuality], outputs: Outputs) -> dict[str, Any]:
    kind, names = outputs.kind, dict(enumerate(outputs.names))
    figures: dict[str, Any] = {
        "by_class": _json([dataclasses.asdict(each) | {"name": names.get(each.label, "")} for each in found])
    }
    areas = [(each.auc, each.label) for each in found if each.auc]
    if changes := [abs(each.auc.value - each.auc_lowered) for each in found if each.auc and each.auc_lowered is not None]:
        figures["auc_change_max"] = max(changes)
    if len(found) > 2 and areas:
        figures["auc_labels"] = len(areas)
        for which, choose in (("worst", min), ("best", max)):
            area, label = choose(areas, key=lambda one: one[0].value)
            figures |= _interval(f"auc_{which}", area, value="")
            name = names.get(label, str(label))
            figures[f"auc_{which}_label"] = f"label {name}" if name.isdigit() else name
    for name in ("sensitivity", "specificity"):
        shares = [getattr(each, name) for each in found]
        if kind == BINARY and found and shares[1]:
            figures |= _interval(f"{name}_encrypted", shares[1], value="")
        elif kind != BINARY and shares and all(shares):
            figures[f"{name}_encrypted"] = sum(share.value for share in shares) / len(shares)
    return figures


def _amortised(found: dict[str, Any]) -> dict[str, Any]:
    """From the columns found so far; nothing that lacks one of its parts."""
    figures = {}
    walls: list[Any] = [found.get(f"{name}_wall_s") for name in ("keygen", "load_keys")]
    ends: list[Any] = [found.get(f"{name}_bytes") for name in ("request", "response")]
    each = found.get("request_wall_s_median")
    for n in QUERIES:
        if each is not None and None not in walls:
            figures[f"request_wall_s_over_{n}"] = amortised(sum(walls), each, n)
        if None not in ends:
            figures[f"request_bytes_over_{n}"] = amortised(_key_bytes(found), sum(ends), n)
    return figures


def _network(found: dict[str, Any], bandwidth_bit_per_s: float) -> dict[str, Any]:
    figures: dict[str, Any] = {"bandwidth_bit_per_s": bandwidth_bit_per_s}
    if found.get("request_bytes") is not None and found.get("response_bytes") is not None:
        figures["network_request_s"] = 8 * (found["request_bytes"] + found["response_bytes"]) / bandwidth_bit_per_s
        figures["network_keys_s"] = 8 * _key_bytes(found) / bandwidth_bit_per_s
    return figures


def _key_bytes(found: dict[str, Any]) -> int:
    return sum(found.get(f"{name}_key_bytes") or 0 for name in ("evaluation", "public"))


def _timings(record: Record) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for prefix, (role, name, _) in ONCE.items():
        stage = record.stage(role, name)
        if stage and stage.wall_s:
            figures[f"{prefix}_wall_s"] = stage.wall_s[0]
            figures[f"{prefix}_cpu_s"] = stage.cpu_s[0] if stage.cpu_s else None
    for prefix, (role, name, _) in REQUEST.items():
        stage = record.stage(role, name)
        if stage and stage.wall_s:
            figures |= _interval(f"{prefix}_wall_s", median_interval(stage.wall_s))
            figures[f"{prefix}_cpu_s_median"] = median_interval(stage.cpu_s).value if stage.cpu_s else None
    if infer := record.stage("server", "infer"):
        figures["samples"] = len(infer.wall_s)
        figures["infer_cold_wall_s"] = infer.cold_wall_s
    if samples := totals(record, REQUEST):
        figures |= _interval("request_wall_s", median_interval(samples))
    if samples := totals(record, SERVER_REQUEST):
        server = median_interval(samples)
        figures |= _interval("server_wall_s", server)
        figures["precision_reached"] = half_width(server) if server.low is not None else None
        figures["throughput_images_per_s"] = throughput(record.batch, server.value) if server.value else None
    return figures


def totals(record: Record, stages: Mapping[str, tuple[str, str, str]]) -> list[float]:
    """Wall seconds of each request over `stages`; empty if a stage is missing or was not timed in every request."""
    found = {prefix: record.stage(role, name) for prefix, (role, name, _) in stages.items()}
    timed = [stage for stage in found.values() if stage]
    lacking = any(stage is None and prefix not in OPTIONAL for prefix, stage in found.items())
    if lacking or len({len(stage.wall_s) for stage in timed}) > 1:
        return []
    return [sum(request) for request in zip(*(stage.wall_s for stage in timed), strict=True)]


def _sizes(record: Record) -> dict[str, int | None]:
    keys = {name: size for name, size in record.sizes.items() if name.endswith("_key_bytes")}
    public = keys.pop("public_key_bytes", None)
    named = ("request_bytes", "response_bytes", "client_artifact_bytes", "server_artifact_bytes", "encoder_bytes")
    return {
        **{name: record.sizes.get(name) for name in named},
        "evaluation_key_bytes": sum(keys.values()) if keys else None,
        "public_key_bytes": public,
    }


def _input(record: Record) -> dict[str, Any]:
    """What a network reads, as `bench.runner.describe` put it down; empty for records of before."""
    about = record.network.get("input")
    return {name: about.get(name) for name in INPUT} if isinstance(about, dict) else {}


def _peaks(record: Record) -> dict[str, int | None]:
    return {
        f"{role}_peak_rss_bytes": max(
            (s.peak_rss_bytes for s in record.stages if s.role == role and s.peak_rss_bytes is not None), default=None
        )
        for role in ROLES
    }


def _kept(record: Record) -> dict[str, int | None]:
    stages = {column: record.stage(role, name) for column, (role, name, _) in KEPT.items()}
    return {column: stage.kept_rss_bytes if stage else None for column, stage in stages.items()}


def _parameters(record: Record) -> dict[str, Any]:
    security = record.security or {}
    return {
        "security_bits": security.get("bits"),
        "security_standard": security.get("standard"),
        **{name: _of_type(kind, record.parameters.get(name, security.get(name))) for name, kind in KINDS.items()},
        "parameters": _json(record.parameters),
        "operations": _json(record.operations),
        "network": _json(record.network),
        "notes": _json(record.notes),
    }


def _of_type(kind: tuple[type, ...], value: Any) -> Any:
    """A backend may report anything under the name of a column; all of it is in ``parameters``."""
    return value if type(value) in kind and abs(value if kind == (int, float) else 0) < 2**63 else None


def _interval(name: str, interval: Interval, value: str = "_median") -> dict[str, float | None]:
    return {f"{name}{value}": interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if value else ""


def _series(values: list[Any]) -> pd.Series:
    """Whole numbers stay whole beside missing ones."""
    known = [v for v in values if v is not None]
    if all(type(v) is int for v in known):
        return pd.Series(values, dtype="Int64")
    if all(type(v) in (int, float) for v in known):
        return pd.Series(values, dtype="float64")
    return pd.Series(values, dtype="object")
