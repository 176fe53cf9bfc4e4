"""Finds backends without importing any of them.

A backend is a folder with a ``backend.toml``: one of this package's own folders, or the package that an entry point of
the group ``fhe_medmnist_bench.backends`` names (``mylib = "mypackage.mybackend"``).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import tomli

ENTRY_POINT_GROUP = "fhe_medmnist_bench.backends"
HERE = Path(__file__).parent


class UnknownBackend(LookupError):
    """No backend, or no variant of it, has this name; the message lists those that exist."""


@dataclass(frozen=True)
class BackendInfo:
    """``backend.toml``, read.

    lowering: the lowering of the network that the owner receives.
    distributions: the Python distributions whose versions belong in a record.
    python: the interpreter of the party processes; "" for the harness's own.
    variants: name → one line; the default variant has the name "".
    lowerings: of the variants that receive another lowering.
    test_only: not part of a suite, and hidden by ``bench list`` unless asked for.
    """

    name: str
    module: str
    folder: Path
    title: str
    scheme: str
    lowering: str
    distributions: tuple[str, ...] = ()
    python: str = ""
    variants: dict[str, str] | None = None
    lowerings: dict[str, str] | None = None
    test_only: bool = False

    def load(self) -> ModuleType:
        """Imports the backend (and its FHE library)."""
        return importlib.import_module(self.module)


def _read(name: str, module: str, folder: Path) -> BackendInfo:
    values = tomli.loads((folder / "backend.toml").read_text())
    values["distributions"] = tuple(values.get("distributions", ()))
    return BackendInfo(name=name, module=module, folder=folder, **values)


@functools.cache
def backends() -> Mapping[str, BackendInfo]:
    """All registered backends by name, in alphabetical order."""
    found = {
        p.parent.name: _read(p.parent.name, f"backends.{p.parent.name}", p.parent) for p in HERE.glob("*/backend.toml")
    }
    for point in entry_points(group=ENTRY_POINT_GROUP):
        top, *rest = point.value.split(".")
        spec = importlib.util.find_spec(top)  # of the top package only: finding a submodule would import its parent
        if spec is None or not spec.submodule_search_locations:
            continue
        found[point.name] = _read(point.name, point.value, Path(spec.submodule_search_locations[0]).joinpath(*rest))
    return dict(sorted(found.items()))


def resolve(spec: str) -> tuple[BackendInfo, str]:
    """``"ckks:naive"`` → (its BackendInfo with the lowering of the variant, ``"naive"``). Raises UnknownBackend."""
    name, _, variant = spec.partition(":")
    known = backends()
    if name not in known:
        raise UnknownBackend(f"unknown backend {name!r}: choose from {', '.join(known)}")
    variants = known[name].variants or {"": ""}
    if variant not in variants:
        choices = ", ".join(f"{name}:{v}" if v else name for v in variants)
        raise UnknownBackend(f"backend {name!r} has no variant {variant!r}: choose from {choices}")
    info = known[name]
    return dataclasses.replace(info, lowering=(info.lowerings or {}).get(variant, info.lowering)), variant
