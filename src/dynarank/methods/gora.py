"""GoRA, gradient-driven ranks and start (He et al., arXiv 2502.12171); LoRA-GA's directions.

G is the mean gradient of a frozen weight W over the first batches. Legend: W, G (d_out, d_in), L
layers, f = d_in + d_out, target the mean rank.

    I = mean |W * G|, elementwise                             importance of a layer
    rho_l = (I_l / sum I) (sum_m sqrt(f_m)) target / sqrt(f_l)  rank, before rounding
    B = -(gamma / s) sqrt(d_in / r) G A^T (A A^T)^-1          start, with A random (Kaiming)

so that the start s B A, with the layer's scale s, is the gradient, projected onto A's rows, as a
step downhill. Of G the projection onto r random directions leaves about sqrt(r / d_in); the root
makes up for that, so that the step is about as long as gamma G, for every rank and scale. (The
authors' code has no minus.) The paper rounds each rho_l, and meets its budget about; here the
components are taken in the order of rho_l - j, j = 0, 1, ..., which is rounding with a threshold
that meets the budget exactly. Ranks lie between `budget.min_rank` and max_ratio x target: the
authors' runs have target / 2 and 4 x target.

Their runs also have f in place of its root in rho, a scale of alpha / sqrt(r_l), which differs by
layer, B's rate 16 times A's, and dropout while they read 32 or 64 batches. Here s is alpha / target
in every layer, as of the other methods; the start does not depend on s.

`method.directions=gradient` takes A's rows from the first right singular vectors of G, as LoRA-GA
(Wang et al., arXiv 2407.05000) does. s B A is then the best step of that rank, -gamma G_k of the
truncated decomposition, without the root. LoRA-GA's B is another: it has the next left singular
vectors, from k + 1 to 2 k, at a size of its own, and the start is taken off W, so that the export
would no longer be an adapter of the base model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dynarank.adapters.greedy import top_components, top_parameters
from dynarank.adapters.layer import stores_transposed
from dynarank.allocation.components import component_parameters
from dynarank.methods.base import Inputs
from dynarank.methods.config import GoraConfig
from dynarank.methods.prepared import PlacedMethod
from dynarank.rounding import round_half_up


class Gora(PlacedMethod[GoraConfig]):
    """LoRA whose ranks and start come from the gradient of the first batches."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        pool = math.ceil(self.config.max_ratio * self.budget.target)
        if self.budget.max_rank is not None:
            pool = min(pool, self.budget.max_rank)
        self.put_room(
            model, targets, pool=pool, alpha=self.config.alpha, dropout=self.config.dropout
        )
        return model

    @property
    def preparation_batches(self) -> int:
        return self.config.batches

    def prepare(self, inputs: Sequence[Inputs]) -> None:
        with self.bare() as maps:
            gradients = mean_gradients(self.model, maps, inputs)
            importance = []
            for name, gradient in gradients.items():
                products = weight_of(maps[name]) * gradient
                importance.append(float(products.abs().mean()))
        costs = [component_parameters(layer) for layer in self.layers.values()]
        ranks = self.choose(importance, costs)
        starts_of_A: dict[str, Tensor] = {}
        starts_of_B: dict[str, Tensor] = {}
        for (name, gradient), rank in zip(gradients.items(), ranks, strict=True):
            starts_of_A[name], starts_of_B[name] = self.start(gradient, rank)
        self.place(A=starts_of_A, B=starts_of_B)

    def choose(self, importance: Sequence[float], costs: Sequence[int]) -> list[int]:
        """Return the layers' ranks, which meet the budget exactly, from `min_rank` to `pool`.

        Args:
            importance: I of every layer, in model order.
            costs: f of every layer: the parameters of one of its components.
        """
        roots = torch.tensor(costs, dtype=torch.float64).sqrt()  # sqrt(f)
        # The bound keeps the shares from being NaN where all gradients are zero.
        total = max(sum(importance), 1e-300)
        share = torch.tensor(importance, dtype=torch.float64) / total
        rho = share * roots.sum() * float(self.budget.target) / roots  # (layers)
        # rho - j for the components j = 0, 1, ... of every layer.
        scores = rho[:, None] - torch.arange(self.pool)  # (layers, pool)
        if self.budget.unit == "parameters":
            costs_of = torch.tensor(costs, dtype=torch.float64)[:, None].expand_as(scores)
            # Negative scores would mean that a component may not be taken. `top_parameters` orders
            # by score / cost, and these are to be taken by score.
            scores = (scores - scores.min()) * costs_of
            scores[:, : self.budget.min_rank] = torch.inf
            allowance = round_half_up(self.budget.target * sum(costs))
            keep = top_parameters(scores.flatten(), costs_of.flatten(), allowance)
        else:
            scores[:, : self.budget.min_rank] = torch.inf
            count = round_half_up(self.budget.target * len(costs))
            keep = top_components(scores.flatten(), count)
        ranks: list[int] = keep.view(-1, self.pool).sum(dim=1).tolist()
        return ranks

    def start(self, gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return A (rank, d_in) and B (d_out, rank) for a mean gradient (d_out, d_in)."""
        length = self.config.gamma / self.scale
        d_in = gradient.shape[1]
        if self.config.directions == "gradient":
            A = torch.linalg.svd(gradient, full_matrices=False).Vh[:rank]
            # A gradient has no more directions than its smaller side: the rest are rows of zeros.
            missing = rank - len(A)
            A = nn.functional.pad(A, (0, 0, 0, missing))
        else:
            A = torch.empty(rank, d_in)
            # torch warns where there is nothing to initialize.
            if rank:
                nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # LoRA's own value
                length *= math.sqrt(d_in / rank)
        # By the pseudoinverse, since A A^T has no inverse where rows of A are padding.
        B = -length * gradient @ torch.linalg.pinv(A)
        return A, B


def weight_of(base: nn.Module) -> Tensor:
    """Return a base map's weight as (d_out, d_in), float32, on the CPU."""
    weight = base.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach().float().cpu()
    return weight.T if stores_transposed(base) else weight


def mean_gradients(
    model: nn.Module, maps: Mapping[str, nn.Module], inputs: Sequence[Inputs]
) -> dict[str, Tensor]:
    """Return the mean over batches of the loss's gradient by each map's weight, (d_out, d_in).

    Args:
        model: it is called with each batch, labels included, and returns an object with `loss`.
        maps: the linear maps by name, with frozen weights.
        inputs: the batches.

    Raises:
        ValueError: a weight is quantized and has no gradient.
    """
    weights = {}
    for name, base in maps.items():
        weight = base.weight
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
            raise ValueError(f"{name} is quantized and has no gradient: load it unquantized")
        weights[name] = weight
    # On the CPU: together they are as large as all adapted weights. A sum of parts that are
    # divided already is the mean in the end.
    sums = {name: torch.zeros(tuple(weight.shape)) for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for batch in inputs:
            loss = model(**batch).loss
            # Not by `backward`, which would leave gradients in the head's parameters.
            # Not every map need be part of the loss.
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient.float().cpu() / len(inputs)
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    means = {}
    for name, mean in sums.items():
        means[name] = mean.T if stores_transposed(maps[name]) else mean
    return means
