"""Networks that a user brings as ONNX files: how each is lowered for a backend, and where what was trained from it is.

A float network (with Relu) and a polynomial one run as they are where a backend takes them. A float one becomes polynomial
by training (``python -m bench train --from FILE``), and either becomes integers by quantisation after training.
``provenance["origin"]`` of each says which file it is of and what was done.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from models import NetworkError, NetworkFileError
from models.tasks import SIZES, Task, user_cache

if TYPE_CHECKING:
    from models.network import Network
    from models.tasks import Dataset

SUFFIX = ".onnx"
CALIBRATION_IMAGES = 1000  # training images from which quantisation takes its ranges


def is_file(model: str) -> bool:
    """Whether a model that has none of the names of `models.zoo` is named by a user's file."""
    return model.endswith(SUFFIX) or os.path.isfile(model)  # which is false, not an error, for a name that is too long


def stem(sha256: str, task: Task, lowering: str) -> Path:
    """Where a network that was trained from a file is kept (as `Network.save` names files): by what the file holds, not
    by its name. sha256: of the file."""
    return user_cache() / "networks" / "own" / sha256[:16] / f"{task.name}.{lowering}"


def network(path: str, task: Task, lowering: str, dataset: Dataset) -> Network:
    """The network of a file, lowered; as ``float``, the reference, it is what the file holds.

    Raises NetworkFileError for a file that cannot be used or does not fit the task, NetworkError if it must be trained
    first.
    """
    own = fitted(path, task)
    if lowering == "float" or own.lowering == lowering:
        return own
    if lowering == "integer":
        from models import ptq

        images = dataset.train.images[:CALIBRATION_IMAGES]
        return _described(ptq.quantise(own, images), own, f"quantised after training, from {len(images)} training images")
    from models.network import Network

    kept = stem(own.provenance["origin"]["sha256"], task, lowering)
    if not kept.with_name(f"{kept.name}.json").is_file():
        raise NetworkError(
            f"{path} has Relu, and this backend needs polynomials: run `{training(path, task)}` first, which replaces and "
            "fine-tunes them"
        )
    how = "activations replaced by polynomials and fine-tuned, with the original as teacher"
    return _described(Network.load(kept), own, how)


def training(path: str, task: Task) -> str:
    """The command that makes a polynomial network of a float one."""
    data = ["--data", task.file] if task.file else ["--task", task.name]
    return shlex.join(["python", "-m", "bench", "train", "--from", path, *data])


def fitted(path: str, task: Task) -> Network:
    """The network of a file, which takes the images of a task and has its logits. Raises NetworkFileError."""
    version = (os.stat(path).st_mtime_ns, os.stat(path).st_size) if os.path.isfile(path) else None
    own = dataclasses.replace(_load(path, version), task=task.name)
    expected, pixels = task.input_shape, math.prod(task.input_shape)
    if own.input_shape == (pixels,):
        own = _behind_flattening(own, expected)
    if own.input_shape != expected:
        shown, wanted = ("×".join(map(str, shape)) for shape in (own.input_shape, expected))
        cure = f"export it for {wanted}"
        if task.python_class and len(own.input_shape) == 3 and own.input_shape[1] in SIZES:
            cure += f", or take larger images (--size {own.input_shape[1]})"
        raise NetworkFileError(f"{path} takes images of {shown}, and those of {task.name} have {wanted}: {cure}")
    if own.outputs == 1 and task.kind == "binary-class":
        own = _with_two_logits(own)
    if own.outputs != task.outputs:
        raise NetworkFileError(
            f"{path} has {own.outputs} outputs, and {task.name} has {task.outputs} classes or labels: export it with one "
            "logit for each"
        )
    return own


@functools.lru_cache(maxsize=8)
def _load(path: str, version: tuple[int, int] | None) -> Network:
    """version: of the file, which may change while this process lives."""
    from models import onnx_graph

    return onnx_graph.load(path)


def _behind_flattening(own: Network, shape: tuple[int, int, int]) -> Network:
    """A network of (pixels,), as one of images: channel by channel, row by row."""
    from models.network import Flatten, Input, Node

    flat = Node(Flatten(), (own.inputs[0].name,), "Flatten_of_image")

    def renamed(name: str) -> str:
        return flat.output if name == own.inputs[0].name else name

    nodes = (dataclasses.replace(node, inputs=tuple(map(renamed, node.inputs))) for node in own.nodes)
    results = tuple(map(renamed, own.results))
    return dataclasses.replace(own, inputs=(Input(own.inputs[0].name, shape),), nodes=(flat, *nodes), results=results)


def _with_two_logits(own: Network) -> Network:
    """(0, z) of the logit z of the second class: softmax of the two is the sigmoid of the one."""
    import numpy as np

    from models.network import Gemm, Node

    origin = own.provenance["origin"]
    provenance = own.provenance | {"origin": origin | {"how": f"{origin['how']}; one logit z became (0, z)"}}
    if own.nodes and isinstance(last := own.nodes[-1].operator, Gemm):
        weight, bias = (np.concatenate([np.zeros_like(a), a]) for a in (last.weight, last.bias))
        node = dataclasses.replace(own.nodes[-1], operator=dataclasses.replace(last, weight=weight, bias=bias))
        return dataclasses.replace(own, nodes=(*own.nodes[:-1], node), provenance=provenance)
    pair = Node(Gemm(np.array([[0], [1]], np.float32), np.zeros(2, np.float32)), own.results, "Gemm_of_two")
    return dataclasses.replace(own, nodes=(*own.nodes, pair), results=(pair.output,), provenance=provenance)


def _described(lowered: Network, own: Network, how: str) -> Network:
    origin = own.provenance["origin"]
    provenance = lowered.provenance | {"origin": origin | {"how": f"{origin['how']}; {how}"}}
    return dataclasses.replace(lowered, model=own.model, task=own.task, provenance=provenance)
