"""Backends whose server evaluates image-in-slot plans by the library's own products: the yardstick of residue products."""

from __future__ import annotations

from backends.slots.execute import Program
from backends.slots.roles import SlotsServer


class OwnProductsServer(SlotsServer):
    def load(self, artifact: bytes) -> None:
        super().load(artifact)
        self._program = Program(self._plan, self._evaluator, self._moduli)
