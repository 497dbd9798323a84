from __future__ import annotations

import copy
from collections import OrderedDict

import peft
import pytest
import torch
from torch import nn

from dynarank.adapters.inject import adapter_layers, find_linears, inject, mark_trainable, matches
from dynarank.adapters.layer import DoRALinear


def block() -> nn.Module:
    return nn.ModuleDict(
        OrderedDict(
            attention=nn.ModuleDict(
                {"query": nn.Linear(4, 4), "output": nn.ModuleDict({"dense": nn.Linear(4, 4)})}
            ),
            norm=nn.LayerNorm(4),
            output=nn.ModuleDict({"dense": nn.Linear(4, 4)}),
        )
    )


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        OrderedDict(
            embeddings=nn.Embedding(3, 4),
            layer=nn.ModuleList([block(), block()]),
            classifier=nn.ModuleDict(
                {"output": nn.ModuleDict({"dense": nn.Linear(4, 4)}), "query": nn.Linear(4, 2)}
            ),
            classifier2=nn.Linear(4, 2),
        )
    )


@pytest.mark.parametrize(
    ("name", "target", "fits"),
    [
        ("layer.0.query", "query", True),
        ("query", "query", True),
        ("layer.0.query", "0.query", True),
        ("layer.0.subquery", "query", False),
        ("layer.0.query.inner", "query", False),
        ("layer.0xquery", "0.query", False),
        ("layer.0.query", r".*\.query", True),
        ("layer.0.query", r"layer\.\d+\.(query|key)", True),
        ("layer.0.query", r"\.query", False),
        ("layer.0.query", r"^layer", False),
    ],
)
def test_a_target_is_a_suffix_at_a_dot_or_a_whole_expression(
    name: str, target: str, fits: bool
) -> None:
    assert matches(name, target) is fits


def test_linears_come_in_model_order_whatever_the_targets_order() -> None:
    names = [
        "layer.0.attention.query",
        "layer.0.output.dense",
        "layer.1.attention.query",
        "layer.1.output.dense",
    ]
    targets = [r"layer\.\d\.output\.dense", "attention.query"]
    assert find_linears(model(), targets) == names
    assert find_linears(model(), targets[::-1]) == names


def test_a_suffix_finds_every_place_that_ends_in_it_once() -> None:
    found = find_linears(model(), ["output.dense", "attention.output.dense"])
    assert found == [
        "layer.0.attention.output.dense",
        "layer.0.output.dense",
        "layer.1.attention.output.dense",
        "layer.1.output.dense",
        "classifier.output.dense",
    ]


def test_exclude_leaves_the_inside_alone_but_not_names_that_begin_alike() -> None:
    found = find_linears(model(), [".*query", ".*classifier.*"], exclude=["classifier"])
    assert found == ["layer.0.attention.query", "layer.1.attention.query", "classifier2"]
    assert "classifier2" not in find_linears(
        model(), ["query"], exclude=["classifier", "classifier2"]
    )


def test_exclude_takes_suffixes_and_expressions_as_targets_do() -> None:
    net = nn.ModuleDict({"bert": model(), "pooler": nn.ModuleDict({"query": nn.Linear(4, 4)})})
    everything = find_linears(net, ["query"])
    assert "pooler.query" in everything
    assert "bert.classifier.query" in everything
    left = ["bert.layer.0.attention.query", "bert.layer.1.attention.query"]
    assert find_linears(net, ["query"], exclude=["pooler", "classifier"]) == left
    assert find_linears(net, ["query"], exclude=["pooler", r"bert\.class.*", r".*\.1"]) == left[:1]
    with pytest.raises(ValueError, match="valid regular expression"):
        find_linears(net, ["query"], exclude=["(pooler"])


def test_no_match_lists_targets_that_would_match() -> None:
    with pytest.raises(ValueError, match="'q_proj' matches no linear") as error:
        find_linears(model(), ["q_proj"])
    listed = str(error.value).rpartition(": ")[2].split(", ")
    assert len(listed) == len(set(listed)) == 6
    assert {name for target in listed for name in find_linears(model(), [target])} == set(
        find_linears(model(), [".*"])
    )


def test_one_target_of_several_that_matches_nothing_is_an_error() -> None:
    net = model()
    with pytest.raises(ValueError, match="'typo'"):
        inject(net, ["attention.query", "typo"], r=2)
    assert not adapter_layers(net)


def test_a_target_inside_the_excluded_head_matches_nothing() -> None:
    with pytest.raises(ValueError, match="'classifier2'"):
        find_linears(model(), ["classifier2"], exclude=["classifier2"])


def test_a_model_without_linears_says_so() -> None:
    with pytest.raises(ValueError, match="none"):
        find_linears(nn.Sequential(nn.ReLU()), ["query"])


def test_invalid_regex_is_named() -> None:
    with pytest.raises(ValueError, match="not a valid regular expression") as error:
        find_linears(model(), ["(query"])
    assert "'(query'" in str(error.value)


def test_no_targets_is_an_error() -> None:
    with pytest.raises(ValueError, match="no targets"):
        inject(model(), [], r=2)


def test_a_name_in_place_of_a_list_of_names_is_refused() -> None:
    """A text is a sequence of its letters, and no module is called by one."""
    net = model()
    with pytest.raises(ValueError, match=r"targets = 'query': must be a list .*\['query'\]"):
        find_linears(net, "query")
    with pytest.raises(ValueError, match="exclude = 'classifier'"):
        inject(net, ["query"], r=2, exclude="classifier")
    assert not adapter_layers(net)
    inject(net, ["attention.query"], r=2)
    with pytest.raises(ValueError, match="head = 'classifier'"):
        mark_trainable(net, head="classifier")


def test_inject_wraps_in_place_and_keeps_the_function() -> None:
    net = nn.Sequential(
        OrderedDict(first=nn.Linear(4, 5), act=nn.Tanh(), last=nn.Linear(5, 3, bias=False))
    )
    first, x = net.first, torch.randn(2, 4)
    expected = net(x).detach()
    layers = inject(net, ["first", "last"], r=3, alpha=6.0, dropout=0.25)
    assert list(layers) == ["first", "last"]
    assert layers["first"] is net.first
    assert net.first.base is first
    assert all((la.r, la.scaling, la.dropout.p) == (3, 2.0, 0.25) for la in layers.values())
    assert torch.equal(net(x), expected)


def test_adapter_layers_finds_what_inject_returned_in_order() -> None:
    net = model()
    layers = inject(net, ["output.dense", "query"], r=2, exclude=["classifier"])
    found = adapter_layers(net)
    assert list(found) == list(layers)
    assert all(found[name] is layers[name] for name in layers)
    assert type(net["classifier"]["query"]) is nn.Linear


def test_injecting_twice_is_an_error() -> None:
    net = model()
    inject(net, ["attention.query"], r=2)
    with pytest.raises(ValueError, match="adapters already"):
        inject(net, ["layer.0.output.dense"], r=2)


@pytest.mark.parametrize("head", [[], ["classifier"], ["classifier", "classifier2"]], ids=str)
def test_only_adapters_and_head_train(head: list[str]) -> None:
    net = model()
    inject(net, ["query", "output.dense"], r=2, exclude=["classifier", "classifier2"])
    mark_trainable(net, head)
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    adapters = {
        f"{name}.{part}" for name in adapter_layers(net) for part in ("lora_A", "lora_B", "lora_c")
    }
    heads = {
        f"{name}.{key}" for name in head for key, _ in net.get_submodule(name).named_parameters()
    }
    assert trained == adapters | heads
    assert len(adapters) == 18


def test_mark_trainable_takes_back_what_trained_before() -> None:
    net = model()
    layers = inject(net, ["attention.query"], r=2)
    net.requires_grad_(True)
    mark_trainable(net)
    assert all(not p.requires_grad for layer in layers.values() for p in layer.base.parameters())
    assert not net["embeddings"].weight.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_inherited(training: bool) -> None:
    layers = inject(model().train(training), ["attention.query"], r=2, dropout=0.5)
    assert all(
        module.training is training for layer in layers.values() for module in layer.modules()
    )
    assert all(isinstance(layer, DoRALinear) for layer in layers.values())


@pytest.mark.parametrize("padded", [False, True])
def test_torchs_encoder_calls_its_adapters_in_evaluation(padded: bool) -> None:
    """Its fused form reads the weights of its linear maps, and would leave the adapters out."""
    torch.manual_seed(0)
    one = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    net = nn.TransformerEncoder(one, 2).eval()
    x = torch.randn(2, 3, 8)
    padding = torch.tensor([[False, False, True], [False, False, False]]) if padded else None
    before = net(x, src_key_padding_mask=padding)
    layers = inject(net, ["linear1", "linear2"], r=2, start="lora")
    with torch.no_grad():
        torch.testing.assert_close(net(x, src_key_padding_mask=padding), before)
    for layer in layers.values():
        nn.init.normal_(layer.lora_B)
    expected = net(x, src_key_padding_mask=padding)
    assert not torch.allclose(expected, before)
    with torch.no_grad():
        torch.testing.assert_close(net(x, src_key_padding_mask=padding), expected)


def test_a_map_that_its_module_never_calls_is_refused() -> None:
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "dense": nn.Linear(8, 8)})
    with pytest.raises(ValueError, match="reads its weight and never calls it") as error:
        inject(net, [".*"], r=2)
    assert "exclude=['attention.out_proj']" in str(error.value)
    assert not adapter_layers(net)
    assert list(inject(net, [".*"], r=2, exclude=["attention.out_proj"])) == ["dense"]


class SharedMap(nn.Module):
    """One linear map in two places, of one module and of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"second": self.first})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner["second"](torch.tanh(self.first(x)))
        return y


@pytest.mark.parametrize("exclude", [["head"], ["first.bias"], ["second.more"]], ids=str)
def test_a_map_in_two_places_is_refused_before_anything_changes(exclude: list[str]) -> None:
    """Otherwise an adapter would stand in the first place, and the second would do without."""
    net = nn.ModuleDict({"before": nn.Linear(4, 4), "shared": SharedMap()})
    with pytest.raises(ValueError, match=r"shared\.first and shared\.inner\.second are one module"):
        inject(net, ["before", "first"], r=2, exclude=exclude)
    assert not adapter_layers(net)
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("excluded", ["inner", "second", r".*second", "inner.second"])
def test_a_place_may_be_left_without_an_adapter_on_purpose(excluded: str) -> None:
    net = SharedMap()
    assert list(inject(net, ["first"], r=2, exclude=[excluded])) == ["first"]
    assert type(net.inner["second"]) is nn.Linear


def test_a_copy_gets_an_adapter_of_its_own() -> None:
    net = SharedMap()
    net.inner["second"] = copy.deepcopy(net.get_submodule("first"))
    assert list(inject(net, ["first", "second"], r=2)) == ["first", "inner.second"]


def test_a_block_in_two_places_is_adapted_in_both() -> None:
    """As ALBERT's layers are one: the map stands in one place of one block."""
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Tanh())
    net.append(net[0])
    layers = inject(net, [".*"], r=2, start="lora")
    nn.init.ones_(layers["0.0"].lora_B)
    x = torch.randn(3, 4)
    torch.testing.assert_close(net(x), layers["0.0"](torch.tanh(layers["0.0"](x))))


def test_a_model_that_is_itself_the_map_is_refused() -> None:
    """It would hold the layer that holds it, without end."""
    net = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"itself the linear map.*DoRALinear\(model"):
        inject(net, [".*"], r=2)
    assert net.weight.requires_grad


def test_a_map_without_sizes_is_refused_before_anything_changes() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4))
    with pytest.raises(ValueError, match="1 is a LazyLinear, whose sizes are not known yet"):
        inject(net, [".*"], r=2)
    assert not adapter_layers(net)
    net(torch.randn(2, 4))
    assert list(inject(net, [".*"], r=2)) == ["0", "1"]


@pytest.mark.parametrize("part", ["the model", "its base"])
def test_a_model_with_adapters_of_peft_is_refused(part: str) -> None:
    """What is exported would lack them, and name modules that the base has not."""
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(ValueError, match=r"of PEFT.*merge_and_unload"):
        inject(net if part == "the model" else base, ["1"], r=2)
    assert list(inject(net.merge_and_unload(), ["1"], r=2)) == ["1"]


def test_what_a_start_fixes_stays_fixed_where_the_rest_is_let_train() -> None:
    for start, trains in (("lora", True), ("orthogonal_A", False)):
        model = nn.ModuleDict({"query": nn.Linear(4, 4)})
        (layer,) = inject(model, ["query"], r=2, start=start).values()
        model.requires_grad_(False)
        mark_trainable(model)
        assert layer.lora_A.requires_grad
        assert layer.lora_B.requires_grad
        assert layer.lora_c.requires_grad is trains
