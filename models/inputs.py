"""What a model reads: images, or latents that an encoder at the client makes of them (`models.encoder`). Said here alone.

A latent has `CHANNELS` channels and a `factor` of the image's height and width. Imports no NumPy, as `models.tasks`.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.tasks import DataFileError, Task

CHANNELS = 4
LARGE = 64  # pixels a side from which on a latent is an eighth of the image, not a quarter


@dataclass(frozen=True)
class Latent:
    """side: pixels a side to which the client resizes images first; 0: none, they stay as they are.

    quantised: each position is the nearest of the encoder's codes, instead of the standardised values before that.
    """

    side: int = 0
    quantised: bool = False

    @property
    def encoder(self) -> str:
        """The name under which `models.zoo` keeps the encoder's network."""
        return f"encoder-{self.side}" if self.side else "encoder"

    def size(self, task: Task) -> tuple[int, int]:
        """Height and width of the images that the encoder reads."""
        return (self.side, self.side) if self.side else task.size


# The models that read latents; all others read images.
LATENTS = {
    "latentcnn": Latent(),
    "latentcnn@quantised": Latent(quantised=True),
    "latentcnn-se": Latent(),
    "latentcnn-se@quantised": Latent(quantised=True),
    "hefnet": Latent(side=256),
    "hefnet-se": Latent(side=256),
}


def factor(size: tuple[int, int]) -> int:
    """Pixels a side of the square that becomes one position of a latent, for images of this height and width."""
    return 8 if min(size) >= LARGE else 4


def shape(model: str, task: Task) -> tuple[int, int, int]:
    """Of what the model reads: (channels, height, width). Raises DataFileError for images that have no latent."""
    if model not in LATENTS:
        return task.input_shape
    height, width = LATENTS[model].size(task)
    square = factor((height, width))
    if height % square or width % square:
        raise DataFileError(
            f"{model} reads latents of squares of {square}×{square} pixels, and the images of {task.name} are "
            f"{height}×{width}: crop or pad them to multiples of {square}, or choose {model.partition('@')[0]}@image"
        )
    return CHANNELS, height // square, width // square
