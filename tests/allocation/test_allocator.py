from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynarank.adapters.cutting import cut_to_kept
from dynarank.adapters.folding import merge
from dynarank.adapters.inject import adapter_layers, inject, mark_trainable
from dynarank.adapters.layer import DoRALinear
from dynarank.allocation.allocator import RankAllocator
from dynarank.allocation.dem import dem_penalty
from dynarank.allocation.schedule import BudgetSchedule

WIDTH = 8


def adapters(*coefficients: Sequence[float]) -> dict[str, DoRALinear]:
    """Layers "a", "b", ... of orthonormal components, so that s_i = |c_i| / ||c||."""
    layers = {}
    for name, c in zip("abcdefgh", coefficients, strict=False):
        layers[name] = DoRALinear(nn.Linear(WIDTH, WIDTH), r=len(c))
        with torch.no_grad():
            layers[name].lora_A.copy_(torch.eye(WIDTH)[: len(c)])
            layers[name].lora_B.copy_(torch.eye(WIDTH)[:, : len(c)])
            layers[name].lora_c.copy_(torch.tensor(c))
    return layers


def schedule(init: float, target: float, **changes: Any) -> BudgetSchedule:
    """Ten steps: pruning at every one until the freeze at step 5."""
    plan = {"init": init, "target": target, "total": 10, "warmup": 0.0, "final": 0.5, "interval": 1}
    return BudgetSchedule(**plan | changes)


def nonzero(layers: dict[str, DoRALinear]) -> dict[str, list[int]]:
    """Indices of the components that the forward pass uses, seen from its output alone."""
    used = {}
    for name, layer in layers.items():
        x = torch.eye(WIDTH)[: layer.r]
        used[name] = (layer(x) - layer.base(x)).abs().sum(1).nonzero().flatten().tolist()
    return used


def allocator(layers: dict[str, DoRALinear], target: float = 1, **options: Any) -> RankAllocator:
    init = max(layer.r for layer in layers.values())
    return RankAllocator(layers, schedule(init, target), **options)


@pytest.mark.parametrize("count", range(7))
def test_zero_scores_keep_the_first_components(count: int) -> None:
    layers = adapters([1, 1, 1], [1], [1, 1])
    kept = allocator(layers).prune(count)
    assert kept.tolist() == [index < count for index in range(6)]
    used = [name + str(i) for name, indices in nonzero(layers).items() for i in indices]
    assert used == ["a0", "a1", "a2", "b0", "c0", "c1"][:count]


@pytest.mark.parametrize("count", range(9))
def test_equal_scores_keep_the_first_components(count: int) -> None:
    layers = adapters([1, -1], [2, 2], [-3, -3], [0.5, 0.5])
    ranks = allocator(layers)
    ranks.update()
    ranks.prune(count)
    assert list(ranks.ranks().values()) == [min(2, max(0, count - 2 * layer)) for layer in range(4)]


@settings(deadline=None, max_examples=40, database=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=8), st.data()
)
def test_keeps_exactly_the_best_with_ties_to_the_earlier(
    scores: list[list[int]], data: st.DataObject
) -> None:
    layers = adapters(*([1.0] * len(layer) for layer in scores))
    flat = [score for layer in scores for score in layer]
    count = data.draw(st.integers(0, len(flat)))
    ranks = allocator(layers)
    ranks.ema = torch.tensor(flat, dtype=torch.float32)
    kept = ranks.prune(count)
    best = set(sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:count])
    assert kept.tolist() == [i in best for i in range(len(flat))]
    assert torch.cat([layer.lora_c for layer in layers.values()]).ne(0).tolist() == kept.tolist()
    assert int(ranks.active_count()) == count


def test_pruning_leaves_A_and_B() -> None:
    layers = adapters([3, 2, 1])
    before = {
        key: value.clone() for key, value in layers["a"].state_dict().items() if key != "lora_c"
    }
    allocator(layers).prune(1)
    after = layers["a"].state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert after["lora_c"].tolist() == [3, 0, 0]


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_layers_compete_with_each_other_by_their_own_shares(factor: float) -> None:
    layers = adapters([1, 0.1, 0.1], [factor, factor, factor])
    ranks = RankAllocator(layers, schedule(3, 2))
    for _ in range(10):
        ranks.step()
    assert ranks.ranks() == {"a": 1, "b": 3}
    assert nonzero(layers) == {"a": [0], "b": [0, 1, 2]}


def test_keeping_all_prunes_nothing() -> None:
    layers = adapters([3, 2, 1], [1, 1, 1])
    before = {name: layer.lora_c.tolist() for name, layer in layers.items()}
    ranks = RankAllocator(layers, schedule(3, 3))
    pruned = [ranks.step() for _ in range(10)]
    assert {name: layer.lora_c.tolist() for name, layer in layers.items()} == before
    assert all(layer.mask.all() for layer in layers.values())
    assert ranks.frozen
    assert pruned == [True] * 5 + [False] * 5


def test_keeping_none_leaves_the_base() -> None:
    layers = adapters([3, 2, 1], [1, 1, 1])
    ranks = RankAllocator(layers, schedule(3, 0))
    for _ in range(10):
        ranks.step()
    assert ranks.ranks() == {"a": 0, "b": 0}
    x = torch.randn(2, WIDTH)
    assert all(torch.equal(layer(x), layer.base(x)) for layer in layers.values())


def test_a_layer_may_end_with_rank_zero_and_training_goes_on() -> None:
    layers = adapters([1, 1], [1, 0.01, 0.01, 0.01])
    ranks = RankAllocator(layers, schedule(3, 1))
    ranks.ema = torch.tensor([1.0, 1.0, 0, 0, 0, 0])
    ranks.freeze(ranks.prune(2))
    assert ranks.ranks() == {"a": 2, "b": 0}
    loss = sum(layer(torch.randn(2, WIDTH)).square().sum() for layer in layers.values())
    loss.backward()
    assert not layers["b"].lora_A.grad.any()
    assert ranks.step() is False


def test_scores_are_smoothed_at_every_step_until_the_freeze() -> None:
    layers = adapters([3, 4], [1])
    ranks = RankAllocator(layers, schedule(2, 0, warmup=0.3), beta=0.75)
    expected = torch.zeros(3)
    for t in range(1, 3):
        ranks.step()
        expected = 0.75 * expected + 0.25 * torch.tensor([0.6, 0.8, 1.0])
        torch.testing.assert_close(ranks.ema, expected)
        assert ranks.t == t
    for _ in range(3):
        ranks.step()
    assert ranks.frozen
    at_freeze = ranks.ema.clone()
    with torch.no_grad():
        layers["a"].lora_c.fill_(100)
    for _ in range(3):
        assert ranks.step() is False
    assert torch.equal(ranks.ema, at_freeze)
    assert ranks.t == 8


def test_budget_is_the_schedules_at_this_step() -> None:
    ranks = RankAllocator(adapters([1, 1, 1]), schedule(3, 1))
    seen = [ranks.budget()]
    for _ in range(10):
        ranks.step()
        seen.append(ranks.budget())
    assert seen == [ranks.schedule.budget(t) for t in range(11)]


def grow(layer: DoRALinear, value: float) -> None:
    """What the gradient might do to a component that was pruned."""
    with torch.no_grad():
        layer.lora_c[1] = value


@pytest.mark.parametrize("regrow", [True, False])
def test_a_pruned_component_returns_only_with_regrow(regrow: bool) -> None:
    layers = adapters([1, 0.1, 0.5])
    ranks = RankAllocator(layers, schedule(3, 2), beta=0.1, regrow=regrow)
    ranks.update()
    ranks.prune(2)
    assert nonzero(layers) == {"a": [0, 2]}
    grow(layers["a"], 5.0)
    assert nonzero(layers) == {"a": [0, 1, 2] if regrow else [0, 2]}
    assert int(ranks.active_count()) == (3 if regrow else 2)
    for _ in range(3):
        ranks.update()
        ranks.prune(2)
        grow(layers["a"], 5.0)
    ranks.prune(2)
    assert nonzero(layers) == {"a": [0, 1] if regrow else [0, 2]}


def test_without_regrow_a_larger_count_brings_nothing_back() -> None:
    layers = adapters([1, 1, 1])
    ranks = allocator(layers, regrow=False)
    ranks.prune(1)
    grow(layers["a"], 5.0)
    assert int(ranks.prune(3).sum()) == 1
    assert nonzero(layers) == {"a": [0]}


OTHER_LAYERS: dict[str, list[tuple[str, int]]] = {
    "another-name": [("a", 2), ("x", 3)],
    "another-rank": [("a", 2), ("b", 2)],
    "one-more": [("a", 2), ("b", 3), ("c", 1)],
    "one-less": [("a", 2)],
    "another-order": [("b", 3), ("a", 2)],
}


@pytest.mark.parametrize("others", OTHER_LAYERS.values(), ids=list(OTHER_LAYERS))
def test_a_state_of_other_layers_is_refused(others: list[tuple[str, int]]) -> None:
    state = RankAllocator(adapters([1, 2], [1, 2, 3]), schedule(3, 1)).state_dict()
    layers = {name: DoRALinear(nn.Linear(WIDTH, WIDTH), r) for name, r in others}
    sizes = {r for _, r in others}
    ranks = RankAllocator(layers, schedule(max(sizes), 1))
    with pytest.raises(ValueError, match="layers"):
        ranks.load_state_dict({**state, "t": 3})
    assert ranks.t == 0


@pytest.mark.parametrize(
    "change",
    [{"init": 4}, {"target": 2}, {"total": 11}, {"warmup": 0.1}, {"final": 0.4}, {"interval": 2}],
    ids=lambda change: next(iter(change)),
)
def test_a_state_of_another_schedule_is_refused(change: dict[str, Any]) -> None:
    # Layers of two sizes: the schedule's init may be either's.
    state = RankAllocator(adapters([1, 2, 3], [1]), schedule(3, 1)).state_dict()
    changed = RankAllocator(adapters([1, 2, 3], [1]), schedule(**{"init": 3, "target": 1} | change))
    with pytest.raises(ValueError, match=next(iter(change))):
        changed.load_state_dict(state)


@pytest.mark.parametrize("change", [{"beta": 0.8}, {"regrow": False}], ids=str)
def test_a_state_of_other_settings_is_refused(change: dict[str, Any]) -> None:
    state = allocator(adapters([1, 2, 3])).state_dict()
    changed = allocator(adapters([1, 2, 3]), **change)
    with pytest.raises(ValueError, match=next(iter(change))):
        changed.load_state_dict({**state, "t": 3})
    assert changed.t == 0


def test_where_c_is_fixed_what_was_pruned_takes_no_place_in_the_budget() -> None:
    """Its old score may stay above those of the living, but it has no gradient to return by."""
    layers = adapters([9, 8, 7], [1, 2, 3])
    for layer in layers.values():
        layer.lora_c.requires_grad_(False)
    ranks = allocator(layers, score="absolute")
    ranks.ema = torch.tensor([9.0, 8, 7, 1, 2, 3])
    ranks.prune(2)
    ranks.ema = torch.tensor([1.0, 1, 9, 9, 9, 9])  # the pruned overtake
    ranks.prune(2)
    assert ranks.ranks() == {"a": 2, "b": 0}


def test_where_c_is_fixed_nothing_returns_in_a_cut_model_either() -> None:
    """Nothing of a layer of rank 0 is trained, whatever the other layers train."""
    for start, returns in (("orthogonal_A", False), ("lora", True)):
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        layers = inject(model, ["0", "1"], r=3, start=start)
        mark_trainable(model)
        layers["0"].mask[:] = False
        cut_to_kept(model)
        assert RankAllocator(layers, schedule(1.5, 1)).regrow is returns


def test_a_state_that_names_neither_beta_nor_regrow_is_accepted() -> None:
    state = allocator(adapters([1, 2, 3])).state_dict()
    del state["choice"]["beta"], state["choice"]["regrow"]
    ranks = allocator(adapters([1, 2, 3]), beta=0.8)
    ranks.load_state_dict({**state, "t": 3})
    assert ranks.t == 3


@pytest.mark.parametrize("order", ["allocator first", "model first"])
def test_a_state_says_how_much_was_kept_whatever_the_model_holds_by_then(order: str) -> None:
    """A resumed run may load it before the model's masks, which keep everything until then."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    made = allocator(inject(model, ["0", "1"], r=3, start="lora"))
    early = copy.deepcopy(model.state_dict())
    for _ in range(5):
        made.step()
    late, state = model.state_dict(), made.state_dict()

    fresh = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    resumed = allocator(inject(fresh, ["0", "1"], r=3, start="lora"))
    if order == "allocator first":
        resumed.load_state_dict(state)
        fresh.load_state_dict(early)
    else:
        fresh.load_state_dict(early)
        resumed.load_state_dict(state)
    with pytest.raises(ValueError, match="holds 6 components, and its ranks were frozen with 2"):
        merge(fresh)
    fresh.load_state_dict(late)
    assert not adapter_layers(merge(fresh))


def test_a_state_that_does_not_say_how_much_was_kept_is_accepted() -> None:
    """Those of version 0.2.0 and before do not; the masks say it where they were loaded before."""
    layers = adapters([1, 2, 3])
    made = allocator(layers)
    for _ in range(5):
        made.step()
    state = made.state_dict()
    assert state.pop("kept") == 1
    made.load_state_dict(state)
    assert made.progress.kept == 1


def test_an_allocator_can_be_pickled() -> None:
    made = allocator(adapters([1, 2, 3]))
    copied = pickle.loads(pickle.dumps(made))
    for _ in range(5):
        made.step()
        copied.step()
    assert copied.ranks() == made.ranks() == {"a": 1}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("parameter", ["lora_A", "lora_B", "lora_c"])
def test_a_score_that_is_not_finite_names_its_layer_and_step(bad: float, parameter: str) -> None:
    layers = adapters([1, 2], [1, 2, 3])
    ranks = allocator(layers)
    ranks.step()
    ema = ranks.ema.clone()
    with torch.no_grad():
        getattr(layers["b"], parameter).view(-1)[0] = bad
    with pytest.raises(FloatingPointError, match=r"step 2: .* of b is not finite"):
        ranks.step()
    assert torch.equal(ranks.ema, ema)


@settings(deadline=None, max_examples=30, database=None)
@given(st.data())
def test_one_bad_value_anywhere_stops_the_update_and_changes_nothing(data: st.DataObject) -> None:
    layers = adapters(
        *([1.0] * size for size in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    )
    ranks = allocator(layers)
    ranks.update()
    before, step = ranks.ema.clone(), ranks.t
    name = data.draw(st.sampled_from(list(layers)))
    tensor = getattr(layers[name], data.draw(st.sampled_from(["lora_A", "lora_B", "lora_c"])))
    with torch.no_grad():
        index = data.draw(st.integers(0, tensor.numel() - 1))
        tensor.view(-1)[index] = data.draw(
            st.sampled_from([float("nan"), float("inf"), float("-inf")])
        )
    with pytest.raises(FloatingPointError, match=rf"of {name} is not finite"):
        ranks.update()
    assert torch.equal(ranks.ema, before)
    assert ranks.t == step


@settings(deadline=None, max_examples=30, database=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 12), st.integers(0, 10_000)
)
def test_ties_are_broken_alike_whatever_happened_before(
    values: list[int], count: int, seed: int
) -> None:
    """Scores of few values, pruned twice to the same count from different starts, keep the same."""
    kept = []
    for start in (1.0, 3.0):
        layers = adapters(
            *([start] * min(4, len(values) - first) for first in range(0, len(values), 4))
        )
        ranks = allocator(layers)
        torch.manual_seed(seed if start == 1.0 else seed + 1)
        ranks.ema = torch.tensor(values, dtype=torch.float32)
        kept.append(ranks.prune(count).tolist())
    assert kept[0] == kept[1]
    assert sum(kept[0]) == min(count, len(values))
    worst_kept = min((v for v, k in zip(values, kept[0], strict=True) if k), default=4)
    assert all(v <= worst_kept for v, k in zip(values, kept[0], strict=True) if not k)


def test_active_count_is_a_tensor_and_the_sum_of_the_ranks() -> None:
    layers = adapters([1, 0, 2], [0, 0], [3])
    layers["a"].mask[2] = False
    ranks = allocator(layers)
    assert isinstance(ranks.active_count(), Tensor)
    assert ranks.ranks() == {"a": 1, "b": 0, "c": 1}
    assert int(ranks.active_count()) == 2


def test_no_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="no adapted layers"):
        RankAllocator({}, schedule(2, 1))


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_bad_beta_is_named(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        RankAllocator(adapters([1]), schedule(1, 1), beta=beta)


def test_layers_that_start_unlike_the_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match=r"init = 4 .* r = 3"):
        RankAllocator(adapters([1, 2, 3], [1, 2, 3]), schedule(4, 2))


def test_an_allocator_that_is_refused_leaves_the_layers_alone() -> None:
    layers = inject(nn.Sequential(nn.Linear(4, 4)), ["0"], r=2)
    with pytest.raises(ValueError, match="init"):
        RankAllocator(layers, BudgetSchedule(init=3, target=1, total=10))
    assert layers["0"].progress is None


def test_steps_beyond_the_total_are_said_once() -> None:
    ranks = allocator(adapters([1, 2, 3]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            ranks.step()
    with pytest.warns(UserWarning, match=r"total = 10 steps"):
        ranks.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranks.step()


def test_on_accelerators_a_score_that_is_not_finite_is_found_at_the_next_pruning() -> None:
    layers = adapters([1, 2], [1, 2, 3])
    ranks = RankAllocator(layers, schedule(3, 1, interval=4))
    ranks.check_every_step = False
    ranks.step()
    with torch.no_grad():
        layers["b"].lora_c[1] = float("nan")
    ranks.step()
    with torch.no_grad():
        layers["b"].lora_c[1] = 1.0
    ranks.step()
    with pytest.raises(FloatingPointError, match="of b is not finite"):
        ranks.check_finite()
    with pytest.raises(FloatingPointError, match="of b is not finite"):
        ranks.step()


@pytest.mark.parametrize("score", ["relative", "absolute", "sensitivity", "fisher", "random"])
def test_scores_follow_a_model_that_is_moved_after_the_allocator_was_made(score: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    layers = inject(model, ["0", "1"], r=4)
    later = BudgetSchedule(init=4, target=1, total=100)  # does not prune in its first step
    made = RankAllocator(layers, later, score=score, seed=3)

    model.to("meta")  # an accelerator without content: a tensor left on the CPU fails there
    model(torch.ones(2, 4, device="meta")).sum().backward()
    made.observe()
    made.step()

    assert made.ema.device.type == "meta"
    assert made.active_count().device.type == "meta"
    assert not made.check_every_step  # the host would wait for the device at every step


def test_a_resumed_allocator_follows_its_model_after_the_freeze_too() -> None:
    layers = inject(nn.Sequential(nn.Linear(4, 6)), ["0"], r=4)
    made = RankAllocator(layers, schedule(4, 1))
    for _ in range(6):
        made.step()
    assert made.frozen

    for layer in layers.values():
        layer.to("meta")
    made.step()
    assert made.active_count().device.type == "meta"


def test_an_attached_allocator_steps_with_the_optimizer() -> None:
    def step(seed: int, eta: float) -> None:
        x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed))
        loss = sum((layer(x).square().mean() for layer in layers.values()), torch.zeros(()))
        if eta and not ranks.frozen:
            loss = loss + eta * dem_penalty(layers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    results = []
    for attached in (False, True):
        torch.manual_seed(0)
        layers = adapters([3, 2, 1], [1, 1, 2])
        ranks = RankAllocator(layers, schedule(3, 1))
        model = nn.ModuleDict(layers)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        attachment = ranks.attach(optimizer, eta=0.3) if attached else None
        for seed in range(8):
            step(seed, eta=0.0 if attached else 0.3)
            if attachment is None:
                ranks.step()
            else:
                assert (attachment.penalty is None) == (seed >= 5)
            assert ranks.t == seed + 1
        assert ranks.frozen
        results.append(model.state_dict())
    torch.testing.assert_close(results[1], results[0])
    assert attachment is not None
    attachment.remove()
    step(9, eta=0.0)
    assert ranks.t == 8


@pytest.mark.parametrize("fused", [False, True], ids=["default", "fused"])
def test_steps_that_a_scaler_skips_do_not_count(fused: bool) -> None:
    layers = adapters([3, 2, 1])
    ranks = RankAllocator(layers, schedule(3, 1))
    parameters = [p for p in layers["a"].parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, fused=fused)
    ranks.attach(optimizer, eta=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, counted in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(factor * layers["a"](torch.ones(1, WIDTH)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert ranks.t == counted


@pytest.mark.parametrize("cost_aware", [False, True])
def test_pruning_for_good_spends_the_whole_budget_under_a_ceiling(cost_aware: bool) -> None:
    """The first layer's are all better, but it may keep two in the end."""
    layers = adapters([9.0, 8.0, 7.0, 6.0], [5.0, 4.0, 3.0, 2.0])
    last = BudgetSchedule(4, 2, 10, warmup=0, final=0, interval=1, shape="linear")
    ranks = RankAllocator(
        layers, last, regrow=False, max_rank=2, cost_aware=cost_aware,
        fixed_scores=torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 2]),
    )  # fmt: skip
    for _ in range(10):
        ranks.step()
    assert list(ranks.ranks().values()) == [2, 2]


def test_no_layer_ends_above_max_rank_and_the_budget_is_full() -> None:
    """Without the ceiling, one layer would keep all that is left."""
    strong, weak = [4.0, 3.9, 3.8, 3.7], [1.0, 0.001, 0.001, 0.001]
    for ceiling, expected in ((None, [4, 1, 1]), (3, [3, 2, 1]), (2, [2, 2, 2])):
        layers = adapters(strong, weak, weak)
        ranks = allocator(layers, target=2, score="absolute", max_rank=ceiling)
        for _ in range(10):
            ranks.step()
            assert sum(ranks.ranks().values()) == ranks.allowance(ranks.t)
        assert list(ranks.ranks().values()) == expected


def test_max_rank_is_checked_and_saved() -> None:
    layers = adapters([1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="max_rank = 1: must be at least 1, and at least target"):
        allocator(layers, target=1.5, max_rank=1)
    saved = allocator(layers, max_rank=1).state_dict()
    with pytest.raises(ValueError, match="max_rank was 1, is 2"):
        allocator(layers, max_rank=2).load_state_dict(saved)
    del saved["choice"]["max_rank"]  # as an older version wrote it
    allocator(layers, max_rank=2).load_state_dict(saved)


@pytest.mark.parametrize("bounds", [{"min_rank": 0.5}, {"max_rank": 1.5}], ids=str)
def test_bounds_that_are_no_whole_numbers_are_named(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bounds))} = .*whole number"):
        allocator(adapters([1, 2, 3]), **bounds)


def test_fixed_scores_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fixed_scores has the shape \[2\].* 3 components"):
        allocator(adapters([1, 2, 3]), fixed_scores=torch.ones(2))
