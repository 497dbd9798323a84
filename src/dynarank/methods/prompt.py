"""Prompt tuning (Lester et al., EMNLP 2021), by PEFT: trained vectors before the input's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dynarank.methods.base import Method, nominal_parameters
from dynarank.methods.config import PromptConfig

FITS = {"ForSequenceClassification": "SEQ_CLS", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}
"""PEFT's task type by the model class's ending. Not question answering: there PEFT leaves the answers' positions where
they were, though its vectors move every token."""


class PromptTuning(Method[PromptConfig]):
    """As many vectors as come nearest to the budget's parameters, and as the model has positions for."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        import peft

        inner: Any = model
        kind = next((task for ending, task in FITS.items() if type(model).__name__.endswith(ending)), None)
        if kind is None:
            raise ValueError(f"method=prompt does not fit a {type(model).__name__}: it fits classification and text to text")
        width = inner.get_input_embeddings().weight.shape[1]
        wanted = round(nominal_parameters(model, targets, self.head, self.budget.target) / width)
        positions = getattr(inner.config, "max_position_embeddings", None)
        room = wanted if positions is None else positions - self.config.reserved
        if room < 1:
            raise ValueError(f"method.reserved = {self.config.reserved}: the model has {positions} positions in all")
        settings = peft.PromptTuningConfig(
            task_type=kind, num_virtual_tokens=min(wanted, room), modules_to_save=list(self.head) or None
        )
        peft_model = peft.get_peft_model(inner, settings)
        self.head = [f"base_model.{name}" for name in self.head]
        return peft_model

    def export(self, folder: Path, base: str, task_type: str) -> None:
        model: Any = self.model
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(str(folder))
