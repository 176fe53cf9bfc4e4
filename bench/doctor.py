"""``python -m bench doctor``: what is installed, whether it works, and the cure for what does not."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from backends.registry import backends, broken
from bench import machine
from models import tasks

INTERPRETER = (3, 10)  # the only one for which concrete-ml 1.9.0 and openfhe's wheel are both built
IMPORT_TIMEOUT_S = 120
INSTALL = "install the locked versions: pip install -r requirements.lock"
# distribution → module; distributions that only a backend names are imported by their own name
LIBRARIES = {
    "torch": "torch",
    "brevitas": "brevitas",
    "medmnist": "medmnist",
    "concrete-ml": "concrete.ml",
    "concrete-python": "concrete.fhe",
    "tenseal": "tenseal",
    "openfhe": "openfhe",
    "numpy": "numpy",
    "pandas": "pandas",
}
TOGETHER = ("torch", "brevitas", "medmnist")  # each imports those before it, which takes most of its time
IMPORTED = "\1imported\1"


@dataclass(frozen=True)
class Finding:
    """ok: True, False, or None for what only limits what can be run. cure: empty if nothing is wrong."""

    subject: str
    ok: bool | None
    found: str
    cure: str = ""


def run(data_dir: Path | None) -> bool:
    """Prints all findings as they are made; returns whether everything necessary is there."""
    from rich.console import Console

    console, healthy = Console(soft_wrap=True), True
    for finding in findings(data_dir):
        mark = {True: "[green]ok  [/]", False: "[red]FAIL[/]", None: "[yellow]note[/]"}[finding.ok]
        console.print(f"{mark}  {finding.subject:<16} {finding.found}", highlight=False)
        if finding.cure:
            console.print(f"      {'':<16} → {finding.cure}", highlight=False)
        healthy &= finding.ok is not False
    return healthy


def findings(data_dir: Path | None) -> Iterator[Finding]:
    yield _interpreter()
    yield from _machine()
    with ThreadPoolExecutor(machine.available_threads()) as pool:
        named = {d: d.replace("-", "_") for info in backends().values() for d in info.distributions} | LIBRARIES
        together = pool.submit(_import, [named[name] for name in TOGETHER])
        alone = {name: pool.submit(_import, [module]) for name, module in named.items() if name not in TOGETHER}
        for name in named:
            imported, place = (together, TOGETHER.index(name)) if name in TOGETHER else (alone[name], 0)
            yield _library(name, partial(_said, imported, place))
    for plugin in broken():
        yield Finding("plug-in", None, str(plugin), "tell its author, or uninstall it")
    yield _data(data_dir)
    yield _writable()


def _interpreter() -> Finding:
    right = sys.version_info[:2] == INTERPRETER
    cure = "" if right else "use CPython 3.10: `pyenv install 3.10`, or `uv python install 3.10`, then tox"
    return Finding("python", right, f"{platform.python_implementation()} {platform.python_version()}", cure)


def _machine() -> Iterator[Finding]:
    m = machine.machine()
    yield Finding("cpu", True, m["cpu"])
    missing = {"avx2"} - set(m["cpu_flags"].split())
    cure = "timings on a CPU without AVX2 are not comparable with others" if missing else ""
    yield Finding("cpu flags", None if missing else True, m["cpu_flags"] or "no AVX", cure)
    variables = {v: os.environ[v] for v in ("OMP_NUM_THREADS",) if v in os.environ}
    yield Finding("threads", True, f"{m['cores']} cores" + (f", {variables} (bench sets its own)" if variables else ""))
    gigabytes = m["memory_bytes"] / 1e9
    enough = gigabytes >= 8
    yield Finding(
        "memory", True if enough else None, f"{gigabytes:.1f} GB", "" if enough else "TFHE compiles need 8 GB"
    )


def _said(imported: Future[list[str]], place: int) -> str:
    return imported.result()[place]


def _library(name: str, wrong_with: Callable[[], str]) -> Finding:
    """wrong_with: waits for its import and says what `_import` does."""
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        return Finding(name, False, "not installed", INSTALL)
    tags = [line.removeprefix("Tag: ") for line in (installed.read_text("WHEEL") or "").splitlines() if "Tag:" in line]
    about = f"{installed.version}, wheel {', '.join(tags) or 'unknown'}{_abi(installed)}"
    if wrong := wrong_with():
        return Finding(name, False, f"{about}: {wrong}", INSTALL)
    return Finding(name, True, about)


def _import(modules: Sequence[str]) -> list[str]:
    """What is wrong with each of them, imported one after another in a process of its own; "" if nothing is.

    An import may crash, print, or latch the number of threads. Those after one that fails get another process.
    """
    if not modules:
        return []
    code = f"for module in {list(modules)}:\n exec('import ' + module)\n print({IMPORTED!r}, flush=True)"
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=IMPORT_TIMEOUT_S)
        good, last = done.stdout.count(IMPORTED), done.stderr.strip().splitlines()
        wrong = f"cannot be imported: {last[-1] if last else f'exit code {done.returncode}'}"
    except subprocess.TimeoutExpired as slow:
        good, wrong = (slow.stdout or b"").count(IMPORTED.encode()), f"the import takes over {IMPORT_TIMEOUT_S} s"
    if good == len(modules):
        return [""] * good
    return [""] * good + [wrong] + _import(modules[good + 1 :])


def _abi(installed: Distribution) -> str:
    """The CPython that compiled extensions are really built for: a tag may say py3-none-any and be wrong."""
    names = {p.name for p in installed.files or () if ".cpython-" in p.name and p.suffix == ".so"}
    abis = sorted({name.split(".cpython-")[1].split("-")[0] for name in names})
    return f", extensions for CPython {', '.join(abis)}" if abis else ""


def _data(data_dir: Path | None) -> Finding:
    here = [t.name for t in tasks.tasks().values() if not t.embedded and tasks.find(t, data_dir)]
    if here:
        return Finding("MedMNIST files", True, ", ".join(here))
    cure = (
        f"set {tasks.DATA_DIR_VARIABLE} or --data-dir to their folder; with a network they are downloaded on first use"
    )
    return Finding("MedMNIST files", None, "none found: suites run on the embedded task digits", cure)


def _writable() -> Finding:
    folder = Path("reports")
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Finding("reports folder", True, "writable")
    except OSError as error:
        return Finding("reports folder", False, str(error), "run from a folder that you may write to, or give --out")
