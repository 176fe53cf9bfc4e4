"""Metrics against MedMNIST's own functions, SciPy's intervals, and cases worked out by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from bench import metrics
from bench.record import Outputs

KINDS = ["multi-class", "binary-class", "multi-label, binary-class", "ordinal-regression"]


@pytest.fixture(scope="module")
def medmnist():
    return pytest.importorskip("medmnist.evaluator")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(12, 60), outputs=st.integers(2, 6), ties=st.booleans())
def test_accuracy_and_auc_are_those_of_medmnist(medmnist, kind, seed, n, outputs, ties):
    rng = np.random.default_rng(seed)
    if kind == "binary-class":
        outputs = outputs % 2 + 1  # one logit, or two
    logits = rng.normal(0, 2, (n, outputs))
    if ties:
        logits = logits.round()
    columns, classes = (outputs, 2) if kind == KINDS[2] else (1, 2 if kind == "binary-class" else outputs)
    labels = rng.integers(0, classes, (n, columns))
    labels[:classes] = np.arange(classes)[:, None]  # every class is there, so that the AUC is defined
    score = metrics.scores(kind, logits)
    assert metrics.accuracy(labels, score, kind) == pytest.approx(medmnist.getACC(labels, score, kind), abs=1e-12)
    assert metrics.auc(labels, score, kind) == pytest.approx(medmnist.getAUC(labels, score, kind), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_auc_is_undefined_without_both_classes_and_nobody_is_warned(kind):
    outputs = 3
    labels = np.zeros((5, outputs if kind == KINDS[2] else 1), int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.auc(labels, np.full((5, outputs), 0.3), kind) is None


def test_auc_of_scores_that_are_not_numbers_is_undefined():
    assert metrics.auc(np.array([[0], [1]]), np.array([[0.5, np.nan], [0.5, 0.5]]), "binary-class") is None


def test_one_image_has_an_accuracy():
    assert metrics.accuracy(np.array([[2]]), np.array([[0.1, 0.2, 0.7]]), "multi-class") == 1.0


@given(n=st.integers(1, 700), data=st.data())
def test_wilson_interval_is_that_of_scipy(n, data):
    correct = data.draw(st.integers(0, n))
    expected = binomtest(correct, n).proportion_ci(method="wilson")
    assert metrics.wilson_interval(correct / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("n", range(1, 120))
def test_median_interval_is_the_narrowest_pair_of_order_statistics_that_covers(n):
    samples = np.random.default_rng(n).permutation(n) + 1.0  # the k-th smallest sample is k
    found = metrics.median_interval(samples)
    assert found.value == (n + 1) / 2

    def coverage(j):
        return 1 - 2 * binom.cdf(j - 1, n, 0.5)

    if coverage(1) < 0.95:
        assert (found.low, found.high) == (None, None)
        assert n < 6
    else:
        j = int(found.low)
        assert found.high == n + 1 - j
        assert coverage(j) >= 0.95 > coverage(j + 1)


def test_median_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one sample"):
        metrics.median_interval([])


def outputs(kind, labels, float_logits, lowered, encrypted):
    return Outputs(kind=kind, indices=list(range(len(labels))), labels=labels, float_logits=float_logits,
                   lowered_logits=lowered, encrypted_logits=encrypted)  # fmt: skip


def test_quality_by_hand():
    labels = [[0], [1], [1], [0]]
    floats = [[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]]
    lowered = [[2.0, 0.0], [0.0, 2.0], [1.0, 0.9], [2.0, 0.0]]  # the third is wrong, by a hair
    encrypted = [[2.0, 0.1], [0.0, 2.0], [0.9, 1.0], [0.0, 2.0]]  # the third turned by noise, the fourth by a fault
    found = metrics.quality(outputs("binary-class", labels, floats, lowered, encrypted))
    assert (found.n, found.float_.accuracy.value, found.lowered.accuracy.value) == (4, 1.0, 0.75)
    assert found.encrypted.accuracy.value == 0.75
    assert (found.agreeing, found.agreement) == (2, 0.5)
    assert found.logit_error_max == 2.0
    assert found.logit_error_mean == pytest.approx((0.1 + 0.1 + 0.1 + 2 + 2) / 8)
    assert found.disagreements_beyond_noise == 1


def test_quality_of_a_multi_label_task_counts_images_that_agree_in_every_label():
    labels = [[1, 0], [0, 1]]
    clear = [[3.0, -3.0], [-3.0, 0.01]]
    found = metrics.quality(outputs("multi-label, binary-class", labels, clear, clear, [[3.0, -3.1], [-3.0, -0.01]]))
    assert (found.agreeing, found.disagreements_beyond_noise) == (1, 0)
    assert found.encrypted.accuracy.value == 0.75


def test_quality_of_a_trial_that_ended_early_compares_the_same_images():
    clear = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    found = metrics.quality(outputs("binary-class", [[0], [1], [1]], clear, clear, clear[:1]))
    assert (found.n, found.float_.accuracy.value, found.encrypted.accuracy.value) == (1, 1.0, 1.0)
    nothing = metrics.quality(outputs("binary-class", [[0], [1], [1]], clear, clear, []))
    assert (nothing.n, nothing.encrypted, nothing.agreement) == (3, None, None)


def test_throughput_counts_all_images_of_a_request():
    assert metrics.throughput(64, 0.5) == 128
