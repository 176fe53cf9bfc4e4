"""Runs an image-in-slot plan on a library that hands out residues.

A value is the residues of its ciphertexts, (halves, ciphertexts, polynomials, primes, N): of the images in the real and of
those in the imaginary parts, see `plan.Scalar`. An affine map is a product of matrices (`backends.slots.residues`) for a
tile of its outputs at a time; what reads it element by element follows at once, on the library's ciphertexts. Only then does
the tile become part of a value. So of a layer there is a tile or two in memory besides what it reads and what it makes, and
tiles are shared by all cores.

Products that wait for their relinearisation (`Plan.postponed`) are not even kept: each tile of them is added to the sums of
the affine map that reads them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import product
from typing import Any, TypeAlias, cast

import numpy as np

from backends.api import BackendError
from backends.slots import residues
from backends.slots.execute import METHODS, Program
from backends.slots.library import Cipher, Evaluator, ResidueEvaluator
from backends.slots.plan import Plan, Scalar
from backends.slots.workers import Turns, cores, share, shared_array

TILE_ROWS = 48
Value: TypeAlias = "np.ndarray | Sequence[Sequence[np.ndarray]]"  # an array, or views of the ciphertexts of a request


def program(plan: Plan, evaluator: Evaluator, moduli: list[int]) -> Program | BatchedProgram:
    """For a plan whose weights are in the clear."""
    if plan.input.batched and hasattr(evaluator, "residues"):
        return BatchedProgram(plan, cast(ResidueEvaluator, evaluator), moduli)
    return Program(plan, evaluator, moduli)


class BatchedProgram:
    """A plan of `Scalar` steps, products and carries, loaded into an evaluator."""

    def __init__(self, plan: Plan, evaluator: ResidueEvaluator, moduli: list[int]) -> None:
        self.plan = plan
        self._evaluator, self._moduli = evaluator, moduli
        self._program = Program(plan, evaluator, moduli, weights=())
        self._scales = self._program.scales
        self._halves = range(1 + plan.input.paired)
        self._weights = {v: self._integers(v, s) for v, s in enumerate(plan.steps, 1) if isinstance(s, Scalar)}
        self._kept = [value for value in range(1, len(plan.steps) + 1) if self._is_kept(value)]
        self._last = {source: value for value in self._kept for source in self._reads(value)}

    def _integers(self, value: int, step: Scalar) -> list[np.ndarray]:
        """The weights for each source. Raises InexactError if their products would not be exact."""
        scales = [self._scales[value] / self._scales[source] for source in step.sources]
        found = [residues.integers(weight, scale) for weight, scale in zip(step.weights, scales)]
        for weights, prime in product(found, self._primes(value)):
            residues.limbs(weights, prime.bit_length())
        return found

    def _is_kept(self, value: int) -> bool:
        """Whether all of a value is needed at a time: by an affine map, by several steps, as the response; or it is the sums
        of postponed products."""
        readers = [step for step in self.plan.steps if value in step.sources]
        if self.plan.postponed(value):
            return False
        return len(readers) != 1 or isinstance(readers[0], Scalar) or self._sums_products(value)

    def _sums_products(self, value: int) -> bool:
        return self.plan.work(value) < self.plan.dropped(value)

    def _reads(self, value: int) -> set[int]:
        """The kept values from which a value is made."""
        sources = self.plan.steps[value - 1].sources
        return set().union(*({v} if v == 0 or self._is_kept(v) else self._reads(v) for v in sources))

    def _scalar(self, value: int) -> Scalar:
        step = self.plan.steps[value - 1]
        assert isinstance(step, Scalar)
        return step

    def _primes(self, value: int) -> list[int]:
        """Those modulo which an affine value is summed."""
        return self._moduli[: len(self._moduli) - self.plan.work(value)]

    # -- the request and the response ------------------------------------------------------------------------------------

    def read(self, parts: Sequence[bytes | memoryview]) -> Value:
        """The ciphertexts of a request. Raises MessageError."""
        first = self._evaluator.read(parts[0], 0)
        if not first.flags.owndata:  # a view of the request, which costs nothing
            return [[first, *(self._evaluator.read(part, 0) for part in parts[1:])]]
        array = shared_array((1, len(parts), *first.shape))

        def read(index: int) -> None:
            array[0, index] = self._evaluator.read(parts[index], 0)

        share(len(parts), read)
        return array

    def run(self, request: Value) -> list[Cipher]:
        """What `read` returned → ciphertexts of the response."""
        values: dict[int, Value] = {0: request}
        for index in range(len(self.plan.steps)):
            self.step(index, values)
        last = values[len(self.plan.steps)]
        return [self._evaluator.of_residues(cipher, self._scales[-1]) for half in last for cipher in half]

    def step(self, index: int, values: dict[int, Value]) -> None:
        """Makes value `index` + 1 if it is one that is kept, and forgets those that no later step reads."""
        value = index + 1
        if value in self._kept:
            values[value] = self._made(value, values)
            self._forget(value, values)

    def _forget(self, value: int, values: dict[int, Value]) -> None:
        """What nothing behind this value reads."""
        for source in self._reads(value):
            if self._last[source] == value:
                values.pop(source, None)

    # -- values ----------------------------------------------------------------------------------------------------------

    def _made(self, value: int, values: dict[int, Value]) -> np.ndarray:
        if self._sums_products(value):
            sums = self._sums(value, values)
            self._forget(value, values)
            values = {-value: sums}
        tasks, outputs = self._tasks(value)
        n, primes = self.plan.parameters.ring_dimension, len(self._moduli) - self.plan.dropped(value)
        array = shared_array((len(self._halves), outputs, 2, primes, n))

        def make(task: int) -> None:
            halves, rows = tasks[task]
            for place, cipher in zip(product(halves, rows), self._rows(value, halves, rows, values)):
                array[place] = self._residues(cipher)

        share(len(tasks), make)
        return array

    def _sums(self, value: int, values: dict[int, Value]) -> np.ndarray:
        """Of an affine value that reads postponed products: three polynomials."""
        (source,), primes = self.plan.steps[value - 1].sources, self._primes(value)
        tasks, _ = self._tasks(source)
        outputs, n = len(self._weights[value][0]), self.plan.parameters.ring_dimension
        sums, turns = shared_array((len(self._halves), outputs, 3, len(primes), n)), Turns()

        def add(task: int) -> None:
            halves, rows = tasks[task]
            made = [self._residues(cipher) for cipher in self._rows(source, halves, rows, values)]
            for k, half in enumerate(halves):
                terms, weights = made[k * len(rows) : (k + 1) * len(rows)], self._signed(value, 0, half)[:, rows]
                concerned = np.flatnonzero(weights.any(axis=1))
                for outputs in np.array_split(concerned, -(-len(concerned) // TILE_ROWS)) if len(concerned) else ():
                    part = residues.matmul(weights[outputs], terms, primes)
                    with turns:
                        for output, more in zip(outputs, part):
                            sums[half, output] = residues.add(sums[half, output], more, primes)

        share(len(tasks), add)
        return sums

    def _tasks(self, value: int) -> tuple[list[tuple[Sequence[int], list[int]]], int]:
        """Halves and rows of a value that are made at a time, and how many rows there are."""
        scalars = [value]
        while not isinstance(self.plan.steps[scalars[0] - 1], Scalar):
            scalars = [source for v in scalars for source in self.plan.steps[v - 1].sources]
        together = any(self._scalar(v).split for v in scalars)
        weights = self._weights[scalars[0]][0]
        groups = [self._halves] if together else [[half] for half in self._halves]
        each = -(-cores() // len(groups))
        count = each * -(-len(weights) // (each * TILE_ROWS))
        tiles = [tile.tolist() for tile in residues.tiles(weights, min(count, len(weights)))]
        return [(halves, rows) for halves in groups for rows in tiles], len(weights)

    def _rows(self, value: int, halves: Sequence[int], rows: list[int], values: dict[int, Value]) -> list[Any]:
        """These rows of a value, one half behind the other, as ciphertexts or residues."""
        if value in values:
            return [values[value][half][row] for half in halves for row in rows]
        step = self.plan.steps[value - 1]
        if isinstance(step, Scalar):
            return self._affine(value, step, halves, rows, values)
        scales = self._scales
        read = {v: [self._cipher(c, scales[v]) for c in self._rows(v, halves, rows, values)] for v in step.sources}
        return METHODS[type(step)](self._program, value, step, read)

    def _affine(
        self, value: int, step: Scalar, halves: Sequence[int], rows: list[int], values: dict[int, Value]
    ) -> list[Any]:
        primes = self._primes(value)
        scale = self._scales[value] * math.prod(
            self._moduli[len(self._moduli) - self.plan.dropped(value) : len(primes)]
        )
        sums: list[np.ndarray] = []
        for half in [0] if step.split else halves:
            if -value in values:
                total = np.asarray(values[-value][half])[rows]
            else:
                parts = [
                    residues.matmul(self._signed(value, k, half)[rows], values[source][half], primes)
                    for k, source in enumerate(step.sources)
                ]
                total = functools.reduce(lambda a, b: residues.add(a, b, primes), parts)
            for cipher, bias in zip(total, step.bias[rows]):
                cipher[0] = residues.add(cipher[0], self._constant(bias * scale, step.split, primes), primes)
            sums += list(total)
        if step.split:
            return self._program.separated(self._cipher(cipher, scale) for cipher in sums)
        if -value in values:
            return [self._program.finished(self._cipher(cipher, scale)) for cipher in sums]
        return sums

    def _signed(self, value: int, index: int, half: int) -> np.ndarray:
        """The weights for a source; see `Scalar.signs`."""
        signs = self._scalar(value).signs
        return self._weights[value][index] * (signs[index] if half else 1.0)

    def _constant(self, number: float, split: bool, primes: list[int]) -> np.ndarray:
        """The polynomial of `number`, or number·(1 + i)/2, in all slots: (primes, N), or (primes, 1) for a number."""
        if not split:
            return np.array([[round(number) % prime] for prime in primes], np.uint64)
        pattern, norm = self._imaginary
        real, imaginary = round(number / 2), round(number / 2 / math.sqrt(norm))
        rows = []
        for prime, row in zip(primes, pattern):
            root = int(row[0])
            values = np.array([(real + imaginary * root) % prime, (real - imaginary * root) % prime], np.uint64)
            rows.append(np.where(row == row[0], *values))
        return np.array(rows)

    @functools.cached_property
    def _imaginary(self) -> tuple[np.ndarray, int]:
        """The polynomial nearest to i in all slots, (primes, N), and the square of what it is there instead.

        It is X^(N/2), which is i, or X^(N/4) + X^(3N/4), which is i·√2, depending on the order of the slots; both have two
        values modulo a prime, one the negative of the other.
        """
        parameters, e = self.plan.parameters, self._evaluator
        one = np.ones((2, len(self._moduli), parameters.ring_dimension), np.uint64)
        plain = e.encode(np.full(parameters.slots, 1j), 1.0, 0)
        found = e.residues(e.add_plain(e.of_residues(one, 1.0), plain))[0]
        minus_one = np.array(self._moduli, np.uint64)[:, None] - np.uint64(1)
        pattern = residues.add(found, minus_one, self._moduli)
        norms = {-(root**2) % prime for row, prime in zip(pattern, self._moduli) for root in set(row.tolist())}
        if norms not in ({1}, {2}):
            raise BackendError("this library encodes constants in a way that is not known here")
        return pattern, norms.pop()

    def _residues(self, cipher: Any) -> np.ndarray:
        return cipher if isinstance(cipher, np.ndarray) else self._evaluator.residues(cipher)

    def _cipher(self, cipher: Any, scale: float) -> Cipher:
        return self._evaluator.of_residues(cipher, scale) if isinstance(cipher, np.ndarray) else cipher
