"""Dynamic ranks in anybody's LightningModule, by one callback.

    Trainer(max_epochs=3, callbacks=[RankAllocationCallback(target=4)]).fit(module, loader)

The module may hold a PEFT LoRA model, or layers that `dynarank.inject` made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from dynarank.adapters.inject import adapter_layers
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.attaching import Attachment, parameter_ids
from dynarank.allocation.components import Components
from dynarank.allocation.dem import add_dem_gradient
from dynarank.allocation.orthogonality import add_orthogonality_gradient
from dynarank.integrations.distributed import choose_as_first, world_size
from dynarank.integrations.gate import GatedLayer
from dynarank.integrations.logs import log_values, over_budget_message
from dynarank.integrations.saved_state import raw_factors, restore_factors
from dynarank.integrations.settings import AllocationSettings, settings_from


class RankAllocationCallback(Callback):
    """Lets a Lightning Trainer allocate the ranks of a module's adapters while it trains.

    The callback makes the layers of a PEFT LoRA model prunable before the optimizer is made. The
    number of steps is the Trainer's. Steps that a loss scaler skips do not count. DEM's gradient is
    added before each optimizer step, and is clipped together with the loss's. The state is in the
    checkpoints, and a run resumes exactly. A run that ends before the ranks are final warns.

    Afterwards, `finalize(module.model)` makes a PEFT model plain LoRA of its ranks, and
    `write_peft_adapter(module.model, ...)` writes injected layers as such an adapter.

    It logs budget/scheduled, budget/nonzero and score/q05 to q95.

    Args:
        target: the mean number of components that a layer keeps at the end. None: what `attach`
            was given.
        total: the optimizer steps of the whole run, where the Trainer cannot know them.
        adapter: the PEFT adapter's name, where several are active.
        start: how the layers of a PEFT model start, one of dynarank.adapters.STARTS; see `attach`.
        settings: other fields of `AllocationSettings`: eta, interval, warmup, final, score, ...

    Raises:
        ValueError: a setting is out of range. Later, from `fit`: the module has no adapters, the
            number of steps is not known, or a checkpoint is of another allocation.

    Examples:
        >>> import torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from dynarank import inject, mark_trainable
        >>> from dynarank.integrations.lightning import RankAllocationCallback
        >>> class Module(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        ...         self.layers = inject(self.model, targets=["0", "1"], r=3)
        ...         mark_trainable(self.model)
        ...     def training_step(self, batch):
        ...         return self.model(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(p for p in self.parameters() if p.requires_grad)
        >>> callback = RankAllocationCallback(target=2)
        >>> quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
        >>> trainer = Trainer(
        ...     max_steps=8, callbacks=[callback], enable_checkpointing=False, **quiet)
        >>> trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(8, 8)))
        >>> sum(callback.allocator.ranks().values())  # 2 layers x target
        4
    """

    def __init__(
        self,
        target: float | None = None,
        *,
        total: int | None = None,
        adapter: str | None = None,
        start: str = "paper",
        **settings: Any,
    ) -> None:
        self.settings = settings_from(target, settings)
        self.total = total
        self.adapter = adapter
        self.start = start
        self.allocator: RankAllocator | None = None
        """What allocates, from the beginning of training on."""
        self._layers: Mapping[str, Components] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._attachment: Attachment | None = None
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gate the layers of a PEFT model that the module was made with."""
        if stage != "fit" or find_layers(pl_module, self.adapter):
            return
        if holds_lora(pl_module):
            # A module with layers of `inject` needs no PEFT.
            from dynarank.integrations.adding_gates import add_gates

            add_gates(pl_module, self.settings, adapter=self.adapter, start=self.start)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the allocator for the Trainer's number of steps, and load its state on resuming."""
        # Not in `setup`, which Lightning calls before `configure_model`.
        self._layers = find_layers(pl_module, self.adapter)
        if not self._layers:
            raise ValueError(
                "the module has no adapters: make its PEFT LoRA model in __init__, or call "
                "dynarank.inject or attach in configure_model"
            )
        self._optimizer = optimizer_of(trainer.optimizers, self._layers)
        total = total_steps(trainer, pl_module) if self.total is None else self.total
        settings = self._settings()
        self.allocator = settings.allocator(self._layers, total=total)
        if world_size() > 1:
            self.allocator.agree = choose_as_first
        if self._loaded is not None:
            self._restore(self._loaded)
            self._loaded = None
        # Without penalties: `on_before_optimizer_step` adds them, before Lightning clips.
        self._attachment = self.allocator.attach(self._optimizer, rate_power=settings.rate_power)

    def _settings(self) -> AllocationSettings:
        first = next(iter(self._layers.values()))
        if self.settings is None and isinstance(first, GatedLayer):
            self.settings = first.gate.settings
        if self.settings is None:
            raise ValueError(
                "the allocation has no target: give RankAllocationCallback(target=...), the mean "
                "number of components that a layer keeps"
            )
        return self.settings

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the penalties' gradients to that of the loss: DEM's until the freeze."""
        allocator, settings = self.allocator, self.settings
        # Lightning calls this for each optimizer of a module, and one has the adapters.
        if allocator is None or settings is None or inner(optimizer) is not self._optimizer:
            return
        eta = 0.0 if allocator.frozen else settings.eta
        if eta == 0 and settings.orthogonality == 0:
            return  # no scale is read in vain
        scale = remaining_scale(trainer, self._optimizer)
        if eta != 0:
            add_dem_gradient(allocator.layers, eta, grad_scale=scale)
        if settings.orthogonality != 0:
            add_orthogonality_gradient(allocator.layers, settings.orthogonality, grad_scale=scale)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log, as often as the Trainer logs."""
        assert self.allocator is not None
        # A part of the Trainer sets this attribute, so that type checkers do not know it.
        every: int = getattr(trainer, "log_every_n_steps")  # noqa: B009
        # 0 means never, and Lightning then drops what it is given. Here it must not be a divisor.
        if trainer.global_step % max(every, 1) == 0:
            pl_module.log_dict(log_values(self.allocator))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop allocating, and warn where the ranks are not final."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None
        if self.allocator is not None and not self.allocator.frozen:
            warnings.warn(over_budget_message(self.allocator), stacklevel=2)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks off an optimizer that is not used any more."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def state_dict(self) -> dict[str, Any]:
        """Return the allocator's state, and what the module's own state does not tell of gates."""
        if self.allocator is None:
            # Saved before training began, where nothing was allocated: what was loaded stays.
            return self._loaded or {}
        return {"allocator": self.allocator.state_dict(), "factors": raw_factors(self._gated())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until training begins."""
        self._loaded = state_dict or None

    def _restore(self, state: dict[str, Any]) -> None:
        assert self.allocator is not None
        try:
            restore_factors(self._gated(), state["factors"])
            self.allocator.load_state_dict(state["allocator"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"the checkpoint does not fit this run: {error}") from None

    def _gated(self) -> dict[str, GatedLayer]:
        gated = {}
        for name, layer in self._layers.items():
            if isinstance(layer, GatedLayer):
                gated[name] = layer
        return gated


def holds_lora(module: torch.nn.Module) -> bool:
    """Return whether a module holds LoRA layers of PEFT, without importing PEFT."""
    return any(hasattr(part, "lora_A") and hasattr(part, "lora_B") for part in module.modules())


def find_layers(module: torch.nn.Module, adapter: str | None) -> Mapping[str, Components]:
    """Return a module's layers whose ranks can be allocated, by name; empty where it has none."""
    injected = adapter_layers(module)
    if injected or not holds_lora(module):
        return injected
    from dynarank.integrations.peft import gated_layers

    return gated_layers(module, adapter)


def optimizer_of(optimizers: list[Any], layers: Mapping[str, Components]) -> torch.optim.Optimizer:
    """Return the optimizer that trains the layers' coefficients, or, where these are fixed, A.

    Raises:
        ValueError: there is none.
    """
    first_layer = next(iter(layers.values()))
    trained = first_layer.lora_c if first_layer.lora_c.requires_grad else first_layer.lora_A
    for optimizer in optimizers:
        torch_optimizer = inner(optimizer)
        if id(trained) in parameter_ids(torch_optimizer):
            return torch_optimizer
    what = "coefficients c" if trained is first_layer.lora_c else "factor A"
    raise ValueError(
        f"no optimizer trains the layers' {what}: give configure_optimizers all parameters that "
        "require gradients"
    )


def inner(optimizer: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer inside Lightning's."""
    return getattr(optimizer, "optimizer", optimizer)


def total_steps(trainer: Trainer, module: LightningModule) -> int:
    """Return the optimizer steps of the whole run, as the Trainer knows them.

    Raises:
        ValueError: it does not know them.
    """
    # Lightning's own count divides by the accumulation of the moment.
    if _accumulation_changes(trainer):
        raise _unknown_steps("accumulate_grad_batches changes between epochs")
    if not module.automatic_optimization:
        raise _unknown_steps("the module steps its optimizers itself")
    steps = trainer.estimated_stepping_batches
    # Infinity or -1 is what Lightning gives where nothing ends the training.
    if not math.isfinite(steps) or steps < 1:
        raise _unknown_steps(
            "the training has no end: no max_steps, and data or epochs without a length"
        )
    return int(steps)


def _accumulation_changes(trainer: Trainer) -> bool:
    # A part of the Trainer sets this attribute, so that type checkers do not know it.
    callbacks: list[Any] = getattr(trainer, "callbacks")  # noqa: B009
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            # Every schedule has an entry for epoch 0; any other changes the number of steps.
            other_epochs = set(callback.scheduling) - {0}
            if other_epochs:
                return True
    return False


def _unknown_steps(reason: str) -> ValueError:
    return ValueError(
        f"the number of optimizer steps is not known, since {reason}. Give "
        "RankAllocationCallback(total=...) or Trainer(max_steps=...)"
    )


def remaining_scale(trainer: Trainer, optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
    """Return the loss scaler's factor where the gradients are still multiplied by it.

    Lightning unscales before the step, but for fused optimizers, which do so themselves.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # torch's own scaler tells fused optimizers by this attribute.
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None
    return torch.tensor(scaler.get_scale())
