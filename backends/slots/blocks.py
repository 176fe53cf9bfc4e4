"""From a polynomial network to alternating affine maps and squarings, the only two things that CKKS has to do.

Every degree-2 activation is completed to a square, ``c2·x² + c1·x + c0 = c2·(x + c1/2c2)² + (c0 − c1²/4c2)``: the shift
goes into the bias before it, factor and constant into the affine map after it, so that an activation costs one
squaring and no plaintext product (as in LoLa, Brutzkus et al. 2019, section 4, and HElayers). Flattening, pooling and
the batch normalisation that `models` already folded disappear into the matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from backends.api import BackendError
from models.network import AveragePool, Conv, Flatten, Gemm, Network, Polynomial, Relu

Activation = Callable[[np.ndarray], np.ndarray]
RANGE_MARGIN = 1.5  # how far beyond the calibration images an intermediate value may go
SMALLEST_RANGE = 1e-3  # of one value, relative to the largest of its layer


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


@dataclass(frozen=True)
class Affine:
    """``u = weight · x + bias``; weight: (outputs, inputs); bias: (outputs,).

    shape: of the outputs before they were flattened, (channels, height, width) behind a convolution.
    """

    weight: np.ndarray
    bias: np.ndarray
    shape: tuple[int, ...] = ()

    @property
    def terms(self) -> int:
        """The largest number of products in one output."""
        return max(1, int(np.count_nonzero(self.weight, axis=1).max()))


@dataclass(frozen=True)
class Blocks:
    """``logits = output_scale · A_n(f(A_{n−1}(… f(A_1(x)) …)))`` with f the element-wise square, or Relu.

    Every A_i is scaled so that its outputs stay within [−1, 1] on the calibration images times `RANGE_MARGIN`: then
    two bits of head room serve every network.
    """

    affines: tuple[Affine, ...]
    output_scale: float
    activation: Activation = np.square

    def forward(self, x: np.ndarray) -> np.ndarray:
        """x: (batch, inputs), flattened images → logits (batch, outputs)."""
        for index, affine in enumerate(self.affines):
            x = (x if index == 0 else self.activation(x)) @ affine.weight.T + affine.bias
        return x * self.output_scale


def from_network(network: Network, calibration: np.ndarray, lowering: str = "polynomial") -> Blocks:
    """calibration: images (n, channels, height, width) in [0, 1].

    lowering: the one that is needed; a polynomial network becomes squares, a float one keeps its Relu. Raises
    BackendError for any other network, and for an activation that is not of degree 2 or lacks the square.
    """
    if network.lowering != lowering:
        raise BackendError(f"CKKS needs the {lowering} lowering of {network.model}, not {network.lowering!r}")
    shape: tuple[int, ...] = network.input_shape
    current = Affine(np.eye(math.prod(shape)), np.zeros(math.prod(shape)), shape)
    affines: list[Affine] = []
    for layer in network.operators:
        if isinstance(layer, Polynomial):
            shift, factor, constant = _complete_square(layer, shape)
            affines.append(Affine(current.weight, current.bias + shift, shape))
            current = Affine(np.diag(factor), constant, shape)
        elif isinstance(layer, Relu) and lowering == "float":
            affines.append(current)
            current = Affine(np.eye(math.prod(shape)), np.zeros(math.prod(shape)), shape)
        elif isinstance(layer, (Gemm, Conv, AveragePool, Flatten)):
            current = _compose(layer, current)
            shape = current.shape
        else:
            raise BackendError(f"CKKS cannot evaluate {type(layer).__name__}; train the polynomial lowering")
    affines.append(current)
    activation = relu if lowering == "float" else np.square
    return _normalise(tuple(affines), calibration.reshape(len(calibration), -1), activation)


def _compose(layer: Gemm | Conv | AveragePool | Flatten, before: Affine) -> Affine:
    """``layer ∘ before``; applying the layer to the columns of the matrix keeps one definition of each layer."""

    def apply(columns: np.ndarray) -> np.ndarray:
        return np.asarray(layer(columns.T.reshape(-1, *before.shape)))

    bias = apply(before.bias[:, None])
    constant = apply(np.zeros((len(before.bias), 1)))
    weight = apply(before.weight) - constant
    return Affine(weight.reshape(len(weight), -1).T, bias.reshape(-1), bias.shape[1:])


def _complete_square(layer: Polynomial, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift before the square, factor and constant after it, each for every element of `shape` flattened."""
    c = np.asarray(layer.coefficients, dtype=np.float64)
    if len(c) != 3:
        raise BackendError(f"the packing engine evaluates activations of degree 2, not {len(c) - 1}")
    per_channel = (
        np.broadcast_to(c.reshape(3, -1), (3, shape[0])) if c.ndim == 2 else np.repeat(c[:, None], shape[0], 1)
    )
    c0, c1, c2 = np.repeat(per_channel, int(np.prod(shape[1:], dtype=int)), axis=1)
    if np.any(np.abs(c2) < 1e-6 * np.maximum(1.0, np.abs(c1))):
        raise BackendError("an activation has (almost) no quadratic term: the square cannot be completed; train again")
    return c1 / (2 * c2), c2, c0 - c1**2 / (4 * c2)


def _normalise(affines: tuple[Affine, ...], x: np.ndarray, activation: Activation) -> Blocks:
    """Divides each output of an affine map by its largest value, so that the noise is small against every one of them;
    the next map takes the factor back, as the activation (square or Relu) left it. The logits have one factor for all."""
    if not len(x):
        raise BackendError("the owner needs calibration images to know the range of the intermediate values")
    scaled: list[Affine] = []
    factor: np.ndarray | float = 1.0
    for index, affine in enumerate(affines):
        weight = affine.weight * factor
        values = (x if index == 0 else activation(x)) @ weight.T + affine.bias
        largest = np.abs(values).max(axis=0)
        overall = max(float(largest.max()), 1e-12)
        last = index == len(affines) - 1
        # a unit that hardly ever differs from zero is not blown up without limit: other images may move it more
        largest = RANGE_MARGIN * (
            np.full_like(largest, overall) if last else np.maximum(largest, SMALLEST_RANGE * overall)
        )
        scaled.append(Affine(weight / largest[:, None], affine.bias / largest, affine.shape))
        x, factor = values / largest, activation(largest)
    return Blocks(tuple(scaled), float(largest[0]), activation)
