"""Every known architecture: a step trains it, and PEFT alone loads what is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from architecture_configs import CASES, CONFIGS, IMAGES, WORDS, auto_class, head_modules

from dynarank.adapters.inject import adapter_layers
from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.methods import build_method
from dynarank.methods.dora_config import DoRAConfig
from dynarank.pretrained.architectures import ARCHITECTURES
from dynarank.pretrained.internals import model_loader

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def build(kind: str, index: int) -> Any:
    """A two-layer model with weights."""
    family = auto_class(kind)
    of_texts = {} if family == IMAGES else WORDS | IDS
    config = transformers.AutoConfig.for_model(kind, **(CONFIGS[kind][index] | of_texts))
    loader = model_loader(family, config)
    torch.manual_seed(0)
    return getattr(loader, "from_config", loader)(config).eval()


def batch_for(kind: str, model: Any) -> dict[str, torch.Tensor]:
    """Two rows, with labels."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1])
    if kind == "siglip2":  # its images come as patches
        patches = torch.randn(2, 4, 48, generator=draw)
        sizes = torch.tensor([[2, 2], [2, 2]])
        mask = torch.ones(2, 4, dtype=torch.long)
        return {
            "pixel_values": patches,
            "spatial_shapes": sizes,
            "pixel_attention_mask": mask,
            "labels": labels,
        }
    if auto_class(kind) == IMAGES:
        vision = getattr(model.config, "vision_config", model.config)
        size = vision.image_size
        pixels = torch.randn(2, vision.num_channels, size, size, generator=draw)
        return {"pixel_values": pixels, "labels": labels}
    ids = torch.randint(3, 12, (2, 6), generator=draw)
    ids[:, -1] = 2  # BART's and T5's kind read a text at its end
    if auto_class(kind) == "AutoModelForSeq2SeqLM":
        return {"input_ids": ids, "labels": ids}
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize(("kind", "index"), CASES, ids=[f"{kind}-{index}" for kind, index in CASES])
def test_a_step_trains_and_peft_alone_loads_the_export(
    kind: str, index: int, tmp_path: Path
) -> None:
    model = build(kind, index)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = head_modules(model) if auto_class(kind) != "AutoModelForSeq2SeqLM" else []
    head = [name for name in head if any(True for _ in model.get_submodule(name).parameters())]
    method = build_method(DoRAConfig(name="dora"), BudgetConfig(target=2), DemConfig())
    adapted = method.adapt(model, list(ARCHITECTURES[kind].targets), head)
    batch = batch_for(kind, model)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    adapted(**batch).loss.backward()
    idle = [
        name
        for name, parameter in adapted.named_parameters()
        if name.endswith("lora_c") and (parameter.grad is None or not parameter.grad.any())
    ]
    assert not idle, "these adapters do nothing for the loss"
    optimizer.step()
    with torch.no_grad():
        for layer in adapter_layers(adapted).values():
            layer.lora_c.add_(1.0)  # so large an update that no output could hide it
        ours = adapted(**batch).logits
    method.export(tmp_path, "base", None)

    fresh = build(kind, index)
    fresh.load_state_dict(weights)
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, ours, atol=1e-5, rtol=1e-4)
        base = loaded.unload()(**batch).logits
    assert not torch.allclose(base, ours, atol=1e-5)
