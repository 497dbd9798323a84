"""Make any PEFT LoRA adapter smaller after training, without training.

Every layer's update is decomposed by its singular values, and the best components of the whole
adapter are kept. The result is a plain PEFT LoRA adapter with a rank pattern.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dynarank.commands.command_line import CommandParser, exit_on_user_error, user_path
from dynarank.errors import UserError
from dynarank.run_folder import ADAPTER

EXAMPLES = """examples:
  dynarank compress ADAPTER SMALLER --target r4          four components a layer on average
  dynarank compress ADAPTER SMALLER --parameters 100000  the best that fit into so many parameters
  dynarank compress ADAPTER SMALLER --energy 0.95        keep 95 % of the squared update
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
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. It exits with 2 and one message for a user's mistake."""
    options = parse(arguments)
    with exit_on_user_error():
        compress_folder(options)


def compress_folder(options: argparse.Namespace) -> None:
    """Compress the folder that the options name, write the result, and print what was lost."""
    from dynarank.adapters.compress import compress
    from dynarank.adapters.lora_files import read_lora, write_lora

    source = options.adapter
    if (source / ADAPTER).is_dir():
        source = source / ADAPTER
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"{options.out}: is there already. Name a new folder")
    adapter = read_lora(source)
    try:
        smaller = compress(
            adapter.factors,
            target=_components(options.target),
            parameters=options.parameters,
            energy=options.energy,
            per_layer=options.per_layer,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    write_lora(adapter, smaller.factors, options.out)
    before = sum(A.numel() + B.numel() for A, B in adapter.factors.values())
    print(f"{'layer':<60} rank  of  lost %")
    for name, layer in smaller.layers.items():
        print(f"{name:<60} {layer.rank_after:>4} {layer.rank_before:>3} {100 * layer.lost:>7.2f}")
    print(
        f"{before:,} parameters became {smaller.parameters:,}; "
        f"{100 * smaller.lost:.2f} % of the squared update is lost. Written: {options.out}/"
    )


def _components(text: str | None) -> float | None:
    """Return the number in rN or N."""
    if text is None:
        return None
    try:
        return float(text.removeprefix("r"))
    except ValueError:
        raise UserError(f"--target {text}: must be r and a number, as r4 or r0.5") from None
