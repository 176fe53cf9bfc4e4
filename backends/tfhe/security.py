"""The security level of the parameters that Concrete's optimiser chose, from its own published curves.

Zama fits, with the Lattice Estimator (Albrecht, Player and Scott, "On the concrete hardness of Learning with Errors",
J. Math. Cryptology 9(3), 2015), the smallest noise for which every attack on LWE of dimension n, binary secret and
q = 2^64 costs at least 2^bits: ``log2(σ / q) = slope · n + bias``, never below the two lowest bits of q. A GLWE
ciphertext of k polynomials of degree N counts as LWE of dimension k · N.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, log2
from typing import Any, NamedTuple

from backends.api import InsecureError

MINIMUM_BITS = 128
MODULUS_BITS = 64
MINIMAL_DIMENSION = 450


class Curve(NamedTuple):
    slope: float
    bias: float

    def log2_std(self, dimension: int) -> float:
        """Smallest secure noise, log2 of the standard deviation as a fraction of the modulus."""
        return max(self.slope * dimension + self.bias, 2.0 - MODULUS_BITS)


# zama-ai/concrete, tools/parameter-curves/concrete-security-curves-rust/src/gaussian/curves_gen.rs
CURVES = {
    128: Curve(-0.025696778711484593, 2.675931372549016),
    132: Curve(-0.024891456582633045, 2.65734593837534),
}
# The optimiser stores variances as doubles after a detour through logarithms.
_TOLERANCE = 1e-6


class Sample(NamedTuple):
    """What an attacker sees: LWE samples of this dimension and noise variance (a fraction of the modulus)."""

    name: str
    dimension: int
    variance: float

    @property
    def log2_std(self) -> float:
        return log2(self.variance) / 2 if self.variance > 0 else -inf

    @property
    def margin(self) -> float:
        """Bits of noise above the curve of the minimum level."""
        return self.log2_std - CURVES[MINIMUM_BITS].log2_std(self.dimension)


def tfhe(samples: Iterable[Sample]) -> dict[str, Any]:
    """The security entry of a record; its ``bits`` is that of the weakest sample.

    Raises InsecureError below 128 bits.
    """
    samples = list(samples)
    weakest = min(samples, key=lambda sample: (_bits(sample), sample.margin))
    if _bits(weakest) < MINIMUM_BITS:
        needed = CURVES[MINIMUM_BITS].log2_std(weakest.dimension)
        raise InsecureError(
            f"{weakest.name}: LWE dimension {weakest.dimension} with noise 2^{weakest.log2_std:.2f} of the modulus is "
            f"below {MINIMUM_BITS} bits, which needs noise 2^{needed:.2f} and at least dimension {MINIMAL_DIMENSION}; "
            f"let Concrete choose the parameters"
        )
    return {
        "bits": _bits(weakest),
        "standard": "Concrete security curves (Lattice Estimator), binary secret, q = 2^64",
        "weakest": weakest.name,
        "lwe_dimension": weakest.dimension,
        "log2_noise": round(weakest.log2_std, 4),
        "secret": "uniform binary",
        "noise_above_curve_bits": round(weakest.margin, 4),
    }


def _bits(sample: Sample) -> int:
    if sample.dimension < MINIMAL_DIMENSION:
        return 0
    noise = sample.log2_std + _TOLERANCE
    return max((bits for bits, curve in CURVES.items() if noise >= curve.log2_std(sample.dimension)), default=0)
