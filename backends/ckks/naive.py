"""TenSEAL as its tutorials use it: `CKKSVector.mm` and `square`, public-key encryption, all power-of-two rotations."""

from __future__ import annotations

import io
import json
import math
import secrets

import numpy as np
import tenseal as ts

from backends import frames, security
from backends.api import BackendError, Job, MessageError, Prepared, refusing
from backends.ckks.seal import context_of, describe
from backends.slots.blocks import Affine, from_network

SCALE_BITS = 37
OUTER_BITS = 50
LARGEST = 32768  # ring dimension


def _bits(layers: int) -> list[int]:
    """One prime for each of the products, as TenSEAL rescales after each by itself.

    TenSEAL takes every rescaling for a division by exactly 2^SCALE_BITS; with the 26 bits of its tutorials the primes
    are so far from that power of two that logits err by tenths.
    """
    return [OUTER_BITS] + [SCALE_BITS] * (2 * layers - 1) + [OUTER_BITS]


def _ring_dimension(bits: list[int]) -> int:
    """Raises BackendError."""
    fitting = (n for n, limit in security.STANDARD_2018[128].items() if 8192 <= n <= LARGEST and sum(bits) <= limit)
    if (ring_dimension := next(fitting, None)) is None:
        raise BackendError(
            f"{len(bits)} primes of {sum(bits)} bits need a ring dimension above {LARGEST}, which SEAL does not have at 128 "
            "bits of security; use a network with fewer layers, or the default variant, which needs fewer primes"
        )
    return ring_dimension


def _context(bits: list[int]) -> ts.Context:
    return ts.context(ts.SCHEME_TYPE.CKKS, _ring_dimension(bits), coeff_mod_bit_sizes=bits)


def _with_bias(affine: Affine) -> np.ndarray:
    """(inputs + 1, outputs + 1): the bias as one more input that is always 1, and stays 1 for the next layer.

    Adding it as a vector would leave the slots behind the outputs without it, and the next `mm` reads those too.
    """
    outputs, inputs = affine.weights[0].shape
    matrix = np.zeros((inputs + 1, outputs + 1))
    matrix[:inputs, :outputs] = affine.weights[0].toarray().T
    matrix[inputs] = [*affine.bias, 1.0]
    return matrix


class NaiveOwner:
    def prepare(self, job: Job) -> Prepared:
        if job.scenario != "single-stream":
            raise BackendError("ckks:naive answers one image a request; use --scenario single-stream")
        if job.model_privacy != "plain":
            raise BackendError("ckks:naive computes on a plain model; use --model-privacy plain")
        blocks = from_network(job.network, job.calibration)
        affines = blocks.chain()
        bits = _bits(len(affines))
        ring_dimension = _ring_dimension(bits)
        built = _context(bits).seal_context().data.key_context_data().parms().coeff_modulus()
        description = describe(context_of(ring_dimension, bits), list(built))
        security_entry = security.ckks(description)
        buffer = io.BytesIO()
        matrices = [_with_bias(affine) for affine in affines]
        matrices[-1] = matrices[-1][:, :-1]
        arrays = {f"w{index}": matrix for index, matrix in enumerate(matrices)}
        np.savez_compressed(buffer, **arrays)
        outputs = len(blocks.affines[-1].bias)
        client = {"bits": bits, "outputs": outputs, "output_scale": blocks.output_scale}
        return Prepared(
            client=json.dumps(client).encode(),
            server=buffer.getvalue(),
            parameters=description
            | {"input_scale_bits": SCALE_BITS, "rotation_keys": 2 * int(math.log2(ring_dimension))},
            security=security_entry,
            notes={"layout": ["vector", *(f"mm {a.weights[0].shape[1]} → {a.weights[0].shape[0]}" for a in affines)]},
        )


class _Party:
    """What client and server have in common: what their messages are for, and whose keys they use."""

    _purpose: bytes
    _identity: bytes
    _context: ts.Context

    def _pack(self, kind: bytes, vector: ts.CKKSVector) -> bytes:
        return frames.pack(kind, [vector.serialize()], purpose=self._purpose, keys=self._identity, images=1)

    def _unpack(self, kind: bytes, message: bytes, size: int) -> ts.CKKSVector:
        """size: entries of the vector."""
        frame = frames.unpack(kind, message, purpose=self._purpose, keys=self._identity, batch=1)
        (part,) = frames.exactly(1, frame.parts, "vector")
        with refusing("TenSEAL", "read this vector", part):
            vector = ts.ckks_vector_from(self._context, bytes(part))
            found = vector.size()
        if found != size:
            raise MessageError(f"a vector of {found} entries, which must have {size}")
        return vector


class NaiveClient(_Party):
    def load(self, artifact: bytes) -> None:
        values = json.loads(artifact)
        self._bits, self._outputs, self._output_scale = (values[n] for n in ("bits", "outputs", "output_scale"))
        self._purpose = frames.identity(self._bits)

    def keygen(self, seed: int) -> dict[str, bytes]:
        self._context = _context(self._bits)
        self._context.global_scale = 2**SCALE_BITS
        self._context.generate_galois_keys()
        self._identity = secrets.token_bytes(frames.IDENTITY_BYTES)
        parts = [self._context.serialize(save_public_key=True, save_secret_key=False)]
        return {"evaluation": frames.pack(frames.KEYS, parts, purpose=self._purpose, keys=self._identity)}

    def encrypt(self, images: np.ndarray) -> ts.CKKSVector:
        return ts.ckks_vector(self._context, [*images.reshape(-1).astype(float).tolist(), 1.0])

    def serialise(self, ciphertexts: ts.CKKSVector) -> bytes:
        return self._pack(frames.REQUEST, ciphertexts)

    def deserialise(self, response: bytes) -> ts.CKKSVector:
        return self._unpack(frames.RESPONSE, response, self._outputs)

    def decrypt(self, ciphertexts: ts.CKKSVector) -> np.ndarray:
        with refusing("TenSEAL", "decrypt this response"):
            return np.array(ciphertexts.decrypt())[None] * self._output_scale


class NaiveServer(_Party):
    def load(self, artifact: bytes) -> None:
        with np.load(io.BytesIO(artifact), allow_pickle=False) as arrays:
            self._matrices = [arrays[f"w{index}"].tolist() for index in range(len(arrays.files))]
        self._purpose = frames.identity(_bits(len(self._matrices)))

    def load_keys(self, keys: dict[str, bytes]) -> None:
        frame = frames.unpack(frames.KEYS, keys.get("evaluation", b""), purpose=self._purpose)
        (context,) = frames.exactly(1, frame.parts, "set of evaluation keys")
        with refusing("TenSEAL", "read these keys", context):
            self._context = ts.context_from(bytes(context))
        self._identity = frame.keys

    def deserialise(self, request: bytes) -> ts.CKKSVector:
        return self._unpack(frames.REQUEST, request, len(self._matrices[0]))

    def infer(self, ciphertexts: ts.CKKSVector) -> ts.CKKSVector:
        x = ciphertexts
        with refusing("TenSEAL", "evaluate this request"):
            for index, matrix in enumerate(self._matrices):
                x = (x.square() if index else x).mm(matrix)
        return x

    def serialise(self, ciphertexts: ts.CKKSVector) -> bytes:
        return self._pack(frames.RESPONSE, ciphertexts)
