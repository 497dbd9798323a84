"""A gate on a LoRA layer of PEFT: c and the mask, as a parametrization of its A.

Legend: r components of the layer, A (r, d_in) and B (d_out, r) of PEFT's layer, c (r) and the mask
(r) of the gate, s PEFT's scale.

    y = W0 x + s B diag(c * mask) A dropout(x)

PEFT reads A as `lora_A[adapter].weight` everywhere: in its forward passes for every kind of base
layer, in merging and in combining adapters. A parametrization (torch.nn.utils.parametrize) computes
that attribute, here as diag(c * mask) A. So no layer of PEFT is replaced. A state dict holds the
product under A's usual name, and so is a plain LoRA adapter.

While a layer has a gate, A, B and c keep their precision under `.to`, `.half` and `.bfloat16`,
which a Trainer may call: in bfloat16, c would not move at usual learning rates.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from dynarank.adapters.narrowing import Move, never_narrow
from dynarank.adapters.progress import AllocationProgress
from dynarank.integrations.settings import AllocationSettings

_RAW_A = "parametrizations.weight.original"
_RAW_C = "parametrizations.weight.0.lora_c_like_bias"
_RAW_MASK = "parametrizations.weight.0.mask"


class Gate(nn.Module):
    """The coefficients c and the mask of one adapted layer.

    Args:
        A: the layer's A, (r, d_in): c gets its device, dtype and number of components.
        c: what every coefficient starts at.
        settings: what `make_allocator` and the callbacks find later; None for nothing.
        trains_c: whether c is a parameter. Else it is a buffer: PEFT lets all parameters of an
            adapter train when it is made the active one.
    """

    lora_c_like_bias: Tensor
    mask: Tensor

    def __init__(
        self, A: Tensor, c: float, settings: AllocationSettings | None, trains_c: bool = True
    ) -> None:
        super().__init__()
        start = torch.full((len(A),), c, device=A.device, dtype=A.dtype)
        # The name has "bias" in it because Trainers exempt biases from weight decay by their names,
        # and c must not decay.
        if trains_c:
            # An adapter that PEFT has frozen, as one that is not active, has a frozen c.
            self.lora_c_like_bias = nn.Parameter(start, requires_grad=A.requires_grad)
        else:
            self.register_buffer("lora_c_like_bias", start)
        self.register_buffer("mask", torch.ones(len(A), dtype=torch.bool, device=A.device))
        self.progress: AllocationProgress | None = None
        self.settings = settings
        self.hooks: list[RemovableHandle] = []

    def forward(self, A: Tensor) -> Tensor:
        """Return diag(c * mask) A, (r, d_in)."""
        # Not c * mask, since 0 * inf is NaN.
        c = self.lora_c_like_bias.masked_fill(~self.mask, 0)
        return A * c.unsqueeze(1)


class GatedLayer:
    """One layer's components, as the allocation reads them (see `Components`).

    It holds no tensors of its own, but reads and writes those of the layer. So it may be made as
    often as it is needed.

    Args:
        layer: PEFT's LoRA layer.
        adapter: the name of the adapter that is gated.
    """

    def __init__(self, layer: Any, adapter: str) -> None:
        self.layer = layer
        self.adapter = adapter
        self.gate: Gate = gate_of(layer.lora_A[adapter])

    @property
    def progress(self) -> AllocationProgress | None:
        """What the allocator that has this layer has done so far; None where none has it."""
        return self.gate.progress

    @progress.setter
    def progress(self, progress: AllocationProgress | None) -> None:
        self.gate.progress = progress

    @property
    def r(self) -> int:
        """The number of components."""
        return len(self.gate.mask)

    @property
    def in_features(self) -> int:
        """The size d_in."""
        return int(self.layer.in_features)

    @property
    def out_features(self) -> int:
        """The size d_out."""
        return int(self.layer.out_features)

    @property
    def scaling(self) -> float:
        """PEFT's scale s."""
        return float(self.layer.scaling[self.adapter])

    @property
    def lora_A(self) -> nn.Parameter:
        """A without the gate, (r, d_in): the parameter that is trained."""
        A: nn.Parameter = self.layer.lora_A[self.adapter].parametrizations.weight.original
        return A

    @property
    def lora_B(self) -> nn.Parameter:
        """B, (d_out, r)."""
        B: nn.Parameter = self.layer.lora_B[self.adapter].weight
        return B

    @property
    def lora_c(self) -> Tensor:
        """The coefficients c, (r)."""
        return self.gate.lora_c_like_bias

    @property
    def mask(self) -> Tensor:
        """Which components are not frozen out, (r) bool."""
        return self.gate.mask

    def gated_A(self) -> Tensor:
        """Return diag(c * mask) A, (r, d_in): what PEFT reads and saves as A."""
        weight: Tensor = self.layer.lora_A[self.adapter].weight
        return weight.detach()

    def active(self) -> Tensor:
        """Return which components are not zero, (r) bool."""
        # Not by c, which is 1 throughout after a plain adapter was loaded, zero rows included.
        return self.gated_A().any(dim=1)


def gate_of(linear: nn.Module) -> Gate:
    """Return the gate on a layer's A; `assert` that there is one."""
    gate = find_gate(linear)
    assert gate is not None
    return gate


def find_gate(linear: nn.Module) -> Gate | None:
    """Return the gate on a layer's A, or None."""
    if not parametrize.is_parametrized(linear, "weight"):
        return None
    first = linear.parametrizations.weight[0]  # type: ignore[union-attr, index]
    return first if isinstance(first, Gate) else None


def add_gate(
    A: nn.Linear,
    B: nn.Linear,
    c: float,
    settings: AllocationSettings | None,
    trains_c: bool = True,
) -> None:
    """Put a gate on A. A keeps its parameter, so that an optimizer that has it still trains it.

    Args:
        A: PEFT's `lora_A` of one adapter of a layer.
        B: PEFT's `lora_B` of the same.
        c: what every coefficient starts at.
        settings: what `make_allocator` and the callbacks find later; None for nothing.
        trains_c: whether c is trained.
    """
    gate = Gate(A.weight, c=c, settings=settings, trains_c=trains_c)
    parametrize.register_parametrization(A, "weight", gate)
    gate.hooks = [
        A.register_state_dict_post_hook(_fold_state),
        A.register_load_state_dict_pre_hook(_unfold_state),
    ]
    for linear in (A, B):
        # On the instance, where `nn.Module` of a parent finds it: the class is PEFT's to choose.
        vars(linear)["_apply"] = MethodType(_apply_never_narrow, linear)


def remove_gate(A: nn.Linear, B: nn.Linear) -> None:
    """Take the gate away; A becomes what PEFT read through it."""
    for hook in gate_of(A).hooks:
        hook.remove()
    for linear in (A, B):
        del vars(linear)["_apply"]
    weight = A.weight.detach()
    trained = A.get_parameter(_RAW_A).requires_grad
    # Not by torch's remove_parametrizations: it deletes the property from the class, which copies
    # of the model share.
    A.__class__ = parametrize.type_before_parametrizations(A)
    del A.parametrizations
    A.weight = nn.Parameter(weight, requires_grad=trained)


def _apply_never_narrow(linear: nn.Module, fn: Move, recurse: bool = True) -> nn.Module:
    # A's parts, the gate among them, are given the same move.
    return type(linear)._apply(linear, never_narrow(fn), recurse)


def _fold_state(
    linear: nn.Module, state: MutableMapping[str, Any], prefix: str, metadata: Any
) -> None:
    """Save diag(c * mask) A under the name that A has without a gate."""
    for name in (_RAW_A, _RAW_C, _RAW_MASK):
        state.pop(prefix + name, None)
    weight = linear.weight
    assert isinstance(weight, Tensor)
    state[prefix + "weight"] = weight.detach()


def _unfold_state(linear: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Load a plain A with c = 1, so that the layer computes with the A of the file."""
    A = state.pop(prefix + "weight", None)
    if A is None:
        return
    gate = gate_of(linear)
    mask = gate.mask
    # A component that was frozen out opens again where the file gives it a value.
    if A.ndim == 2 and len(A) == len(mask):  # any other shape is refused by what loads A
        mask = mask | A.any(dim=1).to(mask.device)
    state[prefix + _RAW_A] = A
    state[prefix + _RAW_C] = torch.ones_like(gate.lora_c_like_bias)
    state[prefix + _RAW_MASK] = mask
