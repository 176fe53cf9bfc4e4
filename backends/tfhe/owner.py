"""The owner: quantised network → integer circuit → compiled circuit → the two deployment archives."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backends import frames
from backends.api import BackendError, Job, Prepared
from backends.tfhe import circuit, security
from backends.tfhe.circuit import Plan, Width
from backends.tfhe.library import temporaries_in
from models import catalogue
from models.network import AveragePool, Network

CALIBRATION_IMAGES = 500
OFFLINE_BATCH = 8  # images in one run of the circuit: they share its fixed cost, the keys' way into the Fourier domain
SETTINGS = "settings.json"  # added to both archives


@dataclass(frozen=True)
class Options:
    """How a circuit is compiled; a preset or `Job.options` changes these.

    p_error: the chance that one PBS reads a wrong entry of its table (the optimiser's bound, at its noise estimate).
        It also sets how much noise approximate rounding adds; up to 5 bits, 1e-4 costs 5 % more than 0.01.
    exactness: of the rounding, ``approximate`` (free) or ``exact`` (one more PBS for each dropped bit).
    widest_bits: that a PBS may read; cost, keys and key generation double with each bit.
    logit_bits: of what the server sends; wider ones go as partial sums, which the client adds up, if that makes the
        whole circuit cheaper. 0: never.
    glwe_dimensions: that the optimiser may choose. Its cost model leaves out that Concrete transforms the bootstrap
        key anew in each run; a small dimension makes a small key, and these networks have few bootstraps.
    """

    p_error: float = 1e-4
    exactness: str = "approximate"
    widest_bits: int = 7
    logit_bits: int = 8
    glwe_dimensions: tuple[int, ...] = (1,)


# By the preset in the name of the model. Sadhana and Senthilkumar publish accumulators of up to 16 bits, not rounded.
PRESETS: dict[str, dict[str, Any]] = {
    "sadhana2025": {"widest_bits": 16, "logit_bits": 0, "glwe_dimensions": ()},
}

VARIANTS: dict[str, dict[str, Any]] = {"logits": {"logit_bits": 0}}


def options(job: Job) -> Options:
    """Raises BackendError for an unknown option."""
    preset = PRESETS.get(catalogue.preset(job.network.model), {}) | VARIANTS.get(job.variant, {})
    try:
        chosen = replace(Options(), **(preset | job.options))
    except TypeError as error:
        raise BackendError(f"unknown option of tfhe: {error}; there are {', '.join(asdict(Options()))}") from error
    return replace(chosen, glwe_dimensions=tuple(chosen.glwe_dimensions))


class Owner:
    def prepare(self, job: Job) -> Prepared:
        """Compiles the network. Raises BackendError, InsecureError."""
        chosen = options(job)
        whole = _plan(job, chosen)
        batch = OFFLINE_BATCH if job.scenario == "offline" else 1
        with tempfile.TemporaryDirectory() as folder, temporaries_in(folder):
            plan, widths, compiled = _cheapest(whole, job, chosen, batch)
            specs = json.loads(compiled.client.specs.serialize())
            client, server = _archives(compiled, Path(folder))
            counts = operations(compiled)
            used = parameters(compiled, specs, job.threads) | _choices(job.network, plan, widths, chosen)
        settings = {"identity": frames.identity(server).hex(), "batch": batch}
        ends = {"input_shape": job.network.input_shape, "ends": plan.ends.describe()}
        return Prepared(
            client=with_settings(client, settings | ends),
            server=with_settings(server, settings),
            batch=batch,
            parameters=used,
            security=security.tfhe(samples(specs)),
            operations=counts,
            notes={"key_decompression": "in the first infer: Concrete decompresses the keys when it first uses them"},
        )

    def explain(self, job: Job) -> dict[str, Any]:
        """What compiling tells of the cost, without keys. Raises BackendError, InsecureError."""
        chosen = options(job)
        whole = _plan(job, chosen)
        with tempfile.TemporaryDirectory() as folder, temporaries_in(folder):
            plan, widths, compiled = _cheapest(whole, job, chosen, 1)
            specs = json.loads(compiled.client.specs.serialize())
            return {
                "parameters": parameters(compiled, specs, job.threads) | _choices(job.network, plan, widths, chosen),
                "security": security.tfhe(samples(specs)),
                "operations": operations(compiled),
                "bytes": {
                    "bootstrap_keys": compiled.size_of_bootstrap_keys,
                    "keyswitch_keys": compiled.size_of_keyswitch_keys,
                },
            }


# -- checks ------------------------------------------------------------------------------------------------------------


def _plan(job: Job, chosen: Options) -> Plan:
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
    plan = circuit.plan(network)
    widths = circuit.widths(plan, calibration(job.calibration))
    _require_narrow(widths[:-1], chosen.widest_bits)  # the last layer is decrypted, not bootstrapped
    return plan


def _require_narrow(widths: Sequence[Width], widest: int) -> None:
    for width in widths:
        if width.reach > 1:
            raise BackendError(
                f"a rounded accumulator leaves its range by a factor {width.reach:.2f} on the calibration images, where "
                "the bootstrapping reads the wrong entry of its table: train the integer lowering again"
            )
        if width.read_bits > widest:
            raise BackendError(
                f"{width.elements} programmable bootstraps would read accumulators of {width.read_bits} bits, and this "
                f"backend stops at {widest}: from 6 bits on, time, memory and keys about double with each bit, so an "
                f"image would take about {2 ** (width.read_bits - 5)} times as long as rounded to 5 bits (at 11 bits, key "
                "generation alone takes minutes and 5.5 GB). Train the network with rounded accumulators, or with "
                "narrower weights and inputs"
            )


def calibration(images: np.ndarray) -> np.ndarray:
    """Some of the images, evenly spaced: unrounded accumulators are sized for the values that they produce."""
    return np.asarray(images[:: -(-len(images) // CALIBRATION_IMAGES)], np.float32)


# -- compiling ---------------------------------------------------------------------------------------------------------


def _cheapest(whole: Plan, job: Job, chosen: Options, batch: int) -> tuple[Plan, list[Width], Any]:
    """The plan with its widths and its `concrete.fhe.Circuit`; split logits only where that allows smaller parameters."""
    plans = [whole]
    if chosen.logit_bits and (parts := circuit.split(whole, chosen.logit_bits)).parts > 1:
        plans.append(parts)
    found = []
    images = calibration(job.calibration)
    for plan in plans:
        widths, plan = circuit.widths(plan, images), circuit.levelled(plan, images)
        found.append((plan, widths, _compile(plan, widths, job, chosen, batch)))
    return min(found, key=lambda one: one[2].complexity)


def _compile(plan: Plan, widths: Sequence[Width], job: Job, chosen: Options, batch: int) -> Any:
    """The `concrete.fhe.Circuit` of a batch of images."""
    from concrete import fhe
    from mlir._mlir_libs._concretelang._compiler import RangeRestriction

    restriction = RangeRestriction()
    for dimension in chosen.glwe_dimensions:
        restriction.add_available_glwe_dimension(dimension)
    configuration = fhe.Configuration(
        parameter_selection_strategy=fhe.ParameterSelectionStrategy.MULTI,
        range_restriction=restriction if chosen.glwe_dimensions else None,
        p_error=chosen.p_error,
        compress_evaluation_keys=True,
        compress_input_ciphertexts=True,
        loop_parallelize=job.threads > 1,
    )
    integers = plan.ends.quantise(calibration(job.calibration))
    evaluate = circuit.function(plan, getattr(fhe.Exactness, chosen.exactness.upper()))
    requests = [np.resize(integers[i:], (batch, *integers.shape[1:])) for i in range(0, len(integers), batch)]
    try:
        compiled = fhe.Compiler(evaluate, {"x": "encrypted"}).compile(requests, configuration)
    except RuntimeError as error:
        raise BackendError(
            f"Concrete cannot compile this network: {error}; train it with fewer bits, or allow other parameters"
        ) from error
    tables = batch * sum(width.elements for width in widths[:-1])
    if compiled.programmable_bootstrap_count < tables:
        raise BackendError(
            f"Concrete compiled {tables} activations to {compiled.programmable_bootstrap_count} bootstraps, so some of "
            "them are constant: train the integer lowering again"
        )
    return compiled


def _archives(compiled: Any, folder: Path) -> tuple[bytes, bytes]:
    # The compiled library itself, not its MLIR source: the server shall run, not compile.
    compiled.client.save(folder / "client.zip")
    compiled.server.save(folder / "server.zip", via_mlir=False)
    return (folder / "client.zip").read_bytes(), (folder / "server.zip").read_bytes()


def with_settings(archive: bytes, settings: dict[str, Any]) -> bytes:
    buffer = io.BytesIO(archive)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(SETTINGS, json.dumps(settings))
    return buffer.getvalue()


# -- what was compiled -------------------------------------------------------------------------------------------------


def parameters(compiled: Any, specs: dict[str, Any], threads: int) -> dict[str, Any]:
    keyset = specs["keyset"]
    return {
        "p_error_achieved": compiled.p_error,
        "global_p_error": compiled.global_p_error,
        "maximum_bits": compiled.graph.maximum_integer_bit_width(),
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
        "complexity": compiled.complexity,
        "compressed": ["evaluation keys", "request"],
        "threads": threads,
    }


def _choices(network: Network, plan: Plan, widths: Sequence[Width], chosen: Options) -> dict[str, Any]:
    pooling = [layer.kernel_shape[0] for layer in plan.ends.before if isinstance(layer, AveragePool)]
    return asdict(chosen) | {
        "accumulator_bits": [width.bits for width in widths],
        "bootstrap_bits": [width.read_bits for width in widths[:-1]],
        "rounding": [f"{width.rounding} bits" if width.rounding else "none" for width in widths[:-1]],
        "logit_parts": plan.parts,
        "client_pooling": pooling[0] if pooling else 1,
        "encrypted_inputs": int(np.prod(plan.ends.quantise(np.zeros((1, *network.input_shape))).shape)),
    }


def samples(specs: dict[str, Any]) -> list[security.Sample]:
    """Every kind of encryption that leaves the client."""
    keyset = specs["keyset"]
    found = []
    for index, key in enumerate(keyset["lweBootstrapKeys"]):
        p = key["params"]
        found.append(security.Sample(f"bootstrap key {index}", p["glweDimension"] * p["polynomialSize"], p["variance"]))
    for index, key in enumerate(keyset["lweKeyswitchKeys"]):
        p = key["params"]
        found.append(security.Sample(f"keyswitch key {index}", p["outputLweDimension"], p["variance"]))
    for index, value in enumerate(specs["circuits"][0]["inputs"]):
        p = value["typeInfo"]["lweCiphertext"]["encryption"]
        found.append(security.Sample(f"request {index}", p["lweDimension"], p["variance"]))
    return found


def operations(compiled: Any) -> dict[str, int]:
    counts = {
        "programmable_bootstrap": compiled.programmable_bootstrap_count,
        "key_switch": compiled.key_switch_count,
        "clear_multiplication": compiled.clear_multiplication_count,
        "clear_addition": compiled.clear_addition_count,
        "encrypted_addition": compiled.encrypted_addition_count,
        "encrypted_negation": compiled.encrypted_negation_count,
    }
    return {name: count for name, count in counts.items() if count}
