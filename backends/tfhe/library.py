"""Concrete's settings that must be in place before it is imported, or around its calls."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator


def use_threads(threads: int) -> None:
    """For OpenMP (the compiled circuit's parallel loops) and Rayon (key generation); before Concrete is imported.

    Libraries read these variables once, so it has no effect in a process that has already used them.
    """
    for variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)


@contextlib.contextmanager
def temporaries_in(folder: str) -> Iterator[None]:
    """Concrete unpacks and compiles into temporary folders that it never removes; these lie inside `folder`."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before
