"""A backend with the mistakes that a newcomer's may have, chosen by the job's variant; see `test_runner`."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np

from backends import clear
from backends.api import BackendError, Job, Prepared
from backends.wire import array_from_bytes, array_to_bytes

LARGE = "large keys and messages"
REPORTS = {
    "report no JSON": {"parameters": {"ring_dimension": np.int64(8192)}},
    "report of wrong type": {"operations": {"rotations": "twelve"}},
    "no images in a request": {"batch": 0},
    "insecure and silent": {"security": {"bits": 100, "standard": "none"}},
    "security as text": {"security": {"bits": "128", "standard": "none"}},
    "notes with escapes": {"notes": {"\x1b]0;owned\x07": ["\x1b[2J", "\udcff"]}, "parameters": {"bits": 3}},
}


class Owner:
    def prepare(self, job: Job) -> Prepared:
        prepared = clear.Owner().prepare(job)
        prepared = dataclasses.replace(prepared, security={"bits": 128, "standard": "none"}, batch=2)
        artifacts = {"client": job.variant.encode(), "server": job.variant.encode() + b"\0" + prepared.server}
        return dataclasses.replace(prepared, **artifacts, **REPORTS.get(job.variant, {}))


class Client(clear.Client):
    def load(self, artifact: bytes) -> None:
        self._variant = artifact.decode()

    def keygen(self, seed: int) -> dict[str, bytes]:
        if self._variant == LARGE:
            return {"large": os.urandom(64_000_000)}
        if self._variant == "names with escapes":
            return {"\x1b[31mred": b"a"}
        return {"header": b"a", "self": b"bc", "blobs": b""}  # names that the protocol uses itself

    def serialise(self, ciphertexts: np.ndarray) -> bytes:
        return "text" if self._variant == "message no bytes" else super().serialise(ciphertexts)

    def deserialise(self, response: bytes) -> np.ndarray:
        return _large(response) if self._variant == LARGE else super().deserialise(response)

    def decrypt(self, ciphertexts: np.ndarray) -> np.ndarray:
        if self._variant == LARGE:
            return ciphertexts[0]
        changes = {
            "logits flat": np.ravel,
            "logits twice": lambda logits: np.stack([logits, logits]),
            "logits of fewer images": lambda logits: logits[:1],
            "logits complex": lambda logits: logits + 0j,
        }
        return changes.get(self._variant, np.asarray)(ciphertexts)


class Server(clear.Server):
    def load(self, artifact: bytes) -> None:
        variant, _, network = artifact.partition(b"\0")
        self._variant = variant.decode()
        super().load(network)

    def load_keys(self, keys: dict[str, bytes]) -> None:
        if self._variant == LARGE:
            self._keys = bytearray(keys["large"])
            return
        assert keys == {"header": b"a", "self": b"bc", "blobs": b""}

    def deserialise(self, request: bytes) -> Any:
        return _large(request) if self._variant == LARGE else super().deserialise(request)

    def infer(self, ciphertexts: Any) -> np.ndarray:
        if self._variant == LARGE:
            return super().infer(ciphertexts[0])
        if self._variant == "exits":
            print("license expired", file=sys.stderr)
            sys.exit(3)
        if self._variant == "refuses with escapes":
            raise BackendError("\x1b]0;owned\x07\x9b31m bad\rkey")
        if self._variant == "exits with escapes":
            print("license \x1b[2Jexpired", file=sys.stderr)
            sys.exit(3)
        if self._variant == "sessions":
            for prefix in ([], ["env", "-i"]):  # daemons, of which the second hides where it comes from
                sleep = f"import time; time.sleep(3600 + {os.getppid()})"
                subprocess.Popen([*prefix, sys.executable, "-c", sleep], start_new_session=True)
            orphan = (
                "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
            )
            subprocess.run([sys.executable, "-c", orphan, sleep], start_new_session=True, check=True)
        if self._variant == "child":
            work = f"import time\nwhile time.process_time() < 1: pass\nprint(flush=True)\ntime.sleep(3600 + {os.getppid()})"
            child = subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE)
            child.stdout.readline()
        if self._variant == "allocates":
            self._ballast = array_to_bytes(np.ones(25_000_000))
        if self._variant == "releases":
            np.ones(25_000_000)
        if self._variant == "works hard":
            sum(range(2_000_000))
        return super().infer(ciphertexts)


def _large(message: bytes) -> tuple[np.ndarray, bytearray]:
    """An array, and 32 MB that it takes in memory though not in the message; as much more is used on the way."""
    bytearray(b"x") * 64_000_000
    return array_from_bytes(message), bytearray(b"x") * 32_000_000
