"""What a training has done so far is on disk at once: the same training, started again, goes on from there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from models import NetworkError, zoo
from models.network import Network
from models.tasks import Dataset, user_cache

# whose change makes it another training
SOURCES = (
    "augment", "encoder", "fcnn", "inputs", "latentcnn", "polycnn", "presets", "ptq", "quantised", "teacher", "train"
)  # fmt: skip


class Unfinished:
    """The parts of one training, each with a name. folder: None keeps nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def network(self, name: str, make: Callable[[], Network]) -> Network:
        """That of an earlier call, or what `make` makes, which is kept."""
        if self._folder is None:
            return make()
        stem = self._folder / name
        try:
            return Network.load(stem)
        except (OSError, NetworkError):  # not there, or damaged
            network = make()
            zoo.store(network, stem)
            return network

    def module(self, name: str, build: Callable[[], nn.Module], make: Callable[[], nn.Module]) -> nn.Module:
        """That of an earlier call, read into what `build` builds, or what `make` makes, whose state is kept."""
        if self._folder is None:
            return make()
        path = self._folder / f"{name}.safetensors"
        try:
            module = build()
            module.load_state_dict(load(path.read_bytes()))
            return module.eval()
        except (OSError, SafetensorError, RuntimeError):
            module = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".part")
            temporary.write_bytes(save(module.state_dict()))
            temporary.replace(path)
            return module

    def finished(self) -> None:
        """Forgets the parts: what they were for is kept elsewhere."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def of(dataset: Dataset, about: dict[str, Any]) -> Path:
    """The folder of a training. about: what its parts depend on beside data and recipe, as plain JSON."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    for split in (dataset.train, dataset.val):
        digest.update(split.images.tobytes())
        digest.update(split.labels.tobytes())
    return user_cache() / "unfinished" / digest.hexdigest()[:16]
