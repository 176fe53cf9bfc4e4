"""The teacher: a small convolutional network that is never encrypted. Its opinion of augmented images trains the rest.

Distillation with the same view for teacher and student: Beyer et al., "Knowledge distillation: a good teacher is
patient and consistent", CVPR 2022.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WIDTH = 16
SIDE = 28


class Teacher(nn.Module):
    """Five 3×3/5×5 convolutions with batch normalisation; images (n, channels, height, width) in [0, 1] → logits.

    It looks at images of about `SIDE` pixels a side: larger ones are averaged over squares first. They need 4 pixels a side.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
            layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
            return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]

        self.features = nn.Sequential(
            *convolution(channels, WIDTH, 5),
            nn.MaxPool2d(2),
            *convolution(WIDTH, 2 * WIDTH, 3),
            *convolution(2 * WIDTH, 2 * WIDTH, 3),
            nn.MaxPool2d(2),
            *convolution(2 * WIDTH, 4 * WIDTH, 3),
            *convolution(4 * WIDTH, 4 * WIDTH, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.output = nn.Sequential(nn.Dropout(0.3), nn.Linear(4 * WIDTH, outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if (square := round(min(images.shape[2:]) / SIDE)) > 1:
            images = functional.avg_pool2d(images, square)
        return self.output(self.features((images - 0.5) / 0.25))
