"""CKKS on OpenFHE: the packing engine, the textbook diagonal method (variant ``naive``), and true ReLU (``relu``)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from backends.openfhe.library import Openfhe
from backends.openfhe.naive import NaiveClient, NaiveOwner, NaiveServer
from backends.openfhe.relu import ReluOwner
from backends.slots.roles import variants
from backends.slots.trainers import Trainer
from backends.variants import TRAIN, VariantOwner, VariantParty

LIBRARY = Openfhe()
FOLDER = Path(__file__).parent
VARIANTS = variants(LIBRARY, FOLDER, hoisting=True, naive=(NaiveOwner, NaiveClient, NaiveServer))
VARIANTS["relu"] = (partial(ReluOwner, LIBRARY, FOLDER, hoisting=True), *VARIANTS[""][1:])
VARIANTS[TRAIN + "bootstrap"] = (
    partial(Trainer, LIBRARY, FOLDER, kind="bootstrap", hoisting=True),
    *VARIANTS[TRAIN][1:],
)
Owner = partial(VariantOwner, VARIANTS)
Client = partial(VariantParty, VARIANTS, 1)
Server = partial(VariantParty, VARIANTS, 2)
