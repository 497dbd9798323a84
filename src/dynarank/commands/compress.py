"""Make any PEFT LoRA adapter smaller after training, without training.

Every layer's update is decomposed by its singular values, and the best components of the whole
adapter are kept. The result is a plain PEFT LoRA adapter with a rank pattern. Readers that want
another form get it from it by dynarank export SMALLER OUT --format.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynarank.commands.command_line import (
    CommandParser,
    add_hub_root,
    exit_on_user_error,
    refuse_bad_folder,
    user_path,
)
from dynarank.errors import UserError
from dynarank.run_folder import ADAPTER
from dynarank.settings import expand_user

SIZES = ("target", "parameters", "energy")
"""Options, of which one says how small the adapter becomes."""
EXAMPLES = """examples:
  dynarank compress ADAPTER SMALLER --target r4          four components a layer on average
  dynarank compress ADAPTER SMALLER --parameters 100000  the best that fit into so many parameters
  dynarank compress ADAPTER SMALLER --energy 0.95        keep 95 % of the squared update
  dynarank compress RUN_DIR SMALLER --target r2 --calibrate rows.csv
                                                         judge by the layers' outputs on these rows
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command's options."""
    parser = CommandParser("compress", description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "adapter", type=user_path, metavar="ADAPTER", help="a PEFT LoRA adapter's folder"
    )
    parser.add_argument("out", type=user_path, metavar="OUT", help="a new folder")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--target", metavar="rN", help="components a layer keeps on average: r4, r0.5"
    )
    size.add_argument(
        "--parameters", type=int, metavar="N", help="parameters that are kept at most"
    )
    size.add_argument(
        "--energy", type=float, metavar="SHARE", help="share of the update that stays"
    )
    parser.add_argument(
        "--per-layer", action="store_true", help="give every layer the same, not the best of all"
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="rows of the run's task: what counts is then the error of the layers' outputs on "
        "them, and not that of the weights; needs a run's adapter, and its base model",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="the base model's hub id or folder, where it has moved"
    )
    add_hub_root(parser)
    options = parser.parse_args(arguments)
    if options.per_layer and options.parameters is not None:
        parser.error("--per-layer goes with --target or --energy, not with --parameters")
    if options.base is not None and options.calibrate is None:
        parser.error("--base goes with --calibrate: nothing else needs the base model")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. It exits with 2 and one message for a user's mistake."""
    options = parse(arguments)
    with exit_on_user_error():
        compress_folder(options)


def compress_folder(options: argparse.Namespace) -> None:
    """Compress the folder that the options name, write the result, and print what was lost."""
    from dynarank.adapters.adapter_checks import CONFIG
    from dynarank.adapters.compress import compress
    from dynarank.adapters.lora_files import read_lora, write_lora
    from dynarank.adapters.reader_forms import without_zeros

    source = options.adapter
    if (source / ADAPTER).is_dir():
        source = source / ADAPTER
    if not (source / CONFIG).is_file():
        raise UserError(
            f"{source}: holds no {CONFIG}, so it is no PEFT adapter. Give an adapter's folder, or "
            "that of a run that has one"
        )
    refuse_bad_folder(options.out)
    # Both before a model is loaded, and rows run through it.
    sizes = _checked_sizes(options)
    _check_calibration(options)
    adapter = read_lora(source)
    factors = {}
    for name, (A, B) in without_zeros(adapter.factors).items():
        if len(A):
            factors[name] = (A, B)
    moments = None
    if options.calibrate is not None:
        from dynarank.commands.calibration import measure_moments
        from dynarank.pretrained.hub import HubConfig

        hub = HubConfig(options.hub_root)
        moments = measure_moments(source, factors, options.calibrate, hub, options.base)
    try:
        smaller = compress(factors, **sizes, moments=moments)
    except ValueError as error:
        raise UserError(str(error)) from None
    # Padded to one rank, as is usual for a language model, it could be larger than before.
    write_lora(adapter, smaller.factors, options.out, form="peft")
    before = sum(A.numel() + B.numel() for A, B in factors.values())
    what = "update" if moments is None else "output on the sample"
    summary = (
        f"{before:,} parameters became {smaller.parameters:,}; "
        f"{100 * smaller.lost:.2f} % of the squared {what} is lost."
    )
    _note_in_card(options.out, summary)
    print(f"{'layer':<60} rank  of  lost %")
    for name, layer in smaller.layers.items():
        print(f"{name:<60} {layer.rank_after:>4} {layer.rank_before:>3} {100 * layer.lost:>7.2f}")
    print(f"{summary} Written: {options.out}/")


def _checked_sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `compress` is told of the size. Raises `UserError` where it cannot be."""
    from dynarank.adapters.compress import check_sizes

    sizes: dict[str, Any] = {
        "target": _components(options.target),
        "parameters": options.parameters,
        "energy": options.energy,
        "per_layer": options.per_layer,
    }
    try:
        check_sizes(**sizes)
    except ValueError as error:
        # It names the argument of a function, and its value as a number.
        name = next(name for name in SIZES if getattr(options, name) is not None)
        _, _, rule = str(error).partition(": ")
        raise UserError(f"--{name} {getattr(options, name)}: {rule}") from None
    return sizes


def _check_calibration(options: argparse.Namespace) -> None:
    """Raise `UserError` where the file of rows is not there."""
    from dynarank.tasks.files import no_such_file

    if options.calibrate is None:
        return
    if not Path(expand_user(options.calibrate)).exists():
        raise no_such_file("--calibrate", options.calibrate)


def _note_in_card(folder: Path, summary: str) -> None:
    """Say in a copied model card that the adapter is a smaller one than the card describes."""
    from dynarank.runs.model_card import CARD, compressed_card

    path = folder / CARD
    if path.is_file():
        note = f"Made smaller by `dynarank compress`: {summary}"
        path.write_text(compressed_card(path.read_text("utf-8"), note), encoding="utf-8")


def _components(text: str | None) -> float | None:
    """Return the number in rN or N."""
    if text is None:
        return None
    try:
        return float(text.removeprefix("r"))
    except ValueError:
        raise UserError(f"--target {text}: must be r and a number, as r4 or r0.5") from None
