"""Feeds mutated bytes, guided by coverage, to what reads messages between the parties::

    pip install 'fhe-medmnist-bench[fuzz]' && python tests/fuzz/decode.py -max_total_time=60

Any exception but `WireError` ends it with a traceback and leaves the input in a file ``crash-…``; the options are
libFuzzer's. `tests/fuzz/test_decode.py` runs it for a while.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["backends.wire"]):
    from backends import wire
from backends.wire import Message, WireError


def one(data: bytes) -> None:
    """As a whole frame, as a header behind a right prefix, and as an array."""
    for frame in (data, wire.PREFIX.pack(wire.MAGIC, len(data), 0) + data):
        with contextlib.suppress(WireError):
            decoded = wire.decode(frame)
            assert wire.decode(wire.encode(decoded)).blobs == decoded.blobs
    with contextlib.suppress(WireError):
        wire.array_from_bytes(data)


def seeds(folder: Path) -> None:
    import numpy as np

    message = Message({"operation": "load", "seed": 1}, {"artifact": b"abc", "keys": b""})
    (folder / "message").write_bytes(wire.encode(message))
    (folder / "header").write_bytes(b'{"operation": "infer", "blobs": []}')
    (folder / "array").write_bytes(wire.array_to_bytes(np.arange(6.0, dtype=np.float32).reshape(2, 3)))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-") and Path(argument).is_dir():
            seeds(Path(argument))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
