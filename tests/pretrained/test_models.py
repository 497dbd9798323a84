from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import compose, tiny_bart, tiny_roberta, tiny_t5, write_model

from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.pretrained.hub import ModelConfig, Source
from dynarank.pretrained.models import (
    Pretrained,
    check_length,
    load_pretrained,
    load_tokenizer,
    positions,
    resolve_targets,
)
from dynarank.tasks import build_task


def load(folder: Path, model_config: Any, task: str = "cola") -> Pretrained:
    write_model(folder, model_config)
    source, config = Source(str(folder), str(folder)), ModelConfig(path=str(folder))
    tokenizer = load_tokenizer(config, source)
    return load_pretrained(
        config,
        source,
        build_task(to_config(compose([f"task={task}", "output_dir=x"])).task),
        tokenizer,
    )


def test_the_model_is_in_training_mode(tmp_path: Path) -> None:
    assert load(tmp_path, tiny_roberta()).model.training


@pytest.mark.parametrize(("task", "labels"), [("cola", 2), ("mnli", 3), ("stsb", 1)])
def test_the_head_has_the_tasks_labels(task: str, labels: int, tmp_path: Path) -> None:
    loaded = load(tmp_path, tiny_roberta(), task)
    assert loaded.head == ["classifier"]
    assert loaded.model.config.num_labels == labels


def test_label_names_travel_with_the_model(tmp_path: Path) -> None:
    assert load(tmp_path, tiny_roberta()).model.config.id2label == {
        0: "unacceptable",
        1: "acceptable",
    }


def test_gpt2_gets_a_padding_token(tmp_path: Path) -> None:
    from transformers import GPT2Config

    loaded = load(
        tmp_path, GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    )
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id is not None
    assert loaded.head == ["score"]


def test_fresh_weights_inside_the_body_are_part_of_the_head(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig

    sizes = dict(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    write_model(tmp_path, BertConfig(**sizes))
    weights = load_file(tmp_path / "model.safetensors")
    without = {key: value for key, value in weights.items() if "pooler" not in key}
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source, config = Source(str(tmp_path), str(tmp_path)), ModelConfig(path=str(tmp_path))
    task = build_task(to_config(compose(["output_dir=x"])).task)
    assert load_pretrained(config, source, task, load_tokenizer(config, source)).head == [
        "classifier",
        "bert.pooler.dense",
    ]
    assert torch.get_default_dtype() == torch.float32


def test_an_architecture_without_known_layers_asks_for_targets() -> None:
    with pytest.raises(UserError, match=r"model\.targets = null.*'mamba'.*model\.targets=\["):
        resolve_targets(ModelConfig(path="org/name"), "mamba")
    assert resolve_targets(ModelConfig(path="org/name", targets=["x"]), "mamba") == ["x"]


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    config = ModelConfig(path=str(tmp_path))
    with pytest.raises(UserError, match=r"model\.path = .*no tokenizer can be loaded"):
        load_tokenizer(config, Source(str(tmp_path), str(tmp_path)))


def test_a_head_of_another_size_is_begun_anew(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    three = load(tmp_path, tiny_roberta(), "mnli").model
    three.save_pretrained(tmp_path)
    source, config = Source(str(tmp_path), str(tmp_path)), ModelConfig(path=str(tmp_path))
    task = build_task(to_config(compose(["output_dir=x"])).task)
    two = load_pretrained(config, source, task, load_tokenizer(config, source))
    assert two.head == ["classifier"]
    assert two.model.classifier.out_proj.weight.shape == (2, 16)
    assert two.model.roberta.embeddings.word_embeddings.weight.equal(
        three.roberta.embeddings.word_embeddings.weight
    )
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 3


def test_a_body_of_another_size_than_configured_is_refused(tmp_path: Path) -> None:
    load(tmp_path, tiny_roberta()).model.save_pretrained(tmp_path)
    tiny_roberta(vocab_size=40).save_pretrained(tmp_path)
    source, config = Source(str(tmp_path), str(tmp_path)), ModelConfig(path=str(tmp_path))
    task = build_task(to_config(compose(["output_dir=x"])).task)
    with pytest.raises(
        UserError, match=r"word_embeddings\.weight has not the shape that its config.json gives it"
    ):
        load_pretrained(config, source, task, load_tokenizer(config, source))


def test_a_body_that_does_not_stand_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="in a T5ForQuestionAnswering does not stand apart from its task head"
    ):
        load(tmp_path, tiny_t5(), "squad")


def test_positions_are_what_a_text_may_take() -> None:
    from transformers import AutoModel, GPT2Config

    gpt2 = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    found = [
        positions(AutoModel.from_config(config))
        for config in (tiny_roberta(), tiny_bart(), gpt2, tiny_t5())
    ]
    assert found == [63, 64, 64, None]  # RoBERTa counts from behind its padding


def test_a_text_longer_than_the_positions_is_refused() -> None:
    from transformers import AutoModel

    model = AutoModel.from_config(tiny_roberta())
    check_length(model, 63, "task.max_length")
    with pytest.raises(
        UserError,
        match=r"task\.max_length: a text has 64 tokens, and the model 63 positions\. Set .*=63$",
    ):
        check_length(model, 64, "task.max_length")
    model(input_ids=torch.full((1, 63), 5))
