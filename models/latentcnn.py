"""`latentcnn` and `hefnet`, plain and with a gate: convolutions in groups, on latents or on images; the same shapes in each
lowering.

After Kim et al. (arXiv:2506.15258), who encrypt latents of chest X-rays; their hefNet has the widths of `hefnet`. A block is
convolution → batch normalisation → activation → pooling. The gate stands before the last activation: global average, linear,
square, linear, cubic; each channel is multiplied with what comes out for it.

Batch normalisation and pooling are folded under encryption, and the gate's first linear layer starts from the input of the
convolution that it gates: n blocks take 2n + 1 levels. A gate takes 5, the
first beside that convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models import inputs
from models.network import (
    IMAGE,
    AveragePool,
    Conv,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Mul,
    Node,
    Operator,
    Pair,
    Polynomial,
    Relu,
    Reshape,
)
from models.polycnn import Quadratic, folded


@dataclass(frozen=True)
class Block:
    """pool: side of the windows that are averaged after the activation; 1: none, 0: everything."""

    channels: int
    groups: int = 1
    pool: int = 1


@dataclass(frozen=True)
class Design:
    """gate: hidden units of the gate, 0 for none. padding: of every 3×3 convolution.

    patches: for images: the first convolution steps from one square of a latent to the next, as the encoder would.
    """

    blocks: tuple[Block, ...]
    gate: int = 0
    padding: int = 0
    patches: bool = False


def small(gate: bool = False, patches: bool = False) -> Design:
    return Design((Block(16), Block(32, 4, pool=0)), 8 if gate else 0, padding=1, patches=patches)


def hefnet(gate: bool = False) -> Design:
    return Design((Block(64), Block(128, 8, 2), Block(256, 8, 2), Block(256, 8, 2)), 16 if gate else 0)


class Cubic(nn.Module):
    """``αx³ + βx + c``, the same for all channels. Start: as published.

    excess: as of `Quadratic`. It is exported for |x| ≤ `REACH`; a record counts what lies beyond.
    """

    REACH = 4.0

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.tensor([0.5, 0.12, -1e-5]))
        self.excess = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.excess = functional.relu(x.abs() - self.REACH).square().mean()
        c, linear, cubic = self.coefficients
        return c + x * (linear + cubic * x * x)

    def export(self) -> Polynomial:
        c, linear, cubic = self.coefficients.detach().double().numpy() * self.REACH ** np.array([0, 1, 3])
        return Polynomial(np.array([c, linear + 0.75 * cubic, 0, 0.25 * cubic], np.float32), "chebyshev", self.REACH)


class Gate(nn.Module):
    """(n, channels, h, w) → a factor for each channel (n, channels, 1, 1)."""

    def __init__(self, channels: int, hidden: int, lowering: str) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.normalise = nn.BatchNorm1d(hidden, affine=False)
        self.activation = Quadratic(hidden) if lowering == "polynomial" else nn.ReLU()
        self.excite, self.cubic = nn.Linear(hidden, channels), Cubic()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.activation(self.normalise(self.squeeze(x.mean((2, 3)))))
        return self.cubic(self.excite(hidden))[:, :, None, None]

    def export(self) -> tuple[Operator, ...]:
        squeeze, excite = Gemm(*folded(self.squeeze, self.normalise)), Gemm(*folded(self.excite, None))
        back = Reshape((len(excite.bias), 1, 1))
        return (
            GlobalAveragePool(), Flatten(), squeeze, _activation(self.activation), excite, self.cubic.export(), back
        )  # fmt: skip


class LatentCnn(nn.Module):
    """The float (Relu) or polynomial network in training. Maps latents, or images in [0, 1], to logits."""

    def __init__(self, design: Design, input_shape: tuple[int, int, int], outputs: int, lowering: str) -> None:
        super().__init__()
        self.design = design
        channels, *sides = input_shape
        self.convolutions, self.normalised = nn.ModuleList(), nn.ModuleList()
        self.activations, self.pools = nn.ModuleList(), list[Pair]()
        for index, block in enumerate(design.blocks):
            step = inputs.factor((sides[0], sides[1])) if design.patches and not index else 1
            kernel = min(step + 2, *(side + 2 * design.padding for side in sides))
            self.convolutions.append(
                nn.Conv2d(channels, block.channels, kernel, step, design.padding, groups=block.groups, bias=False)
            )
            channels, sides = block.channels, [(s + 2 * design.padding - kernel) // step + 1 for s in sides]
            self.normalised.append(nn.BatchNorm2d(channels, affine=False))
            self.activations.append(Quadratic(channels) if lowering == "polynomial" else nn.ReLU())
            pool = cast(Pair, tuple(min(block.pool, side) if block.pool else side for side in sides))
            self.pools.append(pool)
            sides = [side // window for side, window in zip(sides, pool, strict=True)]
        self.gate = Gate(channels, design.gate, lowering) if design.gate else None
        self.output = nn.Linear(channels * sides[0] * sides[1], outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, (convolution, pool) in enumerate(zip(self.convolutions, self.pools, strict=True)):
            x = self.normalised[index](convolution(x))
            if self.gate is not None and index == len(self.pools) - 1:
                x = x * self.gate(x)
            x = functional.avg_pool2d(self.activations[index](x), pool)
        return self.output(x.flatten(1))

    @torch.no_grad()
    def export(self) -> tuple[Node, ...]:
        """The nodes of the network description, with batch normalisation folded into the layers before it."""
        nodes: list[Node] = []

        def add(operator: Operator, *read: str) -> str:
            nodes.append(Node(operator, read, f"{type(operator).__name__}_{len(nodes)}"))
            return nodes[-1].output

        x = IMAGE
        for index, (convolution, pool) in enumerate(zip(self.convolutions, self.pools, strict=True)):
            assert isinstance(convolution, nn.Conv2d)
            step, padding = cast("tuple[Pair, Pair]", (convolution.stride, convolution.padding))
            weight, bias = folded(convolution, self.normalised[index])
            x = add(Conv(weight, bias, step, (*padding, *padding), convolution.groups), x)
            if self.gate is not None and index == len(self.pools) - 1:
                factors = x
                for operator in self.gate.export():
                    factors = add(operator, factors)
                x = add(Mul(), x, factors)
            x = add(_activation(self.activations[index]), x)
            if not self.design.blocks[index].pool:
                x = add(GlobalAveragePool(), x)
            elif pool != (1, 1):
                x = add(AveragePool(pool, pool), x)
        add(Gemm(*folded(self.output, None)), add(Flatten(), x))
        return tuple(nodes)


def _activation(module: nn.Module) -> Operator:
    return module.export() if isinstance(module, Quadratic) else Relu()
