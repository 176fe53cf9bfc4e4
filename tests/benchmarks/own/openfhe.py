from __future__ import annotations

from functools import partial

from backends.openfhe import LIBRARY, VARIANTS, Client, Owner
from backends.variants import VariantParty
from tests.benchmarks.own import OwnProductsServer

Server = partial(VariantParty, VARIANTS | {"": (*VARIANTS[""][:2], partial(OwnProductsServer, LIBRARY))}, 2)
__all__ = ["Client", "Owner", "Server"]
