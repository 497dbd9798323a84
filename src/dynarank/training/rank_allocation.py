"""The Callback that owns the allocator: on every real optimizer step it updates, prunes, freezes and logs. Thin."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.hooks import RemovableHandle

from dynarank.checkpoints.compact import silence
from dynarank.errors import UserError
from dynarank.methods.base import Allocator
from dynarank.training.distributed import agree, check_alike
from dynarank.training.nonfinite import NonFiniteError
from dynarank.training.rank_map import draw_rank_map

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class RankAllocation(Callback):
    """Drives an allocator from a Lightning training loop.

    A hook behind the optimizer's own step raises a flag: it stays down for batches that only accumulate, and for steps
    that a loss scaler skips. `on_train_batch_end` acts on it, before validation and checkpoints see the model.
    """

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator
        self.history: list[dict[str, Any]] = []
        self._stepped = False
        self._hooks: list[RemovableHandle] = []

    def status(self) -> str:
        """The budget and what is nonzero now, in words."""
        allocator = self.allocator
        count, size = int(allocator.active_count()), sum(allocator.sizes)
        state = "frozen" if allocator.frozen else f"budget {allocator.budget():.2f}"
        return f"{state}, {count} of {size} components"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            self.allocator.agree = agree
        self._hooks = [
            optimizer.register_step_post_hook(self._flag) for optimizer in trainer.optimizers
        ]

    def _flag(self, *_: Any) -> None:
        self._stepped = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self._stepped:
            return
        self._stepped = False
        try:
            pruned = self.allocator.step()
        except FloatingPointError as error:
            raise NonFiniteError(self.allocator.t, str(error)) from error
        if pruned and trainer.world_size > 1:
            check_alike(
                hash(tuple(self.allocator.ranks().values())), f"ranks at step {self.allocator.t}"
            )
        if pruned and self.allocator.frozen:
            silence(pl_module, trainer.optimizers)
        if pruned:
            self.history.append({"step": self.allocator.t, "ranks": self.allocator.ranks()})
        pl_module.log("budget/scheduled", self.allocator.budget(), prog_bar=True)
        pl_module.log("budget/nonzero", self.allocator.active_count().float(), prog_bar=True)
        levels = torch.tensor(QUANTILES, device=self.allocator.ema.device)
        scores = torch.quantile(self.allocator.ema, levels)
        pl_module.log_dict(
            {f"score/q{100 * q:02.0f}": s for q, s in zip(QUANTILES, scores, strict=True)}
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ranks = self.allocator.ranks()
        if trainer.state.fn != "fit" or not any(
            hasattr(logger, "log_image") for logger in trainer.loggers
        ):
            return
        figure = draw_rank_map(ranks, self.allocator.sizes[0], f"step {self.allocator.t}")
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("rank_map", [figure], step=trainer.global_step)
                logger.log_metrics(ranks_by_matrix(ranks), step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        return {"allocator": self.allocator.state_dict(), "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            self.allocator.load_state_dict(state_dict["allocator"])
            self.history = state_dict["history"]
        except (KeyError, ValueError) as error:
            raise UserError(
                f"the checkpoint does not fit this run: {error}. Take another checkpoint"
            ) from None


def ranks_by_matrix(ranks: dict[str, int]) -> dict[str, float]:
    """Mean rank of each kind of matrix and of each layer: numbers for trackers that show no pictures."""
    from dynarank.training.rank_map import place

    groups: dict[str, list[int]] = {}
    for name, rank in ranks.items():
        spot = place(name)
        groups.setdefault(f"rank/matrix/{spot.matrix}", []).append(rank)
        groups.setdefault(f"rank/layer/{spot.layer:02d}", []).append(rank)
    return {key: sum(values) / len(values) for key, values in groups.items()}
