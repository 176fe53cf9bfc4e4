"""A run's folder on disk: files appear whole or not at all, and one run at a time writes to it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY = ".unfinished-"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LEFT_OVER = re.compile(re.escape(TEMPORARY) + "[a-z0-9_]{8}")  # as `tempfile` completes it
_WRITTEN = ("", "records", "figures")  # folders of a run, or of a search, in which `replace` works


class RunError(Exception):
    """A run that cannot start or go on; the message says what to do."""


def printable(value: Any) -> Any:
    """Plain JSON with control characters and lone surrogates (of a path that is no UTF-8, too) as escapes: they reach
    neither a terminal nor a record."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in value)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list) else value


def replace(path: Path, content: bytes) -> None:
    """Writes by an atomic rename: a reader never sees half a file, and a full disk leaves the old one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writer_of(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made if it is not there.

    Raises RunError if another run holds it, OSError if it cannot be made.

    The kernel releases the lock when this process ends, however it ends; what a killed one left unfinished is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    directory = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another run writes to {folder}; wait for its end or choose another --out") from None
        except OSError:
            pass  # a file system without locks
        for leftover in [path for name in _WRITTEN for path in folder.joinpath(name).glob(f"{TEMPORARY}*")]:
            if _LEFT_OVER.fullmatch(leftover.name) and leftover.is_file() and not leftover.is_symlink():
                leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(directory)
