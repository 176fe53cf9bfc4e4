"""True ReLU under CKKS: the float network with its activations by Chebyshev series, to show what degree 2 saves.

ReLU is interpolated at Chebyshev nodes; what comes out is a polynomial network like any other (`backends.slots.blocks`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from backends.api import Job, Prepared
from backends.slots.blocks import approximated
from backends.slots.roles import SlotsOwner
from models.network import Network, Relu

DEGREES = (2, 6, 14, 30, 62)  # ReLU but for x / 2 is even: the highest of an even series with 2, 3, 4, 5, 6 levels
AGREEMENT = 0.99  # of the predictions on calibration images, with those of exact ReLU


class ReluOwner(SlotsOwner):
    def prepare(self, job: Job) -> Prepared:
        approximate, chosen = with_series(job.network, job.calibration)
        prepared = super().prepare(dataclasses.replace(job, network=approximate))
        return dataclasses.replace(prepared, parameters=prepared.parameters | chosen)

    def explain(self, job: Job) -> dict[str, Any]:
        return super().explain(dataclasses.replace(job, network=with_series(job.network, job.calibration)[0]))


def with_series(network: Network, images: np.ndarray) -> tuple[Network, dict[str, Any]]:
    """The network with the series of the lowest degree that predicts as ReLU does, or of the highest; and for the record the
    degree and the share of images on which predictions agree. A network without ReLU stays as it is."""
    if not any(isinstance(operator, Relu) for operator in network.operators):
        return dataclasses.replace(network, lowering="polynomial"), {}
    wanted = _predictions(network.forward(images))
    for degree in DEGREES:
        approximate = approximated(network, degree, images)
        agreement = float((_predictions(approximate.forward(images)) == wanted).mean())
        if agreement >= AGREEMENT:
            break
    return approximate, {"relu_degree": degree, "relu_agreement": agreement}


def _predictions(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=1) if logits.shape[1] > 1 else logits > 0
