"""Find a model's linear maps by name, put adapters around them, and say what is trained. Torch only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from dynarank.adapters.layer import DoRALinear, is_linear

_REGEX_SIGNS = set(r"^$*+?|()[]{}\\")


def matches(name: str, target: str) -> bool:
    """Whether a module's full name fits a target: a suffix at a dot (`output.dense`), or a whole regular expression."""
    if _REGEX_SIGNS & set(target):
        return re.fullmatch(target, name) is not None
    return name == target or name.endswith("." + target)


def find_linears(
    model: nn.Module, targets: Sequence[str], exclude: Sequence[str] = ()
) -> list[str]:
    """Full names of the linear maps that fit any target, in the model's order.

    `exclude` names modules whose inside is left alone (the task head).

    Raises:
        ValueError: a target fits no linear map (the message lists the linear maps that there are), or is no valid
            regular expression.
    """
    linears = [
        name
        for name, module in model.named_modules()
        if is_linear(module)
        and not any(name == head or name.startswith(head + ".") for head in exclude)
    ]
    for target in targets:
        try:
            found = any(matches(name, target) for name in linears)
        except re.error as error:
            raise ValueError(
                f"target {target!r} is not a valid regular expression: {error}"
            ) from None
        if not found:
            raise ValueError(
                f"target {target!r} matches no linear layer. The model's linear layers are: {_kinds(linears)}"
            )
    return [name for name in linears if any(matches(name, target) for target in targets)]


def _kinds(names: Iterable[str]) -> str:
    """The distinct names once layer numbers are set aside, each a target that would match."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)) or "none"


def inject(
    model: nn.Module,
    targets: Sequence[str],
    r: int,
    alpha: float = 8.0,
    dropout: float = 0.0,
    exclude: Sequence[str] = (),
    start: str = "paper",
) -> dict[str, DoRALinear]:
    """Wrap every linear map that fits a target in a `DoRALinear`, in place; returns them by full name, in model order.

    Raises:
        ValueError: no targets, or one that fits nothing (see `find_linears`), or the model has adapters already.
    """
    if not targets:
        raise ValueError("no targets given: name the linear layers to adapt")
    if adapter_layers(model):
        raise ValueError("the model has adapters already: load a fresh one, or merge these first")
    layers = {}
    for name in find_linears(model, targets, exclude):
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        layers[name] = DoRALinear(getattr(parent, child), r, alpha, dropout, start).train(
            model.training
        )
        setattr(parent, child, layers[name])
    return layers


def adapter_layers(model: nn.Module) -> dict[str, DoRALinear]:
    """The model's adapters by full name, in model order."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, DoRALinear)
    }


def mark_trainable(model: nn.Module, head: Sequence[str] = ()) -> None:
    """Let the adapters and the modules named in `head` train, and nothing else."""
    model.requires_grad_(False)
    for name in head:
        model.get_submodule(name).requires_grad_(True)
    for layer in adapter_layers(model).values():
        for parameter in (layer.lora_A, layer.lora_B, layer.lora_c):
            parameter.requires_grad_(True)
