"""What every method takes under a budget, for any model, without loading its weights.

python -m dynarank.budget model=roberta_base budget=r2
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError

if TYPE_CHECKING:
    from dynarank.config.schema import TrainConfig

FLOAT_BYTES = 4
PRUNED = ("dora", "adalora")
RANKED = (*PRUNED, "lora")
MATCHED = ("lora", "houlsby", "pfeiffer", "prompt")


@dataclass
class Cost:
    """A method's size on a model at its budget."""

    method: str
    size: str
    """What was solved for: rank, bottleneck, vectors."""
    matrices: int
    """Layers adapted with ranks."""
    components: int
    parameters: int
    """Of the adapter, the head not counted."""
    model: int
    """Parameters of the model."""
    note: str = ""

    @property
    def share(self) -> float:
        """Of the model, in percent."""
        return 100 * self.parameters / self.model

    @property
    def megabytes(self) -> float:
        """On disk, in float32."""
        return self.parameters * FLOAT_BYTES / 1e6


def costs(config: TrainConfig) -> list[Cost]:
    """Every method's cost on the configured model and budget. Raises `UserError`."""
    from dynarank.methods import METHODS

    return [cost(config, name) for name in METHODS]


def cost(config: TrainConfig, name: str) -> Cost:
    """One method's; where it does not fit the model, its note says why."""
    from dynarank.adapters.inject import find_linears
    from dynarank.commands.predict import recorded_config
    from dynarank.methods import build_method
    from dynarank.methods.base import nominal_parameters
    from dynarank.pretrained.models import resolve_targets

    model, head = _empty_model(config)
    total = sum(p.numel() for p in model.parameters())
    targets = resolve_targets(config.model, model.config.model_type)
    try:
        matrices = len(find_linears(model, targets, head))
    except ValueError as error:
        raise UserError(f"model.targets: {error}") from None
    matrices = matrices if name in RANKED else 0
    nominal = nominal_parameters(model, targets, head, config.budget.target)
    default = recorded_config({"name": name}, f"method/{name}", "method/plain")
    method = build_method(
        config.method if config.method.name == name else default, config.budget, config.dem
    )
    try:
        adapted = method.adapt(model, targets, head)
    except ValueError as error:
        return Cost(name, "", 0, 0, 0, total, str(error))
    if name in PRUNED:
        parameters, note = nominal, "where all matrices keep as many; wide ones cost more"
    else:
        parameters, note = method.adapter_parameters(), ""
        off = 100 * (parameters / nominal - 1)
        if name in MATCHED and abs(off) >= 0.05:
            note = f"{off:+.1f} % of the budget"
    components = config.budget.target * matrices
    return Cost(name, _size(name, config, adapted), matrices, components, parameters, total, note)


def _size(name: str, config: TrainConfig, adapted: Any) -> str:
    from dynarank.methods.bottleneck import BottleneckLinear

    budget = config.budget
    if name in ("dora", "adalora"):
        return f"rank {budget.initial} to {budget.target}"
    if name == "lora":
        return f"rank {budget.target}"
    if name == "prompt":
        return f"{adapted.peft_config['default'].num_virtual_tokens} vectors"
    widths = [
        module.down.out_features
        for module in adapted.modules()
        if isinstance(module, BottleneckLinear)
    ]
    return f"bottleneck {widths[0]}" if widths else ""


def _empty_model(config: TrainConfig) -> tuple[Any, list[str]]:
    """The model without weights, and its task head."""
    import torch
    import transformers

    from dynarank.pretrained.models import check_fit, head_modules, load_settings
    from dynarank.runs.preflight import find_model
    from dynarank.tasks import build_task

    source = find_model(config)
    task = build_task(config.task)
    check_fit(config.model, source, task)
    settings, trust = load_settings(config.model, source), config.model.trust_remote_code
    with torch.device("meta"):
        model = getattr(transformers, task.auto_class).from_config(
            settings, trust_remote_code=trust
        )
    return model, head_modules(model, set()) if task.has_head else []


def table(found: list[Cost], title: str) -> Any:
    """As a rich table."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in (
        "method",
        "size",
        "matrices",
        "components",
        "adapter parameters",
        "% of model",
        "MB",
    ):
        table.add_column(column, justify="left" if column in ("method", "size") else "right")
    for one in found:
        numbers = (f"{one.parameters:,}", f"{one.share:.3f}", f"{one.megabytes:.2f}")
        ranks = (str(one.matrices or ""), str(one.components or ""))
        fits = one.parameters > 0 or one.method == "head"
        table.add_row(one.method, one.size, *ranks, *(numbers if fits else ("", "", "")))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 2 and one message for a user's mistake."""
    from dynarank.commands.user_errors import user_errors

    overrides = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        sys.exit(0)
    with user_errors(conf_folder()):
        print_table(overrides)


def print_table(overrides: list[str]) -> None:
    """Compose the configuration of the overrides and print the table."""
    import hydra
    from rich.console import Console

    from dynarank.config.schema import register_schemas, to_config

    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries' of one another
    register_schemas()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = to_config(hydra.compose("train", overrides=["output_dir=unused", *overrides]))
    title = f"{config.model.path}, budget r{config.budget.target}, {config.task.name}"
    found = costs(config)
    console = Console()
    console.print(table(found, title))
    for one in found:
        if one.note:
            console.print(f"{one.method}: {one.note}", soft_wrap=True, highlight=False)


def conf_folder() -> Path:
    """The repository's conf/, from where it is run or where the package lies."""
    places = [Path.cwd() / "conf", Path(__file__).resolve().parents[3] / "conf"]
    return next((place for place in places if (place / "train.yaml").is_file()), places[0])
