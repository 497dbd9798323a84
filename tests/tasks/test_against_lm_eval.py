"""Accuracies over choices against lm-evaluation-harness itself, where it is installed.

It is in no extra, since it wants an older python-dateutil than others do.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from language_models import write_language_model, write_lines
from tiny import compose
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynarank.config.schema import to_config
from dynarank.pretrained.hub import HubConfig
from dynarank.tasks import build_task

WORDS = ("red", "blue", "a", "green", "yellow", "the", "cat,", "dog", "of", "elephant", "\u00e9")
ROWS = 60


def rows() -> list[dict[str, Any]]:
    """Questions with three or four answers of one to four words, one of which is right."""
    draw = random.Random(3)

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    made = []
    for number in range(ROWS):
        choices: list[str] = []
        while len(choices) < 3 + number % 2:
            choice = words(draw.randrange(1, 5))
            if choice not in choices:
                choices.append(choice)
        row = {"prompt": f"{words(4)}?", "completion": draw.choice(choices), "choices": choices}
        made.append(row)
    return made


def test_accuracies_are_those_of_lm_evaluation_harness(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    tasks = pytest.importorskip("lm_eval.api.task")
    models = pytest.importorskip("lm_eval.models.huggingface")
    file = write_lines(tmp_path / "rows.jsonl", rows())
    # Such large weights that an untrained model prefers some answers to others.
    folder = write_language_model(tmp_path / "m", initializer_range=0.5)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = [
        "output_dir=x",
        "task=instruct",
        f"task.train_file={file}",
        f"task.validation_file={file}",
        "task.columns.choices=choices",
        "task.metrics=[choice_accuracy,choice_accuracy_norm]",
        "task.select=choice_accuracy",
    ]
    task: Any = build_task(to_config(compose(settings)).task)
    task.read(HubConfig())
    task.encode(tokenizer, model)
    features = task.validation_features["validation"]
    outputs = task.predict(model, task.collator(tokenizer)([features[i] for i in range(ROWS)]))
    scores = task.scores("validation")
    scores.update(range(ROWS), outputs)
    ours = scores.compute()

    theirs = tasks.ConfigurableTask(
        config={
            "task": "own",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "choices",
            "doc_to_target": "{{choices.index(completion)}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    )
    harness = models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, add_bos_token=False)
    results = lm_eval.simple_evaluate(
        model=harness, tasks=[theirs], apply_chat_template=True, log_samples=True
    )
    wanted = results["results"]["own"]
    assert ours["choice_accuracy"] == pytest.approx(wanted["acc,none"])
    assert ours["choice_accuracy_norm"] == pytest.approx(wanted["acc_norm,none"])
    for sample in results["samples"]["own"]:  # not the scores alone, but every choice
        values = [response[0] for response in sample["filtered_resps"]]
        pairs = zip(values, sample["doc"]["choices"], strict=True)
        by_size = [value / len(choice) for value, choice in pairs]
        chosen = (values.index(max(values)), by_size.index(max(by_size)))
        assert outputs[sample["doc_id"]]["chosen"] == chosen
