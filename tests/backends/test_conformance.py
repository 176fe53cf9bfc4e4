"""The conformance suite over every registered backend: whatever is in the registry joins by itself.

`bench.conformance` is a pytest module; its fixtures and tests are collected from here too.
"""

from __future__ import annotations

import numpy as np
import pytest

from backends.registry import backends
from bench import conformance
from bench.conformance import *  # noqa: F403


def test_every_backend_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [name for name, info in backends().items() if not info.test_only]
    monkeypatch.delenv(conformance.VARIABLE, raising=False)
    assert conformance.chosen() == expected
    monkeypatch.setenv(conformance.VARIABLE, "ckks:naive,clear")
    assert conformance.chosen() == ["ckks:naive", "clear"]


@pytest.mark.parametrize("lowering", ["float", "polynomial", "integer"])
def test_wrong_logits_are_not_close(lowering: str) -> None:
    """The yardstick itself: it must be able to fail."""
    network = conformance.tiny_network(lowering)
    expected = network.forward(conformance.random_images(network, 2))
    conformance.assert_close(lowering, expected, expected)
    for wrong in (-expected, expected + 0.02, expected[::-1], expected * np.nan, expected[:1]):
        with pytest.raises(AssertionError):
            conformance.assert_close(lowering, wrong, expected)
