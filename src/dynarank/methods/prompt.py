"""Prompt tuning (Lester et al., EMNLP 2021), by PEFT: trained vectors before the input's own.

They start at random, standard normal, which is PEFT's default. The paper finds vectors of the
vocabulary a better start for small models, and trains at a rate of 0.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dynarank.methods.base import Method, MethodSize, matched_note, nominal_parameters
from dynarank.methods.config import PromptConfig
from dynarank.methods.ranked import ADAPTER
from dynarank.pretrained.architectures import kind_of_model, takes_prompt
from dynarank.pretrained.models import positions

PEFT_TASKS = {
    ("encoder", "ForSequenceClassification"): "SEQ_CLS",
    ("encoder-decoder", "ForConditionalGeneration"): "SEQ_2_SEQ_LM",
}
"""PEFT's task type by a model's kind and its class name's ending, where prompts work.

Question answering is not among them: PEFT leaves the answers' positions where they were, though
its vectors move every token. Nor is classification by other models: given embeddings for tokens,
decoders take the last padding for the text's end, and encoder-decoders refuse.
"""


class PromptTuning(Method[PromptConfig]):
    """As many vectors as come nearest to the budget, and as the model has positions for."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        import peft

        inner: Any = model
        width = inner.get_input_embeddings().weight.shape[1]
        settings = peft.PromptTuningConfig(
            task_type=_peft_task(inner),
            num_virtual_tokens=self._count_vectors(model, targets, width),
            token_dim=width,
            num_attention_heads=inner.config.num_attention_heads,
            # PEFT's 2 for text to text would be vectors that no forward pass uses.
            num_transformer_submodules=1,
            # PEFT trains and saves a copy of the head; the original stays frozen beside it.
            modules_to_save=list(self.head) or None,
        )
        peft_model = peft.get_peft_model(inner, settings)
        # PEFT's model holds this one as `base_model`.
        self.head = [f"base_model.{name}" for name in self.head]
        return peft_model

    def _count_vectors(self, model: nn.Module, targets: Sequence[str], width: int) -> int:
        """Return how many vectors of that width the budget and the positions allow."""
        nominal = nominal_parameters(model, targets, self.head, self.budget.target)
        wanted = max(1, round(nominal / width))
        places = positions(model)
        if places is None:
            return wanted
        room = places - self.config.reserved
        if room < 1:
            raise ValueError(
                f"method.reserved = {self.config.reserved}: the model has {places} positions in all"
            )
        return min(wanted, room)

    def adapted_size(self, nominal: int) -> MethodSize:
        model: Any = self.model
        parameters = self.adapter_parameters()
        return MethodSize(
            label=f"{model.peft_config[ADAPTER].num_virtual_tokens} vectors",
            parameters=parameters,
            note=matched_note(parameters, nominal),
        )

    def export(self, folder: Path, base: str, task_type: str | None) -> None:
        model: Any = self.model
        model.peft_config[ADAPTER].base_model_name_or_path = base
        model.save_pretrained(str(folder))


def _peft_task(model: Any) -> str:
    """Return PEFT's task type of a model. Raises `ValueError` where prompts do not work."""
    class_name = type(model).__name__
    if takes_prompt(model.config):
        for (kind, ending), task_type in PEFT_TASKS.items():
            if kind == kind_of_model(model.config) and class_name.endswith(ending):
                return task_type
    raise ValueError(
        f"method=prompt does not fit a {class_name}: it fits encoders for classification, and "
        "BART, mBART and T5 for text to text"
    )
