"""A step of encrypted descent written by hand, row by row: the yardstick of `backends.slots.training`.

Slot 64·i + j holds feature j of row i. Two encrypted copies of the signed examples, Z = y·x and Z″ = rate/(n·√|c₃|)·Z; four
levels a step: p = Z ⊙ v, summed over a row by six rotations; the mask of column 0 with √|c₃|, copied to the row by six more;
m² and m ⊙ Z″; (c₁ − m²) ⊙ u, summed over the rows. The client adds Z″'s share of the constant 1/2 and encrypts weights anew.
"""

from __future__ import annotations

import math

import numpy as np

from backends.slots.library import KeyRequest, Library, Parameters
from models import regression

FEATURES = 64
BITS = {8192: 27, 16384: 40}  # of scales and primes


class ByHand:
    def __init__(self, library: Library, ring_dimension: int, features: np.ndarray, targets: np.ndarray, rate: float):
        bits = BITS[ring_dimension]
        self.parameters = p = Parameters(ring_dimension, 45, bits, 4, 60, bits, ())
        self.client, self.evaluator, self.moduli = library.client(p), library.evaluator(p), library.moduli(p)
        self.scale, self.rows = 2.0**bits, p.slots // FEATURES
        c1, c3 = regression.slope_coefficients(3)
        self.c1, self.root = c1, math.sqrt(-c3)
        within, across = [1 << k for k in range(6)], [FEATURES << k for k in range(self.rows.bit_length() - 1)]
        self.within, self.across = within, across
        keys = KeyRequest(tuple(sorted({*within, *across, *(-s for s in within)})), False, True)
        self.evaluator.load_keys(self.client.keygen(keys))
        z = targets * features
        self.constant = rate / (2 * len(z)) * z.sum(axis=0)
        padded = np.zeros((-(-len(z) // self.rows) * self.rows, FEATURES))
        padded[: len(z), : z.shape[1]] = z
        blocks = padded.reshape(-1, p.slots)
        self.first = [self.encrypted(block) for block in blocks]
        self.second = [self.encrypted(block * rate / (len(z) * self.root)) for block in blocks]

    def encrypted(self, vector: np.ndarray):
        return self.evaluator.deserialise(self.client.serialise(self.client.encrypt(vector, self.scale)), 0)

    def point(self, weights: np.ndarray):
        return self.encrypted(np.tile(np.pad(weights, (0, FEATURES - len(weights))), self.rows))

    def step(self, point):
        """An encrypted point → the encrypted sum of (c₁ − m²) ⊙ m ⊙ Z″, and its scale."""
        e, total = self.evaluator, None
        mask = np.zeros(self.parameters.slots)
        mask[::FEATURES] = self.root
        for z, z2 in zip(self.first, self.second):
            p, s = self._rescaled(e.relinearise(e.dot_ciphers([z], [point])), self.scale**2, 0)
            for fold in self.within:
                p = e.rotate_sum([(p, 0), (p, fold)])
            m, s = self._rescaled(e.dot([p], [e.encode(mask, self.scale, 1)]), s * self.scale, 1)
            for fold in self.within:
                m = e.rotate_sum([(m, 0), (m, -fold)])
            square, s2 = self._rescaled(e.relinearise(e.square(m)), s * s, 2)
            u, s3 = self._rescaled(e.relinearise(e.dot_ciphers([m], [e.mod_switch(z2, 2)])), s * self.scale, 2)
            h = e.add_plain(square, e.encode(np.full(self.parameters.slots, -self.c1), s2, 3))
            g = e.relinearise(e.dot_ciphers([h], [u]))
            total = g if total is None else e.add(total, g)
        total, s = self._rescaled(total, s2 * s3, 3)
        for fold in self.across:
            total = e.rotate_sum([(total, 0), (total, fold)])
        return total, s

    def _rescaled(self, cipher, scale: float, level: int):
        return self.evaluator.rescale(cipher), scale / self.moduli[len(self.moduli) - 1 - level]

    def train(self, steps: int, features: int) -> np.ndarray:
        momenta = regression.momenta(steps)[1:]
        point = before = self.constant
        for momentum in momenta:
            total, scale = self.step(self.point(point))
            received = self.client.deserialise(self.evaluator.serialise(total))
            gradient = -self.client.decrypt(received, scale).real[:features]
            weights = point + self.constant - gradient
            point, before = weights + momentum * (weights - before), weights
        return before
