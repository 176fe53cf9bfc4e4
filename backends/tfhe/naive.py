"""Concrete ML as its README uses it: `compile_torch_model` quantises the float network after training, p_error 2^-40."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from backends import frames
from backends.api import BackendError, Job, Prepared
from backends.tfhe import owner, parties, security
from backends.tfhe.library import temporaries_in

BITS = 6  # of weights, activations and rounded accumulators alike


class NaiveOwner:
    def prepare(self, job: Job) -> Prepared:
        """Raises BackendError, InsecureError."""
        if job.scenario != "single-stream":
            raise BackendError("tfhe:naive answers one image a request; use --scenario single-stream")
        if job.model_privacy != "plain":
            raise BackendError("this backend does not encrypt the model: use --model-privacy plain")
        if len(job.calibration) == 0:
            raise BackendError("compiling needs calibration images: pass some of the training split")
        from concrete.ml.deployment import FHEModelDev
        from concrete.ml.torch.compile import compile_torch_model

        from models.torch_graph import to_torch

        with tempfile.TemporaryDirectory() as folder, temporaries_in(folder):
            try:
                module = compile_torch_model(
                    to_torch(job.network).eval(),
                    owner.calibration(job.calibration),
                    n_bits=BITS,
                    rounding_threshold_bits={"n_bits": BITS, "method": "approximate"},
                )
            except RuntimeError as error:
                raise BackendError(f"Concrete cannot compile this network: {error}; choose a smaller model") from error
            path = Path(folder) / "deployment"
            FHEModelDev(str(path), module).save(via_mlir=False)
            client, server = (path / "client.zip").read_bytes(), (path / "server.zip").read_bytes()
            compiled = module.fhe_circuit
            specs = json.loads(compiled.client.specs.serialize())
            settings = {"identity": frames.identity(server).hex(), "batch": 1}
            return Prepared(
                client=owner.with_settings(client, settings | {"input_shape": job.network.input_shape}),
                server=owner.with_settings(server, settings),
                parameters=owner.parameters(compiled, specs, job.threads) | {"bits": BITS},
                security=security.tfhe(owner.samples(specs)),
                operations=owner.operations(compiled),
                notes={"quantisation": f"after training, {BITS} bits everywhere, by Concrete ML"},
            )


class NaiveClient(parties.Client):
    """Concrete ML quantises before encryption and after decryption."""

    def _load(self, path: Path, settings: dict[str, Any]) -> None:
        from concrete.ml.deployment import FHEModelClient

        with temporaries_in(self._folder.name):
            model = FHEModelClient(str(path.parent))
        self._client, self._model = model.client, model.model

    def _quantise(self, images: np.ndarray) -> np.ndarray:
        return self._model.quantize_input(images)

    def _logits(self, integers: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.dequantize_output(integers), np.float64)
