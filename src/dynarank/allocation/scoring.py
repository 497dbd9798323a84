"""What an allocator judges its components by: one of `SCORES`, or scores that it was given."""

from __future__ import annotations

import torch
from torch import Tensor

from dynarank.allocation.components import Components, component_parameters
from dynarank.allocation.config import SCORES
from dynarank.allocation.controls import random_scores
from dynarank.allocation.fisher import Fisher
from dynarank.allocation.importance import layer_importance, layer_norms, smooth
from dynarank.allocation.sensitivity import Sensitivity


class Scorer:
    """Scores the components of some layers, step by step.

    Args:
        layers: in model order.
        score: one of `SCORES`.
        cost_aware: whether the budget counts parameters, which `random` must know.
        seed: of `random`.
        fixed: scores in place of any, (n) in layer order; None for those that `score` names.

    Raises:
        ValueError: an unknown score, or fixed scores of another number than the components.
    """

    def __init__(
        self,
        layers: list[Components],
        score: str,
        cost_aware: bool,
        seed: int,
        fixed: Tensor | None = None,
    ) -> None:
        if score not in SCORES:
            raise ValueError(f"score = {score!r}: must be one of {', '.join(SCORES)}")
        self.layers = layers
        self.score = score
        self.sensitivity = Sensitivity(layers) if score == "sensitivity" else None
        self.fisher = Fisher(layers) if score == "fisher" else None
        if score == "random" and fixed is None:
            sizes = [layer.r for layer in layers]
            costs = None
            if cost_aware:
                costs = [component_parameters(layer) for layer in layers]
            fixed = random_scores(sizes, costs, seed)
        components = sum(layer.r for layer in layers)
        if fixed is not None and fixed.shape != (components,):
            raise ValueError(
                f"fixed_scores has the shape {list(fixed.shape)}, and the layers have {components} "
                "components together: give one score for each, in layer order"
            )
        self.fixed = fixed

    def observe(self, grad_scale: Tensor | None) -> None:
        """Take in the gradients of the coming step, where the score needs them (`Fisher`)."""
        if self.fisher is not None:
            self.fisher.observe(grad_scale)

    def smoothed(self, ema: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Return this step's scores and their moving average, both (n) on the average's device.

        Scores that are fixed, or that smooth themselves, are returned in place of an average.
        """
        if self.fixed is not None:
            self.fixed = self.fixed.to(ema.device)
            return self.fixed, self.fixed
        scores = torch.cat([of_layer.to(ema.device) for of_layer in self._of_layers()])
        if self.sensitivity is not None:  # AdaLoRA's has a smoothing of its own
            return scores, scores
        return scores, smooth(ema, scores, beta)

    def _of_layers(self) -> list[Tensor]:
        """Return the scores by layer, (r') each."""
        if self.sensitivity is not None:
            return self.sensitivity()
        if self.fisher is not None:
            return self.fisher()
        if self.score == "relative":
            return layer_importance(self.layers)
        return layer_norms(self.layers)
