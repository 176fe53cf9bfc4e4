"""Quantisation-aware training: a trained real network → an integer network for TFHE.

A hidden neuron costs TFHE one programmable bootstrapping (PBS), whose price depends on how many bits of the accumulator
it reads. It does not depend on the bits of weights and inputs when the accumulator is *rounded*: its low bits are dropped
for free. So weights and inputs have plenty of bits here, each accumulator is rounded to a few, and training

* scales every channel to use the whole range of the rounded accumulator;
* penalises accumulators near the end of that range, beyond which the table would be read at the wrong entry
  (the aim of Colbert et al., "A2Q: Accumulator-Aware Quantization", ICCV 2023, as a soft limit);
* adds the noise that TFHE's approximate rounding adds.

Rounding passes gradients straight through (Bengio, Léonard and Courville 2013); steps of activations are learnt (Esser et
al., "Learned step size quantization", ICLR 2020). What is left in the clear: the bias of the last layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models import NetworkError
from models.network import (
    AveragePool,
    Conv,
    Flatten,
    Gemm,
    Network,
    Operator,
    Polynomial,
    Quantise,
    Relu,
    chain,
    unary,
)

BATCH = 256
RATE = 3e-4
DECAY = 0.1
PENALTY = 10.0
LIMIT = 0.9  # share of an accumulator's range from which it is penalised
MARGIN = 1.1  # of that range over the largest value that the real network reaches
ROOM = 1.05  # of that range over the largest value that the trained integer network reaches
NOISE = (
    0.2  # standard deviation in steps of a rounded accumulator: p_error 0.01 is half a step at 2.6 of them, 1e-4 at 3.9
)
CALIBRATION_IMAGES = 10_000
CALIBRATION_VALUES = 40_000_000  # in their pixels: fewer images, if they are large
TAIL = 0.002  # share of an activation's values beyond either end of its range, before the fit

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Quantisation:
    """Bits of every kind of value. Signed ones are narrow: 3 bits are -3 … 3.

    accumulator_bits: that the PBS reads after rounding; None: accumulators are not rounded.
    activation_bits: of an activation's output; Relu with one bit is a step.
    pruning: share of the weights before each activation that are zero, those of least magnitude (L1).
    """

    input_bits: int = 5
    weight_bits: int = 8
    accumulator_bits: int | None = 5
    activation_bits: int = 4
    output_weight_bits: int = 5
    pruning: float = 0.0


# -- real network → module ---------------------------------------------------------------------------------------------


def _through(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y, with the gradient of x."""
    return x + (y - x).detach()


def _quantised(x: torch.Tensor, step: torch.Tensor | float, low: int, high: int) -> torch.Tensor:
    """Integers times step; the gradient passes within the range, and also reaches `step`."""
    scaled = (x / step).clamp(low, high)
    return _through(scaled, scaled.round()) * step


class _Affine(nn.Module):
    """A linear or convolutional layer with integer weights, and how its accumulator is rounded, if it is.

    reach: the largest accumulator seen since it was set to 0, as a share of the range.
    """

    def __init__(self, layer: Gemm | Conv, bits: int, rounding: Quantise | None, pruning: float) -> None:
        super().__init__()
        self.layer, self.bits, self.rounding, self.reach = layer, bits, rounding, 0.0
        self.weight = nn.Parameter(torch.from_numpy(layer.weight).float())
        self.bias = nn.Parameter(torch.from_numpy(layer.bias).float())
        threshold = self.weight.detach().abs().flatten().quantile(pruning) if pruning else torch.tensor(-1.0)
        self.register_buffer("mask", (self.weight.detach().abs() > threshold).float())

    def weight_scale(self, input_scale: float) -> float:
        """The finest scale that holds the weights and whose unit is the rounding step over a power of two."""
        finest = (self.weight * self.mask).abs().max().item() / (2 ** (self.bits - 1) - 1)
        if self.rounding is None:
            return finest
        return (
            self.rounding.scale
            / input_scale
            / 2 ** max(math.floor(math.log2(self.rounding.scale / input_scale / finest)), 0)
        )

    def integer_bias(self, input_scale: float) -> torch.Tensor:
        """Of a rounded accumulator: a multiple of its unit and a quarter, which decides ties as Concrete does, half up."""
        unit = self.weight_scale(input_scale) * input_scale
        return ((self.bias / unit).round() + 0.25) * unit if self.rounding else self.bias

    def accumulate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if isinstance(self.layer, Gemm):
            return functional.linear(x, weight, bias)
        top, left, bottom, right = self.layer.pads
        x = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(
            x, weight, bias, self.layer.strides, dilation=self.layer.dilations, groups=self.layer.group
        )

    def forward(self, x: torch.Tensor, input_scale: float) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Accumulators, and the penalty for those near the end of their range."""
        largest = 2 ** (self.bits - 1) - 1
        weight = _quantised(self.weight * self.mask, self.weight_scale(input_scale), -largest, largest)
        y = self.accumulate(x, weight, _through(self.bias, self.integer_bias(input_scale)))
        if self.rounding is None:
            return y, 0.0
        low, high = self.rounding.range
        steps = y / self.rounding.scale
        self.reach = max(self.reach, steps.abs().max().item() / (high + 0.5))
        excess = functional.relu(steps.abs() - LIMIT * (high + 0.5)).square().flatten(1).sum(1).mean()
        if self.training:
            steps = steps + torch.randn_like(steps) * NOISE
        steps = steps.clamp(low, high)
        return _through(steps, steps.round()) * self.rounding.scale, excess

    def export(self, input_scale: float) -> Gemm | Conv:
        scale = self.weight_scale(input_scale)
        largest = 2 ** (self.bits - 1) - 1
        weight = np.clip(np.round((self.weight * self.mask).double().numpy() / scale), -largest, largest) * scale
        weight, bias = weight.astype(np.float32), self.integer_bias(input_scale).numpy().copy()
        return dataclasses.replace(self.layer, weight=weight, bias=bias, weight_bits=self.bits, weight_scale=scale)


class _Activation(nn.Module):
    """ReLU or a polynomial, and the quantiser of its output."""

    def __init__(self, layer: Relu | Polynomial, quantise: Quantise) -> None:
        super().__init__()
        self.layer, self.quantise = layer, quantise
        self.log_step = nn.Parameter(torch.tensor(math.log(quantise.scale)))
        if isinstance(layer, Polynomial):
            self.coefficients = nn.Parameter(torch.from_numpy(layer.coefficients).float())

    @property
    def scale(self) -> float:
        return math.exp(self.log_step.item())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.layer, Polynomial):
            c0, c1, c2 = self.coefficients.reshape(3, -1, *[1] * (x.dim() - 2))
            x = c0 + x * (c1 + c2 * x)
        else:
            x = functional.relu(x)
        return _quantised(x, self.log_step.exp(), *self.quantise.range)

    def export(self) -> tuple[Operator, Operator]:
        layer: Operator = self.layer
        if isinstance(layer, Polynomial):
            layer = Polynomial(self.coefficients.numpy().copy())
        return layer, dataclasses.replace(self.quantise, scale=self.scale)


class _Quantised(nn.Module):
    """before: layers that the client computes in the clear, the last but flattening is the `Quantise` of the input."""

    def __init__(self, before: tuple[Operator, ...], parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.before, self.parts = before, nn.ModuleList(parts)
        self.input_scale = next(layer.scale for layer in before if isinstance(layer, Quantise))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """images: uint8. Logits, and the sum of the penalties."""
        x, scale, penalty = _client(self.before, images / 255), self.input_scale, 0.0
        for part in self.parts:
            if isinstance(part, _Affine):
                x, excess = part(x, scale)
                penalty = penalty + excess
            else:
                x = part(x)
                scale = getattr(part, "scale", scale)
        return x, penalty

    @torch.no_grad()
    def export(self) -> tuple[Operator, ...]:
        layers, scale = list(self.before), self.input_scale
        for part in self.parts:
            if isinstance(part, _Affine):
                layers.append(part.export(scale))
                if part.rounding is not None:
                    layers.append(part.rounding)
            elif isinstance(part, _Activation):
                layers += part.export()
                scale = part.scale
            else:
                layers.append(Flatten())
        return tuple(layers)


def _client(layers: Sequence[Operator], x: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        if isinstance(layer, AveragePool):
            x = functional.avg_pool2d(x, layer.kernel_shape, layer.strides)
        elif isinstance(layer, Quantise):
            x = (x / layer.scale).round().clamp(*layer.range) * layer.scale
        else:
            x = x.flatten(1)
    return x


def module(network: Network, bits: Quantisation, images: np.ndarray) -> nn.Module:
    """What is fine-tuned: `network` (float or polynomial) behind quantisers whose ranges are those of `images` (uint8).

    Pooling and flattening before the first affine layer stay with the client; pooling behind an activation becomes part
    of the linear layer that follows. Raises NetworkError for layers that it does not know.
    """
    layers = fold_pooling(network)
    start = next(i for i, layer in enumerate(layers) if isinstance(layer, Gemm | Conv))
    before: list[Operator] = [layer for layer in layers[:start] if isinstance(layer, AveragePool | Flatten)]
    if len(before) < start:
        raise NetworkError("only pooling and flattening may come before the first linear or convolutional layer")
    before.insert(
        sum(isinstance(layer, AveragePool) for layer in before), Quantise(1 / (2**bits.input_bits - 1), bits.input_bits)
    )
    x = _client(before, torch.from_numpy(images) / 255).double().numpy()
    parts: list[nn.Module] = []
    rest = list(layers[start:])
    while rest:
        layer, following = rest.pop(0), rest[0] if rest else None
        if isinstance(layer, Flatten):
            parts.append(nn.Flatten())
            x = layer(x)
        elif isinstance(layer, Gemm | Conv) and isinstance(following, Relu | Polynomial):
            del rest[0]
            layer, activation = _scaled(layer, following, layer(x))
            rounding = None
            if bits.accumulator_bits is not None:
                high = 2 ** (bits.accumulator_bits - 1) - 1
                rounding = Quantise(MARGIN / (high + 0.5), bits.accumulator_bits, signed=True)
                if isinstance(activation, Relu):  # channels keep their relation
                    rounding = dataclasses.replace(rounding, scale=rounding.scale * float(np.abs(layer(x)).max()))
            if isinstance(activation, Polynomial):
                activation = _spread(activation, layer(x), rest)
            y = activation(layer(x))
            quantise = Quantise(1.0, bits.activation_bits, signed=isinstance(activation, Polynomial))
            quantise = _fitted(quantise, y)
            parts += [_Affine(layer, bits.weight_bits, rounding, bits.pruning), _Activation(activation, quantise)]
            x = y
        elif isinstance(layer, Gemm | Conv) and following is None:
            parts.append(_Affine(layer, bits.output_weight_bits, None, 0.0))
        else:
            raise NetworkError(f"{type(layer).__name__} has no place in an integer network")
    return _Quantised(tuple(before), parts)


def _fitted(quantise: Quantise, values: np.ndarray) -> Quantise:
    """With the scale of least squared error."""
    sample = values.ravel()[:: -(-values.size // 100_000)]
    largest = np.abs(sample).max() / quantise.range[1]
    fits = (dataclasses.replace(quantise, scale=float(largest * share)) for share in np.linspace(0.1, 1, 19))
    return min(fits, key=lambda fit: np.square(fit(sample) - sample).mean())


def _scaled(layer: Gemm | Conv, activation: Relu | Polynomial, y: np.ndarray) -> tuple[Gemm | Conv, Relu | Polynomial]:
    """Before a polynomial, each channel of the accumulators `y` is scaled to -1 … 1, and the polynomial takes it back."""
    if isinstance(activation, Relu):
        return layer, activation
    reach = np.abs(y).max(axis=tuple(i for i in range(y.ndim) if i != 1))
    weight = layer.weight / reach.reshape(-1, *[1] * (layer.weight.ndim - 1))
    powers = reach ** np.arange(3)[:, None]
    coefficients = activation.coefficients.reshape(3, -1) * powers
    return dataclasses.replace(layer, weight=weight, bias=layer.bias / reach), Polynomial(coefficients)


def _spread(activation: Polynomial, accumulators: np.ndarray, rest: list[Operator]) -> Polynomial:
    """Each channel of the output moved and scaled to -1 … 1; the next layer, the first affine one of `rest`, takes it back.

    The ends are quantiles, because the tails of a square are long. Behind a padded convolution zero must stay zero.
    """
    index, following = next((i, layer) for i, layer in enumerate(rest) if isinstance(layer, Gemm | Conv))
    y = np.moveaxis(activation(accumulators), 1, 0).reshape(accumulators.shape[1], -1)
    low, high = np.quantile(y, (TAIL, 1 - TAIL), axis=1)
    if isinstance(following, Conv):
        if following.group > 1:
            return activation
        middle, reach = np.zeros(len(y)), np.maximum(np.maximum(-low, high), 1e-6)
        weight = following.weight * reach[:, None, None]
    else:
        middle, reach = (low + high) / 2, np.maximum((high - low) / 2, 1e-6)
        weight = following.weight * np.repeat(reach, following.weight.shape[1] // len(y))
    if isinstance(following, Gemm):
        shift = following.weight @ np.repeat(middle, following.weight.shape[1] // len(y))
        following = dataclasses.replace(following, bias=following.bias + shift)
    rest[index] = dataclasses.replace(following, weight=weight)
    coefficients = activation.coefficients.reshape(3, -1).copy()
    coefficients[0] -= middle
    return Polynomial(coefficients / reach)


def fold_pooling(network: Network) -> tuple[Operator, ...]:
    """The layers with average pooling between an activation and a linear layer made part of the linear layer."""
    if not network.is_chain:
        raise NetworkError("only a chain of operators can be fine-tuned behind quantisers")
    layers = list(map(unary, network.operators))
    x, index = np.zeros((1, *network.input_shape)), 0
    while index < len(layers):
        layer = layers[index]
        if not isinstance(layer, AveragePool) or not any(isinstance(before, Gemm | Conv) for before in layers[:index]):
            x, index = layer(x), index + 1
            continue
        match layers[index + 1 : index + 3]:
            case [Flatten(), Gemm() as linear]:
                inputs = int(np.prod(x.shape[1:]))
                basis = layer(np.eye(inputs).reshape(inputs, *x.shape[1:])).reshape(inputs, -1)
                layers[index : index + 3] = [Flatten(), dataclasses.replace(linear, weight=linear.weight @ basis.T)]
            case _:
                raise NetworkError(
                    "average pooling behind an activation must be followed by flattening and a linear layer"
                )
    return tuple(layers)


# -- training ----------------------------------------------------------------------------------------------------------


def fine_tune(
    network: Network,
    bits: Quantisation,
    pool: tuple[torch.Tensor, torch.Tensor],
    loss: Loss,
    *,
    seed: int,
    images: int,
    progress: Progress | None = None,
) -> Network:
    """The integer lowering of a trained float or polynomial network.

    pool: images (n, channels, height, width) uint8 and targets (n, outputs), probabilities.
    images: how many are seen. AdamW with a one-cycle schedule (Smith and Topin 2019), to its end.
    """
    torch.manual_seed(seed)
    report = progress or (lambda fraction, text: None)
    shown = min(CALIBRATION_IMAGES, CALIBRATION_VALUES // math.prod(network.input_shape))
    quantised = module(network, bits, pool[0][:shown].numpy()).train()
    steps, size = max(images // BATCH, 1), min(BATCH, len(pool[0]))
    optimiser = torch.optim.AdamW(quantised.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        batch = torch.randint(len(pool[0]), (size,))
        logits, penalty = quantised(pool[0][batch])
        value = loss(logits, pool[1][batch]) + PENALTY * penalty
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            report(step / steps, f"quantised, step {step} of {steps}, loss {value.item():.3f}")
    _widen(quantised.eval(), pool[0])
    layers = quantised.export()
    provenance: dict[str, Any] = {"quantisation": dataclasses.asdict(bits) | {"images": images, "seed": seed}}
    return chain(network.model, network.task, "integer", network.input_shape, layers, provenance)


@torch.no_grad()
def _widen(quantised: nn.Module, images: torch.Tensor) -> None:
    """Makes room for the largest accumulators of all `images`: longer steps, and the tables follow."""
    affines = [(part, part.rounding) for part in quantised.parts if isinstance(part, _Affine) and part.rounding]
    for part, _ in affines:
        part.reach = 0.0
    for views in images.split(4 * BATCH):
        quantised(views)
    for part, rounding in affines:
        part.rounding = dataclasses.replace(rounding, scale=rounding.scale * max(part.reach * ROOM, 1.0))
