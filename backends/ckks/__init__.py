"""CKKS on TenSEAL: the packing engine over SEAL, and TenSEAL's own tensor API as the variant ``naive``."""

from __future__ import annotations

import os
from pathlib import Path

from backends.ckks.seal import Seal
from backends.slots.roles import SlotsClient, SlotsOwner, SlotsServer

LIBRARY = Seal()


class Owner(SlotsOwner):
    def __init__(self) -> None:
        super().__init__(LIBRARY, Path(__file__).parent, hoisting=False)


class Client(SlotsClient):
    def __init__(self) -> None:
        super().__init__(LIBRARY)


class Server(SlotsServer):
    def __init__(self) -> None:
        super().__init__(LIBRARY, threads=len(os.sched_getaffinity(0)))
