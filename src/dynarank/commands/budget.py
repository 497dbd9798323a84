"""What every method takes on a model under a budget, without loading the model's weights.

dynarank budget model=roberta_base budget=r2
dynarank budget --memory model=roberta_base trainer.batch_size=32 task.max_length=256

With --memory, also what a training step of the configured method takes on batches of the longest
rows, in the configured precision.
Every setting of a run may be given, as for dynarank train.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynarank.config.folders import conf_folder
from dynarank.errors import UserError, nearest

if TYPE_CHECKING:
    from rich.table import Table

    from dynarank.config.schema import TrainConfig
    from dynarank.methods.base import MethodSize

FLOAT_BYTES = 4
COLUMNS = (
    "method",
    "size",
    "matrices",
    "components",
    "adapter parameters",
    "% of model",
    "MB",
)
TEXT_COLUMNS = ("method", "size")
MEMORY = "--memory"
OPTIONS = (MEMORY, "--help")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A method's size on a model at its budget."""

    method: str
    size: MethodSize
    model_parameters: int
    fits: bool = True
    """Whether the method fits the model; if not, the size's note says why."""

    @property
    def percent(self) -> float:
        """The adapter's share of the model's parameters, in percent."""
        return 100 * self.size.parameters / self.model_parameters

    @property
    def megabytes(self) -> float:
        """The adapter's size on disk, in float32."""
        return self.size.parameters * FLOAT_BYTES / 1e6


def costs(config: TrainConfig) -> list[Cost]:
    """Return every method's cost on the configured model and budget.

    Raises:
        UserError: the model is nowhere, does not fit the task, or lacks the layers to adapt.
    """
    from dynarank.methods import METHODS

    return [cost_of_method(config, name) for name in METHODS]


def cost_of_method(config: TrainConfig, name: str) -> Cost:
    """Return one method's cost; where it does not fit the model, its note says why."""
    from dynarank.adapters.inject import find_linears
    from dynarank.methods import build_method
    from dynarank.methods.base import MethodSize
    from dynarank.pretrained.models import resolve_targets

    # One for each method: to count what a method takes is to adapt the model by it.
    model, head = _empty_model(config)
    model_parameters = sum(parameter.numel() for parameter in model.parameters())
    targets = resolve_targets(config.model, model.config.model_type)
    try:
        # Targets that the model lacks are a mistake under every method. What one of them alone
        # cannot adapt is a note in its row.
        find_linears(model, targets, head)
    except ValueError as error:
        raise UserError(f"model.targets: {error}") from None
    method = build_method(_method_config(config, name), config.budget, config.dem)
    try:
        size = method.size_under_budget(model, targets, head)
    except ValueError as error:
        size = MethodSize(note=str(error))
        return Cost(method=name, size=size, model_parameters=model_parameters, fits=False)
    return Cost(method=name, size=size, model_parameters=model_parameters)


def _method_config(config: TrainConfig, name: str) -> Any:
    """Return the run's own configuration of a method, or that method's defaults."""
    from dynarank.config.schema import SCHEMAS

    if config.method.name == name:
        return config.method
    schema: Any = SCHEMAS.get(f"method/{name}", SCHEMAS["method/plain"])
    return schema(name=name)


def _empty_model(config: TrainConfig) -> tuple[Any, list[str]]:
    """Return the model without weights, and the names of its task head's modules."""
    import torch

    from dynarank.pretrained.internals import model_loader
    from dynarank.pretrained.models import check_fit, head_modules, load_settings
    from dynarank.runs.preflight import find_model
    from dynarank.tasks import build_task

    source = find_model(config)
    task = build_task(config.task)
    check_fit(config.model, source, task)
    settings = load_settings(config.model, source)
    loader = model_loader(task.auto_class, settings)
    with torch.device("meta"):
        if hasattr(loader, "from_config"):
            trusted = config.model.trust_remote_code
            model = loader.from_config(settings, trust_remote_code=trusted)
        else:
            # A class of a model has no public call for this; an auto class has one.
            model = loader._from_config(settings)
    return model, head_modules(model, set()) if task.has_head else []


def cost_table(costs: Sequence[Cost], title: str) -> Table:
    """Return the costs as a table for the terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(
            column,
            justify="left" if column in TEXT_COLUMNS else "right",
            no_wrap=column == "method",  # a name is typed as it stands
        )
    for cost in costs:
        table.add_row(*_cells(cost))
    return table


def _cells(cost: Cost) -> list[str]:
    """Return one row's cells, in the order of `COLUMNS`; numbers that do not apply are empty."""
    size = cost.size
    if cost.fits:
        numbers = [f"{size.parameters:,}", f"{cost.percent:.3f}", f"{cost.megabytes:.2f}"]
    else:
        numbers = ["", "", ""]
    return [
        cost.method,
        size.label,
        str(size.matrices or ""),
        str(size.components or ""),
        *numbers,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exits with 2 and one message for a user's mistake."""
    from dynarank.commands.user_errors import user_errors

    overrides = list(sys.argv[1:] if arguments is None else arguments)
    with_memory = MEMORY in overrides
    overrides = [override for override in overrides if override != MEMORY]
    if "-h" in overrides or "--help" in overrides:
        print(__doc__)
        sys.exit(0)
    with user_errors(conf_folder()):
        for word in overrides:
            if word.startswith("-"):
                raise UserError(f"{word}: is no option of this command. {nearest(word, OPTIONS)}")
        print_costs(overrides, with_memory)


def print_costs(overrides: list[str], with_memory: bool = False) -> None:
    """Compose the configuration of the overrides, and print the table and its notes."""
    import hydra
    from rich.console import Console

    from dynarank.config.schema import register_schemas, to_config

    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries' of one another
    register_schemas()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        # By default output_dir refers to a running job of Hydra's, and there is none.
        config = to_config(hydra.compose("train", overrides=["output_dir=unused", *overrides]))
    title = f"{config.model.path}, budget r{config.budget.target:g}, {config.task.name}"
    of_methods = costs(config)
    console = Console()
    console.print(cost_table(of_methods, title))
    for cost in of_methods:
        if cost.size.note:
            console.print(f"{cost.method}: {cost.size.note}", soft_wrap=True, highlight=False)
    console.print(advice(config.budget.target), soft_wrap=True, highlight=False)
    if with_memory:
        for line in memory_lines(config):
            console.print(line, soft_wrap=True, highlight=False)


def advice(target: float) -> str:
    """Return which method the measurements speak for under a budget; docs/science.md has them."""
    if target < 0.5:
        return (
            "Below half a component a matrix method=dynarank was better than LoRA of its size and "
            "the paper's method, at its default learning rate, too; tuned, also than AdaLoRA "
            "(docs/science.md). LoRA in the upper layers with small components "
            "(method.placement=last_layers method.alpha=1) was level with it in a short run, and "
            "below it in a longer one."
        )
    return (
        "In a short run at half a component a matrix and more, nothing was shown to be better than "
        "a tuned method=lora, up to one component with method.alpha=1; dynarank compress makes its "
        "adapter smaller afterwards. In training of three epochs method=dynarank_orthogonal was "
        "above LoRA of its size, by two points at r0_5 and r1 and five at r8 (docs/science.md)."
    )


def memory_lines(config: TrainConfig) -> list[str]:
    """Return what a training step takes of memory, a line for each part. Raises `UserError`."""
    from dynarank.methods import build_method
    from dynarank.pretrained.models import resolve_targets
    from dynarank.runs.memory import estimate_memory
    from dynarank.tasks import build_task

    model, head = _empty_model(config)
    targets = resolve_targets(config.model, model.config.model_type)
    method = build_method(config.method, config.budget, config.dem)
    try:
        with torch_device("meta"):
            adapted = method.adapt(model, targets, head)
    except ValueError as error:
        raise UserError(f"--memory, method={config.method.name}: {error}") from None
    memory = estimate_memory(config, model, adapted, build_task(config.task))
    parts = {
        "frozen weights": memory.base,
        "adapter and head": memory.trained,
        "their gradients": memory.gradients,
        "AdamW": memory.optimizer,
        f"a batch of {config.batch_size} of the longest rows": memory.activations,
        "all tensors": memory.total,
        "by which a process on Linux grows on the CPU": memory.of_process,
    }
    first = f"training memory, method={config.method.name}, {config.trainer.precision}:"
    return [first, *(f"  {size / 1e6:10,.1f} MB  {name}" for name, size in parts.items())]


def torch_device(name: str) -> Any:
    """Return a context in which tensors are made on a device."""
    import torch

    return torch.device(name)
