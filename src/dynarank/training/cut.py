"""At the freeze, a run is cut to what it keeps: model, optimizer, average, and with them its files.

A layer of rank k holds k components from then on, and a layer of rank 0 runs its base map alone.
`dynarank.adapters.cutting` tells what is done to a layer.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

from dynarank.adapters.cutting import Cuts, cut_optimizer, cut_to_kept
from dynarank.adapters.inject import adapter_layers
from dynarank.training.averaging import WeightAverage


def cut_run(trainer: Trainer, module: LightningModule) -> Cuts:
    """Cut a run to its kept components, in place, between two batches; return what was cut.

    All processes of a run call it at the same step, with the same masks.
    """
    cuts = cut_to_kept(module)
    left_out = False
    for optimizer in trainer.optimizers:
        cut_optimizer(optimizer, cuts)
        left_out = _leave_out_untrained(optimizer) or left_out
    # Where every parameter stayed, DDP's exchange stays as it was laid out, too.
    if not cuts and not left_out:
        return cuts
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAverage):
            callback.cut(cuts)
    _wrap_again(trainer.strategy)
    return cuts


def cut_as_saved(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Cut a new model to the sizes of a run that was saved after its cut, in place.

    The values are loaded afterwards. It is done before the optimizer is made.

    Args:
        saved: the weights and masks that were saved, by name.
    """
    kept = {}
    for name, layer in adapter_layers(model).items():
        # A layer that the checkpoint does not know stays whole, and is named as a difference later.
        # Once a layer is cut, its mask is as long as its rank.
        rank = len(saved.get(f"{name}.mask", layer.mask))
        # Only the number counts, not which ones: the values come from the checkpoint.
        kept[name] = torch.arange(layer.r) < rank
    cut_to_kept(model, kept)


def _leave_out_untrained(optimizer: torch.optim.Optimizer) -> bool:
    """Take what trains no more out, as an optimizer made after the cut has none; say if any is.

    That is the parameters of rank-0 layers, and the gates of Diff Pruning. A saved state knows its
    parameters by their positions alone.
    """
    count = 0
    for group in optimizer.param_groups:
        trained = [parameter for parameter in group["params"] if parameter.requires_grad]
        for parameter in group["params"]:
            if not parameter.requires_grad:
                optimizer.state.pop(parameter, None)  # torch saves no state of what it has not
                count += 1
        group["params"] = trained
    return count > 0


def _wrap_again(strategy: Strategy) -> None:
    """Have DDP exchange the gradients of the new parameters.

    DDP lays out its exchange when it wraps a model. The old wrapper takes its hooks off the old
    parameters when it goes. The model of a single device, and what FSDP2 leaves whole, are read
    anew in each step.
    """
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module  # what `configure_ddp` wraps
        gc.collect()  # the old wrapper stands in reference cycles
        strategy.configure_ddp()
