"""Trained networks for the models: shipped, cached or trained on first use; or of a user's own file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import NetworkFileError, inputs, own, tasks
from models.catalogue import LOWERINGS, MODELS, UnknownModel, base, integer_network, preset
from models.tasks import Dataset, Task

if TYPE_CHECKING:
    from models.encoder import Encoder
    from models.network import Network

HERE = Path(__file__).parent
SHIPPED = HERE / "weights"


# Trained by this process where the cache takes no files: by the stem of the files that there would be.
_unkept: dict[Path, Network] = {}


def network(
    model: str,
    task: Task,
    lowering: str,
    *,
    dataset: Dataset | None = None,
    data_dir: Path | str | None = None,
    effort: str = "full",
    progress: Callable[[float, str], None] | None = None,
) -> Network:
    """The trained network of a model for a task: shipped, else cached, else trained now (all lowerings) and cached. That of
    a user's file: as `models.own` lowers it.

    Where the cache takes no files (`unwritable`), networks that are trained now serve as long as this process lives.

    dataset: the loaded data, where the caller has it; else it is loaded if it is needed. effort: of a training, see `train`.
    Raises UnknownModel, `models.tasks.DataError`, `models.network.NetworkError` (damaged files).
    """
    if is_own(model):
        return own.network(model, task, lowering, dataset or tasks.load(task, data_dir))
    from models.network import Network

    stem = _find(model, task, lowering)
    if stem is not None:
        return Network.load(stem)
    if (known := _unkept.get(_stem(_cache(), model, task.name, lowering))) is not None:
        return known
    if lowering != "integer":
        model = base(model)
    trained = train(model, task, dataset or tasks.load(task, data_dir), effort=effort, progress=progress)
    try:
        keep(trained)
    except OSError:
        _unkept.update({_stem(_cache(), n.model, n.task, n.lowering): n for n in trained.values()})
    return trained[lowering]


def train(
    model: str,
    task: Task,
    dataset: Dataset,
    *,
    seed: int = 0,
    effort: str = "full",
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Network]:
    """Trains all lowerings anew; of a preset, the integer lowering alone.

    effort: ``full``, or ``quick``, which takes minutes and learns less (`models.train.EFFORTS`). A training that was
    interrupted goes on from where it was, if the cache takes files.
    """
    trainable(model, task)
    reads: dict[str, Any] = {}
    if (made := encoder(model, task, dataset=dataset, effort=effort, progress=progress)) is not None:
        reads["encoder"] = made
    from models.train import train  # torch, which is slow to import

    what = ("integer",) if preset(model) else LOWERINGS
    return train(model, task, dataset, what, seed=seed, effort=effort, keep=not unwritable(), progress=progress, **reads)


def encoder(
    model: str,
    task: Task,
    *,
    dataset: Dataset | None = None,
    data_dir: Path | str | None = None,
    effort: str = "full",
    progress: Callable[[float, str], None] | None = None,
) -> Encoder | None:
    """What the client makes the model's input with: shipped, cached, or trained now and cached. None: it reads images.

    Raises DataFileError for images that have no latent; else as `network`.
    """
    if (latent := inputs.LATENTS.get(model)) is None:
        return None
    inputs.shape(model, task)
    from models.encoder import Encoder
    from models.network import Network

    stem, kept = _found(latent.encoder, task, "float"), _stem(_cache(), latent.encoder, task.name, "float")
    if stem is not None:
        return Encoder(Network.load(stem), latent.quantised)
    if kept not in _unkept:
        from models import encoder_training
        from models.train import EFFORTS

        data = dataset or tasks.load(task, data_dir)
        trained = encoder_training.train(latent, data, share=EFFORTS[effort].share, effort=effort, progress=progress)
        _unkept[kept] = trained
        if not unwritable():
            store(trained, kept)
    return Encoder(_unkept[kept], latent.quantised)


def keep(networks: dict[str, Network]) -> None:
    """Puts them into the user cache, where `network` finds those that are not shipped. Raises OSError."""
    for trained in networks.values():
        store(trained, _stem(_cache(), trained.model, trained.task, trained.lowering))


def unwritable() -> str:
    """Why networks that are trained now could not be kept; "" if they can. To be asked before training, which is long."""
    folder = _cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder}: {error.strerror}"


def is_own(model: str) -> bool:
    """Whether a model is named by a user's file."""
    return model not in MODELS and own.is_file(model)


def check(model: str, task: Task) -> None:
    """Raises UnknownModel; NetworkFileError for a user's file that does not fit the task, and for an encoder that is not the
    one that a network was trained with; DataFileError for images that a model cannot read."""
    if is_own(model):
        own.fitted(model, task)
        return
    trainable(model, task)
    if model in inputs.LATENTS and _found(inputs.LATENTS[model].encoder, task, "float"):
        made = encoder(model, task)
        assert made is not None
        for lowering in LOWERINGS:
            if (stem := _find(model, task, lowering)) is not None:
                _belongs(made, stem)


def trainable(model: str, task: Task) -> None:
    """Raises UnknownModel for what is none of our models, DataFileError for images that it cannot read."""
    _check(model)
    inputs.shape(model, task)


def _belongs(made: Encoder, stem: Path) -> None:
    """Raises NetworkFileError."""
    from models.network import Network

    told = Network.load(stem).provenance.get("encoder", {})
    if told.get("sha256") != made.sha256:
        raise NetworkFileError(
            f"the encoder {made.network.model} of {made.network.task} is not the one that {stem} was trained with: put back "
            "the one that belongs to it, or delete the network and train it again"
        )


def is_trained(model: str, task: Task, lowerings: Iterable[str] = LOWERINGS) -> bool:
    """Whether `network` would return at once, for each of the lowerings. Reads no file and imports nothing slow."""
    if is_own(model):
        return True
    latent = inputs.LATENTS.get(model)
    encoded = latent is None or _found(latent.encoder, task, "float") is not None
    return all(_find(model, task, lowering) is not None for lowering in lowerings) and encoded


def _find(model: str, task: Task, lowering: str) -> Path | None:
    _check(model)
    return _found(model, task, lowering)


def _found(model: str, task: Task, lowering: str) -> Path | None:
    stems = (_stem(folder, model, task.name, lowering) for folder in (SHIPPED, _cache()))
    return next((stem for stem in stems if all(path.is_file() for path in _files(stem))), None)


def _check(model: str) -> None:
    if model not in MODELS:
        if is_own(model):
            raise UnknownModel(f"{model} is a network of your own: python -m bench train --from {model} fine-tunes it")
        raise UnknownModel(f"unknown model {model!r}: choose from {', '.join(MODELS)}, or name an ONNX file of your own")


def _cache() -> Path:
    return tasks.user_cache() / "networks"


def _stem(folder: Path, model: str, task: str, lowering: str) -> Path:
    model = integer_network(model) if lowering == "integer" else base(model)
    return folder / model / f"{task}.{lowering}"


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")


def store(network: Network, stem: Path) -> None:
    """Saves beside its destination and renames, so that no reader meets half a file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=stem.parent, prefix=".saving-") as folder:
        temporary = Path(folder) / stem.name
        network.save(temporary)
        for source, target in zip(_files(temporary), _files(stem), strict=True):
            os.replace(source, target)
