"""A finished run, or its adapter, loaded to predict new rows and to score labelled ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynarank.adapters.adapter_checks import WEIGHTS, check_peft_adapter, check_weights
from dynarank.errors import UserError, first_line
from dynarank.pretrained.hub import HubConfig, ModelConfig, Source, locate, warn_of_remote_code
from dynarank.run_folder import ORIGIN
from dynarank.runs.base_weights import fold_if_exact, moved, widen_base
from dynarank.runs.origin import Origin, find_adapter, read_origin

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedModel

    from dynarank.pretrained.models import Pretrained
    from dynarank.tasks.base import Task

log = logging.getLogger(__name__)

Record = dict[str, Any]
"""A prediction for one row, as plain values by name."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of labelled rows."""

    metrics: dict[str, float]
    baseline: dict[str, Any] | None
    """What a model scores that has learned nothing, as metrics.json holds it."""
    collapsed: str | None
    """The one prediction that all rows share, in words; None where they differ."""


@dataclass
class Predictor:
    """A finished run, ready to predict."""

    task: Task[Any]
    model: PreTrainedModel
    tokenizer: Any
    """The tokenizer, or what else reads the task's inputs."""

    def __call__(self, rows: Dataset, batch_size: int = 32) -> list[Record]:
        """Return one record for each row, in the order of the rows."""
        features = self._features(rows)
        outputs = self._run(features, batch_size)
        return self.task.answers(rows, features, outputs)

    def predict_and_score(
        self, rows: Dataset, batch_size: int = 32
    ) -> tuple[list[Record], Evaluation]:
        """Return one record for each row, and the scores over all of them.

        Args:
            rows: labelled rows, as `Task.check` returns them.
        """
        features = self._features(rows, labelled=self.task.scored_by_features)
        outputs = self._run(features, batch_size)
        records = self.task.answers(rows, features, outputs)
        return records, self._score(rows, features, outputs)

    def _features(self, rows: Dataset, labelled: bool = False) -> Dataset:
        """Return what the model takes of the rows. Raises `UserError` for too long a text."""
        import datasets

        from dynarank.pretrained.models import check_length

        datasets.disable_progress_bars()
        features = self.task.features(rows, self.tokenizer, self.model, labelled)
        if self.task.length_setting is not None:
            longest = int(self.task.feature_lengths(features).max())
            check_length(self.model, longest, self.task.length_setting)
        return features

    def _run(self, features: Dataset, batch_size: int) -> list[Any]:
        """Return what the model says of each feature. A batch holds features of like length."""
        from rich.console import Console
        from rich.progress import track

        order = np.argsort(-self.task.feature_lengths(features), kind="stable").tolist()
        unneeded = [name for name in self.task.host_columns if name in features.column_names]
        inputs = features.remove_columns(unneeded)
        collate = self.task.collator(self.tokenizer)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        outputs: dict[int, Any] = {}
        console = Console(stderr=True)
        with torch.inference_mode():
            for chosen in track(batches, "predicting", console=console, transient=True):
                batch = collate([inputs[index] for index in chosen])
                on_device = {name: part.to(self.model.device) for name, part in batch.items()}
                predicted = self.task.predict(self.model, on_device)
                outputs.update(zip(chosen, predicted, strict=True))
        return [outputs[index] for index in range(len(features))]

    def _score(self, rows: Dataset, features: Dataset, outputs: Sequence[Any]) -> Evaluation:
        """Return the scores of the outputs, against the labels that the rows hold."""
        from dynarank.tasks.baselines import collapsed
        from dynarank.tasks.row_scores import RowScores

        split = self.task.config.splits[0]
        # Scores ask the task for the rows that they are of.
        self.task.validation = {split: rows}
        self.task.validation_features = {split: features}
        scores: Any = self.task.scores(split)
        if isinstance(scores, RowScores):
            scores.update(range(len(outputs)), outputs)
        else:
            values = torch.as_tensor(np.asarray(outputs))  # (rows, classes), or (rows) numbers
            guesses = values.argmax(-1) if values.ndim == 2 else values
            labels = rows[self.task.config.columns.label][:]  # until [:], a column is not read
            scores.update(guesses, torch.as_tensor(labels))
        metrics = {name: float(value) for name, value in scores.compute().items()}
        baseline = self.task.baseline(rows)
        return Evaluation(
            metrics=metrics,
            baseline=None if baseline is None else baseline.as_record(),
            collapsed=collapsed(scores),
        )


def load_predictor(
    folder: Path,
    hub: HubConfig,
    base: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    over_budget: bool = False,
    task: Task[Any] | None = None,
) -> Predictor:
    """Load the model and the task of a run, or of an adapter.

    Args:
        task: what `load_task` returned, where it was changed; None: the task as it is recorded.
        base: the base model's hub id or folder, where it has moved since.
        device: as torch names it; None for a GPU where there is one.
        trust_remote_code: whether to run code that comes with the model. What the folder of the
            adapter says about it does not count.
        over_budget: whether an adapter that is larger than its budget will do.

    Raises:
        UserError: the folder holds no such adapter, its base model is nowhere or not the one that
            it belongs to, or there is no such device.
    """
    from dynarank.runs.preflight import named_device

    place = named_device(device)
    loaded = load_run(folder, hub, base, trust_remote_code, over_budget, task=task)
    model = fold_if_exact(loaded.model)
    return Predictor(loaded.task, moved(model.eval(), place), loaded.tokenizer)


def load_task(folder: Path, over_budget: bool = False) -> Task[Any]:
    """Return the task of a run or of an adapter, to read rows with before the model is loaded.

    The arguments and errors are those of `load_predictor`.
    """
    return _recorded_task(read_origin(find_adapter(folder, over_budget)))


def _recorded_task(origin: Origin) -> Task[Any]:
    with _schema_errors(origin.adapter / ORIGIN):
        return origin.build_task()


@dataclass
class LoadedRun:
    """A run's model as it was trained: the base with its adapter beside the weights."""

    origin: Origin
    task: Task[Any]
    model: Any
    """A peft.PeftModel, or a transformers model."""
    tokenizer: Any
    dequantized: str | None = None
    """The method that the base's weights were quantized by before they were widened."""


def load_run(
    folder: Path,
    hub: HubConfig,
    base: str | None = None,
    trust_remote_code: bool = False,
    over_budget: bool = False,
    widen: bool = False,
    task: Task[Any] | None = None,
) -> LoadedRun:
    """Load a run's model, with the adapter not merged. See `load_predictor` for the rest.

    Args:
        widen: whether to turn a bfloat16 base into float32, so that an update can be added to its
            weights without a loss.
    """
    from dynarank.pretrained.agreement import check_tokenizer_digest, check_weights_digest
    from dynarank.pretrained.models import load_pretrained
    from dynarank.pretrained.processors import PROCESSORS

    adapter = find_adapter(folder, over_budget)
    origin = read_origin(adapter)
    task = task or _recorded_task(origin)
    with _schema_errors(adapter / ORIGIN):
        config = origin.model_config()
    config.trust_remote_code = trust_remote_code
    own_folder = Source(path=str(adapter), recorded=str(adapter))
    warn_of_remote_code(config, own_folder)
    processor = PROCESSORS[task.processor]
    # The training's own, which lies beside the adapter.
    tokenizer = processor.load(config, own_folder)
    check_tokenizer_digest(str(adapter), origin.digests, processor.digest(tokenizer))
    if origin.is_whole_model:  # method=full
        config.sha256 = None  # it is the hash of the base model
        whole = load_pretrained(config, own_folder, task, tokenizer, head_is_trained=True)
        return LoadedRun(origin, task, whole.model, tokenizer)
    source = _find_base(config, origin, base, hub)
    warn_of_remote_code(config, source)
    pretrained = load_pretrained(config, source, task, tokenizer)
    check_weights_digest(str(adapter), origin.digests, pretrained)
    dequantized = widen_base(pretrained) if widen else None
    with _misfit_errors(adapter, source):
        model = _attach_adapter(pretrained, origin)
    return LoadedRun(origin, task, model, tokenizer, dequantized)


def _find_base(config: ModelConfig, origin: Origin, base: str | None, hub: HubConfig) -> Source:
    """Return where the base model is now, else where it was in training."""
    config.path = base or config.path
    try:
        return locate("models", "--base", config.path, hub.root, config.revision)
    except UserError:
        earlier = origin.base_in_training
        if base is not None or earlier is None or not Path(earlier).is_dir():
            raise
    if hub.root is not None:
        log.warning(
            "%s: not in %s; taken from where it was in training, %s",
            config.path,
            hub.root,
            earlier,
        )
    return Source(path=earlier, recorded=config.path)


def _attach_adapter(pretrained: Pretrained, origin: Origin) -> nn.Module:
    """Return the base model with what the adapter's folder holds, not merged."""
    from dynarank.pretrained.agreement import check_head, tensor_shapes

    if origin.is_peft_adapter:
        import peft

        check_peft_adapter(origin.adapter)  # before PEFT opens it: it may be a stranger's
        check_head(str(origin.adapter), pretrained, tensor_shapes(origin.adapter / WEIGHTS))
        adapted: nn.Module = peft.PeftModel.from_pretrained(pretrained.model, str(origin.adapter))
        return adapted
    from safetensors.torch import load_file

    from dynarank.methods.base import TRAINED

    weights = origin.adapter / TRAINED
    check_weights(weights)  # likewise
    check_head(str(origin.adapter), pretrained, tensor_shapes(weights))
    return origin.build_method().restore(pretrained.model, pretrained.head, load_file(weights))


@contextmanager
def _schema_errors(path: Path) -> Iterator[None]:
    """Turn what a schema raises for wrong values into a `UserError` that names the file."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}") from None


@contextmanager
def _misfit_errors(adapter: Path, source: Source) -> Iterator[None]:
    """Turn what is raised where names, shapes or types differ into a `UserError` about the base."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        reason = first_line(error)[:200]  # torch names all keys that differ
        raise UserError(
            f"{adapter} does not belong to {source.path}: {reason}. Name its base by --base"
        ) from error
