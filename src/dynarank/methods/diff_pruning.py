"""Diff Pruning (Guo et al., ACL 2021): a sparse difference of all weights of the frozen model.

    W = W0 + z * w                    z hard-concrete gates, w the difference, both of W0's shape
    loss = task + lambda mean P(z > 0)      (the paper's sum, over the number of weights)

The gates follow `dynarank.methods.hard_concrete`. They learn at a rate of their own, 0.1 in the
authors' code, whatever the weights' rate is, and do not decay. At the freeze the weights with the
largest |z * w| are kept, exactly as many as the budget has parameters, and train on without gates.
That is one run: the authors cut after a run of three epochs, and train the rest for three more with
a new optimizer. (The paper's structured gates, one more for a whole tensor, are left out, and gates
and weights are clipped together.) Training takes three more numbers a weight and their moments: it
is for small models. Tied weights are left as they are.

Export: `trained.safetensors` with `NAME.indices` (k, int64, positions in the flattened weight) and
`NAME.values` (k, float32, what is added there), where k is
above 0, and the task head's parameters in full. `add_sparse` loads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynarank.methods.base import TRAINED, Method, MethodSize, nominal_parameters
from dynarank.methods.config import DiffPruningConfig
from dynarank.methods.diff_allocation import DiffAllocation
from dynarank.methods.hard_concrete import GatedDifference, open_probability
from dynarank.methods.ranked import schedule_of

INDICES, VALUES = ".indices", ".values"


class DiffPruning(Method[DiffPruningConfig]):
    """A difference of as many weights as the budget has parameters."""

    penalty_name = "l0"
    differences: dict[str, GatedDifference]
    """By the name of the weight in the plain model."""
    kept: int
    """Weights that differ at the end."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        self.kept = nominal_parameters(model, targets, self.head, self.budget.target)
        self.differences = {}
        for name in own_weights(model, self.head):
            owner, _, leaf = name.rpartition(".")
            module, weight = model.get_submodule(owner), model.get_parameter(name)
            if weight.dtype != torch.float32:
                raise ValueError(f"{name} is {weight.dtype}: set model.dtype=float32")
            gated = GatedDifference(weight, self.config.log_alpha)
            # From now on every read of this weight gives W0 + z * w. torch keeps W0 as `original`.
            parametrize.register_parametrization(module, leaf, gated)
            self.differences[name] = gated
        return model

    def allocator(self, total_steps: int) -> DiffAllocation:
        schedule = schedule_of(self.budget, total_steps, shape="step")
        return DiffAllocation(self.differences, schedule, self.kept)

    def all_lr_ratios(
        self, lr: float, head_lr: float | None
    ) -> list[tuple[list[nn.Parameter], float]]:
        # Not in `lr_ratios`: the gates' rate is a number of its own, whatever `lr` is.
        gates = [gated.log_alpha for gated in self.differences.values()]
        return [*super().all_lr_ratios(lr, head_lr), (gates, self.config.gate_lr / lr)]

    def penalty(self, frozen: bool) -> Tensor | None:
        if frozen or not self.config.sparsity:
            return None
        gates = [gated.log_alpha for gated in self.differences.values()]
        open_by_weight = [open_probability(gate).sum() for gate in gates]
        open_gates = torch.stack(open_by_weight).sum()  # their expected number
        number_of_gates = sum(gate.numel() for gate in gates)
        return self.config.sparsity * open_gates / number_of_gates

    def adapter_parameters(self) -> int:
        return self.kept

    def adapted_size(self, nominal: int) -> MethodSize:
        weights = sum(gated.mask.numel() for gated in self.differences.values())
        return MethodSize(label=f"{self.kept:,} of {weights:,} weights", parameters=self.kept)

    def export(self, folder: Path, base: str, task_type: str | None) -> None:
        from safetensors.torch import save_file

        tensors = {}
        for name, gated in self.differences.items():
            indices = gated.mask.flatten().nonzero().flatten()
            if len(indices) == 0:  # our readers refuse tensors without elements
                continue
            difference = gated.present().detach().flatten()
            tensors[name + INDICES] = indices.cpu()
            tensors[name + VALUES] = difference[indices].cpu()
        for name in self.head:
            for leaf, parameter in self.model.get_submodule(name).named_parameters():
                tensors[f"{name}.{leaf}"] = parameter.detach().cpu().contiguous()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / TRAINED, metadata={"format": "pt"})

    def restore(
        self, model: nn.Module, head: Sequence[str], trained: Mapping[str, Tensor]
    ) -> nn.Module:
        return add_sparse(model, trained)


def own_weights(model: nn.Module, head: Sequence[str]) -> list[str]:
    """Return the names of all parameters outside the head that are not tied to another."""
    owners: dict[int, int] = {}
    # By default torch names a tied weight once, and would hide its other owners.
    # Parametrized in one owner, it would no longer be tied.
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    inside = tuple(f"{name}." for name in head)
    names = []
    for name, parameter in model.named_parameters():
        if owners[id(parameter)] == 1 and not name.startswith(inside):
            names.append(name)
    return names


@torch.no_grad()
def add_sparse(model: nn.Module, trained: Mapping[str, Tensor]) -> nn.Module:
    """Add an exported difference to a plain model's weights, in place, and return the model.

    Args:
        model: the base model, with a task head of the same shape.
        trained: the tensors of `trained.safetensors` by name, as the file's legend has them.

    Raises:
        ValueError: the file is of another model.
    """
    parameters = dict(model.named_parameters())
    for key, tensor in trained.items():
        name = key.removesuffix(INDICES).removesuffix(VALUES)
        if name not in parameters:
            raise ValueError(f"{TRAINED} holds {name}, which the model does not have")
        weight = parameters[name]
        if key.endswith(INDICES):
            values = trained[name + VALUES].to(weight.device, weight.dtype)
            weight.view(-1).index_add_(0, tensor.to(weight.device), values)
        # Values are added with their indices. What is left is the head's, stored in full.
        elif not key.endswith(VALUES):
            weight.copy_(tensor)
    return model
