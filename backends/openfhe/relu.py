"""True ReLU under CKKS: the float network, its activations by Chebyshev series, to show what degree 2 saves.

ReLU on [−1, 1] is interpolated at Chebyshev nodes and evaluated by OpenFHE (Paterson–Stockmeyer; Chen, Chillotti, Song,
"Improved bootstrapping for approximate homomorphic encryption", EUROCRYPT 2019, section 3). Layouts are the planner's;
OpenFHE scales by itself (FLEXIBLEAUTO), because a series consists of products at many levels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openfhe
from numpy.polynomial import chebyshev

from backends import security
from backends.api import BackendError, Job, Prepared
from backends.openfhe.library import FEATURES, Openfhe, OpenfheClient, OpenfheEvaluator, describe, template
from backends.slots import costs, planner
from backends.slots.blocks import Blocks, from_network, relu
from backends.slots.library import Cipher, Parameters, Plain
from backends.slots.plan import Plan

DEGREES = {4: 5, 5: 13, 6: 27, 7: 59}  # levels of an affine map and its activation → the highest degree they hold
SCALE_BITS, FIRST_BITS = 40, 50
AGREEMENT = 0.99  # of the predictions on calibration images, with those of exact ReLU


def _parameters(activations: int, levels: int, ring_dimension: int = 0) -> Parameters:
    return Parameters(ring_dimension, FIRST_BITS, SCALE_BITS, activations, 0, 0, (0,) * (activations + 1), levels)


@functools.lru_cache(maxsize=4)
def _context(parameters: Parameters) -> Any:
    """The ring dimension, if none is given, is the smallest of 128 bits."""
    p = openfhe.CCParamsCKKSRNS()
    p.SetSecurityLevel(openfhe.SecurityLevel.HEStd_128_classic)
    p.SetSecretKeyDist(openfhe.SecretKeyDist.UNIFORM_TERNARY)
    p.SetMultiplicativeDepth(parameters.levels + 1)
    p.SetFirstModSize(parameters.first_bits)
    p.SetScalingModSize(parameters.rescale_bits)
    p.SetScalingTechnique(openfhe.ScalingTechnique.FLEXIBLEAUTO)
    p.SetCKKSDataType(openfhe.CKKSDataType.COMPLEX)
    if parameters.ring_dimension:
        p.SetRingDim(parameters.ring_dimension)
        p.SetBatchSize(parameters.slots)
    context = openfhe.GenCryptoContext(p)
    for feature in (*FEATURES, openfhe.PKESchemeFeature.ADVANCEDSHE):
        context.Enable(feature)
    return context


def _series(levels: int) -> np.ndarray:
    return chebyshev.chebinterpolate(relu, DEGREES[levels])


def _levels(blocks: Blocks, images: np.ndarray) -> int:
    """The fewest levels whose approximation predicts as ReLU does. images: (n, inputs)."""
    wanted = _predictions(blocks.forward(images))
    for levels in DEGREES:
        coefficients = _series(levels)
        approximate = Blocks(blocks.affines, blocks.output_scale, lambda x, c=coefficients: chebyshev.chebval(x, c))
        if (_predictions(approximate.forward(images)) == wanted).mean() >= AGREEMENT:
            return levels
    raise BackendError(f"a Chebyshev series of degree {DEGREES[levels]} does not approximate the ReLU of this network")


def _predictions(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=1) if logits.shape[1] > 1 else logits > 0


class ReluOwner:
    """folder: holds the library's ``costs.json``."""

    def __init__(self, folder: Path) -> None:
        self._costs = costs.load(folder)

    def prepare(self, job: Job) -> Prepared:
        if job.scenario != "single-stream" or job.model_privacy != "plain":
            raise BackendError("openfhe:relu answers one image a request on a plain model; use the default variant")
        blocks = from_network(job.network, job.calibration, "float")
        activations = len(blocks.affines) - 1
        levels = _levels(blocks, job.calibration.reshape(len(job.calibration), -1)) if activations else min(DEGREES)
        try:
            smallest = _context(_parameters(activations, levels))
        except RuntimeError as error:
            raise BackendError(f"OpenFHE has no parameters of 128 bits for this depth: {error}") from error
        parameters = _parameters(activations, levels, smallest.GetRingDimension())
        plan = planner.packed(blocks, parameters, self._costs, hoisting=True)
        if plan is None:
            raise BackendError("a layer of this network does not fit into the slots; use a smaller one")
        description = describe(_context(parameters))
        return Prepared(
            client=plan.client_bytes(),
            server=plan.server_bytes(),
            parameters=description
            | {
                "relu_degree": DEGREES[levels],
                "rotation_keys": len(plan.keys.rotations),
                "request_ciphertexts": costs.request_ciphertexts(plan),
                "threads": job.threads,
            },
            security=security.ckks(description),
            operations=_operations(plan),
            notes={"layout": [plan.input.kind, *(step.kind for step in plan.steps)]},
        )


def _operations(plan: Plan) -> dict[str, int]:
    """Of the affine maps; what a series takes is OpenFHE's own affair."""
    counts = costs.named(costs.total(plan))
    activations = counts.pop("square", 0)
    return {k: v for k, v in counts.items() if k not in ("relinearise", "rescale")} | {"chebyshev_series": activations}


class ReluClient(OpenfheClient):
    def __init__(self, parameters: Parameters) -> None:
        self._context, self._parameters = _context(parameters), parameters

    def encrypt(self, vector: np.ndarray, scale: float) -> Cipher:
        return self._context.Encrypt(self._secret, self._context.MakeCKKSPackedPlaintext(vector))

    def decrypt(self, cipher: Cipher, scale: float) -> np.ndarray:
        return np.asarray(self._context.Decrypt(self._secret, cipher).GetCKKSPackedValue())


class ReluEvaluator(OpenfheEvaluator):
    """`square` is the activation, and scales are OpenFHE's own."""

    def __init__(self, parameters: Parameters) -> None:
        self._context, self._parameters = _context(parameters), parameters
        self._template = template(self._context)
        self._series = _series(parameters.primes_per_square)
        self._series[0] *= 2  # OpenFHE halves it

    def encode(self, vector: np.ndarray, scale: float, level: int) -> Plain:
        return self._context.MakeCKKSPackedPlaintext(np.asarray(vector), 1, level)

    def dot(self, ciphers: Sequence[Cipher], plains: Sequence[Plain]) -> Cipher:
        context = self._context
        total = context.EvalMult(ciphers[0], plains[0])
        for cipher, plain in zip(ciphers[1:], plains[1:]):
            context.EvalAddInPlace(total, context.EvalMult(cipher, plain))
        return total

    def square(self, a: Cipher) -> Cipher:
        return self._context.EvalChebyshevSeries(a, self._series.tolist(), -1, 1)

    def relinearise(self, a: Cipher) -> Cipher:
        return a

    def rescale(self, a: Cipher) -> Cipher:
        return a


class ReluLibrary(Openfhe):
    def client(self, parameters: Parameters) -> ReluClient:
        return ReluClient(parameters)

    def evaluator(self, parameters: Parameters) -> ReluEvaluator:
        return ReluEvaluator(parameters)

    def moduli(self, parameters: Parameters) -> list[int]:
        return [2**parameters.first_bits] + [2**parameters.rescale_bits] * parameters.levels  # only scales ask, unused
