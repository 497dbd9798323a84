"""Placements: even, by kind, and drawn; sizes against counts by hand."""

from __future__ import annotations

import pytest

from dynarank.methods.placement import PLACEMENTS, place_ranks

KINDS = {
    "attention.self.query": 16,
    "attention.self.key": 16,
    "attention.self.value": 16,
    "attention.output.dense": 16,
    "intermediate.dense": 40,
    "output.dense": 40,
}
COSTS = {f"encoder.layer.{n}.{kind}": cost for n in range(6) for kind, cost in KINDS.items()}
ONE_OF_EACH = 6 * (4 * 16 + 2 * 40)


def spent(ranks: dict[str, int]) -> int:
    return sum(COSTS[name] * rank for name, rank in ranks.items())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("target", [0.1, 0.25, 0.5, 1, 1.5, 8])
def test_the_parameters_come_as_near_as_one_component_allows(target: float, placement: str) -> None:
    ranks = place_ranks(COSTS, target, placement, pool=12)
    assert list(ranks) == list(COSTS)
    assert abs(spent(ranks) - target * ONE_OF_EACH) <= 40
    if placement == "random":
        assert spent(ranks) <= target * ONE_OF_EACH


def test_even_is_every_fourth_matrix_and_whole_ranks_everywhere() -> None:
    quarter = place_ranks(COSTS, 0.25, "even")
    positions = [index for index, rank in enumerate(quarter.values()) if rank]
    assert positions == list(range(1, 36, 4))
    assert spent(quarter) == ONE_OF_EACH / 4
    assert set(place_ranks(COSTS, 3, "even").values()) == {3}


@pytest.mark.parametrize(
    ("placement", "kinds", "layers"),
    [
        ("query_value", {"attention.self.query", "attention.self.value"}, range(6)),
        ("attention", set(list(KINDS)[:4]), range(6)),
        ("feed_forward", set(list(KINDS)[4:]), range(6)),
        ("first_layers", set(KINDS), range(3)),
        ("last_layers", set(KINDS), range(3, 6)),
    ],
)
def test_kinds_and_halves(placement: str, kinds: set[str], layers: range) -> None:
    chosen = {name for name, rank in place_ranks(COSTS, 2, placement).items() if rank}
    assert chosen == {f"encoder.layer.{n}.{kind}" for n in layers for kind in kinds}


@pytest.mark.parametrize(
    ("names", "feed_forward", "query_value"),
    [
        ("h.0.attn.c_attn h.0.attn.c_proj h.0.mlp.c_fc h.0.mlp.c_proj", 2, 1),
        ("d.0.fc1 d.0.fc2 d.0.a.q_proj d.0.a.k_proj d.0.a.v_proj d.0.a.out_proj", 2, 2),
        ("b.0.Attention.q b.0.Attention.o b.0.Attention.v b.0.DenseReluDense.wo", 1, 2),
        ("m.0.gate_proj m.0.up_proj m.0.down_proj m.0.q_proj m.0.o_proj", 3, 1),
        ("t.0.q_lin t.0.v_lin t.0.out_lin t.0.lin1 t.0.lin2", 2, 2),
    ],
)
def test_other_architectures_names(names: str, feed_forward: int, query_value: int) -> None:
    costs = dict.fromkeys(names.split(), 8)
    for placement, count in (("feed_forward", feed_forward), ("query_value", query_value)):
        ranks = place_ranks(costs, 4, placement)
        assert sum(rank > 0 for rank in ranks.values()) == count
    assert sum(rank > 0 for rank in place_ranks(costs, 4, "attention").values()) == (
        len(costs) - feed_forward
    )


def test_random_depends_on_its_seed_alone() -> None:
    drawn = [place_ranks(COSTS, 0.5, "random", pool=1, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(drawn[0].values()) == 1


def test_what_cannot_be_placed_is_said() -> None:
    with pytest.raises(ValueError, match=r"target = 0.001: pays for 1 parameters.*method=head"):
        place_ranks(COSTS, 0.001, "even")
    with pytest.raises(ValueError, match=r"placement = query_value: fits none"):
        place_ranks({"0": 4, "2": 4}, 1, "query_value")
