"""The schema of a whole run. Imports nothing heavy, so that help and mistakes answer at once."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.errors import UserError, nearest
from dynarank.methods.config import (
    AdaLoRAConfig,
    DoRAConfig,
    LoRAConfig,
    MethodConfig,
    PromptConfig,
)
from dynarank.pretrained.hub import HubConfig, ModelConfig
from dynarank.tasks.config import (
    QuestionAnsweringConfig,
    Seq2SeqConfig,
    TaskConfig,
    TextClassificationConfig,
)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu", "mps")
STRATEGIES = ("ddp", "fsdp")
TRACKERS = ("wandb", "none")
WANDB_MODES = ("auto", "online", "offline", "disabled")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(known)}")


def _above_zero(prefix: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{prefix}.{name} = {value}: must be above 0")


@dataclass
class OptimizerConfig:
    """AdamW, warmed up linearly, then decayed linearly to zero."""

    lr: float | None = None
    """Peak learning rate; null: task.lr x model.lr_scale."""
    weight_decay: float = 0.01
    """On matrices; never on c, biases and norms."""
    warmup: float = 0.06
    """Share of the optimizer steps in which the rate rises."""

    def __post_init__(self) -> None:
        _above_zero("optimizer", self, "lr")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay = {self.weight_decay}: must be 0 or more")
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"optimizer.warmup = {self.warmup}: a share of the steps, from 0 to below 1"
            )


@dataclass
class TrainerConfig:
    """How long, on what, and in which precision."""

    epochs: int | None = None
    """null: task.epochs."""
    max_steps: int | None = None
    """Stop after that many optimizer steps, if the epochs are not over before; null: run all epochs."""
    max_time: str | None = None
    """Stop after that much time in training, DD:HH:MM:SS, over all starts; null: no limit. Before the ranks are frozen, the
    run ends over budget and without an adapter."""
    batch_size: int | None = None
    """Rows a batch, over all devices together; null: task.batch_size."""
    accumulate: int = 1
    """Batches to an optimizer step."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    precision: str = "32-true"
    """32-true, bf16-mixed or 16-mixed; adapters, scores and DEM are float32 in all."""
    accelerator: str = "auto"
    """auto, cpu, gpu or mps."""
    strategy: str = "ddp"
    """With several devices: ddp, the model on each; or fsdp, its frozen part sharded over all (FSDP2)."""
    devices: int = 1
    """Devices (processes) of each node."""
    nodes: int = 1
    validations_per_epoch: int = 1
    """How often to score the validation splits."""
    log_every: int = 10
    """Batches between two logged steps."""
    workers: int = 0
    """Processes that collate batches; 0: the training process does."""
    compile: bool = False
    """Compile the training pass (torch.compile), once for all shapes; a batch of a single row makes it compile once more."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    ema: float | None = None
    """Decay of an average of the trained weights, which is then what is scored and exported; null: none."""

    def __post_init__(self) -> None:
        _above_zero(
            "trainer",
            self,
            "epochs",
            "max_steps",
            "batch_size",
            "accumulate",
            "log_every",
            "validations_per_epoch",
            "devices",
            "nodes",
        )
        if self.clip < 0 or self.workers < 0:
            raise ValueError(
                f"trainer.clip = {self.clip}, trainer.workers = {self.workers}: must be 0 or more"
            )
        if self.max_time is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", self.max_time):
            raise ValueError(
                f"trainer.max_time = {self.max_time}: must be DD:HH:MM:SS, as 00:08:00:00 for eight hours"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"trainer.ema = {self.ema}: must lie between 0 and 1, or be null")
        if self.compile and self.strategy == "fsdp":
            raise ValueError(
                "trainer.compile = true: not with trainer.strategy = fsdp. Use ddp, or compile=false"
            )
        _one_of("trainer.precision", self.precision, PRECISIONS)
        _one_of("trainer.accelerator", self.accelerator, ACCELERATORS)
        _one_of("trainer.strategy", self.strategy, STRATEGIES)

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.devices * self.nodes


@dataclass
class CheckpointConfig:
    """When a run is saved, beside every validation and every signal."""

    every_minutes: float = 5.0
    every_steps: int | None = None
    """Optimizer steps between two checkpoints, too; null: minutes alone decide."""
    keep: int = 2
    """The last so many are kept, and the best at budget."""

    def __post_init__(self) -> None:
        _above_zero("checkpoint", self, "every_minutes", "every_steps", "keep")


@dataclass
class ResumeConfig:
    """Going on where a run stopped. `resume=X` on the command line is short for `resume.path=X`."""

    path: str | None = None
    """auto: the newest whole checkpoint of the run's folder, if there is one; a run's folder; a .ckpt; never: start over,
    and remove what an unfinished run left there; null: refuse to start where one did."""
    allow_inexact: bool = False
    """Go on although settings, devices or versions differ from those it began with; the run's record says which."""
    shared_folder: bool = False
    """Train in a folder that holds files of others too. None of them is removed or overwritten."""


@dataclass
class LoggerConfig:
    """The tracker, beside the metrics.csv that is always written."""

    tracker: str = "wandb"
    """wandb or none."""
    project: str = "dynarank"
    mode: str = "auto"
    """auto (WANDB_MODE, else online when logged in, else offline), online, offline or disabled."""

    def __post_init__(self) -> None:
        _one_of("logger.tracker", self.tracker, TRACKERS)
        _one_of("logger.mode", self.mode, WANDB_MODES)
        if not 0 < len(self.project) <= 128 or set(self.project) & set("/\\#?%:"):
            raise ValueError(
                f"logger.project = {self.project!r}: 1 to 128 characters, and none of / \\ # ? % :"
            )


@dataclass
class SweepConfig:
    """A sweep (`-m`): many runs, a process each."""

    resume: bool = False
    """Leave out the runs that hydra.sweep.dir holds already, finished."""


@dataclass
class TrainConfig:
    """A run: what to adapt, to what, by what method, under what budget."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    dem: DemConfig = field(default_factory=DemConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 1
    output_dir: str = "???"
    """The run's folder."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed = {self.seed}: must lie in [0, 2^32)")

    @property
    def lr(self) -> float:
        """The peak learning rate, resolved."""
        return (
            self.task.lr * self.model.lr_scale if self.optimizer.lr is None else self.optimizer.lr
        )

    @property
    def epochs(self) -> int:
        """Resolved."""
        return self.trainer.epochs or self.task.epochs

    @property
    def batch_size(self) -> int:
        """Resolved."""
        return self.trainer.batch_size or self.task.batch_size


SCHEMAS = {
    "task/text_classification": TextClassificationConfig,
    "task/question_answering": QuestionAnsweringConfig,
    "task/seq2seq": Seq2SeqConfig,
    "method/dora": DoRAConfig,
    "method/lora": LoRAConfig,
    "method/adalora": AdaLoRAConfig,
    "method/prompt": PromptConfig,
    "method/plain": MethodConfig,
}
"""Schemas that a group's files choose from, for `defaults: [/schema/...@_here_]`."""


def register_schemas() -> None:
    """Tell Hydra the schemas, so that a typo or a wrong type fails when the configuration is composed."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver(
        "basename", lambda path: path.rstrip("/").rpartition("/")[2], replace=True
    )
    store = ConfigStore.instance()
    store.store(name="schema", node=TrainConfig)
    for path, schema in SCHEMAS.items():
        group, _, name = path.rpartition("/")
        store.store(group=f"schema/{group}", name=name, node=schema)


LONGEST_NAME = 200
"""Bytes of a folder's name; file systems take 255, of which a sweep's number needs some."""


def folder_name(text: str) -> str:
    """A text as the name of one folder: no way out of its parent, and never too long."""
    name = re.sub(r"[/\\\x00-\x1f\x7f]", "_", str(text))
    name = f"_{name[1:]}" if name.startswith(".") else name
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"


def to_config(composed: Any) -> TrainConfig:
    """The typed configuration of a composed one. Raises `UserError` for a value out of range or left open."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    refuse_unknown(composed)
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise UserError(
            f"{str(error).splitlines()[0]}. Give it on the command line, or in the configuration"
        ) from None
    except ValueError as error:  # a dataclass's own check
        raise UserError(str(error)) from None
    assert isinstance(config, TrainConfig)
    return config


def refuse_unknown(composed: Any, prefix: str = "") -> None:
    """Raise `UserError` for a key that the schema lacks: `+key=value` would add it, and nothing would read it."""
    from omegaconf import DictConfig, OmegaConf

    schema: Any = OmegaConf.get_type(composed)
    known = [entry.name for entry in dataclasses.fields(schema)]
    for key in composed:
        if key not in known:
            raise UserError(f"{prefix}{key} is not a setting. {nearest(key, known)}")
        if isinstance(child := composed._get_node(key), DictConfig) and not child._is_none():
            refuse_unknown(child, f"{prefix}{key}.")


def setting_names(schema: Any = TrainConfig, prefix: str = "") -> list[str]:
    """Every setting's dotted name, those of all variants included: what a mistyped one is compared with."""
    names: dict[str, None] = {}
    for entry in dataclasses.fields(schema):
        default = (
            entry.default_factory if entry.default_factory is not dataclasses.MISSING else None
        )
        group = f"{prefix}{entry.name}/"
        variants: list[Any] = [kind for path, kind in SCHEMAS.items() if path.startswith(group)]
        for nested in variants or [default]:
            if isinstance(nested, type) and dataclasses.is_dataclass(nested):
                names |= dict.fromkeys(setting_names(nested, f"{prefix}{entry.name}."))
            else:
                names[prefix + entry.name] = None
    return list(names)
