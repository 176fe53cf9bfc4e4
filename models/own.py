"""Networks that a user brings as ONNX files: how each is lowered for a backend, and where what was trained from it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.tasks import Task, user_cache

if TYPE_CHECKING:
    pass


def stem(sha256: str, task: Task, lowering: str) -> Path:
    """Where a network that was trained from a file is kept (as `Network.save` names files): by what the file holds, not
    by its name. sha256: of the file."""
    return user_cache() / "networks" / "own" / sha256[:16] / f"{task.name}.{lowering}"
