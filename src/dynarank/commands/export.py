"""Write a run's adapter, or any PEFT LoRA adapter, in the form that its reader needs.

dynarank export RUN_OR_ADAPTER OUT_DIR                  as it is, for PEFT
dynarank export RUN_OR_ADAPTER OUT_DIR --format gguf    for llama.cpp and Ollama
dynarank export RUN_OR_ADAPTER OUT_DIR --format merged  a plain transformers model
dynarank export RUN_OR_ADAPTER --rank-pattern           its ranks, for others' settings
dynarank export RUN_OR_ADAPTER --push-to-hub ME/NAME --dry-run
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dynarank.adapters import FORMS
from dynarank.commands.command_line import (
    CommandParser,
    add_hub_root,
    exit_on_user_error,
    refuse_bad_folder,
    user_path,
)
from dynarank.commands.merged import DTYPES, sync_files, write_merged
from dynarank.errors import UserError

MERGED = "merged"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. It exits with 2 and one message for a user's mistake."""
    options = parse(arguments)
    with exit_on_user_error():
        adapter = adapter_folder(options)
        if options.rank_pattern:
            print(rank_pattern_text(adapter), end="")
            return
        if options.out is None:
            # For --dry-run, too, which names the files and their sizes.
            with tempfile.TemporaryDirectory() as folder:
                options.out = Path(folder) / "adapter"
                write_export(adapter, options)
            return
        refuse_bad_folder(options.out)
        write_export(adapter, options)


def write_export(adapter: Path, options: argparse.Namespace) -> None:
    """Write what the options ask for, say who reads it, and send it where that is asked for."""
    from dynarank.commands.push import check_repository, describe_push, push
    from dynarank.pretrained.hub import HubConfig

    if options.push_to_hub is not None:
        # Before the export is made, which a name that the hub refuses would waste.
        check_repository(options.push_to_hub)
    if options.format == MERGED:
        hub = HubConfig(options.hub_root)
        notes = write_merged(adapter, options.out, hub, options.base, options.dtype)
    elif options.format is None:
        copy_adapter(adapter, options.out)
        notes = [stored_note(adapter)]
    else:
        notes = write_form(adapter, options.out, options.format)
    for note in notes:
        print(note)
    if options.push_to_hub is None:
        print(f"written: {options.out}/")
    elif options.dry_run:
        print("\n".join(describe_push(options.out, options.push_to_hub, options.private)))
    else:
        print(f"sent: {push(options.out, options.push_to_hub, options.private)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options. It exits where they do not go together."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.merged:
        if options.format not in (None, MERGED):
            parser.error(f"--merged and --format {options.format}: give one of them")
        options.format = MERGED
    if options.dtype != DTYPES[0] and options.format != MERGED:
        parser.error(f"--dtype {options.dtype}: is for --merged alone; an adapter stays float32")
    asked = [options.out is not None, options.rank_pattern, options.push_to_hub is not None]
    if sum(asked) != 1:
        parser.error("give one of OUT_DIR, --rank-pattern and --push-to-hub")
    if options.base is not None and options.format != MERGED:
        parser.error("--base goes with --format merged: nothing else needs the base model")
    if (options.dry_run or options.private) and options.push_to_hub is None:
        parser.error("--dry-run and --private go with --push-to-hub")
    return options


def build_parser() -> CommandParser:
    """Return the parser of the command's options."""
    parser = CommandParser("export", __doc__)
    parser.add_argument(
        "run", type=user_path, metavar="RUN_DIR", help="a run's folder, or its adapter folder"
    )
    parser.add_argument("out", type=user_path, nargs="?", metavar="OUT_DIR", help="a new folder")
    parser.add_argument(
        "--format",
        choices=[*FORMS, MERGED],
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
        "--push-to-hub", metavar="OWNER/NAME", help="send it to the hub, in place of OUT_DIR"
    )
    parser.add_argument("--private", action="store_true", help="make a private repository")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what --push-to-hub would send, and send nothing"
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
    return parser


def adapter_folder(options: argparse.Namespace) -> Path:
    """Return the folder of the adapter that the options name. Raises `UserError`.

    Where only its factors are needed, it may be any PEFT adapter, of whatever made it.
    """
    from dynarank.adapters.adapter_checks import CONFIG
    from dynarank.run_folder import ORIGIN
    from dynarank.runs.origin import find_adapter

    folder: Path = options.run
    is_foreign = (folder / CONFIG).is_file() and not (folder / ORIGIN).is_file()
    if is_foreign and (options.rank_pattern or options.format in FORMS):
        return folder
    if is_foreign:
        raise UserError(
            f"{folder}: is a PEFT adapter that holds no {ORIGIN}, the record of a run. Give "
            f"--format, one of {', '.join(FORMS)}; only PEFT's merge_and_unload merges it"
        )
    return find_adapter(folder, options.over_budget)


def copy_adapter(adapter: Path, out: Path) -> None:
    """Copy an adapter as it is. Raises `UserError` for a method that PEFT has no form for."""
    from dynarank.runs.origin import read_origin

    origin = read_origin(adapter)
    if origin.is_peft_adapter:
        # An empty folder may be there (`refuse_bad_folder`).
        shutil.copytree(adapter, out, dirs_exist_ok=True)
        sync_files(out)
        return
    trained = f"{adapter}: what method={origin.method} trained"
    if origin.is_whole_model:
        raise UserError(f"{trained} is a whole model already, and is no PEFT adapter")
    raise UserError(f"{trained} has no form that PEFT knows, and is no PEFT adapter")


def stored_note(adapter: Path) -> str:
    """Return who reads an adapter as it is stored, in a sentence."""
    from dynarank.adapters.adapter_checks import CONFIG, read_json

    config = read_json(adapter / CONFIG)
    if config.get("peft_type") != "LORA":
        return f"an adapter of PEFT's type {config.get('peft_type')}, which is read by PEFT alone"
    # llama.cpp divides by each layer's rank itself: its form has ranks, and no alphas beside them.
    if config.get("alpha_pattern"):
        return read_by("peft")
    return read_by("gguf" if config.get("rank_pattern") else "padded")


def read_by(form: str) -> str:
    """Return who reads a form, in a sentence."""
    from dynarank.adapters.reader_forms import READERS

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
    kept = sum(ranks.values())
    layers = sum(rank > 0 for rank in ranks.values())
    padded = layers * max(ranks.values())
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
        UserError: it is no PEFT LoRA adapter, or one that has learned nothing.
    """
    from dynarank.adapters.lora_files import read_lora
    from dynarank.adapters.rank_patterns import as_settings, ranks_of

    ranks = ranks_of(read_lora(adapter))
    if not ranks:
        raise UserError(
            f"{adapter}: every component is zero, so that it has no ranks. Name a trained adapter"
        )
    return as_settings(ranks)
