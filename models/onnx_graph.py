"""Reads ONNX files of any exporter, and compares what was read with onnxruntime.

Needs `onnx` and `onnxruntime`, which parties need not have: they receive the network description.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from models import NetworkFileError
from models.network import Network
from models.onnx_reader import FLOATS, Reader

FILE_LIMIT = 512 * 2**20  # bytes: far beyond what can be encrypted, far below what fills a memory
TOLERANCE = 1e-5  # of the largest logit
IMAGES = 8  # random ones, of which the logits are compared
OPSET = 17


def load(path: Path | str) -> Network:
    """The network in a file, named by the path as given; ``provenance["origin"]`` says file, sha256 and what was left out.

    Its lowering is ``float`` if it has a Relu, else ``polynomial``. Raises NetworkFileError, in one sentence, for a file
    that is none or cannot be used.
    """
    file = Path(path)
    content = _content(file)
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise NetworkFileError(
            f"{path} is no ONNX file, or a damaged one; export the network again (torch.onnx.export)"
        ) from error
    digest = hashlib.sha256(content)
    try:
        for beside in sorted({external_data_helper.ExternalDataInfo(one).location for one in _external(model)}):
            digest.update(_content(file.parent / beside))
        onnx.load_external_data_for_model(model, str(file.parent))
    except (onnx.checker.ValidationError, ValueError, NetworkFileError) as error:
        raise NetworkFileError(f"{path} has its weights in another file: {error}; put it beside, whole") from error
    return _network(model, str(path), {"file": file.name, "sha256": digest.hexdigest()})


def from_torch(module: Any, example: Any) -> Network:
    """As `models.from_torch`: through torch's own exporter, without a file."""
    import torch

    buffer = io.BytesIO()
    try:
        torch.onnx.export(
            module,
            (example,),
            buffer,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).split("\n")[0]
        raise NetworkFileError(f"torch cannot export {type(module).__name__} to ONNX: {reason}") from error
    content = buffer.getvalue()
    name = type(module).__name__
    return _network(onnx.load_model_from_string(content), name, {"sha256": hashlib.sha256(content).hexdigest()})


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise NetworkFileError(f"{path} is no file; name an ONNX file")
        size = path.stat().st_size
        if size > FILE_LIMIT:
            raise NetworkFileError(
                f"{path} has {size / 2**20:.0f} MiB: keep it below {FILE_LIMIT >> 20} MiB, more cannot be encrypted"
            )
        return path.read_bytes()
    except OSError as error:
        raise NetworkFileError(f"cannot read {path}: {error.strerror}; name an ONNX file") from error


def _external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The weights that are in files beside."""
    return [one for one in model.graph.initializer if external_data_helper.uses_external_data(one)]


def _network(model: onnx.ModelProto, name: str, origin: dict[str, Any]) -> Network:
    try:
        return _read(model, name, origin)
    except NetworkFileError:
        raise
    except Exception as error:  # protobuf, NumPy and ONNX each raise their own kinds for damaged content
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise NetworkFileError(
            f"{name} is no valid ONNX network ({reason}); export the network again, with opset {OPSET}"
        ) from error


def _read(model: onnx.ModelProto, name: str, origin: dict[str, Any]) -> Network:
    if not model.graph.node:
        raise NetworkFileError(f"{name} holds no network; export the network again (torch.onnx.export)")
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape"):  # as some exporters leave it, and the checker does not
            output.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in ("batch", "logits"))
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    onnx.checker.check_model(model)
    reader = Reader(model, name)
    how = "as it is"
    if reader.left_out is not None:
        how += f", but for the {reader.left_out.op_type} at its end: the logits before it"
    network = reader.network(name, {"origin": origin | {"how": how}})
    _compare(network, model, reader)
    return network


def _compare(network: Network, model: onnx.ModelProto, reader: Reader) -> None:
    """Random images through onnxruntime and through what was read."""
    import onnxruntime

    output = reader.output
    if reader.left_out is not None:
        output = reader.left_out.input[0]
        model = onnx.ModelProto.FromString(model.SerializeToString())
        kind = model.graph.input[0].type.tensor_type.elem_type
        model.graph.output.append(onnx.helper.make_tensor_value_info(output, kind, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    each = IMAGES if reader.any_batch else reader.batch
    images = np.random.default_rng(0).uniform(0, 1, (-(-IMAGES // each) * each, *network.input_shape))
    given = images.astype(FLOATS[reader.input.type.tensor_type.elem_type])
    parts = np.split(reader.as_seen(given), len(given) // each)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [session.run([output], {reader.input.name: part})[0] for part in parts]
    expected = np.concatenate(parts).reshape(len(images), -1)
    logits = network.forward(given)
    if not np.isfinite(expected).all() or not np.isfinite(logits).all():
        raise NetworkFileError(
            f"{network.model}: its logits of images in [0, 1] are not finite; export a network trained on such images"
        )
    scale = np.abs(expected).max()
    if not np.allclose(logits, expected, rtol=0, atol=TOLERANCE * max(scale, np.finfo(np.float32).tiny)):
        share = np.abs(logits - expected).max() / scale
        raise NetworkFileError(
            f"{network.model}: its logits differ from those of onnxruntime by {share:.1e} of the largest, more than "
            f"{TOLERANCE:g}; train it so that values inside do not grow so far beyond its logits, or report the file"
        )

