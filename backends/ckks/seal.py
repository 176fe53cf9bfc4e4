"""Microsoft SEAL through `tenseal.sealapi`, as a `Library` of the packing engine.

SEAL has no hoisting and runs each operation on one core; the bindings hold the interpreter lock. Fresh ciphertexts are
symmetric and seeded: their second polynomial travels as a seed (SEAL manual, "Serializable").
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from backends import frames
from backends.api import BackendError, MessageError, refusing
from backends.slots.library import Cipher, KeyRequest, Parameters, Plain

LARGEST_RING_DIMENSION = 32768  # SEAL's own limit
CONJUGATION = -1  # stands for the Galois element 2N − 1 in lists of rotations


def _context(parameters: Parameters, level: Any = seal.SEC_LEVEL_TYPE.TC128) -> Any:
    bits = [parameters.first_bits] + [parameters.rescale_bits] * parameters.levels + [parameters.special_bits]
    return context_of(parameters.ring_dimension, bits, level)


def context_of(ring_dimension: int, bits: list[int], level: Any = seal.SEC_LEVEL_TYPE.TC128) -> Any:
    """SEAL itself refuses parameters below 128 bits (HomomorphicEncryption.org table) at this security level."""
    values = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    values.set_poly_modulus_degree(ring_dimension)
    values.set_coeff_modulus(seal.CoeffModulus.Create(ring_dimension, bits))
    return seal.SEALContext(values, True, level)


def _levels(context: Any, levels: int) -> list[Any]:
    """parms_id of a ciphertext at level 0, 1, …, levels."""
    data, ids = context.first_context_data(), []
    for _ in range(levels + 1):
        ids.append(data.parms_id())
        data = data.next_context_data()
    return ids


@contextmanager
def _scratch() -> Iterator[str]:
    """SEAL's bindings save to and load from paths only: a file in memory stands in for the buffer."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    handle, path = tempfile.mkstemp(dir=folder)
    os.close(handle)
    try:
        yield path
    finally:
        os.unlink(path)


def _save(value: Any) -> bytes:
    with _scratch() as path:
        value.save(path)
        return Path(path).read_bytes()


def _load(make: Callable[[], Any], context: Any, data: bytes | memoryview) -> Any:
    """SEAL itself checks that the value is one of the context, and each residue. Raises MessageError."""
    if len(data) < 16 or int.from_bytes(data[8:16], "little") != len(data):  # SEAL would allocate what its header says
        raise MessageError("damaged or truncated: not as long as SEAL's header says")
    value = make()
    with _scratch() as path, refusing("SEAL", "read this message", data):
        Path(path).write_bytes(data)
        value.load(context, path)
    return value


@contextmanager
def _scale_of(a: Any, b: Any) -> Iterator[None]:
    """Scales that are equal up to rounding of floats, which SEAL would take for a mistake: b borrows that of a."""
    own, b.scale = b.scale, a.scale
    try:
        yield
    finally:
        b.scale = own


def _load_ciphertext(context: Any, levels: list[Any], data: bytes | memoryview, level: int | None) -> Cipher:
    """level: that it must have; None: any. Raises MessageError."""
    cipher = _load(seal.Ciphertext, context, data)
    if cipher.size() != 2 or not cipher.is_ntt_form():
        raise MessageError(f"a ciphertext of {cipher.size()} polynomials, in a form that none has here")
    if level is not None and cipher.parms_id() != levels[level]:
        raise MessageError(f"a ciphertext of another level than {level}")
    if not (math.isfinite(cipher.scale) and cipher.scale > 0):
        raise MessageError(f"a ciphertext of scale {cipher.scale:g}, which none has here")
    return cipher


def _words(cipher: Cipher) -> np.ndarray:
    """The residues of a ciphertext where they are, (polynomials, primes, N) uint64, for as long as it lives.

    The bindings hand out one residue a call, or a compressed file. Their object holds the address of SEAL's own, which is,
    in 64-bit words: parms_id (4), NTT form, polynomials, N, primes, scale, correction factor, memory pool (2), capacity,
    number and address of the residues. What can be asked for is compared first. Raises BackendError.
    """
    instance = ctypes.c_uint64.from_address(id(cipher) + object.__basicsize__).value
    words = list((ctypes.c_uint64 * 15).from_address(instance))
    polynomials, n, primes = cipher.size(), cipher.poly_modulus_degree(), cipher.coeff_modulus_size()
    count = polynomials * n * primes
    scale = int.from_bytes(struct.pack("=d", cipher.scale), sys.byteorder)
    expected = [*cipher.parms_id(), int(cipher.is_ntt_form()), polynomials, n, primes, scale]
    if [*words[:4], words[4] & 0xFF, *words[5:9]] != expected or words[13] != count or words[12] < count:
        raise BackendError("this TenSEAL holds ciphertexts in another way: install the one of requirements.lock")
    return np.ctypeslib.as_array((ctypes.c_uint64 * count).from_address(words[14])).reshape(polynomials, primes, n)


class SealClient:
    def __init__(self, parameters: Parameters) -> None:
        self._context = _context(parameters)
        self._ring_dimension = parameters.ring_dimension
        self._encoder = seal.CKKSEncoder(self._context)
        self._levels = _levels(self._context, parameters.levels)

    def keygen(self, request: KeyRequest) -> list[bytes]:
        generator = seal.KeyGenerator(self._context)
        secret = generator.secret_key()
        self._encryptor, self._generator = seal.Encryptor(self._context, secret), generator
        self._decryptor = seal.Decryptor(self._context, secret)
        two_n = 2 * self._ring_dimension
        elements = [pow(3, step, two_n) for step in request.rotations] + [two_n - 1] * request.conjugation
        relin = _save(generator.create_relin_keys()) if request.relinearisation else b""
        galois = _save(generator.create_galois_keys(elements)) if elements else b""
        return [relin, galois]

    def public_key(self) -> bytes:
        key = seal.PublicKey()
        self._generator.create_public_key(key)
        return _save(key)

    def encrypt(self, vector: np.ndarray, scale: float) -> Any:
        plain = seal.Plaintext()
        self._encoder.encode(vector.tolist(), scale, plain)
        return self._encryptor.encrypt_symmetric(plain)

    def serialise(self, fresh: Any) -> bytes:
        return _save(fresh)

    def deserialise(self, data: bytes | memoryview, level: int | None = None) -> Cipher:
        return _load_ciphertext(self._context, self._levels, data, level)

    def decrypt(self, cipher: Cipher, scale: float) -> np.ndarray:
        plain = seal.Plaintext()
        with refusing("SEAL", "decrypt this response"):
            self._decryptor.decrypt(cipher, plain)
            return np.array(self._encoder.decode_complex(plain))


class SealOwner:
    def __init__(self, parameters: Parameters, public_key: bytes | memoryview) -> None:
        self._context = _context(parameters)
        self._encoder = seal.CKKSEncoder(self._context)
        self._encryptor = seal.Encryptor(self._context, _load(seal.PublicKey, self._context, public_key))
        self._levels = _levels(self._context, parameters.levels)

    def encrypt_weight(self, vector: np.ndarray, scale: float, level: int) -> Cipher:
        plain, cipher = seal.Plaintext(), seal.Ciphertext()
        self._encoder.encode(vector.tolist(), self._levels[level], scale, plain)
        self._encryptor.encrypt(plain, cipher)
        return cipher

    def serialise(self, cipher: Cipher) -> bytes:
        return _save(cipher)


class SealEvaluator:
    def __init__(self, parameters: Parameters) -> None:
        self._context = _context(parameters)
        self._encoder = seal.CKKSEncoder(self._context)
        self._evaluator = seal.Evaluator(self._context)
        self._levels = _levels(self._context, parameters.levels)
        self._scratch_plain = seal.Plaintext()
        self._forms: dict[tuple[int, int], Cipher] = {}

    def load_keys(self, parts: Sequence[bytes | memoryview]) -> None:
        relin, galois = frames.exactly(2, parts, "parts of the evaluation keys")
        self._relin = _load(seal.RelinKeys, self._context, relin) if relin else None
        self._galois = _load(seal.GaloisKeys, self._context, galois) if galois else None

    def deserialise(self, data: bytes | memoryview, level: int | None = None) -> Cipher:
        return _load_ciphertext(self._context, self._levels, data, level)

    def serialise(self, cipher: Cipher) -> bytes:
        return _save(cipher)

    def read(self, data: bytes | memoryview, level: int) -> np.ndarray:
        return self.residues(self.deserialise(data, level))

    def residues(self, cipher: Cipher) -> np.ndarray:
        return _words(cipher).copy()

    def of_residues(self, residues: np.ndarray, scale: float) -> Cipher:
        polynomials, primes, _ = residues.shape
        cipher = self._new(self._evaluator.negate, self._form(polynomials, len(self._levels) - primes))
        _words(cipher)[:] = residues
        cipher.scale = scale
        return cipher

    def _form(self, polynomials: int, level: int) -> Cipher:
        """A ciphertext of this shape, under a key that is thrown away at once."""
        if (polynomials, level) not in self._forms:
            cipher, secret = seal.Ciphertext(), seal.KeyGenerator(self._context).secret_key()
            seal.Encryptor(self._context, secret).encrypt_zero_symmetric(self._levels[level], cipher)
            cipher.scale = 1.0
            self._forms[polynomials, level] = cipher if polynomials == 2 else self.square(cipher)
        return self._forms[polynomials, level]

    def encode(self, vector: np.ndarray, scale: float, level: int) -> Plain:
        plain = seal.Plaintext()
        self._encoder.encode(vector.tolist(), self._levels[level], scale, plain)
        if plain.is_zero():  # SEAL refuses to multiply by zero; the constant 1 / scale is below the rounding of others
            self._encoder.encode(1.0 / scale, self._levels[level], scale, plain)
        return plain

    def add(self, a: Cipher, b: Cipher) -> Cipher:
        with _scale_of(a, b):
            return self._new(self._evaluator.add, a, b)

    def sub(self, a: Cipher, b: Cipher) -> Cipher:
        with _scale_of(a, b):
            return self._new(self._evaluator.sub, a, b)

    def add_plain(self, a: Cipher, p: Plain) -> Cipher:
        with _scale_of(a, p):
            return self._new(self._evaluator.add_plain, a, p)

    def dot(self, ciphers: Sequence[Cipher], plains: Sequence[Plain]) -> Cipher:
        evaluator, product = self._evaluator, seal.Ciphertext()
        total = self._new(evaluator.multiply_plain, ciphers[0], plains[0])
        for cipher, plain in zip(ciphers[1:], plains[1:]):
            evaluator.multiply_plain(cipher, plain, product)
            evaluator.add_inplace(total, product)
        return total

    def dot_ciphers(self, ciphers: Sequence[Cipher], weights: Sequence[Cipher]) -> Cipher:
        evaluator, product = self._evaluator, seal.Ciphertext()
        total = self._new(evaluator.multiply, ciphers[0], weights[0])
        for cipher, weight in zip(ciphers[1:], weights[1:]):
            evaluator.multiply(cipher, weight, product)
            evaluator.add_inplace(total, product)
        return total

    def weighted_sum(self, ciphers: Sequence[Cipher], weights: Sequence[float], scale: float, level: int) -> Cipher:
        evaluator, encode, plain, parms = (
            self._evaluator,
            self._encoder.encode,
            self._scratch_plain,
            self._levels[level],
        )
        total, product = None, seal.Ciphertext()
        for cipher, weight in zip(ciphers, weights):
            if round(abs(weight) * scale) == 0:
                continue  # SEAL refuses to multiply by zero; the term adds less than the rounding of any other weight
            encode(float(weight), parms, scale, plain)
            if total is None:
                total = self._new(evaluator.multiply_plain, cipher, plain)
            else:
                evaluator.multiply_plain(cipher, plain, product)
                evaluator.add_inplace(total, product)
        if total is None:  # a unit without weights: as in `encode`
            encode(1.0 / scale, parms, scale, plain)
            total = self._new(evaluator.multiply_plain, ciphers[0], plain)
        return total

    def square(self, a: Cipher) -> Cipher:
        return self._new(self._evaluator.square, a)

    def relinearise(self, a: Cipher) -> Cipher:
        return self._new(self._evaluator.relinearize, a, self._relin)

    def rescale(self, a: Cipher) -> Cipher:
        return self._new(self._evaluator.rescale_to_next, a)

    def mod_switch(self, a: Cipher, primes: int) -> Cipher:
        for _ in range(primes):
            a = self._new(self._evaluator.mod_switch_to_next, a)
        return a

    def conjugate(self, a: Cipher) -> Cipher:
        return self._new(self._evaluator.complex_conjugate, a, self._galois)

    def rotate_many(self, a: Cipher, steps: Sequence[int]) -> list[Cipher]:
        return [self._rotate(a, step) for step in steps]

    def rotate_sum(self, pairs: Sequence[tuple[Cipher, int]]) -> Cipher:
        first, *others = [self._rotate(cipher, step) for cipher, step in pairs]
        if not others:
            return first
        total = self.add(first, others[0])
        for other in others[1:]:
            self._evaluator.add_inplace(total, other)
        return total

    def _rotate(self, a: Cipher, step: int) -> Cipher:
        return self._new(self._evaluator.rotate_vector, a, step, self._galois) if step else a

    @staticmethod
    def _new(operation: Callable[..., None], *operands: Any) -> Cipher:
        result = seal.Ciphertext()
        operation(*operands, result)
        return result


class Seal:
    """`backends.slots.library.Library` over SEAL."""

    name = "ckks"
    first_is_largest = False
    switching_bias = 0.0

    def admissible(self, parameters: Parameters) -> bool:
        bits = max(parameters.first_bits, parameters.rescale_bits, parameters.special_bits)
        if bits > 60 or parameters.digits or parameters.ring_dimension > LARGEST_RING_DIMENSION:
            return False
        try:
            return _context(parameters).parameters_set()
        except (RuntimeError, ValueError):  # not enough primes of this size
            return False

    def public_stddev(self, ring_dimension: int, level: int) -> float:
        """SEAL encrypts under a modulus that is one prime longer and divides the noise away: its rounding remains."""
        return math.sqrt((1 + 2 * ring_dimension / 3) / 12)

    def client(self, parameters: Parameters) -> SealClient:
        return SealClient(parameters)

    def owner(self, parameters: Parameters, public_key: bytes | memoryview) -> SealOwner:
        return SealOwner(parameters, public_key)

    def evaluator(self, parameters: Parameters) -> SealEvaluator:
        return SealEvaluator(parameters)

    def moduli(self, parameters: Parameters) -> list[int]:
        return [m.value() for m in self._key_moduli(parameters)[:-1]]

    def describe(self, parameters: Parameters) -> dict[str, Any]:
        return describe(_context(parameters), self._key_moduli(parameters))

    @staticmethod
    def _key_moduli(parameters: Parameters) -> list[Any]:
        return list(_context(parameters).key_context_data().parms().coeff_modulus())


def describe(context: Any, moduli: list[Any]) -> dict[str, Any]:
    """`Library.describe` for any CKKS context of SEAL with these key moduli; its error is measured, see `error_stddev`."""
    return {
        "ring_dimension": context.key_context_data().parms().poly_modulus_degree(),
        "log2_qp": sum(math.log2(m.value()) for m in moduli),
        "moduli_bits": [m.bit_count() for m in moduli[:-1]],
        "special_moduli_bits": [moduli[-1].bit_count()],
        "secret": "uniform ternary",  # SEAL has no other
        "error_stddev": round(error_stddev(context), 2),
    }


def error_stddev(context: Any) -> float:
    """Standard deviation of the coefficients of one fresh error polynomial, within about a hundredth.

    SEAL draws it from a centred binomial or a rounded Gaussian distribution, as it was built, and does not tell: so zero is
    encrypted under a key of no further use. At scale 1 the slots hold the canonical embedding of the error e, and by
    Parseval their mean square is N · E[e²].
    """
    secret, encoder, zero = seal.KeyGenerator(context).secret_key(), seal.CKKSEncoder(context), seal.Plaintext()
    encoder.encode([0.0] * encoder.slot_count(), 1.0, zero)
    cipher = _load(seal.Ciphertext, context, _save(seal.Encryptor(context, secret).encrypt_symmetric(zero)))
    noise = seal.Plaintext()
    seal.Decryptor(context, secret).decrypt(cipher, noise)
    slots = np.asarray(encoder.decode_complex(noise))
    return float(np.sqrt(np.mean(np.abs(slots) ** 2) / (2 * len(slots))))
