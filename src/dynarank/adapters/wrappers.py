"""Look through torch's wrappers, whose names stand before those of a model's modules."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

_WITH_A_MODULE = (DataParallel, DistributedDataParallel, AveragedModel)


def unwrapped_model(model: nn.Module) -> nn.Module:
    """Return the model inside torch's wrappers: `torch.compile`'s, and those for devices and means.

    A model without a wrapper is returned as it is.
    """
    while True:
        # The compiler's wrapper has no public name. What it does not have, it asks its model for.
        compiled = model._modules.get("_orig_mod")
        if compiled is not None:
            model = compiled
        elif isinstance(model, _WITH_A_MODULE):
            model = model.module
        else:
            return model
