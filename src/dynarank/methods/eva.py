"""EVA, explained variance adaptation (Paischer et al., arXiv 2410.07170), by PEFT.

The inputs X of every layer, over the first batches, are decomposed step by step, X = U S V^T, until
the right singular vectors hold still. A's rows are the first of V^T, and B is zero. The ranks are
redistributed: all components of the model are sorted by the share of their layer's variance that
they explain, S_j^2 / sum_i S_i^2, and the L x target best are kept, at most rho x target a layer.
(PEFT takes the inputs' mean off X first, as the authors' code does.) X has the inputs of the
tokens that the loss counts, where every token has a label: without a conversation's prompts.

The components are PEFT's own (`get_eva_state_dict`), as its `initialize_lora_eva_weights` loads
them; the scale of a component does not depend on its layer's rank, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynarank.methods.base import Inputs
from dynarank.methods.config import EvaConfig
from dynarank.methods.prepared import PlacedMethod
from dynarank.methods.ranked import refuse_bounds


class Eva(PlacedMethod[EvaConfig]):
    """LoRA whose A and ranks come from the variance of the layers' inputs."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        refuse_bounds(self.budget, "EVA", "min_rank")
        target = self.budget.target
        if target != int(target) or self.budget.unit != "components":
            raise ValueError(
                f"EVA redistributes whole components, not budget.target={target:g} in "
                f"{self.budget.unit}: give a whole number and budget.unit=components, or take "
                "method=gora"
            )
        self.put_room(
            model,
            targets,
            pool=round(self.rho * target),
            alpha=self.config.alpha,
            dropout=self.config.dropout,
        )
        return model

    @property
    def rho(self) -> float:
        """The largest rank over the target: the setting's, or what `budget.max_rank` allows."""
        if self.budget.max_rank is None:
            return self.config.rho
        return min(self.config.rho, self.budget.max_rank / self.budget.target)

    @property
    def preparation_batches(self) -> int:
        return self.config.batches

    def prepare(self, inputs: Sequence[Inputs]) -> None:
        import peft
        from peft.tuners.lora.eva import get_eva_state_dict

        model: Any = self.model
        config = peft.LoraConfig(
            r=int(self.budget.target),
            target_modules=list(self.layers),
            init_lora_weights="eva",
            eva_config=peft.EvaConfig(rho=self.rho, tau=self.config.tau),
        )
        with self.bare():
            components = get_eva_state_dict(
                self.model,
                inputs,
                config,
                # An encoder-decoder's labels are those of another text than its inputs.
                prepare_model_inputs_fn=partial(
                    text_mask, labelled=not model.config.is_encoder_decoder
                ),
                prepare_layer_inputs_fn=text_inputs,
                gather_distributed_inputs=False,  # every process reads the same batches
                show_progress_bar=False,
            )
        self.place(components)


def text_mask(inputs: Inputs, config: Any, labelled: bool) -> Tensor | None:
    """Return which positions of a batch to read, (rows, length) bool; None where nothing says.

    Args:
        inputs: the batch.
        config: PEFT's, which has the label of tokens that the loss leaves out.
        labelled: whether labels of the text's shape are the text's, and leave positions out.
    """
    mask = inputs.get("attention_mask")
    mask = None if mask is None else mask.bool()
    labels, tokens = inputs.get("labels"), inputs.get("input_ids")
    if not labelled or labels is None or tokens is None or labels.shape != tokens.shape:
        return mask
    counted = labels != config.eva_config.label_mask_value
    return counted if mask is None else mask & counted


def text_inputs(layer_input: Any, mask: Tensor | None, name: str) -> Tensor:
    """Return a layer's inputs where there is text, (positions, d_in).

    All are returned where the mask is not theirs: those of a decoder, or of a pooled vector.
    """
    x: Tensor = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask]
    return torch.flatten(x, end_dim=-2) if x.ndim > 2 else x
