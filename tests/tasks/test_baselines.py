"""What a model scores that has learned nothing, and the sign that one has not."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from torchmetrics import Accuracy, MeanSquaredError

from dynarank.tasks import build_task
from dynarank.tasks.baselines import LabelScores, baseline_record, one_text
from dynarank.tasks.config import QuestionAnsweringConfig, TextClassificationConfig
from dynarank.tasks.row_scores import RowScores
from dynarank.tasks.token_config import TokenClassificationConfig


def classification(**settings: object) -> TextClassificationConfig:
    return TextClassificationConfig(
        **{"name": "own", "family": "text_classification", "select": "accuracy", **settings}
    )


def test_the_majority_class_is_scored_by_the_tasks_own_metrics() -> None:
    config = classification(labels=["no", "yes"], metrics=["accuracy", "f1", "matthews"])
    rows = datasets.Dataset.from_dict({"label": [1, 1, 1, 0, 1]})
    baseline = build_task(config).baseline(rows)
    assert baseline.name == "majority class"
    assert baseline.metrics == pytest.approx({"accuracy": 0.8, "f1": 8 / 9, "matthews": 0.0})


def test_the_mean_has_an_error_and_no_correlation() -> None:
    config = TextClassificationConfig(
        name="own",
        family="text_classification",
        path="x",
        target="number",
        metrics=["pearson", "rmse"],
        select="pearson",
    )
    numbers = [1.0, 4.0, 2.5, 0.5]
    baseline = build_task(config).baseline(datasets.Dataset.from_dict({"label": numbers}))
    assert baseline.name == "mean"
    assert baseline.metrics == pytest.approx({"pearson": 0.0, "rmse": np.std(numbers)})


def test_an_error_selects_no_epoch() -> None:
    with pytest.raises(ValueError, match=r"task\.select = 'rmse'"):
        TextClassificationConfig(
            name="own", family="f", target="number", metrics=["pearson", "rmse"], select="rmse"
        )


def test_no_answer_is_right_where_there_is_none() -> None:
    rows = datasets.Dataset.from_dict({"_texts": [["a"], [], [], ["b"], []]})
    for no_answer, scores in ((True, {"exact_match": 60.0, "f1": 60.0}), (False, None)):
        config = QuestionAnsweringConfig(
            name="own", family="question_answering", select="f1", no_answer=no_answer
        )
        baseline = build_task(config).baseline(rows)
        assert (baseline.metrics if baseline else None) == scores


def test_the_most_frequent_tag_finds_no_entity() -> None:
    config = TokenClassificationConfig(name="own", family="token_classification", select="f1")
    rows = datasets.Dataset.from_dict({"ner_tags": [["O", "B-X"], ["O"], ["B-X", "I-X", "O", "O"]]})
    config.columns.tags = "ner_tags"
    baseline = build_task(config).baseline(rows)
    assert baseline is not None
    assert baseline.name == "O everywhere"
    assert baseline.metrics["accuracy"] == pytest.approx(4 / 7)
    assert baseline.metrics["f1"] == 0


def test_several_splits_carry_their_names() -> None:
    config = classification(
        labels=["a", "b"], validation_splits=["validation_x", "validation_y"], select="x/accuracy"
    )
    rows = {
        "validation_x": datasets.Dataset.from_dict({"label": [0, 0, 1]}),
        "validation_y": datasets.Dataset.from_dict({"label": [1, 1, 1, 0]}),
    }
    record = baseline_record(build_task(config), rows)
    assert record is not None
    assert record["metrics"] == pytest.approx({"x/accuracy": 2 / 3, "y/accuracy": 0.75})


def test_one_class_for_every_row_is_seen_over_batches() -> None:
    scores = LabelScores({"accuracy": Accuracy(task="multiclass", num_classes=2)}, ["bad", "good"])
    labels = torch.tensor([0, 1, 1])
    for _ in range(2):
        scores.update(torch.ones(3, dtype=torch.long), labels)
    assert float(scores.compute()["accuracy"]) == pytest.approx(2 / 3)
    assert scores.collapsed == "all 6 rows 'good'"
    scores.update(torch.tensor([1, 0, 1]), labels)
    scores.compute()
    assert scores.collapsed is None
    scores.reset()
    scores.update(torch.zeros(3, dtype=torch.long), labels)
    scores.compute()
    assert scores.collapsed == "all 3 rows 'bad'"


@pytest.mark.parametrize(("spread", "alike"), [(0.04, True), (0.06, False)])
def test_numbers_are_one_within_a_hundredth_of_the_labels_spread(
    spread: float, alike: bool
) -> None:
    scores = LabelScores({"rmse": MeanSquaredError(squared=False)})
    scores.update(torch.tensor([2.0, 2.0 + spread]), torch.tensor([0.0, 5.0]))
    scores.compute()
    assert (scores.collapsed is not None) == alike


def test_texts_that_are_all_one_are_named() -> None:
    scores = RowScores(lambda features, texts: {"count": float(len(texts))})
    scores.update([0, 1], ["so", "so"])
    scores.compute()
    assert scores.collapsed == "all 2 rows 'so'"
    scores.update([2], ["not so"])
    scores.compute()
    assert scores.collapsed is None
    assert one_text(["", ""]) == "all 2 rows empty"
    assert one_text([]) is None
