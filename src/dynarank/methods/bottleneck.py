"""Bottleneck adapters: two-layer networks behind the sublayers of a frozen model.

Legend: d a model's width, m the bottleneck.

    y = h + W_up gelu(W_down h + b_down) + b_up        W_down (m, d), W_up (d, m), h a sublayer's output

Sources: Houlsby et al., ICML 2019 (behind attention and feed-forward); Pfeiffer et al., EACL 2021 (behind feed-forward
alone). h is taken as the sublayer's last linear map gives it, before dropout and residual.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dynarank.adapters.inject import find_linears
from dynarank.adapters.layer import linear_shape
from dynarank.methods.base import Method, nominal_parameters
from dynarank.methods.config import MethodConfig

ATTENTION_OUTPUTS = [
    *("attention.output.dense", "out_proj", "out_lin", "o_proj", "attn.o"),
    *(r".*Attention\.o", r".*attn\.c_proj"),
]
"""Last linear map of the attention sublayer, in the architectures that we know."""
FEEDFORWARD_OUTPUTS = [
    r".*\d\.output\.dense",
    "fc2",
    "lin2",
    "down_proj",
    r".*DenseReluDense\.wo",
    r".*mlp\.c_proj",
]


class BottleneckLinear(nn.Module):
    """A sublayer's last linear map with an adapter behind it; starts equal to the map alone (W_up = 0)."""

    def __init__(self, base: nn.Module, m: int) -> None:
        super().__init__()
        self.base = base
        d = linear_shape(base)[1]
        device = next(base.parameters()).device
        self.down, self.up = nn.Linear(d, m, device=device), nn.Linear(m, d, device=device)
        nn.init.normal_(self.down.weight, std=1e-2)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    @property
    def weight(self) -> Tensor:
        """The base map's, where model code looks at a linear map's dtype or device."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        return h + self.up(F.gelu(self.down(h.to(self.down.weight.dtype)))).to(h.dtype)


def bottleneck_parameters(d: int, m: int) -> int:
    """Of one adapter: two matrices and two biases."""
    return 2 * d * m + m + d


class Houlsby(Method[MethodConfig]):
    """Adapters behind attention and feed-forward; m is the one that comes nearest to the budget's parameters."""

    behind_attention = True

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        wanted = FEEDFORWARD_OUTPUTS + (ATTENTION_OUTPUTS if self.behind_attention else [])
        names = _known(model, wanted, self.head)
        if not names:
            raise ValueError(
                f"no place for method={self.config.name} is known in a {type(model).__name__}"
            )
        widths = [linear_shape(model.get_submodule(name))[1] for name in names]
        budget = nominal_parameters(model, targets, self.head, self.budget.target)
        m = max(1, round((budget - sum(widths)) / sum(2 * d + 1 for d in widths)))
        for name in names:
            parent, _, child = name.rpartition(".")
            place = model.get_submodule(parent)
            setattr(place, child, BottleneckLinear(getattr(place, child), m))
        return model


class Pfeiffer(Houlsby):
    """Adapters behind feed-forward alone."""

    behind_attention = False


def _known(model: nn.Module, patterns: Sequence[str], head: Sequence[str]) -> list[str]:
    """Linear maps that fit any pattern, in model order."""
    found: set[str] = set()
    for pattern in patterns:
        try:
            found.update(find_linears(model, [pattern], head))
        except ValueError:  # of another architecture
            continue
    return [name for name in find_linears(model, [r".*"], head) if name in found]
