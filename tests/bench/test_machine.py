"""What a record says of its source."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commit_of(packages: Path) -> str:
    """`git_commit` of a copy of the packages, in a process of its own."""
    code = "from bench.machine import git_commit; print(git_commit())"
    run = subprocess.run([sys.executable, "-c", code], cwd=packages, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@e")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("where", [".venv/lib/site-packages", "vendor", "."])
def test_the_commit_of_another_project_is_not_ours(tmp_path: Path, where: str) -> None:
    """As a wheel is unpacked: into a folder that git ignores, one that is tracked, or beside the project's files."""
    packages = tmp_path / where
    for package in ("bench", "backends", "models"):
        shutil.copytree(ROOT / package, packages / package, ignore=shutil.ignore_patterns("weights", "templates"))
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text(".venv\n")
    git(tmp_path, "add", ".gitignore", *(["vendor"] if where == "vendor" else []))
    git(tmp_path, "commit", "-m", "theirs")
    assert commit_of(packages) == ""
    if where == ".":
        git(tmp_path, "add", "bench/machine.py")
        git(tmp_path, "commit", "-m", "a checkout of this project")
        assert commit_of(packages) == git(tmp_path, "rev-parse", "HEAD").strip()
        (packages / "bench" / "machine.py").open("a").write("#\n")
        assert commit_of(packages).endswith("+")
