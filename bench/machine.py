"""What a record says of the machine, the libraries and the source it ran with."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from backends.registry import HERE as BACKENDS
from backends.registry import BackendInfo
from models.zoo import HERE as MODELS

OWN = "fhe-medmnist-bench"
ALWAYS = ("numpy", OWN)
HERE = Path(__file__).parents[1]  # the top of a checkout, or where packages are installed
AVX_FLAGS = ("avx", "avx2", "avx512f", "avx512ifma")


@functools.cache
def machine() -> dict[str, Any]:
    """Static facts; two records are comparable in time if these are equal."""
    from cpuinfo import get_cpu_info

    cpu = get_cpu_info()
    return {
        "host": hashlib.sha256(platform.node().encode()).hexdigest()[:12],  # tells machines apart, names none
        "cpu": cpu.get("brand_raw", platform.processor() or "unknown"),
        "cpu_flags": " ".join(flag for flag in AVX_FLAGS if flag in cpu.get("flags", ())),
        "cores": available_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def available_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@functools.cache
def versions(distributions: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in (*ALWAYS, *distributions):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def git_commit() -> str:
    """Commit of the source, with ``+`` behind it if files differ from it; "" outside a checkout of this project.

    Packages that were installed inside another project's checkout are no part of it.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "bench/machine.py")
        if not HERE.samefile(git("rev-parse", "--show-toplevel")):
            return ""
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def source_sha256(backend: BackendInfo) -> str:
    """Of all code that a party may run: the backend's folder, the shared part of `backends`, and the network's readers."""
    return _source_sha256(backend.folder)


@functools.cache
def _source_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    shared = [*BACKENDS.glob("*.py"), *(BACKENDS / "slots").glob("*.py"), MODELS / "__init__.py", MODELS / "network.py"]
    own = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in sorted({*shared, *own}):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
