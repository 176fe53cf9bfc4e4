"""Chooses a plan: layouts and rotations by cost, then the smallest moduli that keep the precision at 128 bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from backends import security
from backends.api import BackendError
from backends.slots import costs, packing
from backends.slots import plan as plans
from backends.slots.blocks import Affine, Blocks, Product, Step, operands
from backends.slots.execute import Program, decrypt, encrypt
from backends.slots.library import Library, Parameters
from backends.slots.packing import Candidate, Layout
from backends.slots.plan import Input, Packed, Plan
from backends.slots.simulator import ROUNDING_STDDEV, Simulator
from models.network import Mul, Network, Polynomial, Pow

Objective = Literal["server", "upload", "memory"]
RING_DIMENSIONS = (8192, 16384, 32768, 65536)
PRIMES_PER_SQUARE = (1, 2)
KEPT_PRIMES = (0, 1)  # beside the first one: if nothing else holds the logits
LARGEST_PRIME_BITS = 60
FIRST_GUESS_BITS, MINIMUM_BITS, MAXIMUM_BITS = 12, 6, 24  # of the values between layers, relative to their range
TARGET_LOGIT_ERROR = 4e-3  # of the simulated worst case of a few images; the promise for any is 1e-2
BATCH_TARGET_LOGIT_ERROR = 2e-3  # the worst of thousands of images is worse
HEAD_ROOM_BITS = 2
# The noise of a slot at ring dimension 8192, in bits of the scale's last place, generously: of a fresh ciphertext, of a
# weight that was encoded (for each product of a sum), and of a value that was rescaled, key switches and folds included.
FRESH_BITS, ENCODING_BITS, RESCALING_BITS = 7, 4, 13
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
    model_encrypted: bool = False,
) -> Plan:
    """The cheapest plan that the library can run at 128 bits with logit errors below `TARGET_LOGIT_ERROR`.

    calibration: (n, inputs) flattened images, on which the error is simulated. client_adds: whether the client may add up
    the products of the last layer. hoisting: whether larger radices of rotate-and-sum are worth trying. model_encrypted: the
    model too; then every scenario gets one image a request. Raises BackendError if no ring dimension holds the network.
    """
    offline, terms = scenario == "offline" and not model_encrypted, blocks.terms()
    best: Plan | None = None
    layout: Plan | None
    best_ms, rotates = math.inf, False
    for kept, ring_dimension, primes, rotate_fresh in product(
        KEPT_PRIMES, RING_DIMENSIONS, PRIMES_PER_SQUARE, (True, False)
    ):
        if best and (kept > best.parameters.kept or ring_dimension > 2 * best.parameters.ring_dimension):
            break
        if not (rotate_fresh or rotates):
            continue  # it would be the same layout again
        stddevs = [library.public_stddev(ring_dimension, primes * i) for i in range(len(terms))] if model_encrypted else []
        precision = Precision(ring_dimension, terms, primes, stddevs, offline, library.first_is_largest, kept)
        if not any(precision.admitted(bits, library) for bits in range(MINIMUM_BITS, MAXIMUM_BITS + 1)):
            continue  # the ring does not hold so many products, however they are laid out
        if offline:
            layout = batched(blocks, precision)
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
                model_encrypted=model_encrypted,
            )
        rotates = layout is not None and not offline and _rotates_request(layout)
        if layout is None or (ms := sum(costs.predict_ms(layout, table)) / layout.batch) >= best_ms:
            continue
        found = _smallest(layout, precision, blocks, library, calibration)
        if found:
            best, best_ms = found, ms
    if best:
        return best
    raise BackendError(
        f"no parameters up to ring dimension {RING_DIMENSIONS[-1]} hold {blocks.depth} products, one behind another, at 128 "
        "bits with enough precision; use a shallower network"
    )


def require_slots(network: Network) -> None:
    """Raises BackendError for a network of which one value has more elements than a ciphertext has slots. To be asked before
    its matrices are built, which would need gigabytes to no end."""
    most = RING_DIMENSIONS[-1] // 2
    for node in network.nodes:
        size = math.prod(network.shapes[node.output])
        if isinstance(node.operator, Polynomial | Pow | Mul) and size > most:
            raise BackendError(
                f"{node.output} makes {size} values, and these must fit into one ciphertext of at most {most} slots: "
                "use a narrower network, or smaller images"
            )


# -- layouts -----------------------------------------------------------------------------------------------------------


def _rotates_request(layout: Plan) -> bool:
    kernels = (kernel for step in layout.steps if isinstance(step, Packed) for kernel in step.kernels)
    return any(term.baby for kernel in kernels if kernel.source == 0 for term in kernel.terms)


def batched(blocks: Blocks, precision: Precision) -> Plan:
    """One image, or two, in each slot; the precision is a first guess."""
    request, steps = packing.batched(blocks)
    parameters = precision.parameters(precision.scales(FIRST_GUESS_BITS))
    each_its_own = ((),) * len(blocks.affines[-1].bias)  # ciphertext, all of whose slots are of one logit
    steps = packing.postponed(steps, parameters, 1 + request.paired)
    return Plan(parameters, request, steps, blocks.levels, each_its_own, blocks.output_scale)


Chosen = dict[tuple[int, int], Candidate]  # (affine value, which of its inputs) → the way it is evaluated


@dataclass(frozen=True)
class _Tail:
    """The cheapest candidates for a group of values and all after it."""

    ms: float
    candidates: Chosen


def packed(
    blocks: Blocks,
    parameters: Parameters,
    table: dict[str, list[float]],
    objective: Objective = "server",
    *,
    client_adds: bool = True,
    rotate_fresh: bool = True,
    hoisting: bool = False,
    model_encrypted: bool = False,
) -> Plan | None:
    """The cheapest layouts for these parameters: dynamic programming over those of the values; the objective chooses what
    the client packs. rotate_fresh: whether ciphertexts of the request may be rotated before their products, where their
    scale is small and the noise of key switching counts most. None if a layer does not fit into the slots."""
    search = _Layouts(blocks, parameters, table, client_adds, (2, 4, 8) if hoisting else (2,), model_encrypted)
    options: list[tuple[tuple[float, ...], Chosen, Input]] = []
    for chosen, request, ms in search.requests(rotate_fresh):
        ciphertexts = len(request.real)
        server_ms = costs.request_ms(ciphertexts, parameters, table) + ms
        options.append(((*_priority(objective, chosen, ciphertexts, parameters), server_ms), chosen, request))
    if not options:
        return None
    _, chosen, request = min(options, key=lambda option: option[0])
    last = chosen[len(blocks.steps), 0]
    steps = tuple(_step(value, step, chosen) for value, step in enumerate(blocks.steps, 1))
    return Plan(parameters, request, steps, blocks.levels, last.output_slots, blocks.output_scale, model_encrypted)


def _step(value: int, step: Step, chosen: Chosen) -> plans.Step:
    match step:
        case Affine():
            kernels = tuple(chosen[value, k].complete(source) for k, source in enumerate(step.inputs))
            return Packed(step.name, kernels, chosen[value, 0].place(step.bias))
        case Product():
            return plans.Product(step.name, step.left, step.right)
    return plans.Carry(step.name, step.source)


class _Layouts:
    """Values that are multiplied stand in one layout: they and their product are a group. A layout is chosen for one group
    after another; what is kept of the choices before is the layouts that later maps still read or write."""

    def __init__(
        self,
        blocks: Blocks,
        parameters: Parameters,
        table: dict[str, list[float]],
        client_adds: bool,
        radices: tuple[int, ...],
        model_encrypted: bool,
    ) -> None:
        self._blocks, self._parameters, self._table = blocks, parameters, table
        self._client_adds, self._radices, self._model_encrypted = client_adds, radices, model_encrypted
        self._last = len(blocks.steps)
        self._group = _groups(blocks.steps)
        self._count = max(self._group) + 1
        readers = [v for v, step in enumerate(blocks.steps, 1) if isinstance(step, Affine) and 0 in step.inputs]
        self._first = readers[0] if len(readers) == 1 and len(self._map(readers[0]).inputs) == 1 else 0
        # the maps that can be planned once the group has its layout; the one that the client packs for is planned apart
        self._due: list[list[int]] = [[] for _ in range(self._count)]
        for value, step in enumerate(blocks.steps, 1):
            if isinstance(step, Affine) and value != self._first:
                self._due[max(self._group[v] for v in (value, *step.inputs))].append(value)
        self._tails: dict[tuple, _Tail | None] = {}

    def requests(self, rotate_fresh: bool) -> Iterator[tuple[Chosen, Input, float]]:
        """Ways to evaluate the whole network, what the client packs for each, and the milliseconds of the server."""
        slots, radices = self._parameters.slots, self._radices
        if not self._first:  # several maps read the image, from one layout
            for source in packing.layouts(self._blocks.shape):
                rest = self._tail(1, {0: source}) if rotate_fresh and source.period <= slots else None
                if rest:
                    yield rest.candidates, packing.laid_out(source, slots), rest.ms
            return
        affine, group = self._map(self._first), self._group[self._first]
        for target in self._targets(group, {}):
            rest = _Tail(0.0, {}) if self._first == self._last else self._tail(group + 1, {group: target}, group)
            if rest is None:
                continue
            for first in packing.first_layer(affine, target, slots, radices):
                assert first.request is not None
                if rotate_fresh or not any(term.baby for term in first.kernel.terms):
                    yield (
                        {(self._first, 0): first} | rest.candidates,
                        first.request,
                        self._ms(self._first, first) + rest.ms,
                    )

    def _map(self, value: int) -> Affine:
        step = self._blocks.steps[value - 1]
        assert isinstance(step, Affine)
        return step

    def _ms(self, value: int, candidate: Candidate) -> float:
        primes = self._parameters.levels + 1 - self._blocks.levels[value] * self._parameters.primes_per_square
        count = costs.kernel_operations(candidate.kernel, self._model_encrypted)
        return costs.milliseconds(count, primes, self._parameters, self._table)

    def _tail(self, group: int, chosen: dict[int, Layout], due: int | None = None) -> _Tail | None:
        """The cheapest way from this group on. due: a group whose layout is chosen and whose maps are not planned yet."""
        if due is not None:
            here = self._planned(due, chosen)
            rest = self._tail(group, chosen) if here else None
            return _Tail(here.ms + rest.ms, here.candidates | rest.candidates) if here and rest else None
        if group == self._count:
            return _Tail(0.0, {})
        live = {
            g: chosen[g]
            for later in self._due[group:]
            for value in later
            for v in (value, *self._map(value).inputs)
            if (g := self._group[v]) in chosen
        }
        key = (
            group,
            tuple((g, layout.period, layout.grid) for g, layout in sorted(live.items(), key=lambda one: one[0])),
        )
        if key not in self._tails:
            self._tails[key] = self._cheapest(group, live)
        return self._tails[key]

    def _cheapest(self, group: int, chosen: dict[int, Layout]) -> _Tail | None:
        options = []
        for target in self._targets(group, chosen):
            option = self._tail(group + 1, chosen | {group: target}, due=group)
            if option:
                options.append(option)
        return min(options, key=lambda option: option.ms, default=None)

    def _targets(self, group: int, chosen: dict[int, Layout]) -> list[Layout]:
        """Layouts for a group, of which one is made by its first map."""
        value = next(v for v in range(1, self._last + 1) if self._group[v] == group)
        step = self._map(value)
        source = next((v for v in step.inputs if self._group[v] in chosen), None)
        if value == self._last and self._first != self._last:
            return [packing.compact(len(step.bias))]  # a last layer has layouts of its own
        shape = step.shape or step.bias.shape
        if source is None:
            return packing.layouts(step.bias.shape if value == self._last else shape)
        return packing.layouts(shape, chosen[self._group[source]], self._shape(source))

    def _shape(self, value: int) -> tuple[int, ...]:
        if value == 0:
            return self._blocks.shape
        step = self._blocks.steps[value - 1]
        return step.shape if isinstance(step, Affine) else self._shape(operands(step)[0])

    def _planned(self, group: int, chosen: dict[int, Layout]) -> _Tail | None:
        """The maps that are due with this group; None if one does not fit."""
        total, found = 0.0, Chosen()
        for value in self._due[group]:
            step = self._map(value)
            for k, (source, matrix) in enumerate(zip(step.inputs, step.weights)):
                layouts = chosen[self._group[source]], chosen[self._group[value]]
                arguments = self._parameters.slots, self._radices
                if value == self._last and len(step.inputs) == 1:
                    candidates = packing.last_layer(matrix, layouts[0], *arguments, self._client_adds)
                else:
                    candidates = packing.middle_layer(matrix, *layouts, *arguments)
                priced = ((self._ms(value, c), c) for c in candidates)
                ms, candidate = min(priced, key=lambda one: one[0], default=(0.0, None))
                if candidate is None:
                    return None
                total += ms
                found[value, k] = candidate
        return _Tail(total, found)


def _groups(steps: Sequence[Step]) -> list[int]:
    """The group of each value, numbered by their first values."""
    root = list(range(len(steps) + 1))

    def find(value: int) -> int:
        while root[value] != value:
            value = root[value]
        return value

    for value, step in enumerate(steps, 1):
        for operand in operands(step):
            first, second = sorted((find(operand), find(value)))
            root[second] = first
    numbers: dict[int, int] = {}
    return [numbers.setdefault(find(value), len(numbers)) for value in range(len(steps) + 1)]


def _priority(objective: Objective, chosen: Chosen, ciphertexts: int, parameters: Parameters) -> tuple[float, ...]:
    """What comes before server time."""
    if objective == "upload":
        return (ciphertexts,)
    if objective == "memory":  # of the server: keys are the largest part, then encoded weights
        kernels = [candidate.kernel for candidate in chosen.values()]
        keys = len(set().union(*(k.rotations for k in kernels))) + any(k.real_part for k in kernels) + 1
        return (2 * keys * (parameters.levels + 1) + sum(len(k.terms) for k in kernels),)
    return ()


# -- moduli ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Precision:
    """What the scales depend on besides the bits of precision.

    terms: the largest number of products in an output of the affine maps of each level. public_stddevs: of a coefficient of
    the noise of their encrypted weights; none for plain ones. batched: one image in each slot. first_is_largest: see
    `Library`. kept: see `Parameters`.
    """

    ring_dimension: int
    terms: Sequence[int]
    primes_per_square: int = 1
    public_stddevs: Sequence[float] = ()
    batched: bool = False
    first_is_largest: bool = False
    kept: int = 0

    def scales(self, bits: int, extra_state_bits: int = 0) -> Scales:
        """For `bits` bits of values between layers, relative to their range.

        Where the search of `_smallest` starts: each scale stands so many bits above what it has to carry as the noise there
        is large (`FRESH_BITS`, `ENCODING_BITS`, `RESCALING_BITS`), and more in a larger ring, with its square root.
        extra_state_bits: moves bits from the dropped primes to the first one, for a library that accepts only such a
        shape.
        """
        growth = (self.ring_dimension // 8192).bit_length() // 2
        weights = [bits + growth + ENCODING_BITS + round(math.log2(n) / 2) for n in self.terms]
        if self.public_stddevs:
            weights = [w + round(math.log2(s / ROUNDING_STDDEV)) for w, s in zip(weights, self.public_stddevs)]
        fresh, state = bits + growth + FRESH_BITS, bits + growth + RESCALING_BITS + extra_state_bits
        if (
            self.batched
        ):  # a scalar is encoded as one coefficient: it has no noise of encoding, and fresh noise counts more
            fresh, weights = fresh + ENCODING_BITS, [weight - ENCODING_BITS for weight in weights]
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
        first = state + scales.last_weight + HEAD_ROOM_BITS + 2 - self.kept * scales.rescale
        first = max(first, scales.rescale * (self.first_is_largest or self.kept > 0))
        room = security.GUIDELINES_2024[128][self.ring_dimension] - first - depth * dropped - self.kept * scales.rescale
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
            kept=self.kept,
        )

    def admissible(self, scales: Scales, library: Library) -> bool:
        parameters = self.parameters(scales)
        positive = min(parameters.input_scale_bits, *parameters.weight_scale_bits, *scales.states) > 0
        return positive and library.admissible(parameters)

    def admitted(self, bits: int, library: Library) -> Scales | None:
        """The scales for so many bits that the library can have at 128 bits of security; None if there are none."""
        found = (self.scales(bits, extra) for extra in range(MAX_EXTRA_STATE_BITS))
        return next((scales for scales in found if self.admissible(scales, library)), None)


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
        return precision.admissible(scales, library)

    target = BATCH_TARGET_LOGIT_ERROR if precision.batched else TARGET_LOGIT_ERROR
    missing = math.log2(max(error(precision.scales(FIRST_GUESS_BITS)), 1e-9) / target)
    bits = max(MINIMUM_BITS, FIRST_GUESS_BITS + math.ceil(missing) - 1)
    while bits < MAXIMUM_BITS and error(precision.scales(bits)) > target:
        bits += 1
    for fewer in range(bits, max(MINIMUM_BITS, bits - 2) - 1, -1):
        scales = precision.admitted(fewer, library)
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
    if candidate.model_encrypted:
        weights = (simulator.encrypt_weight(w.vector, w.scale, w.level) for w in candidate.weights(moduli))
    program = Program(candidate, simulator, moduli, weights)
    requests = [images] if candidate.input.batched else [images[i : i + 1] for i in range(len(images))]
    logits = [
        decrypt(candidate, simulator, program.run(encrypt(candidate, simulator, r)), program.scales[-1], len(r))
        for r in requests
    ]
    return float(np.abs(np.concatenate(logits) - blocks.forward(images)).max())
