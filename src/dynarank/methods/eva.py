"""EVA, explained variance adaptation (Paischer et al., arXiv 2410.07170), by PEFT.

The inputs X of every layer, over the first batches, are decomposed step by step, X = U S V^T, until
the right singular vectors hold still. A's rows are the first of V^T, and B is zero. The ranks are
redistributed: all components of the model are sorted by the share of their layer's variance that
they explain, S_j^2 / sum_i S_i^2, and the L x target best are kept, at most rho x target a layer.
(PEFT takes the inputs' mean off X first, as the authors' code does.) X has the inputs of the
tokens that the loss counts, where every token has a label: without a conversation's prompts. The
decoder of an encoder-decoder reads the labels' text, and its encoder all of the other.

The components are PEFT's own (`get_eva_state_dict`), as its `initialize_lora_eva_weights` loads
them; the scale of a component does not depend on its layer's rank, as there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynarank.methods.base import Inputs
from dynarank.methods.config import EvaConfig
from dynarank.methods.prepared import PlacedMethod

_IN_DECODER = re.compile(r"(.*\.)?decoder\.")
# The decoder's keys and values of what the encoder has read.
_OF_ENCODER = re.compile(
    r".*\.(encoder_attn|EncDecAttention|crossattention)\.(.*\.)?([kv](_proj)?|key|value)"
)


class Eva(PlacedMethod[EvaConfig]):
    """LoRA whose A and ranks come from the variance of the layers' inputs."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        self.config.check_budget(self.budget)
        target = self.budget.target
        # The pool is rounded as PEFT rounds it, so that it gives no layer more.
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
        # PEFT finds the base maps by the names in `target_modules`, which adapters bear otherwise.
        with self.bare():
            components = get_eva_state_dict(
                self.model,
                inputs,
                config,
                prepare_model_inputs_fn=partial(
                    read_positions, encodes=model.config.is_encoder_decoder
                ),
                prepare_layer_inputs_fn=text_inputs,
                gather_distributed_inputs=False,  # every process reads the same batches
                show_progress_bar=False,
            )
        self.place(components)


class Positions(NamedTuple):
    """Which positions of a batch are read, each (rows, length) bool; None where nothing says."""

    text: Tensor | None
    """Of the inputs."""
    answer: Tensor | None
    """Of the text that an encoder-decoder's decoder reads."""


def read_positions(inputs: Inputs, config: Any, encodes: bool) -> Positions:
    """Return which positions of a batch are read.

    Args:
        inputs: the batch.
        config: PEFT's, which has the label of tokens that the loss leaves out.
        encodes: whether the model is an encoder-decoder, whose labels are of another text.
    """
    mask = inputs.get("attention_mask")
    # The mask of packed rows is of pairs of positions; their labels say what is read.
    text = mask.bool() if mask is not None and mask.ndim == 2 else None
    labels, tokens = inputs.get("labels"), inputs.get("input_ids")
    if labels is None or tokens is None:
        return Positions(text, None)
    counted = labels != config.eva_config.label_mask_value
    if encodes:
        return Positions(text, counted)
    # Labels of another shape are those of whole texts.
    if labels.shape == tokens.shape:
        text = counted if text is None else text & counted
    return Positions(text, None)


def text_inputs(layer_input: Any, positions: Positions, name: str) -> Tensor:
    """Return a layer's inputs at the positions that are read, (positions, d_in).

    All are returned where the positions are not the layer's: of a pooled vector, say.
    """
    # A forward hook gets a layer's inputs as a tuple.
    x: Tensor = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    mask = positions.text
    # By the name, for the two texts may be of one length.
    if _IN_DECODER.match(name) and not _OF_ENCODER.fullmatch(name):
        answer = positions.answer
        # A classifier's labels are of whole texts, and its decoder reads the encoder's.
        mask = answer if answer is not None and x.shape[:-1] == answer.shape else mask
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask]
    return torch.flatten(x, end_dim=-2) if x.ndim > 2 else x
