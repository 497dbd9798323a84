"""The adapter layer, its place in a model, and the files that it is written to. Torch only."""

from __future__ import annotations

STARTS = ("paper", "lora")
"""How an adapter starts.

`paper`: A and B are random and c = 0. `lora`: as LoRA starts, with B = 0 and c = 1.
"""

FORMS = ("peft", "gguf", "padded", "mlx")
"""What an adapter may be written as: `reader_forms` says who reads each."""


def check_settings(r: int, alpha: float, dropout: float, start: str) -> None:
    """Raise `ValueError` for a setting that an adapter layer cannot have; the message names it."""
    if r < 1:
        raise ValueError(f"r = {r}: a layer starts with at least 1 component")
    if alpha <= 0:
        raise ValueError(f"alpha = {alpha}: must be above 0")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must lie in [0, 1)")
    if start not in STARTS:
        raise ValueError(f"start = {start!r}: must be one of {', '.join(STARTS)}")
