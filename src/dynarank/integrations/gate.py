"""A gate of coefficients on the A of one of PEFT's LoRA layers.

Legend: r components of a layer, A (r, d_in), B (d_out, r), c (r), s PEFT's scale of the layer.

    y = W0 x + s B (A' dropout(x))        A' = diag(c * mask) A

This is Eq. 6. PEFT's layer computes it without knowing of c: its `lora_A[adapter].weight` is A', by
a parametrization. So each of PEFT's layers for a kind of base weights is gated alike, and merging,
disabling and copying an adapter work as ever. State dicts hold A' under the name that PEFT reads,
so that whatever is saved, at any moment, is a plain LoRA adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynarank.adapters.progress import AllocationProgress

_WEIGHT = "weight"
_ORIGINAL = "parametrizations.weight.original"
_C = "parametrizations.weight.0.lora_c"
_MASK = "parametrizations.weight.0.mask"


class Gate(nn.Module):
    """The parametrization A -> diag(c * mask) A. It starts with every component in the mask."""

    mask: Tensor

    def __init__(self, r: int, value: float, device: torch.device) -> None:
        super().__init__()
        self.lora_c = nn.Parameter(torch.full((r,), value, device=device))
        self.register_buffer("mask", torch.ones(r, dtype=torch.bool, device=device))
        self.progress: AllocationProgress | None = None

    def forward(self, lora_A: Tensor) -> Tensor:
        return lora_A * self.lora_c.masked_fill(~self.mask, 0).unsqueeze(1)


class GatedLayer:
    """One adapter of one of PEFT's LoRA layers, as the allocation sees it.

    It has the members of `dynarank.allocation.components.Components`. It holds nothing itself, so
    that two views of one layer are the same.
    """

    def __init__(self, layer: Any, adapter: str) -> None:
        self.layer = layer
        self.adapter = adapter
        self.gate = gate_of(layer.lora_A[adapter])

    @property
    def progress(self) -> AllocationProgress | None:
        return self.gate.progress

    @progress.setter
    def progress(self, progress: AllocationProgress | None) -> None:
        self.gate.progress = progress

    @property
    def r(self) -> int:
        return len(self.gate.lora_c)

    @property
    def in_features(self) -> int:
        return self.lora_A.shape[1]

    @property
    def out_features(self) -> int:
        return self.lora_B.shape[0]

    @property
    def scaling(self) -> float:
        return float(self.layer.scaling[self.adapter])

    @property
    def lora_A(self) -> Tensor:
        A: Tensor = self.layer.lora_A[self.adapter].parametrizations.weight.original
        return A

    @property
    def lora_B(self) -> Tensor:
        B: Tensor = self.layer.lora_B[self.adapter].weight
        return B

    @property
    def lora_c(self) -> Tensor:
        return self.gate.lora_c

    @property
    def mask(self) -> Tensor:
        return self.gate.mask

    def active(self) -> Tensor:
        """Return which components are not zero, (r) bool. Their number is the layer's rank."""
        return self.mask & (self.lora_c.detach() != 0)


def is_gated(linear: nn.Module) -> bool:
    """Return whether a `lora_A[adapter]` has a gate."""
    if not parametrize.is_parametrized(linear, _WEIGHT):
        return False
    return isinstance(_parametrizations(linear)[0], Gate)


def gate_of(linear: nn.Module) -> Gate:
    """Return the gate of a gated `lora_A[adapter]`."""
    gate = _parametrizations(linear)[0]
    assert isinstance(gate, Gate)
    return gate


def _parametrizations(linear: nn.Module) -> Any:
    return linear.parametrizations.weight  # type: ignore[union-attr]


def add_gate(linear: nn.Module, value: float) -> Gate:
    """Put a gate whose coefficients are all `value` on a `lora_A[adapter]`."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    gate = Gate(r=len(weight), value=value, device=weight.device)
    gate.lora_c.requires_grad_(weight.requires_grad)
    parametrize.register_parametrization(linear, _WEIGHT, gate, unsafe=True)
    linear.register_state_dict_post_hook(_fold_into_weight)
    linear.register_load_state_dict_pre_hook(_unfold_from_weight)
    return gate


def remove_gate(linear: nn.Module) -> None:
    """Take the gate away; the weight is then A' itself, a parameter."""
    parametrize.remove_parametrizations(linear, _WEIGHT, leave_parametrized=True)
    _remove_hook(linear._state_dict_hooks, _fold_into_weight)
    _remove_hook(linear._load_state_dict_pre_hooks, _unfold_from_weight)


def _remove_hook(hooks: dict[int, Any], wanted: Any) -> None:
    for key, hook in list(hooks.items()):
        if getattr(hook, "hook", hook) is wanted:
            del hooks[key]


def _fold_into_weight(
    linear: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any
) -> None:
    """Put A' into a state dict in the place of A, c and the mask."""
    if not is_gated(linear):
        return
    A = state_dict.pop(prefix + _ORIGINAL)
    c = state_dict.pop(prefix + _C)
    mask = state_dict.pop(prefix + _MASK)
    state_dict[prefix + _WEIGHT] = A * c.masked_fill(~mask, 0).unsqueeze(1)


def _unfold_from_weight(
    linear: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Replace a plain A' that is loaded by an A, a c and a mask that give the same.

    A component whose row is zero keeps the A that it has, with c = 0. The others get c = 1. A
    component that was frozen out returns where the loaded row is not zero: what was loaded counts.
    """
    if prefix + _WEIGHT not in state_dict or not is_gated(linear):
        return
    weight = state_dict.pop(prefix + _WEIGHT)
    gate = gate_of(linear)
    own: Tensor = _parametrizations(linear).original
    present = (weight != 0).any(dim=1)
    own_A = own.detach().to(weight.device, own.dtype)
    A = torch.where(present.unsqueeze(1), weight.to(own.dtype), own_A)
    state_dict[prefix + _ORIGINAL] = A
    state_dict[prefix + _C] = present.to(gate.lora_c.dtype)
    state_dict[prefix + _MASK] = gate.mask.to(present.device) | present
