"""The allocation's variants: other scores, other units, floors, other starts, other schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from dynarank import BudgetSchedule, DoRALinear, RankAllocator
from dynarank.allocation.allocator_checks import cannot_allocate
from dynarank.allocation.schedule import budget_schedule
from dynarank.allocation.sensitivity import Sensitivity


def layers(*shapes: tuple[int, int], r: int = 4, start: str = "paper") -> dict[str, DoRALinear]:
    torch.manual_seed(0)
    made = {
        f"l{i}": DoRALinear(nn.Linear(*shape), r=r, start=start) for i, shape in enumerate(shapes)
    }
    for layer in made.values():
        nn.init.normal_(layer.lora_c)
    return made


def backward(adapters: dict[str, DoRALinear], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for layer in adapters.values():
        layer.zero_grad()
        layer(torch.randn(3, layer.in_features, generator=draw)).square().sum().backward()


def test_the_absolute_score_is_the_components_norm() -> None:
    adapters = layers((6, 5), (7, 3))
    allocator = RankAllocator(adapters, BudgetSchedule(4, 2, 10), beta=0.0, score="absolute")
    allocator.update()
    wanted = [
        torch.linalg.matrix_norm(
            layer.scaling * layer.lora_c[i] * torch.outer(layer.lora_B[:, i], layer.lora_A[i])
        )
        for layer in adapters.values()
        for i in range(4)
    ]
    torch.testing.assert_close(allocator.ema, torch.stack(wanted).detach())


def test_sensitivity_equals_adaloras_own() -> None:
    """PEFT's allocator on a model with the same weights and gradients, step by step."""
    from peft import AdaLoraConfig
    from peft.tuners.adalora.layer import RankAllocator as PeftAllocator

    adapters = layers((6, 5), (5, 4))
    theirs = nn.ParameterDict(
        {
            f"{name}x{factor}x{'default'}": nn.Parameter(weight.detach().clone())
            for name, layer in adapters.items()
            for factor, weight in (
                ("lora_A", layer.lora_A),
                ("lora_B", layer.lora_B),
                ("lora_E", layer.lora_c[:, None]),
            )
        }
    )
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=100)
    named = [(key.replace("x", "."), weight) for key, weight in theirs.items()]
    peft = PeftAllocator(NamedParameters(named), config, "default")
    ours = Sensitivity(list(adapters.values()))
    for step in range(4):
        backward(adapters, step)
        for name, layer in adapters.items():
            for factor, weight in (
                ("lora_A", layer.lora_A),
                ("lora_B", layer.lora_B),
                ("lora_E", layer.lora_c),
            ):
                theirs[f"{name}x{factor}xdefault"].grad = weight.grad.reshape(
                    theirs[f"{name}x{factor}xdefault"].shape
                )
        scores = torch.cat(ours())
        peft.update_ipt(NamedParameters(named))
    wanted = torch.cat(
        [
            peft._combine_ipt(
                peft._element_score(f"{name}.lora_E.default"),
                torch.stack(
                    [
                        peft._element_score(f"{name}.lora_A.default").mean(1),
                        peft._element_score(f"{name}.lora_B.default").mean(0),
                    ],
                    dim=1,
                ),
            )
            for name in adapters
        ]
    )
    torch.testing.assert_close(scores, wanted)


class NamedParameters:
    """What PEFT's allocator asks of a model."""

    def __init__(self, named: list[tuple[str, nn.Parameter]]) -> None:
        self.named = named

    def named_parameters(self) -> Any:
        return iter(self.named)


def test_sensitivity_is_refused_where_c_is_fixed_before_anything_is_trained() -> None:
    layer = DoRALinear(nn.Linear(6, 5), 4, start="orthogonal_A")
    with pytest.raises(ValueError, match=r"gradient of c, and c is fixed.*score='fisher'"):
        RankAllocator([layer], BudgetSchedule(4, 2, 10), score="sensitivity")


def test_sensitivity_asks_for_gradients_and_is_saved() -> None:
    adapters = layers((6, 5))
    allocator = RankAllocator(adapters, BudgetSchedule(4, 2, 10), score="sensitivity")
    with pytest.raises(ValueError, match=r"before optimizer\.zero_grad"):
        allocator.step()
    backward(adapters, 0)
    allocator.step()
    other = RankAllocator(adapters, BudgetSchedule(4, 2, 10), score="sensitivity")
    other.load_state_dict(allocator.state_dict())
    backward(adapters, 1)
    allocator.step()
    other.step()
    assert torch.equal(allocator.ema, other.ema)


def test_a_budget_of_parameters_is_spent_up_to_a_component() -> None:
    adapters = layers((6, 5), (60, 5), (6, 40))
    costs = {"l0": 11, "l1": 65, "l2": 46}
    allocator = RankAllocator(
        adapters, BudgetSchedule(4, 2, 20, interval=1), beta=0.0, cost_aware=True
    )
    for _ in range(10):
        allocator.step()
    assert allocator.frozen
    spent = sum(rank * costs[name] for name, rank in allocator.ranks().items())
    left = 2 * sum(costs.values()) - spent
    assert 0 <= left < min(costs[name] for name, rank in allocator.ranks().items() if rank < 4)


def test_relative_shares_of_single_components_are_ties_and_are_warned_of() -> None:
    adapters = layers((6, 5), (7, 5), (8, 5), (9, 5), r=1)
    for place, layer in enumerate(adapters.values()):
        layer.lora_c.data.fill_(10.0**place)  # the last layer has by far the largest update
    allocator = RankAllocator(adapters, BudgetSchedule(1, 0.5, 20), beta=0.0)
    allocator.update()
    assert allocator.prune(2).tolist() == [True, True, False, False]
    warned = cannot_allocate("relative", init=1, target=0.5, cost_aware=False)
    assert warned is not None
    assert "the first layers keep theirs" in warned
    assert "exactly one" in str(cannot_allocate("relative", init=2, target=1, cost_aware=False))
    assert "the price alone" in str(cannot_allocate("relative", init=3, target=2, cost_aware=True))
    for score, init, target in (("relative", 3, 2), ("relative", 1, 1), ("fisher", 1, 0.5)):
        assert cannot_allocate(score, init=init, target=target, cost_aware=False) is None


def test_every_layer_keeps_its_floor() -> None:
    adapters = layers((6, 5), (7, 5), (8, 5), (9, 5))
    adapters["l2"].lora_c.data.fill_(0)
    for floor, least in ((0, 0), (1, 1)):
        allocator = RankAllocator(adapters, BudgetSchedule(4, 1, 20), min_rank=floor)
        allocator.update()
        counts = [int(part.sum()) for part in allocator.prune(4).split(4)]
        assert min(counts) == least
        assert sum(counts) == 4


@pytest.mark.parametrize(
    ("shape", "halfway"),
    [("cubic", 0.875), ("cubic_adalora", 0.125), ("linear", 0.5), ("step", 1.0)],
)
def test_schedules_differ_inside_the_window_alone(shape: str, halfway: float) -> None:
    at = [budget_schedule(t, 12, 8, 100, 0.2, 0.4, shape) for t in (0, 20, 40, 60, 100)]
    assert at == pytest.approx([12, 12, 8 + 4 * halfway, 8, 8])


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(ValueError, match="score = 'norm'"):
        RankAllocator(layers((3, 3)), BudgetSchedule(4, 2, 10), score="norm")
    with pytest.raises(ValueError, match="min_rank = 3"):
        RankAllocator(layers((3, 3)), BudgetSchedule(4, 2, 10), min_rank=3)
    with pytest.raises(ValueError, match="shape = 'cosine'"):
        BudgetSchedule(4, 2, 10, shape="cosine")
    with pytest.raises(ValueError, match="start = 'zero'"):
        DoRALinear(nn.Linear(3, 3), r=2, start="zero")


def test_loras_start_equals_the_base_and_learns_from_the_first_step() -> None:
    base = nn.Linear(6, 5)
    layer, x = DoRALinear(base, r=3, start="lora"), torch.randn(4, 6)
    torch.testing.assert_close(layer(x), base(x))
    layer(x).square().sum().backward()
    assert layer.lora_B.grad is not None
    assert float(layer.lora_B.grad.abs().max()) > 0
    assert float(layer.lora_A.detach().abs().max()) <= 1 / math.sqrt(
        6
    )  # LoRA's Kaiming-uniform, a = sqrt(5)
    assert bool(layer.active().all())


def test_pruning_for_good_ends_at_the_whole_budget_of_parameters() -> None:
    """The narrow layer is the worst by worth, and alone fits beside two wide ones in the end."""
    shapes = (5, 5, 3, 5)  # a component takes 10, 10, 6 and 10 parameters
    layers = [DoRALinear(nn.Linear(size, size), r=1, alpha=1, start="lora") for size in shapes]
    allocator = RankAllocator(
        layers,
        BudgetSchedule(
            init=1, target=26 / 36, total=20, warmup=0, final=0.2, interval=1, shape="linear"
        ),
        regrow=False,
        cost_aware=True,
        fixed_scores=torch.tensor([10.0, 9.0, 0.1, 8.0]),
    )
    passed = set()
    while not allocator.frozen:
        allocator.step()
        passed.add(allocator.allowance(allocator.t))
    assert passed & {30, 31, 32, 33, 34, 35}  # three wide ones would fit on the way
    assert list(allocator.ranks().values()) == [1, 1, 1, 0]
