"""Names of other libraries that they do not document still mean what training takes them for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from dynarank.training.library_internals import (
    compile_for_any_length,
    has_loss_scaler,
    is_log_step,
    sharding_blocks,
    uncount_step,
    validate_behind,
)


class Small(pl.LightningModule):
    """A model that notes when its step is a logged one, and takes steps back where told."""

    def __init__(self, uncounted: int = -1) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.uncounted = uncounted
        self.seen: list[tuple[int, bool, bool]] = []
        self.counts: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.before = is_log_step(self.trainer)
        self.log("batch", float(batch_idx))
        return self.layer(batch).sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append((batch_idx, self.before, is_log_step(self.trainer)))
        if batch_idx == self.uncounted:
            uncount_step(self.trainer)
        self.counts.append(self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(module: Small, folder: Path, **options: Any) -> Path:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        max_epochs=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(torch.ones(12, 1)))
    return folder / "metrics.csv"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_log_step_is_one_whose_values_reach_the_loggers(accumulate: int, tmp_path: Path) -> None:
    module = Small()
    options = {"log_every_n_steps": 3, "accumulate_grad_batches": accumulate}
    history = train(module, tmp_path, **options).read_text().splitlines()
    place = history[0].split(",").index("batch")
    written = {int(float(line.split(",")[place])) for line in history[1:]}
    ends_window = [batch for batch in range(12) if batch % accumulate == accumulate - 1]
    assert all(before == after for _, before, after in module.seen)
    assert written == {batch for batch, _, logs in module.seen if logs and batch in ends_window}
    assert len(written) == 12 // accumulate // 3


def test_a_step_that_was_counted_can_be_taken_back(tmp_path: Path) -> None:
    module = Small(uncounted=4)
    train(module, tmp_path)
    assert module.counts == [1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11]


class Validated(Small):
    """Validates behind three batches, unevenly far apart."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        validate_behind(self.trainer, batch_idx, batch_idx in (1, 6, 11))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated = [*getattr(self, "validated", []), self.trainer.global_step]

    def val_dataloader(self) -> Any:
        return DataLoader(torch.ones(1, 1))


def test_a_validation_can_be_called_for_behind_any_batch(tmp_path: Path) -> None:
    module = Validated()
    train(module, tmp_path, num_sanity_val_steps=0)
    assert module.validated == [2, 7, 12]


def test_a_loss_scaler_is_known(tmp_path: Path) -> None:
    module = Small()
    assert not has_loss_scaler(module)
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    for plugins, scales in (([], False), ([half], True)):
        module.trainer = pl.Trainer(accelerator="cpu", plugins=plugins, logger=False)
        assert has_loss_scaler(module) is scales


def test_transformers_names_the_blocks_that_stay_whole() -> None:
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 5}
    model = RobertaModel(RobertaConfig(**sizes, intermediate_size=4))
    names = {type(module).__name__ for module in model.modules()}
    assert "RobertaLayer" in set(sharding_blocks(model)) & names
    assert list(sharding_blocks(nn.Linear(1, 1))) == []


def test_equal_sizes_are_not_taken_for_one() -> None:
    """A pass that was compiled on a square batch takes one that is not, without compiling again."""
    torch._dynamo.reset()
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        torch.fx.experimental._config.patch(use_duck_shape=True),
    ):
        compile_for_any_length()
        compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=True)
        compiled(torch.ones(3, 3))
        assert compiled(torch.ones(3, 5)).shape == (3, 5)
    torch._dynamo.reset()
