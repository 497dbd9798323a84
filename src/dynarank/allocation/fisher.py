"""The Fisher score: how much the loss would rise without a component.

Legend: L the loss, c_i, A_i (d_in) and B_i (d_out) of component i.

Without the component, c_i is zero. The loss then rises by about (c_i dL/dc_i)^2 / 2, summed over
the rows, where the Fisher information stands for the curvature (Theis et al., 2018). The square is
that of a step's mean gradient, as in Molchanov et al. (2019), and not the mean of each row's
square, which would take a gradient for each row. One number a component is kept, and no copy of a
factor: AdaLoRA's sensitivity keeps two copies of all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarank.allocation.components import Components, Layers, as_list


class Fisher:
    """Reads the gradients before a step, and scores with them after it.

        score of component i = (c_i dL/dc_i)^2

    The allocator smooths it over the steps. c_i dL/dc_i = A_i . dL/dA_i, because the loss depends
    on the product c_i A_i alone; so A's gradient serves where c is fixed. The gradient must be met
    before the optimizer changes the weights: A_i after a step is A_i moved along its gradient.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = as_list(layers)
        self._observed: list[Tensor] | None = None

    @torch.no_grad()
    def observe(self, grad_scale: Tensor | None = None) -> None:
        """Take in the gradients of the coming step, in place of those that were never stepped on.

        Args:
            grad_scale: the loss scaler's factor, where the gradients are still multiplied by it.

        Raises:
            ValueError: a gradient is missing.
        """
        effects = [coefficient_effect(layer) for layer in self.layers]
        if grad_scale is not None:
            unscaled = grad_scale.reciprocal().float()
            effects = [effect * unscaled.to(effect.device) for effect in effects]
        self._observed = [effect.square() for effect in effects]

    def __call__(self) -> list[Tensor]:
        """Return the scores of the step that was taken, one (r') float32 tensor a layer.

        Raises:
            ValueError: no gradients were observed before the step.
        """
        if self._observed is None:
            raise ValueError(
                "score = fisher reads the gradients before each optimizer step: let "
                "allocator.attach(optimizer) do it, or call allocator.observe() there"
            )
        # Taken away: a step without gradients of its own is an error, and not scored by old ones.
        observed, self._observed = self._observed, None
        return observed


def coefficient_effect(layer: Components) -> Tensor:
    """Return c_i dL/dc_i of a layer's components, (r'), float32.

    Raises:
        ValueError: neither c nor A has a gradient.
    """
    # Either gradient gives the same; A's takes a pass over (r', d_in) elements.
    if layer.lora_c.requires_grad and layer.lora_c.grad is not None:
        return (layer.lora_c * layer.lora_c.grad).float()
    gradient = layer.lora_A.grad
    if gradient is None:
        raise ValueError(
            "score = fisher needs gradients: observe them after backward() and before "
            "optimizer.zero_grad()"
        )
    return (layer.lora_A * gradient).sum(dim=1).float()
