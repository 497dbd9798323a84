"""The adapter layer, its place in a model, and the files that it is written to. Torch only.

Read in this order:

    layer.py         the layer: y = W0 x + s B (c * (A x)) (Eq. 6)
    inject.py        finds a model's linear maps and puts layers around them
    folding.py       makes plain LoRA factors of a trained layer, or merges it into its base weight
    peft_format.py   writes a PEFT adapter, in one of the forms of reader_forms.py
    compress.py      makes any trained LoRA adapter smaller

The rest is for speed and memory (`fast_path`, `masked_products`, `dropout_masks`, `cutting`), for
reading adapters (`lora_files`, `adapter_checks`, `rank_patterns`), and small parts.
"""

from __future__ import annotations

import math

STARTS = ("paper", "lora", "orthogonal", "orthogonal_A")
"""How an adapter starts.

`paper`: A and B are random and c = 0. `lora`: as LoRA starts, with B = 0 and c = 1.
`orthogonal`: A's rows and B's columns are random directions of length one at right angles, and
c = 0. `orthogonal_A`: A's rows alone are such directions, B = 0, and c stays at 1, untrained.
"""

FORMS = ("peft", "gguf", "padded", "mlx")
"""The forms in which an adapter may be written; `reader_forms` says which program reads which."""


def check_settings(r: int, alpha: float, dropout: float, start: str) -> None:
    """Raise `ValueError` for a setting that an adapter layer cannot have; the message names it.

    The settings are those of `DoRALinear`.
    """
    if r < 1 or r % 1 != 0:
        raise ValueError(f"r = {r}: a layer starts with a whole number of components, at least 1")
    if not 0 < alpha < math.inf:  # this refuses NaN, too
        raise ValueError(f"alpha = {alpha}: must be above 0, and finite")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must lie in [0, 1)")
    if start not in STARTS:
        raise ValueError(f"start = {start!r}: must be one of {', '.join(STARTS)}")
