"""Housekeeping around Concrete's calls."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def temporaries_in(folder: str) -> Iterator[None]:
    """Concrete unpacks and compiles into temporary folders that it never removes; these lie inside `folder`."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before
