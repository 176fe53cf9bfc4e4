"""Carries out the trials of a run on this machine, one after another; `bench.cluster` does so on others."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from backends.registry import resolve
from bench import runner
from bench.files import DISK_FULL, printable
from bench.record import Record, Store, Trial
from bench.runner import Subject, Workload
from models import NetworkError, tasks, zoo
from models.tasks import Dataset

# Share of the work done (None: as before), what is going on; milestone=True if that deserves a line where no bar is shown.
Report = Callable[..., None]
MILESTONES = 10  # of a training


@dataclass(frozen=True)
class Options:
    """What is the same for all trials of a run, and no part of what they are. memory_limit_bytes: of a party; 0: none.

    effort: of training what nobody has trained yet, see `models.zoo.train`.
    """

    data_dir: Path | None = None
    memory_limit_bytes: int = 0
    effort: str = "full"


def here(
    trials: list[Trial], options: Options, store: Store, folder: Path, report: Report
) -> Generator[Record, None, None]:
    """The record of each trial as soon as it is stored; `folder` receives the logs of the parties."""
    for number, trial in enumerate(trials):

        def progress(
            share: float | None, text: str, milestone: bool = False, number: int = number, label: str = trial.label
        ) -> None:
            report(share if share is None else number + share, f"{label}: {text}", milestone=milestone)

        done = carry_out(trial, options, store.finished(trial), folder, progress)
        yield store.get(done) if isinstance(done, str) else store.add(done)


def carry_out(
    trial: Trial, options: Options, finished: Collection[str], folder: Path, progress: Report
) -> Record | str:
    """The trial's new record or, if its key is among those that are `finished`, this key.

    Whatever goes wrong with one trial becomes its record; a full disk, which would go wrong with all, raises OSError.
    """
    info, _ = resolve(trial.backend)
    wanted = trial.scenario, trial.model_privacy
    if why := info.refuses(*wanted, workload=trial.workload):
        return runner.unmeasured(trial, "skipped", f"not supported by {trial.backend}: {why}", unsupported=True)
    try:
        given = WORKLOADS[trial.workload](trial, options, progress)
        if why := info.refuses(*wanted, operators=given.operators, workload=trial.workload):
            return runner.unmeasured(trial, "skipped", f"not supported by {trial.backend}: {why}", unsupported=True)
        if (key := runner.key(trial, given, info)) in finished:
            return key
        stages = lambda stage, share: progress(share, stage)  # noqa: E731
        record = runner.run(trial, given, folder, stages, options.memory_limit_bytes)
        record.reason = printable(record.reason)
        return Record.decode(msgspec.json.encode(record))  # what could not be read again is no record
    except (tasks.DataError, NetworkError) as error:
        return runner.unmeasured(trial, "skipped", str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        return runner.unmeasured(trial, "failed", printable(f"outside the parties: {_in_words(error)}"))


def inference(trial: Trial, options: Options, progress: Report) -> Workload:
    lowering = resolve(trial.backend)[0].lowering
    return subject(trial.task, trial.model, lowering, options.data_dir, progress, options.effort)


def train(trial: Trial, options: Options, progress: Report) -> Workload:
    from bench.training import subject  # imports scikit-learn

    progress(None, f"choosing steps and rate on the validation images of {trial.task}")
    return subject(trial, options.data_dir)


# What a trial may do: name → its data and networks. Each raises DataError, NetworkError.
WORKLOADS: dict[str, Callable[[Trial, Options, Report], Workload]] = {"inference": inference, "train": train}


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def subject(
    task_name: str, model: str, lowering: str, data_dir: Path | None, progress: Report, effort: str = "full"
) -> Subject:
    """Loads the data and the networks of a trial; trains them if nobody has. Raises DataError, NetworkError."""
    task, dataset = tasks.task(task_name), _dataset(task_name, data_dir)
    told = training(progress, model, task_name)
    encoder = zoo.encoder(model, task, dataset=dataset, effort=effort, progress=told)
    reference, lowered = (
        zoo.network(model, task, which, dataset=dataset, effort=effort, progress=told) for which in ("float", lowering)
    )
    return Subject(task, dataset, reference, lowered, encoder)


def training(progress: Report, model: str, task_name: str) -> Callable[[float, str], None]:
    """What to give to `zoo` as its progress: says how far a training is and how long it will take."""
    start, reached = 0.0, -1

    def tell(share: float, text: str) -> None:
        nonlocal start, reached
        if reached < 0:
            start, text = time.monotonic(), f"nobody has trained it yet; {text}"
        milestone, reached = int(MILESTONES * share) > reached, int(MILESTONES * share)
        minutes = round((time.monotonic() - start) * (1 / share - 1) / 60) if reached else 0
        left = f", about {max(1, minutes)} min left" if 0 < reached < MILESTONES else ""
        progress(None, f"training {model} for {task_name}: {share:.0%}{left}: {text}", milestone=milestone)

    return tell


@lru_cache(maxsize=1)  # the trials of a task stand together, and a dataset may be large
def _dataset(task_name: str, data_dir: Path | None) -> Dataset:
    return tasks.load(tasks.task(task_name), data_dir)
