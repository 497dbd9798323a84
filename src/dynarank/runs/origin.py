"""What a run recorded beside its adapter, and how its task and its method are built from that."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from dynarank.adapters.adapter_checks import read_json
from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.errors import UserError, nearest
from dynarank.pretrained.hub import ModelConfig
from dynarank.run_folder import ADAPTER, METRICS, ORIGIN, OVER_BUDGET

if TYPE_CHECKING:
    from dynarank.methods.base import Method
    from dynarank.pretrained.agreement import RecordedDigests
    from dynarank.tasks.base import Task

PARTS = ("task", "model", "method", "budget", "dem")
"""Parts of a run's configuration that are recorded."""


@dataclass
class Origin:
    """The record beside an adapter: the task, the method, and where the base model came from."""

    adapter: Path
    """The folder that holds the adapter and this record."""
    parts: dict[str, dict[str, Any]]
    """The recorded configuration, by the names in PARTS."""
    digests: RecordedDigests
    """What was recorded of the base weights and of the tokenizer."""

    @property
    def method(self) -> str:
        """Return the name of the method that trained the adapter."""
        return str(self.parts["method"].get("name"))

    @property
    def base_in_training(self) -> str | None:
        """Return where the base model lay in training: a folder, or a hub id."""
        return self.parts["model"].get("found")

    @property
    def is_whole_model(self) -> bool:
        """Return whether the folder holds a plain transformers model in place of an adapter."""
        return (self.adapter / "config.json").is_file()

    @property
    def is_peft_adapter(self) -> bool:
        """Return whether the folder holds an adapter that PEFT can load."""
        return (self.adapter / "adapter_config.json").is_file()

    def model_config(self) -> ModelConfig:
        """Return the settings of the base model."""
        # `write_origin` adds "found" to the settings.
        recorded = {name: value for name, value in self.parts["model"].items() if name != "found"}
        with_path = _from_record(ModelConfig, recorded, "model")
        assert isinstance(with_path, ModelConfig)
        if not isinstance(with_path.path, str):
            raise UserError(f"{ORIGIN}: model.path = {with_path.path!r}: must be a text")
        return with_path

    def build_task(self) -> Task[Any]:
        """Return the task that the run trained on, without data."""
        from dynarank.tasks import build_task

        family = self.parts["task"].get("family")
        return build_task(recorded_config(self.parts["task"], f"task/{family}"))

    def build_method(self) -> Method[Any]:
        """Return the method that trained the adapter, not applied to a model yet."""
        from dynarank.methods import build_method

        # Methods without settings of their own share a schema.
        schemas = (f"method/{self.method}", "method/plain")
        return build_method(
            recorded_config(self.parts["method"], *schemas),
            BudgetConfig(**self.parts["budget"]),
            DemConfig(**self.parts["dem"]),
        )


def find_adapter(folder: Path, over_budget: bool = False) -> Path:
    """Return the folder with the adapter of a run, or of a folder that is an adapter's own.

    Args:
        over_budget: whether an adapter that is larger than its budget will do.

    Raises:
        UserError: there is no adapter, or only one over budget that was not asked for.
    """
    for candidate in (folder / ADAPTER, folder):
        if (candidate / ORIGIN).is_file():
            return candidate
    too_large = folder / OVER_BUDGET
    if (too_large / ORIGIN).is_file():
        if over_budget:
            return too_large
        raise UserError(
            f"{folder}: the budget was not reached, because the run ended before its ranks were "
            f"frozen{_components(folder)}. Train it longer, or use the adapter in {OVER_BUDGET}/ "
            "as it is with --over-budget"
        )
    raise UserError(
        f"{folder}: holds no {ORIGIN}, neither in itself nor in {ADAPTER}/, so it holds no "
        "adapter. Give the folder of a finished run, or its adapter folder"
    )


def _components(folder: Path) -> str:
    """Return how many components a run kept, and its budget, in brackets; "" if unknown."""
    record = folder / METRICS
    if not record.is_file():
        return ""
    results = read_json(record)
    kept, target = results.get("components_kept"), results.get("components_target")
    return f" ({kept} components, {target} budgeted)" if target is not None else ""


def read_origin(adapter: Path) -> Origin:
    """Return the record beside an adapter. Raises `UserError` where it is damaged."""
    from dynarank.checkpoints.identity import package_versions
    from dynarank.pretrained.agreement import RecordedDigests

    path = adapter / ORIGIN
    recorded = read_json(path)
    for part in PARTS:
        if not isinstance(recorded.get(part), dict):
            raise UserError(f"{path}: holds no {part}")
    return Origin(
        adapter=adapter,
        parts={part: recorded[part] for part in PARTS},
        digests=RecordedDigests.read(recorded, package_versions().get("transformers")),
    )


def recorded_config(recorded: dict[str, Any], *schemas: str) -> Any:
    """Return a part of a configuration from its record.

    Args:
        recorded: the values by name.
        schemas: names of schemas; the first that this version knows is taken.

    Raises:
        UserError: no schema is known, or the record names a setting that the schema lacks.
    """
    from dynarank.config.schema import SCHEMAS

    for name in schemas:
        if name in SCHEMAS:
            return _from_record(SCHEMAS[name], recorded, name)
    raise UserError(f"{schemas[0]}: not known to this version. {nearest(schemas[0], SCHEMAS)}")


def _from_record(schema: Any, recorded: dict[str, Any], where: str) -> Any:
    """Return a dataclass of the recorded values, nested dataclasses included.

    OmegaConf is not asked, because to it a class called '???' would be a missing value.
    """
    kinds = get_type_hints(schema)
    unknown = recorded.keys() - kinds.keys()
    if unknown:
        raise UserError(
            f"{where}.{min(unknown)}: recorded by another version of dynarank, and not known to "
            "this one"
        )
    values = {}
    for name, value in recorded.items():
        nested = is_dataclass(kinds[name])
        values[name] = _from_record(kinds[name], value, f"{where}.{name}") if nested else value
    return schema(**values)
