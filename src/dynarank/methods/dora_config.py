"""Schemas of DoRA and of this library's recipe: types, ranges, and a line a field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from dynarank.adapters import STARTS
from dynarank.allocation.config import SCORES
from dynarank.methods.config import MethodConfig
from dynarank.settings import Ge, Gt, Le, Lt, OneOf, UserPath


@dataclass
class DoRAConfig(MethodConfig):
    """Dynamic rank distribution (Mao et al., ACL 2024)."""

    # alpha, dropout and beta are those of the authors' runs.
    alpha: Annotated[float | None, Gt(0)] = 8.0
    """The scale of the update, over what alpha_over says; it stays when components go. null:
    8 (init / 12)^1.5, with which a component starts as large under any budget as in the published
    setting, r8."""
    alpha_over: Annotated[str, OneOf(("init", "target", "sqrt"))] = "init"
    """The scale of the update is alpha / budget.init, as in the paper; alpha / budget.target, so
    that init does not change a component's size; or alpha / sqrt(target), as in rsLoRA. A target
    below one counts as one."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """On the input of the adapters."""
    beta: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Smoothing of the importance scores (Eq. 8)."""
    score: Annotated[str, OneOf((*SCORES, "shuffled"))] = "relative"
    """What a component is judged by: relative (the paper's share of the layer's update), absolute
    (the plain norm), sensitivity (AdaLoRA's), fisher (the square of c_i dL/dc_i); or, as controls,
    random, and shuffled (the ranks of rank_pattern_from in other places)."""
    score_seed: Annotated[int, Ge(0)] = 0
    """Decides what score=random and score=shuffled draw."""
    rank_pattern_from: Annotated[str | None, UserPath()] = None
    """For score=shuffled: the folder of a finished run under the same budget, whose ranks are
    permuted over the matrices of each shape."""
    init: Annotated[str, OneOf(STARTS)] = "paper"
    """paper (c = 0, A and B random); lora (c = 1, B = 0), which learns from the first step;
    orthogonal (c = 0, the vectors of A and B at length one and at right angles); or orthogonal_A
    (those of A alone, B = 0, c = 1)."""
    c_lr_ratio: Annotated[float, Gt(0)] = 1.0
    """Learning rate of c, as a multiple of the others'."""
    b_lr_ratio: Annotated[float, Gt(0)] = 1.0
    """Learning rate of B, as a multiple of A's (LoRA+, Hayou et al., 2024)."""
    train_c: bool = True
    """Whether c is trained; if not, it stays 1 where a component is kept: with init=lora or
    orthogonal_A."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_c and self.init == "orthogonal_A":
            raise ValueError(
                "method.init = orthogonal_A: the size of a component is in B there, and c stays 1. "
                "Set method.train_c=false, or another method.init"
            )
        if not self.train_c and self.init not in ("lora", "orthogonal_A"):
            raise ValueError(
                f"method.train_c = false: with method.init = {self.init}, c stays 0 and nothing "
                "would be learned. Set method.train_c=true, or method.init=lora or orthogonal_A"
            )
        if not self.train_c and self.score == "sensitivity":
            raise ValueError(
                "method.train_c = false: method.score = sensitivity needs the gradient of c. Set "
                "method.score=fisher"
            )
        if not self.train_c and self.c_lr_ratio != 1:
            # With method.init=orthogonal_A the other remedy would only lead to another refusal.
            remedy = "" if self.init == "orthogonal_A" else ", or method.train_c=true"
            raise ValueError(
                f"method.c_lr_ratio = {self.c_lr_ratio:g}: c is not trained, since "
                f"method.train_c = false. Set method.c_lr_ratio=1{remedy}"
            )
        if (self.score == "shuffled") != (self.rank_pattern_from is not None):
            raise ValueError(
                f"method.score = {self.score}: score=shuffled and rank_pattern_from=RUN go together"
            )

    def scale(self, init: int, target: float) -> float:
        """Return the factor s of the update, for a budget's init and target."""
        divisors = {
            "init": float(init),
            "target": max(1.0, target),
            "sqrt": math.sqrt(max(1.0, target)),
        }
        return self.alpha_at(init) / divisors[self.alpha_over]

    def alpha_at(self, init: int) -> float:
        """Return alpha, resolved for the components that a layer starts with."""
        # The scale is alpha / init, and B's entries start as small as init^-0.5 (Kaiming). With
        # init^1.5 both together stay the same. 8 and 12 are the published setting's alpha and init.
        return 8.0 * (init / 12) ** 1.5 if self.alpha is None else self.alpha


@dataclass
class DynaRankConfig(DoRAConfig):
    """The recipe of this library: unit directions in A, sizes in B, and a Fisher score."""

    lr_scale: Annotated[float, Gt(0)] = 5.0
    alpha: Annotated[float | None, Gt(0)] = 1.0
    """The scale of the update, over what alpha_over says; null as for dora. It is small, so that
    the learning rate may be high."""
    alpha_over: Annotated[str, OneOf(("init", "target", "sqrt"))] = "target"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    beta: Annotated[float, Ge(0), Lt(1)] = 0.9
    score: Annotated[str, OneOf((*SCORES, "shuffled"))] = "fisher"
    init: Annotated[str, OneOf(STARTS)] = "orthogonal_A"
    train_c: bool = False
    orthogonality: Annotated[float, Ge(0)] = 0.1
    """Weight of AdaLoRA's orthogonal regularization in the loss. With init=orthogonal and
    train_c=true it keeps every component's directions at length one, and its size in c. With
    init=orthogonal_A it keeps A's alone so, and the size is in B."""
    rate_power: Annotated[float, Ge(0), Le(1)] = 0.5
    """While more components live than are kept in the end, the adapters' learning rate is
    (budget.target / budget now)^rate_power of the schedule's: all components together then move
    the model about as fast as those that are kept. 0 leaves the rate alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orthogonality and self.train_c and self.init == "lora":
            raise ValueError(
                f"method.orthogonality = {self.orthogonality:g} would pull B, which starts at zero "
                "with method.init = lora, to length one. Set method.orthogonality=0, "
                "method.init=orthogonal, or method.train_c=false"
            )


@dataclass
class DynaRankOrthogonalConfig(DynaRankConfig):
    """The recipe on orthogonal components, whose size is in c alone: for longer training."""

    lr_scale: Annotated[float, Gt(0)] = 2.5
    alpha: Annotated[float | None, Gt(0)] = 8.0
    """The scale of the update, over what alpha_over says; null as for dora."""
    alpha_over: Annotated[str, OneOf(("init", "target", "sqrt"))] = "sqrt"
    init: Annotated[str, OneOf(STARTS)] = "orthogonal"
    train_c: bool = True
    orthogonality: Annotated[float, Ge(0)] = 0.5
