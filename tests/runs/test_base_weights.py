"""Updates of weights that two modules share, as a tied output layer and the embeddings do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny import tiny_t5
from transformers import LlamaConfig, LlamaForCausalLM, T5ForConditionalGeneration

from dynarank.errors import UserError
from dynarank.runs.base_weights import fold_if_exact, shared_weights, untie_to_merge

IDS = torch.tensor([[3, 5, 7, 9], [4, 4, 8, 2]])


def adapted(model: Any, *targets: str) -> Any:
    """Return a model with a LoRA adapter whose update is not zero."""
    adapter = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=list(targets)))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape))
    return adapter.eval()


def llama(tied: bool) -> Any:
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 16}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_output_layer_predicts_as_it_was_trained(tied: bool) -> None:
    model = adapted(llama(tied), "q_proj", "lm_head")
    expected = logits(model)
    assert shared_weights(model) == ({"lm_head": "model.embed_tokens"} if tied else {})
    folded = fold_if_exact(model)
    torch.testing.assert_close(logits(folded), expected, rtol=1e-5, atol=1e-5)
    assert tied == any("lora" in name for name, _ in folded.named_parameters())


def test_a_tied_output_layer_is_merged_into_a_weight_of_its_own(tmp_path: Path) -> None:
    model = adapted(llama(tied=True), "q_proj", "lm_head")
    expected = logits(model)
    (note,) = untie_to_merge(model)
    assert note.startswith("lm_head has a weight of its own in the merged model")
    model.merge_and_unload().save_pretrained(tmp_path)
    merged = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)


def test_where_nothing_is_shared_nothing_is_untied() -> None:
    model = adapted(llama(tied=True), "q_proj")
    assert untie_to_merge(model) == []
    assert model.config.tie_word_embeddings


def test_a_model_that_computes_otherwise_when_untied_is_refused() -> None:
    model = adapted(T5ForConditionalGeneration(tiny_t5(tie_word_embeddings=True)), "q", "lm_head")
    with pytest.raises(UserError, match=r"lm_head was trained, and shares its weight with shared"):
        untie_to_merge(model)
