"""Fine-tuning of the model's own parameters: all of them, or the biases alone (BitFit)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dynarank.methods.base import Method, parameters_inside
from dynarank.methods.config import MethodConfig
from dynarank.methods.trained_file import TrainedFileMethod
from dynarank.pretrained.quantization import is_quantized


class Full(Method[MethodConfig]):
    """Every parameter is trained. The export is a plain transformers model."""

    takes_targets = False

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        if is_quantized(model):
            raise ValueError(
                "it trains the base model's own weights, and these are quantized: use another "
                "method, or set model.quantization=null"
            )
        return model.requires_grad_(True)

    def export(self, folder: Path, base: str, task_type: str | None) -> None:
        model: Any = self.model
        model.save_pretrained(folder)


class BitFit(TrainedFileMethod[MethodConfig]):
    """The biases and the head are trained (Ben Zaken et al., ACL 2022)."""

    takes_targets = False

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        head = parameters_inside(model, self.head)
        biases = [
            parameter
            for name, parameter in model.named_parameters()
            # By the ending, for DeBERTa has a q_bias and a v_bias.
            if name.endswith("bias") and parameter not in head
        ]
        if not biases:
            raise ValueError(
                "the model has no biases, so that method=bitfit would train nothing but the head"
            )
        for bias in biases:
            bias.requires_grad_(True)
        return model
