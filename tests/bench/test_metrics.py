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


def test_paired_comparison_is_the_sign_test_of_the_discordant_images():
    labels = np.array([[0]] * 12)
    before, after = np.array([[1]] * 9 + [[0]] * 3), np.array([[0]] * 8 + [[1]] * 2 + [[0]] * 2)
    found = metrics.paired(labels, before, after)  # 8 gained, 1 lost, 1 wrong in both, 2 right in both
    assert (found.gained, found.lost) == (8, 1)
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9)
    assert metrics.paired(labels, before, before).p == 1.0


def test_quality_compares_encrypted_with_float_and_lowered_predictions_on_the_same_images():
    labels = [[0], [1], [1], [0]]
    floats = [[2.0, 0.0]] * 4  # right on the first and the last
    lowered = [[0.0, 2.0]] * 4  # right on the others
    found = metrics.quality(outputs("binary-class", labels, floats, lowered, [[0.0, 2.0]] * 3 + [[2.0, 0.0]]))
    assert (found.against_float.gained, found.against_float.lost) == (2, 1)
    assert (found.against_lowered.gained, found.against_lowered.lost) == (1, 0)


def test_precision_is_in_bits_of_the_range_of_the_logits():
    clear = [[0.0, 8.0], [4.0, 0.0]]
    found = metrics.quality(outputs("binary-class", [[0], [1]], clear, clear, [[0.0, 7.0], [4.0, 0.0]]))
    assert (found.precision_bits_worst, found.precision_bits_mean) == (3.0, 5.0)
    exact = metrics.quality(outputs("binary-class", [[0], [1]], clear, clear, clear))
    assert (exact.precision_bits_worst, exact.precision_bits_mean) == (None, None)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_each_class_has_the_figures_of_the_task_that_asks_for_it_alone(kind, seed):
    rng = np.random.default_rng(seed)
    n, columns = 40, 3 if kind == KINDS[2] else 1
    width = 2 if kind == "binary-class" else 3
    labels = rng.integers(0, 2 if kind == KINDS[2] else width, (n, columns))
    logits = rng.normal(0, 2, (n, width))
    found = metrics.by_class(outputs(kind, labels.tolist(), logits.tolist(), logits.tolist(), logits.tolist()))
    assert [each.label for each in found] == list(range(width))
    score = metrics.scores(kind, logits)
    predicted = metrics.predictions(score, kind)
    for each in found:
        truth, said = (
            column[:, each.label] == 1 if kind == KINDS[2] else column[:, 0] == each.label
            for column in (labels, predicted)
        )
        assert each.positives == truth.sum()
        assert each.sensitivity.value == said[truth].mean()
        assert each.specificity.value == (~said)[~truth].mean()
        expected = binomtest(int(said[truth].sum()), int(truth.sum())).proportion_ci(method="wilson")
        assert (each.sensitivity.low, each.sensitivity.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.mean([each.auc.value for each in found]) == pytest.approx(metrics.auc(labels, score, kind))
    assert [each.auc_lowered for each in found] == [each.auc.value for each in found]


def test_a_class_without_images_has_no_sensitivity_and_no_auc():
    clear = [[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]]
    *_, absent = metrics.by_class(outputs("multi-class", [[0], [1]], clear, clear, clear))
    assert (absent.positives, absent.sensitivity, absent.auc, absent.specificity.value) == (0, None, None, 1.0)
    assert metrics.by_class(outputs("multi-class", [[0], [1]], clear, clear, [])) == []


def test_amortised_cost():
    assert metrics.amortised(100.0, 2.0, 1) == 102
    assert metrics.amortised(100.0, 2.0, 100) == 3


@pytest.mark.parametrize("seed", range(5))
def test_delong_is_what_it_is_by_definition(seed):
    """Pair by pair, ties counted half."""
    rng = np.random.default_rng(seed)
    truth = np.r_[np.ones(12), np.zeros(19)].astype(int)
    score = np.round(rng.normal(truth, 1), 1)  # so that some are tied
    pairs = np.sign(score[truth == 1][:, None] - score[truth == 0]) / 2 + 0.5
    variance = pairs.mean(1).var(ddof=1) / 12 + pairs.mean(0).var(ddof=1) / 19
    found = metrics.delong(truth, score)
    assert found.value == pytest.approx(pairs.mean())
    assert found.low == pytest.approx(pairs.mean() - 1.959964 * np.sqrt(variance))
    assert found.high == pytest.approx(min(1, pairs.mean() + 1.959964 * np.sqrt(variance)))


def test_delong_gives_no_bounds_where_the_images_cannot_support_them():
    assert metrics.delong(np.array([1, 0, 0]), np.array([0.4, 0.5, 0.1])) == metrics.Interval(0.5, None, None)
    assert metrics.delong(np.array([1, 1, 0, 0]), np.array([3.0, 2, 1, 0])) == metrics.Interval(1.0, None, None)
