"""How budgets are rounded, everywhere alike. No torch."""

from __future__ import annotations

import math


def round_half_up(value: float) -> int:
    """Return the nearest whole number; of two as near, the higher. Every budget is rounded so."""
    # Binary fractions lie beside the decimal ones that were typed: 0.35 x 10 is 3.4999...
    return math.floor(value + 0.5 + 1e-9)


def divide_up(number: int, divisor: int) -> int:
    """Return a quotient of whole numbers, rounded up: how many parts of a size hold a number."""
    # // rounds down; of the negative number, that is up.
    return -(-number // divisor)
