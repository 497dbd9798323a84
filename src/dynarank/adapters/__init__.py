"""The adapter layer and its place in a model. Torch only."""
