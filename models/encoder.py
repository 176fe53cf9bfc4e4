"""The encoder of the client: images → latents, which are encrypted in their place. NumPy alone, for the client's process.

It is the first half of an autoencoder with a codebook (van den Oord et al., "Neural discrete representation learning",
NeurIPS 2017; Esser et al., "Taming transformers", CVPR 2021), which `models.encoder_training` trains. Its network is a chain

::

    image ─► convolutions ─► latent, standardised ─► Conv: scores of the codes ─► Conv: values of a code ─► Flatten

The largest score is that of the nearest code: ``‖z − c‖² = ‖z‖² − 2·(z·c − ‖c‖²/2)``, so the latent after quantisation is
what the last convolution makes of a one at the largest score and zeros elsewhere. Whatever comes after the latent is not
needed where it is encrypted as it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from models import NetworkError
from models.network import Conv, Network, Relu, unary
from models.tasks import normalise


@dataclass(frozen=True, eq=False)
class Encoder:
    """network: as described above. quantised: whether latents are of codes alone. Raises NetworkError for any other."""

    network: Network
    quantised: bool = False

    def __post_init__(self) -> None:
        kinds = [type(operator) for operator in self.network.operators]
        if not self.network.is_chain or kinds[-3:-1] != [Conv, Conv] or not {*kinds[:-3]} <= {Conv, Relu}:
            raise NetworkError(
                f"{self.network.model} of {self.network.task} is no encoder: delete it and train it again"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a latent."""
        return self.network.shapes[self._latent]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"{self.network.sha256} {self.quantised}".encode()).hexdigest()

    @property
    def _latent(self) -> str:
        return self.network.nodes[-4].output

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """images: (n, channels, height, width) in [0, 1], resized if the encoder reads another size → latents float32."""
        parts = [self._encoded(images[i : i + 16]) for i in range(0, len(images), 16)]  # bounds the client's memory
        return np.concatenate(parts) if parts else np.zeros((0, *self.shape), np.float32)

    def read(self, images: np.ndarray) -> np.ndarray:
        """Of images as a dataset has them, uint8."""
        return self(normalise(images))

    def _encoded(self, images: np.ndarray) -> np.ndarray:
        source, (_, height, width) = self.network.inputs[0].name, self.network.input_shape
        *_, scores, values, _ = self.network.nodes
        wanted = scores.output if self.quantised else self._latent
        made = self.network.evaluate({source: resized(images, (height, width))}, [wanted])[wanted]
        if self.quantised:
            nearest = np.arange(made.shape[1])[:, None, None] == made.argmax(axis=1)[:, None]
            made = np.asarray(unary(values.operator)(nearest.astype(np.float64)))
        return made.astype(np.float32)

    def described(self) -> dict[str, Any]:
        """What a record says of it."""
        names = ("trained_on", "psnr_db", "codes_used", "seed", "effort")
        return {
            "sha256": self.sha256,
            "quantised": self.quantised,
            "reads": list(self.network.input_shape),
            "latent": list(self.shape),
            **{name: self.network.provenance[name] for name in names if name in self.network.provenance},
        }


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, channels, height, width) at another size: bilinear, pixel centres aligned, edges repeated."""
    down, across = (_interpolation(old, new) for old, new in zip(images.shape[2:], size, strict=True))
    return (
        images
        if images.shape[2:] == tuple(size)
        else np.einsum("ih,nchw,jw->ncij", down, images, across, optimize=True)
    )


def _interpolation(old: int, new: int) -> np.ndarray:
    """(new, old)"""
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)))
