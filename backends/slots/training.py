"""Logistic regression on encrypted examples: Nesterov's descent (`models.regression`) on the operations of a `Library`.

**Layout.** A ciphertext holds R rows of `width` features, slot j·R + i: feature j of row i, with R · width = slots. So the
rotations by R, 2R, … run through all features and come back: the logits that they add up stand in every slot of their row,
without a mask. Rows fill `blocks` of ciphertexts, features `groups` of them; the costs choose the width. Weights stand as
the features do, the same in all rows.

**A step** on weights v, with m = a·X·v and s(t)·x = m·(a·x)·h(m²)/a² for an odd polynomial s of degree 3 or 5::

    m  = Σ_groups X ⊙ v, over features by rotations       level 1 for each block
    h  = m² − c₁ (degree 5: (m² − β)² + ε)                2 (, 3)
    u  = m ⊙ X                                            2, for each block and group
    S  = Σ_blocks h ⊙ u                                   one more, one relinearisation for the sum over the blocks
    g  = mask ⊙ Σ_rows S, to all rows by rotations        one more; the mask holds ± rate/n·a² and the momentum

`narrow` makes u = h ⊙ m once a block and S = Σ u ⊙ X, one level deeper. Targets enter by b = rate/2n · Σ y·x alone, as s is
odd: the client encrypts b once for each output and X once for all of them. From zero the first step is b itself.
`Parameters.bootstrap_slots`: where levels are short, the weights v and what the momentum needs of the step before become the
real and imaginary part of one ciphertext that is bootstrapped. Few slots are bootstrapped fast, if they repeat themselves:
slots j·R + i of feature j become slots j + k·width, and back, by diagonals.

In the last step there is no mask: the client adds up the rows of S. With `refresh` every step is such a one, and the
momentum is the client's: it decrypts S and encrypts the next v.

Scales are exact: a product takes what its factors have, and what is added is brought to one scale by the mask.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from backends import security
from backends.api import BackendError, Training
from backends.slots import costs
from backends.slots.library import (
    BOOTSTRAP_LEVELS,
    Cipher,
    ClientLibrary,
    Evaluator,
    KeyRequest,
    Library,
    Parameters,
)
from backends.slots.packing import power_of_two, rotate_and_sum
from backends.slots.simulator import Simulator
from models import regression

LEAST_BITS = {8192: 24, 16384: 27, 32768: 30, 65536: 33}  # of scales and primes, by ring dimension
MOST_BITS = 50
LARGEST_PRIME_BITS = 60
HEAD_ROOM_BITS = 3  # of sums over the blocks, before the client adds up the rows
DIGITS = (
    0,
    3,
    4,
    5,
    7,
)  # of key switching: one for each prime, or so few that deep moduli do not make the keys too large
TARGET_WEIGHT_ERROR = 1e-3  # simulated, on random examples; the promise is 1e-2
SIMULATED_ROWS = 512
CROSSING = 5  # what encrypting, writing and reading a ciphertext take of both parties, in readings of the server
READING_KEYS = 3  # memory that it takes, in what the keys take afterwards: both libraries copy what they read
BOOTSTRAP_BITS = (60, 53)  # of the first prime and of scales: an error of about 1e-4, no less with larger scales
BOOTSTRAP_KEYS = 8  # about: those that a circuit does not have, too
BABY_STEPS = 4  # of the diagonals to and from a bootstrapping; the same rotations as of a bootstrapping itself
MEMORY_BYTES = 8 * 2**30  # that keys and ciphertexts of the server may take


@dataclass(frozen=True)
class Circuit:
    """The data of a plan. training: what is computed. refresh: one step at a time, see above. radix: of rotate-and-sum."""

    training: Training
    parameters: Parameters
    width: int
    narrow: bool = False
    refresh: bool = False
    radix: int = 2

    @property
    def rows(self) -> int:
        """In a ciphertext."""
        return self.parameters.slots // self.width

    @property
    def groups(self) -> int:
        return self.padded // self.width

    @property
    def padded(self) -> int:
        """Features, with zeros up to a power of two."""
        return max(power_of_two(self.training.features), self.width)

    @property
    def blocks(self) -> int:
        return -(-self.training.rows // self.rows)

    @property
    def slope(self) -> Slope:
        return Slope.of(self.training.degree)

    @property
    def feature_folds(self) -> tuple[tuple[int, ...], ...]:
        return rotate_and_sum(self.rows, self.parameters.slots, self.radix)

    @property
    def row_folds(self) -> tuple[tuple[int, ...], ...]:
        return rotate_and_sum(1, self.rows, self.radix)

    @property
    def fresh_scale(self) -> float:
        return 2.0**self.parameters.input_scale_bits

    @property
    def rounds(self) -> int:
        """Requests and responses of a training."""
        return self.training.steps - 1 if self.refresh else 1

    @property
    def request_ciphertexts(self) -> int:
        """Features, and the sums b or (`refresh`) the first weights, which they are."""
        return self.groups * (self.blocks + self.training.outputs)

    @property
    def response_ciphertexts(self) -> int:
        return self.groups * self.training.outputs * (1 if self.refresh else 2)

    @property
    def bootstraps(self) -> bool:
        return self.parameters.bootstrap_slots > 0

    @property
    def keys(self) -> KeyRequest:
        rotations = {s for group in self.feature_folds for s in group}
        if not self.refresh and self.training.steps > 2:
            rotations |= {s for group in self.row_folds for s in group} | {-(self.rows - 1)} - {0}
        if self.bootstraps:
            rotations |= {stride * k for stride in (1, self.rows) for k in range(1, BABY_STEPS + 1)}
        return KeyRequest(tuple(sorted(rotations)), conjugation=self.bootstraps, relinearisation=True)

    @property
    def key_bytes(self) -> int:
        """Of the evaluation keys in the server's memory."""
        p, keys = self.parameters, len(self.keys.rotations) + 1 + BOOTSTRAP_KEYS * self.bootstraps
        primes = p.levels + 1
        special = -(-primes // p.digits) if p.digits else 1
        return keys * (p.digits or primes) * 2 * (primes + special) * p.ring_dimension * 8

    @property
    def server_bytes(self) -> int:
        """The most, roughly: keys while they are read, and the ciphertexts of a step."""
        ciphertexts = self.groups * self.blocks * (2 if self.narrow else 3) + 4 * self.blocks
        ciphertext_bytes = 2 * (self.parameters.levels + 1) * self.parameters.ring_dimension * 8
        return READING_KEYS * self.key_bytes + ciphertexts * ciphertext_bytes

    # -- the client's packing ------------------------------------------------------------------------------------------

    def pack_features(self, features: np.ndarray) -> Iterator[np.ndarray]:
        """(rows, features) → vectors of slots: of each block those of its groups."""
        filled = np.zeros((self.blocks * self.rows, self.padded))
        filled[: len(features), : features.shape[1]] = self.slope.scale * features
        for block, group in product(range(self.blocks), range(self.groups)):
            rows, columns = self._slices(block, self.rows), self._slices(group, self.width)
            yield filled[rows, columns].T.ravel()

    def pack_weights(self, weights: np.ndarray) -> Iterator[np.ndarray]:
        """(outputs, features) → vectors of slots: of each output those of its groups."""
        filled = np.zeros((len(weights), self.padded))
        filled[:, : weights.shape[1]] = weights
        for output, group in product(range(len(weights)), range(self.groups)):
            yield np.repeat(filled[output, self._slices(group, self.width)], self.rows)

    def unpack(self, vectors: Sequence[np.ndarray], reduce: Any = np.sum) -> np.ndarray:
        """The inverse of `pack_weights`; reduce: what becomes of the rows."""
        values = reduce(np.real(vectors).reshape(len(vectors), self.width, self.rows), axis=2)
        return values.reshape(self.training.outputs, self.padded)[:, : self.training.features]

    def constant(self, features: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """b (outputs, features)."""
        return self.training.rate / (2 * len(features)) * targets.T @ features

    @staticmethod
    def _slices(index: int, size: int) -> slice:
        return slice(index * size, (index + 1) * size)

    @property
    def gradient_factor(self) -> float:
        """What S has to be multiplied by, to be subtracted."""
        return self.slope.sign * self.training.rate / (self.training.rows * self.slope.scale**2)

    # -- as bytes ------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Circuit:
        parameters = values["parameters"] | {"weight_scale_bits": tuple(values["parameters"]["weight_scale_bits"])}
        return Circuit(**values | {"training": Training(**values["training"]), "parameters": Parameters(**parameters)})


@dataclass(frozen=True)
class Slope:
    """``s(t)·x = sign · (a·t)·(a·x)·h((a·t)²)/a²``, h as sums and squares: scale a, sign, and the constants that are added
    to (a·t)² and, for degree 5, to the square of that."""

    scale: float
    sign: float
    constants: tuple[float, ...]

    @staticmethod
    @functools.cache
    def of(degree: int) -> Slope:
        c1, c3, *rest = regression.slope_coefficients(degree)
        if not rest:
            return Slope(math.sqrt(-c3), -1.0, (-c1,))  # c₁ + c₃t² = −((√−c₃·t)² − c₁)
        (c5,) = rest
        middle = -c3 / (2 * c5)  # c₁ + c₃t² + c₅t⁴ = c₅((t² − middle)² + c₁/c₅ − middle²)
        scale = c5**0.25
        return Slope(scale, 1.0, (-middle * scale**2, c1 - c5 * middle**2))


# -- levels ------------------------------------------------------------------------------------------------------------


def gradient_levels(degree: int, narrow: bool) -> int:
    """Levels that S needs; its own product is not rescaled."""
    return len(Slope.of(degree).constants) + 1 + narrow


def levels(training: Training, narrow: bool, refresh: bool) -> int:
    """That a whole request needs."""
    one = gradient_levels(training.degree, narrow)
    return one if refresh else (training.steps - 2) * (one + 2) + one


def bootstrapping_levels(degree: int) -> int:
    """As many as a step, its mask, the way there and the way back take between two bootstrappings, which take one prime."""
    return BOOTSTRAP_LEVELS + gradient_levels(degree, narrow=False) + 5


# -- the server's program ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    cipher: Cipher
    scale: float
    level: int


class Program:
    """A circuit loaded into an evaluator. moduli: `Library.moduli` of its parameters."""

    def __init__(self, circuit: Circuit, evaluator: Evaluator | Tally, moduli: list[int]) -> None:
        self._circuit, self._e, self._moduli = circuit, evaluator, moduli
        self._fresh = circuit.fresh_scale

    def run(self, ciphers: Sequence[Cipher]) -> list[Cipher]:
        """A request's ciphertexts → those of the response."""
        return [value.cipher for value in self.values(ciphers)]

    def values(self, ciphers: Sequence[Cipher]) -> list[Value]:
        """Of each output: S of each group and, unless `refresh`, v + b of each group."""
        groups, fresh = self._circuit.groups, [Value(cipher, self._fresh, 0) for cipher in ciphers]
        by_group = [fresh[i : i + groups] for i in range(0, len(fresh), groups)]
        features, weights = by_group[: self._circuit.blocks], by_group[self._circuit.blocks :]
        make = self._gradient if self._circuit.refresh else self._descend
        return [value for one in weights for value in make(features, one)]

    def _descend(self, features: list[list[Value]], constant: list[Value]) -> list[Value]:
        """All steps of an output but the first, which is b."""
        momenta = regression.momenta(self._circuit.training.steps)
        # v, the v before it, and −g between them times its 1 + μ
        point, before, moved = constant, list[Value](), list[Value]()
        for past, momentum in itertools.pairwise(momenta[:-1]):
            if before and self._short(point[0], last=False):
                point, before = self._bootstrapped(point[0], before[0], moved[0] if moved else None, past)
                moved = []
            sums = self._gradient(features, point)
            stepped = [self._masked(value, 1 + momentum) for value in sums]
            following = []
            for group, gradient in enumerate(stepped):
                # v₊ = (1 + μ)·(v + b − g) − μ·(v₋ + b − g₋); after the first step v₋ and g₋ are zero
                terms = [(point[group], 1 + momentum), (constant[group], 1.0)]
                if before:
                    terms.append((before[group], -momentum))
                if moved:
                    terms.append((moved[group], -momentum / (1 + past)))
                following.append(self._add(self._weighted(terms, gradient.level), gradient))
            point, before, moved = following, point, stepped
        if self._short(point[0], last=True):
            point, _ = self._bootstrapped(point[0])
        sums = self._gradient(features, point)
        level = sums[0].level
        return sums + [self._add(self._at(v, level), self._at(b, level)) for v, b in zip(point, constant)]

    def _gradient(self, features: list[list[Value]], point: list[Value]) -> list[Value]:
        """S of each group, not rescaled."""
        left, right = [], []  # of the products that S sums up, for each block; right: for each of its groups
        for block in features:
            m = self._folded(self._product(point, block), self._circuit.feature_folds)
            h = self._h(m)
            factors = block if self._circuit.narrow else [self._product([m], [x]) for x in block]
            left.append(self._product([h], [m]) if self._circuit.narrow else h)
            right.append([self._at(factor, left[-1].level) for factor in factors])
        return [self._sum_of_products(left, list(group)) for group in zip(*right)]

    def _h(self, m: Value) -> Value:
        h = m
        for constant in self._circuit.slope.constants:
            h = self._rescaled(Value(self._e.relinearise(self._e.square(h.cipher)), h.scale**2, h.level))
            plain = self._e.encode(np.full(self._circuit.parameters.slots, constant), h.scale, h.level)
            h = Value(self._e.add_plain(h.cipher, plain), h.scale, h.level)
        return h

    def _masked(self, sums: Value, factor: float) -> Value:
        """−g times `factor`, in all rows: the sums over the rows, of which one in a block of slots is complete."""
        circuit, slots = self._circuit, self._circuit.parameters.slots
        total = self._folded(self._rescaled(sums), circuit.row_folds)
        mask = np.zeros(slots)
        mask[:: circuit.rows] = -circuit.gradient_factor * factor
        scale = self._fresh * self._prime(total.level) / total.scale
        masked = self._e.dot([total.cipher], [self._e.encode(mask, scale, total.level)])
        value = self._rescaled(Value(masked, total.scale * scale, total.level))
        # the same keys copy it to the rows above, once it stands in the last one
        if circuit.rows > 1:
            value = dataclasses.replace(value, cipher=self._e.rotate_sum([(value.cipher, -(circuit.rows - 1))]))
        return self._folded(value, circuit.row_folds)

    # -- bootstrapping -----------------------------------------------------------------------------------------------

    def _short(self, point: Value, last: bool) -> bool:
        """Whether a step at this point, and after it the way to a bootstrapping, take more levels than there are."""
        circuit = self._circuit
        after = point.level + gradient_levels(circuit.training.degree, circuit.narrow) + (0 if last else 3)
        return circuit.bootstraps and after > circuit.parameters.levels - 1

    def _bootstrapped(
        self, point: Value, before: Value | None = None, moved: Value | None = None, past: float = 0.0
    ) -> tuple[list[Value], list[Value]]:
        """point, and before + moved / (1 + past)."""
        e: Any = self._e  # Bootstrapping | Tally, with such parameters
        rows = self._circuit.rows
        parts = [(point, 1), (before, 1j), (moved, 1j / (1 + past))]
        packed = self._moved([(value, factor) for value, factor in parts if value], rows, lambda b, i: i - b)
        lifted = Value(e.bootstrap(packed.cipher), self._fresh, BOOTSTRAP_LEVELS)
        halves = [self._moved([(lifted, factor)], 1, lambda b, i: b - i) for factor in (0.5, -0.5j)]
        real, imaginary = (
            dataclasses.replace(half, cipher=e.add(half.cipher, e.conjugate(half.cipher))) for half in halves
        )
        return [real], [imaginary] if before else []

    def _moved(self, terms: list[tuple[Value, complex]], stride: int, steps: Callable[..., np.ndarray]) -> Value:
        """Σ factor · value, slot j·rows + i from so many strides behind it as `steps` says of j and i, modulo the width."""
        circuit, e, level = self._circuit, self._e, max(value.level for value, _ in terms)
        slots, width = circuit.parameters.slots, circuit.width
        wanted = steps(np.arange(slots) // circuit.rows, np.arange(slots) % circuit.rows) % width
        scale = float(self._prime(level))  # the values have the fresh scale, and keep it
        babies = [
            e.rotate_many(self._at(v, level).cipher, [stride * k for k in range(min(BABY_STEPS, width))])
            for v, _ in terms
        ]
        total = None
        for giant in reversed(range(0, width, BABY_STEPS)):
            ciphers, plains = [], []
            for (_, factor), rotated in zip(terms, babies):
                for k, cipher in enumerate(rotated):
                    diagonal = np.roll(factor * (wanted == giant + k), giant * stride)
                    ciphers.append(cipher)
                    plains.append(e.encode(diagonal, scale, level))
            inner = e.dot(ciphers, plains)
            total = inner if total is None else e.rotate_sum([(inner, 0), (total, BABY_STEPS * stride)])
        return self._rescaled(Value(total, self._fresh * scale, level))

    # -- values ------------------------------------------------------------------------------------------------------

    def _prime(self, level: int) -> int:
        """That rescaling drops there."""
        return self._moduli[len(self._moduli) - 1 - level]

    def _at(self, value: Value, level: int) -> Value:
        missing = level - value.level
        return Value(self._e.mod_switch(value.cipher, missing), value.scale, level) if missing else value

    def _rescaled(self, value: Value) -> Value:
        return Value(self._e.rescale(value.cipher), value.scale / self._prime(value.level), value.level + 1)

    def _add(self, a: Value, b: Value) -> Value:
        return Value(self._e.add(a.cipher, b.cipher), a.scale, a.level)

    def _product(self, a: list[Value], b: list[Value]) -> Value:
        """Σ a ⊙ b, rescaled."""
        level = max(value.level for value in (*a, *b))
        a, b = [self._at(v, level) for v in a], [self._at(v, level) for v in b]
        return self._rescaled(self._sum_of_products(a, b))

    def _sum_of_products(self, a: list[Value], b: list[Value]) -> Value:
        """Relinearised once, not rescaled; all of a level."""
        total = self._e.dot_ciphers([v.cipher for v in a], [v.cipher for v in b])
        return Value(self._e.relinearise(total), a[0].scale * b[0].scale, a[0].level)

    def _weighted(self, terms: list[tuple[Value, float]], level: int) -> Value:
        """Of values of the fresh scale, which the sum has again."""
        values, weights = [self._at(value, level - 1).cipher for value, _ in terms], [weight for _, weight in terms]
        prime = float(self._prime(level - 1))
        total = self._e.weighted_sum(values, weights, prime, level - 1)
        return self._rescaled(Value(total, self._fresh * prime, level - 1))

    def _folded(self, value: Value, groups: tuple[tuple[int, ...], ...]) -> Value:
        cipher = value.cipher
        for group in groups:
            cipher = self._e.rotate_sum([(cipher, 0), *((cipher, step) for step in group)])
        return dataclasses.replace(value, cipher=cipher)


# -- costs -------------------------------------------------------------------------------------------------------------


class Tally:
    """As much of an `Evaluator` as a `Program` needs: it counts primitives (`backends.slots.costs`) by level, and its
    ciphertexts are levels."""

    def __init__(self) -> None:
        self.counts: dict[int, Counter[str]] = {}

    def _count(self, level: int, **primitives: int) -> int:
        self.counts.setdefault(level, Counter()).update(primitives)
        return level

    def encode(self, vector: np.ndarray, scale: float, level: int) -> int:
        return level

    def add(self, a: int, b: int) -> int:
        return self._count(a, add=1)

    def add_plain(self, a: int, p: int) -> int:
        return self._count(a, add_plain=1)

    def dot(self, ciphers: Sequence[int], plains: Sequence[int]) -> int:
        return self._count(ciphers[0], multiply_plain=len(ciphers), add=len(ciphers) - 1)

    def dot_ciphers(self, ciphers: Sequence[int], weights: Sequence[int]) -> int:
        return self._count(ciphers[0], multiply=len(ciphers), add=len(ciphers) - 1)

    def weighted_sum(self, ciphers: Sequence[int], weights: Sequence[float], scale: float, level: int) -> int:
        return self._count(level, multiply_scalar=len(ciphers), add=len(ciphers) - 1)

    def square(self, a: int) -> int:
        return self._count(a, square=1)

    def relinearise(self, a: int) -> int:
        return self._count(a, relinearise=1)

    def rescale(self, a: int) -> int:
        self._count(a, rescale=1)
        return a + 1

    def mod_switch(self, a: int, primes: int) -> int:
        self._count(a + primes, mod_switch=1)
        return a + primes

    def conjugate(self, a: int) -> int:
        return self._count(a, conjugate=1)

    def bootstrap(self, a: int) -> int:
        self._count(0, bootstrap=1)
        return BOOTSTRAP_LEVELS

    def rotate_many(self, a: int, steps: Sequence[int]) -> list[int]:
        self._count(a, rotate_many_call=1, rotate_many_step=sum(step != 0 for step in steps))
        return [a] * len(steps)

    def rotate_sum(self, pairs: Sequence[tuple[int, int]]) -> int:
        steps = sum(step != 0 for _, step in pairs)
        inputs = len({(id(cipher), cipher) for cipher, step in pairs if step})
        self._count(pairs[0][0], add=len(pairs) - 1)
        if steps:
            self._count(pairs[0][0], rotate_sum_call=1, rotate_sum_input=inputs, rotate_sum_step=steps)
        return pairs[0][0]


@dataclass(frozen=True)
class Price:
    """Of a request (with `refresh`: of a round): primitives, and predicted milliseconds of the server's descent, without its
    bootstrappings, and of its reading what arrives."""

    operations: Counter[str]
    milliseconds: float
    reading_ms: float

    @property
    def priority(self) -> float:
        return self.milliseconds + CROSSING * self.reading_ms


def price(circuit: Circuit, table: dict[str, list[float]]) -> Price:
    parameters, tally = circuit.parameters, Tally()
    moduli = [1 << parameters.first_bits, *[1 << parameters.rescale_bits] * parameters.levels]
    Program(circuit, tally, moduli).run([0] * circuit.request_ciphertexts)
    counts = tally.counts.items()
    bootstraps = sum(count.pop("bootstrap", 0) for _, count in counts)
    ms = sum(costs.milliseconds(count, parameters.levels + 1 - level, parameters, table) for level, count in counts)
    crossing = circuit.groups * circuit.training.outputs if circuit.refresh else circuit.request_ciphertexts
    return Price(
        sum(tally.counts.values(), Counter(bootstrap=bootstraps)), ms, costs.request_ms(crossing, parameters, table)
    )


# -- the choice --------------------------------------------------------------------------------------------------------


def plan(
    training: Training,
    library: Library,
    table: dict[str, list[float]],
    *,
    refresh: bool = False,
    bootstrap: bool = False,
    hoisting: bool = False,
) -> Circuit:
    """The cheapest circuit with a simulated weight error below `TARGET_WEIGHT_ERROR` at 128 bits. hoisting: whether larger
    radices of rotate-and-sum are worth trying.

    Raises BackendError, with the largest number of steps, if these do not fit into a modulus or into `MEMORY_BYTES`.
    """
    if training.steps < 2:
        raise BackendError("a training takes two steps or more: the first one is a sum that the client makes")
    if bootstrap:
        candidates = list(_bootstrapping(training))
    else:
        candidates = list(_candidates(training, refresh, (2, 4, 8) if hoisting else (2,)))
    fitting = [circuit for circuit in candidates if circuit.server_bytes <= MEMORY_BYTES]
    best, least = None, math.inf
    for _, ring in itertools.groupby(fitting, key=lambda circuit: circuit.parameters.ring_dimension):
        prices = sorted(((price(circuit, table).priority, index, circuit) for index, circuit in enumerate(ring)))
        for priority, _, circuit in prices:
            if priority >= least:
                break
            if precise := _precise(circuit, library):
                best, least = precise, priority
                break
    if best:
        return best
    problem = "do not fit into a modulus of 128 bits of security with enough precision"
    if len(fitting) < len(candidates):
        least = min(circuit.server_bytes for circuit in candidates if circuit.server_bytes > MEMORY_BYTES) / 2**30
        within = f"{MEMORY_BYTES / 2**30:.0f} GiB of the server's memory"
        problem += f", or need {least:.1f} GiB or more for keys and ciphertexts where the bound is {within}"
    raise BackendError(
        f"{training.steps} steps, {levels(training, narrow=False, refresh=refresh)} levels, {problem}; take fewer steps"
        + ("" if refresh else ", or the variant refresh")
    )


def _candidates(training: Training, refresh: bool, radices: tuple[int, ...]) -> Iterator[Circuit]:
    """Circuits that the table of security leaves room for, by ring; whether a library builds them is not asked yet."""
    widths = [1 << k for k in range((training.features - 1).bit_length() + 1)]
    for ring_dimension, narrow, digits in product(LEAST_BITS, (False, True), DIGITS):
        parameters = next(_parameters(levels(training, narrow, refresh), ring_dimension, digits), None)
        if parameters is not None:
            for width, radix in product(widths, radices):
                yield Circuit(training, parameters, width, narrow, refresh, radix)


def _bootstrapping(training: Training) -> Iterator[Circuit]:
    """With as many levels as a step takes between two bootstrappings, on the way from one and to the other."""
    first, bits = BOOTSTRAP_BITS
    depth, width = bootstrapping_levels(training.degree), power_of_two(training.features)
    for digits in DIGITS[1:]:
        special = -(-(-(-(depth + 1) // digits) * bits + first - bits) // LARGEST_PRIME_BITS) * LARGEST_PRIME_BITS
        if first + depth * bits + special <= security.SPARSE_LIMIT and width**2 <= security.SPARSE_RING // 2:
            yield Circuit(
                training,
                Parameters(
                    security.SPARSE_RING,
                    first,
                    bits,
                    depth,
                    LARGEST_PRIME_BITS,
                    bits,
                    (),
                    digits=digits,
                    bootstrap_slots=width,
                ),
                width,
            )


def _parameters(depth: int, ring_dimension: int, digits: int, least: int = 0) -> Iterator[Parameters]:
    """By the bits of scales and primes, at least so many; 0: of the fewest that were ever enough in such a ring."""
    if digits > (depth + 1) // 2:
        return
    for bits in range(least or LEAST_BITS[ring_dimension], MOST_BITS + 1):
        last = 2 * bits + HEAD_ROOM_BITS  # the last product is not rescaled
        kept = int(last > LARGEST_PRIME_BITS)
        first = max(last - kept * bits, bits + 1)
        data = first + (depth + kept) * bits
        group = (
            -(-(depth + kept + 1) // digits) * bits + first - bits if digits else 0
        )  # of a digit with the first prime
        for special in dict.fromkeys((LARGEST_PRIME_BITS, first)):
            switching = -(-group // LARGEST_PRIME_BITS) * LARGEST_PRIME_BITS if digits else special
            if data + switching <= security.limit(ring_dimension):
                yield Parameters(ring_dimension, first, bits, depth, special, bits, (), kept=kept, digits=digits)
                break


def _precise(circuit: Circuit, library: Library) -> Circuit | None:
    """The circuit with the fewest bits that the library builds and that are precise enough; None if there are none."""
    old, least = circuit.parameters, 0
    if circuit.bootstraps:
        admissible = library.admissible(old) and simulated_error(circuit, library) <= TARGET_WEIGHT_ERROR
        return circuit if admissible else None
    for parameters in _parameters(old.depth, old.ring_dimension, old.digits):
        if parameters.rescale_bits < least or not library.admissible(parameters):
            continue
        candidate = dataclasses.replace(circuit, parameters=parameters)
        if (error := simulated_error(candidate, library)) <= TARGET_WEIGHT_ERROR:
            return candidate
        missing = math.log2(min(error, 1.0) / TARGET_WEIGHT_ERROR) if math.isfinite(error) else 8
        least = parameters.rescale_bits + max(1, math.floor(missing))  # an error halves with every bit
    return None


# -- running it --------------------------------------------------------------------------------------------------------


def decrypt(
    circuit: Circuit, client: ClientLibrary, ciphers: Sequence[Cipher], sums_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of a response: the gradient's steps that its sums S stand for, and v + b (zeros with `refresh`), each
    (outputs, features)."""
    groups = circuit.groups
    by_group = [ciphers[i : i + groups] for i in range(0, len(ciphers), groups)]
    kinds = 1 if circuit.refresh else 2
    sums = [client.decrypt(c, sums_scale) for part in by_group[::kinds] for c in part]
    gradient = circuit.gradient_factor * circuit.unpack(sums, np.sum)
    if circuit.refresh:
        return gradient, np.zeros_like(gradient)
    points = [client.decrypt(c, circuit.fresh_scale) for part in by_group[1::2] for c in part]
    return gradient, circuit.unpack(points, np.mean)


def sums(circuit: Circuit, moduli: list[int]) -> Value:
    """The first S of a response, which tells the scale of all S and the level of all ciphertexts of a response."""
    return Program(circuit, Tally(), moduli).values([0] * circuit.request_ciphertexts)[0]


class Descent:
    """What the client of a `refresh` circuit does between two rounds: Nesterov's momentum, in the clear."""

    def __init__(self, circuit: Circuit, constant: np.ndarray) -> None:
        self._constant, self._momenta = constant, regression.momenta(circuit.training.steps)[1:]
        self.point = constant
        self.history = [constant]  # weights after each step

    def step(self, gradient: np.ndarray) -> None:
        """Of the gradient's step at `point`, which is then where the next one is wanted."""
        momentum, before = self._momenta.pop(0), self.history[-1]
        self.history.append(self.point + self._constant - gradient)
        self.point = self.history[-1] + momentum * (self.history[-1] - before)


def request(circuit: Circuit, features: np.ndarray, targets: np.ndarray) -> Iterator[np.ndarray]:
    """Vectors of slots of a first request: features (rows, features), targets (rows, outputs) of ±1."""
    yield from circuit.pack_features(features)
    yield from circuit.pack_weights(circuit.constant(features, targets))


def simulated_error(circuit: Circuit, library: Library, seed: int = 0) -> float:
    """Worst absolute error of the weights under the simulated noise of a library, on random whitened examples.

    On fewer examples than asked for, the noise of each counts more.
    """
    random, training = np.random.default_rng(seed), circuit.training
    few = dataclasses.replace(training, rows=min(training.rows, SIMULATED_ROWS), outputs=1)
    circuit = dataclasses.replace(circuit, training=few)
    features = random.normal(size=(few.rows, few.features))
    logits = features @ random.normal(scale=2 / math.sqrt(few.features), size=few.features)
    targets = np.where(logits + random.logistic(size=few.rows) > 0, 1.0, -1.0)[:, None]
    simulator = Simulator(circuit.parameters.ring_dimension, library, library.switching_bias)
    with np.errstate(all="ignore"):  # with too few bits a descent does not come back
        weights = train(circuit, simulator, features, targets)
    wanted = regression.descent(features, targets, few.steps, few.rate, regression.polynomial(few.degree))[-1]
    return float(np.abs(weights - wanted).max())


def train(circuit: Circuit, library: Library, features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """All of a training in one process: weights (outputs, features)."""
    client, evaluator = library.client(circuit.parameters), library.evaluator(circuit.parameters)
    evaluator.load_keys(client.keygen(circuit.keys))
    moduli = library.moduli(circuit.parameters)
    program, scale, fresh = Program(circuit, evaluator, moduli), sums(circuit, moduli).scale, circuit.fresh_scale
    held = [client.encrypt(vector, fresh) for vector in circuit.pack_features(features)]
    descent = Descent(circuit, circuit.constant(features, targets))
    for _ in range(circuit.rounds):
        points = [client.encrypt(vector, fresh) for vector in circuit.pack_weights(descent.point)]
        response = program.run([evaluator.deserialise(client.serialise(c), 0) for c in (*held, *points)])
        received = [client.deserialise(evaluator.serialise(c)) for c in response]
        gradient, point = decrypt(circuit, client, received, scale)
        if not circuit.refresh:
            return point - gradient
        descent.step(gradient)
    return descent.history[-1]
