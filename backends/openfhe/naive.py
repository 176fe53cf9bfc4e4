"""OpenFHE as a first program would use it: its default parameters and automatic scaling, public-key encryption, and
the diagonal method of Halevi and Shoup with one rotation for each diagonal, neither hoisted nor split in two steps."""

from __future__ import annotations

import io
import json
import math
import secrets
from typing import Any

import numpy as np
import openfhe

from backends import frames, security
from backends.api import BackendError, Job, Prepared, refusing
from backends.openfhe.ciphertexts import Ciphertexts
from backends.openfhe.library import FEATURES, describe
from backends.slots.blocks import Affine, from_network
from backends.slots.packing import power_of_two


def _context(depth: int, slots: int) -> Any:
    p = openfhe.CCParamsCKKSRNS()
    p.SetMultiplicativeDepth(depth)
    p.SetSecurityLevel(openfhe.SecurityLevel.HEStd_128_classic)
    p.SetBatchSize(slots)
    context = openfhe.GenCryptoContext(p)
    for feature in FEATURES:
        context.Enable(feature)
    return context


class NaiveOwner:
    def prepare(self, job: Job) -> Prepared:
        if job.scenario != "single-stream":
            raise BackendError("openfhe:naive answers one image a request; use --scenario single-stream")
        if job.model_privacy != "plain":
            raise BackendError("openfhe:naive computes on a plain model; use --model-privacy plain")
        blocks = from_network(job.network, job.calibration)
        affines = blocks.chain()
        depth = 2 * len(affines) - 1
        slots = max(power_of_two(n) for affine in affines for n in affine.weights[0].shape)
        rotations, layers = set[int](), []
        for affine in affines:
            diagonals, folds = _diagonals(affine, slots)
            rotations |= {*range(1, len(diagonals)), *folds}
            layers.append(
                (diagonals, folds, np.resize(np.pad(affine.bias, (0, len(diagonals) - len(affine.bias))), slots))
            )
        context = _context(depth, slots)
        description = describe(context)
        entry = security.ckks(description)
        common = {"depth": depth, "slots": slots, "rotations": sorted(rotations)}
        client = common | {
            "outputs": len(affines[-1].bias),
            "output_scale": blocks.output_scale,
        }
        buffer = io.BytesIO()
        arrays = {f"{k}{i}": v for i, (d, _, b) in enumerate(layers) for k, v in (("d", d), ("b", b))}
        header = json.dumps(common | {"folds": [folds for _, folds, _ in layers]}).encode()
        np.savez_compressed(buffer, header=np.frombuffer(header, np.uint8), **arrays)
        steps = sum(len(d) - 1 + len(f) for d, f, _ in layers)
        return Prepared(
            client=json.dumps(client).encode(),
            server=buffer.getvalue(),
            parameters=description
            | {"rotation_keys": len(rotations), "request_ciphertexts": 1, "threads": job.threads},
            security=entry,
            operations={
                "rotate": steps,
                "multiply_plain": sum(len(d) for d, _, _ in layers),
                "square": len(layers) - 1,
            },
            notes={"layout": [f"{len(d)} diagonals, {len(f)} folds" for d, f, _ in layers]},
        )


def _diagonals(affine: Affine, slots: int) -> tuple[np.ndarray, list[int]]:
    """Diagonal e holds W[t mod R, (t + e) mod slots]; folds by multiples of R complete the rows."""
    outputs, inputs = affine.weights[0].shape
    rows = power_of_two(outputs)
    weight = np.zeros((rows, slots))
    weight[:outputs, :inputs] = affine.weights[0].toarray()
    if 2 * inputs <= slots:  # the input repeats, so that each column is met slots / period times
        period = power_of_two(inputs)
        weight = np.tile(weight[:, :period], slots // period) * (period / slots)
    t = np.arange(slots)
    diagonals = np.array([weight[t % rows, (t + e) % slots] for e in range(rows)])
    return diagonals, [rows << k for k in range(int(math.log2(slots // rows)))]


class _Party:
    """What client and server have in common: the context, whose keys they use, and how messages look."""

    _identity: bytes

    def _open(self, values: dict[str, Any]) -> None:
        self._context = _context(values["depth"], values["slots"])
        self._ciphertexts = Ciphertexts(self._context)
        self._purpose = frames.identity(*(values[name] for name in ("depth", "slots", "rotations")))

    def _pack(self, kind: bytes, cipher: Any) -> bytes:
        parts = [self._ciphertexts.serialise(cipher)]
        return frames.pack(kind, parts, purpose=self._purpose, keys=self._identity, images=1)

    def _unpack(self, kind: bytes, message: bytes, level: int | None) -> Any:
        frame = frames.unpack(kind, message, purpose=self._purpose, keys=self._identity, batch=1)
        (part,) = frames.exactly(1, frame.parts, "ciphertext")
        return self._ciphertexts.deserialise(part, level)


class NaiveClient(_Party):
    def load(self, artifact: bytes) -> None:
        self._values = json.loads(artifact)
        self._open(self._values)

    def keygen(self, seed: int) -> dict[str, bytes]:
        pair = self._context.KeyGen()
        self._public, self._secret = pair.publicKey, pair.secretKey
        self._context.EvalMultKeyGen(self._secret)
        self._context.EvalRotateKeyGen(self._secret, self._values["rotations"])
        tag, self._identity = self._secret.GetKeyTag(), secrets.token_bytes(frames.IDENTITY_BYTES)
        self._ciphertexts.tag = tag
        relinearisation = openfhe.SerializeEvalMultKeyString(openfhe.BINARY, tag)
        rotations = openfhe.SerializeEvalAutomorphismKeyString(openfhe.BINARY, tag)
        parts = [tag.encode(), relinearisation, rotations]
        return {"evaluation": frames.pack(frames.KEYS, parts, purpose=self._purpose, keys=self._identity)}

    def encrypt(self, images: np.ndarray) -> Any:
        vector = np.zeros(self._values["slots"])
        vector[: images[0].size] = images[0].reshape(-1)
        return self._context.Encrypt(self._public, self._context.MakeCKKSPackedPlaintext(vector))

    def serialise(self, ciphertexts: Any) -> bytes:
        return self._pack(frames.REQUEST, ciphertexts)

    def deserialise(self, response: bytes) -> Any:
        return self._unpack(frames.RESPONSE, response, None)

    def decrypt(self, ciphertexts: Any) -> np.ndarray:
        with refusing("OpenFHE", "decrypt this response"):
            plain = self._context.Decrypt(self._secret, ciphertexts)
        plain.SetLength(self._values["outputs"])
        return np.array(plain.GetRealPackedValue())[None, : self._values["outputs"]] * self._values["output_scale"]


class NaiveServer(_Party):
    def load(self, artifact: bytes) -> None:
        with np.load(io.BytesIO(artifact), allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            self._layers = [(arrays[f"d{i}"], folds, arrays[f"b{i}"]) for i, folds in enumerate(header["folds"])]
        self._open(header)

    def load_keys(self, keys: dict[str, bytes]) -> None:
        frame = frames.unpack(frames.KEYS, keys.get("evaluation", b""), purpose=self._purpose)
        tag, relinearisation, rotations = map(bytes, frames.exactly(3, frame.parts, "parts of the evaluation keys"))
        with refusing("OpenFHE", "read these keys", keys["evaluation"]):
            self._ciphertexts.tag = name = tag.decode()
            if name not in self._context.GetAllEvalMultKeys():
                openfhe.DeserializeEvalMultKeyString(relinearisation, openfhe.BINARY)
            if name not in self._context.GetAllEvalAutomorphismKeys():
                openfhe.DeserializeEvalAutomorphismKeyString(rotations, openfhe.BINARY)
        self._identity = frame.keys

    def deserialise(self, request: bytes) -> Any:
        return self._unpack(frames.REQUEST, request, 0)

    def infer(self, ciphertexts: Any) -> Any:
        with refusing("OpenFHE", "evaluate this request"):
            return self._run(ciphertexts)

    def _run(self, ciphertexts: Any) -> Any:
        context, x = self._context, ciphertexts
        for index, (diagonals, folds, bias) in enumerate(self._layers):
            if index:
                x = context.EvalSquare(x)
            total = None
            for e, diagonal in enumerate(diagonals):
                rotated = context.EvalRotate(x, e) if e else x
                product = context.EvalMult(rotated, context.MakeCKKSPackedPlaintext(diagonal))
                total = product if total is None else context.EvalAdd(total, product)
            for step in folds:
                total = context.EvalAdd(total, context.EvalRotate(total, step))
            x = context.EvalAdd(total, context.MakeCKKSPackedPlaintext(bias))
        return x

    def serialise(self, ciphertexts: Any) -> bytes:
        return self._pack(frames.RESPONSE, ciphertexts)
