"""Training: right shapes for each kind of task, learns, repeats itself, and never looks at the test split to choose."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from models import catalogue, fcnn, tasks, train, unfinished
from models.augment import augment
from models.network import Flatten, Gemm, Polynomial, chain
from models.tasks import Dataset, Split

REAL = ("float", "polynomial")
BUDGET = 0.02  # of the recipe: seconds


@pytest.fixture(scope="module")
def digits():
    return tasks.load(tasks.task("digits"))


def relabelled(digits: Dataset, kind: str, channels: int, outputs: int, label) -> Dataset:
    """The digits as a task of another kind."""
    task = dataclasses.replace(
        digits.task, name="other", kind=kind, channels=channels, labels={i: str(i) for i in range(outputs)}
    )
    splits = (
        Split(np.repeat(s.images, channels, axis=1)[:256], label(s.labels)[:256])
        for s in (digits.train, digits.val, digits.test)
    )
    return Dataset(task, *splits, md5="")


def bits(labels):
    return labels >> np.arange(4) & 1


CASES = [
    ("multi-class", 1, 10, lambda d: d, 0.5),
    ("binary-class", 1, 2, lambda d: d % 2, 0.65),
    ("ordinal-regression", 3, 5, lambda d: d // 2, 0.4),
    (tasks.MULTI_LABEL, 1, 4, bits, 0.72),  # all answers "no": 0.62
]


@pytest.mark.parametrize("kind, channels, outputs, label, least", CASES, ids=[case[0] for case in CASES])
def test_learns_each_kind(digits, kind, channels, outputs, label, least):
    data = relabelled(digits, kind, channels, outputs, label)
    heard = []
    trained = train.train("fcnn", data.task, data, REAL, progress=lambda *said: heard.append(said), budget=BUDGET)
    assert list(trained) == list(REAL)
    assert heard[-1][0] == 1
    for lowering, network in trained.items():
        assert (network.lowering, network.task, network.model) == (lowering, "other", "fcnn")
        assert network.input_shape == (channels, 28, 28)
        shapes = [layer.weight.shape for layer in network.operators if isinstance(layer, Gemm)]
        assert shapes == [(64, channels * 784), (outputs, 64)]
        assert network.provenance["test"]["accuracy"] > least
        assert network.provenance["test"]["images"] == len(data.test)
    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions)
    assert all(isinstance(text, str) and "other" in text for _, text in heard)


def test_integer_lowering_learns(digits):
    data = relabelled(digits, "ordinal-regression", 3, 5, lambda d: d // 2)
    network = train.train("fcnn", data.task, data, ("integer",), budget=BUDGET)["integer"]
    assert network.provenance["test"]["accuracy"] > 0.3
    assert all(layer.weight_bits and layer.weight_scale for layer in network.operators if isinstance(layer, Gemm))


def test_same_seed_same_weights_whatever_the_test_split(digits):
    small = relabelled(digits, "multi-class", 1, 10, lambda d: d)
    other = dataclasses.replace(small, test=Split(255 - small.test.images, 9 - small.test.labels))
    once, again = (train.train("fcnn", d.task, d, ("polynomial",), budget=0.01)["polynomial"] for d in (small, other))
    different = train.train("fcnn", small.task, small, ("polynomial",), seed=1, budget=0.01)["polynomial"]
    assert once.sha256 == again.sha256
    assert once.provenance["test"] != again.provenance["test"]
    assert once.sha256 != different.sha256


@pytest.mark.parametrize("lowering", REAL)
def test_export_computes_what_was_trained(lowering):
    torch.manual_seed(0)
    module = fcnn.Fcnn((3, 28, 28), 5, lowering)
    images = torch.rand(40, 3, 28, 28)
    for _ in range(20):  # so that the batch statistics are not those of a new module
        module(images)
    if lowering == "polynomial":
        with torch.no_grad():
            module.activation.coefficients.normal_()
    module.eval()
    network = chain("fcnn", "t", lowering, (3, 28, 28), module.export())
    with torch.no_grad():
        expected = module(images).numpy()
    assert np.abs(network.forward(images.numpy()) - expected).max() < 1e-4 * np.abs(expected).max()
    arrays = [a for layer in network.operators for a in vars(layer).values() if isinstance(a, np.ndarray)]
    assert {a.dtype for a in arrays} == {np.dtype(np.float32)}


def test_polynomial_starts_as_the_least_squares_fit_of_relu():
    start = fcnn.Quadratic(1).coefficients.detach().numpy()[:, 0]
    x = np.random.default_rng(0).standard_normal(400_000)
    best = np.polynomial.polynomial.polyfit(x, np.maximum(x, 0), 2)
    assert start == pytest.approx(best, abs=0.01)


def test_adjustment_takes_the_prior_back_only_as_far_as_validation_allows():
    # A logit that is the class's log prior alone says nothing of the image: taking all of it back costs accuracy, …
    prior = np.array([0.9, 0.1])
    bias = np.log(prior).astype(np.float32)
    images = np.zeros((1000, 1, 28, 28), np.uint8)
    labels = (np.arange(1000) % 10 == 0).astype(np.int64)[:, None]
    images[labels[:, 0] == 1, 0, 0, 0] = 255
    task = dataclasses.replace(tasks.DIGITS, name="t", kind="binary-class", labels={0: "a", 1: "b"})
    split = Split(images, labels)
    data = Dataset(task, split, split, split, md5="")
    validation = train.Labelled(torch.from_numpy(images), torch.eye(2)[labels[:, 0]])

    def network(weight):
        first = np.zeros((2, 784), np.float32)
        first[1, 0] = weight
        return chain("m", "t", "float", (1, 28, 28), (Flatten(), Gemm(first, bias)))

    sure, tau = train.adjusted(network(5.0), data, validation)
    assert tau == 1  # … while an image that speaks for itself needs no prior.
    assert np.diff(sure.operators[-1].bias) == pytest.approx(0, abs=0.01)
    assert 0 < tau < 1 or tau == 1
    wrong = Split(images, np.zeros_like(labels))
    contrary = train.Labelled(validation.images, torch.eye(2)[wrong.labels[:, 0]])
    _, tau = train.adjusted(network(1.0), dataclasses.replace(data, val=wrong), contrary)
    assert tau == pytest.approx(0.5)  # at 0.6 the rare class would win in 100 of 1000 images


def test_views_stay_in_range_and_differ():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 28, 28)
    views = augment(images, generator)
    assert views.shape == images.shape
    assert views.min() >= 0
    assert views.max() <= 1
    assert not torch.equal(augment(images, generator), views)
    flat = augment(torch.full((4, 1, 28, 28), 0.5), generator)
    assert torch.allclose(flat, flat[:, :, :1, :1].expand_as(flat), atol=1e-6)  # no dark border


def test_each_model_has_an_architecture():
    assert set(train.ARCHITECTURES) == {catalogue.base(model) for model in catalogue.MODELS}


def test_quadratic_layer_is_per_channel():
    layers = fcnn.Fcnn((1, 28, 28), 2, "polynomial").eval().export()
    assert isinstance(layers[2], Polynomial)
    assert layers[2].coefficients.shape == (3, 64)


# -- effort, cost and interruption ---------------------------------------------------------------------------------------


def test_cost_is_said_before_it_starts_and_quick_costs_less(digits, monkeypatch):
    data = relabelled(digits, "multi-class", 1, 10, lambda d: d)
    heard = []
    with pytest.raises(Interrupted):
        train.train("fcnn", data.task, data, REAL, progress=stopping(heard, after=0.0))
    assert len(heard) == 1 and re.search(r"about \d+ min in all.*--effort quick", heard[0][1])
    monkeypatch.setattr(train.Recipe, "step_seconds", lambda *_: 0.01)
    full, quick = (train.Recipe(data.task, 0, e.share, e) for e in train.EFFORTS.values())
    preset = train.PRESETS["polycnn"]
    assert quick.seconds("polycnn", data.train, REAL, preset) < full.seconds("polycnn", data.train, REAL, preset) / 5


def test_quick_is_one_student_of_fewer_images(digits):
    data = relabelled(digits, "multi-class", 1, 10, lambda d: d)
    network = train.train("fcnn", data.task, data, ("float",), budget=0.1, effort="quick")["float"]
    said = network.provenance
    assert (said["effort"], said["budget"], said["teachers"], said["restarts"]) == ("quick", pytest.approx(0.02), 1, 1)
    assert said["test"]["accuracy"] > 0.5


class Interrupted(Exception):
    pass


def stopping(heard: list, after: float):
    def progress(fraction: float, text: str) -> None:
        heard.append((fraction, text))
        if fraction >= after:
            raise Interrupted

    return progress


def test_what_was_done_before_an_interruption_is_not_done_again(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = relabelled(digits, "multi-class", 1, 10, lambda d: d)
    data = dataclasses.replace(data, train=Split(data.train.images[:64], data.train.labels[:64]))
    options = {"budget": 0.002, "keep": True}
    uninterrupted = train.train("fcnn", data.task, data, REAL, budget=0.002)
    fits = []
    fit = train.Recipe.fit
    monkeypatch.setattr(train.Recipe, "fit", lambda *a, **k: fits.append(k["use"]) or fit(*a, **k))
    with pytest.raises(Interrupted):  # in the second student of the second lowering
        train.train("fcnn", data.task, data, REAL, progress=stopping([], after=0.83), **options)
    teachers, students = [0, 1], [200, 201, 202]
    assert fits == [*teachers, *students, *students[:2]]
    next(tmp_path.rglob("teacher-0.safetensors")).write_bytes(b"damaged")
    del fits[:]
    networks = train.train("fcnn", data.task, data, REAL, **options)
    assert fits == [0, *students[1:]]
    assert {k: n.sha256 for k, n in networks.items()} == {k: n.sha256 for k, n in uninterrupted.items()}
    assert not list(tmp_path.rglob("*.safetensors"))


def test_other_data_or_another_recipe_is_another_training(digits):
    small = relabelled(digits, "multi-class", 1, 10, lambda d: d)
    other = dataclasses.replace(small, val=Split(small.val.images, 9 - small.val.labels))
    folders = [unfinished.of(small, {"seed": 0}), unfinished.of(other, {"seed": 0}), unfinished.of(small, {"seed": 1})]
    assert len(set(folders)) == 3 and unfinished.of(small, {"seed": 0}) == folders[0]
