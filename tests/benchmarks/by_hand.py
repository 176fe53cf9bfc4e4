"""The FCNN 784 → 64 → n written by hand on each library, as an expert would without a planner: the yardstick.

Thirteen ciphertexts hold 64 pixels each, every pixel next to 64 copies of the others: a product each, six rotations,
a square, a product, six rotations; one prime for each product. Ring dimension 8192.
"""

from __future__ import annotations

import numpy as np
import openfhe
import tenseal.sealapi as seal

SLOTS, WIDTH, TILES = 4096, 64, 13
FOLDS_1 = [64 << k for k in range(6)]
FOLDS_2 = [1 << k for k in range(6)]


def tiles(image: np.ndarray) -> list[np.ndarray]:
    padded = np.pad(image, (0, TILES * WIDTH - len(image)))
    return [np.repeat(padded[64 * i : 64 * i + 64], WIDTH) for i in range(TILES)]


def weights(first: np.ndarray, second: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """(64, 784) and (n, 64) → slot vectors: pixel p of a tile at 64·p + neuron; output row k in block k."""
    padded = np.pad(first, ((0, 0), (0, TILES * WIDTH - first.shape[1])))
    last = np.zeros(SLOTS)
    last[: second.size] = second.reshape(-1)
    return [padded[:, 64 * i : 64 * i + 64].T.reshape(-1) for i in range(TILES)], last


class SealByHand:
    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        p = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        p.set_poly_modulus_degree(2 * SLOTS)
        p.set_coeff_modulus(seal.CoeffModulus.Create(2 * SLOTS, [60, 26, 26, 60]))
        c = self.context = seal.SEALContext(p, True, seal.SEC_LEVEL_TYPE.TC128)
        generator = seal.KeyGenerator(c)
        self.relin, self.galois = seal.RelinKeys(), seal.GaloisKeys()
        generator.create_relin_keys(self.relin)
        generator.create_galois_keys([pow(3, k, 4 * SLOTS) for k in FOLDS_1 + FOLDS_2], self.galois)
        self.encoder, self.evaluator = seal.CKKSEncoder(c), seal.Evaluator(c)
        self.encryptor = seal.Encryptor(c, generator.secret_key())
        self.decryptor = seal.Decryptor(c, generator.secret_key())
        ids = [c.first_parms_id()]
        ids.append(c.first_context_data().next_context_data().parms_id())
        ids.append(c.first_context_data().next_context_data().next_context_data().parms_id())
        first_vectors, second_vector = weights(first, second)
        self.first = [self._encode(v, ids[0]) for v in first_vectors]
        self.second = self._encode(second_vector, ids[2])

    def _encode(self, vector: np.ndarray, parms: list[int]) -> seal.Plaintext:
        plain = seal.Plaintext()
        self.encoder.encode(vector.tolist(), parms, 2.0**26, plain)
        return plain

    def encrypt(self, image: np.ndarray) -> list[seal.Ciphertext]:
        result = []
        for vector in tiles(image):
            cipher = seal.Ciphertext()
            self.encryptor.encrypt_symmetric(self._encode(vector, self.context.first_parms_id()), cipher)
            result.append(cipher)
        return result

    def infer(self, ciphers: list[seal.Ciphertext]) -> seal.Ciphertext:
        e, total, product = self.evaluator, seal.Ciphertext(), seal.Ciphertext()
        e.multiply_plain(ciphers[0], self.first[0], total)
        for cipher, plain in zip(ciphers[1:], self.first[1:]):
            e.multiply_plain(cipher, plain, product)
            e.add_inplace(total, product)
        e.rescale_to_next_inplace(total)
        self._fold(total, FOLDS_1)
        e.square_inplace(total)
        e.relinearize_inplace(total, self.relin)
        e.rescale_to_next_inplace(total)
        e.multiply_plain_inplace(total, self.second)
        self._fold(total, FOLDS_2)
        return total

    def _fold(self, total: seal.Ciphertext, steps: list[int]) -> None:
        rotated = seal.Ciphertext()
        for step in steps:
            self.evaluator.rotate_vector(total, step, self.galois, rotated)
            self.evaluator.add_inplace(total, rotated)

    def decrypt(self, cipher: seal.Ciphertext, outputs: int) -> np.ndarray:
        plain = seal.Plaintext()
        self.decryptor.decrypt(cipher, plain)
        return np.array(self.encoder.decode_double(plain))[: WIDTH * outputs : WIDTH]


class OpenfheByHand:
    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        p = openfhe.CCParamsCKKSRNS()
        p.SetRingDim(2 * SLOTS)
        p.SetMultiplicativeDepth(3)
        p.SetFirstModSize(36)
        p.SetScalingModSize(26)
        p.SetNumLargeDigits(4)
        p.SetScalingTechnique(openfhe.ScalingTechnique.FIXEDMANUAL)
        p.SetSecurityLevel(openfhe.SecurityLevel.HEStd_128_classic)
        c = self.context = openfhe.GenCryptoContext(p)
        for feature in ("PKE", "KEYSWITCH", "LEVELEDSHE"):
            c.Enable(getattr(openfhe.PKESchemeFeature, feature))
        self.keys = c.KeyGen()
        c.EvalMultKeyGen(self.keys.secretKey)
        c.EvalRotateKeyGen(self.keys.secretKey, FOLDS_1 + FOLDS_2)
        first_vectors, second_vector = weights(first, second)
        self.first = [c.MakeCKKSPackedPlaintext(v) for v in first_vectors]
        self.second = c.MakeCKKSPackedPlaintext(second_vector, 1, 2)

    def encrypt(self, image: np.ndarray) -> list[openfhe.Ciphertext]:
        c = self.context
        return [c.Encrypt(self.keys.publicKey, c.MakeCKKSPackedPlaintext(v)) for v in tiles(image)]

    def infer(self, ciphers: list[openfhe.Ciphertext]) -> openfhe.Ciphertext:
        c = self.context
        total = c.EvalMult(ciphers[0], self.first[0])
        for cipher, plain in zip(ciphers[1:], self.first[1:]):
            c.EvalAddInPlace(total, c.EvalMult(cipher, plain))
        total = c.Rescale(total)
        for step in FOLDS_1:
            total = c.EvalAdd(total, c.EvalRotate(total, step))
        total = c.EvalMult(c.Rescale(c.EvalSquare(total)), self.second)
        for step in FOLDS_2:
            total = c.EvalAdd(total, c.EvalRotate(total, step))
        return total

    def decrypt(self, cipher: openfhe.Ciphertext, outputs: int) -> np.ndarray:
        values = self.context.Decrypt(self.keys.secretKey, cipher).GetCKKSPackedValueArray()
        return np.asarray(values).real[: WIDTH * outputs : WIDTH]
