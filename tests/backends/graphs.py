"""Random polynomial networks with branches: residual sums, gates, polynomials of several degrees, convolutions, pooling."""

from __future__ import annotations

import math

import numpy as np

from models.network import (
    Add,
    AveragePool,
    Conv,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Input,
    Mul,
    Network,
    Node,
    Operator,
    Polynomial,
    Pow,
    Reshape,
)

IMAGES = 16


class _Grower:
    """Adds nodes to a network, one after another."""

    def __init__(self, random: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.random, self.nodes, self.shapes = random, [], {"image": shape}

    def add(self, operator: Operator, *inputs: str) -> str:
        name = f"{type(operator).__name__}_{len(self.nodes)}"
        self.nodes.append(Node(operator, inputs, name))
        values = (np.zeros((1, *self.shapes[i])) for i in inputs)
        self.shapes[name] = operator(*values).shape[1:]
        return name

    def normal(self, *size: int) -> np.ndarray:
        return self.random.normal(size=size) / np.sqrt(max(1, np.prod(size[1:])))

    def activation(self, x: str, degree: int) -> str:
        """With coefficients of its own for each channel, or the same for all."""
        channels = self.shapes[x][0]
        size = (channels,) if self.random.integers(2) else ()
        c = self.random.uniform(-0.3, 0.3, (degree + 1, *size))
        if degree >= 2:
            c[2] = self.random.uniform(0.1, 0.4, size)
        return self.add(Polynomial(c), x)

    def affine(self, x: str, outputs: int) -> str:
        shape = self.shapes[x]
        if len(shape) == 1:
            return self.add(Gemm(self.normal(outputs, shape[0]), self.normal(outputs, 1)[:, 0]), x)
        kernel = int(self.random.integers(1, min(3, *shape[1:]) + 1))
        group = int(self.random.choice([g for g in (1, 2) if shape[0] % g == 0 and outputs % g == 0]))
        pads, strides = (kernel // 2,) * 4, (int(self.random.integers(1, 3)),) * 2
        weight = self.normal(outputs, shape[0] // group, kernel, kernel)
        return self.add(Conv(weight, self.normal(outputs, 1)[:, 0], strides, pads, group), x)

    def gate(self, x: str) -> str:
        """Squeeze and excitation: each channel times a number that depends on all of them."""
        channels = self.shapes[x][0]
        squeezed = self.add(Flatten(), self.add(GlobalAveragePool(), x) if len(self.shapes[x]) == 3 else x)
        hidden = self.activation(self.affine(squeezed, int(self.random.integers(1, 4))), 2)
        scale = self.affine(hidden, channels)
        if self.random.integers(2):
            scale = self.activation(scale, 3)
        if len(self.shapes[x]) == 3:
            scale = self.add(Reshape((channels, 1, 1)), scale)
        return self.add(Mul(), x, scale)

    def residual(self, x: str) -> str:
        """A branch that keeps the shape, added to what it started from."""
        channels = self.shapes[x][0]
        if len(self.shapes[x]) == 1:
            y = self.affine(x, channels)
        else:
            y = self.add(Conv(self.normal(channels, channels, 3, 3), np.zeros(channels), pads=(1,) * 4), x)
        y = self.activation(y, int(self.random.choice([2, 2, 3]))) if self.random.integers(2) else self.add(Pow(2), y)
        return self.add(Add(), x, y)


def random_graph(seed: int, depth: int, side: int = 8) -> tuple[Network, np.ndarray]:
    """The network, and images for it; depth: of blocks, each a gate, a residual sum, an activation or a product."""
    random = np.random.default_rng(seed)
    shape = (int(random.choice([1, 3])), side, side)
    grow = _Grower(random, shape)
    x = grow.affine("image", int(random.integers(1, 4))) if random.integers(4) else grow.add(Flatten(), "image")
    for _ in range(depth):
        kind = random.choice(["gate", "residual", "activation", "product"])
        if kind == "gate":
            x = grow.gate(x)
        elif kind == "residual":
            x = grow.residual(x)
        elif kind == "activation":
            x = grow.activation(x, int(random.choice([1, 2, 2, 3, 5])))
        else:
            x = grow.affine(x, 3)
            x = grow.add(Mul(), x, grow.activation(x, 2))
        if len(grow.shapes[x]) == 1 or random.integers(2):
            x = grow.affine(x, int(random.integers(1, 6)))
        elif min(grow.shapes[x][1:]) > 2 and random.integers(2):
            x = grow.add(AveragePool((2, 2), (2, 2)), x)
    x = grow.add(Flatten(), x)
    x = grow.add(Gemm(grow.normal(3, math.prod(grow.shapes[x])), grow.normal(3, 1)[:, 0]), x)
    network = Network("graph", "none", "polynomial", (Input("image", shape),), tuple(grow.nodes), (x,))
    return network, random.uniform(0, 1, (IMAGES, *shape))
