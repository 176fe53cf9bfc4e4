"""The models that exist, by name, and how a name is read. Imports nothing slow.

MODEL@PRESET has an integer network of its own (`models.presets`); its other lowerings are those of MODEL. MODEL@INPUT
reads something else than MODEL (`models.inputs`): it is a model of its own.
"""

from __future__ import annotations

# Name → one line. The architecture of each is in `models.train.ARCHITECTURES`, apart because torch is slow to import.
MODELS = {
    "fcnn": "fully connected: flatten, 64 hidden units, one activation",
    "fcnn@fast": "its integer network with 16 hidden units on images pooled to 14×14",
    "fcnn@balanced": "with 24 hidden units on pooled images; this is what fcnn means for integers",
    "fcnn@accurate": "with 64 hidden units on whole images",
    "fcnn@sadhana2025": "as published (Scientific Reports 2025): 392 hidden units, 4 bits, accumulators not rounded",
    "polycnn": "convolutional: 3 blocks of convolution, batch norm, activation; average pooling; linear",
    "polycnn-s": "convolutional, shallow as in LoLa: convolution, activation, 64 hidden units, activation",
    "latentcnn": "on latents that the client encodes: 2 convolutions, the second in 4 groups; global average; linear",
    "latentcnn@quantised": "on latents after quantisation: each position the nearest of 256 codes",
    "latentcnn@image": "on images: the first convolution steps from square to square, as the encoder would",
    "latentcnn-se": "with squeeze and excitation: each channel times a gate that depends on all of them",
    "latentcnn-se@quantised": "on latents after quantisation",
    "latentcnn-se@image": "on images",
    "hefnet": "as published (Kim et al. 2025): 4 convolutions, 64 to 256 channels, on latents of images of 256×256",
    "hefnet-se": "with squeeze and excitation, as published",
}
_INPUTS = ("image", "quantised")
LOWERINGS = ("float", "polynomial", "integer")
_INTEGER_NETWORKS = {"fcnn": "fcnn@balanced"}  # where a model alone means one of its presets


class UnknownModel(LookupError):
    """No model has this name; the message lists those that exist."""


def base(model: str) -> str:
    """The model without its preset; a name that is none of ours, as of a user's file, is its own."""
    return model.partition("@")[0] if preset(model) else model


def preset(model: str) -> str:
    """The preset that a name asks for; "" if it asks for none."""
    after = model.partition("@")[2] if model in MODELS else ""
    return "" if after in _INPUTS else after


def integer_network(model: str) -> str:
    """The name of a model's integer network, which is a preset where there are several."""
    return _INTEGER_NETWORKS.get(model, model)
