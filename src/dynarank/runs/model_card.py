"""The model card beside an adapter: what it is, what it scores, and how it is loaded.

It holds no time and no folder, so that two runs of one command write the same bytes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynarank.config.command_line import quote
from dynarank.config.schema import TrainConfig
from dynarank.run_folder import read_overrides
from dynarank.runs.results import Results

CARD = "README.md"
PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "CAUSAL_LM": "text-generation",
}
"""The hub's name of a task, by PEFT's."""
PASSING = ("hydra.", "hub.", "logger", "resume", "output_dir", "trainer.accelerator")
"""How overrides begin that say where a run works, and not what it is."""
MODEL_INDEX = re.compile(r"^model-index:.*\n(?:[ -].*\n)*", re.MULTILINE)
"""The part of a card's metadata that holds scores: its line, and the list below it."""
LICENCE = (
    "The adapter's licence is its author's to state. Using it also takes the base model's licence, "
    "and that of the data."
)


def model_card(
    results: Results,
    config: TrainConfig,
    base: str,
    auto_class: str,
    peft_task_type: str | None,
    model_options: Mapping[str, Any],
    is_peft: bool,
) -> str:
    """Return a run's card as markdown, with the hub's metadata before it.

    Args:
        base: what the base model is loaded from.
        auto_class: transformers' class that loads it.
        peft_task_type: PEFT's name of the task, if it has one.
        model_options: what that class is to be told of the task.
        is_peft: whether PEFT can load the adapter.
    """
    # A folder of this machine means nothing to a reader, and may name its user.
    hub_base = None if Path(base).is_absolute() else base
    parts = [
        _metadata(results, hub_base, peft_task_type, is_peft),
        f"# {results.task}, {results.method} on {results.model}\n",
        _what(results, config, hub_base or f"a local copy of {results.model}"),
        _scores(results),
        _loading(hub_base or "BASE_MODEL", auto_class, model_options, is_peft),
        _ranks(results),
        f"## How it was made\n\n```\n{_command(config, Path(results.output_dir))}\n```\n",
        "Versions: " + ", ".join(f"{name} {text}" for name, text in results.versions.items()) + ".",
        f"\n## Licence\n\n{LICENCE}\n",
    ]
    return "\n".join(parts)


def compressed_card(card: str, note: str) -> str:
    """Return the card of an adapter that was made smaller: its scores are no longer its own.

    The hub's metadata loses the scores, which the hub would show as this adapter's; the text keeps
    them, under a note that says whose they are.

    Args:
        card: the card of the adapter before, ours or another's.
        note: what was done to it.
    """
    header, text = "", card
    if card.startswith("---\n") and "\n---\n" in card:
        inner, text = card.removeprefix("---\n").split("\n---\n", maxsplit=1)
        # The pattern wants a line break at the end. It is chr(10), because before Python 3.12 an
        # f-string's braces may hold no backslash.
        header = f"---\n{MODEL_INDEX.sub('', inner + chr(10))}---\n"
    return f"{header}\n> {note} Scores, sizes and ranks below are those before.\n\n{text.lstrip()}"


def _metadata(results: Results, base: str | None, peft_task_type: str | None, is_peft: bool) -> str:
    """Return the header that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    pipeline = PIPELINES.get(peft_task_type or "")
    measured = []
    for name, value in results.metrics.items():
        measured.append(
            EvalResult(
                task_type=pipeline or "other",
                dataset_type=results.task,
                dataset_name=results.task,
                dataset_split="validation",
                metric_type=name,
                metric_value=round(value, 4),
            )
        )
    data = ModelCardData(
        base_model=base,
        library_name="peft" if is_peft else "dynarank",
        pipeline_tag=pipeline,
        tags=["dynarank", "lora", "rank-allocation", results.method],
        model_name=f"{results.task}-{results.method}-{results.model}",
        eval_results=measured,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _what(results: Results, config: TrainConfig, base: str) -> str:
    budget = "at its budget" if results.at_budget else "**over its budget: training ended early**"
    lines = [
        f"- base model: {base} ({results.model_parameters:,} parameters)",
        f"- data: {_data(config)}",
        f"- task: {results.task}; seed {results.seed}, {results.total_steps:,} optimizer steps",
        f"- adapter: {results.adapter_parameters:,} parameters, {budget}; task head: "
        f"{results.head_parameters:,}",
    ]
    return "\n".join(lines) + "\n"


def _data(config: TrainConfig) -> str:
    """Return where the rows came from: the hub, a package, or a file's name."""
    if config.task.path is not None:
        path = Path(config.task.path)
        # No folder of this machine: two runs of one command write the same card.
        name = path.name if path.is_absolute() else config.task.path
        subset = getattr(config.task, "subset", None)
        return f"{name} ({subset})" if subset else name
    return f"{Path(str(config.task.train_file)).name}, the author's own"


def _scores(results: Results) -> str:
    """Return the table of scores, with what a model scores that has learned nothing."""
    baseline = results.baseline_metrics
    name = results.baseline["name"] if results.baseline else "nothing learned"
    lines = [f"| metric | validation | {name} |", "| --- | --- | --- |"]
    for metric, value in results.metrics.items():
        known = f"{baseline[metric]:.4f}" if metric in baseline else ""
        lines.append(f"| {metric} | {value:.4f} | {known} |")
    for metric, value in (results.test_metrics or {}).items():
        lines.append(f"| {metric}, {results.test_rows:,} test rows | {value:.4f} | |")
    warning = f"\n**It predicts one thing: {results.collapsed}.**\n" if results.collapsed else ""
    return "## Scores\n\n" + "\n".join(lines) + "\n" + warning


def _loading(base: str, auto_class: str, options: Mapping[str, Any], is_peft: bool) -> str:
    """Return how the adapter is loaded."""
    if not is_peft:
        return (
            "## Use\n\n```\ndynarank predict ADAPTER_DIR --input rows.csv --output out.csv\n```\n"
        )
    labels = f", num_labels={options['num_labels']}" if "num_labels" in options else ""
    return f"""\
## Use

```python
from peft import PeftModel
from transformers import AutoTokenizer, {auto_class}

base = {auto_class}.from_pretrained("{base}"{labels})
model = PeftModel.from_pretrained(base, "ADAPTER_DIR").eval()
tokenizer = AutoTokenizer.from_pretrained("ADAPTER_DIR")
```

Or `dynarank predict ADAPTER_DIR --input rows.csv --output out.csv`.
"""


def _ranks(results: Results) -> str:
    """Return the rank of every matrix."""
    if not results.ranks:
        return ""
    ranks = results.ranks
    lines = [f"| {name} | {rank} |" for name, rank in ranks.items()]
    table = "\n".join(["| matrix | rank |", "| --- | --- |", *lines])
    return (
        f"## Ranks\n\n{sum(ranks.values())} components in {len(ranks)} matrices, "
        f"{min(ranks.values())} to {max(ranks.values())} in each.\n\n"
        f"<details><summary>the rank of every matrix</summary>\n\n{table}\n\n</details>\n"
    )


def _command(config: TrainConfig, folder: Path) -> str:
    """Return the command that trained the run, without what says where."""
    overrides: Sequence[str] | None = read_overrides(folder)
    if overrides is None:  # a run of the library's, which no command began
        overrides = [f"task={config.task.name}", f"method={config.method.name}"]
    # Hydra marks a key that is added by + or ++.
    kept = [text for text in overrides if not text.lstrip("+").startswith(PASSING)]
    kept = [_without_folder(text) for text in kept]
    return shlex.join(["dynarank", "train", *kept])


def _without_folder(override: str) -> str:
    """Return an override with the last name alone of a path on this machine."""
    name, sign, value = override.partition("=")
    path = Path(value.strip("'\""))
    if not sign or not path.is_absolute():
        return override
    return f"{name}={quote(path.name)}"
