"""Builds realistic records for the tests of the report; no FHE library is needed."""

from __future__ import annotations

import hashlib

import numpy as np

from bench.frontier import Frontier
from bench.record import Outputs, Record, Stage, Trial

REQUEST_STAGES = [
    ("client", "encrypt"), ("client", "serialise"), ("server", "deserialise"), ("server", "infer"),
    ("server", "serialise"), ("client", "deserialise"), ("client", "decrypt"),
]  # fmt: skip
ONCE_STAGES = [
    ("owner", "prepare"), ("client", "load"), ("server", "load"), ("client", "keygen"), ("server", "load_keys"),
]  # fmt: skip

# backend → median seconds of the request stages, of the stages that happen once, and bytes.
SHAPES = {
    "clear": ([1e-5, 2e-5, 1e-5, 1e-4, 5e-6, 5e-6, 2e-6], [0.001, 0.001, 0.001, 1e-6, 1e-6], 3136, 16, {}),
    "ckks": (
        [0.004, 0.001, 0.003, 0.018, 2e-4, 1e-4, 5e-4], [0.05, 0.02, 0.1, 0.9, 0.4], 334_000, 98_000,
        {"evaluation_key_bytes": 41_000_000, "public_key_bytes": 480_000},
    ),
    "openfhe": (
        [0.006, 0.003, 0.004, 0.043, 4e-4, 2e-4, 9e-4], [0.08, 0.03, 0.2, 1.4, 0.7], 1_050_000, 262_000,
        {"rotation_key_bytes": 58_000_000, "relinearisation_key_bytes": 3_100_000, "public_key_bytes": 790_000},
    ),
    "tfhe": ([0.09, 0.01, 0.006, 96.0, 0.002, 0.001, 0.003], [61.0, 0.4, 0.6, 2.2, 0.3], 36_100, 24_800,
             {"evaluation_key_bytes": 27_000_000}),
}  # fmt: skip
PARAMETERS = {
    "ckks": {"ring_dimension": 8192, "log2_qp": 140.0, "modulus_bits": [40, 30, 30, 40], "scale_bits": 30},
    "openfhe": {"ring_dimension": 16384, "log2_qp": 210.0, "modulus_bits": [60, 45, 45, 60], "scaling": "FLEXIBLEAUTO"},
    "tfhe": {"lwe_dimension": 834, "polynomial_size": 2048, "p_error": 6.3e-5, "bits": {"weights": 4}},
}


def _key(*identity) -> str:
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


def record(
    backend="ckks", task="breastmnist", kind="binary-class", outputs=2, n=40, samples=20, seed=0, batch=1, **trial
) -> Record:
    """A finished trial; `trial` goes into the Trial."""
    rng = np.random.default_rng([seed, *backend.encode(), *task.encode()])
    times, once, request, response, keys = SHAPES[backend.partition(":")[0]]
    wall = [
        (role, name, rng.lognormal(np.log(t * batch**0.5), 0.05, samples).tolist())
        for (role, name), t in zip(REQUEST_STAGES, times, strict=True)
    ]
    stages = [
        Stage(role=role, name=name, wall_s=[t], cpu_s=[t * 0.98])
        for (role, name), t in zip(ONCE_STAGES, once, strict=True)
    ]
    stages += [
        Stage(role=role, name=name, wall_s=w, cpu_s=[0.97 * s for s in w], cold_wall_s=2 * w[0],
              warmup_wall_s=[1.1 * w[0]], peak_rss_bytes=int(rng.integers(80_000_000, 900_000_000)))
        for role, name, w in wall
    ]  # fmt: skip
    return Record(
        key=_key(backend, task, seed, batch, trial),
        trial=Trial(backend=backend, model=trial.pop("model", "fcnn"), task=task, images=n, seed=seed, **trial),
        status="ok",
        started_at="2025-11-22T22:40:00+00:00",
        duration_s=12.5,
        batch=batch,
        stages=stages,
        sizes={"request_bytes": request, "response_bytes": response, "client_artifact_bytes": 2_000,
               "server_artifact_bytes": 900_000, **keys},
        parameters=PARAMETERS.get(backend.partition(":")[0], {}),
        security=None if backend == "clear" else {"bits": 128, "standard": "lattice-estimator 2024"},
        operations={} if backend == "clear" else {"rotations": 31, "multiply_plain": 64, "rescale": 3},
        notes={},
        network={"model": "fcnn", "lowering": "integer" if backend == "tfhe" else "polynomial", "sha256": "ab" * 32},
        outputs=outputs_of(rng, kind, outputs, n),
        cpu_wall_ratio=0.98,
        machine={"cpu": "AMD EPYC 7B13", "cores": 2, "memory_bytes": 25_000_000_000},
        versions={"python": "3.10.18", "numpy": "1.26.4", backend.partition(":")[0]: "1.0"},
        git_commit="4820b489d0c1",
        command="python -m bench run --backend ckks --task breastmnist --out reports/x",
    )  # fmt: skip


def outputs_of(rng, kind="binary-class", outputs=2, n=40, noise=1e-3) -> Outputs:
    if kind == "multi-label, binary-class":
        labels = rng.integers(0, 2, (n, outputs))
        float_logits = 1.5 * (2 * labels - 1) + rng.normal(0, 1.5, (n, outputs))
    else:
        labels = rng.integers(0, outputs, (n, 1))
        float_logits = 2.0 * (labels == np.arange(outputs)) + rng.normal(0, 1, (n, outputs))
    lowered = float_logits + rng.normal(0, 0.2, float_logits.shape)
    encrypted = lowered + rng.normal(0, noise, lowered.shape)
    return Outputs(kind=kind, indices=list(range(n)), labels=labels.tolist(), float_logits=float_logits.tolist(),
                   lowered_logits=lowered.tolist(), encrypted_logits=encrypted.tolist())  # fmt: skip


def failed(status, reason, backend="tfhe", task="pneumoniamnist", **trial) -> Record:
    """A trial that ended before anything was measured."""
    return Record(
        key=_key(status, reason, backend, task),
        trial=Trial(backend=backend, model="fcnn", task=task, **trial),
        status=status,
        reason=reason,
        started_at="2025-11-22T22:50:00+00:00",
        duration_s=3.0,
    )


def search() -> Frontier:
    """Of three networks, one of which was not measured."""
    measured = {"encrypt_s": 0.03, "keygen_s": 1.4, "key_bytes": 25_000_000, "request_bytes": 5_000}
    rows = [
        {"number": 2, "accuracy": 0.958, "complexity": 6e9, "infer_s": 0.724, **measured, "hidden": 64},
        {"number": 0, "accuracy": 0.952, "complexity": 1e9, "infer_s": 0.206, **measured, "hidden": 16},
        {"number": 9, "accuracy": 0.917, "complexity": 5e8, "hidden": 4, "activation": "square"},
    ]
    return Frontier(backend="tfhe", model="fcnn", task="pneumoniamnist", networks=75, rows=rows)
