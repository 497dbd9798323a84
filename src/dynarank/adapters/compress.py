"""Make a trained low-rank adapter smaller: keep the best components of the whole adapter.

It needs no training and no data: `compress` takes the LoRA factors of any trained adapter.

Legend: L layers, k components of a layer, its update D = B A with A (k, d_in) and B (d_out, k),
D' the smaller update, G (k, k) the mean of h h^T, where h = A x, over the inputs x of a layer, and
R (k, k) a root of G: G = R R^T.

The best approximation of D of a given rank is its truncated singular value decomposition (Eckart
and Young, 1936). When a component goes, the squared error grows by its squared singular value. So
the squared values of different layers can be compared, and the highest of all layers are kept.

Without inputs, the error is that of the weights, |D - D'|_F^2. With G it is that of the layer's
outputs, E |D x - D' x|^2: B R is decomposed, and its left singular vectors U give D' = U U^T D. The
first is the second with G = A A^T, so that one formula does both.

No (d_out, d_in) matrix is ever formed: B = Q T by QR, and the rest is (k, k).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynarank.adapters.folding import Factors
from dynarank.adapters.greedy import exchanged, top_parameters
from dynarank.rounding import round_half_up


@dataclass(frozen=True)
class LayerLoss:
    """What compression did to one layer."""

    rank_before: int
    rank_after: int
    lost: float
    """Share of the layer's squared update that is gone, 0 to 1."""


@dataclass(frozen=True)
class Compressed:
    """A smaller adapter, and what was lost."""

    factors: dict[str, Factors]
    """A (k, d_in) and B (d_out, k) of scale 1 by layer, float32; k may be 0."""
    layers: dict[str, LayerLoss]
    lost: float
    """Share of the whole adapter's squared update that is gone, 0 to 1."""
    parameters: int
    """Parameters of the smaller adapter."""


@dataclass(frozen=True)
class _Decomposition:
    left: Tensor
    """Orthonormal left singular vectors U (d_out, k), best first."""
    values: Tensor
    """Singular values (k), float64, from high to low."""
    right: Tensor
    """U^T D, (k, d_in)."""


@torch.no_grad()
def compress(
    factors: Mapping[str, Factors],
    *,
    target: float | None = None,
    parameters: int | None = None,
    energy: float | None = None,
    per_layer: bool = False,
    moments: Mapping[str, Tensor] | None = None,
) -> Compressed:
    """Return an adapter with fewer components, the best of all layers together.

    Exactly one of `target`, `parameters` and `energy` says how small it becomes. The mathematics is
    at the top of this file (Eckart and Young, 1936).

    Args:
        factors: A (k, d_in) and B (d_out, k) by layer, the scale folded into either.
        target: mean number of components that a layer keeps; L x target, rounded half up, are kept.
        parameters: at most this many parameters are kept, taken in the order of what a component
            explains for each of its parameters; one that does not fit is left out.
        energy: the share of the squared update that stays at least, above 0 and at most 1.
        per_layer: whether every layer keeps the same share of the budget, instead of the best of
            all layers. It does not go with `parameters`.
        moments: G (k, k) by layer, the mean of h h^T over the inputs of a sample, h = A x; the
            error is then that of the layers' outputs on the sample. None: that of the weights.

    Returns:
        the smaller adapter, and the share of the update that each layer lost.

    Raises:
        ValueError: no layers, not exactly one size, or a size out of range; a factor that is not
            a matrix or not finite, or factors that do not fit each other.

    Examples:
        >>> import torch
        >>> from dynarank import compress
        >>> A, B = torch.eye(3, 8), torch.eye(8, 3) * torch.tensor([3.0, 2.0, 1.0])
        >>> smaller = compress({"query": (A, B)}, target=2)
        >>> smaller.layers["query"].rank_after
        2
        >>> round(smaller.lost, 3)  # 1^2 of 3^2 + 2^2 + 1^2
        0.071
    """
    check_sizes(target=target, parameters=parameters, energy=energy, per_layer=per_layer)
    if not factors:
        raise ValueError("no layers to compress: the adapter holds no low-rank factors")
    decompositions = {}
    for name, (lora_A, lora_B) in factors.items():
        _check_factors(name, lora_A, lora_B)
        moment = None if moments is None else moments[name]
        decompositions[name] = _decompose(lora_A=lora_A, lora_B=lora_B, moment=moment)
    costs = {name: lora_A.shape[1] + lora_B.shape[0] for name, (lora_A, lora_B) in factors.items()}
    values = {name: part.values for name, part in decompositions.items()}
    if not per_layer:
        ranks = _choose(values, costs, target, parameters, energy)
        return _cut(decompositions, ranks, costs)
    ranks = {}
    for name, of_layer in values.items():
        # One layer alone: the budget's share is then the layer's own.
        ranks.update(_choose({name: of_layer}, costs, target, None, energy))
    return _cut(decompositions, ranks, costs)


def check_sizes(
    target: float | None, parameters: int | None, energy: float | None, per_layer: bool
) -> None:
    """Raise `ValueError` unless exactly one size is given, and can be; see `compress`."""
    given = {"target": target, "parameters": parameters, "energy": energy}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"{' and '.join(named) or 'no size'} given: "
            "give exactly one of target, parameters, energy"
        )
    if target is not None and not 0 < target < float("inf"):
        raise ValueError(f"target = {target}: must be above 0 and finite")
    if parameters is not None and parameters < 1:
        raise ValueError(f"parameters = {parameters}: must be 1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy = {energy}: must lie above 0 and be at most 1")
    if per_layer and parameters is not None:
        raise ValueError("per_layer goes with target or energy, not with parameters")


def _check_factors(name: str, lora_A: Tensor, lora_B: Tensor) -> None:
    if lora_A.ndim != 2 or lora_B.ndim != 2 or len(lora_A) != lora_B.shape[1]:
        raise ValueError(
            f"{name}: lora_A {tuple(lora_A.shape)} and lora_B {tuple(lora_B.shape)} are no factors "
            "(k, d_in) and (d_out, k) of a linear layer"
        )
    are_finite = bool(lora_A.isfinite().all()) and bool(lora_B.isfinite().all())
    if not are_finite:
        raise ValueError(f"{name}: the factors hold values that are not finite")


def _decompose(lora_A: Tensor, lora_B: Tensor, moment: Tensor | None) -> _Decomposition:
    # float64: the cut lies among the small singular values, to which float32 leaves few digits.
    A = lora_A.double()
    B = lora_B.double()
    if moment is None:
        # G = A A^T has this root. It is never formed: to square A would halve the digits.
        root = torch.linalg.qr(A.T).R.T  # (k, min(k, d_in))
    else:
        eigenvalues, vectors = torch.linalg.eigh(moment.double())
        # A mean of squares has no negative eigenvalue; rounding gives some just below zero.
        root = vectors * eigenvalues.clamp(min=0).sqrt()
    # B R = Q (T R) with orthonormal Q: the small T R has the same singular values.
    Q, T = torch.linalg.qr(B)
    left, values, _ = torch.linalg.svd(T @ root, full_matrices=False)
    # U^T D = left^T Q^T Q T A, in which Q^T Q is one.
    return _Decomposition(left=Q @ left, values=values, right=(left.T @ T) @ A)


def _choose(
    values: Mapping[str, Tensor],
    costs: Mapping[str, int],
    target: float | None,
    parameters: int | None,
    energy: float | None,
) -> dict[str, int]:
    """Return the rank that each layer keeps, by name. Ties go to the earlier layer.

    The sizes are those of `compress`, of which one is given.

    Args:
        values: singular values by layer, (k) each, from high to low.
        costs: parameters of one component, by layer.
    """
    # Layers may lie on several devices.
    squares = torch.cat([of_layer.cpu().square() for of_layer in values.values()])
    sizes = torch.tensor([len(of_layer) for of_layer in values.values()])
    layer_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)  # of each component
    if parameters is not None:
        cost_of_component = torch.tensor(list(costs.values()))[layer_of]
        greedy = top_parameters(squares, cost_of_component, parameters)
        kept = exchanged(greedy, squares, cost_of_component, parameters).nonzero().flatten()
    else:
        # Stable, since only then the order of ties is the same on every machine.
        order = torch.argsort(squares, descending=True, stable=True)
        if target is not None:
            count = round_half_up(len(sizes) * target)
        else:
            assert energy is not None
            count = _count_that_explains(energy, squares[order])
        kept = order[:count]
    kept = kept[squares[kept] > 0]  # a component of size zero costs parameters and does nothing
    # A layer's values fall, so that its kept ones are always its first: a number says which.
    ranks = torch.bincount(layer_of[kept], minlength=len(sizes)).tolist()
    return dict(zip(values, ranks, strict=True))


def _count_that_explains(energy: float, squares: Tensor) -> int:
    """Return how many of the first squares, (n) from high to low, sum to the share `energy`."""
    explained = squares.cumsum(0)
    is_below = explained < energy * explained[-1]
    # The component that reaches the share is kept, too: hence one more.
    return int(is_below.sum()) + 1


def _cut(
    decompositions: Mapping[str, _Decomposition],
    ranks: Mapping[str, int],
    costs: Mapping[str, int],
) -> Compressed:
    """Cut each layer's decomposition to its rank, and count what is lost."""
    factors = {}
    layers = {}
    total = 0.0
    gone = 0.0
    for name, part in decompositions.items():
        rank = ranks[name]
        # Rows and columns of one length, so that no value of either is small for the other's sake.
        scale = part.right[:rank].norm(dim=1).sqrt().clamp(min=1e-30)
        # safetensors, which writes them, takes no views with gaps.
        lora_A = (part.right[:rank] / scale[:, None]).float().contiguous()
        lora_B = (part.left[:, :rank] * scale).float().contiguous()
        factors[name] = (lora_A, lora_B)
        of_layer = float(part.values.square().sum())
        lost = float(part.values[rank:].square().sum())
        layers[name] = LayerLoss(
            rank_before=len(part.values),
            rank_after=rank,
            lost=_share(lost, of_layer),
        )
        total += of_layer
        gone += lost
    return Compressed(
        factors=factors,
        layers=layers,
        lost=_share(gone, total),
        parameters=sum(rank * costs[name] for name, rank in ranks.items()),
    )


def _share(part: float, whole: float) -> float:
    # An adapter that was never trained is zero throughout, and loses nothing.
    return part / whole if whole > 0 else 0.0
