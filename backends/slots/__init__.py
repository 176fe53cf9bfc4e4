"""Packed linear algebra for CKKS: one plan, many libraries.

::

    Network ──blocks──► affine, square, affine, … ──planner──► Plan ──execute──► any `Library`
                                                   (layouts, rotations,          (TenSEAL/SEAL, OpenFHE,
                                                    moduli, scales)               NumPy simulator)

`docs/packing.md` explains layouts and planner with a worked example.
"""
