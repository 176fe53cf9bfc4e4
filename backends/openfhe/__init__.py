"""CKKS on OpenFHE: the packing engine, and the textbook diagonal method as the variant ``naive``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from backends.openfhe.library import Openfhe
from backends.openfhe.naive import NaiveClient, NaiveOwner, NaiveServer
from backends.slots.roles import variants
from backends.variants import VariantOwner, VariantParty

LIBRARY = Openfhe()
VARIANTS = variants(LIBRARY, Path(__file__).parent, hoisting=True, naive=(NaiveOwner, NaiveClient, NaiveServer))
Owner = partial(VariantOwner, VARIANTS)
Client = partial(VariantParty, VARIANTS, 1)
Server = partial(VariantParty, VARIANTS, 2)
