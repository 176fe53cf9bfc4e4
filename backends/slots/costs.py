"""The cost model: how often a plan uses each primitive, at how many primes, times what each primitive costs.

`costs.json` of each library holds milliseconds at ring dimension 8192, measured once by ``python -m
backends.slots.costs ckks openfhe`` on the reference machine. They are data of the repository, so that the same plan is
chosen everywhere; ``bench explain`` shows predicted beside measured time.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from backends.slots import residues
from backends.slots.library import Cipher, KeyRequest, Library, Parameters
from backends.slots.plan import Carry, Kernel, Packed, Plan, Product, Scalar, Step

REFERENCE_RING_DIMENSION = 8192
MEASURED_PRIMES = (1, 2, 3, 4, 5)
# What is not measured costs as much as another primitive: switching down copies what an addition reads. The others are of
# products on residues, see `backends.slots.residues`, where `costs.json` is older than they are.
LIKE = {
    "mod_switch": "add",
    "multiply_residues": "multiply_scalar",
    "add_residues": "add",
    "add_constant": "add_plain",
    "residues": "add",
    "of_residues": "deserialise",
}
COUNTED_AS = {
    "rotate_many_step": "rotate",
    "rotate_sum_step": "rotate",
    "multiply_residues": "multiply_scalar",
    "add_residues": "add",
    "add_constant": "add_plain",
}
INTERNAL = ("rotate_many_call", "rotate_sum_call", "rotate_sum_input", "residues", "of_residues")
KEY_SWITCHING = (
    "relinearise",
    "conjugate",
    "rotate_many_call",
    "rotate_many_step",
    "rotate_sum_call",
    "rotate_sum_input",
    "rotate_sum_step",
)


def kernel_operations(kernel: Kernel, encrypted: bool = False) -> Counter[str]:
    """The primitives of one kernel; `encrypted`: with ciphertexts as weights.

    ``rotate_many`` and ``rotate_sum`` are split into what a call costs once, for each ciphertext and for each step,
    because hoisting shares the first two.
    """
    count: Counter[str] = Counter()
    babies: Counter[int] = Counter(i for i, b in {(t.input, t.baby) for t in kernel.terms} if b)
    giants = {t.giant for t in kernel.terms}
    count["rotate_many_call"] += len(babies)
    count["rotate_many_step"] += sum(babies.values())
    count["multiply" if encrypted else "multiply_plain"] += len(kernel.terms)
    count["relinearise"] += len(giants) * encrypted
    count["add"] += len(kernel.terms) - len(giants)
    _rotate_sum(count, inputs=len(giants - {0}), steps=len(giants - {0}), adds=len(giants) - 1)
    for fold in kernel.folds:
        _rotate_sum(count, inputs=1, steps=len(fold), adds=len(fold))
    if kernel.real_part:
        count["conjugate"] += 1
        count["add"] += 1
    return count


def _affine_operations(step: Packed | Scalar, encrypted: bool, paired: bool) -> Counter[str]:
    if isinstance(step, Packed):
        count = sum((kernel_operations(kernel, encrypted) for kernel in step.kernels), Counter())
        count["add"] += len(step.kernels) - 1
        count["add" if encrypted else "add_plain"] += 1
        return count
    halves = 2 if paired and not step.split else 1
    products = sum(map(np.count_nonzero, step.weights))
    outputs = len(step.bias) * halves
    count = Counter(
        multiply_residues=products * halves,
        add_residues=products * halves - outputs,
        add_constant=outputs,
        of_residues=outputs,
    )
    if step.split:
        count["conjugate"] += outputs
        count["add"] += 2 * outputs
    return count


def finishing_operations(ciphertexts: int, parameters: Parameters) -> Counter[str]:
    """What becomes of a product, or of a sum of products."""
    return Counter(relinearise=ciphertexts, rescale=ciphertexts * parameters.primes_per_square)


def operations(plan: Plan) -> list[tuple[int, int, Counter[str]]]:
    """(step, primes of the ciphertexts, primitives)."""
    parameters = plan.parameters
    counts, sizes = [], [request_ciphertexts(plan)]
    for value, step in enumerate(plan.steps, 1):
        work = plan.work(value)
        size = _ciphertexts(step, sizes, plan.input.paired)
        sizes.append(size)
        finishing = finishing_operations(size, parameters)
        if isinstance(step, Packed | Scalar):
            count = _affine_operations(step, plan.model_encrypted, plan.input.paired)
            if work < plan.dropped(value):
                count += finishing
        else:  # at the level from which the product rescales
            work = (plan.levels[value] - 1) * parameters.primes_per_square
            if isinstance(step, Carry):
                count = Counter(multiply_scalar=size, rescale=finishing["rescale"])
            else:
                count = Counter({"square" if step.square else "multiply": size})
                count += Counter(residues=size) if plan.input.batched else Counter()
                count += Counter() if step.postponed else finishing
        count["mod_switch"] += sum(sizes[v] for v in set(step.sources) if plan.dropped(v) < work)
        counts.append((value - 1, parameters.levels + 1 - work, +count))
    return counts


def _ciphertexts(step: Step, sizes: list[int], paired: bool) -> int:
    if isinstance(step, Scalar):
        return len(step.bias) * (1 + paired)
    return sizes[step.left] if isinstance(step, Product) else sizes[step.source] if isinstance(step, Carry) else 1


def total(plan: Plan) -> Counter[str]:
    return sum((count for _, _, count in operations(plan)), Counter())


def named(counts: Counter[str]) -> dict[str, int]:
    """Operations as people count them: both kinds of rotation steps are rotations, a scalar product is one however it is
    made, shared work is not listed."""
    result: dict[str, int] = {}
    for primitive, times in counts.items():
        name = COUNTED_AS.get(primitive, primitive)
        if times and primitive not in INTERNAL:
            result[name] = result.get(name, 0) + times
    return result


def _rotate_sum(count: Counter[str], inputs: int, steps: int, adds: int) -> None:
    if steps:
        count["rotate_sum_call"] += 1
        count["rotate_sum_input"] += inputs
        count["rotate_sum_step"] += steps
    count["add"] += max(0, adds)


def request_ciphertexts(plan: Plan) -> int:
    if not plan.input.batched:
        return len(plan.input.real)
    scalars = (step for step in plan.affines if isinstance(step, Scalar))
    return next(w.shape[1] for step in scalars for v, w in zip(step.sources, step.weights) if v == 0)


def load(folder: Path) -> dict[str, list[float]]:
    """primitive → milliseconds with 1, 2, … primes at ring dimension 8192."""
    return json.loads((folder / "costs.json").read_text())["milliseconds"]


def milliseconds(count: Counter[str], primes: int, parameters: Parameters, table: dict[str, list[float]]) -> float:
    """Of primitives on ciphertexts with this many primes."""
    n = parameters.ring_dimension
    growth = n * np.log2(n) / (REFERENCE_RING_DIMENSION * np.log2(REFERENCE_RING_DIMENSION))

    def cost(primitive: str) -> float:
        values = table.get(primitive) or table[LIKE[primitive]]
        if primes <= len(values):
            return values[primes - 1]
        return _extrapolated(tuple(values), primes)

    switching = _switching(primes, parameters)
    return float(
        growth
        * sum(
            times * cost(primitive) * (switching if primitive in KEY_SWITCHING else 1)
            for primitive, times in count.items()
            if times
        )
    )


def _switching(primes: int, parameters: Parameters) -> float:
    """What grouping the primes into digits leaves of the work of key switching: digits × all primes, special ones too."""
    if not parameters.digits:
        return 1.0
    special = -(-(parameters.levels + 1) // parameters.digits)
    return -(-primes // special) * (primes + special) / (primes * (primes + 1))


@functools.lru_cache(maxsize=4096)
def _extrapolated(values: tuple[float, ...], primes: int) -> float:
    fit = np.polyfit(range(1, len(values) + 1), values, min(2, len(values) - 1))  # key switching is quadratic
    return max(float(np.polyval(fit, primes)), values[-1])


def request_ms(ciphertexts: int, parameters: Parameters, table: dict[str, list[float]]) -> float:
    """Reading a request."""
    return milliseconds(Counter(deserialise=ciphertexts), parameters.levels + 1, parameters, table)


def predict_ms(plan: Plan, table: dict[str, list[float]]) -> list[float]:
    """Server milliseconds of reading the request, and of each step."""
    result = [request_ms(request_ciphertexts(plan), plan.parameters, table)] + [0.0] * len(plan.steps)
    for index, primes, count in operations(plan):
        result[1 + index] += milliseconds(count, primes, plan.parameters, table)
    return result


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(library: Library, repetitions: int = 25) -> dict[str, list[float]]:
    """Median milliseconds of every primitive with 1, 2, … primes, at ring dimension 8192."""
    table: dict[str, list[float]] = {}
    for primes in MEASURED_PRIMES:
        bits = 40
        while True:
            parameters = Parameters(REFERENCE_RING_DIMENSION, bits, bits, primes - 1, 50, 18, (18,))
            if library.admissible(parameters):
                break
            bits -= 2
        for name, ms in _measure(library, parameters, repetitions).items():
            table.setdefault(name, []).append(float(f"{ms:.4g}"))
    return table


def _measure(library: Library, parameters: Parameters, repetitions: int) -> dict[str, float]:
    client, e = library.client(parameters), library.evaluator(parameters)
    e.load_keys(client.keygen(KeyRequest((1, 2, 3, 4), True, True)))
    vector = np.random.default_rng(0).uniform(-1, 1, parameters.slots)
    fresh = client.serialise(client.encrypt(vector, 2.0**18))
    a, b = e.deserialise(fresh), e.deserialise(fresh)
    plain = e.encode(vector, 2.0**18, 0)
    product = e.dot([a], [plain])
    bias = e.encode(vector, 2.0**36, 0)

    def ms(call: Callable[[], object]) -> float:
        samples = []
        for _ in range(repetitions + 1):
            start = time.perf_counter_ns()
            call()
            samples.append((time.perf_counter_ns() - start) / 1e6)
        return float(np.median(samples[1:]))

    add = ms(lambda: e.add(a, b))
    dot1, dot9 = ms(lambda: e.dot([a], [plain])), ms(lambda: e.dot([a] * 9, [plain] * 9))
    sum1, sum9 = (ms(functools.partial(e.weighted_sum, [a] * n, [0.5] * n, 2.0**18, 0)) for n in (1, 9))
    product1, product9 = (ms(functools.partial(e.dot_ciphers, [a] * n, [b] * n)) for n in (1, 9))
    many1, many4 = ms(lambda: e.rotate_many(a, [1])), ms(lambda: e.rotate_many(a, [1, 2, 3, 4]))
    one = ms(lambda: e.rotate_sum([(a, 1)]))
    four_steps = ms(lambda: e.rotate_sum([(a, 1), (a, 2), (a, 3), (a, 4)]))
    two_inputs = ms(lambda: e.rotate_sum([(a, 1), (b, 2)]))
    step = max((four_steps - one) / 3, 0.0)
    extra_input = max(two_inputs - one - step, 0.0)
    squared = e.square(a)
    table = {
        "deserialise": ms(lambda: e.deserialise(fresh)),
        "add": add,
        "add_plain": ms(lambda: e.add_plain(product, bias)),
        # sums are fused with their products, so "add" is not counted twice
        "multiply": (product9 - product1) / 8,
        "multiply_plain": max((dot9 - dot1) / 8 - add, 0.0),
        "multiply_scalar": max((sum9 - sum1) / 8 - add, 0.0),
        "square": ms(lambda: e.square(a)),
        "relinearise": ms(lambda: e.relinearise(squared)),
        "conjugate": ms(lambda: e.conjugate(a)),
        "rotate_many_step": (many4 - many1) / 3,
        "rotate_many_call": max(many1 - (many4 - many1) / 3, 0.0),
        "rotate_sum_step": max(step - add, 0.0),
        "rotate_sum_input": extra_input,
        "rotate_sum_call": max(one - step - extra_input, 0.0),
        "rescale": ms(lambda: e.rescale(product)) if parameters.depth else 0.0,
    }
    return table | _measure_residues(library, parameters, e, a, squared, ms)


def _measure_residues(
    library: Library, parameters: Parameters, e: Any, a: Cipher, squared: Cipher, ms: Callable[[Callable], float]
) -> dict[str, float]:
    """One core's milliseconds; a product is one of a matrix of the size of a tile, with all that is done around it. Its sums
    are part of it."""
    if not hasattr(e, "residues"):
        return {}
    moduli, outputs, inputs = library.moduli(parameters), 48, 392
    weights = residues.integers(np.random.default_rng(0).uniform(-0.1, 0.1, (outputs, inputs)), 2.0**18)
    row = e.residues(a)
    with threadpool_limits(1, "blas"):
        product = ms(lambda: residues.matmul(weights, [row] * inputs, moduli))
    return {
        "multiply_residues": product / (outputs * inputs),
        "add_residues": 0.0,
        "add_constant": ms(lambda: residues.add(row[0], row[1], moduli)),
        "residues": ms(lambda: e.residues(squared)),
        "of_residues": ms(lambda: e.of_residues(row, 2.0**18)),
    }


def main() -> None:
    """Measures the named backends and rewrites their ``costs.json``."""
    for name in sys.argv[1:]:
        module = import_module(f"backends.{name}")
        folder = Path(__file__).parents[1] / name
        document = {"ring_dimension": REFERENCE_RING_DIMENSION, "threads": 2, "milliseconds": measure(module.LIBRARY)}
        (folder / "costs.json").write_text(json.dumps(document, indent=1) + "\n")
        print(json.dumps(document["milliseconds"]))


if __name__ == "__main__":
    main()
