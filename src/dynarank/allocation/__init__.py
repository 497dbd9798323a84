"""How ranks are scored, scheduled and distributed over a model. Torch only."""
