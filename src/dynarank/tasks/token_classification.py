"""Token classification: entities of several words (CoNLL-2003), or a class for each word."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.settings import expand_user
from dynarank.tasks.base import Batch, Collator, Task
from dynarank.tasks.baselines import Baseline, one_text
from dynarank.tasks.conll import ENDINGS, read_conll
from dynarank.tasks.entity_scores import count_entities, share_alike
from dynarank.tasks.features import cached_map
from dynarank.tasks.files import read_file
from dynarank.tasks.row_scores import RowScores
from dynarank.tasks.tag_schemes import OUTSIDE, Span, predicted_spans
from dynarank.tasks.tagged_rows import TaggedRows
from dynarank.tasks.token_config import TokenClassificationConfig
from dynarank.tasks.word_windows import encode_word_windows, pad, spread

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

IGNORED = -100
"""The label of a token that is no word's first one."""
HOST_INPUTS = ("is_read", "feature")
"""What a batch holds and no model takes."""

Guess = tuple[np.ndarray, np.ndarray]
"""The classes of a window's words, (words) int, and their probabilities, (words)."""


class TokenClassification(Task[TokenClassificationConfig]):
    """A tag for each word of a row, read at the word's first token.

    A row that is longer than `task.max_length` is read in several windows (`word_windows`). Tags of
    entities are turned into iob2, whatever scheme they come in.
    """

    auto_class = "AutoModelForTokenClassification"
    peft_task_type = "TOKEN_CLS"
    labels_in = ("tags",)
    host_columns = ("row", "words")

    def __init__(self, config: TokenClassificationConfig) -> None:
        super().__init__(config)
        self.kinds: list[str] = list(config.labels or ())
        """The kinds of entities, or the tags where they are plain."""

    @property
    def tags(self) -> list[str]:
        """The tags that the model tells apart, in the order of their numbers."""
        if self.config.scheme == "plain":
            return self.kinds
        tags = [OUTSIDE]
        for kind in self.kinds:
            tags += [f"B-{kind}", f"I-{kind}"]
        return tags

    def recorded_config(self) -> TokenClassificationConfig:
        return replace(self.config, labels=self.kinds or None)

    def read_file(self, field: str, name: str, used: Collection[str] | None = None) -> Dataset:
        path = Path(expand_user(name))
        if path.suffix.lower() not in ENDINGS:
            return read_file(field, name, used, more_endings=ENDINGS)
        columns = self.config.columns
        return read_file(
            field, name, used, reader=lambda file: read_conll(file, columns.tokens, columns.tags)
        )

    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        rows = TaggedRows(self.config, dataset, where)
        rows.check_words()
        if not labelled:
            return dataset
        tags = rows.read_tags(self.kinds)
        if not self.kinds:
            self.kinds = rows.kinds_of(tags)
            counts = Counter(itertools.chain.from_iterable(tags))
            shown = [f"{tag!r} ({counts[tag]:,} words)" for tag in self.tags]
            log.info("%s: %s", self.config.columns.tags, ", ".join(shown))
        return rows.with_tags(tags)

    def model_options(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.tags),
            "id2label": dict(enumerate(self.tags)),
            "label2id": {tag: number for number, tag in enumerate(self.tags)},
        }

    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} does not say where tokens stand in a text: "
                f"task={self.config.name} needs a fast one"
            )
        config, columns = self.config, self.config.columns
        numbers = {tag: number for number, tag in enumerate(self.tags)}

        def encoded(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
            features: dict[str, list[Any]] = {}
            windows = encode_word_windows(
                batch[columns.tokens], rows, config.max_length, config.stride, tokenizer
            )
            for window in windows:
                feature: dict[str, Any] = dict(window.inputs)
                feature |= {"row": window.row, "words": window.words}
                length = len(feature["input_ids"])
                # Beside the labels, which rows to predict lack.
                feature["is_read"] = spread(window.places, [1] * len(window.places), length, 0)
                if labelled:
                    tags = batch[columns.tags][window.row - rows[0]]  # rows follow each other
                    classes = [numbers[tags[word]] for word in window.words]
                    feature["labels"] = spread(window.places, classes, length, IGNORED)
                for name, value in feature.items():
                    features.setdefault(name, []).append(value)
            return features

        key = (columns.tokens, columns.tags, labelled, config.max_length, config.stride, self.tags)
        features = cached_map(dataset, encoded, key, tokenizer)
        if len(features) == 0:
            raise UserError(f"{type(tokenizer).__name__} makes no token of any word of these rows")
        return features.add_column(
            "feature", np.arange(len(features)), new_fingerprint=f"{features._fingerprint}-n"
        )

    def rows_of(self, features: Dataset) -> np.ndarray:
        return np.asarray(features["row"][:])

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        def collate(features: list[dict[str, Any]]) -> Batch:
            inputs = {}
            for name in tokenizer.model_input_names:
                if name in features[0]:
                    inputs[name] = [feature[name] for feature in features]
            batch = dict(tokenizer.pad(inputs, return_tensors="pt"))
            length = batch["input_ids"].shape[1]
            left = tokenizer.padding_side == "left"
            for name, filler in (("is_read", 0), ("labels", IGNORED)):
                if name in features[0]:
                    values = [feature[name] for feature in features]
                    batch[name] = torch.tensor([pad(row, length, filler, left) for row in values])
            batch["feature"] = torch.tensor([feature["feature"] for feature in features])
            return batch

        return collate

    def inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name not in HOST_INPUTS}

    def loss_terms(self, batch: Batch) -> Tensor:
        return (batch["labels"] != IGNORED).sum()

    def scores(self, split: str) -> RowScores:
        def evaluate(seen: list[int], guesses: list[Guess]) -> dict[str, float]:
            metrics, _, guessed = self._evaluate(split, seen, guesses)
            collected.collapsed = one_text(list(itertools.chain.from_iterable(guessed)), of="words")
            return metrics

        collected = RowScores(evaluate)
        return collected

    def baseline(self, rows: Dataset) -> Baseline:
        """Return the scores of the most frequent tag at every word: 'O', as a rule."""
        given = rows[self.config.columns.tags][:]
        counts = Counter(itertools.chain.from_iterable(given))
        ((tag, _),) = counts.most_common(1)
        guessed = [[tag] * len(tags) for tags in given]
        metrics, _ = self._tag_scores(given, guessed)
        return Baseline(f"{tag} everywhere", metrics)

    def score(self, model: nn.Module, batch: Batch, scores: RowScores) -> Tensor:
        output = model(**self.inputs(batch))
        scores.update(batch["feature"].tolist(), _guesses(output.logits, batch))
        loss: Tensor = output.loss
        return loss

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the class and its probability of each word that is read in each window."""
        return _guesses(model(**self.inputs(batch)).logits, batch)

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Guess]
    ) -> list[dict[str, Any]]:
        """Return each row's tags, and its entities with their words and mean probability.

        A word that no window shows is O, or the first of plain tags, with the probability 0.
        """
        texts = dataset[self.config.columns.tokens][:]
        classes = [np.zeros(len(words), dtype=int) for words in texts]
        sureness = [np.zeros(len(words)) for words in texts]
        read = zip(features["row"][:], features["words"][:], predicted, strict=True)
        for row, words, (guessed, probability) in read:
            # Each word is read in one window alone, so that none is overwritten.
            classes[row][words] = guessed
            sureness[row][words] = probability
        records = []
        for words, numbers, shares in zip(texts, classes, sureness, strict=True):
            tags = [self.tags[number] for number in numbers]
            record: dict[str, Any] = {"predicted_tags": tags}
            if self.config.scheme == "plain":
                record["probabilities"] = shares.tolist()
            else:
                spans = predicted_spans(tags)
                record["entities"] = [_entity_record(span, words, shares) for span in spans]
            records.append(record)
        return records

    def _evaluate(
        self, split: str, seen: list[int], guesses: list[Guess]
    ) -> tuple[dict[str, float], dict[str, Any], list[list[str]]]:
        """Return the scores of the rows that the seen features belong to, by kind, and the tags."""
        all_features = self.scored_features(split)
        features = all_features.select(seen)
        rows = np.unique(self.rows_of(features))
        if len(seen) == len(all_features):  # no sample, so that no row was left out
            # A row of which the tokenizer makes no token has no feature, and counts as outside.
            rows = np.arange(len(self.scored_rows(split)))
        renumbered = np.searchsorted(rows, self.rows_of(features))
        features = features.remove_columns("row").add_column("row", renumbered)
        dataset = self.scored_rows(split).select(rows)
        given = dataset[self.config.columns.tags][:]
        records = self.answers(dataset, features, guesses)
        guessed = [record["predicted_tags"] for record in records]
        return *self._tag_scores(given, guessed), guessed

    def _tag_scores(
        self, given: Sequence[Sequence[str]], guessed: Sequence[Sequence[str]]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the scores of rows of tags, and those by kind of entity."""
        scores = {"accuracy": share_alike(given, guessed)}
        by_kind: dict[str, Any] = {}
        if self.config.scheme != "plain":
            spans = [
                (predicted_spans(true), predicted_spans(tags))
                for true, tags in zip(given, guessed, strict=True)
            ]
            whole, parts = count_entities(spans)
            scores |= {"f1": whole.f1, "precision": whole.precision, "recall": whole.recall}
            by_kind = {kind: counts.as_dict() for kind, counts in parts.items()}
        return {name: scores[name] for name in self.config.metrics}, by_kind

    def artifacts(self, split: str, scores: RowScores) -> dict[str, Any]:
        """Return the scores by kind of entity; nothing for plain tags."""
        seen, guesses = scores.gathered()
        _, by_kind, _ = self._evaluate(split, seen, guesses)
        prefix = self.config.split_label(split).replace("/", "_")
        return {f"{prefix}entities.json": by_kind} if by_kind else {}


def _guesses(logits: Tensor, batch: Batch) -> list[Guess]:
    """Return what the logits, (windows, tokens, tags), say of the words read in each window."""
    probabilities, classes = logits.float().softmax(-1).max(-1)  # (windows, tokens) each
    is_read = batch["is_read"].bool()
    counts = is_read.sum(1).tolist()
    by_window = zip(
        classes[is_read].cpu().split(counts),
        probabilities[is_read].cpu().split(counts),
        strict=True,
    )
    return [(numbers.numpy(), shares.numpy()) for numbers, shares in by_window]


def _entity_record(span: Span, words: Sequence[str], shares: np.ndarray) -> dict[str, Any]:
    """Return an entity as plain values; its score is the mean probability of its words' tags."""
    kind, start, stop = span
    return {
        "kind": kind,
        "text": " ".join(words[start:stop]),
        "start": start,
        "stop": stop,
        "score": float(shares[start:stop].mean()),
    }
