"""Chooses a plan: layouts and rotations by cost, then the smallest moduli that keep the precision at 128 bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

import numpy as np

from backends.api import BackendError
from backends.slots import costs, packing
from backends.slots.blocks import Blocks
from backends.slots.execute import Program, decrypt, encrypt
from backends.slots.library import Library, Parameters
from backends.slots.packing import Candidate, Layout
from backends.slots.plan import Plan
from backends.slots.simulator import ROUNDING_STDDEV, Simulator

Objective = Literal["server", "upload", "memory"]
RING_DIMENSIONS = (8192, 16384, 32768)
PRIMES_PER_SQUARE = (1, 2)
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
    encrypted: bool = False,
) -> Plan:
    """The cheapest plan that the library can run at 128 bits with logit errors below `TARGET_LOGIT_ERROR`.

    calibration: (n, inputs) flattened images, on which the error is simulated. hoisting: whether larger radices of
    rotate-and-sum are worth trying. encrypted: the model too; then every scenario gets one image a request. Raises
    BackendError if no ring dimension up to 32768 holds the network.
    """
    for ring_dimension, primes in product(RING_DIMENSIONS, PRIMES_PER_SQUARE):
        precision = Precision(ring_dimension, [a.terms for a in blocks.affines], primes)
        if encrypted:
            precision = dataclasses.replace(precision, public_stddev=library.public_stddev(ring_dimension))
        if scenario == "offline" and not encrypted:
            layout = _batched(blocks, dataclasses.replace(precision, batched=True))
        else:
            layout = _packed(blocks, precision, table, objective, (2, 4, 8) if hoisting else (2,), encrypted)
        found = layout and _smallest(layout, precision, blocks, library, calibration)
        if found:
            return found
    raise BackendError(
        f"no parameters up to ring dimension {RING_DIMENSIONS[-1]} hold {len(blocks.affines)} affine layers at 128 bits "
        "with enough precision; use a shallower network"
    )


# -- layouts -----------------------------------------------------------------------------------------------------------


def _batched(blocks: Blocks, precision: Precision) -> Plan:
    request, steps = packing.batched(blocks.affines)
    outputs = tuple(range(len(blocks.affines[-1].bias)))  # one ciphertext each
    return Plan(precision.parameters(FIRST_GUESS_BITS), request, steps, outputs, blocks.output_scale)


@dataclass(frozen=True)
class _Tail:
    """The cheapest candidates for a layer and all after it."""

    ms: float
    candidates: tuple[Candidate, ...]


def _packed(
    blocks: Blocks,
    precision: Precision,
    table: dict[str, list[float]],
    objective: Objective,
    radices: tuple[int, ...],
    encrypted: bool,
) -> Plan | None:
    """Dynamic programming over the layouts between layers; the objective chooses the first layer, with what it asks of
    the client. None if a layer does not fit into the slots."""
    affines, parameters = blocks.affines, precision.parameters(FIRST_GUESS_BITS)
    slots, tails = parameters.slots, dict[tuple, _Tail | None]()

    def ms(index: int, candidate: Candidate) -> float:
        """Of the step, and of the squaring before it."""
        primes = parameters.levels + 1 - index * parameters.primes_per_square
        total = costs.milliseconds(costs.affine_operations(candidate.step, encrypted), primes, parameters, table)
        if index:
            squares = costs.square_operations(1, parameters)
            total += costs.milliseconds(squares, primes + parameters.primes_per_square, parameters, table)
        return total

    def tail(index: int, source: Layout) -> _Tail | None:
        key = index, source.period, source.grid
        if key not in tails:
            tails[key] = cheapest(index, source)
        return tails[key]

    def cheapest(index: int, source: Layout) -> _Tail | None:
        affine = affines[index]
        if index == len(affines) - 1:
            options = [_Tail(ms(index, c), (c,)) for c in packing.last_layer(affine, source, slots, radices)]
            return min(options, key=lambda option: option.ms, default=None)
        options = []
        for target in packing.layouts(affine.shape or affine.bias.shape, source, affines[index - 1].shape):
            candidates = list(packing.middle_layer(affine, source, target, slots, radices))
            rest = tail(index + 1, target) if candidates else None
            if rest:
                best = min(candidates, key=partial(ms, index))
                options.append(_Tail(ms(index, best) + rest.ms, (best, *rest.candidates)))
        return min(options, key=lambda option: option.ms, default=None)

    options: list[tuple[tuple[float, ...], tuple[Candidate, ...]]] = []
    last = len(affines) == 1
    for target in packing.layouts(affines[0].bias.shape if last else affines[0].shape or affines[0].bias.shape):
        rest = _Tail(0.0, ()) if last else tail(1, target)
        if rest is None:
            continue
        for first in packing.first_layer(affines[0], target, slots, radices):
            chosen = (first, *rest.candidates)
            ciphertexts = len(first.request.real)
            server_ms = costs.request_ms(ciphertexts, parameters, table) + ms(0, first) + rest.ms
            options.append(((*_priority(objective, chosen, ciphertexts, parameters), server_ms), chosen))
    if not options:
        return None
    _, chosen = min(options, key=lambda option: option[0])
    steps = tuple(candidate.complete() for candidate in chosen)
    return Plan(parameters, chosen[0].request, steps, chosen[-1].output_slots, blocks.output_scale, encrypted)


def _priority(
    objective: Objective, chosen: Sequence[Candidate], ciphertexts: int, parameters: Parameters
) -> tuple[float, ...]:
    """What comes before server time."""
    if objective == "upload":
        return (ciphertexts,)
    if objective == "memory":  # of the server: keys are the largest part, then encoded weights
        keys = len(set().union(*(c.step.rotations for c in chosen))) + any(c.step.conjugates for c in chosen) + 1
        return (2 * keys * (parameters.levels + 1) + sum(len(c.step.terms) for c in chosen),)
    return ()


# -- moduli ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Precision:
    """What the scales depend on besides the bits of precision.

    terms: the largest number of products in an output of each affine map. public_stddev: of a coefficient of the noise
    of encrypted weights; 0 for plain ones. batched: one image in each slot.
    """

    ring_dimension: int
    terms: Sequence[int]
    primes_per_square: int = 1
    public_stddev: float = 0.0
    batched: bool = False

    def parameters(self, bits: int, extra_state_bits: int = 0) -> Parameters:
        """Scales and primes for `bits` bits of values between layers, relative to their range.

        One prime for each squaring where 60 bits suffice, not one for each product: the scale grows over the affine map
        *and* the square, and one rescaling takes both back. It halves the number of primes, which is what the time of
        every operation depends on (SEAL and OpenFHE spend a 64-bit word on a prime of any size). The offsets below are
        the standard deviations of fresh noise (2^8), of encoding (2^4, for each product of a sum) and of rescaling
        (2^11, over the folds), in slots of a ring of dimension 8192; they grow with its square root. extra_state_bits:
        moves bits from the dropped primes to the first one, for a library that accepts only such a shape.
        """
        growth = (self.ring_dimension // 8192).bit_length() // 2
        weight_noise = 4 + round(math.log2(max(1.0, self.public_stddev / ROUNDING_STDDEV)))
        weights = [bits + growth + weight_noise + round(math.log2(n) / 2) for n in self.terms]
        fresh, state = bits + growth + 7, bits + growth + 13 + extra_state_bits
        if self.batched:  # a scalar is encoded as one coefficient, so it is rounded 2^4 times more finely than a vector
            fresh, weights = fresh + 4, [weight - 4 for weight in weights]
        before = (fresh, *[state] * len(weights))
        dropped = max(2 * (scale + weight) - state for scale, weight in zip(before, weights[:-1] or [0]))
        rescale = -(-dropped // self.primes_per_square)
        dropped = rescale * self.primes_per_square
        first = state + weights[-1] + HEAD_ROOM_BITS + 2
        if (
            len(weights) > 1
        ):  # the scale returns to `state` after every rescaling: spend what the largest layer left over
            weights[1:-1] = [(dropped - state) // 2] * (len(weights) - 2)
            fresh = (dropped + state) // 2 - weights[0]
        return Parameters(
            ring_dimension=self.ring_dimension,
            first_bits=first,
            rescale_bits=rescale,
            depth=len(weights) - 1,
            special_bits=max(first, rescale),
            input_scale_bits=fresh,
            weight_scale_bits=tuple(weights),
            primes_per_square=self.primes_per_square,
        )


def _smallest(
    layout: Plan, precision: Precision, blocks: Blocks, library: Library, calibration: np.ndarray
) -> Plan | None:
    """The layout with the fewest bits whose simulated error is small enough; None if the ring cannot hold them.

    An error halves with every bit, so one simulation tells how many are missing.
    """
    error = simulated_error(layout, blocks, calibration, precision.public_stddev)
    bits = FIRST_GUESS_BITS + math.ceil(math.log2(max(error, 1e-9) / TARGET_LOGIT_ERROR))
    for extra in range(MAX_EXTRA_STATE_BITS):
        parameters = precision.parameters(max(MINIMUM_BITS, bits), extra)
        if library.admissible(parameters):
            return dataclasses.replace(layout, parameters=parameters)
    return None


def simulated_error(candidate: Plan, blocks: Blocks, calibration: np.ndarray, public_stddev: float = 0.0) -> float:
    """Worst absolute logit error of the plan under simulated CKKS noise, over a few images."""
    images, noise_of = calibration[:SIMULATED_IMAGES], candidate.parameters.ring_dimension
    if candidate.input.batched:  # as many slots as there are images are enough, with the noise of the real ring
        small = dataclasses.replace(candidate.parameters, ring_dimension=2 * len(images))
        candidate = dataclasses.replace(candidate, parameters=small)
    simulator = Simulator(noise_of=noise_of, public_stddev=public_stddev)
    moduli = simulator.client(candidate.parameters).moduli(candidate.parameters)
    weights = None
    if candidate.encrypted:
        weights = (simulator.encrypt_weight(w.vector, w.scale, w.level) for w in candidate.weights(moduli))
    program = Program(candidate, simulator, moduli, weights)
    requests = [images] if candidate.input.batched else [images[i : i + 1] for i in range(len(images))]
    logits = [
        decrypt(candidate, simulator, program.run(encrypt(candidate, simulator, r)), program.scales[-1], len(r))
        for r in requests
    ]
    return float(np.abs(np.concatenate(logits) - blocks.forward(images)).max())
