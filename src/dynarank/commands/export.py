"""`python -m dynarank.export`: a finished run as a plain PEFT adapter, or merged into a plain transformers model."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dynarank.adapters.adapter_checks import read_json
from dynarank.commands.predict import load_predictor
from dynarank.config.redaction import redact
from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.run_folder import ORIGIN, OVER_BUDGET


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 2 and one message for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m dynarank.export", description=__doc__)
    parser.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="a run's folder, or its adapter folder"
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="a new folder")
    parser.add_argument(
        "--merged",
        action="store_true",
        help="a plain transformers model, the update added to its weights",
    )
    parser.add_argument(
        "--over-budget",
        action="store_true",
        help="also of a run that ended before its ranks were frozen",
    )
    parser.add_argument(
        "--base", help="the base model's hub id or folder, where it has moved since"
    )
    parser.add_argument(
        "--hub-root", default=os.environ.get("DYNARANK_HUB"), help="default: $DYNARANK_HUB"
    )
    options = parser.parse_args(arguments)
    try:
        folder = adapter_folder(options.run, options.over_budget)
        if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
            raise UserError(f"{options.out}: is there already. Name a new folder")
        if options.merged:
            write_merged(folder, options.out, HubConfig(options.hub_root), options.base)
        else:
            copy_adapter(folder, options.out)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        sys.exit(2)
    print(f"written: {options.out}/")


def adapter_folder(run: Path, over_budget: bool) -> Path:
    """The folder with a run's adapter. Raises `UserError` where it has none, or one over budget that was not asked for."""
    for folder in (run / "adapter", run):
        if (folder / ORIGIN).is_file():
            return folder
    if not (run / OVER_BUDGET / ORIGIN).is_file():
        raise UserError(
            f"{run}: holds no adapter. Give the folder of a finished run, or its adapter folder"
        )
    if not over_budget:
        record = read_json(run / "metrics.json")
        kept, target = record["components_kept"], record["components_target"]
        raise UserError(
            f"{run}: the budget was not reached, for the run ended before its ranks were frozen "
            f"({kept} components, {target} budgeted). Train it longer, or export it as it is with --over-budget"
        )
    return run / OVER_BUDGET


def copy_adapter(folder: Path, out: Path) -> None:
    """The adapter as it is. Raises `UserError` for a method that PEFT has no form for."""
    if not (folder / "adapter_config.json").is_file():
        method = read_json(folder / ORIGIN)["method"]["name"]
        kind = (
            "is a whole model already"
            if (folder / "config.json").is_file()
            else "has no form that PEFT knows"
        )
        raise UserError(f"{folder}: what method={method} trained {kind}, and is no PEFT adapter")
    shutil.copytree(folder, out, dirs_exist_ok=True)


def write_merged(folder: Path, out: Path, hub: HubConfig, base: str | None) -> None:
    """A model that needs neither PEFT nor dynarank, and its tokenizer. Raises `UserError` where nothing can be merged."""
    from transformers import PreTrainedModel

    predictor = load_predictor(folder, hub, base, device="cpu")
    plain = not any(".lora_" in name for name, _ in predictor.model.named_parameters())
    extra = (folder / "trained.safetensors").is_file()
    if extra or not plain or not isinstance(predictor.model, PreTrainedModel):
        method = read_json(folder / ORIGIN)["method"]["name"]
        raise UserError(
            f"--merged: what method={method} trained is not an update of weights, or they are not float32"
        )
    predictor.model.save_pretrained(out)
    predictor.tokenizer.save_pretrained(out)
