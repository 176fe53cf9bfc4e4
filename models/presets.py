"""How the integer networks of the models are made: `models.catalogue` names them, `bench tune` looked for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from models.quantised import Quantisation


@dataclass(frozen=True)
class Preset:
    """real: the lowering that is trained first and then quantised. architecture: options of the model's class.

    fine_tuned: behind quantisers (`models.quantised`), which takes a chain; else quantised after training (`models.ptq`).
    """

    bits: Quantisation = field(default_factory=Quantisation)
    real: str = "polynomial"
    architecture: dict[str, Any] = field(default_factory=dict)
    fine_tuned: bool = True


# Polynomials: behind a table a degree-2 activation costs what ReLU costs, and one such neuron does the work of two.
PRESETS = {
    # Narrow output weights: wide ones need a second level of the bootstrap key, however logits are split.
    "fcnn@fast": Preset(Quantisation(output_weight_bits=3), architecture={"hidden": 16, "pooling": 2}),
    "fcnn@balanced": Preset(Quantisation(output_weight_bits=3), architecture={"hidden": 24, "pooling": 2}),
    "fcnn@accurate": Preset(Quantisation(output_weight_bits=3), architecture={"hidden": 64}),
    # Sadhana and Senthilkumar, Scientific Reports 2025; how much they prune is not published.
    "fcnn@sadhana2025": Preset(
        Quantisation(weight_bits=4, accumulator_bits=None, pruning=0.5), "float", {"hidden": 392}
    ),
    # Many activations: fewer bits for each.
    "polycnn": Preset(Quantisation(accumulator_bits=4, activation_bits=3, output_weight_bits=4)),
    "polycnn-s": Preset(Quantisation(accumulator_bits=4, activation_bits=3, output_weight_bits=4)),
    # Latents have a sign and gates are products: quantised after training, which takes any graph.
    **{
        f"latentcnn{gate}{reads}": Preset(fine_tuned=False)
        for gate in ("", "-se")
        for reads in ("", "@quantised", "@image")
    },
    **{f"hefnet{gate}": Preset(fine_tuned=False) for gate in ("", "-se")},
}
