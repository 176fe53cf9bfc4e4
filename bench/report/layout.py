"""What the tables of a report hold, and how trials and cells are named: shared by page, Markdown, terminal and figures."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from bench.record import Record
from bench.report.quantity import interval, with_unit
from bench.report.table import COLUMNS, QUERIES, Column
from bench.session import ONCE, REQUEST

CLEAR = "clear"  # the backend that is the reference: neutral colour, first in every list
AXES = (
    "backend",
    "model",
    "task",
    "workload",
    "scenario",
    "model_privacy",
    "threads",
    "host",
    "seed",
)  # what may tell trials apart
IN_WORDS = {"threads": "threads {}", "seed": "seed {}"}  # in the name of a trial
OPERATION = "operation: "  # prefix of the columns of operation counts, one for each name that occurs

FEW = 0.1  # share of the images of another trial of the task, below which an accuracy says nothing beside it

Trial = dict[str, Any]  # a row of `trials_of`


class Heading(NamedTuple):
    """A column of a table in the report: its name in `COLUMNS`, and a short heading."""

    column: str
    title: str


SUMMARY = [
    Heading("status", "Status"),
    Heading("accuracy_encrypted", "Accuracy, encrypted"),
    Heading("agreement", "Agreement"),
    Heading("server_wall_s_median", "Server latency"),
    Heading("request_wall_s_median", "Round trip"),
    Heading("batch", "Batch"),
    Heading("throughput_images_per_s", "Images/s"),
    Heading("request_bytes", "Request"),
    Heading("response_bytes", "Response"),
    Heading("evaluation_key_bytes", "Evaluation keys"),
    Heading("client_peak_rss_bytes", "Client memory"),
    Heading("server_peak_rss_bytes", "Server memory"),
    Heading("security_bits", "Security (bits)"),
    Heading("precision_bits_worst", "Precision (bits)"),
]
TABLES = {
    "summary": SUMMARY,
    "failures": [Heading("status", "Status"), Heading("reason", "Reason")],
    "stages": [
        Heading("samples", "Timed requests"),
        *(Heading(f"{prefix}_wall_s_median", prefix.replace("_", " ").capitalize()) for prefix in REQUEST),
        Heading("request_wall_s_median", "Round trip"),
        Heading("infer_cold_wall_s", "First infer"),
        Heading("infer_cpu_s_median", "Infer, CPU time"),
    ],
    "once": [Heading(f"{prefix}_wall_s", prefix.replace("_", " ").capitalize()) for prefix in ONCE],
    "sizes": [
        Heading("public_key_bytes", "Public key"),
        Heading("evaluation_key_bytes", "Evaluation keys"),
        Heading("request_bytes", "Request"),
        Heading("response_bytes", "Response"),
        Heading("client_artifact_bytes", "Client artifact"),
        Heading("server_artifact_bytes", "Server artifact"),
    ],
    "input": [
        Heading("input_values", "Values encrypted an image"),
        Heading("resized", "Resized"),
        Heading("encode_wall_s_median", "Encode"),
        Heading("encode_cpu_s_median", "Encode, CPU time"),
        Heading("encoder_bytes", "Encoder"),
        Heading("encoder_psnr_db", "PSNR of latents"),
        Heading("encoder_trained_on", "Encoder trained on"),
        Heading("gate_values", "Gate arguments"),
        Heading("gate_values_beyond", "Beyond the fitted interval"),
    ],
    "memory": [
        Heading("owner_peak_rss_bytes", "Owner memory"),
        Heading("client_peak_rss_bytes", "Client memory"),
        Heading("server_peak_rss_bytes", "Server memory"),
        Heading("model_memory_bytes", "Model in memory"),
        Heading("evaluation_key_memory_bytes", "Keys in memory"),
        Heading("request_memory_bytes", "Request in memory"),
        Heading("response_memory_bytes", "Response in memory"),
    ],
    "quality": [
        Heading("images", "Images"),
        Heading("accuracy_float", "Accuracy, float"),
        Heading("accuracy_lowered", "Accuracy, lowered"),
        Heading("accuracy_encrypted", "Accuracy, encrypted"),
        Heading("auc_float", "AUC, float"),
        Heading("auc_lowered", "AUC, lowered"),
        Heading("auc_encrypted", "AUC, encrypted"),
        Heading("auc_labels", "Labels with an AUC"),
        Heading("auc_worst_label", "Worst label"),
        Heading("auc_worst", "Its AUC, encrypted"),
        Heading("auc_best_label", "Best label"),
        Heading("auc_best", "Its AUC, encrypted"),
        Heading("auc_change_max", "Largest change of an AUC"),
        Heading("sensitivity_encrypted", "Sensitivity, encrypted"),
        Heading("specificity_encrypted", "Specificity, encrypted"),
    ],
    "precision": [
        Heading("agreeing_images", "Images that agree"),
        Heading("disagreements_beyond_noise", "Disagreements beyond noise"),
        Heading("mcnemar_p_lowered", "McNemar p, against lowered"),
        Heading("mcnemar_p_float", "McNemar p, against float"),
        Heading("logit_error_max", "Worst logit error"),
        Heading("logit_error_mean", "Mean logit error"),
        Heading("precision_bits_worst", "Worst precision (bits)"),
        Heading("precision_bits_mean", "Mean precision (bits)"),
    ],
    "amortised": [
        *(Heading(f"request_wall_s_over_{n}", f"Time, {n:,} requests") for n in QUERIES),
        *(Heading(f"request_bytes_over_{n}", f"Bytes, {n:,} requests") for n in QUERIES),
        Heading("bandwidth_bit_per_s", "Assumed network (bit/s)"),
        Heading("network_request_s", "Derived: request on that network"),
        Heading("network_keys_s", "Derived: keys on that network"),
    ],
    "security": [
        Heading("security_bits", "Security (bits)"),
        Heading("ring_dimension", "Ring dimension"),
        Heading("log2_qp", "log2 QP (bits)"),
        Heading("log2_qp_limit", "Limit of log2 QP"),
        Heading("meets_2024_guidelines", "2024 guidelines"),
        Heading("lwe_dimension", "LWE dimension"),
        Heading("p_error", "p_error, a bootstrap"),
        Heading("global_p_error", "p_error, an inference"),
        Heading("secret", "Secret"),
        Heading("security_standard", "By"),
    ],
    "conditions": [
        Heading("threads", "Threads asked"),
        Heading("cpu_wall_ratio", "Threads busy (CPU/wall)"),
        Heading("precision_reached", "Interval, ± share of median"),
        Heading("sampling_ended", "Sampling ended"),
        Heading("calibration_before_s", "Calibration before"),
        Heading("calibration_after_s", "Calibration after"),
        Heading("other_cores", "Cores busy elsewhere"),
        Heading("steal_share", "Stolen CPU"),
        Heading("started_at", "Started"),
        Heading("duration_s", "Whole trial"),
        Heading("git_commit", "Commit"),
    ],
}


def trials_of(records: list[Record], figures: list[dict[str, Any]], across_machines: bool = False) -> list[Trial]:
    """The rows of `bench.report.table.row` with what a report needs beside them.

    encrypted (bool); host: short name of the machine; telling (bool): whether there are enough images for an accuracy
    (`FEW`); counts of operations, each with the prefix `OPERATION`.
    across_machines: host is the same for all, so that all are compared.
    """
    hosts = {host(record.machine) for record in records if record.machine}
    several = f"{len(hosts)} machines" if across_machines and len(hosts) > 1 else ""
    only = hosts.pop() if len(hosts) == 1 else "unknown machine"  # a trial that did not start may not name its machine
    most: dict[str, int] = defaultdict(int)
    for figure in figures:
        most[figure["task"]] = max(most[figure["task"]], figure.get("images", 0))
    return [
        figure
        | {"encrypted": record.security is not None, "host": several or host(record.machine) or only}
        | {"telling": figure.get("images", 0) >= FEW * most[figure["task"]]}
        | {OPERATION + name: count for name, count in record.operations.items()}
        for figure, record in zip(figures, records, strict=True)
    ]


def values_of(trials: list[Trial]) -> dict[str, list[Any]]:
    """The values that occur on each axis, in the order of reports."""
    return {axis: sorted({t[axis] for t in trials}, key=lambda value: (value != CLEAR, value)) for axis in AXES}


def label(trial: Trial, values: dict[str, list[Any]]) -> list[str]:
    """The backend, and whatever else tells this trial from the others."""
    others = [axis for axis in AXES if axis != "backend" and len(values[axis]) > 1]
    return [trial["backend"], *filter(None, (in_words(axis, trial[axis]) for axis in others))]


def in_words(axis: str, value: Any) -> str:
    """A value in the name of a trial; that a model is not encrypted goes without saying."""
    if axis == "model_privacy":
        return "encrypted model" if value == "encrypted" else ""
    return IN_WORDS.get(axis, "{}").format(value)


def headings(trials: list[Trial]) -> dict[str, list[Heading]]:
    """The columns of each table, without those that no trial has a figure for; with a table of operation counts."""
    counted = sorted({name for t in trials for name in t if name.startswith(OPERATION)})
    tables = TABLES | {"operations": [Heading(c, _words(c.removeprefix(OPERATION))) for c in counted]}
    known = {name for t in trials for name, value in t.items() if value is not None}
    if not known & {"encoder_bytes", "gate_values"}:
        tables = tables | {"input": []}  # pixels alone say nothing new
    return {table: [h for h in of if h.column in known] for table, of in tables.items()}


def column(name: str) -> Column:
    """Unit and meaning of a column, operation counts included."""
    if name.startswith(OPERATION):
        return Column(
            "operations", f"{_words(name.removeprefix(OPERATION))}: operations of one inference (one request)"
        )
    return COLUMNS[name]


def cell(trial: Trial, name: str) -> tuple[str, str]:
    """Text of a figure and of its interval; empty if it was not measured."""
    value, unit = trial.get(name), column(name).unit
    if value is None:
        return "", ""
    if isinstance(value, bool):
        return ("yes" if value else "no"), ""
    if isinstance(value, str):
        return (value[:12] if name == "git_commit" else value), ""
    low, high = (trial.get(f"{name.removesuffix('_median')}_{end}") for end in ("low", "high"))
    return with_unit(value, unit), "" if low is None or high is None else interval(low, high, unit)


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def host(machine: dict[str, Any]) -> str:
    """A short name that tells machines apart; not the load, which differs between trials of one machine."""
    parts = [machine.get("cpu", ""), machine.get("host", "")[:6]]
    return " ".join(part for part in parts if part)
