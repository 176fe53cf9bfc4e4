"""CKKS on OpenFHE: the packing engine, and the textbook diagonal method as the variant ``naive``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from backends.openfhe.library import Openfhe
from backends.openfhe.naive import NaiveClient, NaiveOwner, NaiveServer
from backends.slots.roles import SlotsClient, SlotsOwner, SlotsServer
from backends.variants import VariantOwner, VariantParty

LIBRARY = Openfhe()
owner = partial(SlotsOwner, LIBRARY, Path(__file__).parent, hoisting=True)
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
