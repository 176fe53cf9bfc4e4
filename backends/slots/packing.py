"""Layouts and kernels: the ways in which an affine map can be laid over slots.

All kernels are instances of one: slot t computes a partial sum of output row ``t mod R`` over the offsets e that the
kernel rotates by, and rotate-and-sum over the strides R, 2R, … completes it, so that afterwards every slot t holds
output ``t mod R`` (period R, no garbage, ready for the next layer). R is the number of outputs rounded up to a power of
two. Halevi and Shoup's diagonals ("Algorithms in HElib", CRYPTO 2014, section 4.3; hybrid form: Gazelle, USENIX
Security 2018, section 4.2) are the case of one block; with the client's help, block b of the input holds x rotated by
b·D already, which divides the rotations by the number of blocks, down to the column layout (D = 1) that needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from backends.slots.blocks import Affine
from backends.slots.plan import Input, Packed, Scalar, Term


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, int(n - 1).bit_length())


# -- the first layer: the client lays the image out ---------------------------------------------------------------------


def first_layer(affine: Affine, slots: int, radices: tuple[int, ...]) -> Iterator[tuple[Input, Packed]]:
    """All candidates: chunk width × real or complex input × baby steps × radix of the folds."""
    outputs, inputs = affine.weight.shape
    rows = power_of_two(outputs)
    if rows > slots:
        return
    for is_complex in (False, True):
        values = 2 if is_complex else 1
        width = rows
        while width <= slots:
            chunks = -(-inputs // (width * values))
            offsets = max(1, rows * width // slots)  # D: offsets left after the client's replication
            if chunks * offsets <= max(64, 2 * -(-inputs * rows // (slots * values))):
                yield from _first_layer(affine, slots, rows, width, chunks, offsets, is_complex, radices)
            if chunks == 1:
                break
            width *= 2


def _first_layer(
    affine: Affine,
    slots: int,
    rows: int,
    width: int,
    chunks: int,
    offsets: int,
    is_complex: bool,
    radices: tuple[int, ...],
) -> Iterator[tuple[Input, Packed]]:
    inputs = affine.weight.shape[1]
    blocks = rows // offsets  # distinct blocks of `width` slots; the whole repeats after blocks · width
    period = blocks * width
    t = np.arange(slots)
    content = (t + offsets * (t // width % blocks)) % width
    values = 2 if is_complex else 1
    index = values * (np.arange(chunks)[:, None] * width + content)
    real = np.where(index < inputs, index, -1).astype(np.int32)
    imaginary = np.where((index + 1 < inputs) & is_complex, index + 1, -1).astype(np.int32)

    weight = np.zeros((rows, inputs + 1))  # the last column, which index −1 reads, stays zero
    weight[: len(affine.weight), :inputs] = affine.weight
    vectors = {}
    for chunk, e in product(range(chunks), range(offsets)):
        columns, columns_imaginary = np.roll(real[chunk], -e), np.roll(imaginary[chunk], -e)
        vector = weight[t % rows, columns]
        if is_complex:  # Re((a + ib)(v − iw)) = av + bw; halved, because the conjugate is added
            vector = (vector - 1j * weight[t % rows, columns_imaginary]) / 2
        vectors[chunk, e] = vector
    request = Input(
        f"{chunks} × {width} {'complex ' if is_complex else ''}values, {blocks} rotated copies", False, real, imaginary
    )
    for baby, fold in product(_divisors(offsets), radices):
        yield request, _packed(affine, vectors, baby, _folds(rows, period, fold), rows, slots, is_complex)


def _packed(
    affine: Affine,
    vectors: dict[tuple[int, int], np.ndarray],
    baby: int,
    folds: tuple[tuple[int, ...], ...],
    rows: int,
    slots: int,
    real_part: bool = False,
) -> Packed:
    """vectors: (ciphertext, offset) → diagonal; offset e = giant + b with b < baby."""
    terms, diagonals = [], []
    for (chunk, e), vector in vectors.items():
        if not vector.any():
            continue
        giant = e - e % baby
        terms.append(Term(0, chunk, e % baby, giant, len(diagonals)))
        diagonals.append(np.roll(vector, giant))
    steps = len({t.giant for t in terms})
    bias = np.zeros(rows)
    bias[: len(affine.bias)] = affine.bias
    radices = [len(fold) + 1 for fold in folds]
    kind = f"{len(terms)} diagonals ({min(baby, len(terms))} baby × {steps} giant steps), folds {radices}"
    return Packed(kind, 1, tuple(terms), np.array(diagonals), folds, np.tile(bias, slots // rows)[None], real_part)


def _divisors(n: int) -> list[int]:
    return [1 << k for k in range(n.bit_length())]


def _folds(stride: int, period: int, radix: int) -> tuple[tuple[int, ...], ...]:
    """Groups of rotations that sum all multiples of `stride` below `period`; each multiplies the reach by `radix`."""
    groups = []
    while stride < period:
        r = min(radix, period // stride)
        groups.append(tuple(stride * k for k in range(1, r)))
        stride *= r
    return tuple(groups)


# -- later layers: the input has a period -------------------------------------------------------------------------------


def middle_layer(affine: Affine, period: int, slots: int, radices: tuple[int, ...]) -> Iterator[Packed]:
    """Input: slot t holds x[t mod period]. Output: period R."""
    outputs, inputs = affine.weight.shape
    rows = power_of_two(outputs)
    if rows > slots:
        return
    weight = np.zeros((rows, period))
    weight[:outputs, :inputs] = affine.weight
    t = np.arange(slots)
    offsets = min(rows, period)
    vectors = {(0, e): weight[t % rows, (t + e) % period] for e in range(offsets)}
    for baby, radix in product(_divisors(offsets), radices if rows < period else radices[:1]):
        yield _packed(affine, vectors, baby, _folds(rows, period, radix), rows, slots)


def last_layer(
    affine: Affine, period: int, slots: int, radices: tuple[int, ...]
) -> Iterator[tuple[Packed, tuple[int, ...]]]:
    """Besides `middle_layer`: one product, row r in block r of `period` slots, summed into the block's first slot."""
    outputs, inputs = affine.weight.shape
    for packed in middle_layer(affine, period, slots, radices):
        yield packed, tuple(range(outputs))
    if outputs * period > slots:
        return
    vector, bias = np.zeros(slots), np.zeros(slots)
    for row, (weights, b) in enumerate(zip(affine.weight, affine.bias)):
        vector[row * period : row * period + inputs] = weights
        bias[row * period] = b
    for radix in radices:
        folds = _folds(1, period, radix)
        kind = f"row by block, folds {[len(f) + 1 for f in folds]}"
        packed = Packed(kind, 1, (Term(0, 0, 0, 0, 0),), vector[None], folds, bias[None])
        yield packed, tuple(row * period for row in range(outputs))


# -- one image in each slot ---------------------------------------------------------------------------------------------


def batched(affines: tuple[Affine, ...]) -> tuple[Input, tuple[Scalar, ...]]:
    """Image-in-slot packing (CryptoNets, 2016), two images a slot: no rotation at all."""
    steps = []
    for index, affine in enumerate(affines):
        factor = 0.5 if index == 0 else 1.0
        steps.append(
            Scalar(
                f"{affine.weight.shape[1]} → {affine.weight.shape[0]} scalar products",
                affine.weight * factor,
                affine.bias,
                split=index == 0,
                second_sign=-1.0 if index == 1 else 1.0,
            )
        )
    return Input(f"{affines[0].weight.shape[1]} ciphertexts, two images a slot", batched=True), tuple(steps)
