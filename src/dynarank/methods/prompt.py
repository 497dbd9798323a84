"""Prompt tuning (Lester et al., EMNLP 2021), by PEFT: trained vectors before the input's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dynarank.methods.base import Method, nominal_parameters
from dynarank.methods.config import PromptConfig
from dynarank.pretrained.models import architecture, positions

FITS = {
    ("encoder", "ForSequenceClassification"): "SEQ_CLS",
    ("encoder-decoder", "ForConditionalGeneration"): "SEQ_2_SEQ_LM",
}
"""PEFT's task type by architecture and by the model class's ending.

Not question answering: there PEFT leaves the answers' positions where they were, though its vectors move every token. Not
other models' classification: given embeddings for tokens, decoders take the last padding for the text's end, and
encoder-decoders refuse. Not Marian, which scales the embeddings that it looks up, but none that it is given.
"""


class PromptTuning(Method[PromptConfig]):
    """As many vectors as come nearest to the budget's parameters, and as the model has positions for."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        import peft

        inner: Any = model
        fits = (task for (kind, ending), task in FITS.items()
                if kind == architecture(inner.config) and type(model).__name__.endswith(ending))  # fmt: skip
        if (task_type := next(fits, None)) is None:
            raise ValueError(
                f"method=prompt does not fit a {type(model).__name__}: it fits encoders for classification, and BART, mBART "
                "and T5 for text to text"
            )
        width = inner.get_input_embeddings().weight.shape[1]
        wanted = round(nominal_parameters(model, targets, self.head, self.budget.target) / width)
        places = positions(model)
        room = wanted if places is None else places - self.config.reserved
        if room < 1:
            raise ValueError(
                f"method.reserved = {self.config.reserved}: the model has {places} positions in all"
            )
        settings = peft.PromptTuningConfig(
            task_type=task_type,
            num_virtual_tokens=min(wanted, room),
            token_dim=width,
            num_attention_heads=inner.config.num_attention_heads,
            num_transformer_submodules=1,  # PEFT's 2 for text to text would be vectors that no forward pass uses
            modules_to_save=list(self.head) or None,
        )
        peft_model = peft.get_peft_model(inner, settings)
        self.head = [f"base_model.{name}" for name in self.head]
        return peft_model

    def export(self, folder: Path, base: str, task_type: str) -> None:
        model: Any = self.model
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(str(folder))
