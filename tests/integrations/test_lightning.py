"""The Callback in somebody else's LightningModule."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import peft
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

sys.path.insert(0, str(Path(__file__).parent))
from door_models import MODELS, TARGETS, Rows, batch

from dynarank.adapters.inject import adapter_layers, inject, mark_trainable
from dynarank.allocation.dem import dem_penalty
from dynarank.allocation.orthogonality import add_orthogonality_gradient
from dynarank.integrations.lightning import RankAllocationCallback
from dynarank.integrations.peft import finalize, gated_layers

STEPS = 12


class Theirs(pl.LightningModule):
    """A module as anybody writes it."""

    def __init__(self, kind: str = "peft") -> None:
        super().__init__()
        base = MODELS["bert"]()
        if kind == "peft":
            config = peft.LoraConfig(r=4, target_modules=TARGETS["bert"], lora_dropout=0.1)
            self.model = peft.get_peft_model(base, config)
        elif kind == "injected":
            inject(base, TARGETS["bert"], r=4, dropout=0.1)
            mark_trainable(base)
            self.model = base
        else:
            self.model = base

    def training_step(self, rows: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.model(**rows).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def trainer_of(*callbacks: pl.Callback, **changes: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accumulate_grad_batches": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**{**settings, **changes})


def allocation(**changes: Any) -> RankAllocationCallback:
    settings: dict[str, Any] = {"target": 2, "interval": 2, "warmup": 0.1, "final": 0.3}
    return RankAllocationCallback(**{**settings, **changes})


def loader() -> DataLoader[Any]:
    # With a generator of its own, an iterator draws nothing from the one that dropout draws from.
    return DataLoader(Rows("bert"), batch_size=4, generator=torch.Generator())


@pytest.mark.parametrize("kind", ["peft", "injected"])
def test_it_ends_at_budget_in_the_trainers_number_of_steps(kind: str) -> None:
    callback, module = allocation(), Theirs(kind)
    trainer = trainer_of(callback)
    trainer.fit(module, loader())
    allocator = callback.allocator
    assert allocator is not None
    assert (allocator.t, allocator.schedule.total, allocator.frozen) == (STEPS, STEPS, True)
    ranks = allocator.ranks()
    assert sum(ranks.values()) == 2 * len(ranks)
    assert trainer.callback_metrics["budget/nonzero"] == 2 * len(ranks)
    assert trainer.callback_metrics["budget/scheduled"] == 2
    if kind == "peft":
        with torch.no_grad():
            before = module.model.eval()(**batch("bert")).logits
            finalize(module.model)
            after = module.model(**batch("bert")).logits
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    else:
        active = [int(layer.active().sum()) for layer in adapter_layers(module).values()]
        assert active == list(ranks.values())


class StopAt(pl.Callback):
    """Stops as a kill would: an exception behind a step."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 7:
            raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["peft", "injected"])
def test_a_resumed_run_is_equal_to_the_bit(kind: str, tmp_path: Path) -> None:
    def checkpoints() -> ModelCheckpoint:
        # At the end of an epoch, so that no dropout is drawn twice.
        return ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")

    class Seeded(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
            torch.manual_seed(trainer.current_epoch)

    whole = Theirs(kind)
    trainer_of(allocation(), Seeded()).fit(whole, loader())
    with pytest.raises(ZeroDivisionError):
        trainer_of(allocation(), Seeded(), StopAt(), checkpoints()).fit(Theirs(kind), loader())
    path = tmp_path / "epoch=0.ckpt"
    again = Theirs(kind)
    trainer_of(allocation(), Seeded()).fit(again, loader(), ckpt_path=path, weights_only=True)
    ours, theirs = whole.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if kind == "peft":  # a plain adapter at any moment
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert not [name for name in saved if "parametrizations" in name]
        other = trainer_of(allocation(interval=3))
        with pytest.raises(ValueError, match="interval was 2, is 3"):
            other.fit(Theirs(kind), loader(), ckpt_path=path, weights_only=True)


def test_dem_is_added_until_the_freeze() -> None:
    penalties = []
    for eta in (0.0, 20.0):
        torch.manual_seed(0)
        module = Theirs()
        trainer_of(allocation(eta=eta)).fit(module, loader())
        penalties.append(dem_penalty(gated_layers(module)).item())
    assert penalties[1] < 0.8 * penalties[0]


@pytest.mark.parametrize("start", ["orthogonal", "orthogonal_A"])
def test_orthogonality_is_kept_to_the_end(start: str) -> None:
    excess = []
    for weight in (0.0, 5.0):
        torch.manual_seed(0)
        module = Theirs()
        settings = {"start": start, "eta": 0.0, "orthogonality": weight}
        trainer_of(allocation(**settings)).fit(module, loader())
        layers = list(gated_layers(module).values())
        excess.append(add_orthogonality_gradient(layers, 1.0).item())
    assert excess[1] < 0.5 * excess[0]


def test_a_wide_start_can_be_calmed() -> None:
    sizes = []
    for power in (0.0, 1.0):
        torch.manual_seed(0)
        module = Theirs()
        # Nearly all steps lie before the freeze; at the start a step is a quarter as long.
        settings = {"target": 1, "final": 0.1, "start": "lora", "rate_power": power}
        trainer_of(allocation(**settings)).fit(module, loader())
        grown = [layer.lora_B.norm() for layer in gated_layers(module).values()]
        sizes.append(torch.stack(grown).mean().item())
    assert sizes[1] < 0.7 * sizes[0]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        rows = Rows("bert")
        while True:
            yield from (rows[index] for index in range(len(rows)))


def test_an_unknown_number_of_steps_is_refused_and_can_be_given() -> None:
    endless = DataLoader(Endless(), batch_size=4)
    cases: list[tuple[str, dict[str, Any], Any]] = [
        ("no end", {"max_epochs": -1}, loader()),
        ("no end", {"max_epochs": 1}, endless),
    ]
    for reason, changes, data in cases:
        with pytest.raises(ValueError, match=reason):
            trainer_of(allocation(), **changes).fit(Theirs(), data)
    scheduler = GradientAccumulationScheduler({0: 1, 1: 2})
    with pytest.raises(ValueError, match="changes between epochs"):
        trainer_of(allocation(), scheduler, accumulate_grad_batches=1).fit(Theirs(), loader())
    callback = allocation(total=18)
    scheduler = GradientAccumulationScheduler({0: 1, 1: 2})
    trainer_of(callback, scheduler, accumulate_grad_batches=1).fit(Theirs(), loader())
    assert callback.allocator is not None
    assert callback.allocator.t == 18


def test_ending_before_the_freeze_is_said() -> None:
    with pytest.warns(UserWarning, match="ended after 12 optimizer steps.*not at its budget"):
        trainer_of(allocation(total=100)).fit(Theirs(), loader())


def test_a_module_without_adapters_is_refused() -> None:
    with pytest.raises(ValueError, match="no adapters"):
        trainer_of(allocation()).fit(Theirs("plain"), loader())
