"""Load a pretrained model and its tokenizer for a task, and name its adapted layers and its task head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynarank.errors import UserError
from dynarank.pretrained.hub import ModelConfig, Source, check_sha256
from dynarank.pretrained.targets import KNOWN_TARGETS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynarank.tasks.base import Task


@dataclass
class Pretrained:
    """A model ready to be adapted."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: list[str]
    """Modules outside the pretrained body, trained in full."""
    source: Source


def resolve_targets(config: ModelConfig, model_type: str) -> list[str]:
    """The layers to adapt: the user's, else those known for the architecture. Raises `UserError` if neither is."""
    if config.targets is not None:
        return list(config.targets)
    if model_type not in KNOWN_TARGETS:
        raise UserError(
            f"model.targets = null, and no layers are known for the architecture {model_type!r} of {config.path} (known: "
            f"{', '.join(KNOWN_TARGETS)}). Name them, as in model.targets=[q_proj,v_proj]; a wrong name lists them all"
        )
    return KNOWN_TARGETS[model_type]


def check_fit(config: ModelConfig, source: Source, task: Task[Any]) -> None:
    """Raise `UserError` where the task cannot be done with such a model, from its configuration alone."""
    import transformers

    settings = load_settings(config, source)
    fitting = task.config.architectures
    kind = architecture(settings)
    known = "; ".join(KNOWN_MODELS[one] for one in fitting)
    if kind not in fitting:
        raise UserError(
            f"model.path = {config.path}: {task.config.name} fits {' and '.join(fitting)} models, and {settings.model_type} "
            f"is {'a' if kind == 'decoder' else 'an'} {kind}. Ones that fit: {known}"
        )
    own = config.trust_remote_code and task.auto_class in (
        getattr(settings, "auto_map", None) or {}
    )
    if not own and type(settings) not in getattr(transformers, task.auto_class)._model_mapping:
        raise UserError(
            f"model.path = {config.path}: transformers has no {settings.model_type} for {task.config.family} "
            f"({task.auto_class}), which {task.config.name} needs. Ones that fit: {known}"
        )


KNOWN_MODELS = {
    "encoder": "model=roberta_base, roberta_large, bert_base or minilm",
    "decoder": "GPT-2, LLaMA, Mistral, Qwen by model.path=",
    "encoder-decoder": "model=bart_base, bart_large, t5_base, mbart or marian_en_ro",
}
"""For errors: models of each architecture."""


def architecture(settings: Any) -> str:
    """encoder, decoder or encoder-decoder, by a model's configuration."""
    from transformers.models.auto import modeling_auto as auto

    if settings.is_encoder_decoder:
        return "encoder-decoder"
    masked = settings.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return (
        "decoder"
        if settings.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked
        else "encoder"
    )


def load_settings(config: ModelConfig, source: Source) -> Any:
    """The model's config.json. Raises `UserError` where there is none, or where it asks for code that is not trusted."""
    import transformers

    settings = _load(transformers.AutoConfig, "configuration", config, source)
    recorded, _ = settings.get_config_dict(source.path, revision=config.revision)
    if not config.trust_remote_code and (kernel := _hub_kernel(recorded)):
        raise UserError(
            f"model.path = {config.path}: its config.json names {kernel}, code from the hub. {ASKED}"
        )
    return settings


def _hub_kernel(recorded: Any) -> str | None:
    """Where a config.json names an implementation as ORG/NAME, a kernel that transformers would fetch and run."""
    for name, value in recorded.items():
        if "implementation" in name and "/" in str(value):
            return f"{name} = {value}"
        if isinstance(value, dict) and (found := _hub_kernel(value)):
            return found
    return None


def load_tokenizer(config: ModelConfig, source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token. Raises `UserError` if it cannot be loaded."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, "tokenizer", config, source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_pretrained(
    config: ModelConfig, source: Source, task: Task[Any], tokenizer: PreTrainedTokenizerBase
) -> Pretrained:
    """The pretrained weights in `model.dtype` under the task's auto class, in training mode; its head in float32.

    Raises:
        UserError: not a model, not one that fits the task, or not the expected weights.
    """
    import transformers

    check_sha256(config, source)
    load_settings(config, source)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # else a table of the head's missing weights, which are meant
    dtype: torch.dtype = getattr(torch, config.dtype)
    options = {
        "dtype": dtype,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        **task.model_options(),
    }
    model, info = _load(getattr(transformers, task.auto_class), "model", config, source, **options)
    if getattr(
        model, "_hf_peft_config_loaded", False
    ):  # transformers follows an adapter to whatever base it names
        raise UserError(
            f"model.path = {config.path}: is an adapter, not a model. Give the model that it adapts"
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = (
            tokenizer.pad_token_id
        )  # GPT-2's and LLaMA's heads look for the last real token
    model.train()  # from_pretrained gives evaluation mode, and Lightning leaves modes as they are
    body = f"{model.base_model_prefix}."
    misshapen = [
        key for key, *_ in info["mismatched_keys"] if key.startswith(body) or not task.has_head
    ]
    if misshapen:  # a head of another task's size is begun anew; nothing else may be
        raise UserError(
            f"model.path = {config.path}: {misshapen[0]} has not the shape that its config.json gives it"
        )
    head = head_modules(model, info["missing_keys"]) if task.has_head else []
    if dtype != torch.float32:
        _widen_head(model, head, dtype)
    return Pretrained(model, tokenizer, head, source)


def head_modules(model: PreTrainedModel, fresh: set[str]) -> list[str]:
    """Modules to train in full: those beside the pretrained body, and any with freshly initialised weights.

    Raises:
        UserError: the model's body is not a module of its own, so that all would count as its head.
    """
    body = model.base_model_prefix
    if body not in dict(model.named_children()):
        raise UserError(
            f"model.path: what is pretrained in a {type(model).__name__} does not stand apart from its task head. "
            "Choose another model"
        )
    beside = [
        name for name, child in model.named_children() if name != body and _has_parameters(child)
    ]
    inside = dict.fromkeys(
        key.rpartition(".")[0] for key in sorted(fresh) if key.startswith(body + ".")
    )
    return beside + list(inside)


def _widen_head(model: PreTrainedModel, head: Sequence[str], dtype: torch.dtype) -> None:
    """Let the head compute in float32 behind a narrower body; where the body's own output layer is the head, its logits."""

    def widened(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            one.float() if isinstance(one, Tensor) and one.is_floating_point() else one
            for one in inputs
        )

    def cast_output(to: torch.dtype) -> Any:
        return lambda module, inputs, output: (
            output.to(to) if isinstance(output, Tensor) else output
        )

    for name in head:
        module = model.get_submodule(name).float()
        module.register_forward_pre_hook(widened)
        if name.startswith(
            f"{model.base_model_prefix}."
        ):  # a fresh pooler: what follows it in the body is narrow
            module.register_forward_hook(cast_output(dtype))
    if not head and (logits := model.get_output_embeddings()) is not None:
        logits.register_forward_hook(cast_output(torch.float32))


POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
"""Names of the embeddings of absolute positions."""


def positions(model: nn.Module) -> int | None:
    """How many tokens the model has positions for; None where these are relative, and do not end."""
    found = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES
    ]
    config: Any = model.config
    return min(config.max_position_embeddings, *found) if found else None


def check_length(model: Any, tokens: int, setting: str, generated: bool = False) -> None:
    """Raise `UserError` where a text of so many tokens, behind the prompt vectors if there are any, has no positions.

    `generated`: it is the decoder's text, before which no prompt vectors stand.
    """
    prompts = getattr(getattr(model, "peft_config", {}).get("default"), "num_virtual_tokens", 0)
    vectors = 0 if generated else prompts
    room = positions(model)
    if room is None or tokens + vectors <= room:
        return
    taken = f", of which prompt vectors take {vectors}" if vectors else ""
    remedy = f", or method.reserved={tokens}" if vectors and tokens < room else ""
    raise UserError(
        f"{setting}: a text has {tokens} tokens, and the model {room} positions{taken}. "
        f"Set {setting}={room - vectors}{remedy}"
    )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


ASKED = (
    "Code that comes with a model is not run unless asked for: model.trust_remote_code=true (--trust-remote-code in "
    "dynarank.commands.predict); read it first, and pin it by model.revision=COMMIT"
)


def _load(auto_class: Any, what: str, config: ModelConfig, source: Source, **options: Any) -> Any:
    trust = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        return auto_class.from_pretrained(source.path, **trust, **options)
    except (
        Exception
    ) as error:  # a damaged or hostile folder raises any kind: safetensors', pickle's, TypeError
        if "custom code" in str(error) and not config.trust_remote_code:
            raise UserError(
                f"model.path = {config.path}: its {what} needs code of its own. {ASKED}"
            ) from None
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"model.path = {config.path}: no {what} can be loaded from {source.path}: {first_line}"
        ) from error
