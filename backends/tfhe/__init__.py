"""TFHE on Concrete ML: the quantised network, one programmable bootstrapping (PBS) for each activation."""

from backends.tfhe.owner import Owner
from backends.tfhe.parties import Client, Server

__all__ = ["Client", "Owner", "Server"]
