"""Text to text: summarization, translation, and any data with sources and targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynarank.tasks.base import Batch, Collator, Task
from dynarank.tasks.features import cached_map, encode_texts
from dynarank.tasks.languages import choose_languages
from dynarank.tasks.row_scores import RowScores
from dynarank.tasks.seq2seq_config import Seq2SeqConfig
from dynarank.tasks.text_scores import text_scores

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""The label of positions that the loss leaves out."""
PREFIXED = ("t5", "mt5")
"""Architectures that `task.t5_prefix` is for."""


class Seq2Seq(Task[Seq2SeqConfig]):
    """Trained on given targets, scored on generated ones (beam search)."""

    auto_class = "AutoModelForSeq2SeqLM"
    peft_task_type = "SEQ_2_SEQ_LM"
    has_head = False  # the pretrained output layer stays
    length_setting = "task.max_source"
    labels_in = ("target",)

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.tokenizer: PreTrainedTokenizerBase
        self.language_options: dict[str, int] = {}
        """What generation must know of the target's language."""

    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        columns = self.config.columns
        needed = [columns.source]
        if labelled:
            needed.append(columns.target)
        self.check_texts(dataset, where, needed)
        return dataset

    def generated_lengths(self) -> dict[str, int]:
        lengths = {"task.max_target": self.config.max_target}
        if self.config.generate.max_length is not None:
            lengths["task.generate.max_length"] = self.config.generate.max_length
        return lengths

    def model_options(self) -> dict[str, Any]:
        return {}

    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        config, columns = self.config, self.config.columns
        self.tokenizer = tokenizer
        self.language_options = choose_languages(
            tokenizer, model, config.source_lang, config.target_lang
        )
        prefix = config.prefix
        if prefix is None:
            prefix = config.t5_prefix if model.config.model_type in PREFIXED else ""

        def encoded(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
            sources = [prefix + text for text in batch[columns.source]]
            tokens = encode_texts(
                tokenizer, sources, rows=rows, truncation=True, max_length=config.max_source
            )
            features = {
                "input_ids": tokens["input_ids"],
                "attention_mask": tokens["attention_mask"],
                "feature": rows,
            }
            if labelled:
                # As targets: translation models' tokenizers mark them with the other language.
                targets = encode_texts(
                    tokenizer,
                    rows=rows,
                    text_target=batch[columns.target],
                    truncation=True,
                    max_length=config.max_target,
                )
                features["labels"] = targets["input_ids"]
            return features

        languages = (config.source_lang, config.target_lang)
        key = (columns, labelled, prefix, config.max_source, config.max_target, languages)
        return cached_map(dataset, encoded, key, tokenizer)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        def collate(features: list[dict[str, Any]]) -> Batch:
            inputs = {}
            for name in ("input_ids", "attention_mask"):
                inputs[name] = [feature[name] for feature in features]
            batch = dict(tokenizer.pad(inputs, return_tensors="pt"))
            if "labels" in features[0]:
                # `tokenizer.pad` leaves labels at their own lengths, which make no tensor.
                batch["labels"] = _padded_labels([feature["labels"] for feature in features])
            batch["feature"] = torch.tensor([feature["feature"] for feature in features])
            return batch

        return collate

    def inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name != "feature"}

    def loss_terms(self, batch: Batch) -> Tensor:
        return (batch["labels"] != IGNORED).sum()

    def scores(self, split: str) -> RowScores:
        def evaluate(features: list[int], texts: list[Any]) -> dict[str, float]:
            return text_scores(self.config.metrics, texts, self._references(split, features))

        return RowScores(evaluate)

    def _references(self, split: str, rows: Sequence[int]) -> list[str]:
        return list(self.scored_rows(split).select(rows)[self.config.columns.target][:])

    def score(self, model: nn.Module, batch: Batch, scores: RowScores) -> Tensor:
        loss: Tensor = model(**self.inputs(batch)).loss
        scores.update(batch["feature"].tolist(), self.predict(model, batch))
        return loss

    def predict(self, model: Any, batch: Batch) -> list[Any]:
        """Return the text that is generated for each source."""
        options = self.config.generate
        # FSDP2's parameters are tensors with a mesh of devices; others have none.
        sharded = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        tokens = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            num_beams=options.num_beams,
            max_length=options.max_length or self.config.max_target,
            min_length=options.min_length,
            length_penalty=options.length_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            # transformers warns of it where there is one beam.
            early_stopping=options.early_stopping and options.num_beams > 1,
            do_sample=False,
            # Every rank gathers the parameters of every step, as many as the longest text has.
            synced_gpus=sharded,
            **self.language_options,
        )
        texts = self.tokenizer.batch_decode(tokens.cpu(), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        return [{"text": text} for text in predicted]

    def artifacts(self, split: str, scores: RowScores) -> dict[str, Any]:
        """Return the generated texts beside their references."""
        rows, texts = scores.gathered()
        dataset = self.validation[split].select(rows)
        # Without ids, it is the number in the whole split, not in this selection.
        ids = self.row_ids(dataset) if self.id_column(dataset) else [int(row) for row in rows]
        lines = []
        for row_id, text, reference in zip(ids, texts, self._references(split, rows), strict=True):
            lines.append({"id": row_id, "text": text, "reference": reference})
        prefix = self.config.split_label(split).replace("/", "_")
        return {f"{prefix}predictions.jsonl": lines}


def _padded_labels(labels: Sequence[list[int]]) -> Tensor:
    """Return the labels as (batch, longest), padded with `IGNORED`."""
    longest = max(len(label) for label in labels)
    padded = torch.full((len(labels), longest), IGNORED)
    for row, label in enumerate(labels):
        padded[row, : len(label)] = torch.tensor(label)
    return padded
