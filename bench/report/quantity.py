"""Figures for people: three significant digits and a fitting unit. CSV and sorting use the figures themselves."""

from __future__ import annotations

import math

THIN_SPACE = "\u202f"  # narrow, and no line breaks at it
_SECONDS = ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))
_BYTES = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"))  # decimal, as networks and disks count


def with_unit(value: float, unit: str) -> str:
    """`value` in `unit` ("s", "bytes", a plain word, or "") as text: ``17.2 ms``, ``36.1 kB``, ``0.875``, ``8 192``."""
    if unit == "s":
        return _scaled(value, _SECONDS)
    if unit == "bytes":
        return _scaled(value, _BYTES)
    return grouped(value) if isinstance(value, int) else digits(value)


def interval(low: float, high: float, unit: str) -> str:
    """Both ends, and the unit once if they share it: ``21.1–21.9 ms``, ``0.838–0.952``, ``980 µs – 1.10 ms``."""
    ends = [with_unit(end, unit).partition(" ") for end in (low, high)]
    if ends[0][2] == ends[1][2]:
        return f"{ends[0][0]}–{''.join(ends[1])}"
    return " – ".join("".join(end) for end in ends)


def times(ratio: float) -> str:
    """A ratio: ``1.42×``, ``5 310×``."""
    return f"{digits(ratio)}×"


def digits(value: float) -> str:
    """Three significant digits without an exponent where that stays readable; shares keep three decimals."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size == 0 or 0.1 <= size < 1:
        return f"{value:.3f}"
    if size >= 100:
        return grouped(round(value, 2 - math.floor(math.log10(size))))
    if size >= 1e-3:
        return f"{value:.{2 - math.floor(math.log10(size))}f}"
    return f"{value:.2g}"


def grouped(value: float) -> str:
    """A whole number, its thousands apart."""
    return f"{value:,.0f}".replace(",", THIN_SPACE)


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    value = float(f"{value:.3g}")  # rounded first: 999.9 µs is 1.00 ms
    factor, name = next((step for step in reversed(steps) if abs(value) >= step[0]), steps[0])
    scaled = value / factor
    return f"{grouped(scaled) if name == 'B' else digits(scaled)} {name}"
