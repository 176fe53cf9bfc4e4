"""A network as a torch module and back: for training a graph of any shape, and for tools that start from torch.

Imported only where one of these is done, because torch is slow to import.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models import NetworkError
from models.network import (
    Add,
    AveragePool,
    Conv,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Mul,
    Network,
    Operator,
    Pads,
    Polynomial,
    Pow,
    Relu,
    Reshape,
)


def to_torch(network: Network) -> Graph:
    """A module that maps the network's inputs to its results, with the network's arrays as float32 parameters.

    Raises NetworkError for an integer network.
    """
    return Graph(network)


class Graph(nn.Module):
    """operators: one module a node, in the order of the nodes; each has `export() -> Operator` and may be replaced."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.operators = nn.ModuleList(map(_module, network.operators))

    def forward(self, *inputs: torch.Tensor) -> Any:
        """One tensor, or a tuple where the network has several results."""
        values = dict(zip((one.name for one in self.network.inputs), inputs, strict=True))
        for node, operator in zip(self.network.nodes, self.operators, strict=True):
            values[node.output] = operator(*(values[name] for name in node.inputs))
        results = tuple(values[name] for name in self.network.results)
        return results[0] if len(results) == 1 else results

    @torch.no_grad()
    def export(self) -> Network:
        """The network with the arrays that the parameters have now."""
        nodes = (dataclasses.replace(n, operator=m.export()) for n, m in zip(self.network.nodes, self.operators))
        return dataclasses.replace(self.network, nodes=tuple(nodes))


class Function(nn.Module):
    """An operator without arrays."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return FUNCTIONS[type(self.operator)](self.operator, *values)

    def export(self) -> Operator:
        return self.operator


class Affine(Function):
    """Gemm or Conv."""

    def __init__(self, operator: Gemm | Conv) -> None:
        super().__init__(operator)
        self.weight, self.bias = _parameter(operator.weight), _parameter(operator.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if isinstance(self.operator, Gemm):
            return functional.linear(x, self.weight, self.bias)
        layer = self.operator
        assert isinstance(layer, Conv)
        x, padding = _padded(x, layer.pads)
        return functional.conv2d(x, self.weight, self.bias, layer.strides, padding, layer.dilations, layer.group)

    def export(self) -> Operator:
        assert isinstance(self.operator, Gemm | Conv)
        return dataclasses.replace(self.operator, weight=_array(self.weight), bias=_array(self.bias))


class Series(Function):
    """A polynomial, in powers or by Chebyshev."""

    def __init__(self, operator: Polynomial) -> None:
        super().__init__(operator)
        self.coefficients = _parameter(operator.coefficients)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        assert isinstance(self.operator, Polynomial)
        per_channel = self.coefficients.ndim == 2
        c = (
            self.coefficients.reshape(*self.coefficients.shape, *[1] * (x.ndim - 2))
            if per_channel
            else self.coefficients
        )
        if self.operator.basis == "power":
            y = c[-1].expand_as(x)
            for k in range(len(c) - 2, -1, -1):
                y = y * x + c[k]
            return y
        x = x / self.operator.reach  # Clenshaw's recurrence
        later, y = torch.zeros_like(x), torch.zeros_like(x)
        for k in range(len(c) - 1, 0, -1):
            y, later = c[k] + 2 * x * y - later, y
        return c[0] + x * y - later

    def export(self) -> Operator:
        assert isinstance(self.operator, Polynomial)
        return dataclasses.replace(self.operator, coefficients=_array(self.coefficients))


def _module(operator: Operator) -> nn.Module:
    if isinstance(operator, Gemm | Conv):
        return Affine(operator)
    if isinstance(operator, Polynomial):
        return Series(operator)
    if type(operator) not in FUNCTIONS:
        raise NetworkError(f"{type(operator).__name__} has no gradient: train the float or the polynomial network")
    return Function(operator)


def _average(pool: AveragePool, x: torch.Tensor) -> torch.Tensor:
    if not any(pool.pads):
        return functional.avg_pool2d(x, pool.kernel_shape, pool.strides)
    top, left, bottom, right = pool.pads
    wide, ones = (functional.pad(t, (left, right, top, bottom)) for t in (x, torch.ones_like(x[:1])))
    mean = functional.avg_pool2d(wide, pool.kernel_shape, pool.strides)
    return mean if pool.count_include_pad else mean / functional.avg_pool2d(ones, pool.kernel_shape, pool.strides)


FUNCTIONS: dict[type, Callable[..., torch.Tensor]] = {
    Add: lambda _, a, b: a + b,
    AveragePool: _average,
    Flatten: lambda _, x: x.flatten(1),
    GlobalAveragePool: lambda _, x: x.mean((2, 3), keepdim=True),
    Mul: lambda _, a, b: a * b,
    Pow: lambda power, x: x**power.exponent,
    Relu: lambda _, x: functional.relu(x),
    Reshape: lambda view, x: x.reshape(x.shape[0], *view.shape),
}


def _padded(x: torch.Tensor, pads: Pads) -> tuple[torch.Tensor, tuple[int, int]]:
    """x and what is left of the padding for the convolution: all of it, where both sides have the same."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return x, (top, left)
    return functional.pad(x, (left, right, top, bottom)), (0, 0)


def _parameter(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.tensor(array, dtype=torch.float32))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().copy()
