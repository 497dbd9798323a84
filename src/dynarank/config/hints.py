"""What the user may have meant by an override that cannot be right."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dynarank.config.command_line import quote
from dynarank.errors import UserError, nearest

SAME_IN_OTHER_WORDS = {
    "lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "warmup_ratio": "optimizer.warmup",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "r": "budget.target",
    "rank": "budget.target",
    "lora_r": "budget.target",
    "init_r": "budget.init",
    "target_r": "budget.target",
    "alpha": "method.alpha",
    "lora_alpha": "method.alpha",
    "dropout": "method.dropout",
    "lora_dropout": "method.dropout",
    "target_modules": "model.targets",
    "eta": "dem.eta",
    "epochs": "trainer.epochs",
    "num_epochs": "trainer.epochs",
    "num_train_epochs": "trainer.epochs",
    "max_steps": "trainer.max_steps",
    "batch_size": "trainer.batch_size",
    "per_device_train_batch_size": "trainer.batch_size",
    "gradient_accumulation_steps": "trainer.accumulate",
    "max_grad_norm": "trainer.clip",
    "precision": "trainer.precision",
    "devices": "trainer.devices",
    "max_length": "task.max_length",
    "max_seq_length": "task.max_length",
    "model_name_or_path": "model.path",
    "train_file": "task.train_file",
    "validation_file": "task.validation_file",
    "test_file": "task.test_file",
    "test_split": "task.test_split",
    "metrics": "task.metrics",
}
"""Our names of what PEFT and transformers call otherwise."""
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?|true|false", re.IGNORECASE)
NUMBER_OF_GROUP = {"budget": "budget.target", "dem": "dem.eta"}
DATA_FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
TAGGED_FILES = (".conll", ".bio", ".iob", ".iob2", ".iobes")
OWN_FILES = (
    "text_classification",
    "text_pair_classification",
    "text_regression",
    "token_classification",
    "question_answering",
    "seq2seq",
    "causal_lm",
    "instruct",
    "image_classification",
)
"""The tasks for files of the user's own."""
NOT_THERE = re.compile(r"Could not override '([\w.]+)'")
"""What Hydra says of a setting that the chosen method or task lacks."""


def refuse_mistakes(overrides: Sequence[str], conf: Path) -> None:
    """Refuse, before Hydra is asked, what Hydra would answer with a stack trace or a wrong advice.

    Raises:
        UserError: a group is given a number, a model's path or a data file, or a name is PEFT's.
    """
    groups = group_choices(conf)
    for override in overrides:
        name, sign, value = override.lstrip("+").partition("=")
        # Hydra's own keys, options, and what is taken out of the configuration.
        if not sign or name.startswith(("hydra", "-", "~")):
            continue
        hint = _hint_for_group(name, value, groups) if name in groups else _hint_for_name(name)
        if hint:
            raise UserError(f"{override}: {hint.format(value=value)}")


def _hint_for_group(group: str, value: str, groups: Mapping[str, list[str]]) -> str:
    if value in groups[group]:
        return ""
    choices = f"{group} names one of {', '.join(groups[group])}"
    # In budget=4 the setting is meant, and not the group that holds it.
    if NUMBER.fullmatch(value):
        setting = NUMBER_OF_GROUP.get(group)
        return f"Type {setting}={{value}}. {choices}" if setting else f"{choices}. Type one of them"
    is_path = "/" in value or value.startswith("~") or Path(value).is_dir()
    if group == "model" and is_path:
        return "Type model.path={value}. " + choices
    if group == "task" and value.lower().endswith((*DATA_FILES, *TAGGED_FILES)):
        is_tagged = value.lower().endswith(TAGGED_FILES)
        fitting = "token_classification" if is_tagged else OWN_FILES[0]
        others = ", ".join(task for task in OWN_FILES if task != fitting)
        return (
            f"Type task={fitting} task.train_file={{value}}, or another task for own files: "
            f"{others}"
        )
    return ""


def _hint_for_name(name: str) -> str:
    setting = SAME_IN_OTHER_WORDS.get(name)
    return f"is not a setting. Type {setting}={{value}}" if setting else ""


def group_choices(conf: Path) -> dict[str, list[str]]:
    """Return the names of each group's files in a folder of configurations."""
    choices = {}
    for folder in conf.iterdir():
        if folder.is_dir():
            choices[folder.name] = sorted(file.stem for file in folder.glob("*.yaml"))
    return choices


def hints(overrides: Sequence[str], conf: Path) -> Iterator[str]:
    """Yield, for each override whose name or group value is unknown, the nearest known ones."""
    from dynarank.config.describe import setting_names

    groups = group_choices(conf)
    settings = setting_names()
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        if name.startswith(("hydra", "-")) or not value:
            continue
        if name in groups:
            # A sweep names several.
            for choice in value.split(","):
                if choice not in groups[name]:
                    yield f"{name}={choice}: {nearest(choice, groups[name])}"
        elif name not in settings:
            yield f"{name}: {nearest(name, [*settings, *groups])}"


def variant_hint(message: str) -> str | None:
    """Return who has the setting that Hydra could not override; None where nobody has it.

    Args:
        message: Hydra's.
    """
    from dynarank.config.describe import variants_with

    found = NOT_THERE.search(message)
    owners = variants_with(found[1]) if found else []
    if found is None or not owners:
        return None
    kind = "methods" if found[1].startswith("method.") else "families of tasks"
    return (
        f"{found[1]}: is a setting of other {kind} alone: {', '.join(owners)}. Leave it out, or "
        "choose one of them"
    )


def quoting_hint(override: str, reason: str) -> str:
    """Return the message for an override that Hydra's grammar cannot read."""
    name, sign, value = override.partition("=")
    if not sign:
        return f"{override}: is no NAME=VALUE. For a name with blanks or signs, quote it"
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    bare = value[1:-1] if is_quoted else value
    return (
        f"{override}: this value has signs of Hydra's own grammar. Quote it for Hydra, and all of "
        f"it for the shell:\n  {_shell_quote(f'{name}={quote(bare)}')}\n  {reason}"
    )


def _shell_quote(word: str) -> str:
    """Return a word quoted for a shell, by double quotes where these keep it as it is."""
    # The quotation marks for Hydra are single ones, which shlex would escape beyond reading.
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'
