"""Batches of rows of like length, in an order that is a function of the seed and the epoch alone.

The order can be taken up at any batch, so that a resumed run sees the batches that are left. Every
rank takes its share of each global batch, so that any number of devices trains on the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from dynarank.errors import UserError
from dynarank.rounding import divide_up
from dynarank.tasks.base import Batch, Task

if TYPE_CHECKING:
    from datasets import Dataset

MEGABATCH = 50
"""Batches sorted by length together: enough to save most padding, few enough to stay a shuffle."""
EPOCH_SEED_FACTOR = 7919  # more than the epochs of any run
"""Keeps the worker processes' seeds of one epoch apart from those of another run's epochs."""


class LengthGroupedSampler(Sampler[int]):
    """Yields shuffled rows, such that each batch of consecutive ones holds rows of like length.

    The batches come in random order, but for the last, partial one: it stays last, so that batches
    do not shift. Lightning calls `set_epoch`. The first `skip` batches are left out of the next
    pass, once.

    Of `world` ranks, each takes its share of every batch of `batch_size` rows. A last batch of
    fewer rows than ranks is left out.

    Args:
        lengths: of each row, as the task counts it, (rows).
        batch_size: rows of a global batch, a multiple of `world`.
        seed: of the run.
        rank: this process's number among `world`.
        world: number of processes.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        assert batch_size % world == 0  # `check_devices` has refused others
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.skip = 0

    @property
    def batches(self) -> int:
        """Number of batches of a whole pass."""
        whole, rest = divmod(len(self.lengths), self.batch_size)
        return whole + (rest >= self.world)

    def __len__(self) -> int:
        """Return the number of this rank's rows in a whole pass."""
        whole, rest = divmod(len(self.lengths), self.batch_size)
        rows = whole * (self.batch_size // self.world)
        if rest >= self.world:
            rows += len(self._share(np.arange(rest)))
        return rows

    def _share(self, batch: np.ndarray) -> np.ndarray:
        """Return this rank's rows of a global batch."""
        return np.array_split(batch, self.world)[self.rank]  # a partial batch may not divide evenly

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's rows of the epoch, from batch `skip` on."""
        # numpy makes a stream of its own for each pair. By a sum, the second epoch of seed 1 would
        # be the first of seed 2.
        rng = np.random.default_rng((self.seed, self.epoch))
        order = self._sort_megabatches(rng.permutation(len(self.lengths)))
        # The last, partial batch is cut off here, and so stays the last.
        rows_in_full = len(order) // self.batch_size * self.batch_size
        full_batches = order[:rows_in_full].reshape(-1, self.batch_size)  # (batches, rows)
        batches = [*rng.permutation(full_batches), order[rows_in_full:]]  # by axis 0: the batches
        shares = [self._share(batch) for batch in batches[self.skip : self.batches]]
        self.skip = 0
        if not shares:  # numpy refuses to join nothing
            return iter([])
        return iter(np.concatenate(shares).tolist())

    def _sort_megabatches(self, order: np.ndarray) -> np.ndarray:
        """Sort rows within each megabatch, longest first; equal lengths keep their random order."""
        size = MEGABATCH * self.batch_size
        parts = []
        for start in range(0, len(order), size):
            part = order[start : start + size]
            longest_first = np.argsort(-self.lengths[part], kind="stable")
            parts.append(part[longest_first])
        return np.concatenate(parts)


class TrainLoader(DataLoader[Batch]):
    """A loader whose pass depends on nothing but its sampler.

    Its `len` stays that of the whole epoch when the sampler skips batches. The pass begins with the
    first batch that is asked for, after Lightning's `set_epoch`, so that the seeds of worker
    processes are a function of the epoch too.
    """

    def __iter__(self) -> Any:
        """Yield the epoch's batches."""
        sampler = cast("LengthGroupedSampler", self.sampler)
        self.generator.manual_seed(sampler.seed * EPOCH_SEED_FACTOR + sampler.epoch)
        yield from super().__iter__()


class TaskData(LightningDataModule):
    """A task's loaders: training rows grouped by length and shuffled, validation rows sorted.

    Args:
        task: with its features encoded.
        tokenizer: what makes batches of features: a tokenizer, or what else reads the inputs.
        batch_size: rows of a global batch.
        seed: of the run.
        workers: processes that make batches; 0 makes them in the training's own.
        world_size: number of training processes.
        worker_init: called in each worker process, with its number, before its first batch.
    """

    def __init__(
        self,
        task: Task[Any],
        tokenizer: Any,
        batch_size: int,
        seed: int,
        workers: int = 0,
        world_size: int = 1,
        worker_init: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self.task, self.batch_size, self.seed, self.workers = task, batch_size, seed, workers
        self.world_size = world_size
        self.worker_init = worker_init
        self.collate = task.collator(tokenizer)
        self.train_lengths = task.feature_lengths(task.train_features)
        self.sample = task.config.validation_sample
        """How many validation rows are scored; None for all."""
        self._position = 0
        for split, features in task.validation_features.items():
            sampled = self._sampled_rows(features, self.sample)
            if sampled is not None:
                is_sampled = np.isin(task.rows_of(features), sampled)
                self._check_sample_size(split, is_sampled.sum())
                task.check_sample(split, sampled)

    def _check_sample_size(self, split: str, count: int) -> None:
        """Raise `UserError` where so many features leave a device without one."""
        if count < self.world_size:
            raise UserError(
                f"task.validation_sample = {self.sample}: of {split}, that is {count} inputs for "
                f"{self.world_size} devices. Take at least one a device, or all rows: null"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Number of global batches of an epoch."""
        return self._sampler(0).batches

    @property
    def longest(self) -> int:
        """Tokens of the longest feature of any split."""
        longest = int(self.train_lengths.max())
        for features in (self.task.validation_features | self.task.test_features).values():
            longest = max(longest, int(self.task.feature_lengths(features).max()))
        return longest

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches of the present epoch are done, for a checkpoint."""
        assert self.trainer is not None
        # Lightning's count and not the loader's, which has fetched batches ahead.
        return {"position": self.trainer.fit_loop.epoch_loop.batch_progress.current.completed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next epoch's pass begin after the batches that were done."""
        self._position = int(state_dict["position"])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of this rank's share of the training batches."""
        sampler = self._sampler(self._rank)
        # A checkpoint at an epoch's end holds the whole length, and the next epoch begins at 0.
        sampler.skip = self._position % self.batches_per_epoch
        self._position = 0
        return self._loader(
            self.task.train_features,
            TrainLoader,
            batch_size=self.batch_size // self.world_size,
            sampler=sampler,
        )

    def first_batches(self, count: int) -> list[Batch]:
        """Return the run's first global batches, of one epoch at most, the same on all ranks."""
        sampler = LengthGroupedSampler(self.train_lengths, self.batch_size, self.seed)
        order = list(islice(sampler, count * self.batch_size))
        features = self.task.train_features
        # Scores alone need these columns, and words of texts fit no batch of tensors.
        unneeded = [name for name in self.task.host_columns if name in features.column_names]
        features = features.remove_columns(unneeded)
        batches = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batches.append(self.collate([features[int(row)] for row in rows]))
        return batches

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    def _sampler(self, rank: int) -> LengthGroupedSampler:
        return LengthGroupedSampler(
            self.train_lengths, self.batch_size, self.seed, rank, self.world_size
        )

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return a loader for each validation split, in the task's order."""
        loaders = []
        for features in self.task.validation_features.values():
            loaders.append(self._validation_loader(features, self.sample))
        return loaders

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Return a loader of all rows of the test split; none where no test is asked for."""
        features_by_split = self.task.test_features
        return [self._validation_loader(features) for features in features_by_split.values()]

    def _sampled_rows(self, features: Dataset, sample: int | None) -> np.ndarray | None:
        """Return the numbers of `sample` rows, drawn by the seed; None for all rows."""
        # Rows and not features, because a long row may have several features.
        last_row = int(self.task.rows_of(features).max())
        if sample is None or sample > last_row:
            return None
        # By the seed alone, so that all ranks and all validations score the same sample.
        return np.random.default_rng(self.seed).permutation(last_row + 1)[:sample]

    def _validation_loader(self, features: Dataset, sample: int | None = None) -> DataLoader[Batch]:
        """Return the loader of this rank's batches of a split, longest rows first.

        Args:
            features: of the split.
            sample: how many of its rows are scored; None for all.
        """
        order = np.argsort(-self.task.feature_lengths(features), kind="stable")
        sampled = self._sampled_rows(features, sample)
        if sampled is not None:
            rows = self.task.rows_of(features)[order]
            order = order[np.isin(rows, sampled)]
        batches = even_batches(order, self.batch_size, self.world_size)
        own = [batch[self._rank :: self.world_size].tolist() for batch in batches]
        return self._loader(features, batch_sampler=own)

    def _loader(
        self, features: Dataset, kind: type[DataLoader[Batch]] = DataLoader, **more: Any
    ) -> DataLoader[Batch]:
        unneeded = [name for name in self.task.host_columns if name in features.column_names]
        return kind(
            features.remove_columns(unneeded),
            collate_fn=self.collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,  # without workers torch refuses it
            worker_init_fn=self.worker_init,
            pin_memory=torch.cuda.is_available(),
            # Without a generator of its own, a loader that starts workers would draw their seeds
            # from the training's generator, and a resumed run would go on from another state.
            generator=torch.Generator(),
            **more,
        )


def even_batches(order: np.ndarray, batch_size: int, world: int) -> list[np.ndarray]:
    """Cut rows into batches in which every rank has a row.

    All ranks must take part in every batch, because sharded models wait for one another.

    Returns:
        batches of at most `batch_size` rows, or of a little more where a rank would otherwise have
        no row in one.
    """
    if world == 1:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    full = divide_up(len(order), batch_size)
    count = max(1, min(full, len(order) // world))  # so that each has `world` rows or more
    return np.array_split(order, count)
