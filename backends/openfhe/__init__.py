"""CKKS on OpenFHE: the packing engine, the textbook diagonal method (variant ``naive``), and true ReLU (``relu``)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from backends.openfhe.library import Openfhe
from backends.openfhe.naive import NaiveClient, NaiveOwner, NaiveServer
from backends.openfhe.relu import ReluLibrary, ReluOwner
from backends.slots.roles import SlotsClient, SlotsServer, variants
from backends.variants import VariantOwner, VariantParty

LIBRARY = Openfhe()
FOLDER = Path(__file__).parent
VARIANTS = variants(LIBRARY, FOLDER, hoisting=True, naive=(NaiveOwner, NaiveClient, NaiveServer)) | {
    "relu": (partial(ReluOwner, FOLDER), *(partial(party, ReluLibrary()) for party in (SlotsClient, SlotsServer)))
}
Owner = partial(VariantOwner, VARIANTS)
Client = partial(VariantParty, VARIANTS, 1)
Server = partial(VariantParty, VARIANTS, 2)
