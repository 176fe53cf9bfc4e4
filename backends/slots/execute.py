"""Runs a plan on a library: the client's packing on both ends, the server's program in between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from backends.slots.library import Cipher, ClientLibrary, Evaluator, Plain
from backends.slots.plan import Carry, Kernel, Packed, Plan, Product, Scalar, Step

# -- client ------------------------------------------------------------------------------------------------------------


def pack(plan: Plan, images: np.ndarray) -> list[np.ndarray]:
    """images: (1 … plan.batch, inputs) → one complex or real vector of slots for each ciphertext."""
    slots = plan.parameters.slots
    if not plan.input.batched:
        return [_gather(images[0], real, imaginary) for real, imaginary in zip(plan.input.real, plan.input.imaginary)]
    vectors = np.zeros((images.shape[1], slots), np.complex128)
    vectors[:, : len(images[:slots])] = images[:slots].T
    if plan.input.paired:
        vectors[:, : len(images[slots:])] += 1j * images[slots:].T
    return list(vectors)


def _gather(image: np.ndarray, real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    image = np.append(image.astype(np.float64), 0.0)  # index −1 reads this zero
    return image[real] + 1j * image[imaginary] if (imaginary >= 0).any() else image[real]


def unpack(plan: Plan, vectors: list[np.ndarray], images: int) -> np.ndarray:
    """Decrypted slots → logits (images, outputs)."""
    if not plan.input.batched:
        return vectors[0].real[np.array(plan.output_slots)].sum(axis=1)[None] * plan.output_scale
    halves = np.split(np.real(vectors), 1 + plan.input.paired)  # of the images in the real, then in the imaginary parts
    return np.concatenate(halves, axis=1)[:, :images].T * plan.output_scale


def encrypt(plan: Plan, client: ClientLibrary, images: np.ndarray) -> list[Cipher]:
    scale = 2.0**plan.parameters.input_scale_bits
    return [client.encrypt(vector, scale) for vector in pack(plan, images)]


def decrypt(plan: Plan, client: ClientLibrary, ciphers: list[Cipher], scale: float, images: int) -> np.ndarray:
    return unpack(plan, [client.decrypt(cipher, scale) for cipher in ciphers], images)


# -- server ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Terms that share a giant step: positions in the list of rotated inputs, and their diagonals."""

    giant: int
    inputs: list[int]
    weights: list[Plain | Cipher]


@dataclass(frozen=True)
class _Kernel:
    """A kernel with its weights. babies: of each ciphertext, the steps that are needed."""

    kernel: Kernel
    babies: list[tuple[int, list[int]]]
    groups: list[_Group]


@dataclass(frozen=True)
class _Loaded:
    """The weights of an affine step; of an image-in-slot step only the biases."""

    biases: list[Plain | Cipher]
    kernels: list[_Kernel] = field(default_factory=list)


class Program:
    """A plan loaded into an evaluator, weights encoded before any request.

    weights: ciphertexts of ``plan.weights`` in their order, for a plan whose model is encrypted.
    """

    def __init__(
        self, plan: Plan, evaluator: Evaluator, moduli: list[int], weights: Iterable[Cipher] | None = None
    ) -> None:
        self.plan = plan
        self.evaluator = evaluator
        self.scales = plan.scales(moduli)
        if weights is None:
            weights = (evaluator.encode(w.vector, w.scale, w.level) for w in plan.weights(moduli))
        stream = iter(weights)
        self._loaded = [self._load(step, stream) for step in plan.steps]
        self._last = {v: index for index, step in enumerate(plan.steps) for v in step.sources}

    @staticmethod
    def _load(step: Step, weights: Iterator[Plain | Cipher]) -> _Loaded:
        if isinstance(step, Product | Carry):
            return _Loaded([])
        if isinstance(step, Scalar):
            return _Loaded(list(islice(weights, len(step.bias))))
        kernels = [_kernel(kernel, weights) for kernel in step.kernels]
        return _Loaded([next(weights)], kernels)

    def read(self, parts: Sequence[bytes | memoryview]) -> list[Cipher]:
        """The ciphertexts of a request. Raises MessageError."""
        return [self.evaluator.deserialise(part, 0) for part in parts]

    def run(self, ciphers: list[Cipher]) -> list[Cipher]:
        """Ciphertexts of the request → ciphertexts of the response."""
        values = {0: ciphers}
        for index in range(len(self._loaded)):
            self.step(index, values)
        return self.response(values)

    def response(self, values: dict[int, list[Cipher]]) -> list[Cipher]:
        """After the last step."""
        return values[len(self._loaded)]

    def step(self, index: int, values: dict[int, list[Cipher]]) -> None:
        """Makes value `index` + 1, and forgets the values that no later step reads."""
        step = self.plan.steps[index]
        values[index + 1] = METHODS[type(step)](self, index + 1, step, values)
        for value in step.sources:
            if self._last[value] == index:
                values.pop(value, None)

    def _at(self, values: dict[int, list[Cipher]], value: int, dropped: int) -> list[Cipher]:
        """A value with so many primes dropped."""
        missing = dropped - self.plan.dropped(value)
        return [self.evaluator.mod_switch(c, missing) for c in values[value]] if missing else values[value]

    def _product(self, value: int, step: Product, values: dict[int, list[Cipher]]) -> list[Cipher]:
        e, work = self.evaluator, (self.plan.levels[value] - 1) * self.plan.parameters.primes_per_square
        left = self._at(values, step.left, work)
        if step.square:
            products = (e.square(a) for a in left)
        else:
            products = (e.dot_ciphers([a], [b]) for a, b in zip(left, self._at(values, step.right, work)))
        return list(products) if step.postponed else [self.finished(product) for product in products]

    def finished(self, product: Cipher) -> Cipher:
        """Relinearised first: rescaling three polynomials would multiply its rounding error by the square of the key."""
        return self._rescaled(self.evaluator.relinearise(product))

    def _carry(self, value: int, step: Carry, values: dict[int, list[Cipher]]) -> list[Cipher]:
        """One, encoded at the value's own scale: the scale is then that of a square."""
        e, work = self.evaluator, self.plan.dropped(value) - self.plan.parameters.primes_per_square
        scale = self.scales[step.source]
        ciphers = self._at(values, step.source, work)
        return [self._rescaled(e.weighted_sum([c], [1.0], scale, work)) for c in ciphers]

    def _rescaled(self, cipher: Cipher) -> Cipher:
        for _ in range(self.plan.parameters.primes_per_square):
            cipher = self.evaluator.rescale(cipher)
        return cipher

    def _packed(self, value: int, step: Packed, values: dict[int, list[Cipher]]) -> list[Cipher]:
        e, loaded = self.evaluator, self._loaded[value - 1]
        sums = [self._kernel(k, self._at(values, k.kernel.source, self.plan.dropped(value))) for k in loaded.kernels]
        total = sums[0]
        for other in sums[1:]:
            total = e.add(total, other)
        return [(e.add if self.plan.model_encrypted else e.add_plain)(total, loaded.biases[0])]

    def _kernel(self, loaded: _Kernel, ciphers: list[Cipher]) -> Cipher:
        e, dot = self.evaluator, self._dot_ciphers if self.plan.model_encrypted else self.evaluator.dot
        rotated = [c for index, steps in loaded.babies for c in e.rotate_many(ciphers[index], steps)]
        sums = [(dot([rotated[i] for i in g.inputs], g.weights), g.giant) for g in loaded.groups]
        y = sums[0][0] if len(sums) == 1 and sums[0][1] == 0 else e.rotate_sum(sums)
        for fold in loaded.kernel.folds:
            y = e.rotate_sum([(y, 0), *((y, s) for s in fold)])
        return e.add(y, e.conjugate(y)) if loaded.kernel.real_part else y

    def _dot_ciphers(self, ciphers: list[Cipher], weights: list[Cipher]) -> Cipher:
        """One relinearisation for a whole sum of products."""
        return self.evaluator.relinearise(self.evaluator.dot_ciphers(ciphers, weights))

    def _scalar(self, value: int, step: Scalar, values: dict[int, list[Cipher]]) -> list[Cipher]:
        e, biases, level = self.evaluator, self._loaded[value - 1].biases, self.plan.work(value)
        inputs = [self._at(values, source, level) for source in step.sources]
        scales = [self.scales[value] / self.scales[source] for source in step.sources]

        def affine(second: bool) -> Iterator[Cipher]:
            """Of the second half of the ciphertexts, or of the first (or only) one."""
            parts = []
            for ciphers in inputs:
                half = len(ciphers) // 2 if self.plan.input.paired and not step.split else len(ciphers)
                parts.append(ciphers[half:] if second else ciphers[:half])
            signs = step.signs if second else (1.0,) * len(parts)
            for row, bias in enumerate(biases):
                total = None
                for ciphers, weight, scale, sign in zip(parts, step.weights, scales, signs):
                    part = e.weighted_sum(ciphers, sign * weight[row], scale, level)
                    total = part if total is None else e.add(total, part)
                yield e.add_plain(total if level == self.plan.dropped(value) else self.finished(total), bias)

        if step.split:
            return self.separated(affine(False))
        return [*affine(False), *(affine(True) if self.plan.input.paired else ())]

    def separated(self, ciphers: Iterable[Cipher]) -> list[Cipher]:
        """The two halves of affine values that split, see `Scalar`."""
        first, second = [], []
        for y in ciphers:
            conjugate = self.evaluator.conjugate(y)
            first.append(self.evaluator.add(y, conjugate))
            second.append(self.evaluator.sub(y, conjugate))
        return first + second


METHODS: dict[type, Callable[..., list[Cipher]]] = {
    Product: Program._product,
    Carry: Program._carry,
    Packed: Program._packed,
    Scalar: Program._scalar,
}


def _kernel(kernel: Kernel, weights: Iterator[Plain | Cipher]) -> _Kernel:
    positions: dict[tuple[int, int], int] = {}
    babies: dict[int, list[int]] = defaultdict(list)
    for key in sorted({(t.input, t.baby) for t in kernel.terms}):
        positions[key] = len(positions)
        babies[key[0]].append(key[1])
    groups: dict[int, _Group] = {}
    for t, weight in zip(kernel.terms, islice(weights, len(kernel.terms))):
        group = groups.setdefault(t.giant, _Group(t.giant, [], []))
        group.inputs.append(positions[t.input, t.baby])
        group.weights.append(weight)
    return _Kernel(kernel, list(babies.items()), list(groups.values()))
