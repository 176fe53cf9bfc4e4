"""Levels of security are those of a published table, for every ring dimension that one has; else there is none."""

from __future__ import annotations

import pytest

from backends.api import InsecureError
from backends.security import ERROR_STDDEV, ckks


def described(n: int, log2_qp: float, secret: str = "uniform ternary", error: float = ERROR_STDDEV) -> dict:
    return {"ring_dimension": n, "log2_qp": log2_qp, "secret": secret, "error_stddev": error}


@pytest.mark.parametrize(
    "n, log2_qp, bits, standard, limit, tighter",
    [
        (8192, 218, 128, "2018", 218, False),
        (8192, 214, 128, "2018", 218, True),
        (32768, 611, 192, "2018", 881, True),
        (65536, 1747, 128, "Guidelines 2024", 1747, True),
        (65536, 1199, 192, "Guidelines 2024", 1747, True),
        (65536, 929, 256, "Guidelines 2024", 1747, True),
        (131072, 3523, 128, "Guidelines 2024", 3523, True),
        (131072, 1866.5, 192, "Guidelines 2024", 3523, True),
    ],
)
def test_the_level_is_that_of_the_table(
    n: int, log2_qp: float, bits: int, standard: str, limit: int, tighter: bool
) -> None:
    found = ckks(described(n, log2_qp))
    assert (found["bits"], found["log2_qp_limit"], found["meets_2024_guidelines"]) == (bits, limit, tighter)
    assert standard in found["standard"]


def test_a_sparse_secret_is_measured_against_what_is_published_for_its_weight() -> None:
    sparse = described(65536, 1546, "sparse encapsulated") | {"secret_weight": 192}
    found = ckks(sparse)
    assert (found["bits"], found["log2_qp_limit"], found["meets_2024_guidelines"]) == (128, 1546, False)
    assert "2022/024" in found["standard"] and "no standard" in found["standard"]
    for worse in ({"log2_qp": 1547}, {"ring_dimension": 32768}, {"secret_weight": 64}, {"secret": "sparse ternary"}):
        with pytest.raises(InsecureError, match="sparse .* secret is below|sparse encapsulated secret is below"):
            ckks(sparse | worse)


@pytest.mark.parametrize(
    "description, reason",
    [
        (described(8192, 218.1), "limit 218"),
        (described(65536, 1748), "limit 1747"),
        (described(131072, 3524), "limit 3523"),
        (described(262144, 10), "limit 0"),
        (described(512, 10), "limit 0"),
        (described(8192, 100, secret="sparse ternary"), "sparse ternary secret"),
        (described(8192, 100, error=1.0), "standard deviation"),
    ],
)
def test_what_no_table_has_is_insecure(description: dict, reason: str) -> None:
    with pytest.raises(InsecureError, match=reason):
        ckks(description)
