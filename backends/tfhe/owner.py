"""The owner: quantised network → brevitas module → compiled circuit → the two deployment archives."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from backends.api import BackendError, Job, Prepared
from backends.tfhe import security
from backends.tfhe.frame import IDENTITY_BYTES
from backends.tfhe.library import temporaries_in
from models.network import Conv2d, Linear, Network, Quantise

# The chance that one PBS reads a neighbour of its accumulator (the optimiser's bound, at its noise estimate).
# An activation has 2^bits levels for 2^(accumulator bits - 1) values, so most neighbours give the same level: one
# PBS in some hundreds changes a level, which moves a logit by one small weight and almost never a prediction.
# A bound of 2^-40 costs about seven times more for the same predictions.
P_ERROR = 0.01

ROUNDED_BITS = 6  # wider accumulators are rounded to so many bits before the PBS, exactly: one more PBS a dropped bit
WIDEST_BITS = 10  # before rounding
CALIBRATION_IMAGES = 500
OFFLINE_BATCH = 4  # TFHE packs no images; a larger request only saves round trips

SETTINGS = "settings.json"  # added to both archives


class Owner:
    def prepare(self, job: Job) -> Prepared:
        """Compiles the network. Raises BackendError, InsecureError."""
        bits = _check(job)
        images = _calibration(job.calibration)
        with tempfile.TemporaryDirectory() as folder, temporaries_in(folder):
            module = _compile(job, images)
            client, server = _archives(module, Path(folder) / "deployment")
            circuit = module.fhe_circuit
            specs = json.loads(circuit.client.specs.serialize())
            operations = _operations(circuit)
            parameters = _parameters(circuit, specs, job.threads) | {"accumulator_bits": bits}
        batch = OFFLINE_BATCH if job.scenario == "offline" else 1
        settings = {
            "identity": hashlib.sha256(server).digest()[:IDENTITY_BYTES].hex(),
            "batch": batch,
            "input_shape": list(job.network.input_shape),
        }
        return Prepared(
            client=_with_settings(client, settings),
            server=_with_settings(server, settings),
            batch=batch,
            parameters=parameters,
            security=security.tfhe(_samples(specs)),
            operations=operations,
            notes={
                "key_decompression": "in the first infer: Concrete decompresses the keys when it first uses them",
                "offline": "images of a request are computed one after another; TFHE does not pack them",
            },
        )


# -- checks ------------------------------------------------------------------------------------------------------------


def _check(job: Job) -> list[int]:
    """Bits of the accumulators of each linear layer over the calibration images. Raises BackendError."""
    network = job.network
    if network.lowering != "integer":
        raise BackendError(
            f"TFHE computes on integers, and this network is lowered to {network.lowering!r}: "
            f"pass the integer lowering (python -m bench train --model {network.model} --task {network.task})"
        )
    if job.model_privacy != "plain":
        raise BackendError("this backend does not encrypt the model: use --model-privacy plain")
    if len(job.calibration) == 0:
        raise BackendError("compiling needs calibration images: pass some of the training split")
    bits = accumulator_bits(network, _calibration(job.calibration))
    widest = max(bits[:-1], default=0)  # the last layer is decrypted, not bootstrapped
    if widest > WIDEST_BITS:
        raise BackendError(
            f"accumulators of {widest} bits feed a programmable bootstrapping, whose cost and keys about double with "
            f"each bit (minutes of key generation, gigabytes of keys); at most {WIDEST_BITS} are rounded to "
            f"{ROUNDED_BITS} here: train the network with narrower weights, activations or fewer inputs a neuron"
        )
    return bits


def accumulator_bits(network: Network, images: np.ndarray) -> list[int]:
    """Bits that hold every accumulator of each linear layer over these images.

    Without the bias, which concrete-ml adds inside the PBS's table, or, for the last layer, after decryption.
    """
    x, scale, bits = np.asarray(images, np.float64), None, []
    for layer in network.layers:
        if isinstance(layer, Quantise):
            scale = layer.scale
        elif isinstance(layer, Linear | Conv2d):
            if scale is None or layer.weight_scale is None:
                raise BackendError(f"the {layer.type} layer has no integer input or weights: train the network again")
            without_bias = dataclasses.replace(layer, bias=np.zeros_like(layer.bias))
            units = np.round(without_bias(x) / (scale * layer.weight_scale))
            bits.append(_signed_bits(int(units.min()), int(units.max())))
            scale = None  # until it is quantised again
        x = layer(x)
    return bits


def _signed_bits(low: int, high: int) -> int:
    return 1 + max(max(value, ~value).bit_length() for value in (low, high))


def _calibration(images: np.ndarray) -> np.ndarray:
    """Some of the images, evenly spaced: the circuit is sized for the values that they produce.

    A width is a power of two and training keeps a margin (`models.quantised.MARGIN`), so there is room above them.
    """
    return np.asarray(images[:: -(-len(images) // CALIBRATION_IMAGES)], np.float32)


# -- compiling ---------------------------------------------------------------------------------------------------------


def _compile(job: Job, images: np.ndarray) -> Any:
    """concrete-ml's QuantizedModule, compiled."""
    from concrete.fhe import Configuration, ParameterSelectionStrategy
    from concrete.ml.torch.compile import compile_brevitas_qat_model

    from models.quantised import to_torch

    configuration = Configuration(
        parameter_selection_strategy=ParameterSelectionStrategy.MULTI,
        compress_evaluation_keys=True,
        compress_input_ciphertexts=True,
        loop_parallelize=job.threads > 1,
    )
    try:
        return compile_brevitas_qat_model(
            to_torch(job.network),
            images,
            configuration=configuration,
            rounding_threshold_bits={"n_bits": ROUNDED_BITS, "method": "EXACT"},
            p_error=P_ERROR,
        )
    except RuntimeError as error:
        raise BackendError(
            f"Concrete cannot compile this network: {error}; train it with narrower weights or activations"
        ) from error


def _archives(module: Any, folder: Path) -> tuple[bytes, bytes]:
    from concrete.ml.deployment import FHEModelDev

    # The compiled library itself, not its MLIR source: the server shall run, not compile.
    FHEModelDev(str(folder), module).save(via_mlir=False)
    return (folder / "client.zip").read_bytes(), (folder / "server.zip").read_bytes()


def _with_settings(archive: bytes, settings: dict[str, Any]) -> bytes:
    buffer = io.BytesIO(archive)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(SETTINGS, json.dumps(settings))
    return buffer.getvalue()


# -- what was compiled -------------------------------------------------------------------------------------------------


def _parameters(circuit: Any, specs: dict[str, Any], threads: int) -> dict[str, Any]:
    keyset = specs["keyset"]
    return {
        "p_error": P_ERROR,
        "p_error_achieved": circuit.p_error,
        "global_p_error": circuit.global_p_error,
        "rounding": f"exact, to {ROUNDED_BITS} bits",
        "maximum_bits": circuit.graph.maximum_integer_bit_width(),
        "lwe_dimensions": [key["params"]["lweDimension"] for key in keyset["lweSecretKeys"]],
        "bootstrap_keys": [
            {
                "glwe_dimension": p["glweDimension"],
                "polynomial_size": p["polynomialSize"],
                "input_lwe_dimension": p["inputLweDimension"],
                "levels": p["levelCount"],
                "base_log": p["baseLog"],
                "variance": p["variance"],
            }
            for p in (key["params"] for key in keyset["lweBootstrapKeys"])
        ],
        "keyswitch_keys": [
            {
                "input_lwe_dimension": p["inputLweDimension"],
                "output_lwe_dimension": p["outputLweDimension"],
                "levels": p["levelCount"],
                "base_log": p["baseLog"],
                "variance": p["variance"],
            }
            for p in (key["params"] for key in keyset["lweKeyswitchKeys"])
        ],
        "complexity": circuit.complexity,
        "compressed": ["evaluation keys", "request"],
        "threads": threads,
    }


def _samples(specs: dict[str, Any]) -> list[security.Sample]:
    """Every kind of encryption that leaves the client."""
    keyset = specs["keyset"]
    samples = []
    for index, key in enumerate(keyset["lweBootstrapKeys"]):
        p = key["params"]
        samples.append(
            security.Sample(f"bootstrap key {index}", p["glweDimension"] * p["polynomialSize"], p["variance"])
        )
    for index, key in enumerate(keyset["lweKeyswitchKeys"]):
        p = key["params"]
        samples.append(security.Sample(f"keyswitch key {index}", p["outputLweDimension"], p["variance"]))
    for index, value in enumerate(specs["circuits"][0]["inputs"]):
        p = value["typeInfo"]["lweCiphertext"]["encryption"]
        samples.append(security.Sample(f"request {index}", p["lweDimension"], p["variance"]))
    return samples


def _operations(circuit: Any) -> dict[str, int]:
    counts = {
        "programmable_bootstrap": circuit.programmable_bootstrap_count,
        "key_switch": circuit.key_switch_count,
        "clear_multiplication": circuit.clear_multiplication_count,
        "clear_addition": circuit.clear_addition_count,
        "encrypted_addition": circuit.encrypted_addition_count,
        "encrypted_negation": circuit.encrypted_negation_count,
    }
    return {name: count for name, count in counts.items() if count}
