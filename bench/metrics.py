"""Figures computed from the raw outputs and raw samples of a record.

Accuracy and AUC are MedMNIST's own definitions (``medmnist/evaluator.py``, `getACC` and `getAUC`), written over NumPy
because importing ``medmnist`` imports torch, and scikit-learn's checks of its arguments take most of the time of a
report of a thousand records. `tests/bench/test_metrics.py` proves them equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import binom, binomtest, norm, rankdata

from bench.record import Outputs
from models.tasks import MULTI_LABEL, scores

BINARY = "binary-class"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval; bounds are ``None`` where the data cannot support one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Accuracy:
    """Accuracy with its Wilson interval, and AUC (``None``: undefined, because a class or all but one is missing)."""

    accuracy: Interval
    auc: float | None


@dataclass(frozen=True)
class Paired:
    """Two networks on the same images: McNemar's exact test (1947, Psychometrika 12) of those that one has right.

    gained, lost: images that only the encrypted network, or only the other, has right (in every label, if multi-label).
    p: how likely so uneven a split of them is if encryption changes nothing on average.
    """

    gained: int
    lost: int
    p: float


@dataclass(frozen=True)
class ClassQuality:
    """One class (or label) against the rest, under encryption; ``None`` where no image, or every image, is of it.

    sensitivity: share of its images that are predicted as it; specificity: share of the others that are not; both with
    Wilson intervals. auc: of its own score (of a binary task: of the last output, MedMNIST's), with DeLong's interval;
    auc_lowered: the same of the lowered network in the clear.
    """

    label: int
    positives: int
    sensitivity: Interval | None
    specificity: Interval | None
    auc: Interval | None
    auc_lowered: float | None


@dataclass(frozen=True)
class Quality:
    """What lowering cost, and what encryption cost, over the same `n` images.

    float_, lowered, encrypted: the three steps; `encrypted` and all that follow are ``None`` if nothing was decrypted.
    agreeing: images whose encrypted prediction equals that of the lowered network in the clear (all labels equal, if
    multi-label); agreement: their share.
    logit_error_max, logit_error_mean: absolute difference of encrypted and lowered logits, over all images and outputs.
    precision_bits_worst, precision_bits_mean: -log2 of these errors as shares of the range of the lowered logits; ``None``
    if there is no error at all.
    against_lowered, against_float: the encrypted network against the same one, and against the float one, in the clear.
    disagreements_beyond_noise: disagreements that are not borderline: the lowered logits were further from the decision
    boundary than the worst logit error on the images that agree (see `_flip_distance`).
    """

    n: int
    float_: Accuracy
    lowered: Accuracy
    encrypted: Accuracy | None = None
    agreeing: int | None = None
    agreement: float | None = None
    logit_error_max: float | None = None
    logit_error_mean: float | None = None
    disagreements_beyond_noise: int | None = None
    precision_bits_worst: float | None = None
    precision_bits_mean: float | None = None
    against_lowered: Paired | None = None
    against_float: Paired | None = None


def predictions(score: np.ndarray, kind: str) -> np.ndarray:
    """Predicted labels from scores (n, outputs): (n, labels) for multi-label, else (n, 1)."""
    if kind == MULTI_LABEL:
        return (score > 0.5).astype(int)
    if kind == BINARY:
        return (score[:, -1:] > 0.5).astype(int)
    return score.argmax(axis=1)[:, None]


def accuracy(labels: np.ndarray, score: np.ndarray, kind: str) -> float:
    """MedMNIST's ACC. labels: (n, 1) or (n, labels); score: (n, outputs). Multi-label: mean over the labels."""
    predicted = predictions(score, kind)
    return float((labels[:, : predicted.shape[1]] == predicted).mean(axis=0).mean())


def auc(labels: np.ndarray, score: np.ndarray, kind: str) -> float | None:
    """MedMNIST's AUC: of the last output (binary), or the mean over labels or one-against-rest classes.

    ``None`` where MedMNIST's is undefined: some class is absent, or the only one, among these images, or a score is not
    a number.
    """
    if kind == BINARY:
        truth, score = labels[:, :1], score[:, -1:]
    elif kind == MULTI_LABEL:
        truth = labels
    else:
        truth = (labels[:, :1] == np.arange(score.shape[1])).astype(int)
    both_present = (truth.min(axis=0) < truth.max(axis=0)).all()
    if not both_present or not np.isfinite(score).all():
        return None
    return float(np.mean([_area(truth[:, i], score[:, i]) for i in range(score.shape[1])]))


def _area(truth: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic, ties counted half."""
    positives = int(truth.sum())
    above = rankdata(score)[truth == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(truth) - positives)))


def delong(truth: np.ndarray, score: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Area under the ROC curve with its interval (DeLong et al. 1988, Biometrics 44; by ranks: Sun and Xu 2014, IEEE Signal
    Processing Letters 21). truth: (n,) of 0 and 1, of which both occur.

    No bounds where the estimated variance is none: fewer than two images of a kind, or an area of 0 or 1.
    """
    positive, negative = score[truth == 1], score[truth == 0]
    area, ranks = _area(truth, score), rankdata(score)
    m, n = len(positive), len(negative)
    if min(m, n) < 2:
        return Interval(area, None, None)
    above = (ranks[truth == 1] - rankdata(positive)) / n  # of each positive: the share of negatives below it
    below = 1 - (ranks[truth == 0] - rankdata(negative)) / m
    variance = above.var(ddof=1) / m + below.var(ddof=1) / n
    if variance < 1e-15:
        return Interval(area, None, None)
    half = _normal_quantile((1 + confidence) / 2) * np.sqrt(variance)
    return Interval(area, max(0.0, float(area - half)), min(1.0, float(area + half)))


def wilson_interval(share: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share of `n` images (Wilson 1927, JASA 22).

    For the accuracy of a multi-label task, `share` is a mean over labels and `n` still the images: labels of one image
    are not independent, so the interval is on the wide side.
    """
    z2 = _normal_quantile((1 + confidence) / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


@cache
def _normal_quantile(share: float) -> float:
    return float(norm.ppf(share))


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Median with its distribution-free interval: two order statistics (David & Nagaraja, Order Statistics, 7.1).

    The j-th smallest and j-th largest sample, with the largest j for which the interval still covers the median with at
    least `confidence`, whatever the distribution. Fewer than 6 samples cannot reach 95 %: the bounds are ``None`` then.
    Raises ValueError without samples.
    """
    if not len(samples):
        raise ValueError("a median needs at least one sample")
    ordered = np.sort(np.asarray(samples, float))
    n = len(ordered)
    j = _rank(n, confidence)
    low, high = (float(ordered[j - 1]), float(ordered[n - j])) if j else (None, None)
    return Interval(float(np.median(ordered)), low, high)


@cache
def _rank(n: int, confidence: float) -> int:
    """The j of `median_interval`; 0 if there is none."""
    # The interval misses when fewer than j samples lie on one side of the median: 2 P(Binomial(n, 1/2) <= j - 1).
    return int(np.searchsorted(binom.cdf(np.arange(n), n, 0.5), (1 - confidence) / 2, side="right"))


def throughput(batch: int, wall_s: float) -> float:
    """Images per second of requests of `batch` images that take `wall_s` each."""
    return batch / wall_s


def amortised(once: float, each: float, requests: int) -> float:
    """Cost of one of `requests` requests that share what happens once (the keys of a client)."""
    return once / requests + each


def paired(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> Paired:
    """Predictions `before` and `after`, as `predictions` makes them, of the same images."""
    right, still = ((labels == predicted).all(axis=1) for predicted in (before, after))
    gained, lost = int((still & ~right).sum()), int((right & ~still).sum())
    return Paired(gained, lost, _sign_test(gained, gained + lost) if gained + lost else 1.0)


@cache
def _sign_test(gained: int, n: int) -> float:
    return float(binomtest(gained, n).pvalue)


def by_class(outputs: Outputs) -> list[ClassQuality]:
    """Of each class or label, over the images that were decrypted; empty without any."""
    n = len(outputs.encrypted_logits)
    if not n:
        return []
    labels = np.asarray(outputs.labels[:n])
    score, clear = (
        scores(outputs.kind, np.asarray(logits, float)) for logits in (outputs.encrypted_logits, outputs.lowered_logits[:n])
    )
    predicted = predictions(score, outputs.kind)
    if outputs.kind == MULTI_LABEL:
        truth, said = labels, predicted
    else:
        classes = np.arange(2 if outputs.kind == BINARY else score.shape[1])
        truth, said = ((column[:, :1] == classes).astype(int) for column in (labels, predicted))
        if outputs.kind == BINARY:
            score, clear = (np.repeat(x[:, -1:], 2, axis=1) * [-1, 1] for x in (score, clear))
    found = []
    columns = zip(truth.T == 1, said.T == 1, score.T, clear.T, strict=True)
    for label, (true, positive, scored, before) in enumerate(columns):
        positives, negatives = int(true.sum()), int((~true).sum())
        found.append(
            ClassQuality(
                label=label,
                positives=positives,
                sensitivity=_share(int((true & positive).sum()), positives),
                specificity=_share(int((~true & ~positive).sum()), negatives),
                auc=delong(true, scored) if positives and negatives and np.isfinite(scored).all() else None,
                auc_lowered=_area(true, before) if positives and negatives and np.isfinite(before).all() else None,
            )
        )
    return found


def _share(part: int, whole: int) -> Interval | None:
    if not whole:
        return None
    return Interval(part / whole, *wilson_interval(part / whole, whole))


def quality(outputs: Outputs) -> Quality:
    """Every quality figure of a trial. Raises ValueError without images.

    If the trial ended early, all three steps are compared on the images that were decrypted.
    """
    n = len(outputs.encrypted_logits) or len(outputs.labels)
    if not n:
        raise ValueError("no images, no quality")
    labels = np.asarray(outputs.labels[:n])
    lowered = np.asarray(outputs.lowered_logits[:n], float)

    def step(logits: np.ndarray) -> Accuracy:
        score = scores(outputs.kind, logits)
        share = accuracy(labels, score, outputs.kind)
        return Accuracy(Interval(share, *wilson_interval(share, n)), auc(labels, score, outputs.kind))

    float_logits = np.asarray(outputs.float_logits[:n], float)
    float_step, lowered_step = step(float_logits), step(lowered)
    if not outputs.encrypted_logits:
        return Quality(n, float_step, lowered_step)

    encrypted = np.asarray(outputs.encrypted_logits, float)
    error = np.abs(encrypted - lowered)
    reference, before, after = (
        predictions(scores(outputs.kind, x), outputs.kind) for x in (float_logits, lowered, encrypted)
    )
    agrees = (before == after).all(axis=1)
    noise = error[agrees].max(initial=0.0)
    return Quality(
        n,
        float_step,
        lowered_step,
        encrypted=step(encrypted),
        agreeing=int(agrees.sum()),
        agreement=float(agrees.mean()),
        logit_error_max=float(error.max()),
        logit_error_mean=float(error.mean()),
        disagreements_beyond_noise=int((_flip_distance(lowered, before, after)[~agrees] > noise).sum()),
        precision_bits_worst=_precision_bits(error.max(), lowered),
        precision_bits_mean=_precision_bits(error.mean(), lowered),
        against_lowered=paired(labels, before, after),
        against_float=paired(labels, reference, after),
    )


def _precision_bits(error: float, logits: np.ndarray) -> float | None:
    return float(-np.log2(error / np.ptp(logits))) if error > 0 and np.ptp(logits) > 0 else None


def _flip_distance(logits: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The least error of a single logit (maximum norm) that can turn prediction `before` into `after`; (n,).

    A threshold at 0 is crossed by an error of \\|logit\\|; two classes swap when each is off by half their difference.
    """
    if before.shape[1] == logits.shape[1]:  # thresholds: multi-label, or binary with one output
        return (np.abs(logits) * (before != after)).max(axis=1)
    winner, other = (np.take_along_axis(logits, index, axis=1)[:, 0] for index in (before, after))
    return (winner - other) / 2
