"""Find a model's linear maps by name, put adapters around them, and say what is trained.

This is the first step of every use: `inject`, then `mark_trainable`, then a `RankAllocator` over
the layers that `inject` returns. Torch only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from dynarank.adapters.layer import DoRALinear, is_linear
from dynarank.adapters.linears import keep_differentiable, names_of

# The dot is not among them, since every module's full name has dots.
_REGEX_SIGNS = set(r"^$*+?|()[]{}\\")


def matches(name: str, target: str) -> bool:
    """Return whether a module's full name fits a target.

    A target is the end of a name, from a dot on (`output.dense` fits `layer.0.output.dense`). A
    target with a sign of regular expressions is one for the whole name.
    """
    if _REGEX_SIGNS & set(target):
        return re.fullmatch(target, name) is not None
    return name == target or name.endswith("." + target)


def find_linears(
    model: nn.Module, targets: Sequence[str], exclude: Sequence[str] = ()
) -> list[str]:
    """Return the full names of the linear maps that fit any target, in the model's order.

    Args:
        model: any module.
        targets: ends of module names (`query`, `output.dense`), or regular expressions for whole
            names.
        exclude: modules that are left alone with all that they contain, as the task head or a
            pooler. They are written as targets are: `pooler` excludes `bert.pooler`.

    Raises:
        ValueError: a target fits no linear map (the message lists the linear maps that there are),
            or is no valid regular expression.

    Examples:
        >>> from torch import nn
        >>> from dynarank import find_linears
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8)})
        >>> find_linears(model, targets=["query"])
        ['query']
    """
    check_names("targets", targets)
    check_names("exclude", exclude)
    linears = _linears_outside(model, exclude)
    # Each by itself: a misspelt target would pass unseen beside those that fit.
    for target in targets:
        if not any(_matches_or_refuse(name, target) for name in linears):
            raise ValueError(
                f"target {target!r} matches no linear layer. "
                f"The model's linear layers are: {_distinct_kinds(linears)}"
            )
    return [name for name in linears if _fits_any(name, targets)]


def check_names(setting: str, names: Sequence[str]) -> None:
    """Raise `ValueError` for a text in place of a list: its letters would be taken for names."""
    if isinstance(names, str):
        raise ValueError(f"{setting} = {names!r}: must be a list of names, as [{names!r}]")


def _linears_outside(model: nn.Module, exclude: Sequence[str]) -> list[str]:
    """Return the names of all linear maps that are not inside an excluded module."""
    excluded = set()
    names = []
    for name, module in model.named_modules():  # a parent comes before its children
        parent = name.rpartition(".")[0]
        if parent in excluded or any(_matches_or_refuse(name, entry) for entry in exclude):
            excluded.add(name)
        elif is_linear(module):
            names.append(name)
    return names


def _fits_any(name: str, targets: Sequence[str]) -> bool:
    return any(matches(name, target) for target in targets)


def _matches_or_refuse(name: str, target: str) -> bool:
    try:
        return matches(name, target)
    except re.error as error:
        raise ValueError(f"{target!r} is not a valid regular expression: {error}") from None


def _distinct_kinds(names: Iterable[str]) -> str:
    """List the distinct names once layer numbers are set aside, each a target that would match."""
    # A dict and not a set, since it keeps the model's order.
    kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return ", ".join(kinds) or "none"


def inject(
    model: nn.Module,
    targets: Sequence[str],
    r: int,
    alpha: float = 8.0,
    dropout: float = 0.0,
    exclude: Sequence[str] = (),
    start: str = "paper",
) -> dict[str, DoRALinear]:
    """Wrap every linear map that fits a target in a `DoRALinear`, in place.

    The model computes the same as before. Nothing is frozen but the wrapped maps: call
    `mark_trainable` next.

    Args:
        model: any module; its linear maps are replaced inside it.
        targets: ends of module names (`query`, `output.dense`), or regular expressions for whole
            names; see `find_linears`.
        r: components that every layer starts with, at least 1. The allocator prunes from there.
        alpha: the scale's numerator: every layer's update is multiplied by alpha / r.
        dropout: the probability that an element of an adapter's input is dropped, in [0, 1).
        exclude: modules that are left alone with all that they contain, as the task head.
        start: `paper`, `lora`, `orthogonal` or `orthogonal_A`; see `DoRALinear`.

    Returns:
        the new layers by full module name, in model order.

    Raises:
        ValueError: there are no targets, a target fits nothing (see `find_linears`) or a linear map
            that can have no adapter (a part of an nn.MultiheadAttention, a module that stands in
            two places, a lazy one, the model itself), the model has adapters already, or a setting
            is out of range (see `DoRALinear`).

    Examples:
        >>> from torch import nn
        >>> from dynarank import inject, mark_trainable
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "head": nn.Linear(8, 2)})
        >>> layers = inject(model, targets=["query"], r=6, exclude=["head"])
        >>> mark_trainable(model, head=["head"])
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['query.lora_A', 'query.lora_B', 'query.lora_c', 'head.weight', 'head.bias']
    """
    if not targets:
        raise ValueError("no targets given: name the linear layers to adapt")
    if adapter_layers(model):
        raise ValueError("the model has adapters already: load a fresh one, or merge these first")
    _check_without_peft(model)
    names = find_linears(model, targets, exclude)
    # All before the first, so that a refusal changes nothing.
    _check_called(model, names)
    _check_single_places(model, names, exclude)
    layers = {}
    for name in names:
        base = model.get_submodule(name)
        layer = DoRALinear(base, r=r, alpha=alpha, dropout=dropout, start=start)
        # A new module is in training mode, also where the model around it is not.
        layers[name] = layer.train(model.training)
        replace_module(model, name, layer)
    # In the whole model: gradients reach an adapter through the linear maps after it.
    keep_differentiable(model)
    _keep_calling(model)
    return layers


def _check_called(model: nn.Module, names: Sequence[str]) -> None:
    """Raise `ValueError` for a linear map whose module never calls it."""
    for name in names:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            # The last two parts, as `self_attn.out_proj`, leave it out of every layer at once.
            target = ".".join(name.split(".")[-2:])
            raise ValueError(
                f"{name} is part of an nn.MultiheadAttention, which reads its weight and never "
                f"calls it, so that an adapter would do nothing. Leave it out: exclude=[{target!r}]"
            )


def _check_without_peft(model: nn.Module) -> None:
    """Raise `ValueError` where PEFT has changed the model, whose names are then not the base's."""
    for module in model.modules():
        # By the name of the package, since the library needs no PEFT.
        if type(module).__module__.partition(".")[0] == "peft":
            raise ValueError(
                f"the model holds a {type(module).__name__} of PEFT: what is exported would lack "
                "PEFT's adapter, and name modules that the base model has not. Merge it first: "
                "model = model.merge_and_unload(). For dynamic ranks on PEFT's own layers, use "
                "dynarank.integrations.peft.attach"
            )


def _check_single_places(model: nn.Module, names: Sequence[str], exclude: Sequence[str]) -> None:
    """Raise `ValueError` for a linear map that cannot be replaced where it is used."""
    # `find_linears` knows each module by its first name alone.
    places = names_of(model)
    for name in names:
        linear = model.get_submodule(name)
        if linear is model:
            raise ValueError(
                "the model is itself the linear map, and cannot be replaced inside itself. Make "
                "the layer: DoRALinear(model, r=...)"
            )
        if any(is_lazy(parameter) for parameter in linear.parameters()):
            raise ValueError(
                f"{name} is a {type(linear).__name__}, whose sizes are not known yet. Call the "
                "model once before"
            )
        for other in places[id(linear)]:
            if other != name and not _is_excluded(other, exclude):
                raise ValueError(
                    f"{name} and {other} are one module, and an adapter would stand at {name} "
                    f"alone, as in PEFT. If that is meant, say so: exclude=[{other!r}]. Else give "
                    f"{other} a module of its own: copy.deepcopy(model.get_submodule({name!r}))"
                )


def _is_excluded(name: str, exclude: Sequence[str]) -> bool:
    """Return whether a module's full name is that of an excluded module, or of a part of one."""
    parts = name.split(".")
    names = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(_fits_any(part, exclude) for part in names)


def _keep_calling(model: nn.Module) -> None:
    """Have torch's own encoders call their adapters in evaluation too.

    Their fused form reads the weights of their linear maps instead. These attributes are what they
    ask before they take it.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and adapter_layers(module):
            # 0 stands for any activation but ReLU and GELU, which has no fused form.
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and adapter_layers(module):
            # An encoder asks this before it reads the weights of its first layer.
            module.use_nested_tensor = False


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the model's submodule with this full name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def adapter_layers(model: nn.Module) -> dict[str, DoRALinear]:
    """Return the model's adapters by full name, in model order."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, DoRALinear)
    }


def mark_trainable(model: nn.Module, head: Sequence[str] = ()) -> None:
    """Let the adapters and the modules named in `head` train, and nothing else.

    Args:
        model: what `inject` changed.
        head: full names of modules that are trained whole, as the task head.

    Raises:
        ValueError: an adapter is inside such a module (see `check_plain_head`).
        AttributeError: the model has no module of that name.
    """
    check_plain_head(model, head)
    model.requires_grad_(False)
    for name in head:
        model.get_submodule(name).requires_grad_(True)
    for layer in adapter_layers(model).values():
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)
        layer.lora_c.requires_grad_(layer.trains_c)


def check_plain_head(model: nn.Module, head: Sequence[str]) -> None:
    """Refuse an adapter inside a module that is trained in full.

    A PEFT adapter cannot hold such a module, since its `modules_to_save` are plain modules.

    Raises:
        ValueError: an adapter is inside a module that `head` names, or is one; or `head` is no
            list.
    """
    check_names("head", head)
    for name in head:
        for inner, module in model.get_submodule(name).named_modules(prefix=name):
            if isinstance(module, DoRALinear):
                raise ValueError(
                    f"{inner} has an adapter and is part of the head {name!r}, which is trained in "
                    f"full. Leave it out: inject(..., exclude=[{name!r}])"
                )
