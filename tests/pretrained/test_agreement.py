"""Tokenizer, model and adapter fit together, or are refused; a row does not see its neighbours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_bart, tiny_roberta, tiny_t5, write_model
from transformers import AutoTokenizer, GPT2Config, LlamaConfig

from dynarank.errors import UserError
from dynarank.pretrained.agreement import (
    RecordedDigests,
    check_head,
    check_tokenizer_digest,
    check_weights_digest,
)
from dynarank.pretrained.digests import (
    _sampled_digest,
    same_weights,
    tokenizer_digest,
    weights_digest,
)
from dynarank.pretrained.hub import ModelConfig, Source
from dynarank.pretrained.models import Pretrained, load_pretrained, load_tokenizer

TEXTS = ["a cat", "the dog sat on the mat and the film was not very good", "good"]


class Classification:
    """What a task of two classes says of its model."""

    class config:
        name = "cola"
        family = "text_classification"
        architectures = ("encoder", "decoder", "encoder-decoder")

    auto_class = "AutoModelForSequenceClassification"
    processor = "tokenizer"
    has_head = True

    def __init__(self, labels: int = 2) -> None:
        self.labels = labels

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": self.labels}


class Generation(Classification):
    auto_class = "AutoModelForSeq2SeqLM"
    processor = "tokenizer"
    has_head = False

    def model_options(self) -> dict[str, Any]:
        return {}


def tiny_llama(**changes: Any) -> LlamaConfig:
    sizes = dict(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaConfig(**{**sizes, **changes})


def tiny_gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )


def change_tokenizer(folder: Path, **settings: Any) -> None:
    """Write settings into tokenizer_config.json; None takes one out."""
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def add_token(folder: Path, **special: str) -> None:
    """Add a token that the model has no embedding for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"extra{i}" for i in range(10)])
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)


def load(folder: Path, task: Any = None, **options: Any) -> Pretrained:
    source, config = Source(str(folder), str(folder)), ModelConfig(path=str(folder))
    tokenizer = load_tokenizer(config, source)
    return load_pretrained(config, source, task or Classification(), tokenizer, **options)


def logits(loaded: Pretrained, texts: list[str]) -> torch.Tensor:
    batch = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        return loaded.model.eval()(**batch).logits


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", ["<pad>", None])
@pytest.mark.parametrize(
    "config",
    [tiny_roberta(), tiny_gpt2(), tiny_llama(), tiny_llama(pad_token_id=0), tiny_bart(), tiny_t5()],
    ids=["roberta", "gpt2", "llama", "llama-pad-0", "bart", "t5"],
)
def test_a_row_alone_and_in_a_batch_is_the_same(
    config: Any, pad: str | None, side: str, tmp_path: Path
) -> None:
    write_model(tmp_path, config)
    change_tokenizer(tmp_path, pad_token=pad, padding_side=side)
    if pad is None and config.is_encoder_decoder:
        with pytest.raises(UserError, match=r"pads with '</s>', which also ends a text"):
            load(tmp_path)
        return
    loaded = load(tmp_path)
    together = logits(loaded, TEXTS)
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(together[row : row + 1], logits(loaded, [text]))


def test_xlnets_head_reads_the_last_position_so_that_it_is_padded_on_the_left(
    tmp_path: Path,
) -> None:
    from transformers import XLNetConfig

    write_model(tmp_path, XLNetConfig(vocab_size=32, d_model=16, n_layer=1, n_head=2, d_inner=32))
    assert load(tmp_path).tokenizer.padding_side == "left"


def test_generated_texts_are_filled_up_with_the_tokenizers_padding(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_bart(pad_token_id=3))
    assert load(tmp_path, Generation()).model.generation_config.pad_token_id == 0


@pytest.mark.parametrize("special", [{}, {"pad_token": "[PAD]"}])
def test_tokens_without_an_embedding_are_refused(special: dict[str, str], tmp_path: Path) -> None:
    write_model(tmp_path, tiny_roberta())
    add_token(tmp_path, **special)
    with pytest.raises(UserError, match=r"model\.path = .*embeds only the numbers below 32\. Take"):
        load(tmp_path)


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_roberta())
    change_tokenizer(tmp_path, pad_token=None, eos_token=None)
    with pytest.raises(UserError, match=r"neither a padding token nor an end-of-text token"):
        load(tmp_path)


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    from transformers import BertTokenizerFast, T5TokenizerFast

    write_model(tmp_path, tiny_roberta())
    for empty in (BertTokenizerFast(), T5TokenizerFast()):
        empty.save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"has no vocabulary, only \d+ special tokens"):
            load(tmp_path)


def test_a_head_that_reads_the_texts_end_wants_one(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_bart(eos_token_id=3))
    with pytest.raises(UserError, match=r"reads a text at its end-of-text token \(number 3\)"):
        load(tmp_path)


def test_layerdrop_is_taken_as_zero_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path, tiny_bart(encoder_layerdrop=0.5))
    model = load(tmp_path, Generation()).model
    assert [module.layerdrop for module in model.modules() if hasattr(module, "layerdrop")] == [
        0,
        0,
    ]
    assert "layerdrop of config.json" in caplog.text
    assert model.config.encoder_layerdrop == 0.5


def recorded(**changes: Any) -> RecordedDigests:
    record = {"digests": changes, "versions": {"transformers": "5"}}
    return RecordedDigests.read(record, "5")


def test_a_tokenizers_digest_outlives_its_files_and_its_use(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "a", tiny_roberta()))
    before = tokenizer_digest(tokenizer)
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=5)
    tokenizer.save_pretrained(tmp_path / "b")
    again = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert tokenizer_digest(tokenizer) == tokenizer_digest(again) == before
    check_tokenizer_digest("run", recorded(tokenizer=before), tokenizer_digest(again))
    again.add_tokens(["another"])
    with pytest.raises(UserError, match=r"run: its tokenizer is not the one .* Put the files"):
        check_tokenizer_digest("run", recorded(tokenizer=before), tokenizer_digest(again))


def test_any_one_element_of_the_base_counts(tmp_path: Path) -> None:
    loaded = load(write_model(tmp_path / "a", tiny_roberta(hidden_size=64)))
    digest = weights_digest(loaded.model, loaded.head)
    assert same_weights(digest, loaded.model, loaded.head)
    weight = loaded.model.roberta.encoder.layer[1].output.dense.weight
    before = _sampled_digest(loaded.model, loaded.head)
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    assert not same_weights(digest, loaded.model, loaded.head)
    # The digest that older versions recorded does not see it, and is still understood.
    assert same_weights(before, loaded.model, loaded.head)


def test_other_weights_of_the_same_shapes_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(write_model(tmp_path / "a", tiny_roberta()))
    digest = weights_digest(loaded.model, loaded.head)
    with torch.no_grad():
        loaded.model.classifier.dense.weight.add_(1)
    check_weights_digest("run", recorded(base_weights=digest), loaded)  # the head does not count
    with torch.no_grad():
        loaded.model.roberta.embeddings.word_embeddings.weight.mul_(1.01)
    refusal = r"run does not belong to .*: it was trained on other weights.* by --base"
    with pytest.raises(UserError, match=refusal):
        check_weights_digest("run", recorded(base_weights=digest), loaded)
    check_weights_digest("run", recorded(), loaded)
    older = RecordedDigests.read({"digests": {"base_weights": digest}, "versions": None}, "5")
    check_weights_digest("run", older, loaded)
    assert "transformers has another version now" in caplog.text


def test_a_head_for_another_number_of_labels_is_refused(tmp_path: Path) -> None:
    loaded = load(write_model(tmp_path, tiny_roberta()), Classification(2))
    prefix = "base_model.model.classifier."
    shapes = {
        f"{prefix}{name}": list(parameter.shape)
        for name, parameter in loaded.model.classifier.named_parameters()
    }
    check_head("run", loaded, shapes)
    with pytest.raises(UserError, match=r"has the shape \(3,\), and the task .* wants \(2,\)"):
        check_head("run", loaded, shapes | {f"{prefix}out_proj.bias": [3]})
    with pytest.raises(UserError, match=r"run: holds no classifier\.dense\.weight"):
        check_head("run", loaded, {})


def test_of_a_finished_runs_whole_model_nothing_is_begun_anew(tmp_path: Path) -> None:
    three = load(write_model(tmp_path / "base", tiny_roberta()), Classification(3))
    three.model.save_pretrained(tmp_path / "full")
    three.tokenizer.save_pretrained(tmp_path / "full")
    load(tmp_path / "full", Classification(3), head_is_trained=True)
    with pytest.raises(UserError, match=r"has not the shape that the task wants.*task\.labels"):
        load(tmp_path / "full", Classification(2), head_is_trained=True)
    shutil.copytree(tmp_path / "base", tmp_path / "headless")
    with pytest.raises(UserError, match=r"holds no classifier\..*, which was trained"):
        load(tmp_path / "headless", Classification(2), head_is_trained=True)
