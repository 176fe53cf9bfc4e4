"""Backends are found by their backend.toml alone, and nothing of theirs is imported to list them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from backends import registry
from backends.registry import UnknownBackend, backends, resolve
from models.network import LOWERINGS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", backends())
def test_description_is_complete(name: str) -> None:
    info = backends()[name]
    assert info.name == name and info.title and info.scheme
    assert info.lowering in LOWERINGS
    assert info.distributions or info.test_only
    assert "" in (info.variants or {"": ""}), "the default variant has no line"


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


@pytest.mark.parametrize("spec", ["clear:nonsense", "fake:nonsense"])
def test_unknown_variant_lists_those_that_exist(spec: str) -> None:
    with pytest.raises(UnknownBackend, match="has no variant 'nonsense': choose from"):
        resolve(spec)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A backend in a package of somebody else; importing any part of the package fails."""
    folder = tmp_path / "somebody" / "backend"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").write_text("raise ImportError('listing must not import this')\n")
    (folder / "backend.toml").write_text('title = "theirs"\nscheme = "CKKS"\nlowering = "polynomial"\n')
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("theirs", "somebody.backend", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    backends.cache_clear()
    yield point.name
    backends.cache_clear()


def test_entry_point_of_another_package(plugin: str) -> None:
    info = backends()[plugin]
    assert (info.module, info.title, info.test_only) == ("somebody.backend", "theirs", False)
    assert list(backends()) == sorted(backends())
    with pytest.raises(ImportError, match="must not import"):
        info.load()
