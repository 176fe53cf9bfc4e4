"""`fcnn`: flatten → linear(28·28·channels → 64) → activation → linear(64 → outputs); the same shapes in each lowering.

While it is trained, the input is standardised and the hidden layer normalised over the batch. Both are affine and
are folded into the first linear layer afterwards. Without them the input of a degree-2 activation leaves the range in
which CKKS is precise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from models.network import Flatten, Layer, Linear, Polynomial, ReLU

HIDDEN = 64
MEAN, STD = 0.5, 0.25  # roughly those of every task's images
RANGE = 2.0  # the folded activation's input is smaller by this; the values that were trained on reach about ±13


class Quadratic(nn.Module):
    """``c0 + c1·x + c2·x²`` with coefficients of its own for each channel, all of them learnt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        start = torch.tensor([[0.2], [0.5], [0.2]])  # ReLU's least-squares fit under N(0, 1): 1/√8π, 1/2, 1/√8π
        self.coefficients = nn.Parameter(start.repeat(1, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c0, c1, c2 = self.coefficients
        return c0 + x * (c1 + c2 * x)


class Fcnn(nn.Module):
    """The float (ReLU) or polynomial network in training. Maps images (n, channels, 28, 28) in [0, 1] to logits."""

    def __init__(self, input_shape: tuple[int, int, int], outputs: int, lowering: str) -> None:
        super().__init__()
        self.hidden = nn.Linear(int(np.prod(input_shape)), HIDDEN)
        self.normalise = nn.BatchNorm1d(HIDDEN, affine=False)
        self.activation = Quadratic(HIDDEN) if lowering == "polynomial" else nn.ReLU()
        self.output = nn.Linear(HIDDEN, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (images.flatten(1) - MEAN) / STD
        return self.output(self.activation(self.normalise(self.hidden(x))))

    @torch.no_grad()
    def export(self) -> tuple[Layer, ...]:
        """The layers of the network description, with standardisation and batch normalisation folded."""
        weight, bias = self.hidden.weight.double(), self.hidden.bias.double()
        bias = bias - weight.sum(1) * (MEAN / STD)
        weight = weight / STD
        scale = (self.normalise.running_var.double() + self.normalise.eps).rsqrt()
        bias = (bias - self.normalise.running_mean) * scale
        weight = weight * scale[:, None]
        activation: Layer = ReLU()
        if isinstance(self.activation, Quadratic):
            weight, bias = weight / RANGE, bias / RANGE
            powers = RANGE ** torch.arange(3)[:, None]
            activation = Polynomial(_array(self.activation.coefficients * powers))
        return (
            Flatten(),
            Linear(_array(weight), _array(bias)),
            activation,
            Linear(_array(self.output.weight), _array(self.output.bias)),
        )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().copy()
