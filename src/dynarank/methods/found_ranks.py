"""The ranks that another run found, for a method that trains on them from the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dynarank.adapters.adapter_checks import CONFIG
from dynarank.adapters.lora_files import read_lora
from dynarank.adapters.rank_patterns import ranks_of
from dynarank.errors import UserError, nearest
from dynarank.rounding import round_half_up
from dynarank.run_folder import RANKS, read_ranks
from dynarank.settings import expand_user

SETTING = "method.rank_pattern_from"


def read_found_ranks(place: str) -> dict[str, int]:
    """Return the rank of each matrix of a run or an adapter, by module name.

    Args:
        place: a run's folder, which holds ranks.json, or a PEFT LoRA adapter's.

    Raises:
        UserError: the folder is neither, or its files are damaged.
    """
    folder = Path(expand_user(place))
    if (folder / RANKS).is_file():
        ranks = read_ranks(folder)
    elif (folder / CONFIG).is_file():
        ranks = ranks_of(read_lora(folder))
    else:
        raise UserError(
            f"{SETTING} = {place}: holds neither {RANKS} nor {CONFIG}. Name the folder of a "
            "finished run that allocated ranks, or of a PEFT LoRA adapter"
        )
    if not any(ranks.values()):
        raise UserError(f"{SETTING} = {place}: every matrix has rank 0 there")
    return ranks


def found_ranks(place: str, costs: Mapping[str, int], target: float) -> dict[str, int]:
    """Return the rank of each of a model's matrices, as another run found it.

    Args:
        place: as in `read_found_ranks`.
        costs: parameters of one component of each matrix, in model order. Matrices that the other
            run left out have rank 0.
        target: the budget: components a matrix, or what they take in parameters.

    Raises:
        ValueError: the other run's matrices are not among these, or its budget is another.
    """
    ranks = read_found_ranks(place)
    unknown = sorted(set(ranks) - set(costs))
    if unknown:
        raise ValueError(
            f"{SETTING} = {place}: {unknown[0]} is no target of this model "
            f"({nearest(unknown[0], costs)}). Take a run on the same model and model.targets"
        )
    components = sum(ranks.values())
    wanted = round_half_up(target * len(costs))
    parameters = sum(rank * costs[name] for name, rank in ranks.items())
    # Rounded as a run's own budget is, which it may have spent to the last parameter.
    budget = round_half_up(target * sum(costs.values()))
    # A run by parameters leaves less than a component over, as a rule.
    spends_the_budget = budget - 2 * max(costs.values()) < parameters <= budget
    if components != wanted and not spends_the_budget:
        raise ValueError(
            f"{SETTING} = {place}: has {components} components in {len(costs)} matrices, and "
            f"budget.target = {target:g} stands for {wanted}. Set budget.target="
            f"{components / len(costs):g}"
        )
    return {name: ranks.get(name, 0) for name in costs}
