"""Chooses a plan: layouts and rotations by cost, then the smallest moduli that keep the precision at 128 bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from backends.api import BackendError
from backends.slots import costs, packing
from backends.slots.blocks import Blocks
from backends.slots.execute import Program, decrypt, encrypt
from backends.slots.library import Library, Parameters
from backends.slots.plan import Input, Packed, Plan, Step
from backends.slots.simulator import Simulator

Objective = Literal["server", "upload", "memory"]
RING_DIMENSIONS = (8192, 16384, 32768)
FIRST_GUESS_BITS, MINIMUM_BITS = 12, 6  # of the values between layers, relative to their range
TARGET_LOGIT_ERROR = 4e-3  # of the simulated worst case; the promise is 1e-2
HEAD_ROOM_BITS = 2
MAX_EXTRA_STATE_BITS = 12
SIMULATED_IMAGES = 32


def plan(
    blocks: Blocks,
    library: Library,
    table: dict[str, list[float]],
    calibration: np.ndarray,
    *,
    scenario: str = "single-stream",
    objective: Objective = "server",
    hoisting: bool = False,
) -> Plan:
    """The cheapest plan that the library can run at 128 bits with logit errors below `TARGET_LOGIT_ERROR`.

    calibration: (n, inputs) flattened images, on which the error is simulated. hoisting: whether larger radices of
    rotate-and-sum are worth trying. Raises BackendError if no ring dimension up to 32768 holds the network.
    """
    for ring_dimension in RING_DIMENSIONS:
        layout = _layout(blocks, ring_dimension // 2, table, scenario, objective, hoisting)
        if layout is None:
            continue
        found = _smallest(layout, ring_dimension, blocks, library, calibration)
        if found is not None:
            return found
    raise BackendError(
        f"no parameters up to ring dimension {RING_DIMENSIONS[-1]} hold {len(blocks.affines)} affine layers at 128 bits "
        "with enough precision; use a shallower network"
    )


def _inputs(blocks: Blocks) -> list[int]:
    return [affine.weight.shape[1] for affine in blocks.affines]


def _layout(
    blocks: Blocks, slots: int, table: dict[str, list[float]], scenario: str, objective: Objective, hoisting: bool
) -> Plan | None:
    parameters = _parameters(2 * slots, _inputs(blocks), 12)
    if scenario == "offline":
        request, steps = packing.batched(blocks.affines)
        outputs = tuple(range(len(blocks.affines[-1].bias)))  # one ciphertext each
        return Plan(parameters, request, steps, outputs, blocks.output_scale)
    candidates = _candidates(blocks, slots, (2, 4, 8) if hoisting else (2,), parameters, table)
    return min(candidates, key=lambda p: _cost(p, table, objective), default=None)


def _cost(candidate: Plan, table: dict[str, list[float]], objective: Objective) -> tuple[float, ...]:
    """Ties of the first figure are broken by server time."""
    server_ms = sum(costs.predict_ms(candidate, table))
    if objective == "upload":
        return costs.request_ciphertexts(candidate), server_ms
    if objective == "memory":  # of the server: keys are the largest part, then encoded weights
        digits = candidate.parameters.depth + 1
        keys = len(candidate.keys.rotations) + candidate.keys.conjugation + candidate.keys.relinearisation
        return 2 * keys * digits + sum(len(s.diagonals) for s in candidate.steps if isinstance(s, Packed)), server_ms
    return (server_ms,)


def _candidates(
    blocks: Blocks, slots: int, radices: tuple[int, ...], parameters: Parameters, table: dict[str, list[float]]
) -> Iterator[Plan]:
    """Every first layer with the best of each later one: after the first layer the layouts do not depend on each other."""
    affines = blocks.affines

    def of(request: Input, steps: tuple[Step, ...], outputs: tuple[int, ...]) -> Plan:
        return Plan(parameters, request, steps, outputs, blocks.output_scale)

    later: tuple[Step, ...] = ()
    output_slots = tuple(range(len(affines[-1].bias)))
    period = packing.power_of_two(len(affines[0].bias))
    unit = Packed("", 1, (), np.zeros((0, slots)), (), np.zeros((1, slots)))

    def step_ms(step: Packed) -> float:
        """Cost at the level of this step; steps before it stand empty."""
        empty = tuple(unit for _ in range(1 + len(later)))
        request = Input("", False, np.zeros((1, slots), np.int32), np.zeros((1, slots), np.int32))
        return sum(costs.predict_ms(of(request, (*empty, step), output_slots), table))

    for index, affine in enumerate(affines[1:], start=1):
        if index == len(affines) - 1:
            options = list(packing.last_layer(affine, period, slots, radices))
        else:
            options = [(p, output_slots) for p in packing.middle_layer(affine, period, slots, radices)]
        if not options:
            return
        step, output_slots = min(options, key=lambda option: step_ms(option[0]))
        later += (step,)
        period = packing.power_of_two(len(affine.bias))
    for request, first in packing.first_layer(affines[0], slots, radices):
        yield of(request, (first, *later), output_slots)


def _parameters(
    ring_dimension: int, inputs: Sequence[int], precision_bits: int, extra_state_bits: int = 0, batched: bool = False
) -> Parameters:
    """Scales and primes for `precision_bits` bits of values between layers. inputs: of each affine map.

    One prime for each squaring, not one for each product: the scale grows over the affine map and the square, and one
    rescaling takes both back. It halves the number of primes, which is what the time of every operation depends on
    (SEAL and OpenFHE spend a 64-bit word on a prime of any size). The offsets below are the standard deviations of
    fresh noise (2^8), of encoding (2^4, for each of the inputs) and of rescaling (2^11, over the folds), in slots of a
    ring of dimension 8192; they grow with its square root. extra_state_bits: moves bits from the dropped primes to the
    first one, for a library that accepts only such a shape.
    """
    noise = (ring_dimension // 8192).bit_length() // 2
    weights = [precision_bits + noise + 4 + round(np.log2(n) / 2) for n in inputs]
    fresh, state = precision_bits + noise + 7, precision_bits + noise + 13 + extra_state_bits
    if batched:  # a scalar is encoded as one coefficient, so it is rounded 2^4 times more finely than a vector
        fresh, weights = fresh + 4, [weight - 4 for weight in weights]
    rescale = max(
        2 * (before + weight) - state for before, weight in zip((fresh, *[state] * len(inputs)), weights[:-1] or [0])
    )
    first = state + weights[-1] + HEAD_ROOM_BITS + 2
    if len(inputs) > 1:  # the scale returns to `state` after every rescaling: spend what the largest layer left over
        weights[1:-1] = [(rescale - state) // 2] * (len(inputs) - 2)
        fresh = (rescale + state) // 2 - weights[0]
    return Parameters(
        ring_dimension=ring_dimension,
        first_bits=first,
        rescale_bits=rescale,
        depth=len(inputs) - 1,
        special_bits=max(first, rescale),
        input_scale_bits=fresh,
        weight_scale_bits=tuple(weights),
    )


def _smallest(
    layout: Plan, ring_dimension: int, blocks: Blocks, library: Library, calibration: np.ndarray
) -> Plan | None:
    """The layout with the fewest bits whose simulated error is small enough; None if the ring cannot hold them.

    An error halves with every bit, so one simulation tells how many are missing.
    """
    bits = FIRST_GUESS_BITS
    error = simulated_error(_with_bits(layout, ring_dimension, blocks, bits), blocks, calibration)
    bits = max(MINIMUM_BITS, bits + math.ceil(math.log2(max(error, 1e-9) / TARGET_LOGIT_ERROR)))
    for extra in range(MAX_EXTRA_STATE_BITS):
        candidate = _with_bits(layout, ring_dimension, blocks, bits, extra)
        if library.admissible(candidate.parameters):
            return candidate
    return None


def _with_bits(layout: Plan, ring_dimension: int, blocks: Blocks, bits: int, extra_state_bits: int = 0) -> Plan:
    parameters = _parameters(ring_dimension, _inputs(blocks), bits, extra_state_bits, layout.input.batched)
    return dataclasses.replace(layout, parameters=parameters)


def simulated_error(candidate: Plan, blocks: Blocks, calibration: np.ndarray) -> float:
    """Worst absolute logit error of the plan under simulated CKKS noise, over a few images."""
    images, noise_of = calibration[:SIMULATED_IMAGES], candidate.parameters.ring_dimension
    if candidate.input.batched:  # as many slots as there are images are enough, with the noise of the real ring
        small = dataclasses.replace(candidate.parameters, ring_dimension=2 * len(images))
        candidate = dataclasses.replace(candidate, parameters=small)
    simulator = Simulator(noise_of=noise_of)
    parameters = candidate.parameters
    client, evaluator = simulator.client(parameters), simulator.evaluator(parameters)
    program = Program(candidate, evaluator, simulator.moduli(parameters))
    requests = [images] if candidate.input.batched else [images[i : i + 1] for i in range(len(images))]
    logits = [
        decrypt(candidate, client, program.run(encrypt(candidate, client, r)), program.scales[-1], len(r))
        for r in requests
    ]
    return float(np.abs(np.concatenate(logits) - blocks.forward(images)).max())
