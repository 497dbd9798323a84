"""Predictions of a finished run for new rows, in their order.

python -m dynarank.predict RUN_OR_ADAPTER_DIR --input FILE --output FILE
python -m dynarank.predict RUN_OR_ADAPTER_DIR --glue-submission DIR
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from dynarank.adapters.adapter_checks import check_peft_adapter, check_weights, read_json
from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.config.redaction import redact
from dynarank.errors import UserError, nearest
from dynarank.pretrained.hub import HubConfig, ModelConfig, Source, locate, warn_of_remote_code
from dynarank.run_folder import ORIGIN

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynarank.pretrained.models import Pretrained
    from dynarank.tasks.base import Task

log = logging.getLogger(__name__)


@dataclass
class Predictor:
    """A finished run, ready to predict."""

    task: Task[Any]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __call__(self, dataset: Dataset, batch_size: int = 32) -> list[dict[str, Any]]:
        """One record of plain values for each row, in the rows' order; batches hold rows of like length."""
        import datasets
        import torch
        from rich.console import Console
        from rich.progress import track

        from dynarank.pretrained.models import check_length

        datasets.disable_progress_bars()
        features = self.task.features(dataset, self.tokenizer, self.model, labelled=False)
        tokens = self.task.feature_lengths(features)
        check_length(self.model, int(tokens.max()), self.task.length_setting)
        order = sorted(range(len(features)), key=(-tokens).__getitem__)
        inputs = features.remove_columns(
            [name for name in self.task.host_columns if name in features.column_names]
        )
        collate, device = self.task.collator(self.tokenizer), self.model.device
        predicted: dict[int, Any] = {}
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        with torch.inference_mode():
            for rows in track(batches, "predicting", console=Console(stderr=True), transient=True):
                batch = {
                    name: part.to(device)
                    for name, part in collate([inputs[row] for row in rows]).items()
                }
                predicted.update(zip(rows, self.task.predict(self.model, batch), strict=True))
        return self.task.answers(
            dataset, features, [predicted[row] for row in range(len(features))]
        )


def load_predictor(
    folder: Path,
    hub: HubConfig,
    base: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Predictor:
    """Load a run's, or an adapter's, model and task.

    Args:
        base: the base model's hub id or folder, where it has moved since.
        device: as torch names it; None for a GPU where there is one.
        trust_remote_code: whether to run code that comes with the model; what the adapter's folder says does not count.

    Raises:
        UserError: the folder holds no such adapter, its base model is nowhere or not the one it belongs to, or there is
            no such device.
    """
    from dynarank.pretrained.models import load_pretrained, load_tokenizer
    from dynarank.runs.preflight import named_device
    from dynarank.tasks import build_task

    adapter = folder / "adapter" if (folder / "adapter").is_dir() else folder
    if not (adapter / ORIGIN).is_file():
        _refuse_over_budget(folder)
        raise UserError(
            f"{folder}: holds no {ORIGIN}, neither in itself nor in adapter/. Give the folder of a finished run, "
            "or its adapter folder"
        )
    place = named_device(device)
    origin = read_origin(adapter / ORIGIN)
    try:
        task = build_task(recorded_config(origin["task"], f"task/{origin['task'].get('family')}"))
        model_config = _recorded_model(origin)
    except UserError:
        raise
    except (
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # a schema's own check, and what it raises for wrong types
        raise UserError(f"{adapter / ORIGIN}: {error}") from None
    model_config.trust_remote_code = trust_remote_code
    here = Source(str(adapter), str(adapter))
    warn_of_remote_code(model_config, here)
    tokenizer = load_tokenizer(model_config, here)
    if (adapter / "config.json").is_file():  # a plain transformers model
        model_config.sha256 = None  # the base model's
        model: Any = load_pretrained(model_config, here, task, tokenizer).model
    else:
        model_config.path = base or model_config.path
        source = _locate_base(
            model_config, origin["model"].get("found") if base is None else None, hub
        )
        warn_of_remote_code(model_config, source)
        pretrained = load_pretrained(model_config, source, task, tokenizer)
        try:
            model = _adapted(pretrained, adapter, origin)
        except UserError:
            raise
        except (
            ValueError,
            RuntimeError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:  # names, shapes or types differ
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"{adapter} does not belong to {source.path}: {reason}. Name its base by --base"
            ) from error
    return Predictor(task, model.eval().to(place), tokenizer)


def _refuse_over_budget(folder: Path) -> None:
    """Raise `UserError` where the folder is that of a run without an adapter."""
    record = folder / "metrics.json"
    if record.is_file() and not read_json(record).get("at_budget", True):
        raise UserError(
            f"{folder}: the run ended before its ranks were frozen, and has no adapter. Train it longer"
        )


def _adapted(pretrained: Pretrained, adapter: Path, origin: dict[str, Any]) -> Any:
    """The base model with what an adapter's folder holds."""
    import torch

    if (adapter / "adapter_config.json").is_file():
        import peft

        check_peft_adapter(adapter)
        model: Any = peft.PeftModel.from_pretrained(pretrained.model, str(adapter))
        if model.active_peft_config.is_prompt_learning:
            return model
        exact = (
            pretrained.model.dtype == torch.float32
        )  # merged into narrower weights, most of an update is rounded away
        return model.merge_and_unload() if exact else model.get_base_model()
    from safetensors.torch import load_file

    from dynarank.methods import build_method
    from dynarank.methods.base import TRAINED
    from dynarank.pretrained.models import resolve_targets

    check_weights(adapter / TRAINED)
    name = origin["method"]["name"]
    method_config = recorded_config(origin["method"], f"method/{name}", "method/plain")
    method = build_method(
        method_config, BudgetConfig(**origin["budget"]), DemConfig(**origin["dem"])
    )
    targets = (
        resolve_targets(_recorded_model(origin), pretrained.model.config.model_type)
        if method.takes_targets
        else []
    )
    model = method.adapt(pretrained.model, targets, pretrained.head)
    unknown = model.load_state_dict(load_file(adapter / TRAINED), strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{TRAINED} holds {unknown[0]}, which the model lacks")
    return model


def read_origin(path: Path) -> dict[str, Any]:
    """What was recorded beside an adapter, part by part. Raises `UserError` where it is not that."""
    origin = read_json(path)
    if missing := [
        part
        for part in ("task", "model", "method", "budget", "dem")
        if not isinstance(origin.get(part), dict)
    ]:
        raise UserError(f"{path}: holds no {missing[0]}")
    return origin


def _recorded_model(origin: dict[str, Any]) -> ModelConfig:
    recorded = {name: value for name, value in origin["model"].items() if name != "found"}
    config: ModelConfig = _from_record(ModelConfig, recorded, "model")
    if not isinstance(config.path, str):
        raise UserError(f"{ORIGIN}: model.path = {config.path!r}: must be a text")
    return config


def recorded_config(recorded: dict[str, Any], *schemas: str) -> Any:
    """A part of a configuration from what was recorded of it, by the first schema that is known; else `UserError`."""
    from dynarank.config.schema import SCHEMAS

    name = next((one for one in schemas if one in SCHEMAS), None)
    if name is None:
        raise UserError(f"{schemas[0]}: not known to this version. {nearest(schemas[0], SCHEMAS)}")
    return _from_record(SCHEMAS[name], recorded, name)


def _from_record(schema: Any, recorded: dict[str, Any], where: str) -> Any:
    """A dataclass of recorded values, which are taken as they are: to OmegaConf, a class called '???' would be missing."""
    kinds = get_type_hints(schema)
    if unknown := recorded.keys() - kinds.keys():
        raise UserError(
            f"{where}.{min(unknown)}: recorded by another version of dynarank, and not known to this one"
        )
    nested = {key: kinds[key] for key in recorded if is_dataclass(kinds[key])}
    return schema(
        **{
            k: _from_record(nested[k], v, f"{where}.{k}") if k in nested else v
            for k, v in recorded.items()
        }
    )


def _locate_base(config: ModelConfig, found: str | None, hub: HubConfig) -> Source:
    """Where the base model is now; else where it was in training."""
    try:
        return locate("models", "--base", config.path, hub.root, config.revision)
    except UserError:
        if found is None or not Path(found).is_dir():
            raise
        if hub.root is not None:
            log.warning(
                "%s: not in %s; taken from where it was in training, %s",
                config.path,
                hub.root,
                found,
            )
        return Source(found, config.path)


def predict_file(predictor: Predictor, source: str, output: Path, batch_size: int) -> int:
    """Predict a file's rows into another; returns how many. Raises `UserError`."""
    from dynarank.tasks.files import read_file, write_file

    task = predictor.task
    dataset = task.check(read_file("--input", source), f"--input {source}", labelled=False)
    column = task.config.columns.id
    known = column is not None and column in dataset.column_names
    ids = dataset[column][:] if known else list(range(len(dataset)))
    records = predictor(dataset, batch_size)
    name = column if known else "row"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, [{name: one, **record} for one, record in zip(ids, records, strict=True)])
    return len(records)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m dynarank.predict", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("source", type=Path, metavar="RUN_OR_ADAPTER_DIR")
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="rows with the task's columns: .csv, .tsv, .jsonl or .parquet",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="predictions: .csv, .tsv, .jsonl or .parquet"
    )
    parser.add_argument(
        "--glue-submission",
        metavar="DIR",
        type=Path,
        help="write the GLUE site's file for the test set",
    )
    parser.add_argument(
        "--column",
        metavar="ROLE=NAME",
        action="append",
        default=[],
        help="as task.columns.ROLE=NAME",
    )
    parser.add_argument("--base", help="the base model's hub id or folder, where it has moved")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the base model",
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, mps; by default a GPU where there is one")
    parser.add_argument(
        "--hub-root", default=os.environ.get("DYNARANK_HUB"), help="default: $DYNARANK_HUB"
    )
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        parser.error(f"--batch-size {options.batch_size}: at least 1")
    if (options.input is None) != (options.output is None) or (
        options.input is None and options.glue_submission is None
    ):
        parser.error("give --input and --output together, or --glue-submission")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 2 and one message for a user's mistake."""
    options = parse(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries' of one another
    try:
        _check_files(options)
        hub = HubConfig(options.hub_root)
        predictor = load_predictor(
            options.source, hub, options.base, options.device, options.trust_remote_code
        )
        _rename_columns(predictor.task, options.column)
        if options.input is not None:
            rows = predict_file(predictor, options.input, options.output, options.batch_size)
            print(f"{rows:,} rows predicted: {options.output}")
        if options.glue_submission is not None:
            from dynarank.commands.glue_submission import write_submission

            for path in write_submission(
                predictor, hub, options.glue_submission, options.batch_size
            ):
                print(f"for the GLUE site: {path}")
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        sys.exit(2)


def _check_files(options: argparse.Namespace) -> None:
    """Refuse, before anything slow, files that cannot be read or written."""
    from dynarank.tasks.files import READERS

    if options.input is not None and not Path(options.input).is_file():
        raise UserError(f"--input {options.input}: there is no such file")
    if options.output is not None and options.output.suffix not in READERS:
        raise UserError(
            f"--output {options.output}: the ending must be one of {', '.join(READERS)}"
        )
    for name, folder in (
        ("output", options.output and options.output.parent),
        ("glue-submission", options.glue_submission),
    ):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--{name}: {folder} cannot be made ({error.strerror})") from None


def _rename_columns(task: Task[Any], given: Sequence[str]) -> None:
    columns = task.config.columns
    for part in given:
        role, _, name = part.partition("=")
        if not hasattr(columns, role) or not name:
            raise UserError(f"--column {part}: must be ROLE=NAME. {nearest(role, vars(columns))}")
        setattr(columns, role, name)
