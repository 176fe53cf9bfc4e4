"""Quantisation-aware training (brevitas), and the way between the neutral integer network and a brevitas module.

TFHE evaluates a hidden neuron with one programmable bootstrapping, whose cost is set by the width of the accumulator
that it reads. So inputs have three bits and hidden weights are -1, 0 or 1, and the training itself keeps the
accumulators narrow: values near the end of `ACCUMULATOR_BITS` are penalised (the aim of Colbert et al., "A2Q:
Accumulator-Aware Quantization with Guaranteed Overflow Avoidance", ICCV 2023, here as a soft limit with a margin).
Accumulators need no rounding before the bootstrapping, so encryption computes what `Network.forward` computes.

Scales are constants. Biases are real: that of the hidden layer becomes part of the table of its bootstrappings, that of
the output is added in the clear after decryption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import brevitas.nn as qnn
import numpy as np
import torch
from brevitas.inject.enum import RestrictValueType, ScalingImplType
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Uint8ActPerTensorFloat
from torch import nn
from torch.nn import functional

from models.network import Conv2d, Flatten, Layer, Linear, Network, NetworkError, Quantise, ReLU

MULTI_LABEL = "multi-label, binary-class"  # MedMNIST's name of the one kind that is not "one class of several"

ACCUMULATOR_BITS = 6  # signed, of the hidden layer
MARGIN = 0.65  # share of the accumulator's range that training uses; the rest is for images never seen
INPUT_BITS = 3
HIDDEN_WEIGHT_BITS = 2  # signed and narrow: -1, 0, 1
ACTIVATION_BITS = 2
ACTIVATION_STEP = 5  # accumulator units
OUTPUT_WEIGHT_BITS = 3
OUTPUT_WEIGHT_SCALE = 0.125

BATCH = 128
IMAGES = 600_000  # seen in one training
RESTARTS = 3
RATE = 1e-2
PENALTY = 0.3

Split = tuple[np.ndarray, np.ndarray]
Progress = Callable[[float, str], None]


# -- neutral network → brevitas ----------------------------------------------------------------------------------------


def to_torch(network: Network) -> nn.Sequential:
    """The brevitas module that computes `network`; concrete-ml imports exactly its integers and scales.

    Raises NetworkError for a network that is not lowered to integers, or has a layer without integer counterpart.
    """
    if network.lowering != "integer":
        raise NetworkError(f"a network lowered to {network.lowering!r} has no integers: train it with lowering integer")
    modules: list[nn.Module] = []
    layers = list(network.layers)
    while layers:
        layer = layers.pop(0)
        following = layers[0] if layers else None
        if isinstance(layer, ReLU) and isinstance(following, Quantise):
            modules.append(_activation(qnn.QuantReLU, layers.pop(0)))
        elif isinstance(layer, Flatten) and isinstance(following, Quantise):
            # The same, and concrete-ml wants every operation but the quantiser to see integers.
            modules += [_activation(qnn.QuantIdentity, layers.pop(0)), nn.Flatten()]
        elif isinstance(layer, Quantise):
            modules.append(_activation(qnn.QuantIdentity, layer))
        elif isinstance(layer, Linear | Conv2d):
            modules.append(_affine(layer))
        elif isinstance(layer, Flatten):
            modules.append(nn.Flatten())
        else:
            raise NetworkError(f"layer {layer.type!r} is not supported in an integer network")
    return nn.Sequential(*modules).eval()


def _activation(kind: type[nn.Module], layer: Quantise) -> nn.Module:
    base = Int8ActPerTensorFloat if layer.signed else Uint8ActPerTensorFloat
    quantiser = _constant_scale(base, layer.scale, layer.bits, layer.range[1], narrow_range=layer.signed)
    return kind(act_quant=quantiser, return_quant_tensor=True)


def _affine(layer: Linear | Conv2d) -> nn.Module:
    if layer.weight_bits is None or layer.weight_scale is None:
        raise NetworkError(f"a {layer.type} layer has no weight_bits or no weight_scale: its weights are not integers")
    largest = 2 ** (layer.weight_bits - 1) - 1
    if np.abs(layer.weight / layer.weight_scale).max() > largest + 1e-3:
        raise NetworkError(f"a {layer.type} layer has weights beyond {layer.weight_bits} bits")
    quantiser = _constant_scale(
        Int8WeightPerTensorFloat, layer.weight_scale, layer.weight_bits, largest, narrow_range=True
    )
    options: dict[str, Any] = {"bias": True, "weight_quant": quantiser}
    if isinstance(layer, Linear):
        module = qnn.QuantLinear(*layer.weight.shape[::-1], **options)
    else:
        outputs, per_group, *kernel = layer.weight.shape
        module = qnn.QuantConv2d(
            per_group * layer.groups, outputs, tuple(kernel),
            stride=layer.stride, padding=layer.padding, groups=layer.groups, **options,
        )
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(layer.weight))
        module.bias.copy_(torch.from_numpy(layer.bias))
    return module


def _constant_scale(base: type, scale: float, bits: int, largest: int, narrow_range: bool) -> type:
    """A quantiser with this scale; brevitas wants the threshold, which is that of the largest integer."""
    return base.let(
        bit_width=bits,
        scaling_impl_type=ScalingImplType.CONST,
        restrict_scaling_type=RestrictValueType.FP,
        scaling_init=scale * largest,
        narrow_range=narrow_range,
    )


# -- training ----------------------------------------------------------------------------------------------------------


def train_integer(
    train: Split,
    val: Split,
    *,
    model: str,
    task: str,
    kind: str,
    input_shape: tuple[int, int, int],
    outputs: int,
    hidden: int,
    seed: int,
    progress: Progress | None = None,
    images: int = IMAGES,
) -> Network:
    """`fcnn` with quantised inputs, weights and activations; the restart with the lowest validation loss is kept.

    train, val: images (n, channels, height, width), float32 in [0, 1] or uint8; labels: class indices (n, 1), or
        (n, labels) of 0 and 1 for a multi-label task, or soft ones (a teacher's, say), float (n, outputs).
    kind: the task's kind as MedMNIST names it.
    progress: called with the fraction done (0 … 1) and a line that says what is being done.
    images: how many images each training sees.
    """
    recipe = _Recipe(kind, outputs)
    pool = torch.from_numpy(train[0]), recipe.targets(train[1])
    check = torch.from_numpy(val[0]), recipe.targets(val[1])
    report = progress or (lambda fraction, text: None)
    best, chosen = np.inf, None
    for restart in range(RESTARTS):
        torch.manual_seed(seed * 1000 + restart)
        module = _initial(input_shape, hidden, outputs)
        recipe.fit(
            module, pool, images, lambda f, text, i=restart: report((i + f) / RESTARTS, f"restart {i + 1}, {text}")
        )
        with torch.no_grad():
            score = recipe.loss(_forward(module, check[0])[0], check[1]).item()
        if score < best:
            best, chosen = score, module
    report(1.0, f"validation loss {best:.3f}")
    provenance = {
        "quantisation": {
            "bits": {
                "input": INPUT_BITS,
                "hidden_weight": HIDDEN_WEIGHT_BITS,
                "accumulator": ACCUMULATOR_BITS,
                "activation": ACTIVATION_BITS,
                "output_weight": OUTPUT_WEIGHT_BITS,
            },
            "seed": seed,
            "images_seen": images,
            "restarts": RESTARTS,
            "validation_loss": best,
            "brevitas": version("brevitas"),
        }
    }
    return Network(model, task, "integer", input_shape, outputs, _export(chosen), provenance)


def _initial(input_shape: tuple[int, int, int], hidden: int, outputs: int) -> nn.Sequential:
    """The module to be trained: real weights behind the quantisers."""
    pixels = int(np.prod(input_shape))
    input_scale = 1 / (2**INPUT_BITS - 1)
    activation_scale = ACTIVATION_STEP * input_scale
    layers = (
        Flatten(),
        Quantise(input_scale, INPUT_BITS),
        Linear(np.zeros((hidden, pixels)), np.zeros(hidden), HIDDEN_WEIGHT_BITS, 1.0),
        ReLU(),
        Quantise(activation_scale, ACTIVATION_BITS),
        Linear(np.zeros((outputs, hidden)), np.zeros(outputs), OUTPUT_WEIGHT_BITS, OUTPUT_WEIGHT_SCALE),
    )
    module = to_torch(Network("", "", "integer", input_shape, outputs, layers))
    nn.init.normal_(module[2].weight, std=0.25)
    nn.init.normal_(module[4].weight, std=OUTPUT_WEIGHT_SCALE)
    nn.init.uniform_(module[2].bias, 0, 1)
    return module


def _forward(module: nn.Sequential, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the accumulators of the hidden layer in their unit."""
    quantise, flatten, affine, activation, output = module
    y = affine(flatten(quantise(_unit_range(images))))
    # The bias is no part of an accumulator: concrete-ml puts it into the bootstrapping's table.
    return output(activation(y)), (y - affine.bias) * (2**INPUT_BITS - 1)


def _unit_range(images: torch.Tensor) -> torch.Tensor:
    return images / 255 if images.dtype == torch.uint8 else images


@dataclasses.dataclass(frozen=True)
class _Recipe:
    kind: str
    outputs: int

    @property
    def multi_label(self) -> bool:
        return self.kind == MULTI_LABEL

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.multi_label:
            return functional.binary_cross_entropy_with_logits(logits, targets)
        return functional.cross_entropy(logits, targets)

    def targets(self, labels: np.ndarray) -> torch.Tensor:
        """Probabilities (n, outputs)."""
        if labels.dtype.kind == "f" or self.multi_label:
            return torch.from_numpy(labels).float()
        return functional.one_hot(torch.from_numpy(labels[:, 0]).long(), self.outputs).float()

    def fit(
        self, module: nn.Sequential, pool: tuple[torch.Tensor, torch.Tensor], images: int, progress: Progress
    ) -> None:
        """AdamW with a one-cycle schedule (Smith and Topin 2019), to its end."""
        module.train()
        size = min(BATCH, len(pool[0]))
        steps = max(images, len(pool[0])) // size
        optimiser = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
        limit = 2 ** (ACCUMULATOR_BITS - 1) * MARGIN
        for step in range(steps):
            batch = torch.randint(len(pool[0]), (size,))
            logits, accumulators = _forward(module, pool[0][batch])
            excess = functional.relu(accumulators.abs() - limit)
            value = self.loss(logits, pool[1][batch])
            optimiser.zero_grad()
            (value + PENALTY * excess.square().mean()).backward()
            optimiser.step()
            schedule.step()
            if step % 50 == 0:
                progress(step / steps, f"step {step} of {steps}, loss {value.item():.3f}")
        module.eval()


@torch.no_grad()
def _export(module: nn.Sequential) -> tuple[Layer, ...]:
    """The layers of the network description, from the integers and scales that brevitas uses."""

    def quantise(part: nn.Module) -> Quantise:
        return Quantise(part.act_quant.scale().item(), int(part.act_quant.bit_width().item()))

    def linear(part: nn.Module) -> Linear:
        weight = part.quant_weight()
        return Linear(weight.value.numpy(), part.bias.numpy().copy(), int(weight.bit_width.item()), weight.scale.item())

    inputs, _, hidden, activation, output = module
    return Flatten(), quantise(inputs), linear(hidden), ReLU(), quantise(activation), linear(output)
