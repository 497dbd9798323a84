"""AdaLoRA's score: how much the loss would change without a component, times its uncertainty.

Both are smoothed over the steps. Source: Zhang et al., ICLR 2023 (AdaLoRA), Eqs. 8 to 12, for the
triplets A_i, B_i, c_i.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynarank.allocation.components import Layers, as_list, can_return


class Sensitivity:
    """Scores components from their values and gradients.

    Call it once after every optimizer step, while the gradients are still there.

        I(w) = |w dL/dw|,  smoothed to J with beta;  U = smoothed |I - J|;  s(w) = J U
        score of component i = s(c_i) + mean of s over A_i + mean of s over B_i

    Raises:
        ValueError: c is fixed; or, in a call, a gradient is missing, since it was set to None
            before.
    """

    def __init__(self, layers: Layers, beta: float = 0.85) -> None:  # AdaLoRA's own
        self.layers = as_list(layers)
        if not can_return(self.layers):
            raise ValueError(
                "score = sensitivity needs the gradient of c, and c is fixed. Take score='fisher', "
                "or a start that trains c"
            )
        self.beta = beta
        self.mean = [torch.zeros_like(weight) for weight in self._weights()]  # J
        self.deviation = [torch.zeros_like(weight) for weight in self._weights()]  # U

    def _weights(self) -> list[Tensor]:
        weights: list[Tensor] = []
        for layer in self.layers:
            weights += [layer.lora_A, layer.lora_B, layer.lora_c]
        return weights

    @torch.no_grad()
    def __call__(self) -> list[Tensor]:
        """Return the scores, one (r') tensor a layer."""
        weights = self._weights()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if len(gradients) < len(weights):
            raise ValueError(
                "score = sensitivity needs gradients: step the allocator before "
                "optimizer.zero_grad()"
            )
        products = []
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            now = (weight * gradient).abs()
            # A trainer may have moved the weights after this was made.
            mean = self.beta * self.mean[index].to(now.device) + (1 - self.beta) * now
            # From the mean that holds this step already, as in PEFT's allocator.
            distance = (now - mean).abs()
            old_deviation = self.deviation[index].to(now.device)
            deviation = self.beta * old_deviation + (1 - self.beta) * distance
            # No change in place: on CPUs, a state that was saved holds the old tensors themselves.
            self.mean[index] = mean
            self.deviation[index] = deviation
            products.append(mean * deviation)
        # By threes, as `_weights` has them: A (r', d_in), B (d_out, r'), c (r') of each layer.
        triplets = zip(products[0::3], products[1::3], products[2::3], strict=True)
        return [of_A.mean(dim=1) + of_B.mean(dim=0) + of_c for of_A, of_B, of_c in triplets]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: J and U, on the CPU."""
        return {
            "mean": [tensor.cpu() for tensor in self.mean],
            "deviation": [tensor.cpu() for tensor in self.deviation],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        weights = self._weights()
        self.mean = _beside(state["mean"], weights)
        self.deviation = _beside(state["deviation"], weights)


def _beside(saved: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Return saved tensors, each on the device of its weight."""
    pairs = zip(saved, weights, strict=True)
    return [tensor.to(weight.device) for tensor, weight in pairs]
