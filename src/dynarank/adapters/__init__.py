"""The adapter layer, its place in a model, and the files that it is written to. Torch only."""

STARTS = ("paper", "lora")
"""How an adapter starts.

`paper`: A and B are random and c = 0. `lora`: as LoRA starts, with B = 0 and c = 1.
"""
