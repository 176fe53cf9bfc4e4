"""From a user's network with Relu to one with polynomials: ``python -m bench train --from net.onnx``.

Each Relu becomes a square for each channel, with the coefficients of least squared error on the values that reach it; then
the whole network is fine-tuned on views of the training split, with the original network as its teacher. Nothing else of
it changes: no layer, no width, no logit adjustment. The result is kept where `models.own` looks for it.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models import NetworkError, own, zoo
from models.network import Conv, Gemm, Network, Polynomial, Relu
from models.tasks import Dataset, Task
from models.torch_graph import Graph, to_torch
from models.train import BATCH, EFFORTS, POOL_IMAGES, VALIDATION_IMAGES, Progress, Recipe, evaluate

IMAGES = 150_000  # seen in fine-tuning
RATES = (2e-3, 5e-4)  # peaks of the learning rate; the one with the lower validation loss is taken
DECAY = 0.05
CALIBRATION_IMAGES = 1000
TAIL = 0.002  # share of a channel's values beyond either end of its range


class Quadratic(nn.Module):
    """``reach · (c0 + c1·x + c2·x²)`` of inputs that are first brought to about −1 … 1; for each channel, all three learnt.

    c2 is bounded away from 0, so the square can always be completed. excess: mean squared distance of the last batch's
    inputs from ±`RANGE`, for training to penalise.
    """

    RANGE, LEAST = 1.25, 0.02

    def __init__(self, x: np.ndarray) -> None:
        """x: values (images, channels, …) that reach it."""
        super().__init__()
        values = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
        low, high = np.quantile(values, (TAIL, 1 - TAIL), axis=1)
        self.middle = (low + high) / 2
        self.reach = np.maximum((high - low) / 2, 1e-3 * max(float(np.abs(values).max()), 1e-3))
        start = np.array([_nearest(*one) for one in zip(values, self.middle, self.reach)]).T / self.reach
        self.register_buffer("ends", torch.tensor(np.stack([self.middle, self.reach]), dtype=torch.float32))
        self.lower = nn.Parameter(torch.tensor(start[:2], dtype=torch.float32))
        above = np.maximum(start[2] - self.LEAST, 1e-3)
        self.square = nn.Parameter(torch.tensor(np.log(np.expm1(above)), dtype=torch.float32))
        self.excess = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ones = (-1, *[1] * (x.ndim - 2))
        middle, reach = (one.reshape(ones) for one in self.ends)
        c0, c1, c2 = (one.reshape(ones) for one in (*self.lower, self.LEAST + functional.softplus(self.square)))
        x = (x - middle) / reach
        self.excess = functional.relu(x.abs() - self.RANGE).square().mean()
        return reach * (c0 + x * (c1 + c2 * x))

    def scaled(self) -> Polynomial:
        """Of the scaled input."""
        square = self.LEAST + functional.softplus(self.square.detach().double())
        c = np.concatenate([self.lower.detach().double().numpy(), square.numpy()[None]])
        return Polynomial((c * self.reach).astype(np.float32))

    def export(self) -> Polynomial:
        """Of the input as it is."""
        c0, c1, c2 = self.scaled().coefficients.astype(np.float64)
        m, r = self.middle, self.reach
        powers = [c0 - c1 * m / r + c2 * (m / r) ** 2, c1 / r - 2 * c2 * m / r**2, c2 / r**2]
        return Polynomial(np.stack(powers).astype(np.float32))


def _nearest(x: np.ndarray, middle: float, reach: float) -> np.ndarray:
    """Coefficients, of the scaled input, of the square nearest to Relu on these values and, a little, all over the range."""
    grid = np.linspace(-1, 1, 41)
    x = np.clip((x[:: -(-len(x) // 20_000)] - middle) / reach, -1, 1)
    weights = np.sqrt(np.concatenate([np.full(len(x), 0.9 / len(x)), np.full(len(grid), 0.1 / len(grid))]))
    x = np.concatenate([x, grid])
    target = np.maximum(middle + reach * x, 0)
    return np.linalg.lstsq(np.vander(x, 3, increasing=True) * weights[:, None], target * weights, rcond=None)[0]


@dataclass(frozen=True)
class Trained:
    """original: as the file has it; network: with polynomials. scores: of both, by split: {"validation": …, "test": …}."""

    original: Network
    network: Network
    scores: dict[str, dict[str, dict[str, float]]]


def train(
    path: str,
    task: Task,
    dataset: Dataset,
    *,
    seed: int = 0,
    effort: str = "full",
    progress: Progress | None = None,
) -> Trained:
    """Replaces and fine-tunes. Raises NetworkFileError for a file that cannot be used or does not fit the task, NetworkError
    if there is nothing to replace."""
    original = own.fitted(path, task)
    if not any(isinstance(operator, Relu) for operator in original.operators):
        raise NetworkError(f"{path} has no Relu: it runs on every backend as it is, without training")
    report = progress or (lambda share, text: None)
    chosen = EFFORTS[effort]
    recipe = Recipe(task, seed, chosen.share, chosen)
    teacher = to_torch(original).eval()
    started = _replaced(original, dataset.train.images)
    rates = RATES[:1] if chosen.single else RATES
    views = recipe.pool_size(dataset.train, POOL_IMAGES)
    batch = torch.from_numpy(dataset.train.images[:BATCH]) / 255
    seconds = recipe.step_seconds(_module(started, original), batch, False)
    minutes = seconds * (len(rates) * recipe.steps(IMAGES, views) + 2 * views / len(batch)) / 60
    quick = "" if chosen.single else "; --effort quick takes a tenth or so"
    report(0.0, f"about {max(minutes, 1):.0f} min in all, judged by a few steps{quick}")
    pool = recipe.views(dataset.train, POOL_IMAGES, [teacher])
    validation = recipe.views(dataset.val, VALIDATION_IMAGES)

    def tuned(index: int, rate: float) -> Network:
        module = recipe.fit(
            lambda: _module(started, original),
            pool,
            images=IMAGES,
            rate=rate,
            decay=DECAY,
            use=300 + index,
            augmented=False,
            progress=lambda f, text: report((index + f) / len(rates), f"learning rate {rate:g}, {text}"),
        )
        assert isinstance(module, Graph)
        return _exported(module)

    found = [tuned(index, rate) for index, rate in enumerate(rates)]
    best = min(found, key=lambda network: recipe.loss_on(validation, network))
    scores = {
        name: {"original": evaluate(original, split, task.kind), "polynomial": evaluate(best, split, task.kind)}
        for name, split in (("validation", dataset.val), ("test", dataset.test))
    }
    provenance = original.provenance | {
        "recipe": "Relu replaced by squares, fine-tuned with the original as teacher: see models/own_training.py",
        "seed": seed,
        "effort": effort,
        "images": int(IMAGES * chosen.share),
        "rates": list(rates),
        **{name: of["polynomial"] for name, of in scores.items()},
        "original": {name: of["original"] for name, of in scores.items()},
        "data_md5": dataset.md5,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    report(1.0, "trained")
    return Trained(original, dataclasses.replace(best, provenance=provenance), scores)


def keep(trained: Trained, task: Task) -> None:
    """Where runs find it. Raises OSError."""
    digest = trained.original.provenance["origin"]["sha256"]
    zoo.store(trained.network, own.stem(digest, task, "polynomial"))


def _replaced(original: Network, images: np.ndarray) -> dict[str, Quadratic]:
    """A square for each Relu, by the name of its node; each is fitted to what the ones before it make of images (uint8)."""
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), CALIBRATION_IMAGES)).astype(int)]
    module, found = to_torch(original).eval(), dict[str, Quadratic]()
    last: dict[str, int] = {name: i for i, node in enumerate(original.nodes) for name in node.inputs}
    values: dict[str, Any] = {original.inputs[0].name: torch.from_numpy(chosen) / 255}
    with torch.no_grad():
        for index, (node, operator) in enumerate(zip(original.nodes, module.operators)):
            if isinstance(node.operator, Relu):
                operator = found[node.output] = Quadratic(values[node.inputs[0]].double().numpy())
            values[node.output] = operator(*(values[name] for name in node.inputs))
            if not torch.isfinite(values[node.output]).all():
                raise NetworkError(f"node {node.output}: values that are no finite numbers on the images")
            for name in set(node.inputs):
                if last[name] == index:
                    del values[name]
    return found


def _module(squares: dict[str, Quadratic], original: Network) -> Graph:
    """The network with copies of these in the place of its Relus."""
    module = to_torch(original)
    for index, node in enumerate(original.nodes):
        if node.output in squares:
            module.operators[index] = copy.deepcopy(squares[node.output])
    return module


def _exported(module: Graph) -> Network:
    """With polynomials whose inputs are scaled by the linear layer before them, where nothing else reads that layer."""
    network = module.export()
    readers = Counter(name for node in network.nodes for name in node.inputs)
    nodes = {node.output: node for node in network.nodes}
    for node, operator in zip(network.nodes, module.operators):
        if not isinstance(operator, Quadratic) or node.inputs[0] not in nodes:
            continue
        before = nodes[node.inputs[0]]
        if isinstance(layer := before.operator, Gemm | Conv) and readers[before.output] == 1:
            weight = layer.weight / operator.reach.reshape(-1, *[1] * (layer.weight.ndim - 1))
            bias = (layer.bias - operator.middle) / operator.reach
            scaled = dataclasses.replace(layer, weight=weight.astype(np.float32), bias=bias.astype(np.float32))
            nodes[before.output] = dataclasses.replace(before, operator=scaled)
            nodes[node.output] = dataclasses.replace(node, operator=operator.scaled())
    return dataclasses.replace(network, lowering="polynomial", nodes=tuple(nodes.values()))
