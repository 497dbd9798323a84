"""Write adapters as a plain PEFT LoRA adapter. This needs safetensors and peft beside torch.

Legend: k components that a layer kept, A (k, d_in), B (d_out, k).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dynarank.adapters.adapter_checks import CONFIG
from dynarank.adapters.folding import Factors, fold
from dynarank.adapters.inject import adapter_layers, check_plain_head
from dynarank.adapters.layer import DoRALinear, stores_transposed
from dynarank.adapters.linears import names_of
from dynarank.adapters.progress import check_at_budget
from dynarank.adapters.reader_forms import in_form, names_to_exclude, resolve_form, scale_settings
from dynarank.adapters.wrappers import unwrapped_model
from dynarank.durable_files import make_readable


def write_peft_adapter(
    model: nn.Module,
    folder: str | Path,
    base: str | Path,
    task_type: str | None = None,
    head: Sequence[str] = (),
    over_budget: bool = False,
    form: str = "auto",
) -> dict[str, int]:
    """Write the model's adapters as a plain PEFT LoRA adapter; return the ranks by module name.

    peft alone loads it, and the outputs are the same. c and s are folded into B, pruned components
    are dropped, and layers of rank 0 are left out. Weights are float32. `reader_forms` says how
    the ranks are stored, and who reads which form.

    Args:
        model: a model with adapters of `inject`, also in a wrapper of torch's (`torch.compile`,
            DistributedDataParallel, AveragedModel), which leaves no trace in the files.
        folder: where the adapter is written; it is made.
        base: what PEFT loads the base model from (a hub id or a folder), stored in the adapter.
        task_type: PEFT's name of the task ("SEQ_CLS", ...).
        head: modules trained in full, stored as `modules_to_save`.
        over_budget: whether to write the adapters even though their ranks are not final.
        form: `peft`, with a rank pattern; `gguf`, for llama.cpp; `padded` with zeros to one rank,
            right for every reader; or `auto`: `padded` for language models, which other readers
            than PEFT take, else `peft`.

    Raises:
        ValueError: the model has no adapters, or their allocator has not frozen the ranks; every
            layer has rank 0, or an adapter stands in two places, which PEFT cannot represent; an
            adapter is inside the head; a trained value is not finite; or there is no such form.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torch import nn
        >>> from dynarank import inject, write_peft_adapter
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8)})
        >>> layers = inject(model, targets=["query"], r=3, start="lora")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ranks = write_peft_adapter(model, folder, base="org/base-model")
        ...     files = sorted(path.name for path in Path(folder).iterdir())
        >>> ranks
        {'query': 3}
        >>> [name for name in files if name != "README.md"]
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    model = unwrapped_model(model)
    layers = adapter_layers(model)
    if not layers:
        raise ValueError(
            f"the {type(model).__name__} has no adapters of `inject`: they were merged, or never "
            "made. A model of PEFT is saved by its own save_pretrained"
        )
    if not over_budget:
        check_at_budget(layers.values())
    _check_single_places(model, layers)
    return write_factors(
        factors={name: fold(layer) for name, layer in layers.items()},
        model=model,
        folder=folder,
        base=str(base),  # PEFT writes it as JSON, which has no paths
        task_type=task_type,
        head=head,
        # PEFT has one flag for all layers. Where one differs, it warns and goes by the class.
        transposed=all(stores_transposed(layer.base) for layer in layers.values()),
        form=form,
    )


def _check_single_places(model: nn.Module, layers: Mapping[str, DoRALinear]) -> None:
    """Raise `ValueError` where an adapter stands in two places, of which PEFT would fill one."""
    places = names_of(model)
    for name, layer in layers.items():
        for other in places[id(layer)]:
            if other != name:
                raise ValueError(
                    f"{name} and {other} are one adapter, and PEFT would load it at {name} alone. "
                    "Merge it instead: merge(model)"
                )


def write_factors(
    factors: Mapping[str, Factors],
    model: nn.Module,
    folder: str | Path,
    base: str,
    task_type: str | None,
    head: Sequence[str],
    transposed: bool,
    form: str = "auto",
) -> dict[str, int]:
    """Write LoRA factors of scale 1 as `write_peft_adapter` does; return their ranks by name.

    Args:
        factors: A (k, d_in) and B (d_out, k) by module name; k may differ, and be 0.
        model: where the head, and the names of all modules, are read.
        folder: as in `write_peft_adapter`, like `base`, `task_type`, `head` and `form`.
        base: stored in the adapter.
        task_type: PEFT's name of the task.
        head: modules trained in full.
        transposed: whether the base weights are (d_in, d_out), as in `Conv1D`.
        form: how the ranks are stored.

    Raises:
        ValueError: as `write_peft_adapter`.
    """
    import peft
    from safetensors.torch import save_file

    check_plain_head(model, head)
    form = resolve_form(form, task_type)
    ranks = {name: len(lora_A) for name, (lora_A, _) in factors.items()}
    kept = {name: pair for name, pair in factors.items() if ranks[name]}
    if not kept:
        raise ValueError(
            "every layer has rank 0: there is no adapter to write, only the base model and its head"
        )
    tensors = _adapter_tensors(in_form(kept, form), model, head)
    config = peft.LoraConfig(
        task_type=task_type,
        base_model_name_or_path=base,
        inference_mode=True,
        **scale_settings(kept, form),
        # Full names: layers of rank 0, which PEFT refuses, are then simply not among them.
        target_modules=list(kept),
        exclude_modules=names_to_exclude(kept, [name for name, _ in model.named_modules()]),
        modules_to_save=list(head) or None,
        fan_in_fan_out=transposed,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The mark of PyTorch's tensors, as in PEFT's own files.
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    _sort_target_modules(folder / CONFIG)
    make_readable(folder)
    return ranks


def _sort_target_modules(path: Path) -> None:
    """Put the names of the adapted modules in order: PEFT writes a set, in the order of hashes."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _adapter_tensors(
    factors: Mapping[str, Factors], model: nn.Module, head: Sequence[str]
) -> dict[str, Tensor]:
    """Return the adapter's tensors under PEFT's names, float32 on the CPU.

    Raises:
        ValueError: a value is not finite.
    """
    tensors: dict[str, Tensor] = {}
    for name, (lora_A, lora_B) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = lora_A
        tensors[f"base_model.model.{name}.lora_B.weight"] = lora_B
    for module in head:
        # PEFT's files name what is trained in full as the base model does.
        head_state = model.get_submodule(module).state_dict(prefix=f"{module}.")
        for key, value in head_state.items():
            tensors[f"base_model.model.{key}"] = value
    for key, value in tensors.items():
        # bfloat16 would lose a quarter of a percent. safetensors takes no views with gaps.
        tensors[key] = value.detach().cpu().to(torch.float32).contiguous()
        if not bool(tensors[key].isfinite().all()):
            raise ValueError(
                f"{key} holds values that are not finite: this model cannot be exported"
            )
    return tensors
