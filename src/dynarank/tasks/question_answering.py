"""Extractive question answering: SQuAD v1.1 and v2.0, and any questions, contexts and answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.tasks.answers import Answers, read_answers
from dynarank.tasks.base import Batch, Collator, Task
from dynarank.tasks.baselines import Baseline, one_text
from dynarank.tasks.config import QuestionAnsweringConfig
from dynarank.tasks.features import cached_map
from dynarank.tasks.row_scores import RowScores
from dynarank.tasks.spans import Candidates, WindowSpans, best_spans, merge_windows, span_characters
from dynarank.tasks.squad_scores import squad, squad_v2
from dynarank.tasks.windows import TARGETS, cut_questions, encode_windows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HOST_SCALARS = ("context_start", "context_end", "feature")
"""Columns of a batch that the model does not take, with one number a feature."""
SCALARS = (*TARGETS, *HOST_SCALARS)


class QuestionAnswering(Task[QuestionAnsweringConfig]):
    """A question's answer as a span of its context; with `no_answer`, also no answer.

    A long context is seen in several windows (see `windows`). Beside the user's columns, checked
    rows that have answers hold `_texts` (all answers) and `_start` (where the first one begins).
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
        answers = self._checked_answers(dataset, where)
        kept = [columns.question, columns.context]
        id_column = self.id_column(dataset)
        if id_column is not None:
            kept.append(id_column)
        dataset = dataset.select_columns(kept)
        dataset = dataset.add_column("_texts", [answer.texts for answer in answers])
        return dataset.add_column("_start", [answer.start for answer in answers])

    def _checked_answers(self, dataset: Dataset, where: str) -> list[Answers]:
        columns = self.config.columns
        starts: Sequence[Any] = [None] * len(dataset)
        if columns.answer_start:
            starts = dataset[columns.answer_start][:]
        rows = zip(dataset[columns.answers][:], starts, dataset[columns.context][:], strict=True)
        answers = []
        for row, (given, start, context) in enumerate(rows):
            answer = read_answers(
                given=given,
                start=start,
                context=context,
                where=f"{where}, row {row}",
                column=columns.answers,
                no_answer=self.config.no_answer,
            )
            answers.append(answer)
        return answers

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
                f"{type(tokenizer).__name__} does not say where tokens stand in a text: "
                f"task={self.config.name} needs a fast one"
            )
        config, columns = self.config, self.config.columns

        def encoded(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
            answers = None
            if labelled:
                given = zip(batch["_texts"], batch["_start"], strict=True)
                answers = [Answers(texts, start) for texts, start in given]
            questions = cut_questions(batch[columns.question], rows, config.max_question, tokenizer)
            contexts = batch[columns.context]
            return encode_windows(questions, contexts, answers, rows, config, tokenizer)

        names = (columns.question, columns.context)
        key = (names, labelled, config.max_length, config.stride, config.max_question)
        features = cached_map(dataset, encoded, key, tokenizer)
        # The column follows from the others, so that no hash of it is needed.
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
            for name in SCALARS:
                if name in features[0]:
                    batch[name] = torch.tensor([feature[name] for feature in features])
            return batch

        return collate

    def scores(self, split: str) -> RowScores:
        def evaluate(features: list[int], spans: list[Any]) -> dict[str, float]:
            metrics, records = self._evaluate(split, features, spans)
            # `collected` is made below; by the time that this is called, it is there.
            collected.collapsed = one_text([record["answer"] for record in records])
            return metrics

        collected = RowScores(evaluate)
        return collected

    def baseline(self, rows: Dataset) -> Baseline | None:
        """Return the scores of no answer at all, where that can be right."""
        if not self.config.no_answer:
            return None
        unanswered = [not texts for texts in rows["_texts"][:]]
        share = 100 * sum(unanswered) / len(unanswered)
        return Baseline("no answer", {"exact_match": share, "f1": share})

    def inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name not in HOST_SCALARS}

    def score(self, model: nn.Module, batch: Batch, scores: RowScores) -> Tensor:
        output = model(**self.inputs(batch))
        scores.update(batch["feature"].tolist(), self._spans(output, batch))
        loss: Tensor = output.loss
        return loss

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return each window's best spans."""
        return self._spans(model(**self.inputs(batch)), batch)

    def _spans(self, output: Any, batch: Batch) -> list[WindowSpans]:
        """Return the best spans of each window, by the logits of the model's output."""
        position = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
        begin, end = batch["context_start"][:, None], batch["context_end"][:, None]
        spans = best_spans(
            start=output.start_logits,
            end=output.end_logits,
            context=(position >= begin) & (position < end),
            k=self.config.best,
            max_tokens=self.config.max_answer,
        )
        first, last, score = (part.cpu().numpy() for part in spans)
        # Every architecture here begins with the token that means no answer.
        window_rows = torch.arange(len(begin), device=begin.device)
        token = batch["attention_mask"].argmax(dim=1)  # the first that is no padding
        null_logits = (
            output.start_logits[window_rows, token] + output.end_logits[window_rows, token]
        )
        null_score = null_logits.float().cpu().tolist()
        windows = []
        for window, null in enumerate(null_score):
            windows.append(WindowSpans(first[window], last[window], score[window], null))
        return windows

    def answers(
        self, dataset: Dataset, features: Dataset, predicted: Sequence[WindowSpans]
    ) -> list[dict[str, Any]]:
        """Return the answer, its score and the n-best list of every row.

        With `no_answer`, also by how much no answer scores above the best span.
        """
        windows = self.rows_of(features)
        start, end, score = span_characters(features, predicted)
        spans = merge_windows(windows, start, end, score)
        null = np.full(len(dataset), np.inf)
        # SQuAD's script takes the lowest score of no answer of all windows.
        np.minimum.at(null, windows, [window.null for window in predicted])
        # Spans are in the order of rows: those of row i are bounds[i] to bounds[i + 1].
        bounds = np.searchsorted(spans.row, np.arange(len(dataset) + 1))
        contexts = dataset[self.config.columns.context][:]
        records = []
        for row, (first, stop) in enumerate(itertools.pairwise(bounds)):
            part = slice(first, min(stop, first + self.config.best))
            records.append(self._answer_record(contexts[row], spans, part, float(null[row])))
        return records

    def _answer_record(
        self, context: str, spans: Candidates, part: slice, null: float
    ) -> dict[str, Any]:
        """Return a row's record.

        Args:
            context: the row's context.
            spans: the spans of all rows.
            part: the row's best spans among them, best first.
            null: the score of no answer.
        """
        no_span: dict[str, Any] = {"text": "", "start": -1, "score": null}
        nbest = spans.records(part, context) or [no_span]
        best = nbest[0]
        record: dict[str, Any] = {
            "answer": best["text"],
            "score": best["score"],
            "start": best["start"],
        }
        if self.config.no_answer:
            odds = null - best["score"]
            if nbest[0] is not no_span:
                nbest = sorted([*nbest, no_span], key=lambda span: -span["score"])
            # Kept beside the answer given, for the best thresholds are sought with it.
            record["best_answer"] = record["answer"]
            if odds > self.config.null_threshold:
                record |= {"answer": "", "score": null, "start": -1}
            record["null_odds"] = odds
        _add_probabilities(nbest)
        return record | {"nbest": nbest}

    def _evaluate(
        self, split: str, seen: list[int], spans: list[WindowSpans]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the scores and the records of the rows that the seen features belong to."""
        dataset, features = self._seen_rows(split, seen)
        records = self.answers(dataset, features, spans)
        golds = dataset["_texts"][:]
        if not self.config.no_answer:
            return squad([record["answer"] for record in records], golds), records
        odds = np.asarray([record["null_odds"] for record in records])
        best = [record["best_answer"] for record in records]
        return squad_v2(best, odds, golds, self.config.null_threshold), records

    def _seen_rows(self, split: str, seen: list[int]) -> tuple[Dataset, Dataset]:
        """Return the rows that the seen features belong to, and these features, renumbered."""
        features = self.scored_features(split).select(seen)
        rows = np.unique(self.rows_of(features))
        # `answers` counts the rows of the data set that it is given, here a part of the split.
        renumbered = np.searchsorted(rows, self.rows_of(features))
        features = features.remove_columns("row").add_column("row", renumbered)
        return self.scored_rows(split).select(rows), features

    def artifacts(self, split: str, scores: RowScores) -> dict[str, Any]:
        """Return SQuAD's own files: answers and n-best lists by question.

        With `no_answer`, also the odds of no answer.
        """
        seen, spans = scores.gathered()
        _, records = self._evaluate(split, seen, spans)
        rows = np.unique(self.rows_of(self.scored_features(split).select(seen)))
        dataset = self.scored_rows(split).select(rows)
        # Without ids, it is the number in the whole split, not in this selection.
        ids = self.row_ids(dataset) if self.id_column(dataset) else rows
        keys = {"predictions": "answer", "nbest_predictions": "nbest"}
        if self.config.no_answer:
            keys["null_odds"] = "null_odds"
        prefix = self.config.split_label(split).replace("/", "_")
        files = {}
        for name, key in keys.items():
            values = [record[key] for record in records]
            files[f"{prefix}{name}.json"] = dict(zip(map(str, ids), values, strict=True))
        return files


def _add_probabilities(nbest: list[dict[str, Any]]) -> None:
    """Give each span its share: the softmax of the scores, which come best first."""
    best = nbest[0]["score"]
    # Less the best, so that no exponential overflows.
    weights = np.exp([span["score"] - best for span in nbest])
    probabilities = weights / weights.sum()
    for span, probability in zip(nbest, probabilities, strict=True):
        span["probability"] = float(probability)
