"""What a plan does and costs, layer by layer: predicted by the cost model, and measured with every primitive timed."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np

from backends.slots import batched, costs, execute
from backends.slots.blocks import Blocks
from backends.slots.library import Library
from backends.slots.plan import Carry, Plan, Product

REPETITIONS = 15


class Timed:
    """An evaluator that adds up the seconds of each primitive."""

    def __init__(self, evaluator: Any) -> None:
        self._evaluator = evaluator
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._evaluator, name)

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = method(*arguments)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed


def explain(
    plan: Plan, blocks: Blocks, library: Library, table: dict[str, list[float]], images: np.ndarray
) -> dict[str, Any]:
    """Layout, level, operations, predicted and measured milliseconds of each layer; medians over a few images."""
    client, evaluator = library.client(plan.parameters), Timed(library.evaluator(plan.parameters))
    evaluator.load_keys(client.keygen(plan.keys))
    moduli = library.moduli(plan.parameters)
    if not plan.model_encrypted:
        program = batched.program(plan, evaluator, moduli)
    else:
        owner = library.owner(plan.parameters, client.public_key())
        fresh = (owner.encrypt_weight(w.vector, w.scale, w.level) for w in plan.weights(moduli))
        weights = (evaluator.deserialise(owner.serialise(cipher)) for cipher in fresh)
        program = execute.Program(plan, evaluator, moduli, weights)
    flat = images.reshape(len(images), -1)
    repetitions = 1 if plan.input.batched else REPETITIONS
    runs = []
    for i in range(repetitions + (repetitions > 1)):
        batch = np.resize(np.roll(flat, -i, axis=0), (plan.batch, flat.shape[1]))
        runs.append(_run(plan, blocks, program, client, evaluator, batch))
    runs = runs[1:] if repetitions > 1 else runs  # the first is cold
    measured = np.median([r["layers_ms"] for r in runs], axis=0)
    primitives = float(np.median([r["primitives_ms"] for r in runs]))
    predicted = costs.predict_ms(plan, table)
    counts = costs.operations(plan)
    layers = [{"layer": "request", "reads": "", "layout": plan.input.kind, "level": 0, "operations": {}}]
    names = _names(plan)
    for value, (step, (_, _, used)) in enumerate(zip(plan.steps, counts), 1):
        reads = ", ".join(names[source] for source in step.sources)
        about = {"layer": names[value], "reads": reads, "layout": step.kind, "level": plan.levels[value]}
        layers.append(about | {"operations": costs.named(used)})
    for layer, before, now in zip(layers, predicted, measured):
        layer |= {"predicted_ms": float(before), "measured_ms": float(now)}
    inference = float(measured[1:].sum())
    return {
        "parameters": library.describe(plan.parameters),
        "scales_bits": [plan.parameters.input_scale_bits, *plan.parameters.weight_scale_bits],
        "batch": plan.batch,
        "layers": layers,
        "primitives_ms": primitives,
        "python_share": 1 - primitives / inference,
        "worst_logit_error": max(r["error"] for r in runs),
    }


def _names(plan: Plan) -> list[str]:
    """Of all values: those of the network, as often as they occur; a product beside its operands has a star."""
    names = ["request"]
    for step in plan.steps:
        name = step.name + {Product: " ×", Carry: " ×1"}.get(type(step), "")
        names.append(name if name not in names else f"{name} ({sum(n.startswith(name) for n in names) + 1})")
    return names


def _run(
    plan: Plan,
    blocks: Blocks,
    program: execute.Program | batched.BatchedProgram,
    client: Any,
    evaluator: Timed,
    images: np.ndarray,
) -> dict[str, Any]:
    request = [client.serialise(cipher) for cipher in execute.encrypt(plan, client, images)]
    layers_ms = []
    start = time.perf_counter()
    ciphers = program.read(request)
    layers_ms.append(1e3 * (time.perf_counter() - start))
    evaluator.seconds.clear()
    values: dict[int, Any] = {0: ciphers}
    for index in range(len(plan.steps)):
        start = time.perf_counter()
        program.step(index, values)
        layers_ms.append(1e3 * (time.perf_counter() - start))
    primitives_ms = 1e3 * sum(evaluator.seconds.values())
    ciphers = [client.deserialise(evaluator.serialise(cipher)) for cipher in program.response(values)]
    logits = execute.decrypt(plan, client, ciphers, program.scales[-1], len(images))
    error = float(np.abs(logits - blocks.forward(images)).max())
    return {"layers_ms": layers_ms, "primitives_ms": primitives_ms, "error": error}
