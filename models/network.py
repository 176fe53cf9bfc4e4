"""The neutral network description: a list of plain layers with NumPy weights, read by every backend.

A network is *lowered* in one of three ways, named by `Network.lowering`:

* ``float``      the trained reference (ReLU), never encrypted;
* ``polynomial`` every activation is a polynomial, for CKKS;
* ``integer``    every value is quantised (`Quantise`), weights are integers times a scale, for TFHE.

This module needs only the standard library and NumPy, because it is loaded in every party process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from models import NetworkError

LOWERINGS = ("float", "polynomial", "integer")


@dataclass(frozen=True, eq=False)
class Linear:
    """``y = W x + b``.

    weight: (outputs, inputs); bias: (outputs,). In an integer network, ``weight / weight_scale`` holds integers of
    `weight_bits` bits; elsewhere both are ``None``.
    """

    type: ClassVar[str] = "linear"
    weight: np.ndarray
    bias: np.ndarray
    weight_bits: int | None = None
    weight_scale: float | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Cross-correlation as in torch. weight: (outputs, inputs / groups, kernel_h, kernel_w); bias: (outputs,)."""

    type: ClassVar[str] = "conv2d"
    weight: np.ndarray
    bias: np.ndarray
    stride: int = 1
    padding: int = 0
    groups: int = 1
    weight_bits: int | None = None
    weight_scale: float | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        p = self.padding
        x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        outputs, per_group, kh, kw = self.weight.shape
        windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(2, 3))[
            :, :, :: self.stride, :: self.stride
        ]
        batch, _, height, width = windows.shape[:4]
        windows = windows.reshape(batch, self.groups, per_group, height, width, kh, kw)
        weight = self.weight.reshape(self.groups, outputs // self.groups, per_group, kh, kw)
        y = np.einsum("bgchwij,gocij->bgohw", windows, weight, optimize=True)
        return y.reshape(batch, outputs, height, width) + self.bias[:, None, None]


@dataclass(frozen=True, eq=False)
class AvgPool2d:
    """Average over windows of `kernel` × `kernel`, `stride` apart, without padding."""

    type: ClassVar[str] = "avgpool2d"
    kernel: int
    stride: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(x, (self.kernel, self.kernel), axis=(2, 3))
        return windows[:, :, :: self.stride, :: self.stride].mean(axis=(-2, -1))


@dataclass(frozen=True, eq=False)
class Flatten:
    """(batch, channels, height, width) → (batch, channels · height · width), row-major."""

    type: ClassVar[str] = "flatten"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1)


@dataclass(frozen=True, eq=False)
class ReLU:
    type: ClassVar[str] = "relu"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)


@dataclass(frozen=True, eq=False)
class Polynomial:
    """``y = Σ_k coefficients[k] · x^k``, element by element.

    coefficients: (degree + 1,), or (degree + 1, channels) for one polynomial a channel (axis 1 of the input).
    """

    type: ClassVar[str] = "polynomial"
    coefficients: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        c = self.coefficients
        c = c.reshape(c.shape[:2] + (1,) * (x.ndim - 2)) if c.ndim == 2 else c
        y = np.broadcast_to(c[-1], x.shape)
        for lower in c[-2::-1]:
            y = y * x + lower
        return y


@dataclass(frozen=True, eq=False)
class Quantise:
    """``y = scale · clip(round(x / scale), low, high)`` with `bits` bits; round half to even, as in torch."""

    type: ClassVar[str] = "quantise"
    scale: float
    bits: int
    signed: bool = False

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest integer: narrow signed range, as brevitas uses it, or 0 … 2^bits − 1."""
        return (-(2 ** (self.bits - 1)) + 1, 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.clip(np.round(x / self.scale), *self.range) * self.scale


Layer = Linear | Conv2d | AvgPool2d | Flatten | ReLU | Polynomial | Quantise
LAYER_TYPES: dict[str, type] = {c.type: c for c in (Linear, Conv2d, AvgPool2d, Flatten, ReLU, Polynomial, Quantise)}


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network that maps images (batch, channels, height, width) in [0, 1] to logits (batch, outputs).

    `provenance` says how it was made (seed, epochs, validation score, versions) and plays no part in inference.
    """

    model: str
    task: str
    lowering: str
    input_shape: tuple[int, int, int]
    outputs: int
    layers: tuple[Layer, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lowering not in LOWERINGS:
            raise NetworkError(f"unknown lowering {self.lowering!r}: expected one of {', '.join(LOWERINGS)}")
        shape = self.forward(np.zeros((1, *self.input_shape))).shape
        if shape != (1, self.outputs):
            raise NetworkError(f"the layers produce shape {shape[1:]}, not ({self.outputs},)")

    def forward(self, images: np.ndarray) -> np.ndarray:
        """Logits (batch, outputs) in float64: the clear reference of this lowering."""
        x = np.asarray(images, dtype=np.float64)
        for layer in self.layers:
            x = layer(x)
        return x

    @property
    def sha256(self) -> str:
        """Identity of what is computed: layers and weights, without the provenance."""
        digest = hashlib.sha256(json.dumps(_header(self) | {"provenance": None}, sort_keys=True).encode())
        for name, array in sorted(_arrays(self).items()):
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()

    # -- one file for weights (safetensors), one for everything a person reads (JSON) ------------------------------

    def save(self, stem: Any) -> None:
        """Writes ``stem.safetensors`` and ``stem.json``."""
        from pathlib import Path

        from safetensors.numpy import save_file

        stem = Path(stem)
        stem.parent.mkdir(parents=True, exist_ok=True)
        save_file(_arrays(self), stem.with_name(stem.name + ".safetensors"))
        stem.with_name(stem.name + ".json").write_text(json.dumps(_header(self), indent=1) + "\n")

    @staticmethod
    def load(stem: Any) -> Network:
        """Reads what `save` wrote. Raises NetworkError for files that are damaged or do not belong together."""
        from pathlib import Path

        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        stem = Path(stem)
        try:
            header = json.loads(stem.with_name(stem.name + ".json").read_text())
            return _build(header, load_file(stem.with_name(stem.name + ".safetensors")))
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise NetworkError(f"damaged network {stem}: {error}; delete it and train again") from error

    # -- one block of bytes, for the message to a party (no library but NumPy) -------------------------------------

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, header=np.frombuffer(json.dumps(_header(self)).encode(), np.uint8), **_arrays(self))
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Network:
        """Raises NetworkError for bytes that `to_bytes` did not write."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in arrays.files}
            return _build(json.loads(values.pop("header").tobytes()), values)
        except NetworkError:
            raise
        except Exception as error:  # zipfile, NumPy and JSON each raise their own kinds for damaged bytes
            raise NetworkError(f"damaged network message: {error}") from error


def _arrays(network: Network) -> dict[str, np.ndarray]:
    return {
        f"{index}.{f.name}": np.ascontiguousarray(getattr(layer, f.name))
        for index, layer in enumerate(network.layers)
        for f in dataclasses.fields(layer)
        if isinstance(getattr(layer, f.name), np.ndarray)
    }


def _header(network: Network) -> dict[str, Any]:
    def describe(layer: Layer) -> dict[str, Any]:
        values = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer)}
        return {"type": layer.type} | {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}

    names = ("model", "task", "lowering", "outputs", "provenance")
    return {
        **{name: getattr(network, name) for name in names},
        "input_shape": list(network.input_shape),
        "layers": [describe(layer) for layer in network.layers],
    }


def _build(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Network:
    layers = []
    for index, spec in enumerate(header["layers"]):
        spec = dict(spec)
        cls = LAYER_TYPES.get(spec.pop("type"))
        if cls is None:
            raise NetworkError(f"layer {index} is of an unknown type; this file needs a newer version")
        names = {f.name for f in dataclasses.fields(cls)}
        layers.append(cls(**spec, **{n: arrays[f"{index}.{n}"] for n in names if f"{index}.{n}" in arrays}))
    fields = {k: header[k] for k in ("model", "task", "lowering", "outputs", "provenance")}
    return Network(**fields, input_shape=tuple(header["input_shape"]), layers=tuple(layers))
