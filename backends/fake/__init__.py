"""The `clear` backend with a fault in it, named by the variant. No FHE library: it tests the harness end to end."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from typing import Any

import numpy as np

from backends import clear
from backends.api import InsecureError, Job, Prepared

Client = clear.Client


class Owner:
    _explained = 0

    def explain(self, job: Job) -> dict[str, Any]:
        """What a search asks for; of costs that mean nothing."""
        self._explained += 1
        if job.variant == "dead" or (job.variant == "mortal" and self._explained == 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"parameters": {"complexity": 1.0}, "operations": {}, "bytes": {"keys": 1}}

    def prepare(self, job: Job) -> Prepared:
        if job.variant == "insecure":
            raise InsecureError(
                "ring dimension 1024 with log2(QP) = 200 is below 128 bits; use a larger ring dimension"
            )
        prepared = clear.Owner().prepare(job)
        return dataclasses.replace(prepared, server=job.variant.encode().ljust(16) + prepared.server)


class Server(clear.Server):
    def load(self, artifact: bytes) -> None:
        self._variant = artifact[:16].decode().strip()
        super().load(artifact[16:])

    def infer(self, ciphertexts: np.ndarray) -> np.ndarray:
        logits = super().infer(ciphertexts)
        match self._variant:
            case "slow":
                time.sleep(0.05 * len(ciphertexts))
            case "hang":
                time.sleep(3600)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "oom":
                np.empty(1 << 50, np.uint8)  # more than any address space
            case "greedy":
                np.empty(8 << 30, np.uint8)  # never touched: a limit of the address space forbids it, else it is free
            case "error":
                raise RuntimeError("the library failed")
            case "wrong":
                return -logits
            case "nan":
                return logits * np.nan
        return logits
