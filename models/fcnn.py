"""`fcnn`: flatten → linear(28·28·channels → 64) → activation → linear(64 → outputs); the same shapes in each lowering.

While it is trained, the input is standardised and the hidden layer normalised over the batch. Both are affine and
are folded into the first linear layer afterwards, so that the activation sees values of about unit variance: without
this a square activation leaves the range in which CKKS is precise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from models.network import Flatten, Layer, Linear, Polynomial, ReLU

HIDDEN = 64


class Square(nn.Module):
    """``c0 + c1·x + c2·x²`` with coefficients of its own for each channel, all of them learnt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The least-squares fit of ReLU under a standard normal input: 1/√(8π)·(1 + x²·...) rounded.
        start = torch.tensor([[0.2], [0.5], [0.2]])
        self.coefficients = nn.Parameter(start.repeat(1, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c0, c1, c2 = self.coefficients
        return c0 + x * (c1 + c2 * x)


class Fcnn(nn.Module):
    """The float (ReLU) or polynomial network in training. Maps images (n, channels, 28, 28) in [0, 1] to logits."""

    def __init__(self, input_shape: tuple[int, int, int], outputs: int, lowering: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.5))
        self.register_buffer("std", torch.tensor(0.25))
        self.hidden = nn.Linear(int(np.prod(input_shape)), HIDDEN)
        self.normalise = nn.BatchNorm1d(HIDDEN, affine=False)
        self.activation = Square(HIDDEN) if lowering == "polynomial" else nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(HIDDEN, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (images.flatten(1) - self.mean) / self.std
        return self.output(self.dropout(self.activation(self.normalise(self.hidden(x)))))

    @torch.no_grad()
    def export(self) -> tuple[Layer, ...]:
        """The layers of the network description, with standardisation and batch normalisation folded."""
        # In double precision, and rounded once at the end.
        weight, bias = self.hidden.weight.double(), self.hidden.bias.double()
        bias = bias - weight.sum(1) * (self.mean / self.std)
        weight = weight / self.std
        scale = (self.normalise.running_var.double() + self.normalise.eps).rsqrt()
        bias = (bias - self.normalise.running_mean) * scale
        weight = weight * scale[:, None]
        activation: Layer = ReLU()
        if isinstance(self.activation, Square):
            activation = Polynomial(_array(self.activation.coefficients))
        return (
            Flatten(),
            Linear(_array(weight), _array(bias)),
            activation,
            Linear(_array(self.output.weight), _array(self.output.bias)),
        )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().copy()
