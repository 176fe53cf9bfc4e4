"""Backends are found by their backend.toml alone, and nothing of theirs is imported to list them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from backends import registry
from backends.registry import UnknownBackend, backends, resolve
from models.network import LOWERINGS, OPERATORS

ROOT = Path(__file__).parents[2]
GOOD = 'title = "theirs"\nscheme = "CKKS"\nlowering = "polynomial"\n'


@pytest.mark.parametrize("name", backends())
def test_description_is_complete(name: str) -> None:
    info = backends()[name]
    assert info.name == name and info.title and info.scheme
    assert info.lowering in LOWERINGS
    assert info.distributions or info.test_only
    assert "" in info.variants, "the default variant has no line"
    assert set(info.operators or ()) <= set(OPERATORS)


def test_listing_imports_no_backend_and_no_numpy() -> None:
    code = (
        "import sys; from backends.registry import backends; found = backends(); "
        "loaded = {m.split('.')[0] for m in sys.modules} | {m for m in sys.modules if m.startswith('backends.')}; "
        "forbidden = {'numpy', 'torch', 'tenseal', 'openfhe', 'concrete'} | {i.module for i in found.values()}; "
        "print(sorted(loaded & forbidden))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_resolve_splits_off_the_variant() -> None:
    info, variant = resolve("fake:slow")
    assert (info.name, variant) == ("fake", "slow")
    assert resolve("fake")[1] == ""


def test_unknown_backend_lists_those_that_exist() -> None:
    with pytest.raises(UnknownBackend, match="unknown backend 'nonsense': choose from .*clear.*fake"):
        resolve("nonsense")


@pytest.mark.parametrize("spec", ["clear:nonsense", "fake:nonsense", "clear:", "fake:"])
def test_unknown_variant_lists_those_that_exist(spec: str) -> None:
    with pytest.raises(UnknownBackend, match="has no variant '.*': choose from"):
        resolve(spec)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A backend in a package of somebody else; importing any part of the package fails."""
    folder = tmp_path / "somebody" / "backend"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").write_text("raise ImportError('listing must not import this')\n")
    (folder / "backend.toml").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("theirs", "somebody.backend", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    registry._registry.cache_clear()
    yield point.name
    registry._registry.cache_clear()


def test_entry_point_of_another_package(plugin: str) -> None:
    info = backends()[plugin]
    assert (info.module, info.title, info.test_only) == ("somebody.backend", "theirs", False)
    assert list(backends()) == sorted(backends())
    with pytest.raises(ImportError, match="must not import"):
        info.load()


@pytest.mark.parametrize(
    "name, toml, reason",
    [
        ("theirs", None, "No such file"),
        ("theirs", "title = ", "Invalid value"),
        ("theirs", 'title = "\xff"', "codec"),
        ("theirs", GOOD + 'licence = "MIT"\n', "unknown field `licence`"),
        ("theirs", GOOD.replace("scheme", "schema"), "schem"),
        ("theirs", GOOD.replace("polynomial", "binary"), "Invalid enum value 'binary'"),
        ("theirs", GOOD + 'variants = ["fast"]\n', "Expected `object | null`, got `array`"),
        ("theirs", GOOD + '[variants]\nfast = "x"\n', "variants lack the default one"),
        ("theirs", GOOD + '[variants]\n"" = "x"\n"a/b" = "x"\n', "matching regex"),
        ("theirs", GOOD + '[variants]\n"" = "x"\nfast = {lowering = "float"}\n', "missing required field `about`"),
        ("theirs", GOOD + 'scenarios = ["online"]\n', "Invalid enum value 'online'"),
        ("clear", GOOD, "backends.clear has this name"),
        ("a/b", GOOD, "a name is a letter"),
        ("../../esc", GOOD, "a name is a letter"),
        ("", GOOD, "a name is a letter"),
    ],
)
def test_a_broken_plugin_is_left_out_with_its_reason(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, toml: str | None, reason: str
) -> None:
    file = tmp_path / "somebody" / "backend" / "backend.toml"
    file.write_text(toml, "latin-1") if toml else file.unlink()
    point = EntryPoint(name, "somebody.backend", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert "theirs" not in backends() and backends()["clear"].module == "backends.clear"
    [found] = registry.broken()
    assert found.name == name and reason in found.reason
    if name not in backends():
        with pytest.raises(UnknownBackend, match="is left out: "):
            resolve(name)


@pytest.mark.parametrize("value", ["nowhere.backend", "", "..", "somebody.backend:Owner"])
def test_an_entry_point_that_names_no_package(plugin: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint("theirs", value, registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert "theirs" not in backends() and len(registry.broken()) == 1


def test_a_variant_differs_where_it_says_so() -> None:
    usual, naive, relu = (resolve(spec)[0] for spec in ("openfhe", "openfhe:naive", "openfhe:relu"))
    assert (usual.lowering, naive.lowering, relu.lowering) == ("polynomial", "polynomial", "float")
    assert naive.scenarios == ("single-stream",) and usual.scenarios == ("single-stream", "offline") == relu.scenarios


@pytest.mark.parametrize(
    "asked, reason",
    [
        (("single-stream", "plain", ("Gemm", "Relu")), ""),
        (("offline", "plain"), "does not have the scenario offline, only single-stream"),
        (("single-stream", "encrypted"), "does not have model privacy encrypted, only plain"),
        (("single-stream", "plain", ("Gemm", "Mul", "Add")), "does not evaluate Add, Mul, only Gemm, Relu"),
    ],
)
def test_what_is_not_supported_is_said(asked: tuple, reason: str) -> None:
    info = dataclasses.replace(
        backends()["clear"], scenarios=("single-stream",), model_privacy=("plain",), operators=("Gemm", "Relu")
    )
    assert reason in info.refuses(*asked) and bool(info.refuses(*asked)) == bool(reason)
