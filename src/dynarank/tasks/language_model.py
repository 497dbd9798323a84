"""What both language-model tasks have in common: features, batches, loss, scores of given texts."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks.base import Batch, Collator, Task
from dynarank.tasks.causal_config import LIKELIHOODS, LanguageModelConfig
from dynarank.tasks.packed import SEGMENTS, check_packing, pack, packed_batch
from dynarank.tasks.row_scores import RowScores
from dynarank.tasks.token_loss import IGNORED, lighten_loss, token_terms

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ConfigT = TypeVar("ConfigT", bound=LanguageModelConfig)
HOST = "feature"
"""The part of a batch that the model does not take: the numbers of its features."""


class LanguageModel(Task[ConfigT]):
    """A decoder that predicts the labelled tokens of its rows."""

    auto_class = "AutoModelForCausalLM"
    peft_task_type = "CAUSAL_LM"
    has_head = False  # the pretrained output layer stays
    length_setting = "task.max_length"

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        self.tokenizer: PreTrainedTokenizerBase

    def read(self, hub: HubConfig, seed: int = 0) -> None:
        if self.config.packing:
            check_packing()  # before a model is loaded
        super().read(hub, seed)

    def model_options(self) -> dict[str, Any]:
        return {}

    def encode(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        super().encode(tokenizer, model)
        if self.config.chunked_loss:
            lighten_loss(model)
        # Training rows alone: each validation row is scored by itself.
        if self.config.packing:
            self.train_features = pack(self.train_features, self.config.max_length)

    @abstractmethod
    def encode_rows(
        self, batch: dict[str, list[Any]], rows: list[int], labelled: bool
    ) -> dict[str, Any]:
        """Return `input_ids` and `labels` of a batch of rows, with `rows` as `feature`."""

    def require_labels(self, features: Dataset, where: str) -> None:
        """Raise `UserError` where a row has no token to predict: its loss would be undefined."""
        for row, labels in enumerate(features["labels"][:]):
            if all(label == IGNORED for label in labels[1:]):
                raise UserError(
                    f"{where}, row {row}: nothing of it is left to predict in task.max_length = "
                    f"{self.config.max_length} tokens. Raise that, or drop the row"
                )

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        pad_token = tokenizer.pad_token_id
        assert pad_token is not None

        def collate(features: list[dict[str, Any]]) -> Batch:
            if SEGMENTS in features[0]:
                return packed_batch(features, pad_token, IGNORED)
            longest = max(len(feature["input_ids"]) for feature in features)
            batch = {
                "input_ids": _padded(features, "input_ids", longest, pad_token),
                "attention_mask": _mask(features, longest),
            }
            if "labels" in features[0]:
                batch["labels"] = _padded(features, "labels", longest, IGNORED)
            batch[HOST] = torch.tensor([feature[HOST] for feature in features])
            return batch

        return collate

    def inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name != HOST}

    def loss_terms(self, batch: Batch) -> Tensor:
        # No token stands before the first, so that its label is no term.
        return (batch["labels"][:, 1:] != IGNORED).sum()

    def scores(self, split: str) -> RowScores:
        def evaluate(features: list[int], outputs: list[Any]) -> dict[str, float]:
            return self.evaluate(split, features, outputs)

        return RowScores(evaluate)

    def evaluate(self, split: str, rows: Sequence[int], outputs: Sequence[Any]) -> dict[str, float]:
        """Return the scores of a split by name.

        Args:
            rows: the numbers of the rows.
            outputs: what `predict` returned for each.
        """
        metrics: list[str] = getattr(self.config, "metrics", list(LIKELIHOODS))
        return likelihood_scores(metrics, [output["terms"] for output in outputs])

    def score(self, model: nn.Module, batch: Batch, scores: RowScores) -> Tensor:
        outputs = self.predict(model, batch)
        scores.update(batch[HOST].tolist(), outputs)
        # `predict` has found all that the loss is made of: no second forward pass is needed.
        terms = [output["terms"] for output in outputs]
        total = -sum(likelihood for likelihood, _, _ in terms)
        tokens = sum(count for _, count, _ in terms)
        return torch.tensor(total / max(1, tokens))

    def row_terms(self, model: Any, batch: Batch) -> list[tuple[float, int, int]]:
        """Return each row's log-likelihood, its predicted tokens, and those that were likeliest."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        terms = token_terms(model, inputs, batch["labels"])
        count = len(batch["input_ids"])
        # Added up over the tokens of each row.
        zeros = torch.zeros(count, dtype=torch.float64, device=terms.log_likelihood.device)
        likelihood = zeros.index_add(0, terms.rows, terms.log_likelihood.double())
        correct = zeros.index_add(0, terms.rows, terms.correct.double()).long()
        tokens = torch.bincount(terms.rows, minlength=count)
        return list(zip(likelihood.tolist(), tokens.tolist(), correct.tolist(), strict=True))


def likelihood_scores(
    names: Sequence[str], terms: Sequence[tuple[float, int, int]]
) -> dict[str, float]:
    """Return the scores of given texts over all their tokens, each token counting once."""
    tokens = sum(count for _, count, _ in terms)
    mean = sum(likelihood for likelihood, _, _ in terms) / tokens
    makers: dict[str, Callable[[], float]] = {
        "log_likelihood": lambda: mean,
        "perplexity": lambda: math.exp(min(-mean, 700.0)),  # exp overflows at 710
        "token_accuracy": lambda: sum(correct for _, _, correct in terms) / tokens,
    }
    return {name: makers[name]() for name in names if name in LIKELIHOODS}


def _padded(features: Sequence[dict[str, Any]], name: str, longest: int, fill: int) -> Tensor:
    """Return a column of features as (batch, longest), padded on the right."""
    rows = []
    for feature in features:
        missing = longest - len(feature[name])
        rows.append(feature[name] + [fill] * missing)
    return torch.tensor(rows)


def _mask(features: Sequence[dict[str, Any]], longest: int) -> Tensor:
    lengths = torch.tensor([len(feature["input_ids"]) for feature in features])
    return (torch.arange(longest) < lengths[:, None]).long()
