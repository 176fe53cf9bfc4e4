"""The command line: ``python -m bench``. Slow imports (pandas, plotly, torch) happen where they are used."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from backends.registry import UnknownBackend, backends, resolve
from models import NetworkError, tasks, zoo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.record import Record, Trial
    from bench.runner import Subject
    from models.tasks import Dataset

    Report = Callable[..., None]  # (trials done so far, what is going on, finished=False)

OK, FAILED, USAGE, REGRESSION, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="bench",
    help="Benchmark of encrypted medical-image inference: the same networks on several FHE libraries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
DataDir = Annotated[
    Path | None, typer.Option(help=f"Folder of MedMNIST files (else ${tasks.DATA_DIR_VARIABLE}, else the user cache).")
]

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Bandwidth = Annotated[
    str | None, typer.Option(help="Of a network to be assumed, as 100Mbit: derived columns, beside what was measured.")
]


def main() -> None:
    """Runs the command line; errors that a person can mend end with one line and no traceback."""
    try:
        app()
    except (UnknownBackend, zoo.UnknownModel) as error:
        _fail(error.args[0], USAGE)
    except (tasks.DataError, NetworkError) as error:
        _fail(str(error), FAILED)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)


def _fail(message: str, code: int) -> NoReturn:
    print(f"bench: {message}", file=sys.stderr)
    sys.exit(code)


@app.command("list")
def list_() -> None:
    """Backends, models, tasks and suites."""
    from bench import suite

    print("backends")
    for info in backends().values():
        if not info.test_only:
            print(f"  {info.name:<18} {info.title}")
            for variant, line in (info.variants or {}).items():
                if variant:
                    print(f"  {info.name + ':' + variant:<18} {line}")
    print("models")
    for name, line in zoo.MODELS.items():
        print(f"  {name:<18} {line}")
    print("tasks")
    for task in tasks.tasks().values():
        here = "data here" if tasks.find(task) else "no data here"
        print(f"  {task.name:<18} {task.kind}, {task.channels} channel(s), {task.outputs} outputs; {here}")
    print("suites")
    for name in suite.names():
        print(f"  {name}")


@app.command()
def run(
    backend: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:VARIANT; repeat it or separate by commas.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option()] = None,
    task: Annotated[list[str] | None, typer.Option()] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="single-stream or offline")] = None,
    model_privacy: Annotated[list[str] | None, typer.Option(help="plain or encrypted")] = None,
    threads: Annotated[
        list[str] | None, typer.Option(help="Cores of each party (default: all); 1,2 runs every trial with each.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=0, help="Test images of a trial; 0: all.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds for a whole trial.")] = None,
    precision: Annotated[
        float | None,
        typer.Option(help="Repeat requests until the intervals of medians are within ± this share; 0: never."),
    ] = None,
    sampling_time: Annotated[float | None, typer.Option(help="Seconds of repeating, at most.")] = None,
    order: Annotated[int, typer.Option(help="Seed of the order in which the trials of a task run.")] = 0,
    memory_limit: Annotated[float, typer.Option(min=0, help="GiB of address space of each party; 0: none.")] = 0,
    suite: Annotated[
        str, typer.Option(help="Name or TOML file of a suite; the other options replace its values.")
    ] = "quick",
    bandwidth: Bandwidth = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same folder resumes it.")] = None,
) -> None:
    """Run trials and write records, results.csv and report.html."""
    from bench import suite as suites

    bandwidth_bit_per_s = _bandwidth(bandwidth)
    changes = {
        "backend": _split(backend),
        "model": _split(model),
        "task": _split(task),
        "scenario": _split(scenario),
        "model_privacy": _split(model_privacy),
        "threads": _whole_numbers(threads, "--threads"),
        "images": images,
        "seed": seed,
        "timeout_s": timeout,
        "precision": precision,
        "sampling_s": sampling_time,
    }
    try:
        trials, notes = _trials(suite, {k: v for k, v in changes.items() if v not in (None, [])}, data_dir)
    except (suites.SuiteError, tasks.DataError) as error:
        _fail(str(error), USAGE)
    trials = suites.interleave(trials, order)
    folder = out or Path("reports") / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{Path(suite).stem}"
    try:
        _start(folder, suite, notes, bandwidth_bit_per_s)
    except OSError as error:
        _fail(f"cannot write to {folder}: {error.strerror}; choose another --out", USAGE)
    for note in notes:
        print(note)
    try:
        records = _run_all(trials, folder, data_dir, int(memory_limit * 2**30))
        _write_report(folder)
    except KeyboardInterrupt:
        _fail(f"interrupted; {_resume(folder)}", INTERRUPTED)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"the disk is full; free some space, {_resume(folder)}", FAILED)
    _summary(records)
    sys.exit(OK if all(record.status == "ok" for record in records) else FAILED)


def _resume(folder: Path) -> str:
    return f"finished records are in {folder}, run the same command with --out {folder} to resume"


def _split(values: list[str] | None) -> list[str]:
    return [part for value in values or [] for part in value.split(",") if part]


def _whole_numbers(values: list[str] | None, option: str) -> list[int]:
    try:
        return [int(part) for part in _split(values)]
    except ValueError:
        raise typer.BadParameter("whole numbers, separated by commas", param_hint=f"'{option}'") from None


def _bandwidth(text: str | None) -> float | None:
    """``100Mbit`` in bits per second."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)bit", text or "")
    if text and not (match and float(match[1])):
        raise typer.BadParameter("a number and kbit, Mbit or Gbit, as 100Mbit", param_hint="'--bandwidth'")
    return float(match[1]) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]] if match else None


def _trials(name: str, changes: dict, data_dir: Path | None) -> tuple[list[Trial], list[str]]:
    """The trials of a suite after the options, all names checked, and what a reader has to know about them."""
    import msgspec

    from bench import suite as suites
    from bench.machine import available_threads

    suite, notes = suites.read(name), []

    def small_tasks() -> list[str]:
        small = [
            t.name
            for t in tasks.tasks().values()
            if not t.embedded and t.samples["train"] <= suites.SMALL_TRAINING_SPLIT and tasks.find(t, data_dir)
        ]
        if not small:
            notes.append("MedMNIST files were not found, so this run uses the embedded task digits (scikit-learn).")
        return small or ["digits"]

    try:
        blocks = [msgspec.convert(msgspec.to_builtins(block) | changes, suites.Block) for block in suite.trials]
    except msgspec.ValidationError as error:
        raise suites.SuiteError(f"invalid option: {error}") from error
    default = [info.name for info in backends().values() if not info.test_only]
    trials = suites.expand(blocks, default, small_tasks, available_threads())
    for trial in trials:
        resolve(trial.backend)
        if trial.model not in zoo.MODELS:
            raise zoo.UnknownModel(f"unknown model {trial.model!r}: choose from {', '.join(zoo.MODELS)}")
        tasks.task(trial.task)
    return trials, notes


def _start(folder: Path, suite: str, notes: list[str], bandwidth_bit_per_s: float | None) -> None:
    (folder / "records").mkdir(parents=True, exist_ok=True)
    about = {"suite": suite, "notes": notes, "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]])}
    if bandwidth_bit_per_s:
        about["bandwidth_bit_per_s"] = bandwidth_bit_per_s
    (folder / "run.json").write_text(json.dumps(about, indent=1) + "\n")


def _run_all(trials: list[Trial], folder: Path, data_dir: Path | None, memory_limit_bytes: int) -> list[Record]:
    from bench import runner
    from bench.record import Store

    records, store = [], Store(folder / "records")
    with _progress(len(trials)) as report:
        for number, trial in enumerate(trials):
            info, _ = resolve(trial.backend)
            try:
                subject = _subject(trial.task, trial.model, info.lowering, data_dir, report)
            except (tasks.DataError, NetworkError) as error:
                record = store.add(runner.skipped(trial, str(error)))
            else:
                record = store.get(runner.key(trial, subject, info))
                if record is None or record.status != "ok":
                    stages = partial(_stage, report, number, trial.label)
                    record = store.add(runner.run(trial, subject, folder, stages, memory_limit_bytes))
            outcome = f"{record.status}, {record.reason}" if record.reason else record.status
            report(number + 1, f"{trial.label}: {outcome}", finished=True)
            records.append(record)
    return records


def _stage(report: Report, number: int, label: str, stage: str, share: float) -> None:
    report(number + share, f"{label}: {stage}")


@lru_cache(maxsize=1)  # the trials of a task stand together, and a dataset may be large
def _dataset(task_name: str, data_dir: Path | None) -> Dataset:
    return tasks.load(tasks.task(task_name), data_dir)


def _subject(task_name: str, model: str, lowering: str, data_dir: Path | None, report: Report) -> Subject:
    from bench.runner import Subject

    task, dataset = tasks.task(task_name), _dataset(task_name, data_dir)

    def training(share: float, text: str) -> None:
        report(None, f"training {model} for {task_name}: {share:.0%} {text}")

    networks = [zoo.network(model, task, which, dataset=dataset, progress=training) for which in ("float", lowering)]
    return Subject(task, dataset, *networks)


@contextmanager
def _progress(total: int) -> Iterator[Report]:
    """A bar with the current stage and the time left; outside a terminal, a line for each finished trial."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:

        def line(completed: float | None, text: str, finished: bool = False) -> None:
            if finished:
                print(f"[{completed:.0f}/{total}] {text}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)

        def update(completed: float | None, text: str, finished: bool = False) -> None:
            bar.update(task, completed=completed, description=text)
            if finished:
                bar.console.print(text)

        yield update


def _write_report(folder: Path, bandwidth_bit_per_s: float | None = None) -> None:
    from bench import report
    from bench.record import RecordError

    try:
        csv, html = report.write(folder, bandwidth_bit_per_s)
    except RecordError as error:
        _fail(str(error), FAILED)
    print(f"{csv}\n{html}")


def _summary(records: list[Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    from bench import metrics
    from bench.report.quantity import with_unit

    table = Table()
    for column in ("trial", "status", "accuracy", "server", "request", "keys"):
        table.add_column(column, justify="left" if column in ("trial", "status") else "right")
    for record in records:
        infer = record.stage("server", "infer")
        quality = metrics.quality(record.outputs) if record.outputs and record.outputs.encrypted_logits else None
        keys = sum(size for name, size in record.sizes.items() if name.endswith("_key_bytes"))
        table.add_row(
            record.trial.label,
            record.status,
            f"{quality.encrypted.accuracy.value:.1%}" if quality else "",
            with_unit(metrics.median_interval(infer.wall_s).value, "s") if infer and infer.wall_s else "",
            with_unit(record.sizes["request_bytes"], "bytes") if "request_bytes" in record.sizes else "",
            with_unit(keys, "bytes") if keys else "",
        )
    Console().print(table)


@app.command()
def explain(
    backend: Annotated[str, typer.Option()] = "ckks",
    model: Annotated[str, typer.Option()] = "fcnn",
    task: Annotated[str, typer.Option()] = "digits",
    scenario: Annotated[str, typer.Option(help="single-stream or offline")] = "single-stream",
    threads: Annotated[int, typer.Option(help="Cores (default: all).")] = 0,
    data_dir: DataDir = None,
) -> None:
    """Print a backend's plan: layouts, levels, parameters, operations, predicted and measured time by layer."""
    from bench import explain as explanation
    from bench.machine import available_threads
    from bench.process import TrialError
    from bench.record import Trial

    info, _ = resolve(backend)
    trial = Trial(backend=backend, model=model, task=task, scenario=scenario, threads=threads or available_threads())
    with _progress(1) as bar:
        subject = _subject(task, model, info.lowering, data_dir, bar)
    try:
        explanation.show(trial, subject)
    except TrialError as error:
        _fail(error.reason, FAILED)


@app.command()
def tune(
    backend: Annotated[str, typer.Option()] = "tfhe",
    model: Annotated[str, typer.Option()] = "fcnn",
    task: Annotated[str, typer.Option()] = "digits",
    budget: Annotated[str, typer.Option(help="Time of this call: 90s, 30m, 2h.")] = "30m",
    threads: Annotated[int, typer.Option(help="Cores (default: all).")] = 0,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the search; the same folder resumes it.")] = None,
) -> None:
    """Search the frontier of accuracy, latency and key bytes of a model's integer network."""
    from bench import tune as tuning
    from bench.machine import available_threads
    from bench.process import TrialError

    info, _ = resolve(backend)
    if info.lowering != "integer" or model not in zoo.MODELS or "@" in model:
        _fail(
            f"nothing to search for {backend} and {model}: choose a backend of integer networks and a plain model",
            USAGE,
        )
    try:
        described, budget_s = tasks.task(task), tuning.seconds(budget)
    except (tasks.DataError, ValueError) as error:
        _fail(str(error), USAGE)
    folder = out or Path("reports") / f"tune-{backend}-{model}-{task}"
    dataset = tasks.load(described, data_dir)
    search = tuning.Search(backend, model, described, dataset, folder, threads or available_threads())
    print(f"{len(search.finished)} trials are in {folder}")
    try:
        with _progress(1) as bar:
            rows = search.run(budget_s, lambda share, text: bar(share, text))
    except TrialError as error:
        _fail(error.reason, FAILED)
    print(f"{len(search.finished)} trials, {len(rows)} on the frontier: {folder / 'frontier.html'}")


@app.command()
def report(run_folder: RunFolder, bandwidth: Bandwidth = None) -> None:
    """Make results.csv and report.html again from the records of a run."""
    _write_report(run_folder, _bandwidth(bandwidth))


@app.command()
def check(run_folder: RunFolder) -> None:
    """Say which figures of a run are unstable, and why. Exit code 1 if any is."""
    from bench.record import Record, RecordError, records_in
    from bench.report import check as checks

    try:
        records = [Record.load(path) for path in records_in(run_folder)]
    except RecordError as error:
        _fail(str(error), FAILED)
    if not any(record.stages for record in records):
        _fail(f"nothing was measured in {run_folder}", FAILED)
    sys.exit(OK if checks.show(records) else FAILED)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of the run before.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Folder of the run after.")],
    fail_if: Annotated[
        list[str] | None, typer.Option(help="FIGURE:PERCENT%, as infer_s:10%: a regression if it grew by more.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare runs of different machines.")] = False,
) -> None:
    """Compare two runs trial by trial. Exit code 3 if a figure of --fail-if grew too much or a trial is ok no more."""
    from bench.record import RecordError
    from bench.report import compare as comparing

    try:
        result = comparing.compare(first, second, comparing.limits(fail_if or []), force)
    except comparing.CompareError as error:
        _fail(str(error), USAGE)
    except RecordError as error:
        _fail(str(error), FAILED)
    comparing.show(result)
    sys.exit(REGRESSION if fail_if and (result.regressions or result.broken) else OK)


@app.command()
def train(
    model: Annotated[str, typer.Option()] = "fcnn",
    task: Annotated[str, typer.Option()] = "digits",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a copy of the trained networks.")] = None,
) -> None:
    """Train all lowerings of a model for a task; they are kept in the user cache."""
    try:
        described = tasks.task(task)
    except tasks.DataError as error:
        _fail(str(error), USAGE)
    dataset = tasks.load(described, data_dir)
    with _progress(1) as bar:
        networks = zoo.train(model, described, dataset, seed=seed, progress=lambda share, text: bar(share, text))
    for lowering, network in networks.items():
        if out:
            network.save(out / f"{task}.{lowering}")
        print(f"{lowering:<12} {json.dumps(network.provenance.get('test', network.provenance))[:160]}")


@app.command()
def test(backend: Annotated[list[str] | None, typer.Option(help="Backends to test (default: all).")] = None) -> None:
    """Run the conformance suite against backends, registered ones of other packages included."""
    try:
        import pytest
    except ModuleNotFoundError:
        _fail("the conformance suite needs pytest: pip install pytest", FAILED)
    names = _split(backend) or [name for name, info in backends().items() if not info.test_only]
    for name in names:
        resolve(name)
    os.environ["BENCH_CONFORMANCE_BACKENDS"] = ",".join(names)
    suite = Path(__file__).parent / "conformance.py"
    sys.exit(pytest.main(["-v", "-rs", "-o", "addopts=", "-p", "no:cacheprovider", str(suite)]))


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Check the installation and name the cure for whatever is missing."""
    from bench import doctor as checks

    sys.exit(OK if checks.run(data_dir) else FAILED)
