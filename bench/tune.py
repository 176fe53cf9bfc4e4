"""``python -m bench tune``: searches for the frontier accuracy × latency × key bytes of a model under TFHE.

A trial trains one integer network (a student and its fine-tuning behind quantisers, as `models.train` does), scores it on
validation images by the lowered network in the clear, and asks the backend's owner what its compiled circuit would cost,
without keys. The networks on the frontier are then run encrypted, and those whose measured costs another beats are left
out. No test image is looked at.

Everything lies in one folder: trials in an SQLite file, so that a search that was killed goes on where it was; a network
for each trial; ``frontier.json``, ``frontier.csv`` and ``frontier.html``.
"""

from __future__ import annotations

import dataclasses
import io
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import optuna
import sqlalchemy.exc
from optuna.trial import TrialState

from backends.registry import resolve
from bench.files import RunError, replace, writer_of
from bench.frontier import Frontier, unbeaten
from bench.process import TrialError
from bench.runner import calibration
from bench.session import Place, Session, Work
from models import catalogue, presets, train
from models.network import Network
from models.quantised import Quantisation
from models.tasks import Dataset, Task, normalise
from models.train import Labelled, Recipe

Progress = Callable[[float, str], None]  # share of the budget, what is going on

REQUESTS, WARM_UP = 5, 2  # whose median is a latency, and those before
TIMEOUT_S = 300.0
# What measuring a network takes, about: it decides when searching stops.
PARTIES_S = 30.0  # to start, prepare and make keys
OPERATIONS_PER_S = 5e9  # of the compiler's complexity
OWNER_DEATHS = 3  # over one network, after which a search ends
TRIALS = "trials.sqlite"
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "complexity": "minimize",
    "uncompressed_key_bytes": "minimize",
}


def tunable(model: str) -> bool:
    """Whether the integer network of a model is fine-tuned, which is what is searched."""
    return model in catalogue.MODELS and presets.PRESETS[catalogue.integer_network(model)].fine_tuned


def seconds(text: str) -> float:
    """``90s``, ``30m``, ``1.5h``. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no time: write 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def space(trial: optuna.Trial, model: str) -> tuple[presets.Preset, dict[str, Any]]:
    """What a trial tries: how the network is made, and the options of the compiler."""
    activation = trial.suggest_categorical("activation", ["square", "relu", "sign"])
    accumulator: Any = trial.suggest_categorical("accumulator_bits", [3, 4, 5, 6, 7, None])
    bits = Quantisation(
        input_bits=trial.suggest_int("input_bits", 1, 6),
        weight_bits=trial.suggest_int("weight_bits", 2, 8),
        accumulator_bits=accumulator,
        activation_bits=1 if activation == "sign" else trial.suggest_int("activation_bits", 2, 5),
        output_weight_bits=trial.suggest_int("output_weight_bits", 2, 5),
        pruning=trial.suggest_categorical("pruning", [0.0, 0.5, 0.8]),
    )
    architecture = {}
    if model == "fcnn":
        architecture = {
            "hidden": trial.suggest_categorical("hidden", [4, 8, 12, 16, 24, 32, 48, 64]),
            "pooling": trial.suggest_categorical("pooling", [1, 2, 4]),
        }
    options = {
        "p_error": trial.suggest_categorical("p_error", [0.2, 0.05, 0.01, 1e-3, 1e-4]),
        "exactness": trial.suggest_categorical("exactness", ["approximate", "exact"]),
        "glwe_dimensions": {"1": [1], "1-2": [1, 2], "any": []}[
            trial.suggest_categorical("glwe_dimensions", ["1", "1-2", "any"])
        ],
    }
    return presets.Preset(bits, "polynomial" if activation == "square" else "float", architecture), options


def known(model: str) -> dict[str, dict[str, Any]]:
    """The shipped presets of a model as points of `space`, from which a search starts."""
    points = {}
    for name, preset in presets.PRESETS.items():
        bits = dataclasses.asdict(preset.bits)
        if catalogue.base(name) == model and bits["accumulator_bits"] is not None:
            activation = "square" if preset.real == "polynomial" else "relu"
            options = {"p_error": 1e-4, "exactness": "approximate", "glwe_dimensions": "1"}
            points[name] = {"activation": activation, **bits, "pooling": 1, **preset.architecture, **options}
    return points


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Holds the folder of a search. Raises RunError if another search holds it or its trials cannot be read or written."""
    with writer_of(folder):
        try:
            yield
        except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError) as error:
            reason = getattr(error.__cause__, "orig", None) or getattr(error, "orig", None) or error.__cause__ or error
            raise RunError(
                f"{folder / TRIALS}: {reason}; free some space if the disk is full, or delete it to start anew"
            ) from error


class Search:
    """One folder's search. Making it reads what an earlier one left; raises RunError if that was another search."""

    def __init__(self, backend: str, model: str, task: Task, dataset: Dataset, folder: Path, threads: int) -> None:
        self.backend, (self.info, self.variant) = backend, resolve(backend)
        self.model, self.task, self.dataset, self.folder, self.threads = model, task, dataset, folder, threads
        (folder / "networks").mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of groups and names of metrics
        name, storage = f"{backend} {model} {task.name}", f"sqlite:///{folder / TRIALS}"
        for other in set(optuna.get_all_study_names(storage)) - {name}:
            raise RunError(f"{folder} is a search for {other}, not for {name}: choose another --out")
        self.study = optuna.create_study(
            study_name=name,
            storage=storage,
            load_if_exists=True,
            directions=list(DIRECTIONS.values()),
            sampler=optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=12),
        )
        self.study.set_metric_names(list(DIRECTIONS))
        # One that a killed search had begun is tried again.
        ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING)
        tried = {trial.user_attrs.get("preset") for trial in self.study.get_trials(deepcopy=False, states=ended)}
        for preset, point in known(model).items():
            if preset not in tried:
                self.study.enqueue_trial(point, {"preset": preset})

    @property
    def finished(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def run(self, budget_s: float, progress: Progress, restart_budget: float = 1.0) -> Frontier:
        """Searches, measures and saves the frontier, which is returned. restart_budget: scales training, for tests.

        Raises RunError: the time was over before one network was compiled, or the owner's process died again and again.
        """
        start = time.monotonic()

        def report(text: str) -> None:
            share = (time.monotonic() - start) / budget_s
            if share >= 1:
                raise _OutOfTime
            progress(share, text)

        recipe = Recipe(self.task, 0, restart_budget)
        try:
            pool, validation = self._views(recipe, lambda f, text: report(text))
            with self._session(start + budget_s) as owner:
                while time.monotonic() - start + self._measuring_s() < budget_s:
                    self.study.optimize(
                        lambda trial: self._objective(trial, owner, recipe, pool, validation, report), n_trials=1
                    )
        except _OutOfTime:
            pass
        if not self.finished:
            raise RunError(self._nothing(budget_s))
        rows = self._measured(start + budget_s, report)
        frontier = Frontier(
            backend=self.backend, model=self.model, task=self.task.name, networks=len(self.finished), rows=rows
        )
        frontier.save(self.folder)
        progress(1.0, f"{len(self.finished)} trials, {len(rows)} on the frontier")
        return frontier

    def _objective(
        self,
        trial: optuna.Trial,
        owner: Session,
        recipe: Recipe,
        pool: Labelled,
        validation: Labelled,
        report: Callable[[str], None],
    ) -> tuple[float, ...]:
        text = f"{len(self.finished)} trials finished, training number {trial.number}"
        report(text)
        preset, options = space(trial, self.model)
        network = recipe.one_integer(self.model, preset, pool, 0, lambda f, _: report(text))
        network.save(self.folder / "networks" / str(trial.number))
        try:
            cost = _explained(owner, self._work(network, options))
        except TrialError as error:
            trial.set_user_attr("refused", error.reason)
            raise optuna.TrialPruned(error.reason) from error
        trial.set_user_attr("options", options)
        trial.set_user_attr("operations", cost["operations"])
        trial.set_user_attr("parameters", cost["parameters"])
        accuracy = _accuracy(network, validation, self.task.multi_label)
        return accuracy, cost["parameters"]["complexity"], sum(cost["bytes"].values())

    def _nothing(self, budget_s: float) -> str:
        """Why there is no frontier."""
        refused = self.study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        why = f": the last of {len(refused)} was refused, {refused[-1].user_attrs['refused']}" if refused else ""
        return (
            f"{budget_s:g} s were over before one network was trained and compiled{why}; give a longer --budget "
            f"(a teacher alone may take minutes) and the same --out {self.folder}"
        )

    def _session(self, deadline: float) -> Session:
        return Session(self._work(None), Place(self.folder / "party", deadline))

    def _work(self, network: Network | None, options: dict[str, Any] | None = None) -> Work:
        """network: None while there is none to ask about."""
        return Work(self.info, self.variant, network, self._calibration, threads=self.threads, options=options or {})

    @cached_property
    def _calibration(self) -> np.ndarray:
        return calibration(self.dataset)

    def _views(self, recipe: Recipe, progress: Progress) -> tuple[Labelled, Labelled]:
        """The training pool with its teachers' opinions, and validation views; kept in the folder."""
        path = self.folder / "views.npz"
        if not path.exists():
            teachers = recipe.teachers(self.dataset.train, progress)
            pool = recipe.views(self.dataset.train, train.POOL_IMAGES, teachers)
            validation = recipe.views(self.dataset.val, train.VALIDATION_IMAGES)
            tensors = {"x": pool.images, "y": pool.targets, "vx": validation.images, "vy": validation.targets}
            file = io.BytesIO()
            np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})
            replace(path, file.getvalue())
        import torch

        try:
            with np.load(path) as arrays:
                x, y, vx, vy = (torch.from_numpy(arrays[name]) for name in ("x", "y", "vx", "vy"))
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"damaged {path}: {error}; delete it and run the same command") from error
        return Labelled(x, y), Labelled(vx, vy)

    # -- latency of the survivors --------------------------------------------------------------------------------------

    def _measuring_s(self) -> float:
        """What measuring the frontier as it is now will take, about."""
        if not self.finished:
            return 0.0
        left = [trial for trial in self.study.best_trials if _measurement(trial) not in self.study.user_attrs]
        return sum(map(_measuring_s, left))

    def _measured(self, deadline: float, report: Callable[[str], None]) -> list[dict[str, Any]]:
        """Rows of the frontier, best accuracy first; those that there is time left for with their latency."""
        survivors = sorted(self.study.best_trials, key=lambda trial: -trial.values[0])
        rows: list[dict[str, Any]] = []
        for trial in survivors:
            row = {"number": trial.number, **dict(zip(DIRECTIONS, trial.values)), **trial.params}
            row["operations"] = trial.user_attrs["operations"]
            measured = self.study.user_attrs.get(_measurement(trial))
            if measured is None and time.monotonic() + _measuring_s(trial) < deadline:
                report(f"measuring {len(rows) + 1} of {len(survivors)}")
                network = Network.load(self.folder / "networks" / str(trial.number))
                try:
                    measured = self._latency(self._work(network, trial.user_attrs["options"]))
                except TrialError as error:
                    measured = {"reason": error.reason}
                self.study.set_user_attr(_measurement(trial), measured)
            rows.append(row | (measured or {}))
        return unbeaten(rows)

    def _latency(self, work: Work) -> dict[str, Any]:
        """Encrypted, on validation images; medians. Raises TrialError."""
        with Session(work, Place(self.folder / "party", time.monotonic() + TIMEOUT_S)) as session:
            session.prepare()
            session.open()
            for number, image in enumerate(normalise(self.dataset.val.images[: WARM_UP + REQUESTS])):
                session.ask(image[None], "warm-up" if number < WARM_UP else "sample")
            stages, sizes = session.ledger.stages, session.ledger.sizes
        return {
            "encrypt_s": median(stages["client", "encrypt"].wall_s),
            "infer_s": median(stages["server", "infer"].wall_s),
            "keygen_s": stages["client", "keygen"].wall_s[0],
            "key_bytes": sum(size for name, size in sizes.items() if name.endswith("_key_bytes")),
            "request_bytes": sizes["request_bytes"],
        }


class _OutOfTime(Exception):
    """The budget of a search is over."""


def _explained(owner: Session, work: Work) -> dict[str, Any]:
    """What the owner says of this work. An owner that died is started again.

    Raises TrialError if it refuses, RunError if it dies OWNER_DEATHS times, `_OutOfTime`.
    """
    for _ in range(OWNER_DEATHS):
        try:
            return owner.explain(work)
        except TrialError as error:
            if error.status == "timeout":
                raise _OutOfTime from error
            if owner.alive:
                raise
            reason = error.reason
            owner.close()
    raise RunError(f"the owner's process died {OWNER_DEATHS} times over the same network: {reason}")


def _measuring_s(trial: optuna.trial.FrozenTrial) -> float:
    """What measuring a network will take, about."""
    return PARTIES_S + (WARM_UP + REQUESTS) * trial.values[1] / OPERATIONS_PER_S


def _measurement(trial: optuna.trial.FrozenTrial) -> str:
    """Name of the study's attribute that keeps it."""
    return f"measured {trial.number}"


def _accuracy(network: Network, validation: Labelled, multi_label: bool) -> float:
    """Over the validation split and views of it."""
    logits = network.forward(validation.images.numpy() / 255)
    if multi_label:
        return float(np.mean((logits > 0) == validation.targets.numpy()))
    return float(np.mean(logits.argmax(1) == validation.targets.argmax(1).numpy()))
