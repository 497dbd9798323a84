"""PEFT's LoRA layers with a gate: equal to `DoRALinear`, and plain LoRA whenever it is written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TARGETS, batch, lora, tiny_base
from torch import Tensor, nn

from dynarank import BudgetSchedule, RankAllocator, add_dem_gradient, inject
from dynarank.integrations.peft import attach, finalize, gated_layers

peft = pytest.importorskip("peft")
KINDS = ("bert", "llama", "gpt2")
SCHEDULE = dict(init=6, target=3, total=16, warmup=0.1, final=0.4, interval=3)


def outputs(model: nn.Module, kind: str) -> Tensor:
    inputs = batch(kind, seed=9)
    del inputs["labels"]
    with torch.no_grad():
        return model.eval()(**inputs).logits


def train(model: Any, layers: Any, kind: str, steps: int, allocator: Any = None) -> Any:
    """Train with allocation and DEM; return the allocator."""
    allocator = allocator or RankAllocator(layers, BudgetSchedule(**SCHEDULE))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-2, weight_decay=0.0)
    attachment = allocator.attach(optimizer, eta=0.1)
    model.train()
    for step in range(steps):
        model(**batch(kind, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    attachment.remove()
    return allocator


def trained(kind: str, steps: int = 16, **settings: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = lora(kind, **settings)
    return model, train(model, attach(model), kind, steps)


def reload(folder: Path, kind: str) -> Any:
    return peft.PeftModel.from_pretrained(tiny_base(kind), str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_equal_to_the_base(kind: str) -> None:
    base = tiny_base(kind)
    expected = outputs(copy.deepcopy(base), kind)
    model = lora(kind, base)
    layers = attach(model, target=3, init=6)
    assert torch.equal(outputs(model, kind), expected)
    assert all(not layer.active().any() for layer in layers.values())
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum("lora_c" in name for name in trains) == len(layers)


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_is_that_of_the_own_layer(kind: str) -> None:
    own = tiny_base(kind)
    own.requires_grad_(False)
    gated = lora(kind, copy.deepcopy(own))
    views = attach(gated)
    layers = inject(own, TARGETS[kind], r=6, alpha=8)
    assert list(views) == list(layers)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_A.copy_(views[name].lora_A)
            layer.lora_B.copy_(views[name].lora_B)
    gated.requires_grad_(False)
    for view in views.values():
        for factor in (view.lora_A, view.lora_B, view.lora_c):
            factor.requires_grad_(True)
    sides = []
    for model, members in ((own, layers), (gated, views)):
        allocator = RankAllocator(members, BudgetSchedule(**SCHEDULE))
        parameters = [p for p in model.parameters() if p.requires_grad]
        # Plain descent: Adam would magnify rounding where gradients are nearly zero.
        sides.append((model, allocator, torch.optim.SGD(parameters, lr=0.5)))
    for step in range(16):
        losses = []
        for model, allocator, optimizer in sides:
            loss = model(**batch(kind, seed=step)).loss
            loss.backward()
            add_dem_gradient(allocator.layers, 0.1)
            optimizer.step()
            allocator.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
        first, second = sides[0][1], sides[1][1]
        torch.testing.assert_close(first.ema, second.ema, rtol=1e-3, atol=1e-5)
        for layer, view in zip(first.layers, second.layers, strict=True):
            assert torch.equal(layer.mask, view.mask)
    assert first.ranks() == second.ranks()
    assert first.frozen
    assert sum(first.ranks().values()) == 3 * len(layers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_any_moment_is_plain_lora(kind: str, tmp_path: Path) -> None:
    model, allocator = trained(kind, steps=7)
    assert not allocator.frozen
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(reload(tmp_path, kind), kind), outputs(model, kind))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_finalized_model_is_plain_lora_at_budget(kind: str, tmp_path: Path) -> None:
    model, allocator = trained(kind)
    before = outputs(model, kind)
    ranks = finalize(model)
    assert ranks == allocator.ranks()
    assert sum(ranks.values()) == 3 * len(ranks)
    torch.testing.assert_close(outputs(model, kind), before, rtol=1e-5, atol=1e-5)
    names = list(model.state_dict())
    assert not [name for name in names if "lora_c" in name or "parametrizations" in name]
    model.save_pretrained(tmp_path)
    loaded = reload(tmp_path, kind)
    assert torch.equal(outputs(loaded, kind), outputs(model, kind))
    config = loaded.peft_config["default"]
    assert config.r == config.lora_alpha == max(ranks.values())
    assert set(config.rank_pattern.values()) == {rank for rank in ranks.values() if rank}
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(outputs(merged, kind), before, rtol=1e-4, atol=1e-5)


def test_layers_of_rank_0_are_unwrapped(tmp_path: Path) -> None:
    model, _ = trained("bert", steps=3)
    layers = gated_layers(model)
    first = next(iter(layers))
    with torch.no_grad():
        layers[first].lora_c.zero_()
    before = outputs(model, "bert")
    ranks = finalize(model, over_budget=True)
    assert ranks[first] == 0
    assert type(model.get_base_model().get_submodule(first)) is nn.Linear
    torch.testing.assert_close(outputs(model, "bert"), before, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(reload(tmp_path, "bert"), "bert"), outputs(model, "bert"))


def test_modules_to_save_are_trained_and_kept(tmp_path: Path) -> None:
    model, _ = trained("bert", modules_to_save=["classifier"])
    head = model.get_base_model().classifier.modules_to_save["default"].weight
    assert not torch.equal(head, tiny_base("bert").classifier.weight)
    finalize(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(reload(tmp_path, "bert"), "bert"), outputs(model, "bert"))


def test_disable_adapter_gives_the_base() -> None:
    model, _ = trained("llama", steps=5)
    expected = outputs(tiny_base("llama"), "llama")
    with model.disable_adapter():
        assert torch.equal(outputs(model, "llama"), expected)
    assert not torch.equal(outputs(model, "llama"), expected)


def test_merging_before_the_end_gives_the_same_outputs() -> None:
    model, _ = trained("gpt2", steps=5)
    before = outputs(model, "gpt2")
    model.merge_adapter()
    torch.testing.assert_close(outputs(model, "gpt2"), before, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(outputs(model, "gpt2"), before, rtol=1e-4, atol=1e-5)


def test_two_adapters_are_allocated_one_by_one(tmp_path: Path) -> None:
    model, _ = trained("bert")
    model.add_adapter("second", peft.LoraConfig(r=4, target_modules=["query"]))
    model.set_adapter("second")
    second = attach(model)
    assert len(second) == 2
    assert {layer.r for layer in second.values()} == {4}
    kept = BudgetSchedule(init=4, target=1, total=8, final=0.3, interval=2)
    train(model, second, "bert", 8, RankAllocator(second, kept))
    # One of the second's layers is emptied: the first adapter stays in it.
    name = next(iter(second))
    with torch.no_grad():
        second[name].lora_c.zero_()
        other = second[list(second)[1]]
        other.mask.fill_(True)
        other.lora_c.fill_(0.5)
    by_second = outputs(model, "bert")
    model.set_adapter("default")
    by_first = outputs(model, "bert")
    finalize(model, adapter="second", over_budget=True)
    torch.testing.assert_close(outputs(model, "bert"), by_first, rtol=1e-5, atol=1e-5)
    finalize(model, adapter="default")
    torch.testing.assert_close(outputs(model, "bert"), by_first, rtol=1e-5, atol=1e-5)
    model.set_adapter("second")
    torch.testing.assert_close(outputs(model, "bert"), by_second, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = reload(tmp_path / "second", "bert")
    torch.testing.assert_close(outputs(loaded, "bert"), by_second, rtol=1e-5, atol=1e-5)


def test_adapters_can_be_concatenated_after_the_end() -> None:
    model, _ = trained("llama")
    finalize(model)
    before = outputs(model, "llama")
    model.add_weighted_adapter(["default"], [1.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    torch.testing.assert_close(outputs(model, "llama"), before, rtol=1e-4, atol=1e-5)


def test_a_plain_adapter_is_loaded_into_a_gated_model(tmp_path: Path) -> None:
    model, _ = trained("bert", steps=7)
    model.save_pretrained(tmp_path)
    other = lora("bert")
    attach(other)
    other.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert torch.equal(outputs(other, "bert"), outputs(model, "bert"))


def test_a_trained_adapter_keeps_what_it_holds() -> None:
    model, _ = trained("bert")
    finalize(model)
    before = outputs(model, "bert")
    with pytest.raises(ValueError, match="start='lora'"):
        attach(model)
    attach(model, start="lora")
    assert torch.equal(outputs(model, "bert"), before)


def test_narrow_factors_become_float32() -> None:
    base = tiny_base("llama").to(torch.bfloat16)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"])
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    layers = attach(model)
    for layer in layers.values():
        dtypes = {layer.lora_A.dtype, layer.lora_B.dtype, layer.lora_c.dtype}
        assert dtypes == {torch.float32}
    assert outputs(model, "llama").dtype is torch.bfloat16


def test_what_is_refused() -> None:
    model = lora("bert")
    with pytest.raises(ValueError, match=r"LoraConfig\(r=4\)"):
        attach(model, init=4)
    with pytest.raises(ValueError, match="target = 9"):
        attach(model, target=9)
    with pytest.raises(ValueError, match="not attached"):
        finalize(model)
    layers = attach(model)
    with pytest.raises(ValueError, match="attached already"):
        attach(model)
    RankAllocator(layers, BudgetSchedule(**SCHEDULE))
    with pytest.raises(ValueError, match="the ranks are not final"):
        finalize(model)
    with pytest.raises(ValueError, match="every layer has rank 0"):
        finalize(model, over_budget=True)
    with pytest.raises(ValueError, match="DoraLinearVariant"):
        attach(lora("bert", use_dora=True))
    embedding = peft.LoraConfig(r=4, target_modules=["word_embeddings"])
    with pytest.raises(ValueError, match="embedding"):
        attach(peft.get_peft_model(tiny_base("bert"), embedding))
    with pytest.raises(ValueError, match="no LoRA layers"):
        attach(tiny_base("bert"))
