"""What is predicted for a row does not depend on the rows beside it in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import (
    compose,
    question_rows,
    sentences,
    tiny_bart,
    tiny_roberta,
    tiny_t5,
    write_model,
)

from dynarank.config.schema import to_config
from dynarank.pretrained.hub import ModelConfig, Source
from dynarank.pretrained.models import load_pretrained, load_tokenizer
from dynarank.tasks import build_task
from dynarank.tasks.base import Task

pytest.importorskip("dynarank.pretrained.agreement")  # sets the padding of what was loaded

ROWS = 8


def tiny_decoder(kind: str) -> Any:
    """A decoder whose config.json names another padding token than its tokenizer."""
    import transformers

    ids = dict(vocab_size=32, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    if kind == "gpt2":
        sizes = dict(n_embd=16, n_layer=2, n_head=2, n_positions=64)
    else:
        heads = dict(num_attention_heads=2, num_key_value_heads=2)
        layers = dict(num_hidden_layers=2, hidden_size=16, intermediate_size=32)
        sizes = dict(**heads, **layers, max_position_embeddings=64)
    return transformers.AutoConfig.for_model(kind, **sizes, **ids)


def tiny_bert() -> Any:
    from transformers import BertConfig

    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return BertConfig(vocab_size=32, max_position_embeddings=64, pad_token_id=0, **sizes)


MODELS = {
    "roberta": tiny_roberta,
    "bert": tiny_bert,
    "gpt2": lambda: tiny_decoder("gpt2"),
    "llama": lambda: tiny_decoder("llama"),
    "qwen2": lambda: tiny_decoder("qwen2"),
    "bart": tiny_bart,
    "t5": tiny_t5,
}
FAMILIES = {
    "text_classification": [*MODELS],
    "text_regression": ["roberta", "llama"],
    "question_answering": ["roberta", "bert", "bart"],
    "seq2seq": ["bart", "t5"],
    "token_classification": ["roberta", "bert", "gpt2", "llama"],
}
CASES = [(family, model) for family, models in FAMILIES.items() for model in models]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models by kind."""
    root = tmp_path_factory.mktemp("models")
    return {kind: write_model(root / kind, config()) for kind, config in MODELS.items()}


def rows_of(family: str) -> Dataset:
    """Rows without labels, of very different lengths."""
    short, long = ["the cat"] * 3, [" ".join(sentences(3, seed)) for seed in range(ROWS - 3)]
    texts = [*long, *short]
    if family == "question_answering":
        columns = question_rows(ROWS, 0)
        return Dataset.from_dict(
            {"id": columns["id"], "question": columns["question"], "context": texts}
        )
    if family == "token_classification":
        return Dataset.from_dict({"tokens": [text.split() for text in texts]})
    if family == "seq2seq":
        return Dataset.from_dict({"source": texts})
    return Dataset.from_dict({"text": texts})


def load(family: str, folder: Path, side: str) -> tuple[Task[Any], Any, Any]:
    """A task, and the model and tokenizer in the folder, as a run loads them."""
    settings = {
        "text_classification": ["task.labels=[a,b]"],
        "text_regression": [],
        "question_answering": ["task.max_length=24", "task.max_question=8", "task.stride=4"],
        "seq2seq": ["task.generate.max_length=8"],
        "token_classification": ["task.labels=[A,B]", "task.max_length=16", "task.stride=4"],
    }
    config = to_config(compose(["output_dir=x", f"task={family}", *settings[family]])).task
    task = build_task(config)
    model_config, source = ModelConfig(name="tiny", path=str(folder)), Source(str(folder), "tiny")
    tokenizer = load_tokenizer(model_config, source)
    tokenizer.padding_side = side
    torch.manual_seed(0)
    model = load_pretrained(model_config, source, task, tokenizer).model.eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that every token matters
            parameter.add_(0.3 * torch.randn_like(parameter))
    return task, model, tokenizer


def predict(
    task: Task[Any], model: Any, tokenizer: Any, rows: Dataset, batch_size: int
) -> list[dict[str, Any]]:
    features = task.features(rows, tokenizer, model, labelled=False)
    hidden = [name for name in task.host_columns if name in features.column_names]
    inputs = features.remove_columns(hidden)
    collate = task.collator(tokenizer)
    predicted: list[Any] = []
    with torch.inference_mode():
        for start in range(0, len(features), batch_size):
            part = range(start, min(start + batch_size, len(features)))
            predicted += task.predict(model, collate([inputs[index] for index in part]))
    return task.answers(rows, features, predicted)


def same(left: Any, right: Any) -> bool:
    """Whether two predictions are alike, numbers up to rounding."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, Sequence) and not isinstance(left, str):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return bool(np.isclose(left, right, atol=1e-4))
    return bool(left == right)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("family", "model"), CASES)
def test_a_row_is_predicted_as_if_it_were_alone(
    family: str, model: str, side: str, folders: dict[str, Path]
) -> None:
    task, network, tokenizer = load(family, folders[model], side)
    rows = rows_of(family)
    together = predict(task, network, tokenizer, rows, batch_size=ROWS)
    alone = predict(task, network, tokenizer, rows, batch_size=1)
    assert len(alone) == ROWS
    for one, other in zip(alone, together, strict=True):
        assert same(one, other), (one, other)
    values = [next(iter(record.values())) for record in alone]
    if family == "text_regression":
        assert len(set(values)) > 1  # the rows are told apart
