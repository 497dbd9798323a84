"""Cut a live model's layers to the components that they kept, once the ranks are final.

A layer of rank k then holds A (k, d_in), B (d_out, k), c (k) and a mask of k ones. A layer of rank
0 runs its base map alone. Outputs and gradients stay as they were, but for rounding. The scale
stays alpha / r', with the number r' of components that the layer started with. Cutting pays in
memory and, where layers have rank 0, in time.

    cuts = cut_to_kept(model)
    cut_optimizer(optimizer, cuts)

The parameters are new objects. What else refers to the old ones by identity (a wrapper for several
devices, hooks, a list for clipping) must be made again; what refers to them by name, or through the
model, need not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynarank.adapters.inject import adapter_layers
from dynarank.adapters.layer import DoRALinear

COMPONENT_AXIS = {"lora_A": 0, "lora_B": 1, "lora_c": 0}
"""The axis of each factor that counts components."""


@dataclass(frozen=True)
class Cut:
    """What was done to one parameter."""

    old: nn.Parameter
    """The parameter that is no longer in the model."""
    new: nn.Parameter
    """The parameter in its place."""
    axis: int
    """The axis that counts components."""
    kept: Tensor
    """The indices along this axis that were kept, (k) int64."""

    def apply(self, tensor: Tensor) -> Tensor:
        """Return the kept part of a tensor that has the old parameter's shape: a moment, say."""
        return tensor.index_select(self.axis, self.kept.to(tensor.device))


Cuts = dict[str, Cut]
"""By the parameter's full name (`encoder.query.lora_A`), in model order."""


@torch.no_grad()
def cut_to_kept(model: nn.Module, kept: Mapping[str, Tensor] | None = None) -> Cuts:
    """Cut every adapter of the model to its kept components, in place; return what was cut.

    Layers that kept everything are left as they are. The parameters of a layer of rank 0 have no
    elements, and are not trained.

    Args:
        model: a model whose ranks are frozen.
        kept: which components each layer keeps, (r) bool by layer name. None stands for the layers'
            own masks. A run that is resumed after the cut gives those of its checkpoint here, and
            loads the checkpoint's tensors afterwards.

    Returns:
        what was done, by the parameter's full name; give it to `cut_optimizer`.

    Raises:
        ValueError: the ranks are not final, or a parameter is sharded over several devices. Nothing
            is changed then.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from dynarank import cut_optimizer, cut_to_kept, inject
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8)})
        >>> layer = inject(model, targets=["query"], r=6)["query"]
        >>> optimizer = torch.optim.AdamW(layer.parameters())
        >>> layer.mask[2:] = False  # in a run, the allocator does this at the freeze
        >>> cuts = cut_to_kept(model)
        >>> cut_optimizer(optimizer, cuts)
        >>> layer.lora_A.shape
        torch.Size([2, 8])
    """
    layers = adapter_layers(model)
    if kept is None:
        masks = {name: layer.mask for name, layer in layers.items()}
    else:
        masks = {name: kept[name] for name in layers}
    # All layers are checked before the first is cut, so that a refusal changes nothing.
    # Given masks are of a run that was frozen, of which this model may not know yet.
    for name, layer in layers.items():
        _check_cuttable(name, layer, masks[name], final=kept is not None)
    cuts: Cuts = {}
    for name, layer in layers.items():
        if bool(masks[name].all()):
            continue
        for factor, cut in _cut_layer(layer, masks[name]).items():
            # The model may itself be the layer, whose name is then empty.
            full_name = f"{name}.{factor}" if name else factor
            cuts[full_name] = cut
    return cuts


def _check_cuttable(name: str, layer: DoRALinear, mask: Tensor, final: bool) -> None:
    progress = layer.progress
    if not final and progress is not None and not progress.frozen:
        raise ValueError(
            f"{name}: its rank is final from step {progress.freeze_step} on, and the allocator is "
            f"at step {progress.step}. Cut the model after the freeze"
        )
    if mask.shape != (layer.r,):
        raise ValueError(
            f"{name}: {list(mask.shape)} components are marked as kept or not, but it has {layer.r}"
        )
    # By the exact type: sharded parameters are of a class of their own.
    if type(layer.lora_A) is not nn.Parameter:
        raise ValueError(
            f"{name}: its parameters are of type {type(layer.lora_A).__name__}, which is not cut. "
            "Gather sharded parameters first"
        )


def _cut_layer(layer: DoRALinear, mask: Tensor) -> Cuts:
    """Cut one layer's factors and mask, in place; return the cuts by the factor's name."""
    # By the mask and not by c: a kept component whose c is zero just now may still learn.
    kept = mask.to(layer.mask.device).nonzero().flatten()
    cuts: Cuts = {}
    for name, axis in COMPONENT_AXIS.items():
        old = layer.get_parameter(name)
        part = old.detach().index_select(axis, kept)
        has_elements = len(kept) > 0
        new = nn.Parameter(part, requires_grad=old.requires_grad and has_elements)
        if old.grad is not None and has_elements:
            new.grad = old.grad.index_select(axis, kept)
        setattr(layer, name, new)
        cuts[name] = Cut(old=old, new=new, axis=axis, kept=kept)
    # A new tensor and not a change in place: the old one has another length.
    layer.mask = torch.ones(len(kept), dtype=torch.bool, device=layer.mask.device)
    layer.r = len(kept)
    return cuts


@torch.no_grad()
def cut_optimizer(optimizer: torch.optim.Optimizer, cuts: Cuts) -> None:
    """Put the cut parameters in the place of the old ones in an optimizer, with their state.

    Each tensor of the state that has its parameter's shape (moments, averages) is cut alike. Other
    values (step counts) stay. Parameters of rank-0 layers stay in their groups without a gradient,
    so that the order of the optimizer's parameters is unchanged, and lose their state.

    Args:
        optimizer: the one that trains the model; changed in place.
        cuts: what `cut_to_kept` returned.
    """
    # Tensors are hashed by their identity, and so can be keys.
    new_of_old = {cut.old: cut.new for cut in cuts.values()}
    for group in optimizer.param_groups:
        group["params"] = [new_of_old.get(old, old) for old in group["params"]]
    for cut in cuts.values():
        state = optimizer.state.pop(cut.old, None)
        # There is no state before the first step.
        if state is None or cut.new.numel() == 0:
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == cut.old.shape:
                state[key] = cut.apply(value)
        # The state is found by the parameter's identity, and the parameter is a new object.
        optimizer.state[cut.new] = state


def cut_tensors(tensors: Mapping[str, Tensor], cuts: Cuts) -> dict[str, Tensor]:
    """Cut tensors that belong to cut parameters, as a moving average of the weights has them.

    Args:
        tensors: by the parameter's full name.
        cuts: what `cut_to_kept` returned.

    Returns:
        all tensors by name. Those whose parameter was not cut, or that no longer have the old
        parameter's shape, are left as they are.
    """
    result = {}
    for name, tensor in tensors.items():
        cut = cuts.get(name)
        if cut is None or tensor.shape != cut.old.shape:
            result[name] = tensor
        else:
            result[name] = cut.apply(tensor)
    return result
