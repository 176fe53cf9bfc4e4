"""Networks, the tasks they are trained on, training, and trained weights. Imports neither `bench` nor `backends`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.network import Network


class NetworkError(ValueError):
    """A network description that is malformed, damaged or inconsistent."""


class NetworkFileError(NetworkError):
    """A file that a user gave is no network that can be used; the message says why and what to do."""


def from_torch(module: Any, example: Any) -> Network:
    """The network of a torch module. example: a tensor of images (batch, channels, height, width).

    Raises NetworkFileError for what is not supported, as `models.onnx_graph.load` does.
    """
    from models.onnx_graph import from_torch  # onnx and torch are slow to import, and not there in every party

    return from_torch(module, example)
