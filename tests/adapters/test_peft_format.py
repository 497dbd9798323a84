from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from dynarank.adapters.adapter_checks import check_peft_adapter
from dynarank.adapters.folding import fold, merge
from dynarank.adapters.inject import adapter_layers, inject, mark_trainable
from dynarank.adapters.layer import DoRALinear
from dynarank.adapters.peft_format import write_peft_adapter
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.schedule import BudgetSchedule
from dynarank.pretrained.architectures import ARCHITECTURES

R = 3
TOKENS = torch.tensor([[5, 6, 7, 8], [9, 5, 4, 3]])


def mixed() -> nn.Sequential:
    """Both kinds of linear map."""
    torch.manual_seed(0)
    linears = {
        "first": nn.Linear(4, 6),
        "act": nn.Tanh(),
        "second": Conv1D(5, 6),
        "third": nn.Linear(5, 3, bias=False),
    }
    return nn.Sequential(OrderedDict(linears))


def train_to(layers: dict[str, DoRALinear], ranks: Sequence[int]) -> None:
    """Give the layers the ranks wanted; components go by mask and by c = 0, in turn."""
    draw = torch.Generator().manual_seed(1)
    for layer, rank in zip(layers.values(), ranks, strict=True):
        gone = torch.randperm(layer.r, generator=draw)[rank:]
        with torch.no_grad():
            layer.lora_c.copy_(0.5 + torch.rand(layer.r, generator=draw))
            for index, component in enumerate(gone):
                if index % 2:
                    layer.lora_c[component] = 0
                else:
                    layer.mask[component] = False


def bert(depth: int = 2) -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": depth,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    return BertForSequenceClassification(
        BertConfig(vocab_size=12, max_position_embeddings=8, **sizes)
    ).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=12, n_positions=8, n_embd=32, n_layer=2, n_head=2, pad_token_id=0
    )
    return GPT2ForSequenceClassification(config).eval()


# From 20 target modules on, PEFT replaces their names by shorter ones: the deep BERT has more.
MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bert": (bert, "classifier"),
    "deep bert": (partial(bert, depth=6), "classifier"),
    "gpt2": (gpt2, "score"),
}


@torch.no_grad()
def adapted(kind: str, ranks: Sequence[int] = (1, 0, 3, 2)) -> nn.Module:
    """Return the model with adapters of the ranks, in turn, and a head unlike the base's."""
    make, head = MODELS[kind]
    model = make()
    layers = inject(model, ARCHITECTURES[model.config.model_type].targets, r=R, exclude=[head])
    train_to(layers, [ranks[index % len(ranks)] for index in range(len(layers))])
    for parameter in model.get_submodule(head).parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("rank", range(R + 1))
@pytest.mark.parametrize("base", [nn.Linear(4, 6), Conv1D(6, 4)], ids=["linear", "conv1d"])
def test_fold_gives_the_layers_update(base: nn.Module, rank: int) -> None:
    layer = DoRALinear(copy.deepcopy(base), R, alpha=5.0)
    train_to({"layer": layer}, [rank])
    A, B = fold(layer)
    assert (A.shape, B.shape) == ((rank, 4), (6, rank))
    assert not A.requires_grad
    assert not B.requires_grad
    torch.testing.assert_close(B @ A, layer.delta_weight())
    A.fill_(9)
    assert not (layer.lora_A == 9).any()


def test_folded_factors_are_a_lora_on_the_base() -> None:
    layer = DoRALinear(nn.Linear(4, 6), R)
    train_to({"layer": layer}, [2])
    A, B = fold(layer)
    x = torch.randn(5, 4)
    torch.testing.assert_close(layer(x), layer.base(x) + x @ A.T @ B.T)


@pytest.mark.parametrize("ranks", [(3, 3, 3), (1, 2, 0), (0, 0, 0)], ids=str)
def test_merge_equals_the_adapted_model_without_adapters(ranks: tuple[int, ...]) -> None:
    model = mixed()
    train_to(inject(model, ["first", "second", "third"], R), ranks)
    x = torch.randn(5, 4)
    expected = model(x)
    assert merge(model) is model
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert not adapter_layers(model)
    assert [type(child) for child in model.children()] == [
        type(child) for child in mixed().children()
    ]
    assert set(model.state_dict()) == set(mixed().state_dict())


@pytest.mark.parametrize("kind", list(MODELS))
def test_merge_of_a_transformer(kind: str) -> None:
    model = adapted(kind)
    expected = logits(model)
    merged = merge(model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    plain = MODELS[kind][0]()
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)


def test_merge_of_a_single_layer_gives_its_base() -> None:
    layer = DoRALinear(nn.Linear(4, 6), R)
    train_to({"layer": layer}, [2])
    x = torch.randn(5, 4)
    expected = layer(x)
    merged = merge(layer)
    assert merged is layer.base
    torch.testing.assert_close(merged(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_merging_rank_zero_changes_no_bit(dtype: torch.dtype) -> None:
    model = mixed().to(dtype)
    with torch.no_grad():
        model.first.weight.copy_(torch.rand(6, 4, dtype=torch.float64))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inject(model, ["first", "second", "third"], R)
    for key, value in merge(model).state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, before[key])


def test_merge_refuses_a_quantized_weight_and_leaves_the_model_alone() -> None:
    model = mixed()
    layers = inject(model, ["first", "second", "third"], R)
    train_to(layers, [3, 3, 3])
    layers["third"].base.weight = nn.Parameter(
        torch.ones(3, 5, dtype=torch.int8), requires_grad=False
    )
    before = model.first.base.weight.clone()
    with pytest.raises(ValueError, match=r"third has a torch\.int8 weight"):
        merge(model)
    assert list(adapter_layers(model)) == ["first", "second", "third"]
    assert torch.equal(layers["first"].base.weight, before)


class PackedLinear(nn.Module):
    """As GPTQ's: integers in buffers, and no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 5, 3
        self.register_buffer("qweight", torch.zeros(1, 3, dtype=torch.int32))


@pytest.mark.parametrize(
    ("quantized", "words"),
    [
        (lambda base: PackedLinear(), "third has no plain weight"),
        (lambda base: base.to(torch.float8_e4m3fn), r"third has a torch\.float8_e4m3fn weight"),
    ],
    ids=["packed", "float8"],
)
def test_merge_refuses_weights_that_take_no_update(
    quantized: Callable[[nn.Module], nn.Module], words: str
) -> None:
    """A float8 weight is one of floating point, and yet is scaled by another tensor."""
    model = mixed()
    model.third = quantized(model.third)
    train_to(inject(model, ["first", "third"], R), [3, 3])
    before = model.first.base.weight.clone()
    with pytest.raises(ValueError, match=words):
        merge(model)
    assert list(adapter_layers(model)) == ["first", "third"]
    assert torch.equal(model.first.base.weight, before)


def test_merge_refuses_a_shared_weight_until_it_is_the_layers_own() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    layers = inject(model, ["1"], R)
    train_to(layers, [3])
    x = torch.randn(5, 4)
    expected = model(x)
    with pytest.raises(ValueError, match="1 shares its weight with 0, which merging would change"):
        merge(model)
    assert list(adapter_layers(model)) == ["1"]
    base = model.get_submodule("1").base
    assert isinstance(base, nn.Linear)
    base.weight = nn.Parameter(base.weight.detach().clone())
    torch.testing.assert_close(merge(model)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "compute",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        pytest.param(
            nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm")
        ),
    ],
    ids=["weight_norm", "spectral_norm", "older"],
)
def test_merge_refuses_a_weight_that_is_computed_at_each_call(
    compute: Callable[[nn.Module], nn.Module],
) -> None:
    """What is added to it would be gone at the next call."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    compute(model[1])
    train_to(inject(model, ["0", "1"], R), [3, 3])
    model.eval()
    x = torch.randn(5, 4)
    expected = model(x)
    with pytest.raises(ValueError, match="1 computes its weight from other tensors"):
        merge(model)
    assert torch.equal(model(x), expected)


def test_merge_takes_a_weight_that_was_computed() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(model[0])
    train_to(inject(model, ["0"], R), [3])
    x = torch.randn(5, 4)
    expected = model(x)
    base = model.get_submodule("0").base
    assert isinstance(base, nn.Module)
    nn.utils.parametrize.remove_parametrizations(base, "weight")
    torch.testing.assert_close(merge(model)(x), expected, rtol=1e-5, atol=1e-5)


def test_merge_refuses_a_module_that_is_used_without_its_adapter_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    model.append(model[0])  # the adapter stands in the first of its two places
    layers = inject(model, ["0"], R, exclude=["2"])
    train_to(layers, [3])
    with pytest.raises(ValueError, match="0 shares its weight with 2, which merging would change"):
        merge(model)
    model[2] = model[0]  # with its adapter, it may be used twice
    with pytest.raises(ValueError, match="0 and 2 are one adapter, and PEFT would load it at 0"):
        write_peft_adapter(model, tmp_path / "adapter", base="base")
    assert not (tmp_path / "adapter").exists()
    x = torch.randn(5, 4)
    expected = model(x)
    torch.testing.assert_close(merge(model)(x), expected, rtol=1e-5, atol=1e-5)
    assert not adapter_layers(model)


@pytest.mark.parametrize("kind", list(MODELS))
def test_peft_alone_loads_the_adapter_to_the_same_outputs(kind: str, tmp_path: Path) -> None:
    make, head = MODELS[kind]
    model = adapted(kind)
    expected, fresh = logits(model), make()
    assert (expected - logits(fresh)).abs().max() > 0.01
    ranks = write_peft_adapter(model, tmp_path, base="some/base", task_type="SEQ_CLS", head=[head])
    assert list(ranks) == list(adapter_layers(model))
    assert set(ranks.values()) == {0, 1, 2, 3}

    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    loaded_head = (
        loaded.base_model.model.get_submodule(head).modules_to_save["default"].state_dict()
    )
    trained_head = model.get_submodule(head).state_dict()
    assert set(loaded_head) == set(trained_head)
    assert all(torch.equal(loaded_head[key], value) for key, value in trained_head.items())


def test_a_head_that_holds_adapters_is_refused_before_training_and_before_writing(
    tmp_path: Path,
) -> None:
    model = mixed()
    train_to(inject(model, ["first", "third"], R), [3, 3])
    with pytest.raises(ValueError, match=r"third has an adapter .* exclude=\['third'\]"):
        mark_trainable(model, head=["third"])
    assert any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="third has an adapter"):
        write_peft_adapter(model, tmp_path / "a", base="some/base", head=["second", "third"])
    assert not (tmp_path / "a").exists()
    write_peft_adapter(model, tmp_path / "a", base="some/base", head=["second"])


@pytest.mark.parametrize("kind", list(MODELS))
def test_peft_gives_every_layer_its_own_rank_at_scale_one(kind: str, tmp_path: Path) -> None:
    make, head = MODELS[kind]
    ranks = write_peft_adapter(
        adapted(kind), tmp_path, base="some/base", task_type="SEQ_CLS", head=[head]
    )
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path)
    tuned = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in loaded.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert tuned == {name: (rank, 1.0) for name, rank in ranks.items() if rank}


def test_peft_merges_the_adapter_as_we_do(tmp_path: Path) -> None:
    model = adapted("gpt2")
    write_peft_adapter(model, tmp_path, base="some/base", task_type="SEQ_CLS", head=["score"])
    theirs = peft.PeftModel.from_pretrained(gpt2(), tmp_path).merge_and_unload().state_dict()
    ours = merge(model).state_dict()
    assert set(theirs) == set(ours)
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-6)


class Nested(nn.Module):
    """PEFT takes the first pattern that fits.

    One linear's whole name is the end of another's here, and sorts before it.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.self_attention = nn.ModuleDict({"output": nn.ModuleDict({"dense": nn.Linear(4, 4)})})
        self.output = nn.ModuleDict({"dense": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return self.output["dense"](self.self_attention["output"]["dense"](x).tanh())


@pytest.mark.parametrize("ranks", [(1, 3), (3, 1), (0, 2), (2, 0)], ids=str)
def test_names_that_end_in_one_another(ranks: tuple[int, int], tmp_path: Path) -> None:
    model = Nested()
    layers = inject(model, ["output.dense"], R)
    assert list(layers) == ["self_attention.output.dense", "output.dense"]
    train_to(layers, ranks)
    x = torch.randn(5, 4)
    assert write_peft_adapter(model, tmp_path, base="some/base") == dict(
        zip(layers, ranks, strict=True)
    )
    check_peft_adapter(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of layers that lack factors
        loaded = peft.PeftModel.from_pretrained(Nested(), tmp_path)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)
    adapted_ones = [name for name, module in loaded.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted_ones) == sum(rank > 0 for rank in ranks)


@pytest.mark.parametrize("kind", list(MODELS))
def test_adapter_config_says_what_was_kept(kind: str, tmp_path: Path) -> None:
    head = MODELS[kind][1]
    ranks = write_peft_adapter(
        adapted(kind), tmp_path, base="some/base", task_type="SEQ_CLS", head=[head]
    )
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    kept = {name: rank for name, rank in ranks.items() if rank}
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == sorted(kept.values())
    assert set(config["target_modules"]) == set(kept)
    assert config["modules_to_save"] == [head]
    assert config["base_model_name_or_path"] == "some/base"
    assert config["task_type"] == "SEQ_CLS"
    assert config["fan_in_fan_out"] is (kind == "gpt2")
    assert config["use_dora"] is False


@settings(deadline=None, max_examples=25, database=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=R, max_size=R), min_size=3, max_size=3),
    st.integers(0, 10_000),
)
def test_any_masks_survive_the_round_trip_through_a_file(
    masks: list[list[bool]], seed: int
) -> None:
    """PEFT, loading the file alone, gives the same outputs.

    Masks and zeros of c are drawn at random, in both kinds of linear map.
    """
    model = mixed()
    layers = inject(model, ["first", "second", "third"], R)
    draw = torch.Generator().manual_seed(seed)
    for layer, mask in zip(layers.values(), masks, strict=True):
        with torch.no_grad():
            layer.lora_c.copy_(
                torch.randn(R, generator=draw) * torch.randint(0, 2, (R,), generator=draw)
            )
            layer.mask.copy_(torch.tensor(mask))
    wanted = {name: int((layer.lora_c.ne(0) & layer.mask).sum()) for name, layer in layers.items()}
    x = torch.randn(5, 4, generator=draw)
    expected = model(x)
    with tempfile.TemporaryDirectory() as folder:
        if not any(wanted.values()):
            with pytest.raises(ValueError, match="every layer has rank 0"):
                write_peft_adapter(model, folder, base="some/base")
            return
        assert write_peft_adapter(model, folder, base="some/base") == wanted
        check_peft_adapter(Path(folder))
        loaded = peft.PeftModel.from_pretrained(mixed(), folder)
    torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-5)


def test_every_layer_at_rank_zero_is_refused(tmp_path: Path) -> None:
    model = adapted("bert", ranks=[0])
    with pytest.raises(ValueError, match="every layer has rank 0"):
        write_peft_adapter(model, tmp_path / "adapter", base="some/base", head=["classifier"])
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_a_model_without_adapters_is_not_said_to_have_ranks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the Sequential has no adapters of `inject`"):
        write_peft_adapter(mixed(), tmp_path / "adapter", base="base")


def test_the_base_may_be_a_path(tmp_path: Path) -> None:
    model = mixed()
    train_to(inject(model, ["first"], r=2.0), [2])  # type: ignore[arg-type]
    write_peft_adapter(model, tmp_path, base=Path("models") / "base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(Path("models/base")), 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "where", ["bert.encoder.layer.1.output.dense.lora_B", "classifier.weight", "classifier.bias"]
)
def test_values_that_are_not_finite_are_refused(bad: float, where: str, tmp_path: Path) -> None:
    model = adapted("bert", ranks=[3])
    with torch.no_grad():
        model.get_parameter(where).view(-1)[0] = bad
    with pytest.raises(ValueError, match="not finite") as error:
        write_peft_adapter(model, tmp_path / "adapter", base="some/base", head=["classifier"])
    assert where in str(error.value)
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_a_bfloat16_models_adapter_is_written_in_float32(tmp_path: Path) -> None:
    model = adapted("bert").bfloat16()
    name, layer = next(iter(adapter_layers(model).items()))
    write_peft_adapter(model, tmp_path, base="some/base", task_type="SEQ_CLS", head=["classifier"])
    tensors = peft.utils.load_peft_weights(str(tmp_path), device="cpu")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert torch.equal(
        tensors[f"base_model.model.{name}.lora_A.weight"], layer.lora_A[layer.active()]
    )


def test_ranks_that_are_not_final_are_refused_unless_asked_for(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    layers = inject(model, ["0", "1"], r=R)
    train_to(layers, [R, R])
    write_peft_adapter(model, tmp_path / "fixed", "base")  # no allocator: a fixed rank
    schedule = BudgetSchedule(init=R, target=1, total=4, warmup=0.0, interval=1)
    allocator = RankAllocator(layers, schedule)
    for step in range(2):
        message = rf"stepped {step} times.* at step 2\b.*over_budget"
        with pytest.raises(ValueError, match=message):
            write_peft_adapter(model, tmp_path / "no", "base")
        with pytest.raises(ValueError, match=message):
            merge(model)
        assert not (tmp_path / "no").exists()
        if step == 0:
            ranks = write_peft_adapter(model, tmp_path / "over", "base", over_budget=True)
            assert sum(ranks.values()) == 2 * R
        allocator.step()
    assert sum(write_peft_adapter(model, tmp_path / "at", "base").values()) == 2
    merge(model)
    assert not adapter_layers(model)


def test_a_copy_from_before_the_freeze_is_judged_by_what_it_holds(tmp_path: Path) -> None:
    """It has no allocator, but that of its original says what was kept."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    layers = inject(model, ["0", "1"], r=R)
    train_to(layers, [R, R])
    schedule = BudgetSchedule(init=R, target=1, total=4, warmup=0.0, interval=1)
    allocator = RankAllocator(layers, schedule)
    averaged, early = AveragedModel(model), copy.deepcopy(model)
    with pytest.raises(ValueError, match="stepped 0 times"):
        write_peft_adapter(averaged, tmp_path / "no", "base")
    for _ in range(4):
        allocator.step()
        averaged.update_parameters(model)
    assert sum(write_peft_adapter(averaged, tmp_path / "averaged", "base").values()) == 2
    copy_of_it = copy.deepcopy(averaged)
    assert sum(write_peft_adapter(copy_of_it, tmp_path / "again", "base").values()) == 2
    with pytest.raises(ValueError, match="holds 6 components, and its ranks were frozen with 2"):
        write_peft_adapter(early, tmp_path / "no", "base")
    assert not (tmp_path / "no").exists()


def test_a_copy_that_trains_on_is_judged_by_its_own_allocator(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    layers = inject(model, ["0", "1"], r=R)
    train_to(layers, [R, R])
    schedule = BudgetSchedule(init=R, target=1, total=4, warmup=0.0, interval=1)
    allocator = RankAllocator(layers, schedule)
    copied, own_allocator = copy.deepcopy((model, allocator))
    own_allocator.step()
    for _ in range(4):
        allocator.step()
    with pytest.raises(ValueError, match="stepped 1 times"):
        write_peft_adapter(copied, tmp_path / "no", "base")
    own_allocator.step()
    assert sum(write_peft_adapter(copied, tmp_path / "copied", "base").values()) == 2


WRITER = """
import sys
import torch
from torch import nn
from dynarank import inject, write_peft_adapter

torch.manual_seed(0)
model = nn.ModuleDict({f"part{i}": nn.Linear(4, 4) for i in range(8)})
layers = inject(model, [f"part{i}" for i in range(8)], r=2, start="lora")
write_peft_adapter(model, sys.argv[-1], base="somewhere")
"""


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        AveragedModel,
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
    ids=["compiled", "parallel", "averaged", "both"],
)
def test_a_wrapper_around_the_model_leaves_no_trace_in_the_file(
    wrapped: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    """Its name would stand before all others, and PEFT would find none of them."""
    net = mixed()
    train_to(inject(net, ["first"], r=R), [2])
    ranks = write_peft_adapter(net, tmp_path / "plain", base="base", head=["third"])
    assert write_peft_adapter(wrapped(net), tmp_path / "a", base="base", head=["third"]) == ranks
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_the_files_do_not_depend_on_the_order_of_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process has a fixed order, and this one an order that was drawn when it started."""
    fixed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    command = [sys.executable, "-c", WRITER, str(tmp_path / "fixed")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": fixed})
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "drawn")])
    exec(WRITER, {})
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        fixed_bytes = (tmp_path / "fixed" / name).read_bytes()
        assert (tmp_path / "drawn" / name).read_bytes() == fixed_bytes
