"""What an optimizer step is: its parts in order, accumulation, skipped steps, what must stop it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny import configure, newest_checkpoint, tiny_roberta, write_model

from dynarank import training
from dynarank.adapters.cutting import cut_to_kept
from dynarank.checkpoints.callback import Checkpoints
from dynarank.checkpoints.content import trained_state
from dynarank.checkpoints.signals import Signals
from dynarank.errors import UserError
from dynarank.runs import trainer
from dynarank.runs.prepare import Prepared, prepare
from dynarank.runs.run import run
from dynarank.training import cut, data, distributed, library_internals, optimizer_steps
from dynarank.training.averaging import WeightAverage
from dynarank.training.module import FineTuning
from dynarank.training.nonfinite import FiniteCheck, NonFiniteError
from dynarank.training.rank_allocation import RankAllocation

PLAIN = ["method.dropout=0", "dem=off", "optimizer.lr=0.01", "trainer.batch_size=8"]
"""Forty rows: five batches an epoch."""
TRAINER = pl.Trainer
MODULES = (cut, data, distributed, library_internals, optimizer_steps)
KINDS = {kind.__name__: kind for kind in (FineTuning, FiniteCheck, RankAllocation, WeightAverage)}
TOLD = re.compile(r"`(" + "|".join(KINDS) + r")\.(\w+)`")
"""A method that the package's docstring names."""


@pytest.fixture
def no_dropout(tmp_path: Path) -> str:
    """The setting for a model without dropout."""
    sizes = tiny_roberta(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return f"model.path={write_model(tmp_path / 'model', sizes)}"


def by_hand(
    prepared: Prepared, epochs: int, accumulate: int, clip: float
) -> dict[str, torch.Tensor]:
    """The same training as a plain loop, in the order in which `dynarank.training` tells a step."""
    module, data = prepared.module, prepared.data
    scheduled = module.configure_optimizers()
    optimizer, scheduler = scheduled["optimizer"], scheduled["lr_scheduler"]["scheduler"]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert module.allocation is not None
    for epoch in range(epochs):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        batches = list(loader)  # 1: rows of like length
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            losses = [module.model(**module.task.inputs(batch)).loss for batch in window]
            loss = torch.stack(losses).mean()  # 2: the mean of the window's batches
            penalty = module.method.penalty(module.at_budget)
            (loss if penalty is None else loss + penalty).backward()  # 3: the penalty's gradient
            torch.nn.utils.clip_grad_norm_(trained, clip)  # 3
            optimizer.step()  # 4
            scheduler.step()  # 5
            module.allocation.allocator.step()  # 6: score, prune, freeze
            optimizer.zero_grad()
    cut_to_kept(module)
    return trained_state(module)


@pytest.mark.parametrize("dem", ["dem=off", "dem.eta=3"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_shorter_last_window_is_the_mean_of_its_own_batches(
    accumulate: int, dem: str, hub_root: Path, tmp_path: Path, no_dropout: str
) -> None:
    """Also where the penalty, whose gradient is added in closed form, outweighs the loss."""
    accumulating = f"trainer.accumulate={accumulate}"
    settings = [*PLAIN, no_dropout, accumulating, dem]
    config = configure(tmp_path / "run", hub_root, *settings)
    run(config)
    expected = by_hand(
        prepare(config, tmp_path / "hand"), config.epochs, accumulate, config.trainer.clip
    )
    saved = newest_checkpoint(tmp_path / "run")["state_dict"]
    head = [name for name in saved if "classifier" in name]
    assert len(head) == 4
    assert max(float((saved[name] - expected[name]).abs().max()) for name in head) < 1e-6


def test_a_step_is_made_as_the_package_tells_it(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names in the docstring are there, and a step calls the methods in its order."""
    text = str(training.__doc__)
    told = TOLD.findall(text)
    assert [name for _, name in told] == [
        "training_step",
        "configure_gradient_clipping",
        "check",
        "lr_scheduler_step",
        "on_train_batch_end",
        "on_train_batch_end",
        "on_train_batch_end",
    ]
    calls: list[tuple[str, str]] = []

    def watch(owner: str, name: str) -> None:
        inner = getattr(KINDS[owner], name)

        def watched(*arguments: Any, **named: Any) -> Any:
            calls.append((owner, name))
            return inner(*arguments, **named)

        monkeypatch.setattr(KINDS[owner], name, watched)

    for owner, name in [*told, ("FineTuning", "validation_step")]:
        watch(owner, name)
    settings = ["trainer.accumulate=2", "trainer.ema=0.9", "trainer.epochs=1"]
    run(configure(tmp_path, hub_root, *PLAIN, *settings))
    in_every_batch, behind_every_batch = told[:1], told[4:]
    one_step = [*in_every_batch, *behind_every_batch, *told]
    assert calls[: 2 * len(one_step)] == 2 * one_step
    assert calls.index(("FineTuning", "validation_step")) > 2 * len(one_step)
    for name in re.findall(r"`(\w+)` \(\w+\.py\)|`(\w+_\w+)`", text):
        assert any(hasattr(module, max(name)) for module in MODULES), name
    for file in re.findall(r"\((\w+\.py)\)", text):
        assert (Path(str(training.__file__)).parent / file).is_file()


class Recorded(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        taken = {int(state["step"]) for state in optimizer.state.values()}
        counts = {
            "taken": max(taken, default=0),
            "counted": trainer.global_step,
            "t": pl_module.allocation.allocator.t,
            "rate": trainer.lr_scheduler_configs[0].scheduler.last_epoch,
        }
        self.seen.append(counts)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Of runs in half precision on the CPU, with a real loss scaler whose first scales overflow."""
    recorded = Recorded()

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=4)
    train_in_half_precision(monkeypatch, scaler, recorded)
    return recorded


def train_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, scaler: torch.amp.GradScaler, *more: pl.Callback
) -> None:
    """Have the runs of a test train in half precision on the CPU, with this loss scaler."""

    class HalfOnCPU(TRAINER):  # type: ignore[misc, valid-type]
        def __init__(
            self, *, plugins: list[Any], precision: str, callbacks: list[Any], **options: Any
        ) -> None:
            half = MixedPrecision("16-mixed", "cpu", scaler)
            super().__init__(plugins=[*plugins, half], callbacks=[*callbacks, *more], **options)

    monkeypatch.setattr(trainer.pl, "Trainer", HalfOnCPU)


def test_the_penaltys_gradient_does_not_depend_on_the_losss_scale(
    hub_root: Path, tmp_path: Path, no_dropout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is added to gradients that are unscaled: c is zero at first, so that A has no other."""
    gradients: list[tuple[torch.Tensor, torch.Tensor]] = []
    clip = FineTuning.configure_gradient_clipping

    def watched(module: FineTuning, *arguments: Any, **named: Any) -> None:
        clip(module, *arguments, **named)
        factor = next(p for name, p in module.named_parameters() if name.endswith("lora_A"))
        penalty = module.method.penalty(module.at_budget)
        if not gradients and penalty is not None:
            (by_autograd,) = torch.autograd.grad(penalty, factor)
            gradients.append((factor.grad.clone(), by_autograd))

    monkeypatch.setattr(FineTuning, "configure_gradient_clipping", watched)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, growth_interval=1000)
    train_in_half_precision(monkeypatch, scaler)
    settings = [*PLAIN, no_dropout, "dem.eta=3", "trainer.accumulate=2", "trainer.clip=0"]
    run(configure(tmp_path / "run", hub_root, *settings, "trainer.epochs=1"))
    added, by_autograd = gradients[0]
    assert by_autograd.abs().max() > 0
    assert torch.allclose(added, by_autograd, rtol=1e-5, atol=1e-7)


def test_a_gradient_that_no_scale_makes_finite_stops_too(
    recorded: Recorded, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynarank.training.loss_scaling.MAX_SKIPPED_STEPS", 3)

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


@pytest.mark.parametrize("method", ["global_svd", "dynarank"])
def test_a_freeze_that_skipped_steps_put_off_comes_at_the_end(
    method: str,
    recorded: Recorded,
    hub_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the last step itself is skipped, whose gradients are no scores."""

    def overflow(module: FineTuning) -> None:
        if method == "dynarank" and module.trainer.is_last_batch and module.current_epoch == 3:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.inf)

    monkeypatch.setattr(FineTuning, "on_after_backward", overflow)
    late = ["budget.init=4", "budget.target=1", "budget.final=0", "budget.unit=components"]
    with caplog.at_level("WARNING", logger="dynarank"):
        results = run(configure(tmp_path, hub_root, f"method={method}", *late, "trainer.epochs=4"))
    taken = newest_checkpoint(tmp_path)["global_step"]
    assert taken < 12 == results.total_steps
    assert results.at_budget
    assert results.components_kept == results.components_target == 12
    assert results.selected["step"] == taken
    history = json.loads((tmp_path / "rank_history.json").read_text())
    assert history[-1] == {"step": taken, "ranks": results.ranks}
    assert f"the epochs end after {taken} of 12, so that the ranks become final here" in caplog.text
    assert "max_time" not in caplog.text


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
    """A loss that is not finite stops the run at its window's end, and names its own batch."""
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
