"""Training of the encoder: an autoencoder with a codebook, on views of a training split. No label is read.

Loss: mean absolute and mean squared error of the reconstruction, and the two terms that draw codes and values together (van
den Oord et al., NeurIPS 2017). A code that nothing was near to for a while is moved to a value of the last batch. Of large
images crops are seen: all layers are convolutions.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from importlib.metadata import version
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models import inputs
from models.augment import augment
from models.encoder import resized
from models.inputs import Latent
from models.network import Conv, Flatten, Network, Operator, Pair, Relu, chain
from models.tasks import Dataset, normalise

CODES, DIMENSION = 256, 16
WIDTHS = (16, 32, 32)  # of the halvings of height and width
BATCH = 64
IMAGES = 60_000  # views that are seen
FEWEST = 20  # steps, of which the first tenth warms up
RATE = 3e-3
COMMITMENT = 0.25
CROP = 64  # pixels a side
IDLE = 100  # steps after which an unused code is moved
STATISTICS = 2000  # training images over which latents are standardised


class Autoencoder(nn.Module):
    """encode: images (n, channels, h, w) in [0, 1] → latents; decode: embedded latents (n, DIMENSION, …) → images."""

    idle: torch.Tensor  # steps since a code was the nearest of any value

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        widths = WIDTHS[: int(math.log2(factor))]
        down: list[nn.Module] = []
        for before, width in zip((channels, *widths), widths):
            down += [nn.Conv2d(before, width, 4, 2, 1), nn.ReLU()]
        last = widths[-1]
        self.encode = nn.Sequential(
            *down, nn.Conv2d(last, last, 3, 1, 1), nn.ReLU(), nn.Conv2d(last, inputs.CHANNELS, 1)
        )
        self.embed, self.back = nn.Conv2d(inputs.CHANNELS, DIMENSION, 1), nn.Conv2d(DIMENSION, inputs.CHANNELS, 1)
        self.codes = nn.Parameter(torch.randn(CODES, DIMENSION) / math.sqrt(DIMENSION))
        up: list[nn.Module] = [nn.Conv2d(inputs.CHANNELS, last, 3, 1, 1), nn.ReLU()]
        for width, after in zip(widths[::-1], (*widths[-2::-1], WIDTHS[0])):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(width, after, 3, 1, 1), nn.ReLU()]
        self.decode = nn.Sequential(self.back, *up, nn.Conv2d(WIDTHS[0], channels, 3, 1, 1))
        self.register_buffer("idle", torch.full((CODES,), float(IDLE)))  # so all start at values of the first batch

    def nearest(self, embedded: torch.Tensor) -> torch.Tensor:
        """Indices of codes (n, h, w)."""
        scores = torch.einsum("ndhw,cd->nchw", embedded, self.codes) - self.codes.square().sum(1)[:, None, None] / 2
        return scores.argmax(1)

    def coded(self, embedded: torch.Tensor) -> torch.Tensor:
        return self.codes[self.nearest(embedded)].movedim(-1, 1)

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        embedded = self.embed(self.encode(images))
        codes = self.coded(embedded)
        self._move_idle(embedded.detach())
        error = self.decode(embedded + (codes - embedded).detach()) - images
        drawn = functional.mse_loss(codes, embedded.detach()) + COMMITMENT * functional.mse_loss(
            embedded, codes.detach()
        )
        return error.abs().mean() + error.square().mean() + drawn

    @torch.no_grad()
    def _move_idle(self, embedded: torch.Tensor) -> None:
        self.idle += 1
        self.idle[self.nearest(embedded).unique()] = 0
        if len(moved := torch.nonzero(torch.gt(self.idle, IDLE))[:, 0]):
            values = embedded.movedim(1, -1).reshape(-1, DIMENSION)
            self.codes[moved] = values[torch.randint(len(values), (len(moved),))]
            self.idle[moved] = 0


def train(
    latent: Latent,
    dataset: Dataset,
    *,
    seed: int = 0,
    share: float = 1.0,
    effort: str = "full",
    progress: Callable[[float, str], None] | None = None,
) -> Network:
    """The network of the encoder, as `models.encoder` describes it. share: of the images that the recipe sees.

    Raises DataFileError for images whose sides the factor does not divide.
    """
    task, report = dataset.task, progress or (lambda share, text: None)
    size = latent.size(task)
    factor = inputs.factor(size)
    images = torch.from_numpy(dataset.train.images)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = Autoencoder(task.channels, factor)
    steps = max(FEWEST, int(IMAGES * share) // BATCH)
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        value = module.loss(_cropped(_sized(augment(images[chosen] / 255, generator), size), generator))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            report(step / steps, f"encoder for {task.name}: step {step} of {steps}, loss {value.item():.3f}")
    module.eval()
    return _exported(module, latent, dataset, size, {"seed": seed, "effort": effort, "images": steps * BATCH})


def _sized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return images if tuple(images.shape[2:]) == size else torch.from_numpy(resized(images.numpy(), size)).float()


def _cropped(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One square for the whole batch."""
    for axis in (2, 3):
        side = images.shape[axis]
        start = int(torch.randint(max(side - CROP, 0) + 1, (), generator=generator))
        images = images.narrow(axis, start, min(side, CROP))
    return images


@torch.no_grad()
def _exported(module: Autoencoder, latent: Latent, dataset: Dataset, size: tuple[int, int], how: dict) -> Network:
    """Latents are standardised by the last convolution before them, which the scores take back; values of codes too."""
    task = dataset.task
    some = normalise(dataset.train.images[:STATISTICS])
    parts = (_sized(torch.from_numpy(part), size) for part in np.array_split(some, -(-len(some) // BATCH)))
    latents = torch.cat([module.encode(part) for part in parts])
    std, mean = torch.std_mean(latents, (0, 2, 3))
    std = std.clamp(min=1e-6)
    operators: list[Operator] = []
    for layer in module.encode:
        operators.append(_conv(layer) if isinstance(layer, nn.Conv2d) else Relu())
    last = module.encode[-1]
    operators[-1] = _pointwise(last.weight[:, :, 0, 0] / std[:, None], (last.bias - mean) / std)
    into, back = module.embed.weight[:, :, 0, 0], module.back
    weight, bias = into * std, module.embed.bias + into @ mean  # of the standardised latent
    operators.append(_pointwise(module.codes @ weight, module.codes @ bias - module.codes.square().sum(1) / 2))
    values = module.codes @ back.weight[:, :, 0, 0].T + back.bias
    coded = torch.cat([module.back(module.coded(module.embed(part))) for part in latents.split(BATCH)])
    std, mean = torch.std_mean(coded, (0, 2, 3))
    values = (values - mean) / std.clamp(min=1e-6)
    operators += [_pointwise(values.T, torch.zeros(len(std))), Flatten()]
    provenance = {
        "recipe": "autoencoder with a codebook of 256 codes of dimension 16: see models/encoder_training.py",
        "trained_on": f"{task.name}, training split",
        "resized": [list(task.size), list(size)] if size != task.size else [],
        **how,
        **_judged(module, dataset, size),
        "data_md5": dataset.md5,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    return chain(latent.encoder, task.name, "float", (task.channels, *size), operators, provenance)


def _judged(module: Autoencoder, dataset: Dataset, size: tuple[int, int]) -> dict:
    """Of the test split: how well images come back, from latents as they are and from codes, and how many codes occur."""
    errors: dict[str, list[float]] = {"latent": [], "quantised": []}
    used = torch.zeros(CODES, dtype=torch.bool)
    for part in np.array_split(dataset.test.images, max(1, len(dataset.test) // 16)):
        images = _sized(torch.from_numpy(normalise(part)), size)
        embedded = module.embed(module.encode(images))
        used[module.nearest(embedded).unique()] = True
        for name, values in (("latent", embedded), ("quantised", module.coded(embedded))):
            errors[name] += (module.decode(values).clamp(0, 1) - images).square().mean((1, 2, 3)).tolist()
    psnr = {name: round(float(np.mean(-10 * np.log10(np.maximum(of, 1e-10)))), 2) for name, of in errors.items()}
    return {"psnr_db": psnr, "codes_used": int(used.sum())}


def _conv(layer: nn.Conv2d) -> Conv:
    (down, right), (top, left) = cast("tuple[Pair, Pair]", (layer.stride, layer.padding))
    assert layer.bias is not None
    return Conv(_array(layer.weight), _array(layer.bias), (down, right), (top, left, top, left))


def _pointwise(weight: torch.Tensor, bias: torch.Tensor) -> Conv:
    return Conv(_array(weight[:, :, None, None]), _array(bias))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().copy()
