"""OpenFHE's ciphertexts as bytes: their level and scale, and the residues of their two polynomials.

OpenFHE's own form holds also the context and references from one place to another; bytes of it that are wrong let it read
memory that is not its own, or make another context. All that is the same for each ciphertext of a context and level. So
only what differs crosses between the parties, and is put into the form of a ciphertext that was made on the spot.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openfhe

from backends.api import BackendError, MessageError, refusing
from backends.slots.library import Cipher

_HEADER = struct.Struct("<IId")  # level, degree of the scale, scale
_WORD = struct.Struct("<Q")
POLYNOMIALS = 2


@dataclass(frozen=True)
class _Form:
    """A ciphertext of a level, and the bytes of its OpenFHE form around its residues."""

    cipher: Cipher
    around: list[bytes]


class Ciphertexts:
    """Those of one context. `tag`: name of the keys that OpenFHE looks up for them; set it when keys are made or loaded."""

    def __init__(self, context: Any) -> None:
        self._context, self._moduli = context, moduli(context)
        self._residues = _WORD.size * context.GetRingDimension()  # bytes for each prime
        self._key = context.KeyGen().publicKey  # its secret is thrown away at once
        self._forms: dict[tuple[int, int], _Form] = {}
        self.tag = ""

    def serialise(self, cipher: Cipher) -> bytes:
        data = openfhe.Serialize(cipher, openfhe.BINARY)
        header = _HEADER.pack(cipher.GetLevel(), cipher.GetNoiseScaleDeg(), cipher.GetScalingFactor())
        view = memoryview(data)
        return b"".join((header, *(view[place] for place in self._places(data, cipher, POLYNOMIALS))))

    def deserialise(self, data: bytes | memoryview, level: int | None = None) -> Cipher:
        """level: that it must have; None: any. Raises MessageError."""
        found, degree, scale, rest = self._parsed(data, level)
        size = self._residues
        cipher = self._made(found, POLYNOMIALS, (rest[start : start + size] for start in range(0, len(rest), size)))
        cipher.SetNoiseScaleDeg(degree)
        cipher.SetScalingFactor(scale)
        return cipher

    # residues without the library: (polynomials, primes, N) uint64, each modulo its own prime, in evaluation form

    def read(self, data: bytes | memoryview, level: int) -> np.ndarray:
        """The residues of a ciphertext as `serialise` wrote it, a view. Raises MessageError as `deserialise` does, and for
        residues that are none."""
        _, _, _, rest = self._parsed(data, level)
        moduli = self._moduli[: len(self._moduli) - level]
        residues = np.frombuffer(rest, "<u8").reshape(POLYNOMIALS, len(moduli), -1)
        if (residues.max(axis=(0, 2)) >= np.array(moduli, np.uint64)).any():
            raise MessageError("a ciphertext with residues that are not below their prime")
        return residues

    def residues(self, cipher: Cipher) -> np.ndarray:
        data = openfhe.Serialize(cipher, openfhe.BINARY)
        primes = len(self._moduli) - cipher.GetLevel()
        polynomials = len(data) // (primes * self._residues)  # what is around them is much shorter
        found = [np.frombuffer(data[place], "<u8") for place in self._places(data, cipher, polynomials)]
        return np.array(found).reshape(polynomials, primes, -1)

    def of_residues(self, residues: np.ndarray) -> Cipher:
        """The inverse of `residues`."""
        polynomials, primes, n = residues.shape
        towers = np.ascontiguousarray(residues, "<u8").reshape(-1, n)
        return self._made(len(self._moduli) - primes, polynomials, (memoryview(tower).cast("B") for tower in towers))

    def _parsed(self, data: bytes | memoryview, level: int | None) -> tuple[int, int, float, memoryview]:
        """(level, degree and scale, residues) of what `serialise` wrote."""
        if len(data) < _HEADER.size:
            raise MessageError("truncated ciphertext")
        found, degree, scale = _HEADER.unpack_from(data)
        if found >= len(self._moduli) or level not in (None, found):
            raise MessageError(f"a ciphertext of level {found}, which no ciphertext has here")
        if not (1 <= degree <= 2 and scale > 0):  # infinite where a plan tracks scales and OpenFHE's own are idle
            raise MessageError(f"a ciphertext of scale {scale:g} and degree {degree}, which no ciphertext has here")
        rest = memoryview(data)[_HEADER.size :]
        if len(rest) != POLYNOMIALS * (len(self._moduli) - found) * self._residues:
            raise MessageError(f"a ciphertext of {len(data)} bytes, which none of level {found} has here")
        return found, degree, scale, rest

    def _made(self, level: int, polynomials: int, residues: Iterator[memoryview]) -> Cipher:
        """A ciphertext that OpenFHE read is ten times slower to copy, and so to add, than one that it made: the polynomials
        move into a ciphertext made here."""
        form = self._form(level, polynomials)
        pieces = itertools.chain.from_iterable(itertools.zip_longest(form.around, residues, fillvalue=b""))
        with refusing("OpenFHE", "read this ciphertext"):
            read = openfhe.DeserializeCiphertextString(b"".join(pieces), openfhe.BINARY)
        cipher = form.cipher.Clone()
        cipher.SetElements(read.GetElements())
        cipher.SetKeyTag(self.tag)
        return cipher

    def _form(self, level: int, polynomials: int) -> _Form:
        if (level, polynomials) not in self._forms:
            plain = self._context.MakeCKKSPackedPlaintext(np.zeros(1), 1, level)
            cipher = self._context.Encrypt(self._key, plain)
            if polynomials > POLYNOMIALS:
                cipher = self._context.EvalMultNoRelin(cipher, cipher)
                cipher.SetNoiseScaleDeg(1)
            data = openfhe.Serialize(cipher, openfhe.BINARY)
            places = list(self._places(data, cipher, polynomials))
            ends = [slice(0, 0), *places, slice(len(data), None)]
            around = [data[before.stop : after.start] for before, after in itertools.pairwise(ends)]
            self._forms[level, polynomials] = _Form(cipher, around)
        return self._forms[level, polynomials]

    def _places(self, data: bytes, cipher: Cipher, polynomials: int) -> Iterator[slice]:
        """Where the residues are in OpenFHE's form: behind their number and before their prime."""
        tag, size = cipher.GetKeyTag().encode(), self._residues
        number, end = _WORD.pack(size // _WORD.size), data.find(tag) + len(tag)
        for modulus in self._moduli[: len(self._moduli) - cipher.GetLevel()] * polynomials:
            start = data.find(number, end) + _WORD.size
            while start >= _WORD.size and not data.startswith(_WORD.pack(modulus), start + size):
                start = data.find(number, start) + _WORD.size
            if start < _WORD.size:
                raise BackendError(
                    "this OpenFHE writes ciphertexts in another way: install the one of requirements.lock"
                )
            end = start + size
            yield slice(start, end)


def moduli(context: Any) -> list[int]:
    """Primes of a fresh ciphertext, read from the context's own serialisation: the bindings do not expose them."""
    document = json.loads(openfhe.Serialize(context, openfhe.JSON))
    towers = next(find_members(document, "elp"))["ptr_wrapper"]["data"]["p"]
    return [int(next(find_members(tower, "cm"))["v"]) for tower in towers]


def find_members(document: Any, name: str) -> Iterator[Any]:
    """Values of all members called `name`, depth first."""
    if isinstance(document, dict):
        if name in document:
            yield document[name]
        document = list(document.values())
    if isinstance(document, list):
        for value in document:
            yield from find_members(value, name)
