"""The command line: ``python -m bench``. Slow imports (pandas, matplotlib, torch) happen where they are used."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import tempfile
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from datetime import datetime, timezone
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from backends.registry import Privacy, Scenario, UnknownBackend, backends, broken, resolve
from bench.files import DISK_FULL, RunError
from bench.signals import exit_code, in_words, stoppable
from models import NetworkError, NetworkFileError, catalogue, inputs, tasks, zoo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bench.cluster import Cluster
    from bench.record import Record, Store, Trial
    from bench.trials import Options

    Report = Callable[..., None]  # (trials done so far, what is going on, finished=False, milestone=False)

OK, FAILED, USAGE, REGRESSION = 0, 1, 2, 3
LARGEST = 2**53 - 1  # whole number, as in records

app = typer.Typer(
    name="bench",
    help="Benchmark of encrypted medical-image inference: the same networks on several FHE libraries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _path(text: str) -> Path:
    if not text:
        raise typer.BadParameter("a path, not nothing")
    return Path(text)


def _folder(text: str) -> Path:
    path = _path(text).expanduser()
    if not path.is_dir():
        raise typer.BadParameter(f"there is no folder {text}")
    return path


def _whole(text: str | int) -> int:
    """text: or the default of an option, as it is."""
    number = int(text) if re.fullmatch(r"\d{1,16}", str(text)) else -1
    if not 0 <= number <= LARGEST:
        raise typer.BadParameter(f"{text} is no whole number from 0 to {LARGEST}")
    return number


def _gibibytes(text: str | int) -> int:
    """In bytes. text: or the default."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 <= size < LARGEST / 2**30:
        raise typer.BadParameter(f"{text} is no size in GiB")
    return int(size * 2**30)


DataDir = Annotated[
    Path | None,
    typer.Option(
        parser=_folder,
        metavar="FOLDER",
        help=f"Folder of MedMNIST files (else ${tasks.DATA_DIR_VARIABLE}, else the user cache).",
    ),
]
Data = Annotated[
    str | None, typer.Option(help="Own data instead of a task: an .npz file in MedMNIST's format (docs/own-models.md).")
]
Kind = Annotated[str | None, typer.Option(help=f"Of the labels of --data (else derived): {', '.join(tasks.KINDS)}.")]
Size = Annotated[int | None, typer.Option(help="Pixels a side of MedMNIST's images: 28 (default), 64, 128 or 224.")]
Effort = Annotated[
    Literal["full", "quick"],
    typer.Option(
        help="Of training what nobody has trained yet; quick takes minutes and learns less (docs/training.md)."
    ),
]
RunFolder = Annotated[Path, typer.Argument(parser=_path, metavar="RUN", help="Folder of a run.")]
Threads = Annotated[int, typer.Option(parser=_whole, metavar="N", help="Cores (default: all).")]
Bandwidth = Annotated[
    str | None, typer.Option(help="Of a network to be assumed, as 100Mbit: derived columns, beside what was measured.")
]


def main() -> None:
    """Runs the command line; errors that a person can mend end with one line and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a terminal of few characters, and paths of any bytes
    try:
        with stoppable():
            app()
    except (UnknownBackend, catalogue.UnknownModel, NetworkFileError, tasks.DataFileError) as error:
        _fail(error.args[0], USAGE)
    except (tasks.DataError, NetworkError, RunError) as error:
        _fail(str(error), FAILED)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), FAILED)
    except KeyboardInterrupt as end:
        _fail(in_words(end), exit_code(end))


def _version(asked: bool) -> None:
    if asked:
        from bench.machine import OWN, git_commit, versions

        commit = git_commit()
        print(OWN, versions(())[OWN], *([f"(checkout, commit {commit})"] if commit else []))
        raise typer.Exit


@app.callback()
def every(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and end.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in ("list", "doctor"):  # which say so themselves
        _warn(map(str, broken()))


def _warn(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(f"bench: {sentence}", file=sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    print(f"bench: {message}", file=sys.stderr)
    sys.exit(code)


@app.command("list")
def list_(data_dir: DataDir = None) -> None:
    """Backends, models, tasks and suites."""
    from bench import suite

    print("backends")
    for info in backends().values():
        if not info.test_only:
            print(f"  {info.name:<18} {info.title}")
            for name, variant in info.variants.items():
                if name:
                    print(f"  {info.name + ':' + name:<18} {variant.about}")
    for plugin in broken():
        print(f"  {plugin.name:<18} broken: {plugin}")
    print("models")
    for name, line in catalogue.MODELS.items():
        print(f"  {name:<18} {line}")
    print("tasks")
    for task in tasks.tasks().values():
        here = "data here" if tasks.find(task, data_dir) else "no data here"
        print(f"  {task.name:<18} {task.kind}, {task.channels} channel(s), {task.outputs} outputs; {here}")
    print(f"  MedMNIST's also at {', '.join(map(str, tasks.SIZES))} pixels: --size N, or NAME_N as a task")
    print("suites")
    for name in suite.names():
        print(f"  {name}")


@app.command()
def run(
    backend: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:VARIANT; repeat it or separate by commas.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Name, or ONNX file of a network of your own.")] = None,
    task: Annotated[list[str] | None, typer.Option()] = None,
    data: Data = None,
    kind: Kind = None,
    size: Size = None,
    scenario: Annotated[list[str] | None, typer.Option(help="single-stream or offline")] = None,
    model_privacy: Annotated[list[str] | None, typer.Option(help="plain or encrypted")] = None,
    threads: Annotated[
        list[str] | None, typer.Option(help="Cores of each party (default: all); 1,2 runs every trial with each.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(parser=_whole, metavar="N", help="Test images of a trial; 0: all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(parser=_whole, metavar="N")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds for a whole trial.")] = None,
    precision: Annotated[
        float | None,
        typer.Option(help="Repeat requests until the intervals of medians are within ± this share; 0: never."),
    ] = None,
    sampling_time: Annotated[float | None, typer.Option(help="Seconds of repeating, at most.")] = None,
    order: Annotated[int, typer.Option(help="Seed of the order in which the trials of a task run.")] = 0,
    memory_limit: Annotated[
        int,
        typer.Option(parser=_gibibytes, metavar="GIB", help="GiB of address space of each party; 0: none."),
    ] = 0,
    workload: Annotated[str | None, typer.Option(help="inference, or train on encrypted features and labels.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Of --workload train: folder of features_*.npy and labels_*.npy of your own.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(parser=_whole, metavar="N", help="Of --workload train: of the descent; 0: chosen on validation."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Of --workload train: learning rate; 0: chosen on validation.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Name or TOML file of a suite (default: quick, or train); the other options replace its values."
        ),
    ] = None,
    bandwidth: Bandwidth = None,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler whose workers run the trials; local: one, here.")
    ] = None,
    effort: Effort = "full",
    data_dir: DataDir = None,
    out: Annotated[
        Path | None, typer.Option(parser=_path, metavar="PATH", help="Folder of the run; the same folder resumes it.")
    ] = None,
) -> None:
    """Run trials and write records, report.html and results (CSV, Parquet, Markdown)."""
    from rich.console import Console

    from bench import suite as suites
    from bench.files import writer_of
    from bench.record import Store, records_in

    bandwidth_bit_per_s = _bandwidth(bandwidth)
    suite = suite or ("train" if workload == "train" else "quick")
    if cluster == "":
        raise typer.BadParameter("an address, not nothing", param_hint="'--cluster'")
    changes = {
        "workload": workload,
        "features": features and str(Path(features).expanduser().absolute()),
        "steps": steps,
        "rate": rate,
        "backend": _split(backend, "--backend"),
        "model": _split(model, "--model"),
        "task": _split(task, "--task"),
        "data": [own] if (own := _task("", data, kind, size)) else [],
        "scenario": _split(scenario, "--scenario"),
        "model_privacy": _split(model_privacy, "--model-privacy"),
        "threads": _whole_numbers(threads, "--threads"),
        "images": images,
        "seed": seed,
        "timeout_s": timeout,
        "precision": precision,
        "sampling_s": sampling_time,
    }
    try:
        changes = {k: v for k, v in changes.items() if v not in (None, [])}
        if task:
            if data:
                _fail("--data takes the place of --task: give one of them", USAGE)
            changes["data"] = []
        trials, notes = _trials(suite, changes, data_dir, size)
    except (suites.SuiteError, tasks.DataError) as error:
        _fail(str(error), USAGE)
    from bench.trials import Options  # slow to import: not for a usage error

    if cluster in (None, "local"):
        notes += _untrained(trials, data_dir)
    trials = suites.interleave(trials, order)
    folder = out or Path("reports") / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{Path(suite).stem}"
    with ExitStack() as stack:
        try:
            stack.enter_context(writer_of(folder))
            store = Store(folder / "records")
            workers = stack.enter_context(_connect(cluster)) if cluster else None
            notes += workers.notes() if workers else []
            _start(folder, suite, notes, bandwidth_bit_per_s)
        except OSError as error:
            full = "; the disk is full: free some space, or" if error.errno in DISK_FULL else f": {error.strerror};"
            _fail(f"cannot write to {folder}{full} choose another --out", USAGE)
        for note in notes:
            print(note)
        _warn(store.damaged)
        options = Options(data_dir and data_dir.resolve(), memory_limit, effort)
        try:
            all_ok, rows = _run_all(trials, folder, store, options, workers)
            _write_report(folder)
            from bench.report.terminal import fitting
        except KeyboardInterrupt as end:
            _warn([f"{in_words(end)}; {_resume(folder)}"])
            if any(records_in(folder)):
                _write_report(folder)
            sys.exit(exit_code(end))
        except RunError as error:
            _fail(f"{error}; {_resume(folder)}", FAILED)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            _fail(f"the disk is full; free some space, {_resume(folder)}", FAILED)
    console = Console()
    console.print(fitting(console, ROW, rows, left=["status"]))
    sys.exit(OK if all_ok else FAILED)


def _resume(folder: Path) -> str:
    return f"finished records are in {folder}, run the same command with --out {folder} to resume"


def _split(values: list[str] | None, option: str) -> list[str]:
    """At commas, but for those in the name of a file."""
    parts = [part for v in values or [] for part in ([v] if os.path.isfile(v) else v.split(",")) if part]
    if values and not parts:
        raise typer.BadParameter("a name, not nothing", param_hint=f"'{option}'")
    return parts


def _task(task: str, data: str | None, kind: str | None, size: int | None) -> str:
    """The name of the task that these options ask for."""
    if size not in (None, tasks.SIZE, *tasks.SIZES):
        raise typer.BadParameter(f"28, {', '.join(map(str, tasks.SIZES))}", param_hint="'--size'")
    if kind and not data:
        raise typer.BadParameter("it is that of --data, which is not given", param_hint="'--kind'")
    if not data:
        return tasks.sized(task, size) if task and not tasks.is_own(task) else task
    if not tasks.is_own(data):
        raise tasks.DataFileError(f"{data} is no .npz file: save images and labels with numpy.savez, as MedMNIST does")
    return f"{data}:{kind}" if kind else data


def _whole_numbers(values: list[str] | None, option: str) -> list[int]:
    try:
        return [int(part) for part in _split(values, option)]
    except ValueError:
        raise typer.BadParameter("whole numbers, separated by commas", param_hint=f"'{option}'") from None


def _bandwidth(text: str | None) -> float | None:
    """``100Mbit`` in bits per second."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)bit", text or "")
    if text is not None and not (match and 0 < float(match[1]) < 1e9):
        raise typer.BadParameter("a number and kbit, Mbit or Gbit, as 100Mbit", param_hint="'--bandwidth'")
    return float(match[1]) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]] if match else None


def _trials(name: str, changes: dict, data_dir: Path | None, size: int | None = None) -> tuple[list[Trial], list[str]]:
    """The trials of a suite after the options, all names checked, and what a reader has to know about them."""
    import msgspec

    from bench import suite as suites
    from bench.machine import available_threads

    suite, notes = suites.read(name), []

    def small_tasks() -> list[str]:
        known = [
            tasks.task(_task(t.name, None, None, size))
            for t in tasks.tasks().values()
            if not t.embedded and t.samples["train"] <= suites.SMALL_TRAINING_SPLIT
        ]
        small = [t.name for t in known if tasks.find(t, data_dir)]
        if not small and size not in (None, tasks.SIZE):
            raise tasks.DataError(
                f"no MedMNIST files of {size} pixels were found: name one with --task, or give --data-dir"
            )
        if not small:
            notes.append("MedMNIST files were not found, so this run uses the embedded task digits (scikit-learn).")
        return small or ["digits"]

    try:
        blocks = [msgspec.convert(msgspec.to_builtins(block) | changes, suites.Block) for block in suite.trials]
    except msgspec.ValidationError as error:
        raise suites.SuiteError(f"invalid option: {error}") from error
    for block in blocks:
        named = [block.task] if isinstance(block.task, str) else block.task
        block.task = [one if one.startswith("@") else _task(one, None, None, size) for one in named]
    default = [info.name for info in backends().values() if not info.test_only]
    trials = suites.expand(blocks, default, small_tasks, available_threads())
    for trial in trials:
        if trial.workload == "train":
            _check_features(trial)
        elif trial.steps or trial.rate or trial.features:
            raise suites.SuiteError("--steps, --rate and --features are of --workload train")
        else:
            _check_preset(trial.model, resolve(trial.backend)[0].lowering, trial.backend)
    inferences = [trial for trial in trials if trial.workload == "inference"]
    for model, task in dict.fromkeys((trial.model, trial.task) for trial in inferences):
        zoo.check(model, described := tasks.task(task))
        notes += _resized(model, described)
    return trials, list(dict.fromkeys(notes))


def _resized(model: str, task: tasks.Task) -> list[str]:
    """What a reader has to know about images that a model's client resizes."""
    if (latent := inputs.LATENTS.get(model)) is None or latent.size(task) == task.size:
        return []
    before, after = ("×".join(map(str, size)) for size in (task.size, latent.size(task)))
    return [
        f"{model} on {task.name}: the client resizes images of {before} to {after}, so its costs are those of large images, "
        "its accuracy is not."
    ]


def _check_features(trial: Trial) -> None:
    """Raises UnknownModel; DataError for a folder or a task that is of no use."""
    from models import features

    if trial.model not in features.KINDS or (trial.model == "files") != bool(trial.features):
        raise catalogue.UnknownModel(
            f"unknown model {trial.model!r} of a training: choose pixels, or name a folder with --features"
        )
    task = tasks.task(trial.task)
    if trial.features:
        features.from_folder(trial.features, task)


def _check_preset(model: str, lowering: str, backend: str) -> None:
    """Raises UnknownModel for a preset, which is an integer network, where another lowering would run."""
    if catalogue.preset(model) and lowering != "integer":
        raise catalogue.UnknownModel(
            f"{model} is a preset of integer networks, and {backend} runs {lowering} ones: "
            f"choose --model {catalogue.base(model)}, or a backend of integer networks (tfhe)"
        )


def _untrained(trials: list[Trial], data_dir: Path | None) -> list[str]:
    """What to know before networks are trained that cannot be kept."""
    inferences = [trial for trial in trials if trial.workload == "inference"]
    wanted = {(trial.model, trial.task, resolve(trial.backend)[0].lowering) for trial in inferences}
    described = ((model, tasks.task(task), ("float", lowering)) for model, task, lowering in wanted)
    new = {
        f"{m} for {t.name}" for m, t, which in described if tasks.find(t, data_dir) and not zoo.is_trained(m, t, which)
    }
    if not new or not (why := zoo.unwritable()):
        return []
    return [
        f"This run trains {', '.join(sorted(new))} and does not keep the networks ({why}): "
        "to keep them, set XDG_CACHE_HOME to a folder that can be written to."
    ]


def _start(folder: Path, suite: str, notes: list[str], bandwidth_bit_per_s: float | None) -> None:
    """Adds this command to the run file."""
    import msgspec

    from bench.files import printable, replace
    from bench.report.reading import About, Command

    (folder / "records").mkdir(exist_ok=True)
    about = About.load(folder / "run.json")
    command = printable(shlex.join(["python", "-m", "bench", *sys.argv[1:]]))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = About(
        suite=printable(suite),
        notes=list(dict.fromkeys([*about.notes, *map(printable, notes)])),
        commands=[*about.commands, Command(command, now)],
        bandwidth_bit_per_s=bandwidth_bit_per_s or about.bandwidth_bit_per_s,
    )
    replace(folder / "run.json", msgspec.json.format(msgspec.json.encode(about), indent=1) + b"\n")


def _connect(address: str) -> AbstractContextManager[Cluster]:
    try:
        from bench import cluster
    except ModuleNotFoundError as error:
        raise RunError(f"--cluster needs {error.name}: pip install 'fhe-medmnist-bench[cluster]'") from error
    return cluster.connect(address)


def _run_all(
    trials: list[Trial], folder: Path, store: Store, options: Options, workers: Cluster | None
) -> tuple[bool, list[tuple[str, ...]]]:
    """Whether all trials are ok or not supported, and a row of each. The records are on disk alone: a run may have many."""
    from bench.trials import here

    rows, all_ok = [], True
    with _progress(len(trials)) as report:
        run = workers.run if workers else here
        with closing(run(trials, options, store, folder, report)) as records:
            for number, record in enumerate(records, 1):
                outcome = f"{record.status}, {record.reason}" if record.reason else record.status
                report(number, f"{record.trial.label}: {outcome}", finished=True)
                rows.append(_row(record))
                all_ok = all_ok and (record.status == "ok" or record.unsupported)
    return all_ok, rows


@contextmanager
def _progress(total: int) -> Iterator[Report]:
    """A bar with the current stage and the time left; outside a terminal, a line for each finished trial and milestone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:

        def line(completed: float | None, text: str, finished: bool = False, milestone: bool = False) -> None:
            if finished:
                text = f"[{completed:.0f}/{total}] {text}"
            if finished or milestone:
                print(text, file=sys.stderr, flush=True)

        yield line
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)

        def update(completed: float | None, text: str, finished: bool = False, milestone: bool = False) -> None:
            bar.update(task, completed=completed, description=text)
            if finished:
                bar.console.print(text)

        yield update


def _write_report(folder: Path, bandwidth_bit_per_s: float | None = None, across_machines: bool = False) -> None:
    from bench import report

    found = report.read(folder, bandwidth_bit_per_s, across_machines)
    _warn(found.left_out)
    print(*report.write_files(found, folder), sep="\n")


ROW = ("trial", "status", "accuracy", "server", "request", "keys")


def _row(record: Record) -> tuple[str, ...]:
    """What a run prints of a trial: the columns of `ROW`."""
    from bench import metrics
    from bench.report.quantity import with_unit
    from bench.report.table import SERVER_REQUEST, totals

    server = totals(record, SERVER_REQUEST)
    quality = metrics.quality(record.outputs) if record.outputs and record.outputs.encrypted_logits else None
    keys = sum(size for name, size in record.sizes.items() if name.endswith("_key_bytes"))
    return (
        record.trial.label,
        record.status,
        f"{quality.encrypted.accuracy.value:.1%}" if quality and quality.encrypted else "",
        with_unit(metrics.median_interval(server).value, "s") if server else "",
        with_unit(record.sizes["request_bytes"], "bytes") if "request_bytes" in record.sizes else "",
        with_unit(keys, "bytes") if keys else "",
    )


@app.command()
def explain(
    backend: Annotated[str, typer.Option()] = "ckks",
    model: Annotated[str, typer.Option(help="Name, or ONNX file of a network of your own.")] = "fcnn",
    task: Annotated[str, typer.Option()] = "digits",
    data: Data = None,
    kind: Kind = None,
    size: Size = None,
    scenario: Annotated[Scenario, typer.Option()] = "single-stream",
    model_privacy: Annotated[Privacy, typer.Option()] = "plain",
    threads: Threads = 0,
    data_dir: DataDir = None,
) -> None:
    """Print a backend's plan: layouts, levels, parameters, operations, predicted and measured time by layer."""
    from bench import explain as explanation
    from bench.machine import available_threads
    from bench.process import TrialError
    from bench.record import Trial
    from bench.trials import subject

    info, _ = resolve(backend)
    _check_preset(model, info.lowering, backend)
    task = _task(task, data, kind, size)
    zoo.check(model, tasks.task(task))
    trial = Trial(
        backend=backend,
        model=model,
        task=task,
        scenario=scenario,
        model_privacy=model_privacy,
        threads=threads or available_threads(),
    )
    with _progress(1) as bar:
        given = subject(task, model, info.lowering, data_dir, bar)
    try:
        explanation.show(trial, given)
    except TrialError as error:
        _fail(error.reason, FAILED)


@app.command()
def tune(
    backend: Annotated[str, typer.Option()] = "tfhe",
    model: Annotated[str, typer.Option()] = "fcnn",
    task: Annotated[str, typer.Option()] = "digits",
    data: Data = None,
    kind: Kind = None,
    size: Size = None,
    budget: Annotated[str, typer.Option(help="Time of this call: 90s, 30m, 2h.")] = "30m",
    threads: Threads = 0,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=_path, metavar="PATH", help="Folder of the search; the same folder resumes it."),
    ] = None,
) -> None:
    """Search the frontier of accuracy, latency and key bytes of a model's integer network."""
    from bench import tune as tuning
    from bench.machine import available_threads
    from bench.process import TrialError

    info, _ = resolve(backend)
    if info.lowering != "integer" or not tuning.tunable(model) or catalogue.preset(model):
        _fail(
            f"nothing to search for {backend} and {model}: choose a backend of integer networks and a plain model",
            USAGE,
        )
    try:
        described, budget_s = tasks.task(_task(task, data, kind, size)), tuning.seconds(budget)
    except (tasks.DataError, ValueError) as error:
        _fail(str(error), USAGE)
    folder = out or Path("reports") / f"tune-{backend}-{model}-{described.name}"
    dataset = tasks.load(described, data_dir)
    try:
        with tuning.writing(folder), _progress(1) as bar:
            search = tuning.Search(backend, model, described, dataset, folder, threads or available_threads())
            print(f"{len(search.finished)} trials are in {folder}")
            frontier = search.run(budget_s, lambda share, text: bar(share, text))
    except TrialError as error:
        _fail(error.reason, FAILED)
    except KeyboardInterrupt as end:
        again = f"run the same command with --out {folder} to go on with its finished trials"
        _fail(f"{in_words(end)}; {again}", exit_code(end))
    print(f"{frontier.networks} networks, {len(frontier.rows)} on the frontier: {folder / 'frontier.html'}")


@app.command()
def report(
    run_folder: RunFolder,
    bandwidth: Bandwidth = None,
    figures: Annotated[bool, typer.Option("--figures", help="SVG and PDF figures for papers too.")] = False,
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Rank costs of different machines, as if they were one.")
    ] = False,
) -> None:
    """Make report.html and results (CSV, Parquet, Markdown) again from the records of a run."""
    _write_report(run_folder, _bandwidth(bandwidth), across_machines)
    if figures:
        from bench.report import write_figures

        print(*write_figures(run_folder), sep="\n")


@app.command()
def show(
    run_folder: RunFolder,
    trial: Annotated[
        str | None, typer.Argument(help="Start of a key, or a part of a name; all trials without it.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Of the trial, the classes or labels of these names or numbers alone.")
    ] = None,
) -> None:
    """Show a run, or one trial of it, in the terminal."""
    from rich.console import Console

    from bench.report import read, terminal

    run = read(run_folder)
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
    if trial is None and label:
        raise typer.BadParameter("it is that of a TRIAL, which is not given", param_hint="'--label'")
    if trial is None:
        terminal.show_run(run, console)
        return
    found = terminal.find(run, trial)
    if not found:
        _fail(f"no trial {trial!r} in {run_folder}: `python -m bench show {run_folder}` lists them", USAGE)
    try:
        for index in found:
            if label:
                terminal.show_labels(run, index, _split(label, "--label"), console)
            else:
                terminal.show_trial(run, index, console)
    except terminal.UnknownLabel as error:
        _fail(str(error), USAGE)


@app.command()
def export(
    run_folder: RunFolder,
    to: Annotated[str, typer.Option(help="pytest-benchmark or pyperf")],
    out: Annotated[
        Path | None, typer.Option(parser=_path, metavar="PATH", help="File (default: in the folder of the run).")
    ] = None,
) -> None:
    """Write the timings of a run as a file of another tool."""
    from bench import export as exports
    from bench.report import read

    if to not in exports.FORMATS:
        _fail(f"cannot export to {to!r}: choose from {', '.join(exports.FORMATS)}", USAGE)
    run = read(run_folder)
    path = out or run_folder / f"{to}.json"
    try:
        path.write_text(exports.FORMATS[to](run), "utf-8")
    except ModuleNotFoundError:
        _fail(f"this needs {to}: pip install {to}", FAILED)
    print(path)


@app.command()
def claims(run_folder: RunFolder) -> None:
    """Print published figures beside those of a run, as Markdown."""
    from bench.report import markdown, read

    print(markdown.claims_page(read(run_folder).trials), end="")


@app.command()
def schema() -> None:
    """Print the columns of results.csv and results.parquet, as Markdown."""
    from bench.report import markdown

    print(markdown.schema(), end="")


@app.command()
def check(run_folder: RunFolder) -> None:
    """Say which figures of a run are unstable, and why. Exit code 1 if any is."""
    from bench.record import newest
    from bench.report import check as checks

    records, left_out = newest(run_folder)
    _warn(left_out)
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
    from bench.report import compare as comparing

    try:
        result = comparing.compare(first, second, comparing.limits(fail_if or []), force)
    except comparing.CompareError as error:
        _fail(str(error), USAGE)
    comparing.show(result)
    sys.exit(REGRESSION if fail_if and (result.regressions or result.broken) else OK)


@app.command()
def train(
    model: Annotated[str | None, typer.Option(help="Name of one of our models (default: fcnn).")] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="ONNX file with Relu: replaces these by polynomials and fine-tunes.")
    ] = None,
    task: Annotated[str, typer.Option()] = "digits",
    data: Data = None,
    kind: Kind = None,
    size: Size = None,
    effort: Effort = "full",
    seed: Annotated[int, typer.Option(parser=_whole, metavar="N")] = 0,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None, typer.Option(parser=_path, metavar="PATH", help="Folder for a copy of the trained networks.")
    ] = None,
) -> None:
    """Train all lowerings of a model for a task; they are kept in the user cache, where runs find them.

    With --from, make a network with polynomials from one of your own with Relu. An interrupted training of a model goes on
    from where it was.
    """
    if source and model:
        _fail("--from takes the place of --model: give one of them", USAGE)
    name = source or model or "fcnn"
    try:
        described = tasks.task(_task(task, data, kind, size))
    except tasks.DataError as error:
        _fail(str(error), USAGE)
    if source:
        from models import own

        own.fitted(source, described)  # raises NetworkFileError
    else:
        zoo.trainable(name, described)
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out).close()
        elif why := zoo.unwritable():
            _fail(
                f"the networks could not be kept ({why}): set XDG_CACHE_HOME to another folder, or give --out", FAILED
            )
    except OSError as error:
        _fail(f"cannot write to {out}: {error.strerror}; choose another --out", USAGE)
    dataset = tasks.load(described, data_dir)
    from bench.trials import training  # slow to import: not for an error

    with _progress(1) as bar:
        told = training(bar, name, described.name)
        if source:
            from models import own_training

            trained = own_training.train(source, described, dataset, seed=seed, effort=effort, progress=told)
            networks, keep = {"polynomial": trained.network}, lambda: own_training.keep(trained, described)
        else:
            networks = zoo.train(name, described, dataset, seed=seed, effort=effort, progress=told)
            keep = lambda: zoo.keep(networks)  # noqa: E731
    if source:
        for split, of in trained.scores.items():
            before, after = of["original"]["accuracy"], of["polynomial"]["accuracy"]
            print(f"{split:<12} accuracy {before:.1%} with Relu, {after:.1%} with polynomials")
    for lowering, network in networks.items():
        if out:
            network.save(out / f"{described.name}.{lowering}")
        if not source:
            print(f"{lowering:<12} {json.dumps(network.provenance.get('test', network.provenance))[:160]}")
    try:
        keep()
    except OSError as error:
        if not out:
            _fail(f"the networks could not be kept: {error.strerror}; give --out", FAILED)


@app.command()
def synthetic(
    like: Annotated[str, typer.Option(help="Task whose description the data shall have.")] = "chestmnist",
    out: Annotated[
        Path, typer.Option(parser=_path, metavar="PATH", help="The file, for --data; its name ends in .npz.")
    ] = Path("synthetic.npz"),
    images: Annotated[int, typer.Option(min=1, max=1_000_000, help="Of all splits together.")] = 2000,
    size: Size = None,
    seed: Annotated[int, typer.Option(parser=_whole, metavar="N")] = 0,
) -> None:
    """Write synthetic data of the description of a task, to try what is made for it; every report says that it is such."""
    try:
        task = tasks.task(_task(like, None, None, size))
    except tasks.DataError as error:
        _fail(str(error), USAGE)
    if tasks.is_own(like) or not tasks.is_own(str(out)):
        _fail("--like names a task, and --out a file that ends in .npz", USAGE)
    if images < 10 * task.outputs:
        _fail(f"{task.name} has {task.outputs} classes or labels: ask for at least {10 * task.outputs} images", USAGE)
    from bench.files import replace
    from models.synthetic import npz

    replace(out, npz(task, images, seed))
    print(f"{out}: python -m bench run --data {shlex.quote(str(out))} --model latentcnn-se --effort quick")


@app.command()
def test(backend: Annotated[list[str] | None, typer.Option(help="Backends to test (default: all).")] = None) -> None:
    """Run the conformance suite against backends, registered ones of other packages included."""
    try:
        import pytest
    except ModuleNotFoundError:
        _fail("the conformance suite needs pytest: pip install pytest", FAILED)
    names = _split(backend, "--backend") or [name for name, info in backends().items() if not info.test_only]
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
