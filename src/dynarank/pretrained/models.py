"""Load a pretrained model and its tokenizer; name its layers to adapt and its task head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dynarank.adapters.linears import keep_differentiable
from dynarank.errors import UserError
from dynarank.pretrained.agreement import disable_layerdrop
from dynarank.pretrained.architectures import (
    ARCHITECTURES,
    kind_of_model,
    models_of_kind,
    position_tables,
)
from dynarank.pretrained.hub import ModelConfig, Source, check_sha256
from dynarank.pretrained.internals import has_model_class, model_loader, was_adapter
from dynarank.pretrained.loading import CODE_IS_ASKED_FOR, load_auto
from dynarank.pretrained.precision import widen_head
from dynarank.pretrained.processors import PROCESSORS
from dynarank.pretrained.processors import load_tokenizer as load_tokenizer  # `as`: for importers
from dynarank.pretrained.quantization import check_quantization, quantization_options
from dynarank.pretrained.task_model import TaskModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Pretrained:
    """A model ready to be adapted."""

    model: PreTrainedModel
    tokenizer: Any
    """The tokenizer, or what else reads the task's inputs (`processors`)."""
    head: list[str]
    """Modules outside the pretrained body, trained in full."""
    source: Source


def resolve_targets(config: ModelConfig, model_type: str) -> list[str]:
    """Return the layers to adapt: the user's, else those known for the architecture.

    Raises:
        UserError: the user names none, and none are known.
    """
    if config.targets is not None:
        return list(config.targets)
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"model.targets = null, and no layers are known for the architecture {model_type!r} "
            f"of {config.path} (known: {', '.join(ARCHITECTURES)}). Name them, as in "
            "model.targets=[q_proj,v_proj]; a wrong name lists them all"
        )
    return list(ARCHITECTURES[model_type].targets)


def check_fit(config: ModelConfig, source: Source, task: TaskModel) -> None:
    """Raise `UserError` where a model cannot do a task, from its configuration alone."""
    settings = load_settings(config, source)
    check_quantization(config, settings)
    fitting = task.config.architectures
    kind = kind_of_model(settings)
    examples = "; ".join(models_of_kind(fit) for fit in fitting)
    if kind not in fitting:
        article = "a" if kind == "decoder" else "an"
        raise UserError(
            f"model.path = {config.path}: {task.config.name} fits {' and '.join(fitting)} models, "
            f"and {settings.model_type} is {article} {kind}. Ones that fit: {examples}"
        )
    # config.json's `auto_map` names the classes that come with a model, by auto class.
    own_code = getattr(settings, "auto_map", None) or {}
    brings_class = config.trust_remote_code and task.auto_class in own_code
    if not brings_class and not has_model_class(task.auto_class, settings):
        raise UserError(
            f"model.path = {config.path}: transformers has no {settings.model_type} for "
            f"{task.config.family} ({task.auto_class}), which {task.config.name} needs. "
            f"Ones that fit: {examples}"
        )


def load_settings(config: ModelConfig, source: Source) -> Any:
    """Return a model's configuration, as transformers reads its config.json.

    Raises:
        UserError: there is none, or it asks for code that is not trusted.
    """
    import transformers

    settings = load_auto(transformers.AutoConfig, "configuration", config, source)
    # The file as it stands: the object keeps such a name elsewhere, or drops it.
    recorded, _ = settings.get_config_dict(source.path, revision=config.revision)
    kernel = None if config.trust_remote_code else _find_hub_kernel(recorded)
    if kernel is not None:
        raise UserError(
            f"model.path = {config.path}: its config.json names {kernel}, code from the hub. "
            f"{CODE_IS_ASKED_FOR}"
        )
    return settings


def _find_hub_kernel(recorded: dict[str, Any]) -> str | None:
    """Return where a config.json names an implementation as ORG/NAME, at any depth.

    transformers would fetch such a kernel from the hub and run it.
    """
    for name, value in recorded.items():
        if "implementation" in name and "/" in str(value):
            return f"{name} = {value}"
        inside = _find_hub_kernel(value) if isinstance(value, dict) else None
        if inside is not None:
            return inside
    return None


def load_pretrained(
    config: ModelConfig,
    source: Source,
    task: TaskModel,
    tokenizer: Any,
    head_is_trained: bool = False,
) -> Pretrained:
    """Load a model for a task, its weights in `model.dtype` and its head in float32.

    The model is in training mode, for Lightning leaves modes as they are.

    Args:
        head_is_trained: whether this is a finished run's whole model, of which nothing may be
            begun anew.

    Raises:
        UserError: this is no model, none that fits the task, or not the expected weights.
    """
    import transformers

    check_sha256(config, source)
    settings = load_settings(config, source)
    transformers.utils.logging.disable_progress_bar()
    # Else a table of the head's missing weights is printed, which are meant to be missing.
    transformers.utils.logging.set_verbosity_error()
    dtype: torch.dtype = getattr(torch, config.dtype)
    check_quantization(config, settings)
    loader = model_loader(task.auto_class, settings)
    model, info = load_auto(
        loader,
        "model",
        config,
        source,
        dtype=dtype,
        output_loading_info=True,
        # A head of another number of classes begins anew. `_check_shapes` refuses a body's.
        ignore_mismatched_sizes=True,
        **task.model_options(),
        **quantization_options(config, loader, settings),
    )
    if was_adapter(model):
        raise UserError(
            f"model.path = {config.path}: is an adapter, not a model. Give the model that it adapts"
        )
    agree = PROCESSORS[task.processor].agree
    agree(f"model.path = {config.path}", tokenizer, model, task.auto_class)
    model.train()
    keep_differentiable(model)
    disable_layerdrop(model)
    whole = head_is_trained or not task.has_head
    _check_shapes(config, model, info["mismatched_keys"], whole)
    if head_is_trained and info["missing_keys"]:
        raise UserError(f"{source.path}: holds no {min(info['missing_keys'])}, which was trained")
    head = head_modules(model, info["missing_keys"]) if task.has_head else []
    if dtype != torch.float32:
        widen_head(model, head, dtype)
    return Pretrained(model=model, tokenizer=tokenizer, head=head, source=source)


def _check_shapes(
    config: ModelConfig, model: PreTrainedModel, mismatched: Sequence[Any], whole: bool
) -> None:
    """Raise `UserError` where a weight has another shape than config.json gives it.

    Args:
        whole: whether the head counts too; else one of another task's size is begun anew.
    """
    body = f"{body_name(model)}."
    for key, *_ in mismatched:
        if key.startswith(body):
            raise UserError(
                f"model.path = {config.path}: {key} has not the shape that its config.json gives it"
            )
        if whole:
            raise UserError(
                f"model.path = {config.path}: {key} has not the shape that the task wants. Put "
                "task.labels back as they were in training"
            )


def head_modules(model: PreTrainedModel, missing: set[str]) -> list[str]:
    """Return the modules to train in full: those beside the body, and those with fresh weights.

    Args:
        missing: names of parameters that the checkpoint does not hold, initialised anew.

    Raises:
        UserError: the body is not a module of its own, so that all would count as its head.
    """
    body = body_name(model)
    children = dict(model.named_children())
    if body not in children:
        raise UserError(
            f"model.path: what is pretrained in a {type(model).__name__} does not stand apart "
            "from its task head. Choose another model"
        )
    beside = [name for name, child in children.items() if name != body and _has_parameters(child)]
    # Inside the body, too: a pooler, say, that the checkpoint lacks.
    fresh = [
        parameter.rpartition(".")[0]
        for parameter in sorted(missing)
        if parameter.startswith(body + ".")
    ]
    return beside + list(dict.fromkeys(fresh))


def body_name(model: PreTrainedModel) -> str:
    """Return the name of the module that holds what is pretrained in a model with a task head."""
    known = ARCHITECTURES.get(model.config.model_type)
    if known is not None and known.body is not None:
        return known.body
    return model.base_model_prefix


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def positions(model: nn.Module) -> int | None:
    """Return how many tokens the model has positions for; None where positions do not end."""
    config: Any = model.config
    tables = position_tables(config.model_type)
    lengths = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in tables:
            # RoBERTa counts its positions from behind the padding's.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            lengths.append(module.num_embeddings - unused)
    # The tables of BART and OPT have two rows more than there are positions.
    return min(config.max_position_embeddings, *lengths) if lengths else None


def prompt_vectors(model: Any) -> int:
    """Return how many trained vectors stand before a text, as prompt tuning puts them there."""
    adapters = getattr(model, "peft_config", {})
    # PEFT's name of an adapter that was given none.
    return int(getattr(adapters.get("default"), "num_virtual_tokens", 0))


def check_length(model: Any, tokens: int, setting: str, generated: bool = False) -> None:
    """Raise `UserError` where the model has too few positions for a text of so many tokens.

    Args:
        setting: what bounds the text, for errors.
        generated: whether it is the decoder's text, before which no prompt vectors stand.
    """
    vectors = 0 if generated else prompt_vectors(model)
    room = positions(model)
    if room is None or tokens + vectors <= room:
        return
    taken = f", of which prompt vectors take {vectors}" if vectors else ""
    remedy = f", or method.reserved={tokens}" if vectors and tokens < room else ""
    raise UserError(
        f"{setting}: a text has {tokens} tokens, and the model {room} positions{taken}. "
        f"Set {setting}={room - vectors}{remedy}"
    )
