"""Many devices, by Lightning's strategies: the same batches, the same decisions and the same files on any number of them.

`trainer.batch_size` is that of all devices together, so T, the schedule and the training itself do not depend on how many
there are. DDP replicates the model. FSDP2 shards what is frozen, nearly all of it; what trains is small, and stays whole on
every rank, so that scores, masks, DEM and checkpoints are those of a single process.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn

from dynarank.config.schema import TrainerConfig
from dynarank.errors import UserError

log = logging.getLogger(__name__)


def is_first() -> bool:
    """Whether this process writes the run's files; known from the launcher's environment before there is a group."""
    return this_rank() == 0


def this_rank() -> int:
    """This process's number among the run's, from the launcher's environment."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


class ShardFrozen(ModelParallelStrategy):
    """FSDP2 over the frozen parameters (see `FineTuning.configure_model`); states are saved and loaded as under DDP."""

    def __init__(self, world_size: int) -> None:
        super().__init__(
            data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}  # the module puts in what trains

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def build_strategy(config: TrainerConfig) -> Any:
    """What Lightning's trainer is told."""
    if config.strategy == "fsdp":
        return ShardFrozen(config.world_size)
    if config.world_size > 1:
        # Masks are buffers that `agree` keeps alike; a broadcast before every forward pass would be for nothing.
        return DDPStrategy(forward_sync_buffers=False)
    return "auto"


def check_devices(config: TrainerConfig, batch_size: int) -> None:
    """Raise `UserError` for more devices than there are, or a batch that they cannot share evenly."""
    gpus = torch.cuda.device_count() if config.accelerator in ("auto", "gpu") else 0
    if gpus and config.devices > gpus:
        raise UserError(f"trainer.devices = {config.devices}: this machine has {gpus} GPUs")
    if batch_size % config.world_size:
        raise UserError(
            f"trainer.batch_size = {batch_size}: rows of all {config.world_size} devices together "
            f"(trainer.devices x trainer.nodes), which must divide it"
        )


def shard_frozen(model: nn.Module, blocks: Sequence[str], mesh: Any) -> None:
    """Shard a model's frozen parameters over the mesh, block by block (FSDP2); what trains stays whole on every rank.

    Args:
        blocks: class names of the modules that are gathered one at a time.
    """
    from torch.distributed.fsdp import fully_shard

    # What has fewer elements than there are ranks is no weight: AdaLoRA of PEFT keeps ranks so, and reads them at export.
    whole = {
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad or parameter.numel() < mesh.size()
    }
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over all ranks, in one exchange: for parameters that FSDP was told to leave alone."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.ravel() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def weighted_mean(loss: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of a loss over all ranks' batches, of which this rank's has `terms` terms.

    Returns:
        what this rank must differentiate, so that the ranks' mean gradient is that of the mean; and the mean itself, a
        scalar without gradient, the same on all ranks.
    """
    totals = torch.stack([loss.detach().double() * terms, terms.double()])
    torch.distributed.all_reduce(totals)
    share = terms * torch.distributed.get_world_size() / totals[1]
    return loss * share.to(loss.dtype), (totals[0] / totals[1]).float()


@torch.no_grad()
def agree(keep: Tensor) -> Tensor:
    """Rank 0's choice of components, (n) bool, on every rank; says so where a rank would have chosen otherwise."""
    chosen = keep.to(torch.uint8)
    torch.distributed.broadcast(chosen, src=0)
    differing = (chosen.bool() != keep).sum()
    torch.distributed.all_reduce(differing)
    if int(differing):
        log.warning(
            "the ranks' scores differ: %d choices of components were overruled by rank 0's",
            int(differing),
        )
    return chosen.bool()


def check_alike(digest: int, what: str) -> None:
    """Raise `RuntimeError` on all ranks where not all have the same digest."""
    mine = torch.tensor([digest & (2**62 - 1)])
    if torch.distributed.get_backend() == "nccl":
        mine = mine.cuda()
    low, high = mine.clone(), mine.clone()
    torch.distributed.all_reduce(low, op=torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, op=torch.distributed.ReduceOp.MAX)
    if int(low) != int(high):
        raise RuntimeError(f"the ranks do not have the same {what}; the run stops")
