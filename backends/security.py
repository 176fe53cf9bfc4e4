"""Security levels of ring-LWE parameters, looked up in published tables and computed from the parameters really used."""

from __future__ import annotations

from typing import Any

from backends.api import InsecureError

MINIMUM_BITS = 128

# Largest log2(QP) for uniform ternary secrets and error standard deviation 3.2, classical attacks.
# Albrecht et al., "Homomorphic Encryption Standard", HomomorphicEncryption.org 2018, table 1.
STANDARD_2018 = {
    128: {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881},
    192: {1024: 19, 2048: 37, 4096: 75, 8192: 152, 16384: 305, 32768: 611},
    256: {1024: 14, 2048: 29, 4096: 58, 8192: 118, 16384: 237, 32768: 476},
}
# Bossuat et al., "Security Guidelines for Implementing Homomorphic Encryption", ePrint 2024/463, table 4.2. The rows of
# 65536 and 131072, which the 2018 standard lacks, are of table 5.2 of its revision, as in OpenFHE since pull request 807;
# only there are the levels above 128 needed.
GUIDELINES_2024 = {
    128: {1024: 26, 2048: 53, 4096: 106, 8192: 214, 16384: 430, 32768: 868, 65536: 1747, 131072: 3523},
    192: {65536: 1199, 131072: 2411},
    256: {65536: 929, 131072: 1866},
}


# A ternary secret of Hamming weight 192, as OpenFHE's "sparse encapsulated" one has, is in neither table: attacks on sparse
# secrets are cheaper. What is published at 128 bits is a set of parameters, Lattigo's N16QP1546H192H32: Bossuat, Troncoso-
# Pastoriza and Hubaux, "Bootstrapping for Approximate Homomorphic Encryption with Negligible Failure-Probability by Using
# Sparse-Secret Encapsulation", ACNS 2022 (ePrint 2022/024). A larger modulus than that is refused here. Their ephemeral
# secret of weight 32, and OpenFHE's, encrypts one key, under a modulus of one prime and what switching to it adds.
SPARSE_WEIGHT, SPARSE_RING, SPARSE_LIMIT = 192, 65536, 1546
SPARSE = (
    "Bossuat, Troncoso-Pastoriza and Hubaux 2022 (ePrint 2022/024): an estimate for secrets of weight 192, encapsulated "
    "with weight 32, which no standard tabulates"
)


def limit(ring_dimension: int) -> int:
    """Largest log2(QP) at 128 bits: of the 2018 standard or, for rings beyond it, of the 2024 guidelines; 0: no table."""
    return STANDARD_2018[128].get(ring_dimension, GUIDELINES_2024[128].get(ring_dimension, 0))


ERROR_STDDEV = 3.19  # of both: 8 / √(2π)
_MEASURED = 0.95  # SEAL's error is measured, to within a few hundredths
# Li and Micciancio, "On the Security of Homomorphic Encryption on Approximate Numbers", EUROCRYPT 2021.
IND_CPA_D = (
    "not IND-CPA-D: the noise in decrypted CKKS results depends on the secret key, so whoever sees results and "
    "ciphertexts can recover it; the level holds while results stay with the holder of the key"
)


def ckks(description: dict[str, Any]) -> dict[str, Any]:
    """The security entry of a record for a context described by ``ring_dimension``, ``log2_qp``, ``secret`` and
    ``error_stddev`` (`backends.slots.library.Library.describe`).

    ``bits`` is the level that the 2018 standard guarantees or, for the ring dimensions that it lacks, the guidelines of 2024
    (they tabulate 128, 192 and 256; between two levels the lower counts). Raises InsecureError below 128.
    """
    n, log2_qp = description["ring_dimension"], description["log2_qp"]
    table, standard = STANDARD_2018, "HomomorphicEncryption.org 2018, classical, ternary secret"
    if n not in table[MINIMUM_BITS]:
        table, standard = GUIDELINES_2024, "Security Guidelines 2024 (ePrint 2024/463), classical, ternary secret"
    most = limit(n)
    if description["secret"] == "sparse encapsulated" and description.get("secret_weight", 0) >= SPARSE_WEIGHT:
        table, standard, most = {MINIMUM_BITS: {SPARSE_RING: SPARSE_LIMIT}}, SPARSE, SPARSE_LIMIT * (n == SPARSE_RING)
    elif description["secret"] != "uniform ternary":
        table, most = {}, 0
    bits = max((level for level, row in table.items() if log2_qp <= row.get(n, 0)), default=0)
    if description["error_stddev"] < _MEASURED * ERROR_STDDEV:
        raise InsecureError(
            f"the standard deviation {description['error_stddev']} of the error is below {ERROR_STDDEV}, for which the "
            "tables hold; let the library choose it"
        )
    if bits < MINIMUM_BITS:
        raise InsecureError(
            f"ring dimension {n} with log2(QP) = {log2_qp:.0f} and {description['secret']} secret is below "
            f"{MINIMUM_BITS} bits (limit {most}); use a larger ring dimension or fewer primes"
        )
    return {
        "bits": bits,
        "standard": standard,
        "ring_dimension": n,
        "log2_qp": round(log2_qp, 2),
        "log2_qp_limit": most,
        "meets_2024_guidelines": standard != SPARSE and log2_qp <= GUIDELINES_2024[128].get(n, 0),
        "log2_qp_limit_2024": GUIDELINES_2024[128].get(n, 0),
        "secret": description["secret"],
        "error_stddev": description["error_stddev"],
        "sharing": IND_CPA_D,
    }
