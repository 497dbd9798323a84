"""The loss in parts against transformers' own, of models whose scores are more than a product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dynarank.tasks.token_loss import has_plain_head, lighten_loss, token_terms

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OTHERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "olmo2": {},  # not in the table of architectures, and plain
    "granite": {"logits_scaling": 8.0},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 0.5},
    "minicpm3": {"dim_model_base": 4},
    "modernbert-decoder": {},  # a layer of its own stands before the output layer
    "falcon_h1": {"lm_head_multiplier": 3.0, "mamba_d_ssm": 32, "mamba_n_heads": 4},
    "recurrent_gemma": {"logits_soft_cap": 0.5, "lru_width": 16, "num_hidden_layers": 3},
}
"""Architectures, and what changes their scores after the output layer, or before it."""
PLAIN = ("llama", "olmo2")


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    settings: PretrainedConfig = CONFIG_MAPPING[kind](**{**SIZES, **OTHERS[kind]})
    model = AutoModelForCausalLM.from_config(settings).eval()
    for parameter in model.parameters():  # scores that are large enough for a cap to be seen
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("kind", OTHERS)
def test_the_loss_is_transformers_own(kind: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    model = tiny(kind)
    tokens = torch.tensor([[5, 9, 33, 41, 7, 12], [8, 8, 21, 3, 59, 4]])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with torch.no_grad():
        wanted = model(**inputs, labels=tokens).loss
    terms = token_terms(model, inputs, tokens)
    torch.testing.assert_close(-terms.log_likelihood.mean(), wanted)
    lighten_loss(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, labels=tokens).loss, wanted)
    assert has_plain_head(model) == (kind in PLAIN)


def test_to_look_at_a_model_leaves_its_modes_as_they_are() -> None:
    model = tiny("olmo2")
    model.train()
    model.get_output_embeddings().eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    assert has_plain_head(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
