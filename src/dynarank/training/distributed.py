"""Many devices, by Lightning's strategies: the same batches, decisions and files on any number.

`trainer.batch_size` is that of all devices together, so T, the schedule and the training itself do
not depend on how many there are. DDP replicates the model. FSDP2 shards what is frozen, nearly all
of it. What trains is small, and stays whole on every rank, so that scores, masks, DEM and
checkpoints are those of a single process.
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
    """Return whether this process writes the run's files.

    It is known from the launcher's environment, before the processes have formed a group.
    """
    return this_rank() == 0


def this_rank() -> int:
    """Return this process's number among the run's, from the launcher's environment."""
    # Lightning reads the launchers' variables (RANK, SLURM_PROCID ...) when it is imported.
    return int(getattr(rank_zero_only, "rank", 0) or 0)


class ShardFrozen(ModelParallelStrategy):
    """FSDP2 over the frozen parameters (see `FineTuning.configure_model`).

    States are saved and loaded as under DDP, because what trains is whole on every rank.
    """

    def __init__(self, world_size: int) -> None:
        # Lightning's defaults keep a node's devices for tensor parallelism, and nodes for data.
        super().__init__(
            data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False
        )

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Load checkpoints before the set-up, as DDP does."""
        # A loaded checkpoint may cut the model, and its optimizer must be made after that.
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning restore the optimizer."""
        # The parent says no, because it reads the optimizer's state itself, from shards.
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return nothing: what trains is put into the checkpoint apart from this."""
        # The parent class would gather the frozen base from all ranks, to be thrown away.
        return {}

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Load what trains as a plain state."""
        # `Strategy` is the grandparent, here and below: the parent reads and writes shards.
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the optimizer's state as it is: it holds no shards."""
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Load a plain state into the optimizer."""
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write a plain file."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a plain file."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)


def build_strategy(config: TrainerConfig) -> Any:
    """Return the strategy, in a form that Lightning's trainer takes."""
    if config.strategy == "fsdp":
        return ShardFrozen(config.world_size)
    if config.world_size > 1:
        # Masks are the only buffers that change, and `choose_as_rank_zero` keeps them the same on
        # all ranks: a broadcast before every forward pass would be for nothing.
        return DDPStrategy(forward_sync_buffers=False)
    return "auto"


def check_devices(config: TrainerConfig, batch_size: int) -> None:
    """Check that the devices are there and can share a batch evenly.

    Raises:
        UserError: more GPUs than the machine has, or a batch size that is no multiple of them.
    """
    gpus = torch.cuda.device_count() if config.accelerator in ("auto", "gpu") else 0
    if gpus and config.devices > gpus:
        raise UserError(
            f"trainer.devices = {config.devices}: this machine has {gpus} GPUs. Use at most {gpus}"
        )
    if batch_size % config.world_size:
        raise UserError(
            f"trainer.batch_size = {batch_size}: it counts the rows of all {config.world_size} "
            "devices together (trainer.devices x trainer.nodes). "
            f"Use a multiple of {config.world_size}"
        )


def shard_frozen(model: nn.Module, blocks: Sequence[str], mesh: Any) -> None:
    """Shard a model's frozen parameters over a mesh, block by block; what trains stays whole.

    Args:
        model: the adapted model.
        blocks: class names of the modules that are gathered one at a time.
        mesh: the ranks to shard over.
    """
    from torch.distributed.fsdp import fully_shard

    whole = set()
    for name, parameter in model.named_parameters():
        # What has fewer elements than there are ranks is no weight: PEFT's AdaLoRA keeps its ranks
        # in parameters of one element, and reads them at export.
        is_small = parameter.numel() < mesh.size()
        # Our c may be fixed, and still says which components are left.
        is_coefficient = name.endswith(".lora_c")
        if parameter.requires_grad or is_small or is_coefficient:
            whole.add(parameter)
    # Blocks first, as FSDP2 wants it: the root takes what lies in none of them.
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their mean over all ranks, in one exchange.

    This is for the parameters that FSDP2 was told to leave alone.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.ravel() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()  # the mean, as DDP takes it: see `weighted_mean`
    means = flat.split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def weighted_mean(loss: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """Average a loss over the batches of all ranks.

    Args:
        loss: the mean over this rank's batch, a scalar.
        terms: the number of terms in that mean, a scalar.

    Returns:
        what this rank must differentiate, so that the mean of the ranks' gradients is the gradient
        of the mean over all terms; and that mean itself, a scalar without gradient, the same on
        all ranks.
    """
    # In double, so that the mean depends on the number of ranks as little as it can.
    totals = torch.stack([loss.detach().double() * terms, terms.double()])
    torch.distributed.all_reduce(totals)
    # DDP takes the mean over the ranks afterwards, so their number is multiplied in.
    sum_of_losses, all_terms = totals
    share = terms * torch.distributed.get_world_size() / all_terms
    mean = (sum_of_losses / all_terms).float()
    return loss * share.to(loss.dtype), mean


@torch.no_grad()
def choose_as_rank_zero(keep: Tensor) -> Tensor:
    """Return rank 0's choice of components on every rank.

    It warns where another rank would have chosen otherwise.

    Args:
        keep: the components that this rank would keep, (n) bool.
    """
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


@torch.no_grad()
def copy_rank_zero(tensors: Sequence[Tensor]) -> None:
    """Put rank 0's values into every rank's tensors, in place."""
    for tensor in tensors:
        torch.distributed.broadcast(tensor, src=0)


def check_alike(digest: int, what: str) -> None:
    """Check that all ranks hold the same.

    Args:
        digest: of what this rank holds; its lowest 62 bits are compared.
        what: its name, for the error.

    Raises:
        RuntimeError: on all ranks, where not all have the same digest.
    """
    # A digest may be negative, or longer than the 64 bits of a tensor's integer.
    own = torch.tensor([digest & (2**62 - 1)])
    if torch.distributed.get_backend() == "nccl":
        own = own.cuda()  # NCCL exchanges tensors of GPUs alone
    low, high = own.clone(), own.clone()
    torch.distributed.all_reduce(low, op=torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, op=torch.distributed.ReduceOp.MAX)
    if int(low) != int(high):
        raise RuntimeError(f"the ranks do not have the same {what}; the run stops")
