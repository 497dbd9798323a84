"""Gates on PEFT's LoRA layers: as DoRALinear step by step, and plain LoRA for everybody else."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from door_models import MODELS, TARGETS, batch, llama

from dynarank.adapters.inject import inject, mark_trainable
from dynarank.adapters.linears import keep_differentiable
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.dem import dem_penalty
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.integrations.gate import GatedLayer
from dynarank.integrations.peft import (
    DynaRankConfig,
    attach,
    finalize,
    gated_layers,
    get_peft_model,
    make_allocator,
)
from dynarank.integrations.settings import AllocationSettings

R = 4
STEPS = 12


def config(kind: str, **changes: Any) -> peft.LoraConfig:
    settings = {"r": R, "lora_alpha": 6, "target_modules": TARGETS[kind]}
    if kind == "gpt2":
        settings["fan_in_fan_out"] = True
    if kind == "bert":
        settings["modules_to_save"] = ["classifier"]
    return peft.LoraConfig(**{**settings, **changes})


def schedule() -> BudgetSchedule:
    return BudgetSchedule(init=R, target=2, total=STEPS, warmup=0.1, final=0.3, interval=2)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(model: Any, allocator: RankAllocator, kind: str, steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.AdamW(trained_parameters(model), lr=1e-2, weight_decay=0.0)
    allocator.attach(optimizer, eta=0.1)
    losses = []
    for _ in range(steps):
        loss = model(**batch(kind)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model: Any, kind: str) -> torch.Tensor:
    return model.eval()(input_ids=batch(kind)["input_ids"]).logits


def loaded(kind: str, folder: Path) -> Any:
    """The adapter on a fresh base model, by PEFT alone."""
    return peft.PeftModel.from_pretrained(MODELS[kind](), str(folder))


def trained(kind: str = "llama") -> tuple[Any, RankAllocator]:
    model = peft.get_peft_model(MODELS[kind](), config(kind))
    allocator = RankAllocator(attach(model), schedule())
    train(model, allocator, kind)
    return model, allocator


@pytest.mark.parametrize("kind", MODELS)
def test_scores_masks_and_losses_are_those_of_the_own_layer(kind: str) -> None:
    own = MODELS[kind]()
    theirs = peft.get_peft_model(MODELS[kind](), config(kind, modules_to_save=None))
    own_layers = inject(own, TARGETS[kind], r=R, alpha=6)
    gated = attach(theirs)
    assert list(gated) == list(own_layers)
    mark_trainable(own)
    with torch.no_grad():
        for name, layer in own_layers.items():
            gated[name].lora_A.copy_(layer.lora_A)
            gated[name].lora_B.copy_(layer.lora_B)
    pairs = []
    for model, layers in ((own, own_layers), (theirs, gated)):
        allocator = RankAllocator(layers, schedule())
        optimizer = torch.optim.AdamW(trained_parameters(model), lr=1e-2, weight_decay=0.0)
        allocator.attach(optimizer, eta=0.1)
        pairs.append((model.train(), allocator, optimizer))
    for _ in range(STEPS):
        losses = []
        for model, _allocator, optimizer in pairs:
            loss = model(**batch(kind)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
        first, second = pairs[0][1], pairs[1][1]
        torch.testing.assert_close(first.ema, second.ema, rtol=1e-3, atol=1e-5)
        assert first.ranks() == second.ranks()
    torch.testing.assert_close(dem_penalty(own_layers), dem_penalty(gated), rtol=1e-4, atol=1e-6)
    assert pairs[1][1].frozen
    assert sum(pairs[1][1].ranks().values()) == 2 * len(gated)


@pytest.mark.parametrize("kind", MODELS)
def test_it_starts_equal_to_the_base_and_every_checkpoint_is_plain_lora(
    kind: str, tmp_path: Path
) -> None:
    base = MODELS[kind]()
    before = logits(base, kind)
    model = peft.get_peft_model(base, config(kind))
    allocator = RankAllocator(attach(model), schedule())
    assert torch.equal(logits(model, kind), before)

    model.train()
    train(model, allocator, kind, steps=4)
    assert not allocator.frozen
    model.save_pretrained(str(tmp_path / "middle"))
    assert torch.equal(logits(loaded(kind, tmp_path / "middle"), kind), logits(model, kind))

    model.train()
    train(model, allocator, kind, steps=STEPS - 4)
    after = logits(model, kind)
    with model.disable_adapter():
        if kind != "bert":  # whose classifier is trained, too, and is not part of the adapter
            assert torch.equal(logits(model, kind), before)
    ranks = finalize(model)
    assert sum(ranks.values()) == 2 * len(ranks)
    torch.testing.assert_close(logits(model, kind), after, rtol=0, atol=1e-6)
    model.save_pretrained(str(tmp_path / "end"))
    torch.testing.assert_close(
        logits(loaded(kind, tmp_path / "end"), kind), after, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(logits(model.merge_and_unload(), kind), after, rtol=0, atol=1e-5)


def test_a_gated_adapter_loads_what_was_saved_of_it(tmp_path: Path) -> None:
    model, _ = trained()
    after = logits(model, "llama")
    model.save_pretrained(str(tmp_path))
    fresh = peft.get_peft_model(MODELS["llama"](), config("llama"))
    attach(fresh)
    fresh.load_adapter(str(tmp_path), "default")
    torch.testing.assert_close(logits(fresh, "llama"), after, rtol=0, atol=0)


def test_weights_from_before_the_freeze_are_over_the_budget() -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    allocator = RankAllocator(attach(model), schedule())
    train(model, allocator, "llama", steps=2)
    early = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, allocator, "llama", steps=STEPS - 2)
    late = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(early)  # as a Trainer does that tests its best checkpoint
    with pytest.raises(ValueError, match=r"were frozen with 12: .*over_budget=True"):
        finalize(model)
    model.load_state_dict(late)
    assert sum(finalize(model).values()) == 12


@pytest.mark.parametrize(
    "wrapped",
    [lambda model: torch.compile(model, backend="eager"), nn.DataParallel],
    ids=["compiled", "parallel"],
)
def test_a_wrapper_around_the_model_leaves_no_trace_in_the_adapter(
    wrapped: Any, tmp_path: Path
) -> None:
    """Its name would stand before all others, and PEFT would find none of them."""
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    outside = wrapped(model)
    layers = attach(outside, target=2)
    assert list(layers) == list(gated_layers(model)) == list(gated_layers(outside))
    train(model, RankAllocator(layers, schedule()), "llama")
    before = logits(model, "llama")
    ranks = finalize(outside)
    assert list(ranks) == list(layers)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(MODELS["llama"](), str(tmp_path))
    torch.testing.assert_close(logits(loaded, "llama"), before, rtol=1e-5, atol=1e-5)


def test_a_model_of_which_a_part_is_pefts_is_not_half_finalized() -> None:
    model = get_peft_model(MODELS["llama"](), DynaRankConfig(target=2, start="lora"))
    outside = nn.ModuleDict({"policy": model})
    with pytest.raises(ValueError, match=r"ModuleDict is no model of PEFT.* its part 'policy'"):
        finalize(outside)
    assert len(gated_layers(model)) > 0
    assert sum(finalize(outside["policy"]).values()) > 0


def test_it_needs_no_dynarank_in_a_fresh_process(tmp_path: Path) -> None:
    model, _ = trained()
    finalize(model)
    model.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    torch.save(logits(model, "llama"), tmp_path / "logits.pt")
    program = f"""
import sys
sys.modules["dynarank"] = None
sys.path.insert(0, {str(Path(__file__).parent)!r})
import peft, torch
from door_models import batch, llama
model = peft.PeftModel.from_pretrained(llama(), {str(tmp_path)!r}).eval()
with torch.no_grad():
    got = model(input_ids=batch("llama")["input_ids"]).logits
torch.testing.assert_close(got, torch.load({str(tmp_path / "logits.pt")!r}), rtol=0, atol=1e-6)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_several_adapters_and_their_combinations() -> None:
    model, _ = trained()
    model.add_adapter("second", config("llama", r=3))
    model.set_adapter("second")
    layers = attach(model, adapter="second", start="lora")
    assert all(layer.adapter == "second" and layer.r == 3 for layer in layers.values())
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B.normal_()
    second = logits(model, "llama")
    with pytest.raises(ValueError, match="several adapters"):
        gated_layers(model)
    finalize(model, "default")
    assert torch.equal(logits(model, "llama"), second)
    finalize(model, "second")
    names, weights = ["default", "second"], [0.5, 0.25]
    model.add_weighted_adapter(names, weights, "both", combination_type="cat")
    model.add_weighted_adapter(names, weights, "also", combination_type="svd", svd_rank=8)
    target = model.base_model.model.model.layers[0].mlp.down_proj
    wanted = sum(
        weight * target.get_delta_weight(key)
        for key, weight in (("default", 0.5), ("second", 0.25))
        if key in target.lora_A
    )
    torch.testing.assert_close(target.get_delta_weight("both"), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target.get_delta_weight("also"), wanted, rtol=1e-3, atol=1e-4)


def test_gated_adapters_can_be_combined_before_they_are_final() -> None:
    model, _ = trained()
    model.add_adapter("second", config("llama", init_lora_weights=False))
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "both", combination_type="cat")
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    wanted = layer.get_delta_weight("default") + layer.get_delta_weight("second")
    torch.testing.assert_close(layer.get_delta_weight("both"), wanted, rtol=1e-4, atol=1e-6)


def test_a_layer_of_rank_zero_loses_the_adapter_and_keeps_others() -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    layers = attach(model)
    with torch.no_grad():
        for index, layer in enumerate(layers.values()):
            layer.lora_c.fill_(0.5 if index else 0.0)
    after = logits(model, "llama")
    ranks = finalize(model)
    first = next(iter(ranks))
    assert ranks[first] == 0
    assert isinstance(model.get_base_model().get_submodule(first), nn.Linear)
    assert not hasattr(model.get_base_model().get_submodule(first), "lora_A")
    torch.testing.assert_close(logits(model, "llama"), after, rtol=0, atol=1e-6)


def test_names_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    def base() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)))

    model = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["0"]))
    layers = attach(model)
    assert list(layers) == ["0", "1.0"]
    with torch.no_grad():
        layers["0"].lora_c.fill_(1.0)
    x = torch.randn(3, 8)
    after = model(x)
    assert finalize(model) == {"0": 2, "1.0": 0}
    model.save_pretrained(str(tmp_path))
    again = peft.PeftModel.from_pretrained(base(), str(tmp_path))
    torch.testing.assert_close(again(x), after, rtol=0, atol=1e-6)


def test_get_peft_model_takes_the_settings_and_saves_none_of_them(tmp_path: Path) -> None:
    settings = DynaRankConfig(
        target=2, target_modules=TARGETS["llama"], interval=2, use_rslora=True
    )
    assert settings.r == 3
    model = get_peft_model(MODELS["llama"](), settings)
    allocator = make_allocator(model, total=STEPS)
    assert (allocator.schedule.init, allocator.schedule.target) == (3, 2)
    train(model, allocator, "llama")
    after = logits(model, "llama")
    model.save_pretrained(str(tmp_path / "middle"))
    saved = json.loads((tmp_path / "middle" / "adapter_config.json").read_text())
    assert saved.keys() == peft.LoraConfig().to_dict().keys() | {"auto_mapping", "peft_version"}
    assert settings.to_dict().keys() == peft.LoraConfig().to_dict().keys()
    finalize(model)
    model.save_pretrained(str(tmp_path / "end"))
    for part in ("middle", "end"):
        got = logits(loaded("llama", tmp_path / part), "llama")
        torch.testing.assert_close(got, after, rtol=0, atol=1e-6)


def test_transformers_own_add_adapter_is_a_way_in() -> None:
    model = MODELS["llama"]()
    model.add_adapter(config("llama"), adapter_name="mine")
    layers = attach(model, target=2)
    train(model, make_allocator(model, total=STEPS), "llama")
    after = logits(model, "llama")
    assert finalize(model, over_budget=False).keys() == layers.keys()
    torch.testing.assert_close(logits(model, "llama"), after, rtol=0, atol=1e-6)


def test_start_lora_keeps_a_trained_adapter() -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama", init_lora_weights=False))
    before = logits(model, "llama")
    with pytest.raises(ValueError, match="start='lora'"):
        attach(model)
    attach(model, start="lora")
    assert torch.equal(logits(model, "llama"), before)


def train_to_the_end(model: nn.Module, layers: dict[str, Any]) -> Any:
    """Train with the settings that the gates remember; return the allocator."""
    optimizer = torch.optim.AdamW(trained_parameters(model), lr=5e-3)
    allocator = make_allocator(model, total=STEPS)
    next(iter(layers.values())).gate.settings.attach(allocator, optimizer)
    for _ in range(STEPS):
        model(**batch("llama")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return allocator


def assert_unit_directions(layers: dict[str, Any]) -> None:
    for layer in layers.values():
        kept = layer.lora_A[layer.mask]
        torch.testing.assert_close(kept @ kept.T, torch.eye(len(kept)), atol=0.1, rtol=0)


def test_an_orthogonal_start_holds_through_training_and_is_plain_lora_at_the_end() -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    before = logits(model, "llama")
    layers = attach(model, target=2, start="orthogonal", orthogonality=0.5, eta=0.0)
    torch.testing.assert_close(logits(model, "llama"), before, atol=0, rtol=0)
    train_to_the_end(model, layers)
    assert_unit_directions(layers)
    trained_logits = logits(model, "llama")
    finalize(model)
    torch.testing.assert_close(logits(model, "llama"), trained_logits, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="start='orthogonal' would lose"):
        attach(model, target=1, start="orthogonal")


def test_an_orthogonal_start_of_A_holds_and_leaves_the_size_in_B() -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    before = logits(model, "llama")
    settings = {"eta": 0.0, "score": "fisher", "orthogonality": 0.5}
    layers = attach(model, target=2, start="orthogonal_A", **settings)
    torch.testing.assert_close(logits(model, "llama"), before, atol=0, rtol=0)
    model.set_adapter("default")  # it lets all parameters of the adapter train
    allocator = train_to_the_end(model, layers)
    assert_unit_directions(layers)
    assert all(layer.lora_c[layer.mask].eq(1).all() for layer in layers.values())
    # B has grown from zero, and is not pulled to length one.
    lengths = torch.cat([layer.lora_B.norm(dim=0)[layer.mask] for layer in layers.values()])
    assert lengths.min() > 0
    assert lengths.max() < 0.5
    # Where c is fixed nothing could return: what was pruned must not take a place in the budget.
    assert sum(allocator.ranks().values()) == 2 * len(layers)


def test_a_fixed_c_lets_nothing_return_in_an_adapter_that_is_not_active_yet() -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    attach(model, target=2, start="orthogonal_A")
    model.add_adapter("other", config("llama"))
    model.set_adapter("other")
    attach(model, target=2, adapter="other")
    model.set_adapter("default")
    assert not make_allocator(model, total=10, adapter="default").regrow
    model.set_adapter("other")
    assert not make_allocator(model, total=10, adapter="default").regrow
    model.set_adapter("default")
    assert make_allocator(model, total=10, adapter="other").regrow


def test_a_narrow_adapter_becomes_float32() -> None:
    base = MODELS["llama"]().bfloat16()
    model = peft.get_peft_model(base, config("llama"), autocast_adapter_dtype=False)
    for layer in attach(model).values():
        assert {layer.lora_A.dtype, layer.lora_B.dtype, layer.lora_c.dtype} == {torch.float32}


@pytest.mark.parametrize("first", [0, 1])
def test_a_copy_and_its_original_are_finalized_apart(first: int) -> None:
    model, _ = trained()
    models = [model, copy.deepcopy(model)]
    before = logits(model, "llama")
    finalize(models[first])
    assert torch.equal(logits(models[1 - first], "llama"), before)
    finalize(models[1 - first])
    for either in models:
        torch.testing.assert_close(logits(either, "llama"), before, rtol=0, atol=1e-6)
        down = either.get_base_model().model.layers[0].mlp.down_proj
        assert type(down.lora_A["default"]) is nn.Linear


def test_factors_stay_wide_where_the_model_becomes_narrow() -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    layers = attach(model)
    for layer in layers.values():
        layer.lora_c.data.fill_(1 / 3)
    before = {name: layer.gated_A() for name, layer in layers.items()}
    for narrow in (model.half, model.bfloat16, copy.deepcopy(model).half):
        narrowed = narrow()
        for name, layer in gated_layers(narrowed).items():
            assert {layer.lora_A.dtype, layer.lora_B.dtype, layer.lora_c.dtype} == {torch.float32}
            assert torch.equal(layer.gated_A(), before[name])
    assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    model(**batch("llama")).loss.backward()
    assert all(bool(layer.lora_c.grad.any()) for layer in layers.values())
    finalize(model)
    down = model.bfloat16().get_base_model().model.layers[0].mlp.down_proj
    assert down.lora_A["default"].weight.dtype == torch.bfloat16  # plain LoRA, as any other


@pytest.mark.parametrize("cost_aware", [False, True])
def test_a_budget_of_nothing_is_refused_before_training(cost_aware: bool) -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    layers = attach(model, target=0.05, score="absolute", cost_aware=cost_aware)
    with pytest.raises(ValueError, match=r"target = 0\.05: over 6 layers.*Give target = 0\.1"):
        make_allocator(model, total=10)
    enough = AllocationSettings(target=0.17, score="absolute", cost_aware=cost_aware)
    allocator = enough.allocator(layers, total=10)
    assert int(allocator.prune(allocator.allowance(10)).sum()) == 1


def test_a_score_that_cannot_tell_layers_apart_is_warned_of() -> None:
    layers = inject(MODELS["llama"](), TARGETS["llama"], r=1)
    with pytest.warns(UserWarning, match="score = 'relative': of one component a layer"):
        AllocationSettings(target=0.5).allocator(layers, total=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AllocationSettings(target=0.5, score="fisher").allocator(layers, total=10)


def test_refusals_name_what_is_wrong_and_change_nothing() -> None:
    with pytest.raises(ValueError, match="no LoRA layers"):
        attach(MODELS["llama"](), target=2)
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("target = 5", {"target": 5}),
        ("no adapter 'defalt'.*'default'", {"adapter": "defalt"}),
        ("start = 'svd'", {"start": "svd"}),
        (
            "score = 'sensitivity' needs.*score='fisher'",
            {"target": 2, "score": "sensitivity", "start": "orthogonal_A"},
        ),
        ("init = 8.*r = 4", {"target": 2, "init": 8}),
        ("intervall is no setting.*'interval'", {"target": 2, "intervall": 3}),
        ("interval = 0", {"target": 2, "interval": 0}),
        ("beta = 1", {"target": 2, "beta": 1}),
        ("min_rank = 3", {"target": 2, "min_rank": 3}),
        ("interval given without target", {"interval": 3}),
    ]
    for message, arguments in cases:
        with pytest.raises(ValueError, match=message):
            attach(model, **arguments)
    assert gated_layers(model) == {}
    with pytest.raises(ValueError, match="nothing to finalize"):
        finalize(model)
    with pytest.raises(ValueError, match="no gated layers"):
        make_allocator(model, total=10)
    allocator = RankAllocator(attach(model), schedule())
    with pytest.raises(ValueError, match="attached already"):
        attach(model)
    with pytest.raises(ValueError, match="no target"):
        make_allocator(model, total=10)
    allocator.step()
    with pytest.raises(ValueError, match="the ranks are not final"):
        finalize(model)
    with pytest.raises(ValueError, match="every layer has rank 0"):
        finalize(model, over_budget=True)
    assert len(gated_layers(model)) == len(allocator.layers)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"target_modules": ["embed_tokens"]}])
def test_layers_without_plain_matrices_are_refused(changes: dict[str, Any]) -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama", **changes))
    with pytest.raises(ValueError, match="no plain matrices"):
        attach(model)


def test_attention_that_pytorch_fuses_is_refused() -> None:
    base = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "fc": nn.Linear(8, 8)})
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["attn", "fc"]))
    with pytest.raises(ValueError, match=r"attn: .*MultiheadAttention.*target_modules"):
        attach(model)


@pytest.mark.parametrize("given", [{"target": 10, "r": 4}, {"target": math.inf}, {"target": -1}])
def test_a_config_refuses_a_target_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="target = "):
        DynaRankConfig(**given)
    assert DynaRankConfig(target=10, r=4, rank_pattern={"q_proj": 16}).r == 4


def test_pruning_to_the_start_is_warned_of() -> None:
    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    with pytest.warns(UserWarning, match="nothing will be pruned"):
        attach(model, target=R)


def test_coefficients_are_exempt_from_weight_decay_in_trainers() -> None:
    from transformers import Trainer

    model = peft.get_peft_model(MODELS["llama"](), config("llama"))
    attach(model)
    decayed = Trainer.get_decay_parameter_names(None, model)
    assert any("lora_A" in name for name in decayed)
    assert not any("lora_c" in name for name in decayed)


@pytest.mark.parametrize("four_bits", [True, False])
def test_quantized_bases(four_bits: bool, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    llama(size=64).save_pretrained(tmp_path / "base")
    how = BitsAndBytesConfig(
        load_in_4bit=four_bits, load_in_8bit=not four_bits, bnb_4bit_quant_type="nf4"
    )

    def base() -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=how, device_map="cpu"
        )
        keep_differentiable(model)  # else evaluation computes in bfloat16 on some CPUs
        return model

    model = peft.get_peft_model(base(), config("llama"))
    before = logits(model, "llama")
    allocator = RankAllocator(attach(model), schedule())
    assert torch.equal(logits(model, "llama"), before)
    model.train()
    train(model, allocator, "llama")
    after = logits(model, "llama")
    finalize(model)
    torch.testing.assert_close(logits(model, "llama"), after, rtol=0, atol=1e-5)
    model.save_pretrained(str(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(base(), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again, "llama"), after, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", ["attach", "inject"])
@pytest.mark.parametrize("evaluated_first", [True, False])
def test_gradients_pass_a_4_bit_base_after_an_evaluation(
    way: str, evaluated_first: bool, tmp_path: Path
) -> None:
    """bitsandbytes' layout for inference has no derivative, and would stay when training goes on.

    The gradients are compared with those on a plain model of the dequantized weights.
    """
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = llama(size=64)
    plain.save_pretrained(tmp_path)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how, device_map="cpu")
    if evaluated_first:
        logits(base, "llama")
    found = gradients_of_c(base, way)
    for name, weight in dequantized(base, bitsandbytes).items():
        plain.get_submodule(name).weight.data.copy_(weight)
    wanted = gradients_of_c(plain, way)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def gradients_of_c(model: nn.Module, way: str) -> dict[str, torch.Tensor | None]:
    """Adapt a model, evaluate it, and return the gradients of a step of training."""
    torch.manual_seed(3)
    if way == "inject":
        layers: dict[str, Any] = dict(inject(model, TARGETS["llama"], r=R))
        mark_trainable(model)
    else:
        layers = dict(attach(peft.get_peft_model(model, config("llama"))))
    for layer in layers.values():
        layer.lora_c.data.fill_(0.5)
    logits(model, "llama")
    model.train()(**batch("llama")).loss.backward()
    return {name: layer.lora_c.grad for name, layer in layers.items()}


def dequantized(model: nn.Module, bitsandbytes: Any) -> dict[str, torch.Tensor]:
    """Return the weights of the 4-bit layers by the names that they have without adapters."""
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            packed = module.weight
            plain_name = name.removesuffix(".base_layer").removesuffix(".base")
            weights[plain_name] = bitsandbytes.functional.dequantize_4bit(
                packed.data, packed.quant_state
            ).float()
    return weights


def test_views_of_one_layer_share_its_state() -> None:
    model = peft.get_peft_model(copy.deepcopy(MODELS["llama"]()), config("llama"))
    layers = attach(model)
    allocator = RankAllocator(layers, schedule())
    for layer in gated_layers(model).values():
        assert isinstance(layer, GatedLayer)
        assert layer.progress is allocator.progress
