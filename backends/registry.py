"""Finds backends without importing any of them.

A backend is a folder with a ``backend.toml``: one of this package's own folders, or the package that an entry point of
the group ``fhe_medmnist_bench.backends`` names (``mylib = "mypackage.mybackend"``).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import msgspec

ENTRY_POINT_GROUP = "fhe_medmnist_bench.backends"
HERE = Path(__file__).parent
NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"  # it becomes part of files' names

Lowering = Literal["float", "polynomial", "integer"]
Scenario = Literal["single-stream", "offline"]
Privacy = Literal["plain", "encrypted"]
Workload = Literal["inference", "train"]
VariantName = Annotated[str, msgspec.Meta(pattern=rf"^({NAME})?\Z")]


class UnknownBackend(LookupError):
    """No backend, or no variant of it, has this name; the message lists those that exist."""


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """about: one line. The others: where it differs from the backend, see `BackendInfo`."""

    about: str
    lowering: Lowering | None = None
    workloads: tuple[Workload, ...] | None = None
    scenarios: tuple[Scenario, ...] | None = None
    model_privacy: tuple[Privacy, ...] | None = None
    operators: tuple[str, ...] | None = None


DEFAULT = {"": Variant("")}


@dataclass(frozen=True)
class BackendInfo:
    """``backend.toml``, read.

    lowering: the lowering of the network that the owner receives.
    workloads: what it does (`bench.trials.WORKLOADS`).
    scenarios, model_privacy, operators: what it supports; operators of `models.network`, ``None`` for all of them. Who asks
    for anything else gets a record that says so, and no party is started.
    distributions: the Python distributions whose versions belong in a record.
    python: the interpreter of the party processes; "" for the harness's own.
    variants: by name, the default one is "".
    test_only: not part of a suite, and hidden by ``bench list`` unless asked for.
    """

    name: str
    module: str
    folder: Path
    title: str
    scheme: str
    lowering: str
    workloads: tuple[str, ...] = ("inference",)
    scenarios: tuple[str, ...] = ("single-stream",)
    model_privacy: tuple[str, ...] = ("plain",)
    operators: tuple[str, ...] | None = None
    distributions: tuple[str, ...] = ()
    python: str = ""
    variants: Mapping[str, Variant] = field(default_factory=lambda: DEFAULT)
    test_only: bool = False

    def refuses(
        self, scenario: str, model_privacy: str, operators: Iterable[str] = (), workload: str = "inference"
    ) -> str:
        """Why it cannot do that; "" if it can."""
        if workload not in self.workloads:
            return f"it does not do the workload {workload}, only {', '.join(self.workloads)}"
        if scenario not in self.scenarios:
            return f"it does not have the scenario {scenario}, only {', '.join(self.scenarios)}"
        if model_privacy not in self.model_privacy:
            return f"it does not have model privacy {model_privacy}, only {', '.join(self.model_privacy)}"
        if self.operators is not None and (missing := sorted(set(operators) - set(self.operators))):
            return f"it does not evaluate {', '.join(missing)}, only {', '.join(self.operators)}"
        return ""

    def load(self) -> ModuleType:
        """Imports the backend (and its FHE library)."""
        return importlib.import_module(self.module)


class _Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's content with its types; see `BackendInfo`."""

    title: str
    scheme: str
    lowering: Lowering
    workloads: tuple[Workload, ...] = ("inference",)
    scenarios: tuple[Scenario, ...] = ("single-stream",)
    model_privacy: tuple[Privacy, ...] = ("plain",)
    operators: tuple[str, ...] | None = None
    distributions: tuple[str, ...] = ()
    python: str = ""
    variants: dict[VariantName, str | Variant] | None = None
    test_only: bool = False


@dataclass(frozen=True)
class Broken:
    """A backend of another package that cannot be used. where: its entry point."""

    name: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"the backend {self.name!r} of {self.where} is left out: {self.reason}"


def _read(name: str, module: str, folder: Path) -> BackendInfo:
    """Raises OSError, ValueError."""
    found = msgspec.toml.decode((folder / "backend.toml").read_bytes(), type=_Description)
    if found.variants and "" not in found.variants:
        raise ValueError('variants lack the default one, ""')
    variants = {n: Variant(v) if isinstance(v, str) else v for n, v in (found.variants or DEFAULT).items()}
    return BackendInfo(
        name=name, module=module, folder=folder, **msgspec.structs.asdict(found) | {"variants": variants}
    )


def _read_plugin(point: EntryPoint, known: Mapping[str, BackendInfo]) -> BackendInfo:
    """Raises whatever is wrong with it."""
    if not re.fullmatch(NAME, point.name):
        raise ValueError("a name is a letter, then letters, digits, '_', '.' and '-'")
    if point.name in known:
        raise ValueError(f"{known[point.name].module} has this name; choose another")
    top, *rest = point.value.split(".")
    spec = importlib.util.find_spec(top)  # of the top package only: finding a submodule would import its parent
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"there is no package {top}")
    return _read(point.name, point.value, Path(spec.submodule_search_locations[0]).joinpath(*rest))


@functools.cache
def _registry() -> tuple[Mapping[str, BackendInfo], tuple[Broken, ...]]:
    found = {
        p.parent.name: _read(p.parent.name, f"backends.{p.parent.name}", p.parent) for p in HERE.glob("*/backend.toml")
    }
    broken = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            found[point.name] = _read_plugin(point, found)
        except Exception as error:  # what others install must not keep ours from working, whatever is wrong with it
            broken.append(Broken(point.name, point.value, str(error) or type(error).__name__))
    return dict(sorted(found.items())), tuple(broken)


def backends() -> Mapping[str, BackendInfo]:
    """All registered backends by name, in alphabetical order."""
    return _registry()[0]


def broken() -> tuple[Broken, ...]:
    """Those of other packages that cannot be used."""
    return _registry()[1]


def resolve(spec: str) -> tuple[BackendInfo, str]:
    """``"ckks:naive"`` → (its BackendInfo with what the variant has of its own, ``"naive"``). Raises UnknownBackend."""
    name, colon, variant = spec.partition(":")
    known = backends()
    if name not in known:
        for plugin in broken():
            if plugin.name == name:
                raise UnknownBackend(str(plugin))
        raise UnknownBackend(f"unknown backend {name!r}: choose from {', '.join(known)}")
    info = known[name]
    if variant not in info.variants or (colon and not variant):
        choices = ", ".join(f"{name}:{v}" if v else name for v in info.variants)
        raise UnknownBackend(f"backend {name!r} has no variant {variant!r}: choose from {choices}")
    own = msgspec.structs.asdict(info.variants[variant])
    return dataclasses.replace(info, **{k: v for k, v in own.items() if k != "about" and v is not None}), variant
