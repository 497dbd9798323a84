from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tiny import CONF
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from dynarank.adapters.inject import find_linears, inject
from dynarank.pretrained.architectures import (
    ARCHITECTURES,
    bottleneck_places,
    kind_of_model,
    models_of_kind,
    position_tables,
)
from dynarank.pretrained.models import positions

BERT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
BART = {
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
BART |= {
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BART |= {"decoder_start_token_id": 2, "forced_eos_token_id": 2}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2}
LLAMA = BERT | {"num_key_value_heads": 1, "head_dim": 4}
RELATIVE = BERT | {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 8,
}

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "bert": [BERT],
    "roberta": [BERT],
    "xlm-roberta": [BERT],
    "electra": [BERT | {"embedding_size": 4}],
    "mpnet": [BERT],
    "deberta": [BERT, RELATIVE],
    "deberta-v2": [BERT, RELATIVE | {"share_att_key": True}, RELATIVE | {"share_att_key": False}],
    "distilbert": [{"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16}],
    "bart": [BART],
    "mbart": [BART],
    "marian": [BART],
    "t5": [T5, T5 | {"feed_forward_proj": "gated-gelu"}],
    "mt5": [T5 | {"feed_forward_proj": "gated-gelu"}],
    "gpt2": [{"n_embd": 8, "n_layer": 2, "n_head": 2}],
    "llama": [LLAMA],
    "mistral": [LLAMA],
    "qwen2": [LLAMA],
    "qwen3": [LLAMA],
}
CASES = [(kind, index) for kind, configs in CONFIGS.items() for index in range(len(configs))]
NOT_ATTENTION_OR_FFN = re.compile(r"(^|\.)(pooler|embeddings|embeddings_project)(\.|$)")


def tiny(kind: str, index: int) -> nn.Module:
    """A two-layer model of the architecture, without memory for its weights."""
    config = AutoConfig.for_model(kind, vocab_size=12, **CONFIGS[kind][index])
    family = AutoModelForSeq2SeqLM if kind == "marian" else AutoModelForSequenceClassification
    with torch.device("meta"):
        return family.from_config(config)


def head_modules(model: nn.Module) -> list[str]:
    return [name for name, child in model.named_children() if child is not model.base_model]


def test_every_known_architecture_has_a_case() -> None:
    assert set(CONFIGS) == set(ARCHITECTURES)


@pytest.mark.parametrize(("kind", "index"), CASES, ids=[f"{kind}-{index}" for kind, index in CASES])
def test_all_of_attention_and_feed_forward_and_none_of_the_head(kind: str, index: int) -> None:
    model = tiny(kind, index)
    body = [
        f"{model.base_model_prefix}.{name}"
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not NOT_ATTENTION_OR_FFN.search(name)
    ]
    head = head_modules(model)
    assert head, "the model has no head to leave alone"
    assert find_linears(model, ARCHITECTURES[kind].targets, exclude=head) == body
    assert len(body) >= 8


@pytest.mark.parametrize("kind", ["bert", "roberta", "t5", "llama"])
def test_targets_alone_do_not_touch_the_head(kind: str) -> None:
    model = tiny(kind, 0)
    prefix = model.base_model_prefix + "."
    assert all(name.startswith(prefix) for name in find_linears(model, ARCHITECTURES[kind].targets))


def test_injects_into_a_model_without_weights() -> None:
    model = tiny("gpt2", 0)
    layers = inject(model, ARCHITECTURES["gpt2"].targets, r=2, exclude=head_modules(model))
    assert len(layers) == 8
    assert {(la.in_features, la.out_features) for la in layers.values()} == {
        (8, 24),
        (8, 8),
        (8, 32),
        (32, 8),
    }


@pytest.mark.parametrize(("kind", "index"), CASES, ids=[f"{kind}-{index}" for kind, index in CASES])
def test_a_bottleneck_stands_behind_every_sublayer(kind: str, index: int) -> None:
    """Two layers, each with a feed-forward sublayer; the others are self- and cross-attention."""
    model = tiny(kind, index)
    layers = 4 if ARCHITECTURES[kind].kind == "encoder-decoder" else 2
    crossing = 2 if ARCHITECTURES[kind].kind == "encoder-decoder" else 0
    for behind_attention, wanted in ((False, layers), (True, 2 * layers + crossing)):
        places = bottleneck_places(kind, behind_attention)
        assert len(find_linears(model, places, exclude=head_modules(model))) == wanted


@pytest.mark.parametrize(("kind", "index"), CASES, ids=[f"{kind}-{index}" for kind, index in CASES])
def test_positions_end_where_a_table_of_them_is_known(kind: str, index: int) -> None:
    model = tiny(kind, index)
    table = ARCHITECTURES[kind].position_table
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert table is None or table in names
    assert (positions(model) is None) is (table is None)


def test_the_kinds_are_those_that_transformers_says() -> None:
    class Unlisted:
        """A configuration whose architecture is looked up by transformers' own tables."""

        def __init__(self, model_type: str, is_encoder_decoder: bool) -> None:
            self.model_type = model_type
            self.is_encoder_decoder = is_encoder_decoder

    for kind, entry in ARCHITECTURES.items():
        config = AutoConfig.for_model(kind)
        assert kind_of_model(config) == entry.kind
        assert config.is_encoder_decoder is (entry.kind == "encoder-decoder")
    assert kind_of_model(Unlisted("camembert", False)) == "encoder"
    assert kind_of_model(Unlisted("phi", False)) == "decoder"
    assert kind_of_model(Unlisted("pegasus", True)) == "encoder-decoder"


def test_an_unlisted_architecture_is_tried_with_all_known_names() -> None:
    assert {"fc2", "lin2", "out_proj", "attn.o"} <= set(bottleneck_places("camembert", True))
    assert position_tables("camembert") == {"position_embeddings", "embed_positions", "wpe"}


def test_every_model_of_the_configuration_belongs_to_an_architecture() -> None:
    files = {path.stem for path in (CONF / "model").glob("*.yaml")}
    listed = [group for entry in ARCHITECTURES.values() for group in entry.model_groups]
    assert sorted(listed) == sorted(files)


def test_examples_are_named_as_on_the_command_line() -> None:
    assert models_of_kind("encoder") == "model=roberta_base, roberta_large, bert_base or minilm"
    assert models_of_kind("decoder").startswith("GPT-2, LLaMA")
