"""The adapter layer and its place in a model. Torch only."""

STARTS = ("paper", "lora")
"""How an adapter starts: c = 0 with A and B random, or as LoRA does, with B = 0 and c = 1."""
