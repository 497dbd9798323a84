"""Text to text: summarization, translation, and any data with sources and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.tasks.base import Batch, Task, cached_map
from dynarank.tasks.config import Seq2SeqConfig
from dynarank.tasks.row_scores import RowScores
from dynarank.tasks.text_scores import text_scores

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""The label of positions that the loss leaves out."""


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
        self.forced: dict[str, int] = {}

    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        columns = self.config.columns
        self.check_texts(
            dataset, where, [columns.source, columns.target] if labelled else [columns.source]
        )
        return dataset

    def generated_lengths(self) -> dict[str, int]:
        how = self.config.generate
        written = {} if how.max_length is None else {"task.generate.max_length": how.max_length}
        return {"task.max_target": self.config.max_target, **written}

    def model_options(self) -> dict[str, Any]:
        return {}

    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        self.tokenizer = tokenizer
        self._choose_languages(model)
        config, columns = self.config, self.config.columns
        prefix = config.prefix
        if prefix is None:
            prefix = config.t5_prefix if model.config.model_type in ("t5", "mt5") else ""

        def encoded(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
            sources = [prefix + text for text in batch[columns.source]]
            tokens = tokenizer(sources, truncation=True, max_length=config.max_source)
            found = {
                "input_ids": tokens["input_ids"],
                "attention_mask": tokens["attention_mask"],
                "feature": rows,
            }
            if labelled:
                targets = tokenizer(
                    text_target=batch[columns.target], truncation=True, max_length=config.max_target
                )
                found["labels"] = targets["input_ids"]
            return found

        languages = (config.source_lang, config.target_lang)
        key = (columns, labelled, prefix, config.max_source, config.max_target, languages)
        return cached_map(dataset, encoded, key, tokenizer)

    def _choose_languages(self, model: PreTrainedModel) -> None:
        """Tell a tokenizer that marks languages which they are, and generation with which one to begin."""
        if not hasattr(self.tokenizer, "tgt_lang") or not hasattr(self.tokenizer, "src_lang"):
            return
        known = [
            token for token in self.tokenizer.get_vocab() if len(token) == 5 and token[2:3] == "_"
        ]
        for name, language in (
            ("src_lang", self.config.source_lang),
            ("tgt_lang", self.config.target_lang),
        ):
            code = next((token for token in known if language and token.startswith(language)), None)
            if known and code is None:
                field = "source_lang" if name == "src_lang" else "target_lang"
                raise UserError(
                    f"task.{field} = {language}: this model's languages are {', '.join(sorted(known))}. Give two letters"
                )
            if code is not None:
                setattr(self.tokenizer, name, code)
                token = self.tokenizer.convert_tokens_to_ids(code)
        if known:
            # mBART begins a text with its language; mBART-50 puts it second, after a fixed first token.
            start = (
                "decoder_start_token_id"
                if model.config.decoder_start_token_id is None
                else "forced_bos_token_id"
            )
            self.forced = {start: token}

    def collator(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[[list[dict[str, Any]]], Batch]:
        def collate(features: list[dict[str, Any]]) -> Batch:
            import torch

            inputs = {name: [f[name] for f in features] for name in ("input_ids", "attention_mask")}
            batch = dict(tokenizer.pad(inputs, return_tensors="pt"))
            if "labels" in features[0]:
                longest = max(len(f["labels"]) for f in features)
                padded = [f["labels"] + [IGNORED] * (longest - len(f["labels"])) for f in features]
                batch["labels"] = torch.tensor(padded)
            return {**batch, "feature": torch.tensor([f["feature"] for f in features])}

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
        return list(self.validation[split].select(rows)[self.config.columns.target][:])

    def score(self, model: nn.Module, batch: Batch, scores: RowScores) -> Tensor:
        loss: Tensor = model(**self.inputs(batch)).loss
        scores.update(batch["feature"].tolist(), self.predict(model, batch))
        return loss

    def predict(self, model: Any, batch: Batch) -> list[Any]:
        how = self.config.generate
        sharded = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        tokens = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            num_beams=how.num_beams,
            max_length=how.max_length or self.config.max_target,
            min_length=how.min_length,
            length_penalty=how.length_penalty,
            no_repeat_ngram_size=how.no_repeat_ngram_size,
            early_stopping=how.early_stopping and how.num_beams > 1,
            do_sample=False,
            synced_gpus=sharded,  # all ranks gather the parameters of every step, the longest text's
            **self.forced,
        )
        texts = self.tokenizer.batch_decode(tokens.cpu(), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        return [{"text": text} for text in predicted]

    def artifacts(self, split: str, scores: RowScores) -> dict[str, Any]:
        """What was generated, beside its reference."""
        rows, texts = scores.gathered()
        column = self.config.columns.id
        known = column in self.validation[split].column_names
        ids = self.validation[split].select(rows)[column][:] if known else np.asarray(rows).tolist()
        prefix = self.config.split_label(split).replace("/", "_")
        records = zip(ids, texts, self._references(split, rows), strict=True)
        lines = [
            {"id": one, "text": text, "reference": reference} for one, text, reference in records
        ]
        return {f"{prefix}predictions.jsonl": lines}
