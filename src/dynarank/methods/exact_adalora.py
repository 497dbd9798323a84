"""PEFT's allocator of AdaLoRA, which keeps exactly what the budget pays for.

Legend: n triplets of the model, r those of a layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft.tuners.adalora.layer import RankAllocator as PeftAllocator
from torch import Tensor, nn

from dynarank.adapters.greedy import top_components, top_parameters
from dynarank.methods.ranked import ADAPTER
from dynarank.rounding import round_half_up


class ExactAllocator(PeftAllocator):  # type: ignore[misc]
    """PEFT's allocator, keeping exactly the best `budget` triplets.

    Ties go to the earlier layer, then to the lower index.
    """

    # A bare function in a class would be called with self as well.
    agree: Callable[[Tensor], Tensor] = staticmethod(lambda keep: keep)
    costs: Tensor | None = None
    """Parameters of each triplet, (n), where parameters are counted; None: triplets are."""

    def choose(self, scores: Tensor, budget: float) -> Tensor:
        """Return which triplets are kept, (n) bool.

        Where parameters count, triplets are taken in the order of their scores, as PEFT orders
        them; one that does not fit is left out. So no more is spent than the budget has.

        Args:
            scores: (n), in model order.
            budget: how many triplets the model may keep; where parameters count, what that many
                triplets take on average.
        """
        if self.costs is None:
            return top_components(scores, int(budget))
        costs = self.costs.to(scores.device)
        # `top_parameters` orders by score / cost, PEFT by the score alone.
        return top_parameters(scores * costs, costs, self.parameters(budget))

    def budget_schedule(self, step: int) -> tuple[float, bool]:
        """Return the triplets that may stay after a step, and whether it prunes.

        PEFT's own cuts what lies between the start and the target down to a whole number, and so
        falls below a target that is none.
        """
        budget, prunes = super().budget_schedule(step)
        return max(budget, self.target_bgt), prunes

    def parameters(self, budget: float) -> int:
        """Return the parameters that so many triplets take, at the mean over the matrices."""
        assert self.costs is not None
        return round_half_up(budget * float(self.costs.mean()))

    def scores(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the triplets' scores, (r) by the name of their layer's E, in model order.

        They are zeros before the first update.
        """
        scores = {}
        for name, E in model.named_parameters():
            if f"lora_E.{ADAPTER}" not in name:
                continue
            if name in self.exp_avg_ipt:
                scores[name] = triplet_scores(self, name)
            else:
                scores[name] = torch.zeros(len(E), device=E.device)
        return scores

    # In the place of PEFT's, which its `update_and_allocate` would call.
    @torch.no_grad()
    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, list[bool]]:
        """Set E to zero in all but the `budget` best triplets; return what each layer keeps."""
        scores = self.scores(model)
        sizes = [len(of_layer) for of_layer in scores.values()]
        keep = self.choose(torch.cat(list(scores.values())), budget)
        keep = self.agree(keep)  # processes must agree before anything is zeroed
        pattern: dict[str, list[bool]] = {}
        for name, keep_of_layer in zip(scores, keep.split(sizes), strict=True):
            E = model.get_parameter(name)  # (r, 1)
            E.masked_fill_(~keep_of_layer[:, None], 0.0)
            pattern[name] = keep_of_layer.tolist()
        return pattern


def triplet_scores(allocator: PeftAllocator, name_of_E: str) -> Tensor:
    """Return a layer's scores (r): that of E, and the means of those of A's rows and B's columns.

    Relies on PEFT's `_element_score`, sensitivity times uncertainty of every element of a
    parameter, and `_combine_ipt`, their sum over a triplet.
    """
    score_A = allocator._element_score(name_of_E.replace("lora_E", "lora_A"))  # (r, d_in)
    score_B = allocator._element_score(name_of_E.replace("lora_E", "lora_B"))  # (d_out, r)
    vectors = torch.stack([score_A.mean(dim=1), score_B.mean(dim=0)], dim=1)  # (r, 2)
    combined: Tensor = allocator._combine_ipt(allocator._element_score(name_of_E), vectors)
    return combined
