"""CKKS on TenSEAL: the packing engine over SEAL, and TenSEAL's own tensor API as the variant ``naive``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from backends.ckks.naive import NaiveClient, NaiveOwner, NaiveServer
from backends.ckks.seal import Seal
from backends.slots.roles import variants
from backends.variants import VariantOwner, VariantParty

LIBRARY = Seal()
VARIANTS = variants(LIBRARY, Path(__file__).parent, hoisting=False, naive=(NaiveOwner, NaiveClient, NaiveServer))
Owner = partial(VariantOwner, VARIANTS)
Client = partial(VariantParty, VARIANTS, 1)
Server = partial(VariantParty, VARIANTS, 2)
