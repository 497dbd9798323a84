"""AdaLoRA's score: how much the loss would change without a component, smoothed, times its uncertainty.

Source: Zhang et al., ICLR 2023 (AdaLoRA), Eqs. 8 to 12, for the triplets A_i, B_i, c_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynarank.adapters.layer import DoRALinear


class Sensitivity:
    """Scores components from their values and gradients; call it once after every optimizer step, gradients in place.

        I(w) = |w dL/dw|,  smoothed to J with beta;  U = smoothed |I - J|;  s(w) = J U
        score of component i = s(c_i) + mean of s over A_i + mean of s over B_i

    Raises:
        ValueError: a gradient is missing (zeroed before the call).
    """

    def __init__(self, layers: Sequence[DoRALinear], beta: float = 0.85) -> None:
        self.layers, self.beta = list(layers), beta
        self.mean = [torch.zeros_like(w) for w in self._weights()]
        self.deviation = [torch.zeros_like(w) for w in self._weights()]

    def _weights(self) -> list[Tensor]:
        return [w for layer in self.layers for w in (layer.lora_A, layer.lora_B, layer.lora_c)]

    @torch.no_grad()
    def __call__(self) -> list[Tensor]:
        """Scores, one (r') tensor a layer."""
        weights = self._weights()
        gradients = [w.grad for w in weights if w.grad is not None]
        if len(gradients) < len(weights):
            raise ValueError(
                "score = sensitivity needs gradients: step the allocator before optimizer.zero_grad()"
            )
        now = [(w * gradient).abs() for w, gradient in zip(weights, gradients, strict=True)]
        keep = self.beta
        self.mean = [keep * old + (1 - keep) * new for old, new in zip(self.mean, now, strict=True)]
        self.deviation = [
            keep * old + (1 - keep) * (new - mean).abs()
            for old, new, mean in zip(self.deviation, now, self.mean, strict=True)
        ]
        products = [
            mean * deviation for mean, deviation in zip(self.mean, self.deviation, strict=True)
        ]
        parts = zip(products[0::3], products[1::3], products[2::3], strict=True)
        return [a.mean(dim=1) + b.mean(dim=0) + c for a, b, c in parts]

    def state_dict(self) -> dict[str, Any]:
        return {
            "mean": [m.cpu() for m in self.mean],
            "deviation": [d.cpu() for d in self.deviation],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("mean", "deviation"):
            pairs = zip(state[name], self._weights(), strict=True)
            setattr(self, name, [saved.to(weight.device) for saved, weight in pairs])
