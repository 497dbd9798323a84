"""What is known of one architecture: the form of an entry of `architectures.ARCHITECTURES`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["encoder", "decoder", "encoder-decoder", "image"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is known of the models of one `model_type`."""

    title: str
    """The name that people use, for error messages."""
    kind: Kind
    targets: tuple[str, ...]
    """The linear layers to adapt: every one of attention and feed-forward."""
    attention_outputs: tuple[str, ...]
    """The last linear layer of an attention sublayer, which a bottleneck may follow."""
    feedforward_outputs: tuple[str, ...]
    """The last linear layer of a feed-forward sublayer, which a bottleneck may follow."""
    position_table: str | None = None
    """The embedding of absolute positions; None where positions are relative, and do not end."""
    takes_prompt: bool = True
    """Whether vectors may be given in place of tokens, as prompt tuning does."""
    body: str | None = None
    """Where a classifier keeps the pretrained part, if not under its own `base_model_prefix`."""
    model_groups: tuple[str, ...] = ()
    """Models of this architecture that conf/model has a file for."""
