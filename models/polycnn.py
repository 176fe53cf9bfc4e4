"""`polycnn` and `polycnn-s`: convolution blocks, average pooling, linear layers; the same shapes in each lowering.

A block is convolution → batch normalisation → activation. The activation of the polynomial lowering has degree 2
(Ran and Li 2025), so a network of n blocks and m linear layers needs n + m affine maps and n + m − 1 squarings under
encryption: normalisation and pooling are affine and are folded. Strides come early, because the cost of a convolution
under CKKS is that of its rotations and products, one for each kernel position and pair of channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.network import AveragePool, Conv, Flatten, Gemm, Operator, Pair, Polynomial, Relu


@dataclass(frozen=True)
class Convolution:
    """A convolution block. A kernel that is larger than its padded input is cut to it."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class Design:
    """Depth and widths. pool: side of the average pooling's windows, 0 for none; hidden: units of linear blocks."""

    convolutions: tuple[Convolution, ...]
    pool: int = 0
    hidden: tuple[int, ...] = ()


DEEP = Design((Convolution(8, 5, 2), Convolution(16, 3, 2, 1), Convolution(16, 3, 1, 1)), pool=2)
SHALLOW = Design((Convolution(5, 5, 2),), hidden=(64,))  # LoLa's shape: Brutzkus et al., ICML 2019, section 4


class Quadratic(nn.Module):
    """``c0 + c1·x + c2·x²``. Only c1 is learnt, one for each channel: a factor and a constant are the next layer's.

    So c2 cannot vanish, and the square can always be completed. Start: Relu's least-squares fit under N(0, 1).

    excess: mean squared distance of the last batch's inputs from ±`RANGE`, for training to penalise. Squares of squares
    amplify an image that is unlike the others, while CKKS is precise in a range that must be known in advance.
    """

    RANGE = 4.0  # standard deviations, since batch normalisation comes before
    C0, C1, C2 = 0.2, 0.5, 0.2  # 1/√8π, 1/2, 1/√8π

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.full((channels,), self.C1))
        self.excess = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.excess = functional.relu(x.abs() - self.RANGE).square().mean()
        linear = self.linear.reshape(-1, *[1] * (x.ndim - 2))
        return self.C0 + x * (linear + self.C2 * x)

    def export(self) -> Polynomial:
        c1 = self.linear.detach()
        return Polynomial(_array(torch.stack([torch.full_like(c1, self.C0), c1, torch.full_like(c1, self.C2)])))


class PolyCnn(nn.Module):
    """The float (Relu) or polynomial network in training. Maps images (n, channels, h, w) in [0, 1] to logits."""

    def __init__(self, design: Design, input_shape: tuple[int, int, int], outputs: int, lowering: str) -> None:
        super().__init__()
        channels, *sides = input_shape
        layers: list[nn.Module] = []

        def activation(width: int) -> nn.Module:
            return Quadratic(width) if lowering == "polynomial" else nn.ReLU()

        for block in design.convolutions:
            kernel = min(block.kernel, *(side + 2 * block.padding for side in sides))
            convolution = nn.Conv2d(channels, block.channels, kernel, block.stride, block.padding, bias=False)
            channels, sides = block.channels, [(s + 2 * block.padding - kernel) // block.stride + 1 for s in sides]
            layers += [convolution, nn.BatchNorm2d(channels, affine=False), activation(channels)]
        if design.pool:
            pool = min(design.pool, *sides)
            layers.append(nn.AvgPool2d(pool))
            sides = [side // pool for side in sides]
        layers.append(nn.Flatten())
        width = channels * sides[0] * sides[1]
        for hidden in design.hidden:
            layers += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden, affine=False), activation(hidden)]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)

    @torch.no_grad()
    def export(self) -> tuple[Operator, ...]:
        """The layers of the network description, with batch normalisation folded into the layer before it."""
        exported: list[Operator] = []
        modules = list(self.layers)
        for module, following in zip(modules, [*modules[1:], None], strict=True):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                weight, bias = folded(module, following)
                if isinstance(module, nn.Linear):
                    exported.append(Gemm(weight, bias))
                else:
                    (down, right), (top, left) = cast("tuple[Pair, Pair]", (module.stride, module.padding))
                    exported.append(Conv(weight, bias, (down, right), (top, left, top, left)))
            elif isinstance(module, Quadratic):
                exported.append(module.export())
            elif isinstance(module, nn.ReLU):
                exported.append(Relu())
            elif isinstance(module, nn.AvgPool2d):
                side, step = cast(Pair, (module.kernel_size, module.stride))
                exported.append(AveragePool((side, side), (step, step)))
            elif isinstance(module, nn.Flatten):
                exported.append(Flatten())
        return tuple(exported)


def folded(affine: nn.Conv2d | nn.Linear, following: nn.Module | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of an affine layer together with the batch normalisation that follows it, if one does."""
    weight = affine.weight.double()
    bias = torch.zeros(len(weight), dtype=torch.double) if affine.bias is None else affine.bias.double()
    if isinstance(following, (nn.BatchNorm1d, nn.BatchNorm2d)):
        assert following.running_var is not None and following.running_mean is not None
        scale = (following.running_var.double() + following.eps).rsqrt()
        weight, bias = weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), (bias - following.running_mean) * scale
    return _array(weight), _array(bias)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().copy()
