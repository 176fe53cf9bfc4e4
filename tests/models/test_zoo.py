"""The zoo: shipped, cached or trained; shipped weights are as good as their own JSON says."""

import json

import numpy as np
import pytest

from models import catalogue, inputs, tasks, train, zoo
from models.network import LOWERINGS, Flatten, Gemm, Network, NetworkError, Polynomial, Quantise, chain

SHIPPED = sorted(zoo.SHIPPED.glob("*/*.json"))


def small(lowering="polynomial", task="digits", seed=0):
    rng = np.random.default_rng(seed)
    layers = (
        Flatten(),
        Gemm(rng.normal(size=(4, 784)).astype(np.float32), rng.normal(size=4).astype(np.float32)),
        Polynomial(rng.normal(size=(3, 4)).astype(np.float32)),
        Quantise(scale=0.25, bits=6, signed=True),
        Gemm(rng.normal(size=(10, 4)), rng.normal(size=10), weight_bits=4, weight_scale=0.5),
    )
    return chain("fcnn", task, lowering, (1, 28, 28), layers, {"seed": seed})


@pytest.fixture
def unshipped(tmp_path, monkeypatch):
    """No shipped weights and an empty cache; training is counted and instant."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "SHIPPED", tmp_path / "shipped")
    calls = []

    def instant(model, task, dataset, lowerings, *, seed=0, effort="full", keep=False, progress=None):
        calls.append((model, task.name, seed))
        return {lowering: small(lowering, task.name, seed) for lowering in lowerings}

    monkeypatch.setattr(train, "train", instant)
    return calls


def test_trains_once_for_all_lowerings_then_reads_the_cache(unshipped):
    task = tasks.task("digits")
    assert not zoo.is_trained("fcnn", task)
    trained = zoo.network("fcnn", task, "polynomial")
    assert zoo.is_trained("fcnn", task)
    for lowering in LOWERINGS:
        assert zoo.network("fcnn", task, lowering).lowering == lowering
    assert zoo.network("fcnn", task, "polynomial").sha256 == trained.sha256
    assert unshipped == [("fcnn", "digits", 0)]
    assert not list(tasks.user_cache().rglob(".saving-*"))


def test_shipped_weights_come_before_the_cache(unshipped):
    task = tasks.task("digits")
    zoo.keep(zoo.train("fcnn", task, tasks.load(task), seed=1))
    shipped = small(seed=2)
    shipped.save(zoo.SHIPPED / "fcnn" / "digits.polynomial")
    assert zoo.network("fcnn", task, "polynomial").sha256 == shipped.sha256
    assert zoo.network("fcnn", task, "float").provenance == {"seed": 1}


def test_a_cache_that_takes_no_files_does_not_lose_what_was_trained(unshipped, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    task = tasks.task("digits")
    assert str(tmp_path / "file") in zoo.unwritable()
    first = zoo.network("fcnn", task, "float")
    assert zoo.network("fcnn", task, "float") is first and zoo.network("fcnn", task, "polynomial").outputs == 10
    assert unshipped == [("fcnn", "digits", 0)]
    assert not zoo.is_trained("fcnn", task)


def test_half_a_network_is_none(unshipped):
    task = tasks.task("digits")
    zoo.network("fcnn", task, "float")
    next(tasks.user_cache().rglob("digits.float.json")).unlink()
    assert not zoo.is_trained("fcnn", task)


def test_unknown_model_lists_the_known():
    task = tasks.task("digits")
    for call in (lambda: zoo.network("fcn", task, "float"), lambda: zoo.is_trained("fcn", task)):
        with pytest.raises(catalogue.UnknownModel, match="unknown model 'fcn': choose from fcnn, "):
            call()


def test_task_without_data_is_not_trained(unshipped, tmp_path, monkeypatch):
    monkeypatch.delenv(tasks.DATA_DIR_VARIABLE, raising=False)
    monkeypatch.setattr(tasks, "_probe", lambda address: (_ for _ in ()).throw(OSError("no network in tests")))
    with pytest.raises(tasks.DataError, match="no data for bloodmnist"):
        zoo.network("fcnn", tasks.task("bloodmnist"), "float")


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_and_messages_keep_every_bit(tmp_path):
    network = small()
    network.save(tmp_path / "deep" / "net")
    images = np.random.default_rng(1).random((5, 1, 28, 28), np.float32)
    for copy in (Network.load(tmp_path / "deep" / "net"), Network.from_bytes(network.to_bytes())):
        assert copy.sha256 == network.sha256
        assert copy.provenance == network.provenance
        assert np.array_equal(copy.forward(images), network.forward(images))


def test_identity_is_of_the_computation_not_of_its_history():
    network, other = small(), small()
    other.provenance["seed"] = 5
    assert network.sha256 == other.sha256
    other.operators[1].bias[0] += 1
    assert network.sha256 != other.sha256


@pytest.mark.parametrize("damage", ["truncated", "empty", "json", "other weights", "missing layer"])
def test_damaged_files_are_refused(tmp_path, damage):
    network = small()
    network.save(tmp_path / "net")
    weights, header = tmp_path / "net.safetensors", tmp_path / "net.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "json":
        header.write_text(header.read_text()[:-20])
    elif damage == "other weights":
        chain("fcnn", "digits", "float", (1, 28, 28), (Flatten(),)).save(tmp_path / "other")
        weights.write_bytes((tmp_path / "other.safetensors").read_bytes())
    else:
        values = json.loads(header.read_text())
        del values["nodes"][1]
        header.write_text(json.dumps(values))
    with pytest.raises(NetworkError, match="delete it and train again"):
        Network.load(tmp_path / "net")


# -- what is shipped ---------------------------------------------------------------------------------------------------


def test_all_lowerings_of_three_tasks_are_shipped():
    found = {f"{path.parent.name}/{path.name.removesuffix('.json')}" for path in SHIPPED}
    presets = [model for model in catalogue.MODELS if model.startswith("fcnn@") and model != "fcnn@sadhana2025"]
    for task in ("breastmnist", "pneumoniamnist", "digits"):
        for model in ("fcnn", "polycnn", "polycnn-s"):
            assert {f"{model}/{task}.float", f"{model}/{task}.polynomial"} < found
        assert {f"{preset}/{task}.integer" for preset in presets} < found


def test_a_preset_has_an_integer_network_of_its_own_and_shares_the_others():
    task = tasks.task("breastmnist")
    assert zoo.network("fcnn@fast", task, "float").sha256 == zoo.network("fcnn", task, "float").sha256
    assert zoo.network("fcnn", task, "integer").model == "fcnn@balanced"
    assert zoo.network("fcnn@fast", task, "integer").model == "fcnn@fast"
    assert {catalogue.integer_network(model) for model in catalogue.MODELS} <= set(catalogue.MODELS)


def test_every_integer_network_has_a_preset():
    from models.presets import PRESETS

    assert {catalogue.integer_network(model) for model in catalogue.MODELS} == set(PRESETS)


def test_shipped_latents_belong_together():
    """Each network on latents was trained with the encoder that is shipped for its task."""
    on_latents = [path for path in SHIPPED if path.parent.name in inputs.LATENTS]
    assert on_latents
    for path in on_latents:
        zoo.check(path.parent.name, tasks.task(path.name.split(".")[0]))


@pytest.mark.parametrize("path", [p for p in SHIPPED if p.parent.name != "encoder"], ids=lambda path: path.stem)
def test_shipped_weights_reach_what_they_state(path):
    network = Network.load(path.with_suffix(""))
    assert path.stem == f"{network.task}.{network.lowering}"
    task = tasks.task(network.task)
    assert (network.input_shape, network.outputs) == (inputs.shape(network.model, task), task.outputs)
    if tasks.find(task) is None:
        pytest.skip(f"no file of {task.name} on this machine")
    data = tasks.load(task, download=False)
    encoder = zoo.encoder(network.model, task)
    for name, split in (("validation", data.val), ("test", data.test)):
        stated, found = network.provenance[name], train.evaluate(network, split, task.kind, encoder)
        assert found["images"] == stated["images"]
        assert found["accuracy"] == pytest.approx(stated["accuracy"], abs=1.01 / len(split))  # ties at other BLAS
        assert found["auc"] == pytest.approx(stated["auc"], abs=1e-3)
    if network.lowering == "polynomial":  # the range in which CKKS is precise
        x = encoder.read(data.val.images) if encoder else tasks.normalise(data.val.images)
        values = network.evaluate({network.inputs[0].name: x})
        for node in network.nodes:
            if isinstance(node.operator, Polynomial):
                assert np.abs(values[node.inputs[0]]).max() < 15  # standard deviations of the training images
        assert np.abs(values[network.results[0]]).max() < 30
