"""Chooses a plan: layouts and rotations by cost, then the smallest moduli that keep the precision at 128 bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

import numpy as np

from backends import security
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
LARGEST_PRIME_BITS = 60
FIRST_GUESS_BITS, MINIMUM_BITS, MAXIMUM_BITS = 12, 6, 24  # of the values between layers, relative to their range
TARGET_LOGIT_ERROR = 4e-3  # of the simulated worst case of a few images; the promise for any is 1e-2
BATCH_TARGET_LOGIT_ERROR = 2e-3  # the worst of thousands of images is worse
HEAD_ROOM_BITS = 2
MAX_EXTRA_STATE_BITS = 12
SIMULATED_IMAGES, FEW_IMAGES = 32, 8


def plan(
    blocks: Blocks,
    library: Library,
    table: dict[str, list[float]],
    calibration: np.ndarray,
    *,
    scenario: str = "single-stream",
    objective: Objective = "server",
    client_adds: bool = True,
    hoisting: bool = False,
    encrypted: bool = False,
) -> Plan:
    """The cheapest plan that the library can run at 128 bits with logit errors below `TARGET_LOGIT_ERROR`.

    calibration: (n, inputs) flattened images, on which the error is simulated. client_adds: whether the client may add up
    the products of the last layer. hoisting: whether larger radices of rotate-and-sum are worth trying. encrypted: the
    model too; then every scenario gets one image a request. Raises BackendError if no ring dimension up to 32768 holds
    the network.
    """
    best, best_ms, rotates = None, math.inf, False
    for ring_dimension, primes, rotate_fresh in product(RING_DIMENSIONS, PRIMES_PER_SQUARE, (True, False)):
        if best and ring_dimension > 2 * best.parameters.ring_dimension:
            break
        if not (rotate_fresh or rotates):
            continue  # it would be the same layout again
        batched = scenario == "offline" and not encrypted
        terms = [affine.terms for affine in blocks.affines]
        stddevs = [library.public_stddev(ring_dimension, primes * i) for i in range(len(terms))] if encrypted else []
        precision = Precision(ring_dimension, terms, primes, stddevs, batched, library.first_is_largest)
        if batched:
            layout = _batched(blocks, precision)
        else:
            parameters = precision.parameters(precision.scales(FIRST_GUESS_BITS))
            layout = packed(
                blocks,
                parameters,
                table,
                objective,
                client_adds=client_adds,
                rotate_fresh=rotate_fresh,
                hoisting=hoisting,
                encrypted=encrypted,
            )
        rotates = layout is not None and not batched and any(term.baby for term in layout.steps[0].terms)
        if layout is None or (ms := sum(costs.predict_ms(layout, table)) / layout.batch) >= best_ms:
            continue
        found = _smallest(layout, precision, blocks, library, calibration)
        if found:
            best, best_ms = found, ms
    if best:
        return best
    raise BackendError(
        f"no parameters up to ring dimension {RING_DIMENSIONS[-1]} hold {len(blocks.affines)} affine layers at 128 bits "
        "with enough precision; use a shallower network"
    )


# -- layouts -----------------------------------------------------------------------------------------------------------


def _batched(blocks: Blocks, precision: Precision) -> Plan:
    request, steps = packing.batched(blocks.affines)
    parameters = precision.parameters(precision.scales(FIRST_GUESS_BITS))
    return Plan(parameters, request, steps, (), blocks.output_scale)  # each logit has a ciphertext of its own


@dataclass(frozen=True)
class _Tail:
    """The cheapest candidates for a layer and all after it."""

    ms: float
    candidates: tuple[Candidate, ...]


def packed(
    blocks: Blocks,
    parameters: Parameters,
    table: dict[str, list[float]],
    objective: Objective = "server",
    *,
    client_adds: bool = True,
    rotate_fresh: bool = True,
    hoisting: bool = False,
    encrypted: bool = False,
) -> Plan | None:
    """The cheapest layouts for these parameters: dynamic programming over those between layers; the objective chooses the
    first layer, with what it asks of the client. rotate_fresh: whether ciphertexts of the request may be rotated before
    their products, where their scale is small and the noise of key switching counts most. None if a layer does not fit
    into the slots."""
    affines, radices = blocks.affines, (2, 4, 8) if hoisting else (2,)
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
            candidates = packing.last_layer(affine, source, slots, radices, client_adds)
            return min((_Tail(ms(index, c), (c,)) for c in candidates), key=lambda t: t.ms, default=None)
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
            if not rotate_fresh and any(term.baby for term in first.step.terms):
                continue
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

    terms: the largest number of products in an output of each affine map. public_stddevs: of a coefficient of the
    noise of their encrypted weights; none for plain ones. batched: one image in each slot. first_is_largest: see `Library`.
    """

    ring_dimension: int
    terms: Sequence[int]
    primes_per_square: int = 1
    public_stddevs: Sequence[float] = ()
    batched: bool = False
    first_is_largest: bool = False

    def scales(self, bits: int, extra_state_bits: int = 0) -> Scales:
        """For `bits` bits of values between layers, relative to their range.

        The offsets are the standard deviations of fresh noise (2^8), of encoding (2^4, for each product of a sum) and of
        rescaling (2^11, over the folds), in slots of a ring of dimension 8192; they grow with its square root.
        extra_state_bits: moves bits from the dropped primes to the first one, for a library that accepts only such a
        shape.
        """
        growth = (self.ring_dimension // 8192).bit_length() // 2
        weights = [bits + growth + 4 + round(math.log2(n) / 2) for n in self.terms]
        if self.public_stddevs:
            weights = [w + round(math.log2(s / ROUNDING_STDDEV)) for w, s in zip(weights, self.public_stddevs)]
        fresh, state = bits + growth + 7, bits + growth + 13 + extra_state_bits
        if self.batched:  # a scalar is encoded as one coefficient, so it is rounded 2^4 times more finely than a vector
            fresh, weights = fresh + 4, [weight - 4 for weight in weights]
        before = (fresh, *[state] * len(weights))
        dropped = max(2 * (scale + weight) - state for scale, weight in zip(before, weights[:-1] or [0]))
        rescale = -(-dropped // self.primes_per_square)
        states = (state,) * (len(weights) - 1)
        return Scales(rescale, states or (fresh,), weights[0] if states else 0, weights[-1])

    def parameters(self, scales: Scales) -> Parameters:
        """Between the states that are asked for, the weights get all bits that rescaling takes back."""
        dropped, depth = scales.rescale * self.primes_per_square, len(self.terms) - 1
        fresh, weights, state = scales.states[0], [], scales.states[0]
        if depth:
            fresh = state = (dropped + scales.states[0]) // 2 - scales.first_weight
            for after in scales.states:
                weights.append((dropped + after) // 2 - state)
                state = 2 * (state + weights[-1]) - dropped
        first = state + scales.last_weight + HEAD_ROOM_BITS + 2
        first = max(first, scales.rescale * self.first_is_largest)
        room = security.GUIDELINES_2024[128][self.ring_dimension] - first - depth * dropped
        # the larger it is, the smaller the noise of key switching, at no cost in time
        special = max(first, scales.rescale, min(LARGEST_PRIME_BITS, room + scales.special))
        return Parameters(
            ring_dimension=self.ring_dimension,
            first_bits=first,
            rescale_bits=scales.rescale,
            depth=depth,
            special_bits=special,
            input_scale_bits=fresh,
            weight_scale_bits=(*weights, scales.last_weight),
            primes_per_square=self.primes_per_square,
        )


@dataclass(frozen=True)
class Scales:
    """In bits: each dropped prime, the scale after each rescaling, the weights of the first and of the last layer, and
    how much of the 2018 standard the special prime may use beyond the 2024 guidelines.

    One prime for each squaring where 60 bits suffice, not one for each product: the scale grows over the affine map *and*
    the square, and one rescaling takes both back. It halves the number of primes, which is what the time of every
    operation depends on (SEAL and OpenFHE spend a 64-bit word on a prime of any size). A network without a squaring has
    the scale of its input in `states`.
    """

    rescale: int
    states: tuple[int, ...]
    first_weight: int
    last_weight: int
    special: int = 0

    def neighbours(self) -> Iterator[Scales]:
        for change in (1, -1):
            yield dataclasses.replace(self, special=max(0, self.special + change))
            yield dataclasses.replace(self, rescale=self.rescale + change)
            yield dataclasses.replace(self, first_weight=self.first_weight + change)
            yield dataclasses.replace(self, last_weight=self.last_weight + change)
            for i, state in enumerate(self.states):
                yield dataclasses.replace(self, states=(*self.states[:i], state + change, *self.states[i + 1 :]))
                yield dataclasses.replace(
                    self,
                    states=(*self.states[:i], state + change, *self.states[i + 1 :]),
                    last_weight=self.last_weight - change,
                )


def _smallest(
    layout: Plan, precision: Precision, blocks: Blocks, library: Library, calibration: np.ndarray
) -> Plan | None:
    """The layout with the fewest bits whose simulated error is small enough; None if the ring cannot hold them.

    An error halves with every bit, so a first simulation tells about how many are needed. Where the library cannot have
    so many, those that it can have are shared out better, one bit after another.
    """

    def candidate(scales: Scales) -> Plan:
        return dataclasses.replace(layout, parameters=precision.parameters(scales))

    def error(scales: Scales, images: int = SIMULATED_IMAGES) -> float:
        return simulated_error(candidate(scales), blocks, calibration[:images], library)

    def admissible(scales: Scales) -> bool:
        parameters = precision.parameters(scales)
        positive = min(parameters.input_scale_bits, *parameters.weight_scale_bits, *scales.states) > 0
        return positive and library.admissible(parameters)

    def admitted(bits: int) -> Scales | None:
        return next(filter(admissible, (precision.scales(bits, extra) for extra in range(MAX_EXTRA_STATE_BITS))), None)

    target = BATCH_TARGET_LOGIT_ERROR if precision.batched else TARGET_LOGIT_ERROR
    missing = math.log2(max(error(precision.scales(FIRST_GUESS_BITS)), 1e-9) / target)
    bits = max(MINIMUM_BITS, FIRST_GUESS_BITS + math.ceil(missing) - 1)
    while bits < MAXIMUM_BITS and error(precision.scales(bits)) > target:
        bits += 1
    for fewer in range(bits, max(MINIMUM_BITS, bits - 2) - 1, -1):
        scales = admitted(fewer)
        if scales is None:
            continue
        if fewer == bits:
            return candidate(scales)
        best, improved = error(scales, FEW_IMAGES), True
        while improved:
            if best < target and error(scales) <= target:
                return candidate(scales)
            improved = False
            for neighbour in filter(admissible, scales.neighbours()):
                if (now := error(neighbour, FEW_IMAGES)) < best:
                    best, scales, improved = now, neighbour, True
                    break
        return None
    return None


def simulated_error(candidate: Plan, blocks: Blocks, calibration: np.ndarray, library: Library) -> float:
    """Worst absolute logit error of the plan under the simulated noise of a library, over a few images."""
    images, noise_of = calibration[:SIMULATED_IMAGES], candidate.parameters.ring_dimension
    if candidate.input.batched:  # as many slots as there are images are enough, with the noise of the real ring
        small = dataclasses.replace(candidate.parameters, ring_dimension=2 * len(images))
        candidate = dataclasses.replace(candidate, parameters=small)
    simulator = Simulator(noise_of, library)
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
