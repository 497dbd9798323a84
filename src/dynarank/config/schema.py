"""The schema of a whole run: types, ranges, and the meaning of each setting.

The text under a field is the only place where its meaning is written. The help and docs/settings.md
are made from it. This module imports nothing heavy, so that help and mistakes answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.config.folders import folder_name
from dynarank.config.unknown_keys import refuse_unknown
from dynarank.errors import UserError, first_line
from dynarank.methods.config import (
    AdaLoRAConfig,
    DiffPruningConfig,
    EvaConfig,
    GlobalSvdConfig,
    GoraConfig,
    LoRAConfig,
    MethodConfig,
    PromptConfig,
    SoraConfig,
)
from dynarank.methods.dora_config import DoRAConfig, DynaRankConfig, DynaRankOrthogonalConfig
from dynarank.pretrained.hub import HubConfig, ModelConfig
from dynarank.settings import Form, Ge, Gt, Lt, OneOf, UserPath, check_settings
from dynarank.tasks.causal_config import CausalLMConfig, InstructConfig
from dynarank.tasks.config import QuestionAnsweringConfig, TaskConfig, TextClassificationConfig
from dynarank.tasks.image_config import ImageClassificationConfig
from dynarank.tasks.seq2seq_config import Seq2SeqConfig
from dynarank.tasks.token_config import TokenClassificationConfig

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass
class OptimizerConfig:
    """AdamW, whose rate rises linearly at first and then falls linearly to zero."""

    lr: Annotated[float | None, Gt(0)] = None
    """The peak learning rate; null: task.lr x model.lr_scale x method.lr_scale."""
    head_lr: Annotated[float | None, Gt(0)] = None
    """The peak learning rate of the task head, which starts untrained; null: optimizer.lr. The two
    want different rates, and one rate for both confounds comparisons of methods."""
    weight_decay: Annotated[float, Ge(0)] = 0.01  # the paper's
    """The decay of matrices; c, biases and norms never decay."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """AdamW's smoothing of the gradient."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """AdamW's smoothing of the squared gradient. Lower ones, as 0.95, let the steps shrink sooner
    where gradients grow."""
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.06  # the paper's
    """The share of the optimizer steps in which the rate rises."""

    def __post_init__(self) -> None:
        check_settings("optimizer", self)


@dataclass
class TrainerConfig:
    """How long a run trains, on what, and in which precision."""

    epochs: Annotated[int | None, Gt(0)] = None
    """How often the training rows are passed; null: task.epochs."""
    max_steps: Annotated[int | None, Gt(0)] = None
    """Stop after that many optimizer steps, if the epochs are not over before; null: all epochs."""
    max_time: Annotated[
        str | None, Form(r"\d+:\d\d:\d\d:\d\d", "DD:HH:MM:SS, as 00:08:00:00 for eight hours")
    ] = None
    """Stop after that much time in training, DD:HH:MM:SS, over all starts; null: no limit. A run
    that ends before its ranks are frozen is over budget: its adapter is in over_budget/."""
    batch_size: Annotated[int | None, Gt(0)] = None
    """Rows of a batch, over all devices together; null: task.batch_size."""
    accumulate: Annotated[int, Gt(0)] = 1
    """Batches of one optimizer step."""
    clip: Annotated[float, Ge(0)] = 1.0  # the paper's
    """The largest norm of the gradient; 0: no clipping."""
    precision: Annotated[str, OneOf(PRECISIONS)] = "32-true"
    """Precision of the frozen model; adapters, scores and DEM are float32 in all."""
    accelerator: Annotated[str, OneOf(("auto", "cpu", "gpu", "mps"))] = "auto"
    """What to train on; auto takes a GPU where there is one."""
    strategy: Annotated[str, OneOf(("ddp", "fsdp"))] = "ddp"
    """With several devices: ddp keeps the model on each; fsdp shards its frozen part (FSDP2)."""
    devices: Annotated[int, Gt(0)] = 1
    """Devices (processes) of each node."""
    nodes: Annotated[int, Gt(0)] = 1
    """Machines."""
    validations_per_epoch: Annotated[int, Gt(0)] = 1
    """How often an epoch scores the validation splits, evenly spread over its optimizer steps; the
    last time at its end. With more validations than steps, each step is followed by one."""
    log_every: Annotated[int, Gt(0)] = 10
    """Optimizer steps between two logged ones."""
    workers: Annotated[int, Ge(0)] = 0
    """Processes that collate batches; 0: the training process does it itself."""
    compile: bool = False
    """Compile the training pass (torch.compile), once for all shapes; a batch of a single row
    makes it compile once more."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about
    a third more time."""
    ema: Annotated[float | None, Gt(0), Lt(1)] = None
    """The decay of an average of the trained weights, which is then what is scored and exported;
    null: no average."""
    callbacks: list[str] = field(default_factory=list)
    """Lightning callbacks of your own, MODULE.CLASS, made without arguments. Each must be named in
    the environment's DYNARANK_CALLBACKS too, for it runs code."""

    def __post_init__(self) -> None:
        check_settings("trainer", self)
        if self.compile and self.strategy == "fsdp":
            raise ValueError(
                "trainer.compile = true: does not work with trainer.strategy = fsdp. "
                "Use trainer.strategy=ddp, or trainer.compile=false"
            )

    @property
    def world_size(self) -> int:
        """The number of processes of the run."""
        return self.devices * self.nodes


@dataclass
class CheckpointConfig:
    """When a run is saved, beside every validation and every signal."""

    every_minutes: Annotated[float, Gt(0)] = 5.0
    """Minutes between two checkpoints."""
    every_steps: Annotated[int | None, Gt(0)] = None
    """Optimizer steps between two checkpoints, beside the minutes; null: minutes alone decide."""
    keep: Annotated[int, Gt(0)] = 2
    """How many of the last checkpoints are kept, beside the best at budget."""

    def __post_init__(self) -> None:
        check_settings("checkpoint", self)


@dataclass
class ResumeConfig:
    """Going on where a run stopped. `resume=X` on the command line is short for `resume.path=X`."""

    path: Annotated[str | None, UserPath()] = None
    """auto: the newest whole checkpoint of the run's folder, if there is one; a run's folder; a
    .ckpt file; never: start over, and remove what an unfinished run left there; null: refuse to
    start where an unfinished run is."""
    allow_inexact: bool = False
    """Go on although settings, devices or versions differ from those the run began with; the run's
    record says which."""
    shared_folder: bool = False
    """Train in a folder that holds files of others too. None of them is removed or overwritten."""

    def __post_init__(self) -> None:
        check_settings("resume", self)


@dataclass
class LoggerConfig:
    """The tracker, beside the metrics.csv that is always written."""

    tracker: Annotated[str, OneOf(("wandb", "tensorboard", "none"))] = "wandb"
    """Where the run is seen while it trains; tensorboard: by `tensorboard --logdir outputs`; none:
    in metrics.csv alone."""
    project: Annotated[
        str, Form(r"[^/\\#?%:]{1,128}", r"1 to 128 characters, and none of / \ # ? % :")
    ] = "dynarank"
    """The project of W&B."""
    mode: Annotated[str, OneOf(WANDB_MODES)] = "auto"
    """auto takes WANDB_MODE, else online when logged in, else offline."""

    def __post_init__(self) -> None:
        check_settings("logger", self)


@dataclass
class SweepConfig:
    """A sweep (`-m`): many runs, a process each."""

    resume: bool = False
    """Leave out the runs that hydra.sweep.dir holds already, finished."""


@dataclass
class TrainConfig:
    """A run: what to adapt, to what, by what method, under what budget."""

    model: ModelConfig = field(default_factory=ModelConfig)
    # A task's and a method's file begin with a schema of SCHEMAS, which takes the place of these.
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
    seed: Annotated[int, Ge(0), Lt(2**32)] = 1  # numpy takes no larger one
    """Decides the new weights, the order of rows, and dropout."""
    output_dir: Annotated[str, UserPath()] = "???"
    """The run's folder; by default that of hydra.run.dir, which is the one to give: Hydra writes
    the configuration there, and a report reads it."""

    def __post_init__(self) -> None:
        check_settings("", self)
        self.method.check_budget(self.budget)

    @property
    def lr(self) -> float:
        """The peak learning rate, also where optimizer.lr is null."""
        if self.optimizer.lr is not None:
            return self.optimizer.lr
        return self.task.lr * self.model.lr_scale * self.method.lr_scale

    @property
    def epochs(self) -> int:
        """The number of epochs, also where trainer.epochs is null."""
        return self.trainer.epochs or self.task.epochs

    @property
    def batch_size(self) -> int:
        """The rows of a batch, also where trainer.batch_size is null."""
        return self.trainer.batch_size or self.task.batch_size


SCHEMAS = {
    "task/text_classification": TextClassificationConfig,
    "task/question_answering": QuestionAnsweringConfig,
    "task/seq2seq": Seq2SeqConfig,
    "task/causal_lm": CausalLMConfig,
    "task/instruct": InstructConfig,
    "task/token_classification": TokenClassificationConfig,
    "task/image_classification": ImageClassificationConfig,
    "method/dora": DoRAConfig,
    "method/dynarank": DynaRankConfig,
    "method/dynarank_orthogonal": DynaRankOrthogonalConfig,
    "method/lora": LoRAConfig,
    "method/adalora": AdaLoRAConfig,
    "method/global_svd": GlobalSvdConfig,
    "method/eva": EvaConfig,
    "method/gora": GoraConfig,
    "method/prompt": PromptConfig,
    "method/sora": SoraConfig,
    "method/diff_pruning": DiffPruningConfig,
    "method/plain": MethodConfig,
}
"""Schemas that a group's files choose from, for `defaults: [/schema/...@_here_]`."""


def register_schemas() -> None:
    """Register the schemas with Hydra, so that a typo or a wrong type fails at composition."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    # A process may come here several times, as a notebook or a test does.
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("basename", _basename, replace=True)
    store = ConfigStore.instance()
    if "schema.yaml" in store.repo:
        return  # the store lives as long as the process
    store.store(name="schema", node=TrainConfig)
    for path, schema in SCHEMAS.items():
        group, _, name = path.rpartition("/")
        store.store(group=f"schema/{group}", name=name, node=schema)


def _basename(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def to_config(composed: Any) -> TrainConfig:
    """Return the typed configuration of a composed one.

    Raises:
        UserError: a value is out of its range or left open, or a key is no setting.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    if OmegaConf.get_type(composed) is not TrainConfig:
        raise UserError(
            "the configuration has no schema. Let it begin with `defaults: [train, _self_]`"
        )
    refuse_unknown(composed)
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        reason = first_line(error)
        raise UserError(f"{reason}. Give it on the command line, or in the configuration") from None
    except ValueError as error:  # raised by a dataclass's own check
        raise UserError(str(error)) from None
    assert isinstance(config, TrainConfig)
    return config
