"""Networks as users write them in torch, with weights and batch statistics that no special case hides."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import nn


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


class Quadratic(nn.Module):
    """Written out, so that an exporter makes many nodes of it; coefficients of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.rand(3, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = self.coefficients
        return a * x * x + b * x + c


class Lola(nn.Sequential):
    def __init__(self, outputs: int = 2, channels: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, 5, 5, 2), Square(), nn.Flatten(), nn.Linear(720, 32), Square(), nn.Linear(32, outputs)
        )


class LeNet(nn.Module):
    """Batch normalisation, ReLU, average pooling, dropout, and flattening by ``view``."""

    def __init__(self, outputs: int = 2, channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 4, 5, padding=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(4, 8, 5, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(200, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class Residual(nn.Module):
    """A residual block with squares; a grouped and dilated convolution."""

    def __init__(self, outputs: int = 2, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, 2, 1)
        self.first = nn.Conv2d(4, 4, 3, 1, 1, bias=False)
        self.normalise = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, 1, 2, dilation=2, groups=2)
        self.output = nn.Linear(4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.square(self.stem(x))
        y = self.normalise(self.first(x))
        x = x + self.second(y**2)
        return self.output(nn.functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))


class Mlp(nn.Sequential):
    def __init__(self, outputs: int = 2, channels: int = 1) -> None:
        widths = [784 * channels, 24, 24, 16, outputs]
        linear = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        super().__init__(
            nn.Flatten(), linear[0], Square(), linear[1], nn.Identity(), Square(), linear[2], Square(), linear[3]
        )


class Gated(nn.Module):
    """Squeeze and excitation: a quadratic activation of each channel, a cubic one in the gate."""

    def __init__(self, outputs: int = 2, channels: int = 1, expand: bool = False) -> None:
        super().__init__()
        self.expand = expand
        self.convolution, self.normalise = nn.Conv2d(channels, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.activation = Quadratic(6)
        self.squeeze, self.excite = nn.Linear(6, 3), nn.Linear(3, 6)
        self.output = nn.Linear(6 * 14 * 14, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.normalise(self.convolution(x)))
        gate = self.squeeze(x.mean((2, 3)))
        gate = self.excite(0.1 * gate**3 - 0.2 * gate * gate + 0.5 * gate + 0.1)
        gate = gate.view(x.size(0), x.size(1), 1, 1)
        return self.output(torch.flatten(x * (gate.expand_as(x) if self.expand else gate), 1))


NETWORKS = {"lola": Lola, "lenet": LeNet, "residual": Residual, "mlp": Mlp, "gated": Gated}


def seeded(make: type[nn.Module], *arguments: object, seed: int = 0, **options: object) -> nn.Module:
    """In evaluation mode, with batch statistics that are not those of a network before training."""
    torch.manual_seed(seed)
    module = make(*arguments, **options).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 2)
                nn.init.uniform_(part.bias, -1, 1)
    return module


def export(
    module: nn.Module, path: Path, shape: tuple[int, ...] = (1, 28, 28), opset: int = 17, dynamic: bool = True
) -> Path:
    """By torch's exporter. shape: of one image."""
    axes = {"images": {0: "batch"}, "logits": {0: "batch"}} if dynamic else None
    example = torch.rand(1, *shape)
    torch.onnx.export(
        module, (example,), str(path), opset_version=opset, input_names=["images"], output_names=["logits"],
        dynamic_axes=axes,
    )  # fmt: skip
    return path
