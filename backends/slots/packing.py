"""Layouts and kernels: the ways in which an affine map can be laid over slots.

A `Layout` says where the values of a vector stand in a period of P slots; the period is repeated over all slots. All
kernels are instances of one: slot t computes a partial sum of the output that stands at ``t mod R`` over the offsets e
that the kernel rotates by, and rotate-and-sum over the strides R, 2R, … completes it, so that afterwards the outputs
stand in a layout of period R: no garbage, ready for the next layer. Halevi and Shoup's diagonals ("Algorithms in HElib",
CRYPTO 2014, section 4.3; hybrid form: Gazelle, USENIX Security 2018, section 4.2) are the case of one block; with the
client's help, block b of the input holds x rotated by b·D already, which divides the rotations by the number of blocks,
down to the column layout (D = 1) that needs none. Offsets without any weight are skipped: for a convolution few are
left if its input and output stand on one grid of slots (multiplexed packing: Lee et al., "Low-complexity deep
convolutional neural networks on FHE using multiplexed parallel convolutions", ICML 2022).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from backends.slots import plan
from backends.slots.blocks import Affine, Blocks, Carry, Matrix, Product
from backends.slots.library import Parameters
from backends.slots.plan import Input, Kernel, Scalar, Term

SUMS_BYTES = 2e9  # of postponed products
MAX_OFFSETS = 1024  # of one layer; beyond it no plan is worth its rotations


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, int(n - 1).bit_length())


@dataclass(frozen=True)
class Grid:
    """Rows and columns of slots; the values of one channel are `step` slots apart in both directions, and the channels
    fill the gaps between them before they need another grid."""

    height: int
    width: int
    step: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Value i stands in all slots ``t ≡ positions[i] (mod period)``; the period is a power of two."""

    period: int
    positions: np.ndarray
    grid: Grid | None = None


def compact(size: int) -> Layout:
    return Layout(power_of_two(size), np.arange(size))


def on_grid(shape: tuple[int, int, int], grid: Grid) -> Layout | None:
    """shape: (channels, height, width); None if it does not fit."""
    (channels, height, width), step = shape, grid.step
    if step * height > grid.height or step * width > grid.width:
        return None
    c, y, x = np.indices(shape).reshape(3, -1)
    block, gap = c // step**2, c % step**2
    positions = (block * grid.height + step * y + gap // step) * grid.width + step * x + gap % step
    return Layout(power_of_two(-(-channels // step**2) * grid.height * grid.width), positions, grid)


def layouts(shape: tuple[int, ...], before: Layout | None = None, shape_before: tuple[int, ...] = ()) -> list[Layout]:
    """Where the outputs of a layer may stand: on the grid of its inputs, on one of their own, or one after another."""
    if len(shape) != 3:
        return [compact(int(np.prod(shape)))]
    _, height, width = shape
    grids = {Grid(height, width, 1), Grid(power_of_two(height), power_of_two(width), 1)}
    if before is not None and before.grid is not None:
        stride = max(1, round(shape_before[1] / height))
        grids.add(dataclasses.replace(before.grid, step=before.grid.step * stride))
    ordered = sorted(grids, key=dataclasses.astuple)
    return [layout for grid in ordered if (layout := on_grid(shape, grid)) is not None]


@dataclass(frozen=True)
class Candidate:
    """A way to evaluate an affine map of one value. Its kernel has no diagonals yet: `complete` computes them for the way
    that is chosen.

    place: puts the outputs' biases where the outputs stand, (slots,).
    """

    kernel: Kernel
    diagonals: Callable[[], np.ndarray]
    place: Callable[[np.ndarray], np.ndarray]
    request: Input | None = None  # of a first layer
    output_slots: tuple[tuple[int, ...], ...] = ()  # of a last layer, see `Plan`

    def complete(self, source: int) -> Kernel:
        """Reading this value, without the products whose weights are all zero."""
        diagonals = self.diagonals()
        used = np.flatnonzero(diagonals.any(axis=1))
        kept = (self.kernel.terms[i] for i in used.tolist())
        terms = tuple(dataclasses.replace(term, diagonal=index) for index, term in enumerate(kept))
        return dataclasses.replace(self.kernel, source=source, terms=terms, diagonals=diagonals[used])


def _candidate(
    target: Layout,
    offsets: list[tuple[int, int]],
    vector: Callable[[int, int], np.ndarray],
    baby: int,
    folds: tuple[tuple[int, ...], ...],
    slots: int,
    request: Input | None = None,
    real_part: bool = False,
) -> Candidate:
    """offsets: (ciphertext, offset); vector: the diagonal of each. An offset is giant + b with b < baby."""
    terms = tuple(Term(c, e % baby, e - e % baby, index) for index, (c, e) in enumerate(offsets))
    babies, giants = len({t.baby for t in terms}), len({t.giant for t in terms})
    kind = f"{len(terms)} diagonals ({babies} baby × {giants} giant steps), folds {[len(fold) + 1 for fold in folds]}"
    if target.grid:
        kind += f", to a grid {target.grid.height} × {target.grid.width} step {target.grid.step}"
    kernel = Kernel(kind, 0, terms, np.zeros((0, slots)), folds, real_part)
    # Of several copies one far from slot 0. OpenFHE's key switching does not round but truncates; half a unit in every
    # coefficient is a large error in the first slots, whose roots of unity are near 1, and next to none in others.
    far = slots // 2 if target.period < slots else 0
    output_slots = tuple((far + slot,) for slot in target.positions.tolist())

    def place(bias: np.ndarray) -> np.ndarray:
        vector = np.zeros(target.period)
        vector[target.positions] = bias
        return np.tile(vector, slots // target.period)

    return Candidate(kernel, lambda: np.array([vector(c, e) for c, e in offsets]), place, request, output_slots)


def _powers(n: int) -> list[int]:
    return [1 << k for k in range(n.bit_length())]


def rotate_and_sum(stride: int, period: int, radix: int) -> tuple[tuple[int, ...], ...]:
    """Groups of rotations that sum all multiples of `stride` below `period`; each multiplies the reach by `radix`."""
    groups = []
    while stride < period:
        r = min(radix, period // stride)
        groups.append(tuple(stride * k for k in range(1, r)))
        stride *= r
    return tuple(groups)


# -- the first layer: the client lays the image out ---------------------------------------------------------------------


def first_layer(affine: Affine, target: Layout, slots: int, radices: tuple[int, ...]) -> Iterator[Candidate]:
    """All candidates: rotated copies of chunks of the image, or the windows of a convolution; real or complex input."""
    rows, inputs = target.period, affine.weights[0].shape[1]
    if rows > slots:
        return
    # the last column, which index −1 reads, stays zero
    weight = np.zeros((rows, inputs + 1))
    weight[target.positions, :inputs] = affine.weights[0].toarray()
    for is_complex in (False, True):
        values = 2 if is_complex else 1
        if affine.terms < inputs:
            yield from _windows(affine, weight, target, slots, is_complex, radices)
        width = rows
        while width <= slots:
            chunks = -(-inputs // (width * values))
            offsets = max(1, rows * width // slots)  # D: offsets left after the client's replication
            if chunks * offsets <= max(64, 2 * -(-inputs * rows // (slots * values))):
                yield from _copies(affine, weight, target, slots, width, chunks, offsets, is_complex, radices)
            if chunks == 1:
                break
            width *= 2


def _copies(
    affine: Affine,
    weight: np.ndarray,
    target: Layout,
    slots: int,
    width: int,
    chunks: int,
    offsets: int,
    is_complex: bool,
    radices: tuple[int, ...],
) -> Iterator[Candidate]:
    """Each ciphertext holds `width` values in copies, block b rotated by b·D."""
    inputs, rows = affine.weights[0].shape[1], target.period
    blocks = rows // offsets  # distinct blocks of `width` slots; the whole repeats after blocks · width
    t = np.arange(slots)
    content = (t + offsets * (t // width % blocks)) % width
    values = 2 if is_complex else 1
    index = values * (np.arange(chunks)[:, None] * width + content)
    real = np.where(index < inputs, index, -1).astype(np.int32)
    imaginary = np.where((index + 1 < inputs) & is_complex, index + 1, -1).astype(np.int32)

    def vector(chunk: int, e: int) -> np.ndarray:
        return _diagonal(weight, np.roll(real[chunk], -e), np.roll(imaginary[chunk], -e) if is_complex else None)

    used = [(c, e) for c, e in product(range(chunks), range(offsets)) if c * width * values < inputs]
    request = Input(
        f"{chunks} × {width} {'complex ' if is_complex else ''}values, {blocks} rotated copies", False, real, imaginary
    )
    for baby, radix in product(_powers(offsets), radices):
        folds = rotate_and_sum(rows, blocks * width, radix)
        yield _candidate(target, used, vector, baby, folds, slots, request, is_complex)


def _windows(
    affine: Affine, weight: np.ndarray, target: Layout, slots: int, is_complex: bool, radices: tuple[int, ...]
) -> Iterator[Candidate]:
    """Next to each output stand the inputs that it needs, one or two a slot, in as many blocks as are wanted: the windows
    of a convolution (im2col; the convolution representation of Brutzkus et al., "Low latency privacy preserving
    inference", ICML 2019)."""
    rows, values = target.period, 2 if is_complex else 1
    needed = np.full((rows, -(-affine.terms // values) * values), -1, np.int32)  # the columns of each row's weights
    for row, weights in enumerate(weight):
        columns = np.flatnonzero(weights)
        needed[row, : len(columns)] = columns
    places = needed.shape[1] // values
    for blocks in _powers(min(slots // rows, power_of_two(places))):
        chunks = -(-places // blocks)
        if chunks > 64:
            continue
        t = np.arange(slots)
        place = np.arange(chunks)[:, None] * blocks + t // rows % blocks
        real, imaginary = (
            np.where(place < places, needed[t % rows, np.minimum(values * place + part, values * places - 1)], -1)
            for part in (0, values - 1)
        )
        imaginary = imaginary if is_complex else np.full_like(real, -1)

        def vector(chunk: int, e: int, real: np.ndarray = real, imaginary: np.ndarray = imaginary) -> np.ndarray:
            return _diagonal(weight, real[chunk], imaginary[chunk] if is_complex else None)

        kind = f"{chunks} × {blocks} inputs of each output{', two a slot' if is_complex else ''}"
        request = Input(kind, False, real.astype(np.int32), imaginary.astype(np.int32))
        for radix in radices if blocks > 1 else radices[:1]:
            folds = rotate_and_sum(rows, rows * blocks, radix)
            offsets = [(chunk, 0) for chunk in range(chunks)]
            yield _candidate(target, offsets, vector, 1, folds, slots, request, is_complex)


def _diagonal(weight: np.ndarray, real: np.ndarray, imaginary: np.ndarray | None) -> np.ndarray:
    """weight: (period, inputs + 1); real, imaginary: the inputs that stand in each slot."""
    rows = np.arange(len(real)) % len(weight)
    if imaginary is None:
        return weight[rows, real]
    # Re((a + ib)(v − iw)) = av + bw; halved, because the conjugate is added
    return (weight[rows, real] - 1j * weight[rows, imaginary]) / 2


def laid_out(source: Layout, slots: int) -> Input:
    """An image in this layout, in all its periods: one ciphertext, from which any map can start."""
    place = np.full(source.period, -1, np.int32)
    place[source.positions] = np.arange(len(source.positions))
    real = np.tile(place, slots // source.period)[None]
    return Input(f"1 × {len(source.positions)} values", False, real, np.full_like(real, -1))


# -- later layers: the input has a layout -------------------------------------------------------------------------------


def middle_layer(
    matrix: Matrix, source: Layout, target: Layout, slots: int, radices: tuple[int, ...]
) -> Iterator[Candidate]:
    """From the layout of the inputs to that of the outputs."""
    rows, period = target.period, source.period
    if max(rows, period) > slots:
        return
    reach = min(rows, period)
    entries = matrix.tocoo()
    used = entries.data != 0
    outputs, inputs, weights = entries.row[used], entries.col[used], entries.data[used]
    to, of = target.positions[outputs], source.positions[inputs]
    offset = (of - to) % reach
    offsets = np.unique(offset).tolist() or [0]
    if len(offsets) > MAX_OFFSETS:
        return

    def vector(_: int, e: int) -> np.ndarray:  # from the weights that there are: a dense matrix a candidate takes gigabytes
        here = offset == e
        diagonal = np.zeros(max(rows, period))
        diagonal[to[here] if rows >= period else (of[here] - e) % period] = weights[here]
        return np.tile(diagonal, slots // len(diagonal))

    used = [(0, e) for e in offsets]
    for baby, radix in product(_powers(reach), radices if rows < period else radices[:1]):
        yield _candidate(target, used, vector, baby, rotate_and_sum(rows, period, radix), slots)


def last_layer(
    matrix: Matrix, source: Layout, slots: int, radices: tuple[int, ...], client_adds: bool = True
) -> Iterator[Candidate]:
    """Besides `middle_layer`: one product, row r in block r of the period. The client adds up the slots of a block, or
    the server does so, into its first slot."""
    outputs, period = matrix.shape[0], source.period
    yield from middle_layer(matrix, source, compact(outputs), slots, radices)
    if outputs * period > slots:
        return

    def diagonals() -> np.ndarray:
        vector = np.zeros((slots // period, period))
        vector[:outputs, source.positions] = matrix.toarray()
        return vector.reshape(1, slots)

    def place(bias: np.ndarray) -> np.ndarray:
        vector = np.zeros((slots // period, period))
        vector[:outputs, 0] = bias
        return vector.reshape(slots)

    for folds in [()] if client_adds else [rotate_and_sum(1, period, radix) for radix in radices]:
        kind = f"row by block, {'added up by the client' if client_adds else f'folds {[len(f) + 1 for f in folds]}'}"
        kernel = Kernel(kind, 0, (Term(0, 0, 0, 0),), np.zeros((0, slots)), folds)
        added = source.positions.tolist() if client_adds else [0]
        output_slots = tuple(tuple(row * period + slot for slot in added) for row in range(outputs))
        yield Candidate(kernel, diagonals, place, output_slots=output_slots)


# -- one image in each slot ---------------------------------------------------------------------------------------------


def batched(network: Blocks) -> tuple[Input, tuple[plan.Step, ...]]:
    """Image-in-slot packing (CryptoNets, 2016): no rotation at all. Two images a slot where no affine map reads the image
    beside products, or products of which one half is real and the other imaginary."""
    inputs = math.prod(network.shape)
    for paired in (True, False):
        try:
            steps = _scalar_steps(network, paired)
        except _Unpaired:
            continue
        kind = f"{inputs} ciphertexts, {'two images' if paired else 'one image'} a slot"
        return Input(kind, batched=True, paired=paired), steps
    raise AssertionError("without pairs there is always a way")


class _Unpaired(Exception):
    """A network cannot keep a second image in the imaginary parts."""


def _scalar_steps(network: Blocks, paired: bool) -> tuple[plan.Step, ...]:
    """The second half of the ciphertexts of a value is that of the second images times a factor, 1, −1 or i."""
    factors: list[complex] = [1.0]
    steps: list[plan.Step] = []
    for step in network.steps:
        if isinstance(step, Product):
            factors.append(factors[step.left] * factors[step.right])
            steps.append(plan.Product(step.name, step.left, step.right))
        elif isinstance(step, Carry):
            factors.append(factors[step.source])
            steps.append(plan.Carry(step.name, step.source))
        else:
            split = paired and 0 in step.inputs
            of = [factors[value] for value in step.inputs]
            if (split and len(step.inputs) > 1) or any(np.imag(factor) for factor in of):
                raise _Unpaired
            factors.append(1j if split else 1.0)
            weights = [weight.toarray() * (0.5 if split else 1.0) for weight in step.weights]
            shapes = " and ".join(str(weight.shape[1]) for weight in weights)
            kind = f"{shapes} → {len(step.bias)}, {sum(map(np.count_nonzero, weights))} scalar products"
            signs = tuple(float(np.real(factor)) for factor in of)
            steps.append(Scalar(step.name, kind, step.inputs, tuple(weights), step.bias, split, signs))
    if np.imag(factors[-1]):
        raise _Unpaired  # the logits themselves
    return tuple(steps)


def postponed(steps: tuple[plan.Step, ...], parameters: Parameters, halves: int) -> tuple[plan.Step, ...]:
    """Marks the products that wait for their relinearisation, see `plan.Product`: where an affine map alone reads them, and
    has no more outputs, whose sums of three polynomials do not take too much memory.

    It saves relinearisations, and bits: sums are rescaled, not terms, so one prime for each square is enough more often.
    """
    result = list(steps)
    largest = SUMS_BYTES / (halves * 3 * (parameters.levels + 1) * parameters.ring_dimension * 8)
    for value, step in enumerate(steps, 1):
        readers = [reader for reader in steps if value in reader.sources]
        if len(readers) != 1 or not isinstance(reader := readers[0], Scalar):
            continue
        if isinstance(step, plan.Product) and reader.sources == (value,):
            outputs, inputs = reader.weights[0].shape
            if outputs <= min(inputs, largest):
                result[value - 1] = dataclasses.replace(step, postponed=True)
    return tuple(result)
