"""Bottleneck adapters: two-layer networks after the sublayers of a frozen model.

Legend: d a model's width, m the bottleneck, h a sublayer's output.

    y = h + W_up gelu(W_down h + b_down) + b_up        W_down (m, d), W_up (d, m)

Sources: Houlsby et al., ICML 2019 (after attention and feed-forward); Pfeiffer et al., EACL 2021
(after feed-forward alone). h is taken as the sublayer's last linear map gives it, before dropout
and residual.

Where this departs from them, so that the adapter is all that trains and starts as nothing:
Houlsby et al. also train the layer norms, start both matrices near zero and not W_up at it, and
stand behind the dropout. Pfeiffer et al. have relu for gelu, and behind the residual and the norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from dynarank.adapters.inject import find_linears, replace_module
from dynarank.adapters.layer import linear_shape
from dynarank.methods.base import MethodSize, matched_note, nominal_parameters
from dynarank.methods.config import MethodConfig
from dynarank.methods.trained_file import TrainedFileMethod
from dynarank.pretrained.architectures import bottleneck_places


class BottleneckLinear(nn.Module):
    """A sublayer's last linear map with an adapter after it.

    It starts equal to the map alone, for W_up starts at zero.
    """

    def __init__(self, base: nn.Module, m: int) -> None:
        super().__init__()
        self.base = base
        d = linear_shape(base)[1]
        device = next(base.parameters()).device
        self.down = nn.Linear(d, m, device=device)
        self.up = nn.Linear(m, d, device=device)
        nn.init.normal_(self.down.weight, std=1e-2)  # Houlsby's value, whose draws are truncated
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    @property
    def weight(self) -> Tensor:
        """The base map's weight, where model code looks at a linear map's dtype or device."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)  # (..., d)
        # The adapter is float32 on any base.
        inner = F.gelu(self.down(h.to(self.down.weight.dtype)))  # (..., m)
        return h + self.up(inner).to(h.dtype)


class Houlsby(TrainedFileMethod[MethodConfig]):
    """Adapters after attention and feed-forward.

    m is the width whose parameters come nearest to the budget's.
    """

    behind_attention = True
    bottleneck: int | None = None
    """m, once it is known."""

    def change(self, model: nn.Module, targets: Sequence[str]) -> nn.Module:
        names = self._places(model, self.head)
        # A restored model has it from its weights.
        if self.bottleneck is None:
            widths = [linear_shape(model.get_submodule(name))[1] for name in names]
            nominal = nominal_parameters(model, targets, self.head, self.budget.target)
            self.bottleneck = nearest_bottleneck(widths, nominal)
        for name in names:
            base = model.get_submodule(name)
            replace_module(model, name, BottleneckLinear(base, self.bottleneck))
        return model

    def _places(self, model: nn.Module, head: Sequence[str]) -> list[str]:
        """Return the linear maps that an adapter follows, in model order.

        Raises:
            ValueError: none is known for this model.
        """
        inner: Any = model
        patterns = bottleneck_places(inner.config.model_type, self.behind_attention)
        names = _existing_linears(model, patterns, head)
        if not names:
            raise ValueError(
                f"no place for method={self.config.name} is known in a {type(model).__name__}"
            )
        return names

    def take_sizes(
        self, model: nn.Module, head: Sequence[str], trained: Mapping[str, Tensor]
    ) -> None:
        name = self._places(model, head)[0]
        width = linear_shape(model.get_submodule(name))[1]
        key = f"{name}.down.weight"
        shape = tuple(trained[key].shape) if key in trained else ()
        if len(shape) != 2 or shape[1] != width:
            raise ValueError(
                f"{key} must be a matrix of {width} columns, and has the shape {shape}"
            )
        self.bottleneck = shape[0]

    def adapted_size(self, nominal: int) -> MethodSize:
        parameters = self.adapter_parameters()
        return MethodSize(
            label=f"bottleneck {self.bottleneck}",
            parameters=parameters,
            note=matched_note(parameters, nominal),
        )


class Pfeiffer(Houlsby):
    """Adapters after feed-forward alone."""

    behind_attention = False


def bottleneck_parameters(d: int, m: int) -> int:
    """Return what one adapter takes: two matrices and two biases."""
    return 2 * d * m + m + d


def nearest_bottleneck(widths: Sequence[int], parameters: int) -> int:
    """Return the m, at least 1, with which adapters of these widths come nearest to a number.

    Their parameters are linear in m: a fixed part (m = 0), and as much again for each of m.
    """
    fixed = sum(bottleneck_parameters(d, 0) for d in widths)
    each = sum(bottleneck_parameters(d, 1) for d in widths) - fixed
    return max(1, round((parameters - fixed) / each))


def _existing_linears(model: nn.Module, patterns: Sequence[str], head: Sequence[str]) -> list[str]:
    """Return the linear maps that fit any pattern, in model order.

    A pattern that fits nothing is passed over: the model may have no such sublayer.
    """
    fitting: set[str] = set()
    for pattern in patterns:
        try:
            fitting.update(find_linears(model, [pattern], head))
        except ValueError:
            continue
    # All are asked for once more, since the set has lost the model's order.
    return [name for name in find_linears(model, [r".*"], head) if name in fitting]
