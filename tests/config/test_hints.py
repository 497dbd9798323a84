"""A mistaken override is answered with what to type, before Hydra is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tiny import CONF

from dynarank.config.command_line import expand_arguments
from dynarank.config.describe import setting_names
from dynarank.config.hints import (
    OWN_FILES,
    SAME_IN_OTHER_WORDS,
    quoting_hint,
    refuse_mistakes,
    variant_hint,
)
from dynarank.errors import UserError


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("budget=8", "Type budget.target=8"),
        ("dem=0.1", "Type dem.eta=0.1"),
        ("method=1", "method names one of adalora"),
        ("lr=1e-3", "Type optimizer.lr=1e-3"),
        ("+learning_rate=1", "Type optimizer.lr=1"),
        ("r=4", "Type budget.target=4"),
        ("rank=4", "Type budget.target=4"),
        ("alpha=8", "Type method.alpha=8"),
        ("lora_alpha=8", "Type method.alpha=8"),
        ("dropout=0", "Type method.dropout=0"),
        ("epochs=3", "Type trainer.epochs=3"),
        ("batch_size=8", "Type trainer.batch_size=8"),
        ("max_length=64", "Type task.max_length=64"),
        ("model=org/name", "Type model.path=org/name"),
        ("model=/data/m", "Type model.path=/data/m"),
        ("task=rows.csv", "Type task=text_classification task.train_file=rows.csv, "),
        ("task=rows.jsonl", ", causal_lm, instruct, image_classification"),
        ("task=dev.conll", "Type task=token_classification task.train_file=dev.conll, "),
    ],
)
def test_the_answer_says_what_to_type(override: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_mistakes(["seed=2", override], CONF)
    message = str(caught.value)
    assert message.startswith(f"{override}: ")
    assert remedy in message
    assert "\n" not in message


def test_a_setting_of_another_method_or_task_says_whose_it_is() -> None:
    """Hydra says no more than that it could not override it."""
    hint = variant_hint("Could not override 'method.rho'.")
    assert hint is not None
    assert hint.startswith("method.rho: is a setting of other methods alone: eva. Leave it out")
    hint = variant_hint("Could not override 'task.null_threshold'.")
    assert hint is not None
    assert "of other families of tasks alone: question_answering." in hint
    assert variant_hint("Could not override 'method.rhoo'.") is None
    assert variant_hint("Could not find 'task/cols'") is None


def test_the_tasks_for_own_files_are_all_there_are() -> None:
    """Those whose file in conf/ takes its rows from task.train_file."""
    files = (CONF / "task").glob("*.yaml")
    assert set(OWN_FILES) == {one.stem for one in files if "train_file: null" in one.read_text()}


def test_what_is_right_passes() -> None:
    refuse_mistakes(
        ["task=cola,mnli", "budget=r8", "optimizer.lr=1", "-m", "hydra.run.dir=x"], CONF
    )
    assert set(SAME_IN_OTHER_WORDS.values()) <= set(setting_names())


@pytest.mark.parametrize("value", ["fold=3/a.csv", "ü=.csv", "a=b c'd.csv", "{x", "~/=a"])
def test_the_quoting_that_is_answered_works(value: str) -> None:
    import shlex

    message = quoting_hint(f"task.train_file={value}", "reason")
    (word,) = shlex.split(message.splitlines()[1])
    (parsed,) = OverridesParser.create().parse_overrides([word])
    assert parsed.value() == value


def test_the_home_folder_is_put_in_place_of_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home of mine"))
    expanded = expand_arguments(["task.train_file=~/a.csv", "hydra.run.dir='~/run'"])
    parsed = [entry.value() for entry in OverridesParser.create().parse_overrides(expanded)]
    assert parsed == [f"{tmp_path}/home of mine/a.csv", f"{tmp_path}/home of mine/run"]
    assert expand_arguments(["x=a~/b", "~task", "-m"]) == ["x=a~/b", "~task", "-m"]
