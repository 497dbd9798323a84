"""Rank allocation in transformers' Trainer, and so in TRL's trainers, for PEFT LoRA models.

trainer = Trainer(model=peft_model, ..., callbacks=[RankAllocationCallback(target=4)])
trainer.train()
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.dem import add_dem_gradient
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.integrations.gate import GatedLayer
from dynarank.integrations.peft import (
    attach,
    factors_state,
    finalize,
    gated_layers,
    load_factors_state,
)

STATE_FILE = "dynarank.safetensors"
"""What a checkpoint's folder holds of the allocation."""


class RankAllocationCallback(TrainerCallback):  # type: ignore[misc]
    """Drives a `RankAllocator` from the trainer's steps, and leaves a plain LoRA model at budget.

    Give it to the trainer when the trainer is made. The total of steps is the trainer's own. DEM's
    gradient is added after clipping.

    Args:
        target: the mean rank at the end.
        eta: the weight of DEM (Eq. 10); 0 is none.
        warmup, final, interval, shape: as in `BudgetSchedule`.
        start: as in `attach`.
        settings: further settings of `RankAllocator`.
    """

    def __init__(
        self,
        target: float,
        eta: float = 0.1,
        warmup: float = 0.15,
        final: float = 0.5,
        interval: int = 100,
        shape: str = "cubic",
        start: str = "paper",
        **settings: Any,
    ) -> None:
        self.target = target
        self.eta = eta
        self.spans: dict[str, Any] = dict(
            warmup=warmup, final=final, interval=interval, shape=shape
        )
        self.start = start
        self.settings = settings
        self.layers: dict[str, GatedLayer] = {}
        self.allocator: RankAllocator | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach the model, before the optimizer is made."""
        if args.fsdp or getattr(args, "deepspeed", None):
            raise ValueError(
                "rank allocation reads whole factors: FSDP and DeepSpeed are not supported. Use DDP"
            )
        self.layers = gated_layers(kwargs["model"])
        if not self.layers:
            self.layers = attach(kwargs["model"], target=self.target, start=self.start)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the allocator from the trainer's total of steps, and resume where it does."""
        if not self.layers:
            raise ValueError("give the callback to the trainer when it is made: callbacks=[...]")
        init = max(layer.r for layer in self.layers.values())
        schedule = BudgetSchedule(
            init=init, target=self.target, total=state.max_steps, **self.spans
        )
        self.allocator = RankAllocator(self.layers, schedule, **self.settings)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.allocator.agree = _choose_as_rank_zero
        if state.global_step > 0:
            self._load(_checkpoint(args, state))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add DEM's gradient until the freeze."""
        assert self.allocator is not None
        if self.eta == 0 or self.allocator.frozen:
            return
        scaler = getattr(kwargs["optimizer"], "scaler", None)
        scale = None
        if scaler is not None and args.max_grad_norm <= 0:  # clipping has unscaled them
            scale = torch.tensor(scaler.get_scale())
        add_dem_gradient(self.layers, self.eta, grad_scale=scale)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Account for the step, unless a loss scaler skipped it."""
        assert self.allocator is not None
        if not getattr(kwargs["optimizer"], "step_was_skipped", False):
            self.allocator.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the allocation's state beside the trainer's own."""
        if state.is_world_process_zero:
            self._save(_checkpoint(args, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave plain LoRA at budget, or warn that the model is not at budget."""
        allocator = self.allocator
        assert allocator is not None
        kept = sum(int(layer.active().sum()) for layer in self.layers.values())
        over = not allocator.cost_aware and kept > allocator.allowance(allocator.t)
        if not allocator.frozen or over:
            warnings.warn(
                f"the model is not at its budget: {kept} components at step {allocator.t}, and the "
                f"ranks are frozen at step {allocator.schedule.freeze_step}",
                stacklevel=2,
            )
            return
        finalize(kwargs["model"])
        self.layers = {}

    def _save(self, path: Path) -> None:
        from safetensors.torch import save_file

        assert self.allocator is not None
        state = self.allocator.state_dict()
        tensors = {f"factor.{key}": value for key, value in factors_state(self.layers).items()}
        tensors["ema"] = state.pop("ema").clone()
        sensitivity = state.pop("sensitivity")
        for part, values in (sensitivity or {}).items():
            for index, value in enumerate(values):
                tensors[f"sensitivity.{part}.{index}"] = value.contiguous()
        save_file(tensors, path, metadata={"state": json.dumps(state)})

    def _load(self, path: Path) -> None:
        from safetensors import safe_open

        if not path.is_file():
            raise ValueError(f"{path} is not there: the checkpoint was written without allocation")
        assert self.allocator is not None
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        state["ema"] = tensors["ema"]
        state["sensitivity"] = None
        if "sensitivity.mean.0" in tensors:
            count = sum(key.startswith("sensitivity.mean.") for key in tensors)
            state["sensitivity"] = {
                part: [tensors[f"sensitivity.{part}.{index}"] for index in range(count)]
                for part in ("mean", "deviation")
            }
        self.allocator.load_state_dict(state)
        factors = {
            key.removeprefix("factor."): value
            for key, value in tensors.items()
            if key.startswith("factor.")
        }
        load_factors_state(self.layers, factors)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE


def _choose_as_rank_zero(keep: Tensor) -> Tensor:
    chosen = keep.to(torch.uint8)
    torch.distributed.broadcast(chosen, src=0)
    return chosen.bool()
