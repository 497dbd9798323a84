"""Allocate ranks on a PEFT model; what is saved needs PEFT alone.

    python examples/peft_model.py [--model HUB_ID_OR_FOLDER] [--steps 100] [--output adapter]

Without a model, a small LLaMA with random weights learns to go on with its own random text.
"""

from __future__ import annotations

import argparse

import peft
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dynarank.integrations.peft import DynaRankConfig, finalize, get_peft_model, make_allocator


def load_base(name: str | None) -> torch.nn.Module:
    """Return a model by its name, or a small one with random weights."""
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, num_attention_heads=4, num_key_value_heads=2, **sizes)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", default="adapter")
    options = parser.parse_args()

    config = DynaRankConfig(target=4, target_modules=["q_proj", "v_proj"], interval=10)
    model = get_peft_model(load_base(options.model), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    make_allocator(model, total=options.steps).attach(optimizer, eta=0.1)

    tokens = torch.randint(3, 64, (8, 16), generator=torch.Generator().manual_seed(0))
    for _ in range(options.steps):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ranks = finalize(model)
    print(f"{sum(ranks.values())} components in {len(ranks)} layers: {ranks}")
    model.save_pretrained(options.output)

    again = peft.PeftModel.from_pretrained(load_base(options.model), options.output)
    model.eval()
    with torch.no_grad():
        gap = (model(tokens).logits - again(tokens).logits).abs().max().item()
    print(f"PEFT alone gives the same outputs but for {gap:.1e}")


if __name__ == "__main__":
    main()
