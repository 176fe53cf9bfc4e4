"""The shipped presets under TFHE beside circuits by hand: 784 → 16 → 2 rounded to 4 bits, 784 → 32 → 2 exactly to 6."""

from __future__ import annotations

import numpy as np
import pytest

from models import tasks, zoo
from tests.benchmarks.test_networks import images

TASK = "pneumoniamnist"


class ByHand:
    """Ternary weights and 2-bit inputs drawn at random, which changes no time; ReLU, as Concrete's tutorials write it."""

    def __init__(self, width: int, read_bits: int, exactness: str, p_error: float) -> None:
        from concrete import fhe

        random = np.random.default_rng(0)
        hidden, output = random.integers(-1, 2, (784, width)), random.integers(-1, 2, (width, 2))
        self.inputs = random.integers(0, 4, (100, 784))
        bits = int(np.abs(self.inputs @ hidden).max()).bit_length() + 1

        def circuit(x):
            y = fhe.round_bit_pattern(x @ hidden, bits - read_bits, exactness=fhe.Exactness[exactness])
            return fhe.univariate(lambda v: np.clip(v, 0, None) // 2 ** (bits - 4))(y) @ output

        configuration = fhe.Configuration(
            p_error=p_error, compress_evaluation_keys=True, compress_input_ciphertexts=True
        )
        self.circuit = fhe.Compiler(circuit, {"x": "encrypted"}).compile(list(self.inputs), configuration)
        self.circuit.keygen()
        self.request = self.circuit.encrypt(self.inputs[0])

    def encrypt(self):
        return self.circuit.encrypt(self.inputs[0])

    def infer(self):
        return self.circuit.run(self.request)


class Preset:
    def __init__(self, model: str) -> None:
        from backends.api import Job
        from backends.tfhe import Client, Owner, Server

        network = zoo.network(model, tasks.task(TASK), "integer")
        prepared = Owner().prepare(Job(network, threads=2, calibration=images(64)))
        self.client, self.server = Client(), Server()
        self.client.load(prepared.client)
        self.server.load(prepared.server)
        self.server.load_keys(self.client.keygen(0))
        self.request = self.client.encrypt(images(1))

    def encrypt(self):
        return self.client.encrypt(images(1))

    def infer(self):
        return self.server.infer(self.request)


BY_HAND = {"16 by hand": (16, 4, "APPROXIMATE", 0.05), "32 by hand": (32, 6, "EXACT", 0.01)}


@pytest.fixture(scope="module")
def network(request):
    network = ByHand(*BY_HAND[request.param]) if request.param in BY_HAND else Preset(request.param)
    network.infer()  # decompresses the keys
    return network


NETWORKS = pytest.mark.parametrize(
    "network", [*BY_HAND, "fcnn@fast", "fcnn@balanced", "fcnn@accurate"], indirect=True, scope="module"
)


@NETWORKS
@pytest.mark.benchmark(group="TFHE, one image: server", min_rounds=5, max_time=4)
def test_server(network, benchmark) -> None:
    assert benchmark(network.infer) is not None


@NETWORKS
@pytest.mark.benchmark(group="TFHE, one image: encrypt", min_rounds=5, max_time=2)
def test_encrypt(network, benchmark) -> None:
    assert benchmark(network.encrypt) is not None
