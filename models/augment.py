"""Random views of training images: small rotations, scalings, shifts, and changes of brightness, contrast and gamma.

No reflections: in several tasks the side of the body is the label. Strengths are the same for every task.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

ROTATION = math.radians(10)
SCALING = 0.1
SHIFT = 0.08  # of the image's side: about two pixels
BRIGHTNESS = 0.1  # of the full range
CONTRAST = 0.2
GAMMA = 0.2  # in natural logarithm


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(n, channels, height, width) in [0, 1] → one random view of each image, of the same shape and range."""

    def jitter(strength: float) -> torch.Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * strength

    angle, scale = jitter(ROTATION), 1 + jitter(SCALING)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    shift_x, shift_y = jitter(2 * SHIFT), jitter(2 * SHIFT)  # a side is two units long in affine_grid
    transform = torch.stack([torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)], 1)
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    # Repeat the border: black corners would be a feature that no test image has.
    views = functional.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp(0, 1)

    brightness, contrast, gamma = (jitter(strength)[:, None, None, None] for strength in (BRIGHTNESS, CONTRAST, GAMMA))
    views = views.clamp(min=1e-4) ** gamma.exp()
    mean = views.mean((1, 2, 3), keepdim=True)
    return ((views - mean) * (1 + contrast) + mean + brightness).clamp(0, 1)
