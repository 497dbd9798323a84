"""Write a run's adapter, or any PEFT LoRA adapter, in the form that its reader needs.

dynarank export RUN_OR_ADAPTER OUT_DIR                  as it is, for PEFT
dynarank export RUN_OR_ADAPTER OUT_DIR --format gguf    for llama.cpp and Ollama
dynarank export RUN_OR_ADAPTER OUT_DIR --format merged  a plain transformers model
dynarank export RUN_OR_ADAPTER --rank-pattern           its ranks, for others' settings
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.adapters.reader_forms import READERS
from dynarank.commands.command_line import CommandParser, add_hub_root, exit_on_user_error
from dynarank.errors import UserError

if TYPE_CHECKING:
    import torch

    from dynarank.pretrained.hub import HubConfig

MERGED = "merged"
DTYPES = ("float32", "bfloat16")
"""What the weights of a merged model may be stored in."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. It exits with 2 and one message for a user's mistake."""
    options = parse(arguments)
    with exit_on_user_error():
        from dynarank.pretrained.hub import HubConfig

        adapter = adapter_folder(options)
        if options.rank_pattern:
            print(rank_pattern_text(adapter), end="")
            return
        refuse_filled_folder(options.out)
        if options.format == MERGED:
            hub = HubConfig(options.hub_root)
            notes = write_merged(adapter, options.out, hub, options.base, options.dtype)
        elif options.format is None:
            copy_adapter(adapter, options.out)
            notes = [read_by(stored_form(adapter))]
        else:
            notes = write_form(adapter, options.out, options.format)
    for note in notes:
        print(note)
    print(f"written: {options.out}/")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options."""
    parser = CommandParser("export", __doc__)
    parser.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="a run's folder, or its adapter folder"
    )
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT_DIR", help="a new folder")
    parser.add_argument(
        "--format",
        choices=[*READERS, MERGED],
        help="peft: with a rank pattern; gguf: for llama.cpp and Ollama; padded: one rank for all "
        "layers, right for every reader of adapters; mlx: for mlx-lm; merged: a plain transformers "
        "model (default: the adapter as it is)",
    )
    parser.add_argument(
        "--merged",
        action="store_true",
        help="the same as --format merged",
    )
    parser.add_argument(
        "--rank-pattern",
        action="store_true",
        help="print the ranks as settings of PEFT, axolotl and LLaMA-Factory, and write nothing",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="what a merged model's weights are stored in (default: float32, which loses nothing)",
    )
    parser.add_argument(
        "--over-budget",
        action="store_true",
        help="also of a run that ended before its ranks were frozen",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="the base model's hub id or folder, where it has moved"
    )
    add_hub_root(parser)
    options = parser.parse_args(arguments)
    if options.merged:
        if options.format not in (None, MERGED):
            parser.error(f"--merged and --format {options.format}: give one of them")
        options.format = MERGED
    if options.dtype != DTYPES[0] and options.format != MERGED:
        parser.error(f"--dtype {options.dtype}: is for --merged alone; an adapter stays float32")
    if (options.out is None) != options.rank_pattern:
        parser.error("give OUT_DIR, or --rank-pattern, which writes nothing")
    return options


def adapter_folder(options: argparse.Namespace) -> Path:
    """Return the folder of the adapter that the options name. Raises `UserError`.

    Where only its factors are needed, it may be any PEFT adapter, of whatever made it.
    """
    from dynarank.adapters.adapter_checks import CONFIG
    from dynarank.run_folder import ORIGIN
    from dynarank.runs.origin import find_adapter

    folder: Path = options.run
    is_foreign = (folder / CONFIG).is_file() and not (folder / ORIGIN).is_file()
    if is_foreign and (options.rank_pattern or options.format in READERS):
        return folder
    return find_adapter(folder, options.over_budget)


def refuse_filled_folder(out: Path) -> None:
    """Raise `UserError` where the folder to be written is there already, and not empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already. Name a new folder")


def copy_adapter(adapter: Path, out: Path) -> None:
    """Copy an adapter as it is. Raises `UserError` for a method that PEFT has no form for."""
    from dynarank.runs.origin import read_origin

    origin = read_origin(adapter)
    if origin.is_peft_adapter:
        shutil.copytree(adapter, out, dirs_exist_ok=True)
        sync_files(out)
        return
    trained = f"{adapter}: what method={origin.method} trained"
    if origin.is_whole_model:
        raise UserError(f"{trained} is a whole model already, and is no PEFT adapter")
    raise UserError(f"{trained} has no form that PEFT knows, and is no PEFT adapter")


def stored_form(adapter: Path) -> str:
    """Return the form that an adapter is stored in."""
    from dynarank.adapters.adapter_checks import CONFIG, read_json

    config = read_json(adapter / CONFIG)
    if config.get("alpha_pattern"):
        return "peft"
    return "gguf" if config.get("rank_pattern") else "padded"


def read_by(form: str) -> str:
    """Return who reads a form, in a sentence."""
    return f"in the form '{form}', which is read rightly by: {READERS[form]}"


def write_form(adapter: Path, out: Path, form: str) -> list[str]:
    """Write an adapter in a form; return what the user should know, a sentence each.

    Raises:
        UserError: it is no PEFT LoRA adapter, or the form has no place for its head.
    """
    from dynarank.adapters.lora_files import read_lora, write_lora
    from dynarank.adapters.reader_forms import without_zeros

    source = read_lora(adapter)
    ranks = write_lora(source, without_zeros(source.factors), out, form)
    sync_files(out)
    notes = [read_by(form)]
    kept, padded = sum(ranks.values()), max(ranks.values()) * sum(map(bool, ranks.values()))
    if form == "padded" and padded > kept:
        notes.append(f"{padded - kept} of its {padded} components are zeros")
    if form in ("gguf", "padded") and source.others:
        notes.append(
            f"it holds {next(iter(source.others))} beside its factors: PEFT reads that; llama.cpp "
            "and vLLM refuse it"
        )
    return notes


def rank_pattern_text(adapter: Path) -> str:
    """Return an adapter's ranks as the settings with which others train plain LoRA on them.

    Raises:
        UserError: it is no PEFT LoRA adapter.
    """
    from dynarank.adapters.lora_files import read_lora
    from dynarank.adapters.rank_patterns import as_settings, ranks_of

    return as_settings(ranks_of(read_lora(adapter)))


def write_merged(
    adapter: Path, out: Path, hub: HubConfig, base: str | None, dtype: str = DTYPES[0]
) -> list[str]:
    """Write a model that needs neither PEFT nor dynarank, and its tokenizer.

    The update is added to the weights in float32, also where the run's base was bfloat16: added in
    bfloat16, most of it would be rounded away.

    Returns:
        what the user should know about the precision, a sentence each.

    Raises:
        UserError: what was trained cannot be added to weights.
    """
    import peft
    import torch

    from dynarank.runs.predictor import load_run

    loaded = load_run(adapter, hub, base, over_budget=True, widen=True)
    model = loaded.model
    notes = []
    if isinstance(model, peft.PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise UserError(_not_mergeable(loaded.origin.method))
        config = loaded.origin.model_config()
        narrow = config.dtype != DTYPES[0]
        if config.quantization is not None:
            notes.append(
                f"merged into the {config.quantization} weights that the run trained on, turned "
                "back into plain ones: the model is not quantized any more"
            )
        if dtype != DTYPES[0]:
            lost = rounded_away(model, getattr(torch, dtype))
            notes.append(f"rounded to {dtype}, {lost:.1%} of the update is lost")
        elif narrow:
            notes.append(
                "merged in float32, so that nothing of the update is lost: twice the size of the "
                "bfloat16 base that the run trained on"
            )
        model = model.merge_and_unload()
    elif not loaded.origin.is_whole_model:
        raise UserError(_not_mergeable(loaded.origin.method))
    model.to(getattr(torch, dtype)).save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    sync_files(out)
    return notes


def _not_mergeable(method: str) -> str:
    return (
        f"--merged: what method={method} trained is not an update of the model's weights, so it "
        "cannot be added to them. Use the adapter beside its base model"
    )


def rounded_away(model: Any, dtype: torch.dtype) -> float:
    """Return the share of the update that rounding the merged weights to `dtype` loses.

    It is the norm of the rounding error over the norm of the update, over all adapted matrices
    together. What rounding the base alone would cost is not counted.

    Args:
        model: a peft.PeftModel with LoRA layers, in float32.
    """
    lost, whole = 0.0, 0.0
    for module in model.modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        base = module.get_base_layer().weight.detach()
        rounded_base = base.to(dtype).float()
        for name in module.active_adapters:
            update = module.get_delta_weight(name).detach()
            kept = (base + update).to(dtype).float() - rounded_base
            lost += float((kept - update).square().sum())
            whole += float(update.square().sum())
    return (lost / whole) ** 0.5 if whole else 0.0


def sync_files(folder: Path) -> None:
    """Write the files of a folder to the disk, so that they are whole when the command ends."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
