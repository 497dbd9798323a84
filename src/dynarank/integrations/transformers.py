"""Dynamic ranks in transformers' Trainer and in TRL's trainers.

    from dynarank.integrations.transformers import RankAllocationCallback

    model = peft.get_peft_model(base, peft.LoraConfig(r=6, target_modules=["query", "value"]))
    trainer = Trainer(model=model, ..., callbacks=[RankAllocationCallback(target=4)])
    trainer.train()
    trainer.save_model("adapter")            # plain LoRA, 4 components a layer on average

TRL's trainers make the PEFT model themselves:

    trainer = SFTTrainer(..., peft_config=lora, callbacks=[RankAllocationCallback(target=4)])
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.attaching import Attachment, unwrapped
from dynarank.integrations.adding_gates import add_gates
from dynarank.integrations.distributed import choose_as_first, world_size
from dynarank.integrations.gate import GatedLayer
from dynarank.integrations.logs import log_values, over_budget_message
from dynarank.integrations.peft import gated_layers
from dynarank.integrations.peft_config import DynaRankConfig
from dynarank.integrations.retraining import check_retraining, finalize_trained
from dynarank.integrations.saved_state import (
    newest_saved,
    read_state,
    restore_factors,
    state_file,
    write_state,
)
from dynarank.integrations.settings import settings_from
from dynarank.integrations.sharding import check_local, refuse_sharding

log = logging.getLogger(__name__)


class RankAllocationCallback(TrainerCallback):  # type: ignore[misc]
    """Lets a Trainer allocate the ranks of its PEFT LoRA model while it trains.

    The model's layers start with the components that its LoraConfig gives them (r). After every
    step that the optimizer really takes, they are scored, and pruned when the schedule says so. The
    number of steps is the Trainer's own. When training ends, the model is plain LoRA of the ranks
    that were found (see `finalize`); a run that ended too early for that says so in a warning.

    DEM's gradient is added right before the optimizer's step: once a step, after clipping, with
    any loss and any gradient accumulation. Evaluations from before the ranks are final do not count
    for the best model. Checkpoints hold a plain LoRA adapter and `dynarank.safetensors`, with which
    a run resumes exactly.

    Logged with the Trainer's values: budget/scheduled, budget/nonzero, score/q05 to q95. Callbacks
    after this one in the list see them: give a tracker as `report_to="none"` and
    `callbacks=[RankAllocationCallback(target=4), WandbCallback()]`.

    Args:
        target: the mean number of components that a layer keeps at the end. None: what `attach` or
            a `DynaRankConfig` was given.
        adapter: the adapter's name, where several are active.
        start: how the layers start, one of dynarank.adapters.STARTS; see `attach`.
        finalize_at_end: whether to make the model plain LoRA when training ends.
        resume_from: the folder of the checkpoint that the run resumes from, where it is not in
            `output_dir`.
        settings: other fields of `AllocationSettings`: eta, interval, warmup, final, score, ...

    Raises:
        ValueError: a setting is out of range. Later, from the Trainer: the model has no LoRA
            adapter, it is sharded, or a checkpoint lacks the allocation's state.

    Examples:
        >>> import peft
        >>> from transformers import (
        ...     BertConfig, BertForSequenceClassification, Trainer, TrainingArguments)
        >>> from dynarank.integrations.transformers import RankAllocationCallback
        >>> sizes = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
        >>> base = BertForSequenceClassification(BertConfig(intermediate_size=8, **sizes))
        >>> model = peft.get_peft_model(base, peft.LoraConfig(r=3, target_modules=["query", "key"]))
        >>> callback = RankAllocationCallback(target=2)
        >>> arguments = TrainingArguments("run", max_steps=4, report_to="none", save_strategy="no")
        >>> rows = [{"input_ids": [1, 2, 3], "labels": 0}] * 8
        >>> trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[callback])
        >>> output = trainer.train()
        {'train_runtime': ...}
        >>> sum(callback.ranks.values())  # 2 layers x target
        4
    """

    def __init__(
        self,
        target: float | None = None,
        *,
        adapter: str | None = None,
        start: str = "paper",
        finalize_at_end: bool = True,
        resume_from: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self._given = settings_from(target, settings)
        self.settings = self._given
        self.adapter = adapter
        self.start = start
        self.finalize_at_end = finalize_at_end
        self.resume_from = resume_from
        self.allocator: RankAllocator | None = None
        """What allocates, from the beginning of training on."""
        self.ranks: dict[str, int] | None = None
        """The ranks by module name, once they are final."""
        self._layers: dict[str, GatedLayer] = {}
        self._attachment: Attachment | None = None
        self._selects_models = False

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Gate the model's LoRA layers, before the Trainer makes its optimizer."""
        assert model is not None
        refuse_sharding(args)
        layers = gated_layers(model, self.adapter)
        if not layers:
            layers = self._gate(model)
        self._adopt(layers)

    def _gate(self, model: nn.Module) -> dict[str, GatedLayer]:
        """Gate the layers of a model that a Trainer, such as TRL's, has made with PEFT itself."""
        settings, start = self.settings, self.start
        configs: dict[str, Any] = getattr(model, "peft_config", {})
        for name, config in configs.items():
            if not isinstance(config, DynaRankConfig):
                continue
            if self.adapter in (None, name):
                settings = settings or config.allocation()
                start = config.start
            configs[name] = config.plain()
        return add_gates(model, settings, adapter=self.adapter, start=start)

    def _adopt(self, layers: dict[str, GatedLayer]) -> None:
        """Make these the layers whose ranks are allocated, with the settings that hold for them."""
        for layer in layers.values():
            # TRL narrows what trains on a quantized model; c would not move in bfloat16.
            for factor in (layer.lora_A, layer.lora_B, layer.lora_c):
                factor.data = factor.data.float()
        self._layers = layers
        # Each model that `model_init` makes may have been attached with other settings.
        first = next(iter(layers.values()))
        self.settings = self._given or first.gate.settings
        if self.settings is None:
            raise ValueError(
                "the allocation has no target: give RankAllocationCallback(target=...), the mean "
                "number of components that a layer keeps"
            )

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **_: Any,
    ) -> None:
        """Make the allocator for the Trainer's number of steps, and load its state on resuming."""
        assert model is not None
        # train() may be called again, with an optimizer of its own.
        self._detach()
        layers = gated_layers(model, self.adapter)
        if not layers:
            self._train_without_gates(model, optimizer)
            return
        # Sharding that was set up since the Trainer was made shows in the tensors alone.
        for name, layer in layers.items():
            check_local(name, layer.lora_A, layer.lora_B, rank=layer.r)
        self._adopt(layers)
        assert self.settings is not None
        self.ranks = None
        self.allocator = self.settings.allocator(layers, total=state.max_steps)
        if world_size() > 1:
            self.allocator.agree = choose_as_first
        if state.global_step > 0:
            self._resume(args, state)
        # A run that resumes after the freeze has its best evaluation from there.
        self._selects_models = self.allocator.frozen
        assert optimizer is not None
        self._attachment = self.settings.attach(self.allocator, optimizer)

    def _train_without_gates(self, model: nn.Module, optimizer: Any) -> None:
        """Let a finalized model be trained on; refuse any other."""
        if self.ranks is not None:
            check_retraining(model, unwrapped(optimizer))
            warnings.warn(
                "the model's ranks are final: it is trained on as plain LoRA", stacklevel=3
            )
        elif self._layers:
            raise ValueError(
                "the Trainer has made another model since, whose layers have no gates: call "
                "attach(model, target=...) in model_init"
            )
        else:
            raise ValueError(
                "RankAllocationCallback was added to a Trainer that was made already. Give it in "
                "Trainer(callbacks=[...]), so that it meets the model before the optimizer does"
            )

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        assert self.allocator is not None
        folders = [self.resume_from, getattr(args, "resume_from_checkpoint", None)]
        if args.output_dir:
            folders.append(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        path = state_file(folders, state.global_step)
        allocator_state, tensors = read_state(path)
        try:
            restore_factors(self._layers, tensors)
            self.allocator.load_state_dict(allocator_state)
        except ValueError as error:
            raise ValueError(f"{path} does not fit this run: {error}") from None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget the best evaluation at every step until the ranks are final.

        What was evaluated before is over its budget. Early stopping starts anew wherever there is
        no best one. The allocator itself is called by the optimizer, and only for steps that are
        really taken.
        """
        if self.allocator is None or self._selects_models:
            return
        self._selects_models = self.allocator.frozen
        state.best_metric = None
        state.best_global_step = None
        state.best_model_checkpoint = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Add the allocation's values to what is logged of training."""
        if self.allocator is None or not logs or "loss" not in logs or self._attachment is None:
            return
        values = log_values(self.allocator)
        logs.update(values)
        # The Trainer has put a copy of the logs there before it called.
        if state.log_history:
            state.log_history[-1].update(values)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write the allocation's state into the checkpoint that was just saved."""
        if self.allocator is None or self._attachment is None or not state.is_world_process_zero:
            return
        # Not as transformers' ExportableState: it holds JSON alone, and makes a new callback of it.
        write_state(newest_saved(args.output_dir, state.global_step), self.allocator, self._layers)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **_: Any,
    ) -> None:
        """Make the model plain LoRA of its final ranks, or warn that they are not final."""
        if self.allocator is None or self._attachment is None:
            return
        assert model is not None
        self._detach()
        if not self.allocator.frozen:
            warnings.warn(over_budget_message(self.allocator), stacklevel=2)
            return
        self.ranks = self.allocator.ranks()
        if self.finalize_at_end:
            # The Trainer keeps its optimizer for another train().
            self.ranks = finalize_trained(model, self._layers, unwrapped(optimizer))
            self._layers = {}
            log.info("the adapter is plain LoRA with %d components", sum(self.ranks.values()))

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None
