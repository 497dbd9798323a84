"""Let an optimizer's own steps drive an allocator, so that a plain loop cannot forget it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynarank.allocation.components import Components
from dynarank.allocation.dem import add_dem_gradient
from dynarank.allocation.orthogonality import add_orthogonality_gradient
from dynarank.allocation.shorter_steps import ShorterSteps

if TYPE_CHECKING:
    from dynarank.allocation.allocator import RankAllocator


class Attachment:
    """The hooks that drive an allocator from an optimizer. `remove()` takes them away.

    Args:
        optimizer: torch's, or a wrapper that has torch's as its `optimizer`, as accelerate's.
        eta: the weight of DEM (Eq. 10), until the freeze; 0: none.
        orthogonality: the weight of AdaLoRA's orthogonal regularization, to the end; 0: none.
        rate_power: the adapters' steps are (target / budget now)^rate_power as long as the
            optimizer's; 0: as long as these.

    Raises:
        ValueError: the optimizer trains none of the layers' coefficients, is of another kind, or
            drives this allocator already; a weight is below 0 or not finite; or `rate_power` lies
            outside [0, 1].
    """

    def __init__(
        self,
        allocator: RankAllocator,
        optimizer: torch.optim.Optimizer,
        eta: float = 0.0,
        orthogonality: float = 0.0,
        rate_power: float = 0.0,
    ) -> None:
        for name, weight in (("eta", eta), ("orthogonality", orthogonality)):
            if not 0 <= weight < math.inf:  # this refuses NaN, too
                raise ValueError(f"{name} = {weight}: must be 0 (off) or more, and finite")
        self._shorter_steps = ShorterSteps(allocator.schedule, rate_power)
        optimizer = unwrapped(optimizer)
        check_coefficients(optimizer, allocator.layers)
        check_single(optimizer, allocator)
        self.allocator = allocator
        allocator.attached += 1
        self._number = allocator.attached
        self.eta = eta
        self.orthogonality = orthogonality
        self.penalty: Tensor | None = None
        """R of Eq. 10 at the last optimizer step, where eta is above 0."""
        self._has_warned = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Take the hooks away. The allocator keeps its state."""
        for handle in self._handles:
            handle.remove()

    def _is_replaced(self) -> bool:
        """Return whether another allocator has the layers by now, or another optimizer this one.

        The newest alone drives them. Else each step of a training with two optimizers would count
        twice.
        """
        reason = None
        # The first layer tells: an allocator takes all of its layers at once.
        if self.allocator.layers[0].progress is not self.allocator.progress:
            reason = (
                "another allocator has taken the layers of this one, which stands still from here "
                f"on, after {self.allocator.t} steps"
            )
        elif self.allocator.attached != self._number:
            reason = (
                "the allocator was attached to another optimizer since, whose steps alone count "
                "from here on"
            )
        if reason is not None and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{reason}. Call remove() on what the earlier attach() returned",
                stacklevel=4,  # names the line that steps the optimizer
            )
        return reason is not None

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._is_replaced():
            return
        # A loss scaler leaves the unscaling to fused optimizers, and tells them its factor.
        scale = getattr(optimizer, "grad_scale", None)
        layers = self.allocator.layers
        self.penalty = None
        if not self.allocator.frozen:
            self.allocator.observe(scale)  # before a penalty's gradient is among them
            if self.eta != 0:
                self.penalty = add_dem_gradient(layers, self.eta, grad_scale=scale)
        if self.orthogonality != 0:
            add_orthogonality_gradient(layers, self.orthogonality, grad_scale=scale)
        self._shorter_steps.before(layers, self.allocator.t)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._is_replaced():
            return
        self._shorter_steps.after()  # before a pruning sets coefficients to zero
        # A loss scaler does not call other optimizers for a step that it skips. Fused ones it
        # calls, and tells them that a gradient is infinite.
        infinite = getattr(optimizer, "found_inf", None)
        if infinite is None or not bool(infinite):
            self.allocator.step()


def check_single(optimizer: torch.optim.Optimizer, allocator: RankAllocator) -> None:
    """Raise `ValueError` where an optimizer drives an allocator already, and so counted twice."""
    # torch has no public list of an optimizer's hooks.
    for hook in optimizer._optimizer_step_post_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Attachment) and owner.allocator is allocator:
            raise ValueError(
                "the allocator is attached to this optimizer already, and a second attachment "
                "would count each of its steps twice. Call remove() on what attach() returned first"
            )


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer inside others' wrappers.

    Raises:
        ValueError: there is none.
    """
    # accelerate's wrapper is an Optimizer by its class, but has no hooks that would be called.
    while not hasattr(optimizer, "_optimizer_step_post_hooks"):
        if not hasattr(optimizer, "optimizer"):
            raise ValueError(
                f"the optimizer is a {type(optimizer).__name__}, which is neither one of torch's "
                "nor a wrapper of one: call allocator.step() after each of its steps instead"
            )
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def parameter_ids(optimizer: torch.optim.Optimizer) -> set[int]:
    """Return the identities of an optimizer's parameters."""
    identities: set[int] = set()
    for group in optimizer.param_groups:
        identities.update(id(parameter) for parameter in group["params"])
    return identities


def check_coefficients(optimizer: torch.optim.Optimizer, layers: Iterable[Components]) -> None:
    """Raise `ValueError` where the optimizer trains no layer's c or, where these are fixed, A or B.

    One of several optimizers may have some layers only.
    """
    coefficients: list[int] = []
    factors: list[int] = []
    for layer in layers:
        if layer.lora_c.requires_grad:
            coefficients.append(id(layer.lora_c))
        for factor in (layer.lora_A, layer.lora_B):
            if factor.requires_grad:
                factors.append(id(factor))
    wanted = coefficients or factors
    if wanted and parameter_ids(optimizer).isdisjoint(wanted):
        what, outcome = "factors A and B", "nothing would be learned"
        if coefficients:
            what, outcome = "coefficients c", "all ranks would be 0"
        raise ValueError(
            f"the optimizer does not train the layers' {what}, so that {outcome}. Make it after "
            "inject, attach or get_peft_model, of all parameters that require gradients"
        )
