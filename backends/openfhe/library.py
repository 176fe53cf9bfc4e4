"""OpenFHE as a `Library` of the packing engine.

The plan tracks scales itself, so OpenFHE runs in FIXEDMANUAL mode with its own counter of scales held at one; a vector
at scale S is encoded as its values times S / 2^(scaling modulus size). Rotations of one ciphertext share the digit
decomposition (hoisting, Halevi and Shoup 2018), and a sum of rotations shares the division by the special modulus
(double hoisting, Bossuat et al., EUROCRYPT 2021, section 4). OpenMP uses the cores that the party was given.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import openfhe

from backends import frames
from backends.api import refusing
from backends.openfhe.ciphertexts import Ciphertexts, find_members, moduli
from backends.slots.library import BOOTSTRAP_LEVELS, Cipher, KeyRequest, Parameters, Plain

SECRETS = ("Gaussian", "uniform ternary", "sparse ternary", "sparse encapsulated")  # OpenFHE's SecretKeyDist, in order
ERROR_STDDEV = 3.19  # OpenFHE's default, read back in `describe`
LEVEL_BUDGET = [1, 1]  # of a bootstrapping's two linear transforms
BABY_STEPS = [4, 4]  # of them: few keys, which are most of the memory
BOOTSTRAPPING = (openfhe.PKESchemeFeature.ADVANCEDSHE, openfhe.PKESchemeFeature.FHE)
FEATURES = (openfhe.PKESchemeFeature.PKE, openfhe.PKESchemeFeature.KEYSWITCH, openfhe.PKESchemeFeature.LEVELEDSHE)


@functools.lru_cache(maxsize=4)
def _context(parameters: Parameters) -> Any:
    """Raises RuntimeError for parameters below 128 bits: OpenFHE checks them itself at HEStd_128_classic."""
    p = openfhe.CCParamsCKKSRNS()
    p.SetSecurityLevel(openfhe.SecurityLevel.HEStd_128_classic)
    distributions = openfhe.SecretKeyDist
    bootstraps = parameters.bootstrap_slots > 0
    p.SetSecretKeyDist(distributions.SPARSE_ENCAPSULATED if bootstraps else distributions.UNIFORM_TERNARY)
    p.SetRingDim(parameters.ring_dimension)
    p.SetBatchSize(parameters.slots)
    p.SetMultiplicativeDepth(max(1, parameters.levels))
    p.SetFirstModSize(parameters.first_bits)
    p.SetScalingModSize(_scaling_bits(parameters))
    p.SetScalingTechnique(openfhe.ScalingTechnique.FIXEDMANUAL)
    p.SetKeySwitchTechnique(openfhe.KeySwitchTechnique.HYBRID)
    p.SetNumLargeDigits(_digits(parameters))
    p.SetCKKSDataType(openfhe.CKKSDataType.COMPLEX)
    context = openfhe.GenCryptoContext(p)
    for feature in FEATURES + BOOTSTRAPPING * bootstraps:
        context.Enable(feature)
    return context


def _scaling_bits(parameters: Parameters) -> int:
    return parameters.rescale_bits or parameters.first_bits


def _digits(parameters: Parameters) -> int:
    """One prime a digit, unless asked for otherwise, so that a single special prime suffices."""
    return parameters.digits or max(1, parameters.levels) + 1


class OpenfheClient:
    def __init__(self, parameters: Parameters) -> None:
        self._context = _context(parameters)
        self._parameters = parameters
        self._unit = 2.0 ** -_scaling_bits(parameters)
        self._ciphertexts = Ciphertexts(self._context)

    def keygen(self, request: KeyRequest) -> list[bytes]:
        context = self._context
        pair = context.KeyGen()
        self._secret, self._public, tag = pair.secretKey, pair.publicKey, pair.secretKey.GetKeyTag()
        self._ciphertexts.tag = tag
        parts = [tag.encode(), b"", b"", b""]
        if request.relinearisation:
            context.EvalMultKeyGen(self._secret)
            parts[1] = openfhe.SerializeEvalMultKeyString(openfhe.BINARY, tag)
        if slots := self._parameters.bootstrap_slots:
            context.EvalBootstrapSetup(LEVEL_BUDGET, BABY_STEPS, slots, 0, False)
            context.EvalBootstrapKeyGen(self._secret, slots)
        if request.rotations:
            context.EvalRotateKeyGen(self._secret, list(request.rotations))
            parts[2] = openfhe.SerializeEvalAutomorphismKeyString(openfhe.BINARY, tag)
        if request.conjugation and not self._parameters.bootstrap_slots:  # which needs that key itself
            keys = context.EvalAutomorphismKeyGen(self._secret, [2 * self._parameters.ring_dimension - 1])
            parts[3] = openfhe.Serialize(keys, openfhe.BINARY)
        return parts

    def public_key(self) -> bytes:
        return openfhe.Serialize(self._public, openfhe.BINARY)

    def encrypt(self, vector: np.ndarray, scale: float) -> Cipher:
        plain = self._context.MakeCKKSPackedPlaintext(vector * (scale * self._unit), 1, 0)
        return self._context.Encrypt(self._secret, plain)

    def serialise(self, fresh: Cipher) -> bytes:
        return self._ciphertexts.serialise(fresh)

    def deserialise(self, data: bytes | memoryview, level: int | None = None) -> Cipher:
        return self._ciphertexts.deserialise(data, level)

    def decrypt(self, cipher: Cipher, scale: float) -> np.ndarray:
        cipher.SetNoiseScaleDeg(1)
        with refusing("OpenFHE", "decrypt this response"):
            values = self._context.Decrypt(self._secret, cipher).GetCKKSPackedValueArray()
        return np.asarray(values) / (scale * self._unit)


class OpenfheOwner:
    def __init__(self, parameters: Parameters, public_key: bytes | memoryview) -> None:
        self._context = _context(parameters)
        self._unit, self._moduli = 2.0 ** -_scaling_bits(parameters), moduli(self._context)
        self._ciphertexts = Ciphertexts(self._context)
        with refusing("OpenFHE", "read this public key", public_key):
            self._public = openfhe.DeserializePublicKeyString(bytes(public_key), openfhe.BINARY)

    def encrypt_weight(self, vector: np.ndarray, scale: float, level: int) -> Cipher:
        """Below the top level: encrypted a level higher, so that rescaling divides the noise."""
        if level == 0:
            return self._encrypt(vector, scale, 0)
        cipher = self._encrypt(vector, scale * self._moduli[-level], level - 1)
        cipher.SetNoiseScaleDeg(2)
        return _unscaled(self._context.Rescale(cipher))

    def _encrypt(self, vector: np.ndarray, scale: float, level: int) -> Cipher:
        return self._context.Encrypt(self._public, _encode(self._context, vector, scale, self._unit, level))

    def serialise(self, cipher: Cipher) -> bytes:
        return self._ciphertexts.serialise(cipher)


def _encode(context: Any, vector: np.ndarray, scale: float, unit: float, level: int) -> Plain:
    try:
        return context.MakeCKKSPackedPlaintext(vector * (scale * unit), 1, level)
    except RuntimeError:  # OpenFHE refuses what rounds to zero; the constant 1 / scale is below the rounding of others
        return context.MakeCKKSPackedPlaintext(np.full(len(vector), unit), 1, level)


class OpenfheEvaluator:
    def __init__(self, parameters: Parameters) -> None:
        self._context = _context(parameters)
        self._parameters = parameters
        self._unit = 2.0 ** -_scaling_bits(parameters)
        self._ciphertexts = Ciphertexts(self._context)

        if parameters.bootstrap_slots:
            self._context.EvalBootstrapSetup(LEVEL_BUDGET, BABY_STEPS, parameters.bootstrap_slots)

    def load_keys(self, parts: Sequence[bytes | memoryview]) -> None:
        tag, relin, rotations, conjugation = map(bytes, frames.exactly(4, parts, "parts of the evaluation keys"))
        with refusing("OpenFHE", "read these keys", rotations or relin or conjugation):
            self._ciphertexts.tag = name = tag.decode()
            # OpenFHE keeps keys in tables of the process, and refuses those that a client in it has put there already
            if relin and name not in self._context.GetAllEvalMultKeys():
                openfhe.DeserializeEvalMultKeyString(relin, openfhe.BINARY)
            if rotations and name not in self._context.GetAllEvalAutomorphismKeys():
                openfhe.DeserializeEvalAutomorphismKeyString(rotations, openfhe.BINARY)
            if self._parameters.bootstrap_slots:
                self._conjugation = self._context.GetAllEvalAutomorphismKeys()[name]
            elif conjugation:
                self._conjugation = openfhe.DeserializeEvalKeyMapString(conjugation, openfhe.BINARY)

    def deserialise(self, data: bytes | memoryview, level: int | None = None) -> Cipher:
        return self._ciphertexts.deserialise(data, level)

    def serialise(self, cipher: Cipher) -> bytes:
        return self._ciphertexts.serialise(cipher)

    def read(self, data: bytes | memoryview, level: int) -> np.ndarray:
        return self._ciphertexts.read(data, level)

    def residues(self, cipher: Cipher) -> np.ndarray:
        return self._ciphertexts.residues(cipher)

    def of_residues(self, residues: np.ndarray, scale: float) -> Cipher:
        return self._ciphertexts.of_residues(residues)

    def encode(self, vector: np.ndarray, scale: float, level: int) -> Plain:
        return _encode(self._context, np.asarray(vector), scale, self._unit, level)

    def add(self, a: Cipher, b: Cipher) -> Cipher:
        return self._context.EvalAdd(a, b)

    def sub(self, a: Cipher, b: Cipher) -> Cipher:
        return self._context.EvalSub(a, b)

    def add_plain(self, a: Cipher, p: Plain) -> Cipher:
        return self._context.EvalAdd(a, p)

    def dot(self, ciphers: Sequence[Cipher], plains: Sequence[Plain]) -> Cipher:
        context = self._context
        total = context.EvalMult(ciphers[0], plains[0])
        for cipher, plain in zip(ciphers[1:], plains[1:]):
            context.EvalAddInPlace(total, context.EvalMult(cipher, plain))
        return _unscaled(total)

    def dot_ciphers(self, ciphers: Sequence[Cipher], weights: Sequence[Cipher]) -> Cipher:
        context = self._context
        total = context.EvalMultNoRelin(ciphers[0], weights[0])
        for cipher, weight in zip(ciphers[1:], weights[1:]):
            context.EvalAddInPlace(total, context.EvalMultNoRelin(cipher, weight))
        return _unscaled(total)

    def weighted_sum(self, ciphers: Sequence[Cipher], weights: Sequence[float], scale: float, level: int) -> Cipher:
        # OpenFHE turns a factor into an integer by cutting off the fraction of itself plus one half, also below zero,
        # where that is one too many; in sums over hundreds of inputs this bias would be the largest error of all
        integers = np.round(np.asarray(weights) * scale)
        context, factors = self._context, np.where(integers < 0, integers - 0.75, integers) * self._unit
        first, *others = np.flatnonzero(integers).tolist() or [0]
        total = context.EvalMult(ciphers[first], float(factors[first]))
        for index in others:
            context.EvalAddInPlace(total, context.EvalMult(ciphers[index], float(factors[index])))
        return _unscaled(total)

    def square(self, a: Cipher) -> Cipher:
        return _unscaled(self._context.EvalMultNoRelin(a, a))

    def relinearise(self, a: Cipher) -> Cipher:
        return self._context.Relinearize(a)

    def rescale(self, a: Cipher) -> Cipher:
        a.SetNoiseScaleDeg(2)  # OpenFHE rescales only what it believes to be a product
        result = self._context.Rescale(a)
        a.SetNoiseScaleDeg(1)
        return _unscaled(result)

    def mod_switch(self, a: Cipher, primes: int) -> Cipher:
        return _unscaled(self._context.LevelReduce(a, None, primes))

    def conjugate(self, a: Cipher) -> Cipher:
        return self._context.EvalAutomorphism(a, 2 * self._parameters.ring_dimension - 1, self._conjugation)

    def bootstrap(self, a: Cipher) -> Cipher:
        narrow = a.Clone()
        narrow.SetSlots(self._parameters.bootstrap_slots)
        narrow.SetScalingFactor(1 / self._unit)
        result = self._context.EvalBootstrap(narrow)
        if result.GetNoiseScaleDeg() > 1:
            result = self._context.Rescale(result)
        result.SetSlots(self._parameters.slots)
        return self.mod_switch(result, BOOTSTRAP_LEVELS - result.GetLevel())

    def rotate_many(self, a: Cipher, steps: Sequence[int]) -> list[Cipher]:
        context, order = self._context, 2 * self._parameters.ring_dimension
        if sum(step != 0 for step in steps) < 2:
            return [context.EvalRotate(a, step) if step else a for step in steps]
        digits = context.EvalFastRotationPrecompute(a)
        return [context.EvalFastRotation(a, step, order, digits) if step else a for step in steps]

    def rotate_sum(self, pairs: Sequence[tuple[Cipher, int]]) -> Cipher:
        context = self._context
        moved = [(cipher, step) for cipher, step in pairs if step]
        total = None
        if len(moved) == 1:
            total = context.EvalRotate(*moved[0])
        elif moved:
            extended, digits_of = None, dict[int, Any]()
            for cipher, step in moved:
                digits = digits_of.get(id(cipher)) or digits_of.setdefault(
                    id(cipher), context.EvalFastRotationPrecompute(cipher)
                )
                rotated = context.EvalFastRotationExt(cipher, step, digits, True)
                if extended is None:
                    extended = rotated
                else:
                    context.EvalAddInPlace(extended, rotated)
            total = context.KeySwitchDown(extended)
        for cipher, step in pairs:
            if step == 0:
                total = cipher if total is None else context.EvalAdd(total, cipher)
        return total


def _unscaled(cipher: Cipher) -> Cipher:
    cipher.SetNoiseScaleDeg(1)
    return cipher


class Openfhe:
    """`backends.slots.library.Library` over OpenFHE."""

    name = "openfhe"
    first_is_largest = True
    switching_bias = 0.5

    def admissible(self, parameters: Parameters) -> bool:
        if not 20 <= _scaling_bits(parameters) <= parameters.first_bits <= 60 or _scaling_bits(parameters) > 59:
            return False
        try:
            _context(parameters)
        except RuntimeError:  # below 128 bits, or no such primes
            return False
        return True

    def public_stddev(self, ring_dimension: int, level: int) -> float:
        """v·e + e₀ + e₁·s for ternary v and s; below the top level divided away, but for the rounding."""
        rounding = math.sqrt((1 + 2 * ring_dimension / 3) / 12)
        return rounding if level else ERROR_STDDEV * math.sqrt(1 + 4 * ring_dimension / 3)

    def client(self, parameters: Parameters) -> OpenfheClient:
        return OpenfheClient(parameters)

    def owner(self, parameters: Parameters, public_key: bytes | memoryview) -> OpenfheOwner:
        return OpenfheOwner(parameters, public_key)

    def evaluator(self, parameters: Parameters) -> OpenfheEvaluator:
        return OpenfheEvaluator(parameters)

    def moduli(self, parameters: Parameters) -> list[int]:
        return moduli(_context(parameters))

    def describe(self, parameters: Parameters) -> dict[str, Any]:
        return describe(_context(parameters))


def describe(context: Any) -> dict[str, Any]:
    """`Library.describe` for any CKKS context; the special primes are counted in a switching key made for it."""
    document, primes = json.loads(openfhe.Serialize(context, openfhe.JSON)), moduli(context)
    secret = context.KeyGen().secretKey
    context.EvalMultKeyGen(secret)
    key = openfhe.SerializeEvalMultKeyString(openfhe.BINARY, secret.GetKeyTag())
    # a switching key holds two polynomials a digit over all primes, special ones included
    digits = next(find_members(document, "dnum"))
    towers = round(len(key) / (2 * digits * 8 * context.GetRingDimension()))
    special = [next(find_members(document, "ab"))] * (towers - len(primes))
    distribution = SECRETS[next(find_members(document, "mo"))]
    return {
        "ring_dimension": context.GetRingDimension(),
        "log2_qp": sum(map(math.log2, primes)) + sum(special),
        "moduli_bits": [prime.bit_length() for prime in primes],
        "special_moduli_bits": special,
        "secret": distribution,
        "error_stddev": round(next(find_members(document, "dp")), 4),  # a 32-bit float
    } | ({"secret_weight": _weight(secret, primes[0])} if "sparse" in distribution else {})


def _weight(secret: Any, prime: int) -> int:
    """How many coefficients of a ternary secret are not zero: the trace of s(X)·s(1/X) is N times their sum of squares.

    OpenFHE keeps s as its values at the odd powers of a root ψ, in the order of reversed bits: so that at ψ^−k stands as far
    from the end as that at ψ^k from the beginning.
    """
    polynomial = next(find_members(json.loads(openfhe.Serialize(secret, openfhe.JSON)), "s"))
    tower = next(find_members(polynomial, "v"))[0]
    values = [int(v["v"]) if isinstance(v, dict) else int(v) for v in tower["v"]["ptr_wrapper"]["data"]["v"]]
    trace = sum(a * b for a, b in zip(values, reversed(values)))
    return trace * pow(len(values), -1, prime) % prime
