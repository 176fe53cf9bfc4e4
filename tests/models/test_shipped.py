"""Shipped networks compute what they computed when they were made: logits that were recorded then, from images of noise."""

import json
from pathlib import Path

import numpy as np
import pytest

from models.network import Network
from models.zoo import SHIPPED

RECORDED = json.loads((Path(__file__).parent / "shipped_logits.json").read_text())


@pytest.mark.parametrize("stem", sorted(RECORDED))
def test_logits_are_those_of_the_day_it_was_shipped(stem):
    """Equal to the bit on the processor that they were recorded on; others may add up in another order."""
    network = Network.load(SHIPPED / stem)
    noise = np.random.default_rng(0).integers(0, 256, (3, *network.input_shape)).astype(np.float32) / np.float32(255)
    recorded = np.array([[float.fromhex(value) for value in row] for row in RECORDED[stem]])
    np.testing.assert_allclose(network.forward(noise), recorded, rtol=0, atol=1e-12 * np.abs(recorded).max())


def test_all_shipped_networks_are_recorded():
    shipped = {str(path.relative_to(SHIPPED).with_suffix("")) for path in SHIPPED.glob("*/*.json")}
    assert shipped == set(RECORDED)
