"""`fcnn`: flatten → linear(height·width·channels → 64) → activation → linear(64 → outputs); the same shapes in each
lowering.

While it is trained, the input is standardised and the hidden layer normalised over the batch. Both are affine and
are folded into the first linear layer afterwards. Without them the input of a degree-2 activation leaves the range in
which CKKS is precise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.network import AveragePool, Flatten, Gemm, Operator, Polynomial, Relu

HIDDEN = 64
MEAN, STD = 0.5, 0.25  # roughly those of every task's images
RANGE = 2.0  # the folded activation's input is smaller by this; the values that were trained on reach about ±13


class Quadratic(nn.Module):
    """``c0 + c1·x + c2·x²`` with coefficients of its own for each channel, all of them learnt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        start = torch.tensor([[0.2], [0.5], [0.2]])  # Relu's least-squares fit under N(0, 1): 1/√8π, 1/2, 1/√8π
        self.coefficients = nn.Parameter(start.repeat(1, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c0, c1, c2 = self.coefficients
        return c0 + x * (c1 + c2 * x)


class Fcnn(nn.Module):
    """The float (Relu) or polynomial network in training. Maps images (n, channels, height, width) in [0, 1] to
    logits.

    pooling: images are first averaged over squares of so many pixels; what is left over at the ends is not read.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], outputs: int, lowering: str, hidden: int = HIDDEN, pooling: int = 1
    ) -> None:
        super().__init__()
        self.pooling = pooling
        channels, height, width = input_shape
        self.hidden = nn.Linear(channels * (height // pooling) * (width // pooling), hidden)
        self.normalise = nn.BatchNorm1d(hidden, affine=False)
        self.activation = Quadratic(hidden) if lowering == "polynomial" else nn.ReLU()
        self.output = nn.Linear(hidden, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.pooling > 1:
            images = functional.avg_pool2d(images, self.pooling)
        x = (images.flatten(1) - MEAN) / STD
        return self.output(self.activation(self.normalise(self.hidden(x))))

    @torch.no_grad()
    def export(self) -> tuple[Operator, ...]:
        """The layers of the network description, with standardisation and batch normalisation folded."""
        weight, bias = self.hidden.weight.double(), self.hidden.bias.double()
        bias = bias - weight.sum(1) * (MEAN / STD)
        weight = weight / STD
        assert self.normalise.running_var is not None and self.normalise.running_mean is not None
        scale = (self.normalise.running_var.double() + self.normalise.eps).rsqrt()
        bias = (bias - self.normalise.running_mean) * scale
        weight = weight * scale[:, None]
        activation: Operator = Relu()
        if isinstance(self.activation, Quadratic):
            weight, bias = weight / RANGE, bias / RANGE
            powers = RANGE ** torch.arange(3)[:, None]
            activation = Polynomial(_array(self.activation.coefficients * powers))
        return (
            *([AveragePool((self.pooling,) * 2, (self.pooling,) * 2)] if self.pooling > 1 else []),
            Flatten(),
            Gemm(_array(weight), _array(bias)),
            activation,
            Gemm(_array(self.output.weight), _array(self.output.bias)),
        )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().copy()
