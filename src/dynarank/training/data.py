"""Batches of rows of like length, in an order that is a pure function of seed and epoch, from any batch of it on.

Every rank takes its share of each global batch, so that any number of devices trains on the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from dynarank.checkpoints.signals import leave_signals_to_training
from dynarank.tasks.base import Batch, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MEGABATCH = 50
"""Batches that are sorted by length together: enough to save most padding, few enough to stay a shuffle."""


class LengthGroupedSampler(Sampler[int]):
    """Shuffled rows such that each batch of consecutive ones holds rows of like length, in random batch order.

    The last, partial batch stays last, so that batches do not shift. Lightning calls `set_epoch`; the first `skip`
    batches are left out of the next pass, once.

    Of `world` ranks, each takes its share of every batch of `batch_size` rows. A last batch of fewer rows than ranks is
    left out.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        assert batch_size % world == 0
        self.lengths = lengths
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.rank, self.world = rank, world
        self.skip = 0

    @property
    def batches(self) -> int:
        """Batches of a whole pass."""
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole + (rest >= self.world)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole * (self.batch_size // self.world) + (
            len(self._share(np.arange(rest))) if rest >= self.world else 0
        )

    def _share(self, batch: np.ndarray) -> np.ndarray:
        return np.array_split(batch, self.world)[self.rank]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        size = MEGABATCH * self.batch_size
        # Within a megabatch, longest first; equal lengths keep their random order.
        sorted_parts = [
            part[np.argsort(-self.lengths[part], kind="stable")]
            for part in (order[start : start + size] for start in range(0, len(order), size))
        ]
        order = np.concatenate(sorted_parts)
        whole = len(order) // self.batch_size * self.batch_size
        batches = rng.permutation(order[:whole].reshape(-1, self.batch_size))
        parts = [self._share(batch) for batch in (*batches, order[whole:])][
            self.skip : self.batches
        ]
        self.skip = 0
        return iter(np.concatenate(parts).tolist() if parts else [])


class TrainLoader(DataLoader[Batch]):
    """A loader whose pass depends on nothing but its sampler.

    Its `len` stays the whole epoch's when the sampler skips. The pass begins with the first batch that is asked for,
    after Lightning's `set_epoch`, of which the seeds of worker processes are a function too.
    """

    def __iter__(self) -> Any:
        sampler = cast("LengthGroupedSampler", self.sampler)
        self.generator.manual_seed(sampler.seed * 7919 + sampler.epoch)
        yield from super().__iter__()


class TaskData(LightningDataModule):
    """A task's loaders: training rows grouped by length and shuffled, validation rows sorted by length."""

    def __init__(
        self,
        task: Task[Any],
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        seed: int,
        workers: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.task, self.batch_size, self.seed, self.workers = task, batch_size, seed, workers
        self.world_size = world_size
        self.collate = task.collator(tokenizer)
        self.train_lengths = task.feature_lengths(task.train_features)
        self.sample = task.config.validation_sample
        """Validation rows scored; None: all."""
        self._position = 0

    @property
    def batches_per_epoch(self) -> int:
        return self._sampler(0).batches

    @property
    def longest(self) -> int:
        """Tokens of the longest feature of any split."""
        return int(
            max(
                *self.train_lengths,
                *(
                    self.task.feature_lengths(rows).max()
                    for rows in self.task.validation_features.values()
                ),
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """Batches of the present epoch that are done with."""
        assert self.trainer is not None
        return {"position": self.trainer.fit_loop.epoch_loop.batch_progress.current.completed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = int(state_dict["position"])

    def train_dataloader(self) -> DataLoader[Batch]:
        sampler = self._sampler(self._rank)
        sampler.skip, self._position = self._position % self.batches_per_epoch, 0
        more = {"batch_size": self.batch_size // self.world_size, "sampler": sampler}
        return self._loader(self.task.train_features, TrainLoader, **more)

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    def _sampler(self, rank: int) -> LengthGroupedSampler:
        return LengthGroupedSampler(
            self.train_lengths, self.batch_size, self.seed, rank, self.world_size
        )

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return [
            self._validation_loader(features) for features in self.task.validation_features.values()
        ]

    def _validation_loader(self, features: Dataset) -> DataLoader[Batch]:
        order = np.argsort(-self.task.feature_lengths(features), kind="stable")
        rows = self.task.rows_of(features)
        if self.sample is not None and self.sample <= rows.max():
            chosen = np.random.default_rng(self.seed).permutation(rows.max() + 1)[: self.sample]
            order = order[np.isin(rows[order], chosen)]
        batches = even_batches(order, self.batch_size, self.world_size)
        return self._loader(
            features,
            batch_sampler=[batch[self._rank :: self.world_size].tolist() for batch in batches],
        )

    def _loader(
        self, features: Dataset, kind: type[DataLoader[Batch]] = DataLoader, **more: Any
    ) -> DataLoader[Batch]:
        unneeded = [name for name in self.task.host_columns if name in features.column_names]
        return kind(
            features.remove_columns(unneeded),
            collate_fn=self.collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=leave_signals_to_training,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or starting worker processes would draw on the training's, once a process
            **more,
        )


def even_batches(order: np.ndarray, batch_size: int, world: int) -> list[np.ndarray]:
    """Rows in batches of at most `batch_size`, or a little more where else a rank would have no row of one.

    All ranks must take part in every batch: sharded models wait for one another.
    """
    if world == 1:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    count = max(1, min(-(-len(order) // batch_size), len(order) // world))
    return np.array_split(order, count)
