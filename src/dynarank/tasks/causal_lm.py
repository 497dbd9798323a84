"""Plain texts for a language model: every token is predicted from those before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from dynarank.tasks.base import Batch
from dynarank.tasks.causal_config import CausalLMConfig
from dynarank.tasks.features import cached_map, encode_texts
from dynarank.tasks.language_model import HOST, LanguageModel

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CausalLM(LanguageModel[CausalLMConfig]):
    """Perplexity of texts."""

    labels_in = ()

    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        self.check_texts(dataset, where, [self.config.columns.text])
        return dataset

    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        self.tokenizer = tokenizer
        key = (self.config.columns, self.config.max_length)

        def encoded(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
            return self.encode_rows(batch, rows, labelled)

        features = cached_map(dataset, encoded, key, tokenizer)
        self.require_labels(features, "the texts")
        return features

    def encode_rows(
        self, batch: dict[str, list[Any]], rows: list[int], labelled: bool
    ) -> dict[str, Any]:
        texts = batch[self.config.columns.text]
        tokens = encode_texts(self.tokenizer, texts, rows=rows)["input_ids"]
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        inputs = []
        for ids in tokens:
            # The first token is predicted too, where there is one that may stand before it.
            # Some tokenizers put these two tokens there themselves.
            begun = ids if bos is None or ids[:1] == [bos] else [bos, *ids]
            ended = begun if eos is None or begun[-1:] == [eos] else [*begun, eos]
            inputs.append(ended[: self.config.max_length])
        # Not shifted: the model's own loss compares each token with the label after it.
        return {"input_ids": inputs, "labels": inputs, HOST: rows}

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return {"terms": ...} of each row: its log-likelihood, tokens, and those foreseen."""
        return [{"terms": terms} for terms in self.row_terms(model, batch)]

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        records = []
        for output in predicted:
            likelihood, tokens, correct = output["terms"]
            records.append(
                {
                    "log_likelihood": likelihood / tokens,
                    # exp overflows at 710.
                    "perplexity": math.exp(min(-likelihood / tokens, 700.0)),
                    "token_accuracy": correct / tokens,
                    "tokens": tokens,
                }
            )
        return records
