"""Suites: which trials a run consists of. A TOML file, or the options of the command line.

::

    name = "quick"
    [[trials]]
    backend = ["clear", "ckks"]     # each of these may be a list: the trials are all combinations
    model = "fcnn"
    task = ["breastmnist", "@small"]
    images = 20

    [[trials]]
    model = "net.onnx"              # files of the user's own, their paths relative to the current folder
    data = "mine.npz"               # instead of a task
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from random import Random
from typing import Annotated, Any

import msgspec

from backends.registry import Privacy, Scenario, Workload
from bench.record import Count, Trial

SUITES = Path(__file__).parent / "suites"
SMALL_TRAINING_SPLIT = 5000  # images: the tasks that ``@small`` stands for
USUAL_MODEL = {"inference": "fcnn", "train": "pixels"}


class SuiteError(ValueError):
    """A suite that does not exist or cannot be understood; the message says where."""


class Block(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Combinations of trials. ``@all`` stands for every backend, ``@small`` for the small tasks with data here.

    data: files of the user's own (`models.own_data`), instead of `task`.
    """

    backend: str | list[str] = "@all"
    workload: Workload = "inference"
    model: str | list[str] = ""
    task: str | list[str] = "@small"
    data: str | list[str] = []
    scenario: Scenario | list[Scenario] = "single-stream"
    model_privacy: Privacy | list[Privacy] = "plain"
    threads: Count | list[Count] = 0
    images: Count = 20
    seed: Count = 0
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=1e7)] = 600.0
    precision: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.05
    sampling_s: Annotated[float, msgspec.Meta(ge=0, le=1e7)] = 10.0
    steps: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    rate: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    features: str = ""


class Suite(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    trials: list[Block]


def read(name_or_path: str) -> Suite:
    """A suite of this package, or a TOML file. Raises SuiteError."""
    path = SUITES / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        raise SuiteError(f"no suite {name_or_path!r}: give a TOML file or one of {', '.join(names())}")
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Suite)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise SuiteError(f"{path}: {error}") from error


def names() -> list[str]:
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def expand(
    blocks: list[Block], all_backends: list[str], small_tasks: Callable[[], list[str]], default_threads: int
) -> list[Trial]:
    """All trials, each once, in the order written. small_tasks is asked only if ``@small`` occurs."""
    trials: dict[Trial, None] = {}
    for block in blocks:
        backends = [b for name in _list(block.backend) for b in (all_backends if name == "@all" else [name])]
        named = _list(block.data) or _list(block.task)
        tasks = [t for name in named for t in (small_tasks() if name == "@small" else [name])]
        axes = (
            tasks,
            _list(block.model or ("files" if block.features else USUAL_MODEL[block.workload])),
            _list(block.scenario),
            _list(block.model_privacy),
            _list(block.threads),
            backends,
        )
        for task, model, scenario, privacy, threads, backend in product(*axes):
            trial = Trial(
                backend=backend,
                model=model,
                task=task,
                scenario=scenario,
                model_privacy=privacy,
                threads=threads or default_threads,
                images=block.images,
                seed=block.seed,
                timeout_s=block.timeout_s,
                precision=block.precision,
                sampling_s=block.sampling_s,
                workload=block.workload,
                steps=block.steps,
                rate=block.rate,
                features=block.features,
            )
            trials[trial] = None
    return list(trials)


def interleave(trials: list[Trial], seed: int) -> list[Trial]:
    """The trials of each task in a random order, so that a machine that grows slower favours no backend.

    Tasks stay together, in the order written: only trials of one task are compared, and its data is loaded once.
    """
    tasks: dict[str, list[Trial]] = {}
    for trial in trials:
        tasks.setdefault(trial.task, []).append(trial)
    shuffle = Random(seed)
    return [trial for group in tasks.values() for trial in shuffle.sample(group, len(group))]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
