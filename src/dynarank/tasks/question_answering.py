"""Extractive question answering: SQuAD v1.1 and v2.0, and any data with questions, contexts and answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.tasks.base import Batch, Task, cached_map
from dynarank.tasks.config import QuestionAnsweringConfig
from dynarank.tasks.row_scores import RowScores
from dynarank.tasks.spans import best_spans, merge_windows
from dynarank.tasks.squad_scores import squad, squad_v2

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCALARS = ("start_positions", "end_positions", "context_start", "context_end", "feature")
"""Columns of the features that hold one number each."""


class QuestionAnswering(Task[QuestionAnsweringConfig]):
    """A question's answer as a span of its context; in v2.0's way, also no answer.

    A context longer than a window is seen in several, which overlap by `stride` tokens. In training, a window without
    the whole answer points to its first token; so does, in v2.0, one of a question without an answer.
    """

    auto_class = "AutoModelForQuestionAnswering"
    peft_task_type = "QUESTION_ANS"
    labels_in = ("answers", "answer_start")
    host_columns = ("row", "offset_start", "offset_end")

    def check_rows(self, dataset: Dataset, where: str, labelled: bool) -> Dataset:
        columns = self.config.columns
        self.check_texts(dataset, where, [columns.question, columns.context])
        if not labelled:
            return dataset
        starts = dataset[columns.answer_start][:] if columns.answer_start else [None] * len(dataset)
        rows = zip(dataset[columns.answers][:], dataset[columns.context][:], starts, strict=True)
        answers = [self._answer(*parts, f"{where}, row {row}") for row, parts in enumerate(rows)]
        kept = [
            columns.question,
            columns.context,
            *([columns.id] if columns.id in dataset.column_names else []),
        ]
        return (
            dataset.select_columns(kept)
            .add_column("_texts", [texts for texts, _ in answers])
            .add_column("_start", [start for _, start in answers])
        )

    def _answer(self, given: Any, context: str, start: Any, where: str) -> tuple[list[str], int]:
        """A question's answers, and where the first one begins (-1 without an answer). Raises `UserError`."""
        column = self.config.columns.answers
        texts = given
        if isinstance(given, dict) and {"text", "answer_start"} <= given.keys():
            texts, start = given["text"], given["answer_start"]
        texts = [] if texts is None else [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(
            text is None or isinstance(text, str) for text in texts
        ):
            raise UserError(
                f"{where}: {column} = {given!r} is neither a text, nor a list of texts, nor SQuAD's form"
            )
        starts = start if isinstance(start, list) else [] if start in (None, "") else [start]
        kept = [index for index, text in enumerate(texts) if text and text.strip()]
        if not kept:
            if self.config.no_answer:
                return [], -1
            raise UserError(
                f"{where}: {column} is empty. Mend or drop the row, or allow that: task.no_answer=true"
            )
        first, place = texts[kept[0]], "in"
        begin = context.find(first)
        if kept[0] < len(starts):
            place = f"at character {starts[kept[0]]} of"
            position = str(starts[kept[0]]).removesuffix(".0")
            begin = int(position) if position.isdecimal() else -1
        if begin < 0 or context[begin : begin + len(first)] != first:
            raise UserError(
                f"{where}: the answer {first!r} does not stand {place} the context. Mend or drop the row"
            )
        return [texts[index] for index in kept], begin

    def model_options(self) -> dict[str, Any]:
        return {}

    def features(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labelled: bool = True,
    ) -> Dataset:
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} does not say where tokens stand in a text: task needs a fast one"
            )
        config = self.config
        names = (config.columns.question, config.columns.context)

        def windows(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
            answers = list(zip(batch["_texts"], batch["_start"], strict=True)) if labelled else None
            return self._windows(
                self._cut(batch[names[0]], tokenizer), batch[names[1]], answers, rows, tokenizer
            )

        key = (names, labelled, config.max_length, config.stride, config.max_question)
        features = cached_map(dataset, windows, key, tokenizer)
        return features.add_column(
            "feature", np.arange(len(features)), new_fingerprint=f"{features._fingerprint}-n"
        )

    def _cut(self, questions: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Questions of at most `max_question` tokens; of a character that is several tokens, all stay or none."""
        questions, most = [question.strip() for question in questions], self.config.max_question
        offsets = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        return [
            question if len(places) <= most else question[: places[most][0]].rstrip()
            for question, places in zip(questions, offsets, strict=True)
        ]

    def _windows(
        self,
        questions: list[str],
        contexts: list[str],
        answers: list[tuple[list[str], int]] | None,
        rows: list[int],
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, list[Any]]:
        encoded = tokenizer(
            questions,
            contexts,
            truncation="only_second",
            max_length=self.config.max_length,
            stride=self.config.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        kept = [name for name in tokenizer.model_input_names if name in encoded]
        features: dict[str, list[Any]] = {name: encoded[name] for name in kept}
        added = ["row", "context_start", "context_end", "offset_start", "offset_end"]
        features |= {
            name: []
            for name in [*added, *(["start_positions", "end_positions"] if answers else [])]
        }
        for window, example in enumerate(encoded["overflow_to_sample_mapping"]):
            offsets = np.asarray(encoded["offset_mapping"][window])  # (n, 2)
            context = np.flatnonzero(
                np.asarray([part == 1 for part in encoded.sequence_ids(window)])
            )
            begin, end = (int(context[0]), int(context[-1]) + 1) if len(context) else (0, 0)
            values = [rows[example], begin, end, offsets[:, 0].tolist(), offsets[:, 1].tolist()]
            if answers is not None:
                texts, start = answers[example]
                text = texts[0] if texts else ""
                margin = len(text) - len(text.lstrip())  # no token holds white space
                values += _token_span(
                    offsets, begin, end, start + margin, start + len(text.rstrip()) if text else -1
                )
            names = [*added, "start_positions", "end_positions"]
            for name, value in zip(names, values, strict=False):
                features[name].append(value)
        return features

    def rows_of(self, features: Dataset) -> np.ndarray:
        return np.asarray(features["row"][:])

    def collator(
        self, tokenizer: PreTrainedTokenizerBase
    ) -> Callable[[list[dict[str, Any]]], Batch]:
        def collate(features: list[dict[str, Any]]) -> Batch:
            padded = [name for name in tokenizer.model_input_names if name in features[0]]
            batch = tokenizer.pad(
                {name: [f[name] for f in features] for name in padded}, return_tensors="pt"
            )
            scalars = {
                name: torch.tensor([f[name] for f in features])
                for name in SCALARS
                if name in features[0]
            }
            return {**batch, **scalars}

        return collate

    def scores(self, split: str) -> RowScores:
        return RowScores(lambda features, spans: self._evaluate(split, features, spans)[0])

    def inputs(self, batch: Batch) -> Batch:
        return {
            name: value
            for name, value in batch.items()
            if name not in ("context_start", "context_end", "feature")
        }

    def _run(self, model: nn.Module, batch: Batch) -> tuple[Any, list[Any]]:
        output = model(**self.inputs(batch))
        position = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
        context = (position >= batch["context_start"][:, None]) & (
            position < batch["context_end"][:, None]
        )  # (F, n)
        spans = best_spans(
            output.start_logits,
            output.end_logits,
            context,
            self.config.best,
            self.config.max_answer,
        )
        null = (
            output.start_logits[:, 0] + output.end_logits[:, 0]
        ).float()  # every architecture here begins with it
        first, last, score = (part.cpu().numpy() for part in spans)
        return output, list(zip(first, last, score, null.cpu().tolist(), strict=True))

    def score(self, model: nn.Module, batch: Batch, scores: RowScores) -> Tensor:
        output, spans = self._run(model, batch)
        scores.update(batch["feature"].tolist(), spans)
        loss: Tensor = output.loss
        return loss

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        return self._run(model, batch)[1]

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Answer, score and n-best list of every row; in v2.0's way also by how much no answer scores above."""
        windows = self.rows_of(features)
        starts, ends = _characters(features, predicted)
        score = _stack([spans[2] for spans in predicted], -np.inf)
        spans = merge_windows(windows, starts, ends, score)
        null = np.full(len(dataset), np.inf)
        np.minimum.at(null, windows, [spans[3] for spans in predicted])
        bounds = np.searchsorted(spans.row, np.arange(len(dataset) + 1))
        contexts = dataset[self.config.columns.context][:]
        return [
            self._answer_record(
                contexts[row],
                spans,
                slice(begin, min(end, begin + self.config.best)),
                float(null[row]),
            )
            for row, (begin, end) in enumerate(itertools.pairwise(bounds))
        ]

    def _answer_record(self, context: str, spans: Any, part: slice, null: float) -> dict[str, Any]:
        silence: dict[str, Any] = {"text": "", "start": -1, "score": null}
        found: list[dict[str, Any]] = [
            {"text": context[start:end], "start": int(start), "score": float(score)}
            for start, end, score in zip(
                spans.start[part], spans.end[part], spans.score[part], strict=True
            )
        ]
        best = found or [silence]
        record: dict[str, Any] = {
            "answer": best[0]["text"],
            "score": best[0]["score"],
            "start": best[0]["start"],
        }
        if self.config.no_answer:
            odds = null - best[0]["score"]
            best = sorted([*found, silence], key=lambda one: -one["score"])
            silent = (
                {"answer": "", "score": null, "start": -1}
                if odds > self.config.null_threshold
                else {}
            )
            record |= {"best_answer": record["answer"], **silent, "null_odds": odds}
        weights = np.exp([one["score"] - best[0]["score"] for one in best])
        for one, weight in zip(best, weights / weights.sum(), strict=True):
            one["probability"] = float(weight)
        return record | {"nbest": best}

    def _evaluate(
        self, split: str, seen: list[int], spans: list[Any]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Scores and records of the rows that the features seen belong to."""
        features = self.validation_features[split].select(seen)
        rows = np.unique(self.rows_of(features))
        dataset = self.validation[split].select(rows)
        renumbered = np.searchsorted(rows, self.rows_of(features))
        features = features.remove_columns("row").add_column("row", renumbered)
        records = self.answers(dataset, features, spans)
        golds = dataset["_texts"][:]
        if not self.config.no_answer:
            return squad([record["answer"] for record in records], golds), records
        odds = np.asarray([record["null_odds"] for record in records])
        best = [record["best_answer"] for record in records]
        return squad_v2(best, odds, golds, self.config.null_threshold), records

    def artifacts(self, split: str, scores: RowScores) -> dict[str, Any]:
        """SQuAD's own files: the answer by question, the n-best lists, and in v2.0's way the odds of no answer."""
        _, records = self._evaluate(split, *scores.gathered())
        rows = np.unique(self.rows_of(self.validation_features[split].select(scores.gathered()[0])))
        dataset = self.validation[split].select(rows)
        column = self.config.columns.id
        ids = [str(one) for one in (dataset[column][:] if column in dataset.column_names else rows)]
        prefix = self.config.split_label(split).replace("/", "_")
        files = {"predictions": "answer", "nbest_predictions": "nbest"}
        files |= {"null_odds": "null_odds"} if self.config.no_answer else {}
        return {
            f"{prefix}{file}.json": {
                one: record[key] for one, record in zip(ids, records, strict=True)
            }
            for file, key in files.items()
        }


def _token_span(offsets: np.ndarray, begin: int, end: int, start: int, stop: int) -> list[int]:
    """First and last token of the characters [start, stop), if the window's context holds them all; else 0 and 0."""
    if begin == end or start < offsets[begin, 0] or stop > offsets[end - 1, 1] or stop < 0:
        return [0, 0]
    inside = offsets[begin:end]
    first = int(
        np.searchsorted(inside[:, 1], start, side="right")
    )  # the first token that ends after the start
    last = (
        int(np.searchsorted(inside[:, 0], stop, side="left")) - 1
    )  # the last token that begins before the stop
    return [begin + first, begin + last]


def _stack(parts: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Arrays of up to k values as one, (F, k): short windows have fewer spans."""
    width = max(len(part) for part in parts)
    return np.stack([np.pad(part, (0, width - len(part)), constant_values=fill) for part in parts])


def _characters(features: Dataset, predicted: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Where each window's spans begin and end in the context, in characters, each (F, k)."""
    table = features.select_columns(["offset_start", "offset_end"]).with_format("arrow")[:]
    begins, ends = (table[name].combine_chunks() for name in ("offset_start", "offset_end"))
    first, last = (_stack([spans[side] for spans in predicted], 0) for side in (0, 1))
    return _gather(begins, first), _gather(ends, last)


def _gather(lists: Any, index: np.ndarray) -> np.ndarray:
    offsets = np.asarray(lists.offsets)[:-1] - np.asarray(lists.offsets)[0]
    values = np.asarray(lists.flatten())
    found: np.ndarray = values[offsets[:, None] + index]
    return found
