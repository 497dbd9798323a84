"""What an optimizer step is: accumulated batches, skipped steps, and gradients that must stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny import configure, newest_checkpoint, tiny_roberta, write_model

from dynarank.checkpoints.callback import Checkpoints
from dynarank.checkpoints.signals import Signals
from dynarank.errors import UserError
from dynarank.runs import trainer
from dynarank.runs.prepare import Prepared, prepare
from dynarank.runs.run import run
from dynarank.training.module import FineTuning
from dynarank.training.nonfinite import NonFiniteError

PLAIN = ["method.dropout=0", "dem=off", "optimizer.lr=0.01", "trainer.batch_size=8"]
"""Forty rows: five batches an epoch."""


@pytest.fixture
def no_dropout(tmp_path: Path) -> str:
    """The setting for a model without dropout."""
    sizes = tiny_roberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return f"model.path={write_model(tmp_path / 'model', sizes)}"


def by_hand(
    prepared: Prepared, epochs: int, accumulate: int, clip: float
) -> dict[str, torch.Tensor]:
    """The same training in a plain loop: the loss of an update is the mean of its batches'."""
    module, data, scheduled = prepared.module, prepared.data, prepared.module.configure_optimizers()
    optimizer, scheduler = scheduled["optimizer"], scheduled["lr_scheduler"]["scheduler"]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert module.allocation is not None
    for epoch in range(epochs):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            torch.stack(
                [module.model(**module.task.inputs(batch)).loss for batch in window]
            ).mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            module.allocation.allocator.step()
    return module.trained_state()


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_shorter_last_window_is_the_mean_of_its_own_batches(
    accumulate: int, hub_root: Path, tmp_path: Path, no_dropout: str
) -> None:
    config = configure(
        tmp_path / "run", hub_root, *PLAIN, no_dropout, f"trainer.accumulate={accumulate}"
    )
    run(config)
    expected = by_hand(
        prepare(config, tmp_path / "hand"), config.epochs, accumulate, config.trainer.clip
    )
    saved = newest_checkpoint(tmp_path / "run")["state_dict"]
    head = [name for name in saved if "classifier" in name]
    assert len(head) == 4
    assert max(float((saved[name] - expected[name]).abs().max()) for name in head) < 1e-6


class Recorded(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        taken = {int(state["step"]) for state in optimizer.state.values()}
        self.seen.append({
            "taken": max(taken, default=0), "counted": trainer.global_step, "t": pl_module.allocation.allocator.t,
            "rate": trainer.lr_scheduler_configs[0].scheduler.last_epoch,
        })  # fmt: skip


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Of runs in half precision on the CPU, with a real loss scaler whose first scales overflow."""
    recorded = Recorded()

    class HalfOnCPU(pl.Trainer):
        def __init__(
            self, *, plugins: list[Any], precision: str, callbacks: list[Any], **options: Any
        ) -> None:
            half = MixedPrecision(
                "16-mixed",
                "cpu",
                torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=4),
            )
            super().__init__(plugins=[*plugins, half], callbacks=[*callbacks, recorded], **options)

    monkeypatch.setattr(trainer.pl, "Trainer", HalfOnCPU)
    return recorded


def test_a_gradient_that_no_scale_makes_finite_stops_too(
    recorded: Recorded, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynarank.training.module.SKIPS", 3)

    def spoil(module: FineTuning) -> None:
        module.get_parameter("model.classifier.out_proj.bias").grad[0] = torch.nan

    monkeypatch.setattr(FineTuning, "on_after_backward", spoil)
    with pytest.raises(UserError, match=r"skipped 3 steps in a row.*classifier\.out_proj\.bias"):
        run(configure(tmp_path, hub_root, *PLAIN))


def test_steps_that_the_scaler_of_half_precision_skips_do_not_count(
    recorded: Recorded, hub_root: Path, tmp_path: Path
) -> None:
    results = run(configure(tmp_path, hub_root, *PLAIN, "trainer.epochs=4", "budget.interval=1"))
    assert results.total_steps == 20 == len(recorded.seen)
    assert all(len(set(seen.values())) == 1 for seen in recorded.seen), recorded.seen
    assert 10 < newest_checkpoint(tmp_path)["global_step"] < 20
    assert results.at_budget


@pytest.mark.parametrize("clip", [0, 1])
def test_a_gradient_that_is_not_finite_stops_before_the_update(
    clip: int, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*PLAIN, "checkpoint.every_steps=1", f"trainer.clip={clip}"]
    config = configure(tmp_path, hub_root, *settings)

    def spoil(module: FineTuning) -> None:
        if module.trainer.global_step == 3:
            for index in (0, 1):
                layer = module.get_submodule(
                    f"model.roberta.encoder.layer.{index}.attention.self.key"
                )
                layer.lora_B.grad[0, 0] = torch.inf if clip else torch.nan

    monkeypatch.setattr(FineTuning, "on_after_backward", spoil)
    with pytest.raises(
        UserError,
        match=r"step 4: the gradient is not finite.*layer\.1\.attention\.self\.key\.lora_B",
    ):
        run(config)
    saved = newest_checkpoint(tmp_path)
    assert saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_the_loss_is_looked_at_once_an_update(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite inside an accumulation window stops the run at that window's end, at its own batch."""
    config = configure(tmp_path, hub_root, *PLAIN, "trainer.accumulate=2")
    calls: list[int] = []

    class Spoiled(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            found: torch.Tensor = super().forward(ids)
            return found / 0 if len(calls) == 3 or len(calls) > 4 else found

    prepared = prepare(config, tmp_path)
    words = prepared.pretrained.model.roberta.embeddings
    words.word_embeddings.__class__ = Spoiled
    with Signals() as signals:
        checkpoints = Checkpoints(
            tmp_path / "checkpoints", config.checkpoint, {}, signals, None, 0.0
        )
        with pytest.raises(
            NonFiniteError, match=r"step 2: the loss is nan; first at roberta\.embeddings"
        ):
            trainer.fit(trainer.build_trainer(config, tmp_path, prepared, checkpoints), prepared)
    assert len(calls) == 5  # the fifth names the place
