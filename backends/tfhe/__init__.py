"""TFHE on Concrete: the quantised network, one programmable bootstrapping (PBS) for each activation.

In the variant ``logits`` the server adds up wide logits. ``naive`` is Concrete ML's own way from a float network.
"""

from __future__ import annotations

from functools import partial

from backends.tfhe import parties
from backends.tfhe.naive import NaiveClient, NaiveOwner
from backends.tfhe.owner import Owner as DefaultOwner
from backends.variants import VariantOwner, VariantParty, Variants

VARIANTS: Variants = {
    "": (DefaultOwner, parties.Client, parties.Server),
    "logits": (DefaultOwner, parties.Client, parties.Server),
    "naive": (NaiveOwner, NaiveClient, parties.Server),
}
Owner = partial(VariantOwner, VARIANTS)
Client = partial(VariantParty, VARIANTS, 1)
Server = partial(VariantParty, VARIANTS, 2)
