"""Rank allocation for a PEFT LoRA model: gate its layers, allocate, cut it to plain LoRA again.

    model = peft.get_peft_model(base, peft.LoraConfig(r=6, target_modules=[...]))
    layers = attach(model, target=4)
    allocator = RankAllocator(layers, BudgetSchedule(init=6, target=4, total=steps))
    ...                                   # train, with allocator.step() after each optimizer step
    finalize(model)

Between `attach` and `finalize`, the model is a PEFT model in all that PEFT does with it, and each
`save_pretrained` writes a plain LoRA adapter. After `finalize` it is PEFT's LoRA and nothing else:
loading it needs no dynarank.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dynarank.adapters import STARTS
from dynarank.adapters.inject import replace_module
from dynarank.adapters.progress import check_at_budget
from dynarank.integrations.gate import GatedLayer, add_gate, is_gated, remove_gate

FACTORS = ("lora_A", "lora_B", "lora_c", "mask")
"""What training changes in a gated layer."""


def attach(
    model: nn.Module,
    target: float | None = None,
    init: int | None = None,
    adapter: str | None = None,
    start: str = "paper",
) -> dict[str, GatedLayer]:
    """Give every LoRA layer of a PEFT model coefficients; return the layers by name, in order.

    Call it before the optimizer is made, so that the optimizer gets the coefficients, too. The
    names are those of the modules in the base model. The model's outputs stay as they are. Factors
    narrower than float32 become float32, since coefficients would not move beside them otherwise.

    Args:
        model: what `get_peft_model`, `add_adapter` or `inject_adapter_in_model` has made.
        target: the mean rank at the end, checked against the adapter's r.
        init: the rank at the start; it must be the adapter's r. Giving it is a check, no more.
        adapter: which adapter; by default, the active one.
        start: `paper` (A and B are drawn anew, Kaiming-uniform, and c = 0), for an adapter that has
            not been trained; or `lora` (A and B stay as they are, and c = 1), for any adapter.

    Raises:
        ValueError: the adapter has no LoRA layers, has them already gated, is of a kind that has no
            components (weight-decomposed LoRA, embeddings, convolutions, biases in B), has another
            rank than `init` or a smaller one than `target`; or it has been trained, and `start` is
            `paper`. Nothing is changed then.
    """
    if start not in STARTS:
        raise ValueError(f"start = {start!r}: must be one of {', '.join(STARTS)}")
    adapter = adapter or active_adapter(model)
    layers = lora_layers(model, adapter)
    if not layers:
        raise ValueError(f"the model has no LoRA layers of the adapter {adapter!r}")
    for name, layer in layers.items():
        _check_layer(name, layer, adapter, start)
        rank = layer.lora_A[adapter].weight.shape[0]
        if init is not None and rank != init:
            raise ValueError(f"init = {init}, but {name} has r = {rank}. Give LoraConfig(r={init})")
        if target is not None and not 0 <= target <= rank:
            raise ValueError(
                f"target = {target}: must be 0 to the rank of {name}, r = {rank}. "
                "Give LoraConfig a larger r: 1.5 times the target is usual"
            )
    return {name: _gate_layer(layer, adapter, start) for name, layer in layers.items()}


def active_adapter(model: nn.Module) -> str:
    """Return the name of the one active adapter. Raises `ValueError` where it is not one."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            active = module.active_adapters
            if len(active) != 1:
                raise ValueError(f"the adapters {active} are active: name one with adapter=...")
            return str(active[0])
    raise ValueError("the model has no LoRA layers: make it with peft.get_peft_model first")


def lora_layers(model: nn.Module, adapter: str) -> dict[str, Any]:
    """Return the LoRA layers that have this adapter, by name in the base model, in model order."""
    root = _base_model(model)
    layers = {}
    for name, module in root.named_modules():
        if isinstance(module, LoraLayer) and (
            adapter in module.lora_A or adapter in module.lora_embedding_A
        ):
            layers[name] = module
    return layers


def _base_model(model: nn.Module) -> nn.Module:
    """Return the model whose module names PEFT's configuration is written in."""
    get_base_model = getattr(model, "get_base_model", None)
    base = get_base_model() if get_base_model is not None else model
    assert isinstance(base, nn.Module)
    return base


def _check_layer(name: str, layer: Any, adapter: str, start: str) -> None:
    """Raise `ValueError` for a layer that cannot be gated."""
    if adapter in layer.lora_embedding_A:
        raise ValueError(
            f"{name} is an embedding, which is not supported. Take it out of target_modules"
        )
    linear = layer.lora_A[adapter]
    if is_gated(linear):
        raise ValueError(f"{name} of the adapter {adapter!r} is attached already")
    if adapter in layer.lora_variant:
        variant = type(layer.lora_variant[adapter]).__name__
        raise ValueError(f"{name} uses {variant}, which is not supported. Use plain LoRA")
    if layer.lora_bias.get(adapter):
        raise ValueError(f"{name} has a bias in B. Give LoraConfig(lora_bias=False)")
    if adapter in layer.merged_adapters:
        raise ValueError(f"{name}: the adapter is merged. Call unmerge_adapter() first")
    A, B = linear.weight, layer.lora_B[adapter].weight
    if A.numel() == 0 or type(A) is not nn.Parameter:
        raise ValueError(
            f"{name}: its factors are sharded over several devices (ZeRO-3 or FSDP), so that their "
            "importance cannot be computed. Keep the adapter whole: use DDP or ZeRO-2"
        )
    rank = layer.r[adapter]
    if A.ndim != 2 or B.ndim != 2 or len(A) != rank or B.shape[1] != rank:
        raise ValueError(
            f"{name} is a {type(layer.get_base_layer()).__name__}, whose factors have the shapes "
            f"{list(A.shape)} and {list(B.shape)}: only linear maps are supported"
        )
    if start == "paper" and bool((B != 0).any()):
        raise ValueError(
            f"{name}: the adapter has been trained, or starts from the base's weights. "
            "Give start='lora' to keep what it holds"
        )


@torch.no_grad()
def _gate_layer(layer: Any, adapter: str, start: str) -> GatedLayer:
    linear, B = layer.lora_A[adapter], layer.lora_B[adapter]
    for module in (linear, B):
        if module.weight.element_size() < 4:
            module.float()
    if start == "paper":
        nn.init.kaiming_uniform_(linear.weight)
        nn.init.kaiming_uniform_(B.weight)
    add_gate(linear, value=0.0 if start == "paper" else 1.0)
    return GatedLayer(layer, adapter)


def gated_layers(model: nn.Module, adapter: str | None = None) -> dict[str, GatedLayer]:
    """Return the gated layers of an adapter by name, in model order; none where it has none."""
    adapter = adapter or active_adapter(model)
    gated = {}
    for name, layer in lora_layers(model, adapter).items():
        if adapter in layer.lora_A and is_gated(layer.lora_A[adapter]):
            gated[name] = GatedLayer(layer, adapter)
    return gated


def factors_state(layers: dict[str, GatedLayer]) -> dict[str, Tensor]:
    """Return copies of A, B, c and the mask of every layer, which PEFT's checkpoints hold folded.

    A folded A does not tell A from c, so that an exact resume needs these.
    """
    state = {}
    for name, layer in layers.items():
        for factor in FACTORS:
            state[f"{name}.{factor}"] = getattr(layer, factor).detach().cpu().clone()
    return state


@torch.no_grad()
def load_factors_state(layers: dict[str, GatedLayer], state: dict[str, Tensor]) -> None:
    """Load what `factors_state` returned.

    Raises:
        ValueError: it is of other layers or of other sizes. Nothing is changed then.
    """
    tensors = {}
    for name, layer in layers.items():
        for factor in FACTORS:
            tensors[f"{name}.{factor}"] = getattr(layer, factor)
    if tensors.keys() != state.keys():
        differing = min(tensors.keys() ^ state.keys())
        raise ValueError(f"the saved state is of other layers: {differing} is in one of them only")
    for key, tensor in tensors.items():
        if state[key].shape != tensor.shape:
            raise ValueError(
                f"the saved {key} is {list(state[key].shape)}, not {list(tensor.shape)}"
            )
    for key, tensor in tensors.items():
        tensor.copy_(state[key])


@torch.no_grad()
def finalize(
    model: nn.Module, adapter: str | None = None, over_budget: bool = False
) -> dict[str, int]:
    """Cut a gated model to the ranks that it kept, in place; return the ranks by name.

    Afterwards the adapter is plain LoRA: A and B hold c and the scale, layers of rank 0 run their
    base map alone, and the configuration holds r, lora_alpha, rank_pattern, alpha_pattern and
    target_modules, so that PEFT's scale is 1 in every layer. The outputs stay as they were, but for
    rounding. The parameters are new objects, so that an optimizer must be made again.

    Args:
        over_budget: whether to cut a model whose ranks are not final to its present ranks.

    Raises:
        ValueError: the adapter is not attached, its ranks are not final, it is merged, or every
            layer has rank 0, which PEFT cannot represent. Nothing is changed then.
    """
    adapter = adapter or active_adapter(model)
    layers = gated_layers(model, adapter)
    if not layers:
        raise ValueError(f"the adapter {adapter!r} is not attached, or is finalized already")
    if not over_budget:
        check_at_budget(layers.values())
    ranks = {name: int(layer.active().sum()) for name, layer in layers.items()}
    if not any(ranks.values()):
        raise ValueError("every layer has rank 0: there would be no adapter left")
    merged = [name for name, view in layers.items() if adapter in view.layer.merged_adapters]
    if merged:
        raise ValueError(f"{merged[0]}: the adapter is merged. Call unmerge_adapter() first")
    for name, view in layers.items():
        if ranks[name]:
            _cut_layer(view)
        else:
            _remove_adapter(_base_model(model), name, view)
    _write_config(model, adapter, ranks)
    return ranks


def _cut_layer(view: GatedLayer) -> None:
    """Leave one layer with its kept components in plain LoRA of scale 1."""
    layer, adapter = view.layer, view.adapter
    kept = view.active()
    rank = int(kept.sum())
    A = (view.lora_A * view.lora_c.unsqueeze(1))[kept]
    B = view.lora_B[:, kept] * view.scaling
    trains = view.lora_A.requires_grad
    linear_A, linear_B = layer.lora_A[adapter], layer.lora_B[adapter]
    remove_gate(linear_A)
    linear_A.weight = nn.Parameter(A, requires_grad=trains)
    linear_B.weight = nn.Parameter(B.contiguous(), requires_grad=trains)
    linear_A.out_features = linear_B.in_features = rank
    layer.r[adapter] = layer.lora_alpha[adapter] = rank
    layer.scaling[adapter] = 1.0
    layer.use_rslora[adapter] = False


def _remove_adapter(root: nn.Module, name: str, view: GatedLayer) -> None:
    """Take a layer's adapter away, and the layer with it where it has no other."""
    layer, adapter = view.layer, view.adapter
    if set(layer.lora_A) | set(layer.lora_embedding_A) == {adapter}:
        replace_module(root, name, layer.base_layer)
        return
    active = layer._active_adapter
    layer._active_adapter = []  # else PEFT would make another adapter active in this layer alone
    layer.delete_adapter(adapter)
    layer._active_adapter = active


def _write_config(model: nn.Module, adapter: str, ranks: dict[str, int]) -> None:
    """Write the ranks into the adapter's configuration, under whole escaped names."""
    config: Any = model.peft_config[adapter]  # type: ignore[index]
    kept = {name: rank for name, rank in ranks.items() if rank}
    pattern = {"^" + re.escape(name): rank for name, rank in kept.items()}
    config.r = config.lora_alpha = max(kept.values())
    config.rank_pattern = dict(pattern)
    config.alpha_pattern = dict(pattern)
    config.target_modules = set(kept)
    config.exclude_modules = None
    config.layers_to_transform = config.layers_pattern = None
    config.use_rslora = False
    config.init_lora_weights = True
