"""CKKS on TenSEAL: the packing engine over SEAL, and TenSEAL's own tensor API as the variant ``naive``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from backends.ckks.naive import NaiveClient, NaiveOwner, NaiveServer
from backends.ckks.seal import Seal
from backends.slots.roles import SlotsClient, SlotsOwner, SlotsServer
from backends.variants import VariantOwner, VariantParty

LIBRARY = Seal()
owner = partial(SlotsOwner, LIBRARY, Path(__file__).parent, hoisting=False)
parties = (partial(SlotsClient, LIBRARY), partial(SlotsServer, LIBRARY))
VARIANTS = {
    "": (owner, *parties),
    "upload": (partial(owner, objective="upload"), *parties),
    "memory": (partial(owner, objective="memory"), *parties),
    "naive": (NaiveOwner, NaiveClient, NaiveServer),
}
Owner = partial(VariantOwner, VARIANTS)
Client = partial(VariantParty, VARIANTS, 1)
Server = partial(VariantParty, VARIANTS, 2)
