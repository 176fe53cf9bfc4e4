"""Logistic regression by Nesterov's accelerated gradient, in the clear: what encrypted training computes.

For targets y = ±1 and logits t = x·v the gradient's step is ``rate/n · Σ y·σ(−y·t)·x``. With the odd slope
``s(t) = σ(t) − 1/2`` it is ``rate/n · (Σ y·x/2 − Σ s(t)·x)``: the targets enter by the sums Σ y·x alone.

Momentum: λ₁ = 1, λ₊ = (1 + √(1 + 4λ²))/2, μ = (λ − 1)/λ₊ (Nesterov 1983; Kim et al., BMC Medical Genomics 11:83, 2018).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy.special import expit

RANGE = 8.0  # of the logits on which the polynomials stand for the sigmoid
DEGREES = (3, 5)
LONG = 10  # from so many steps on, logits grow to where degree 3 bends back


def degree_for(steps: int) -> int:
    """Of the sigmoid's polynomial."""
    return DEGREES[steps > LONG]


@functools.cache
def slope_coefficients(degree: int) -> tuple[float, ...]:
    """c₁, c₃ (, c₅) of ``s(t) ≈ c₁·t + c₃·t³ (+ c₅·t⁵)``: least squares on [−RANGE, RANGE].

    Degree 3 is 0.15012·t − 0.001593·t³, as in Kim et al.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    t = RANGE * nodes
    powers = t[:, None] ** np.arange(1, degree + 1, 2)
    root = np.sqrt(weights)
    return tuple(np.linalg.lstsq(powers * root[:, None], (expit(t) - 0.5) * root, rcond=None)[0].tolist())


def exact(t: np.ndarray) -> np.ndarray:
    """The slope of the sigmoid itself."""
    return expit(t) - 0.5


def polynomial(degree: int) -> Callable[[np.ndarray], np.ndarray]:
    coefficients = slope_coefficients(degree)
    return lambda t: t * np.polynomial.polynomial.polyval(t**2, coefficients)


def momenta(steps: int) -> list[float]:
    """μ after step 1, 2, …, of which the last is 0: nothing follows."""
    values, current = [], 1.0
    for _ in range(steps - 1):
        following = (1 + math.sqrt(1 + 4 * current**2)) / 2
        values.append((current - 1) / following)
        current = following
    return [*values, 0.0]


def descent(
    features: np.ndarray,
    targets: np.ndarray,
    steps: int,
    rate: float,
    slope: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """features (n, d), targets (n, outputs) of ±1 → weights after each step (steps, outputs, d), from zero."""
    factor = rate / len(features)
    constant = factor / 2 * targets.T @ features
    before = point = np.zeros_like(constant)
    history = []
    for momentum in momenta(steps):
        weights = point + constant - factor * slope(features @ point.T).T @ features
        point, before = weights + momentum * (weights - before), weights
        history.append(weights)
    return np.array(history)
