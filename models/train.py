"""Training: one recipe for every task, decided by the task's description and by its validation split alone."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from torch.nn import functional

from models import fcnn
from models.network import LOWERINGS, Network
from models.tasks import Dataset, Split, Task, normalise, scores

Progress = Callable[[float, str], None]

BATCH = 128


def train(
    model: str,
    task: Task,
    dataset: Dataset,
    lowerings: Sequence[str] = LOWERINGS,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Network]:
    """One trained network for each lowering.

    progress: called with the fraction done (0 … 1) and a line that says what is being done.
    """
    report = progress or (lambda fraction, text: None)
    networks = {}
    for index, lowering in enumerate(lowerings):

        def step(fraction: float, text: str, index: int = index, lowering: str = lowering) -> None:
            report((index + fraction) / len(lowerings), f"{model} · {task.name} · {lowering}: {text}")

        if lowering == "integer":
            networks[lowering] = _integer(model, task, dataset, seed, step)
        else:
            networks[lowering] = _real(model, task, dataset, lowering, seed, step)
    report(1.0, f"{model} · {task.name}: trained")
    return networks


def _integer(model: str, task: Task, dataset: Dataset, seed: int, progress: Progress) -> Network:
    from models.quantised import train_integer  # brevitas, which is slow to import

    return train_integer(
        (normalise(dataset.train.images), dataset.train.labels),
        (normalise(dataset.val.images), dataset.val.labels),
        model=model,
        task=task.name,
        kind=task.kind,
        input_shape=task.input_shape,
        outputs=task.outputs,
        hidden=fcnn.HIDDEN,
        seed=seed,
        progress=progress,
    )


def _real(model: str, task: Task, dataset: Dataset, lowering: str, seed: int, progress: Progress) -> Network:
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    images, labels = _tensors(dataset.train)
    val_images, val_labels = _tensors(dataset.val)
    module = fcnn.Fcnn(task.input_shape, task.outputs, lowering, dropout=0.2)
    loss = _loss(task)
    epochs = int(np.clip(200_000 / len(images), 5, 60))
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    best, state = np.inf, module.state_dict()
    for epoch in range(epochs):
        module.train()
        for batch in torch.randperm(len(images), generator=rng).split(BATCH):
            if len(batch) < 2:  # batch normalisation needs two
                continue
            optimiser.zero_grad()
            loss(module(images[batch]), labels[batch]).backward()
            optimiser.step()
        schedule.step()
        module.eval()
        with torch.no_grad():
            val_loss = loss(module(val_images), val_labels).item()
        if val_loss < best:
            best, state = val_loss, {k: v.clone() for k, v in module.state_dict().items()}
        progress((epoch + 1) / epochs, f"epoch {epoch + 1} of {epochs}, validation loss {val_loss:.3f}")
    module.load_state_dict(state)
    network = Network(model, task.name, lowering, task.input_shape, task.outputs, module.eval().export())
    provenance = {"seed": seed, "epochs": epochs, "val": evaluate(network, dataset.val, task.kind),
                  "test": evaluate(network, dataset.test, task.kind)}
    return Network(model, task.name, lowering, task.input_shape, task.outputs, network.layers, provenance)


def _tensors(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(normalise(split.images)), torch.from_numpy(split.labels)


def _loss(task: Task) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if task.multi_label:
        return lambda logits, labels: functional.binary_cross_entropy_with_logits(logits, labels.float())
    return lambda logits, labels: functional.cross_entropy(logits, labels[:, 0])


def evaluate(network: Network, split: Split, kind: str) -> dict[str, float]:
    logits = network.forward(normalise(split.images))
    return {"accuracy": accuracy(kind, logits, split.labels), "n": len(split)}


def accuracy(kind: str, logits: np.ndarray, labels: np.ndarray) -> float:
    if labels.shape[1] > 1:
        return float(np.mean((logits > 0) == labels))
    return float(np.mean(logits.argmax(1) == labels[:, 0]))
