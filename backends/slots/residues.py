"""Linear maps on the residues of ciphertexts, exactly, as matrix products of floats.

A ciphertext is a few polynomials modulo a few primes: an array (polynomials, primes, N) of residues, all modulo their own
prime, in evaluation form, where also a constant polynomial is the same number N times. An affine map with known weights is
the same integer combination of every residue, so of all ciphertexts it is one product of matrices modulo each prime (Bae,
Cheon, Hanrot, Park, Stehlé, "Plaintext-ciphertext matrix multiplication and FHE bootstrapping", CRYPTO 2024). BLAS computes
it: residues are cut into limbs of so few bits that no sum exceeds 2⁵³, below which floats are exact, in whatever order BLAS
adds and with whatever intermediate result.

This module knows no library and no scheme.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product

import numpy as np

EXACT = 2**53  # all integers up to it are floats
PRIME_BITS = range(10, 62)  # three times a prime is less than 2⁶³, and quotients by it less than 2⁵⁰, see `_reduced`
SMALLEST_BLOCK = 64  # inputs, beside which recombining the limbs costs little
CACHED = 1 << 18  # numbers of a matrix that stays near a core


class InexactError(ArithmeticError):
    """Weights and primes whose product no float holds."""


def integers(weights: np.ndarray, scale: float) -> np.ndarray:
    """Weights as libraries encode them: the nearest integers of weight · scale, as float64 of the same shape.

    No row is all zero, or its ciphertext would be none, which SEAL refuses: it gets a one, less than the rounding of others.
    """
    rounded = np.round(np.asarray(weights, np.float64) * scale)
    rounded[~rounded.any(axis=1), 0] = 1.0
    return rounded


@dataclass(frozen=True)
class Limbs:
    """Residues are `count` limbs of `width` bits, the last one perhaps shorter; inputs are summed `block` at a time."""

    width: int
    count: int
    block: int


def limbs(weights: np.ndarray, prime_bits: int) -> Limbs:
    """The fewest limbs for which products of these integers (outputs, inputs) with residues of `prime_bits` bits are exact.

    A partial sum of weight · limb is at most Σ |weight| · (2^width − 1) over the inputs of its block; that is at most 2⁵³.
    Raises InexactError if not even limbs of one bit are.
    """
    if prime_bits not in PRIME_BITS:
        raise InexactError(
            f"residue products take primes of {PRIME_BITS[0]} to {PRIME_BITS[-1]} bits, not {prime_bits}"
        )
    magnitudes = np.abs(weights)
    if not np.array_equal(magnitudes, np.floor(magnitudes)):
        raise InexactError("weights of residue products are integers")
    inputs = weights.shape[1]
    for count in range(1, prime_bits + 1):
        width = -(-prime_bits // count)
        limit = EXACT // (2**width - 1)
        block = _longest(magnitudes, limit)
        if block >= min(SMALLEST_BLOCK, inputs) or (count == prime_bits and block):
            return Limbs(width, -(-prime_bits // width), block)
    raise InexactError(f"a weight of {magnitudes.max():g} is too large for an exact residue product")


def _longest(magnitudes: np.ndarray, limit: int) -> int:
    """The longest block of inputs, of all inputs or halved again and again, over which no row sums to more than the limit;
    0 if there is none."""
    length = magnitudes.shape[1]
    while True:
        starts = range(0, magnitudes.shape[1], max(length, 1))
        # a sum beyond the limit is itself a rounded one
        if all(magnitudes[:, start : start + length].sum(axis=1).max() * (1 + 2.0**-40) <= limit for start in starts):
            return length
        if length == 1:
            return 0
        length = -(-length // 2)


def tiles(weights: np.ndarray, count: int) -> list[np.ndarray]:
    """The outputs in so many groups that read the same inputs, or nearly: a convolution's by position, of all
    channels, not by channel. Each is a product with few inputs, all of whose weights count."""
    order = np.argsort((weights != 0).argmax(axis=1), kind="stable")
    return np.array_split(order, count)


def matmul(weights: np.ndarray, residues: np.ndarray | Sequence[np.ndarray], primes: Sequence[int]) -> np.ndarray:
    """``Σ_i weights[o, i] · residues[i]`` modulo each prime.

    weights: integers as float64 (outputs, inputs). residues: uint64 (polynomials, primes or more, N) each, in an array or
    a list; residues of primes behind those that are named are left out. Returns uint64 (outputs, polynomials, primes, N).
    Raises InexactError.
    """
    polynomials, _, n = residues[0].shape
    total = np.zeros((len(weights), polynomials, len(primes), n), np.uint64)
    add_product(total, weights, residues, primes)
    return total


def add_product(
    total: np.ndarray,
    weights: np.ndarray,
    residues: np.ndarray | Sequence[np.ndarray],
    primes: Sequence[int],
    turns: AbstractContextManager = contextlib.nullcontext(),  # noqa: B008 (it has no state)
) -> None:
    """Adds the product, see `matmul`, to `total`; in turns, where several processes add to it."""
    outputs, inputs = np.flatnonzero(weights.any(axis=1)), np.flatnonzero(weights.any(axis=0))
    if not len(outputs):
        return
    weights = np.ascontiguousarray(weights[np.ix_(outputs, inputs)], np.float64)
    rows = [residues[i] for i in inputs.tolist()]
    polynomials, _, n = rows[0].shape
    for index, prime in enumerate(primes):
        shape = limbs(weights, prime.bit_length())
        columns = _columns(shape, len(rows), n)
        for polynomial, start, first in product(
            range(polynomials), range(0, n, columns), range(0, len(rows), shape.block)
        ):
            part, block = slice(start, start + columns), slice(first, first + shape.block)
            matrix = np.array([row[polynomial, index, part] for row in rows[block]])
            more = _product(weights[:, block], matrix, shape, prime)
            place = outputs, polynomial, index, part
            with turns:
                total[place] = _sum(total[place], more, prime)


def _columns(shape: Limbs, inputs: int, n: int) -> int:
    """How many residues of each input are taken at a time."""
    columns = CACHED // (min(inputs, shape.block) * shape.count)
    return min(n, max(256, columns))


def _product(weights: np.ndarray, residues: np.ndarray, shape: Limbs, prime: int) -> np.ndarray:
    """Of a block: residues (inputs, columns) uint64."""
    columns, mask = residues.shape[1], np.int64(2**shape.width - 1)
    rest = residues.view(np.int64)  # of which floats are made faster
    pieces = np.empty((len(residues), shape.count, columns))
    for limb in range(shape.count):
        pieces[:, limb] = np.bitwise_and(rest, mask) if limb < shape.count - 1 else rest
        rest = np.right_shift(rest, np.int64(shape.width))
    sums = (weights @ pieces.reshape(len(residues), -1)).reshape(len(weights), shape.count, columns)
    total = sums[:, -1].astype(np.int64)
    if shape.count == 1:
        return _reduced(total, sums[:, 0], prime)
    approximate = sums[:, -1]
    for limb in range(shape.count - 2, -1, -1):
        # both forms of total · 2^width + limb: as a float nearly, and its last 64 bits, which are all of the remainder
        approximate = approximate * 2.0**shape.width + sums[:, limb]
        total = np.left_shift(total, np.int64(shape.width)) + sums[:, limb].astype(np.int64)
        total = _reduced(total, approximate, prime)
        if limb:
            approximate, total = total.astype(np.float64), total.view(np.int64)
    return total


def _reduced(low: np.ndarray, value: np.ndarray, prime: int) -> np.ndarray:
    """value modulo prime, uint64, for integers of which `low` are the last 64 bits.

    The quotient is less than 2⁵⁰: a sum is at most 2⁵³, moved by a limb of at most half of the prime's bits; or it is less
    than the prime, moved likewise. So the float one is off by one at most, and the remainder between −prime and twice the
    prime.
    """
    quotient = np.floor(value * (1.0 / prime)).astype(np.int64)
    remainder = (low - quotient * np.int64(prime)).view(np.uint64)
    modulus = np.uint64(prime)
    remainder = np.minimum(remainder, remainder + modulus)  # one that is negative is a very large uint64
    return np.minimum(remainder, remainder - modulus)


def _sum(a: np.ndarray, b: np.ndarray, prime: int) -> np.ndarray:
    total = a + b
    return np.minimum(total, total - np.uint64(prime))


def add(a: np.ndarray, b: np.ndarray, primes: Sequence[int]) -> np.ndarray:
    """a + b modulo each prime: (…, primes, N) each, or what broadcasts to it."""
    modulus = np.array(primes, np.uint64)[:, None]
    total = a + b
    return np.minimum(total, total - modulus)
