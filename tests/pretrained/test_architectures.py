from __future__ import annotations

import re

import pytest
import torch
from architecture_configs import CASES, CONFIGS, auto_class, head_modules, of_family
from tiny import CONF
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from dynarank.adapters.inject import find_linears, inject
from dynarank.pretrained.architectures import (
    ARCHITECTURES,
    bottleneck_places,
    kind_of_model,
    models_of_kind,
    position_tables,
)
from dynarank.pretrained.internals import model_loader
from dynarank.pretrained.models import positions

NOT_ATTENTION_OR_FFN = re.compile(
    r"(^|\.)(pooler|embeddings|embeddings_project|embedding_hidden_mapping_in|downsample|"
    r"continuous_position_bias_mlp|vision_model\.head)(\.|$)"
)


def tiny(kind: str, index: int) -> nn.Module:
    """A two-layer model of the architecture, without memory for its weights."""
    family = auto_class(kind)
    config = AutoConfig.for_model(kind, **of_family(family), **CONFIGS[kind][index])
    loader = model_loader(family, config)
    with torch.device("meta"):
        return getattr(loader, "from_config", loader)(config)


def test_every_known_architecture_has_a_case() -> None:
    assert set(CONFIGS) == set(ARCHITECTURES)


@pytest.mark.parametrize(("kind", "index"), CASES, ids=[f"{kind}-{index}" for kind, index in CASES])
def test_all_of_attention_and_feed_forward_and_none_of_the_head(kind: str, index: int) -> None:
    model = tiny(kind, index)
    body = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not NOT_ATTENTION_OR_FFN.search(name)
    ]
    head = head_modules(model)
    body = [name for name in body if name.partition(".")[0] not in head]
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
    assert models_of_kind("decoder").startswith("model=smollm2 or GPT-2, LLaMA")
