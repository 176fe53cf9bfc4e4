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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
import sqlalchemy.exc
from optuna.trial import TrialState

from backends import wire
from backends.registry import resolve
from bench.files import RunError, replace, writer_of
from bench.frontier import Frontier, unbeaten
from bench.process import Party, TrialError
from bench.runner import CALIBRATION_IMAGES
from models import presets, train
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
TRIALS = "trials.sqlite"
DIRECTIONS = {"accuracy": "maximize", "complexity": "minimize", "uncompressed_key_bytes": "minimize"}


def seconds(text: str) -> float:
    """``90s``, ``30m``, ``1.5h``. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no time: write 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def space(trial: optuna.Trial, model: str) -> tuple[presets.Preset, dict[str, Any]]:
    """What a trial tries: how the network is made, and the options of the compiler."""
    activation = trial.suggest_categorical("activation", ["square", "relu", "sign"])
    accumulator = trial.suggest_categorical("accumulator_bits", [3, 4, 5, 6, 7, None])
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
        if name.partition("@")[0] == model and bits["accumulator_bits"] is not None:
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
        """Searches, measures and saves the frontier, which is returned. restart_budget: scales training, for tests."""
        start = time.monotonic()
        recipe = Recipe(self.task, 0, restart_budget)
        pool, validation = self._views(recipe, lambda f, text: progress(0.0, text))
        with Party("owner", self.info, self.threads, self.folder / "owner.log", start + budget_s + TIMEOUT_S) as owner:

            def objective(trial: optuna.Trial) -> tuple[float, ...]:
                share = (time.monotonic() - start) / budget_s
                progress(share, f"{len(self.finished)} trials finished, training number {trial.number}")
                preset, options = space(trial, self.model)
                network = recipe.one_integer(self.model, preset, pool, 0, lambda f, text: None)
                network.save(self.folder / "networks" / str(trial.number))
                try:
                    cost = self._explain(owner, network, options)
                except TrialError as error:
                    trial.set_user_attr("refused", error.reason)
                    raise optuna.TrialPruned(error.reason) from error
                trial.set_user_attr("options", options)
                trial.set_user_attr("operations", cost["operations"])
                trial.set_user_attr("parameters", cost["parameters"])
                accuracy = _accuracy(network, validation, self.task.multi_label)
                return accuracy, cost["parameters"]["complexity"], sum(cost["bytes"].values())

            while time.monotonic() - start + self._measuring_s() < budget_s or not self.finished:
                self.study.optimize(objective, n_trials=1)
        rows = self._measured(start, budget_s, progress)
        frontier = Frontier(
            backend=self.backend, model=self.model, task=self.task.name, networks=len(self.finished), rows=rows
        )
        frontier.save(self.folder)
        progress(1.0, f"{len(self.finished)} trials, {len(rows)} on the frontier")
        return frontier

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

    def _calibration(self) -> bytes:
        images = self.dataset.train.images
        chosen = np.random.default_rng(0).permutation(len(images))[:CALIBRATION_IMAGES]
        return wire.array_to_bytes(normalise(images[chosen]))

    def _ask(self, owner: Party, operation: str, network: Network, options: dict[str, Any]) -> wire.Message:
        job = {"variant": self.variant, "threads": self.threads, "options": options}
        return owner.call(operation, {"job": job}, network=network.to_bytes(), calibration=self._calibration())

    def _explain(self, owner: Party, network: Network, options: dict[str, Any]) -> dict[str, Any]:
        return self._ask(owner, "explain", network, options).header["explanation"]

    # -- latency of the survivors --------------------------------------------------------------------------------------

    def _measuring_s(self) -> float:
        """What measuring the frontier as it is now will take, about."""
        if not self.finished:
            return 0.0
        left = [trial for trial in self.study.best_trials if _measurement(trial) not in self.study.user_attrs]
        return sum(PARTIES_S + (WARM_UP + REQUESTS) * trial.values[1] / OPERATIONS_PER_S for trial in left)

    def _measured(self, start: float, budget_s: float, progress: Progress) -> list[dict[str, Any]]:
        """Rows of the frontier, best accuracy first; those that the budget leaves time for with their latency."""
        survivors = sorted(self.study.best_trials, key=lambda trial: -trial.values[0])
        rows = []
        for trial in survivors:
            row = {"number": trial.number, **dict(zip(DIRECTIONS, trial.values)), **trial.params}
            row["operations"] = trial.user_attrs["operations"]
            measured = self.study.user_attrs.get(_measurement(trial))
            share = (time.monotonic() - start) / budget_s
            if measured is None and (share < 1 or not rows):
                progress(min(share, 1.0), f"measuring {len(rows) + 1} of {len(survivors)}")
                network = Network.load(self.folder / "networks" / str(trial.number))
                try:
                    measured = self._latency(network, trial.user_attrs["options"])
                except TrialError as error:
                    measured = {"reason": error.reason}
                self.study.set_user_attr(_measurement(trial), measured)
            rows.append(row | (measured or {}))
        return unbeaten(rows)

    def _latency(self, network: Network, options: dict[str, Any]) -> dict[str, Any]:
        """Encrypted, on validation images; medians. Raises TrialError."""
        deadline = time.monotonic() + TIMEOUT_S
        with ExitStack() as stack:

            def party(role: str) -> Party:
                return stack.enter_context(Party(role, self.info, self.threads, self.folder / f"{role}.log", deadline))

            prepared = self._ask(party("owner"), "prepare", network, options)
            client, server = party("client"), party("server")
            client.call("load", artifact=prepared.blobs["client"])
            server.call("load", artifact=prepared.blobs["server"])
            keys = client.call("keygen", {"seed": 0})
            server.call("load_keys", **keys.blobs)
            encrypt, infer = [], []
            for image in normalise(self.dataset.val.images[: WARM_UP + REQUESTS]):
                reply = client.call("encrypt", images=wire.array_to_bytes(image[None]))
                encrypt.append(reply.header["wall_s"])
                request = client.call("serialise").blobs["message"]
                server.call("deserialise", message=request)
                infer.append(server.call("infer").header["wall_s"])
        return {
            "encrypt_s": median(encrypt[WARM_UP:]),
            "infer_s": median(infer[WARM_UP:]),
            "keygen_s": keys.header["wall_s"],
            "key_bytes": sum(map(len, keys.blobs.values())),
            "request_bytes": len(request),
        }


def _measurement(trial: optuna.trial.FrozenTrial) -> str:
    """Name of the study's attribute that keeps it."""
    return f"measured {trial.number}"


def _accuracy(network: Network, validation: Labelled, multi_label: bool) -> float:
    """Over the validation split and views of it."""
    logits = network.forward(validation.images.numpy() / 255)
    if multi_label:
        return float(np.mean((logits > 0) == validation.targets.numpy()))
    return float(np.mean(logits.argmax(1) == validation.targets.argmax(1).numpy()))
