"""What checkpoints need of Lightning's private names still means what it is taken for."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from dynarank.checkpoints.library_internals import loop_position, restore_loop_position


class Line(pl.LightningModule):
    """A straight line, which notes what its trainer knows at the start of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.positions: list[dict[str, Any]] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.positions.append(copy.deepcopy(loop_position(self.trainer)))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.line(batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.line(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained() -> tuple[Line, pl.Trainer]:
    loader = DataLoader(torch.ones(6, 1))
    module = Line()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
        val_check_interval=2,
    )
    trainer.fit(module, loader, DataLoader(torch.ones(2, 1)))
    return module, trainer


def test_the_position_counts_batches_that_stepped_and_validations() -> None:
    module, _ = trained()
    assert [position["batches_that_stepped"] for position in module.positions] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    validated = [
        position["validation_progress"]["total"]["completed"] for position in module.positions
    ]
    assert validated == [0, 0, 2, 2, 4, 4]


def test_a_restored_position_is_the_one_that_was_taken() -> None:
    module, trainer = trained()
    restore_loop_position(trainer, module.positions[3])
    assert loop_position(trainer) == module.positions[3]
    progress = trainer.fit_loop.epoch_loop.batch_progress.total
    assert progress.ready == progress.completed + 1
