"""Questions and answers, or conversations, for a language model: only the answers are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from dynarank.errors import UserError
from dynarank.tasks.base import Batch, Collator
from dynarank.tasks.causal_config import CHOSEN, GENERATED, InstructConfig
from dynarank.tasks.chat_text import (
    Span,
    around_an_answer,
    end_tokens,
    labels_in_spans,
    render,
    render_with_answers,
    set_template,
    use_training_template,
)
from dynarank.tasks.choices import (
    CHOICE_COLUMNS,
    CHOICE_IDS,
    check_choices,
    choice_batch,
    choice_features,
    choice_scores,
    score_choices,
)
from dynarank.tasks.conversations import (
    MESSAGES,
    Message,
    all_answered,
    find_columns,
    read_conversations,
)
from dynarank.tasks.features import cached_map
from dynarank.tasks.language_model import HOST, LanguageModel
from dynarank.tasks.row_scores import RowScores
from dynarank.tasks.rows import check_ids
from dynarank.tasks.text_scores import written_scores
from dynarank.tasks.token_loss import IGNORED
from dynarank.tasks.written_answers import (
    PROMPT_IDS,
    check_room,
    prompt_batch,
    prompts_of,
    write_answers,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHOICES = "choices"


class Instruct(LanguageModel[InstructConfig]):
    """Answers: their likelihood, what the model writes, and which of given ones it chooses."""

    labels_in = ("completion",)
    scored_by_features = True

    def __init__(self, config: InstructConfig) -> None:
        super().__init__(config)
        self.ends: list[int] = []
        """Tokens that end an answer."""
        self.between = ""
        """What the template puts between a prompt and an answer."""

    def check(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        """Return the rows as messages, with their id and their choices if they have some."""
        from datasets import Dataset as Rows

        if len(dataset) == 0:
            raise UserError(f"{where} is empty")
        columns = find_columns(self.config.columns, dataset.column_names, where, labelled)
        messages = read_conversations(dataset, columns, where, labelled, self.config.system)
        rows: dict[str, list[Any]] = {MESSAGES: messages}
        if columns.choices is not None:
            given = dataset[columns.choices][:]
            rows[CHOICES] = check_choices(given, where, columns.choices)
        if columns.id is not None and columns.id in dataset.column_names:
            check_ids(dataset, where, columns.id)
            rows[columns.id] = dataset[columns.id][:]
        return self.check_rows(Rows.from_dict(rows), where, labelled)

    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        if not (labelled and set(self.config.metrics) & set(CHOSEN)):
            return dataset
        for number, row in enumerate(dataset):
            answer, choices = row[MESSAGES][-1]["content"], self._choices(row)
            if answer not in choices:
                raise UserError(
                    f"{where}, row {number}: the answer {answer!r} is none of its choices: "
                    f"{', '.join(map(repr, choices))}"
                )
        return dataset

    def can_be_scored(self, rows: Dataset) -> bool:
        return all_answered(rows, self.config.columns)

    def _choices(self, row: dict[str, Any]) -> list[str]:
        return list(row[CHOICES]) if CHOICES in row else list(self.config.choices or ())

    def encode(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        self.prepare(tokenizer, model)
        super().encode(tokenizer, model)

    def prepare(self, tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
        """Settle the chat template, and which tokens end an answer."""
        self.tokenizer = tokenizer
        set_template(tokenizer)
        use_training_template(tokenizer)
        self.between, after = around_an_answer(tokenizer)
        self.ends = end_tokens(tokenizer, model, after)

    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        self.prepare(tokenizer, model)
        template = tokenizer.chat_template
        choices = (self.config.choices, self.config.columns.choices, *CHOICE_COLUMNS)
        # Training rows are learned, and never answered.
        asked = self._writes(labelled) and dataset is not getattr(self, "train", None)
        key = (self.config.max_length, labelled, asked, template, choices)

        def encoded(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
            return self.encode_rows(batch, rows, labelled, asked)

        features = cached_map(dataset, encoded, key, tokenizer)
        if labelled:
            self.require_labels(features, "the conversations")
        if asked:
            check_room(model, features, self.config.max_answer)
        return features

    def encode_rows(
        self, batch: dict[str, list[Any]], rows: list[int], labelled: bool, asked: bool = False
    ) -> dict[str, Any]:
        """Return the columns of rows.

        Args:
            batch: the rows.
            rows: their numbers.
            labelled: whether they have answers.
            asked: whether the model is to answer them.
        """
        inputs, labels, prompts = [], [], []
        for messages in batch[MESSAGES]:
            # Without the last answer, which the model is to give itself.
            before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
            prompts.append(render(self.tokenizer, before, ask=True))
            text: str = prompts[-1]
            spans: list[Span] = []
            # A prompt is never cut: its end is the question, and what begins the answer.
            most = None
            if labelled:
                text, spans = render_with_answers(self.tokenizer, messages)
                most = self.config.max_length
            # The chat template has written them.
            tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids = tokens["input_ids"][:most]
            offsets = tokens["offset_mapping"][:most]
            inputs.append(ids)
            labels.append(labels_in_spans(offsets, ids, spans, IGNORED))
        features = {"input_ids": inputs, "labels": labels, HOST: rows}
        if asked:
            features[PROMPT_IDS] = self._prompt_ids(prompts, labelled)
        if self._has_choices:
            columns = [
                choice_features(
                    self.tokenizer, prompt, choices, self.between, self.config.max_length
                )
                for prompt, choices in zip(prompts, self._batch_choices(batch), strict=True)
            ]
            for name in CHOICE_COLUMNS:
                features[name] = [column[name] for column in columns]
        return features

    def _prompt_ids(self, prompts: list[str], labelled: bool) -> list[list[int]]:
        """Return the prompts' tokens; of rows with answers the last `max_length`, as of choices."""
        ids: list[list[int]] = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        return [one[-self.config.max_length :] for one in ids] if labelled else ids

    def _writes(self, labelled: bool) -> bool:
        return not labelled or bool(set(self.config.metrics) & set(GENERATED))

    @property
    def _has_choices(self) -> bool:
        return self.config.choices is not None or self.config.columns.choices is not None

    def _batch_choices(self, batch: dict[str, list[Any]]) -> list[list[str]]:
        if CHOICES in batch:
            return batch[CHOICES]
        return [list(self.config.choices or ())] * len(batch[MESSAGES])

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        collate_texts = super().collator(tokenizer)

        def collate(features: list[dict[str, Any]]) -> Batch:
            batch = collate_texts(features)
            if CHOICE_IDS in features[0]:
                batch |= choice_batch(features)
            if PROMPT_IDS in features[0]:
                batch[PROMPT_IDS] = prompt_batch(features)
            return batch

        return collate

    def inputs(self, batch: Batch) -> Batch:
        kept = super().inputs(batch)
        own = (*CHOICE_COLUMNS, PROMPT_IDS)
        return {name: value for name, value in kept.items() if name not in own}

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return of each row its terms, and the text and the choice where these are asked for."""
        rows = batch[HOST].tolist()
        outputs: list[dict[str, Any]] = [{} for _ in rows]
        labelled = bool((batch["labels"] != IGNORED).any())
        if labelled:
            for output, terms in zip(outputs, self.row_terms(model, batch), strict=True):
                output["terms"] = terms
        writes = self._writes(labelled)
        if CHOICE_IDS in batch:
            chosen = score_choices(model, batch, self.tokenizer.pad_token_id)
            for output, choice in zip(outputs, chosen, strict=True):
                output["chosen"] = choice
        if writes:
            for output, text in zip(outputs, self.write(model, prompts_of(batch)), strict=True):
                output["text"] = text
        return outputs

    def write(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return what the model writes after each prompt, greedily."""
        return write_answers(model, self.tokenizer, prompts, self.ends, self.config.max_answer)

    def answer(self, model: Any, messages: Sequence[Message]) -> str:
        """Return what the model answers to a conversation, whose last message is the user's."""
        return self.write(model, [self.prompt_ids(messages)])[0]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, up to where an answer begins."""
        prompt = render(self.tokenizer, messages, ask=True)
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return ids

    def evaluate(self, split: str, rows: Sequence[int], outputs: Sequence[Any]) -> dict[str, float]:
        scores = super().evaluate(split, rows, outputs)
        chosen_rows = self.scored_rows(split).select(rows)
        wanted = [messages[-1]["content"] for messages in chosen_rows[MESSAGES][:]]
        names = self.config.metrics
        if set(names) & set(CHOSEN):
            right = [
                self._choices(row).index(answer)
                for row, answer in zip(chosen_rows, wanted, strict=True)
            ]
            scores |= choice_scores(names, [output["chosen"] for output in outputs], right)
        if set(names) & set(GENERATED):
            scores |= written_scores(names, [output["text"] for output in outputs], wanted)
        return scores

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        records = []
        for row, output in zip(dataset, predicted, strict=True):
            record: dict[str, Any] = {}
            if "text" in output:
                record["text"] = output["text"]
            if "chosen" in output:
                choices = self._choices(row)
                record["choice"], record["choice_norm"] = (
                    choices[place] for place in output["chosen"]
                )
            if "terms" in output and output["terms"][1]:
                record["log_likelihood"] = output["terms"][0] / output["terms"][1]
            records.append(record)
        return records

    def artifacts(self, split: str, scores: RowScores) -> dict[str, Any]:
        """Return what was written and chosen beside the given answers."""
        rows, outputs = scores.gathered()
        if not any("text" in output or "chosen" in output for output in outputs):
            return {}
        dataset = self.scored_rows(split).select(rows)
        records = self.answers(dataset, dataset, outputs)
        lines = []
        for number, row, record in zip(rows, dataset, records, strict=True):
            lines.append({"row": int(number), **record, "answer": row[MESSAGES][-1]["content"]})
        prefix = self.config.split_label(split).replace("/", "_")
        return {f"{prefix}predictions.jsonl": lines}
