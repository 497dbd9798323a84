"""Every file under conf/ composes, and mistakes in a configuration are named before anything is
loaded."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from tiny import CONF, compose

from dynarank.commands.user_errors import user_errors
from dynarank.config.describe import describe_settings, setting_names
from dynarank.config.named_places import check_named_places
from dynarank.config.schema import TrainConfig, to_config
from dynarank.errors import UserError

FILES = sorted(file.relative_to(CONF) for file in CONF.glob("*/*.yaml"))
OUT = "output_dir=/tmp/unused"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes_to_a_valid_configuration(file: Path) -> None:
    config = to_config(compose([f"{file.parent}={file.stem}", OUT]))
    assert isinstance(config, TrainConfig)


def test_a_file_does_not_repeat_what_the_schema_says() -> None:
    """A setting's meaning is written in the schema alone; a file may say why it has its value."""
    meanings = {setting.meaning.rstrip(".").lower() for setting in describe_settings()}
    groups = ("budget", "dem", "trainer", "logger")
    files = [file for group in groups for file in (CONF / group).glob("*.yaml")]
    for file in [CONF / "train.yaml", *files]:
        for line in file.read_text().splitlines():
            comment = line.partition("#")[2].strip().rstrip(".").lower()
            assert not comment or comment not in meanings, f"{file}: {line}"


def test_experiments_open_with_their_command() -> None:
    for file in (CONF / "experiment").glob("*.yaml"):
        assert f"# python train.py experiment={file.stem}" in file.read_text().splitlines()[:3]


def test_the_defaults_are_the_papers() -> None:
    config = to_config(compose([OUT]))
    assert (config.model.path, config.model.name) == ("FacebookAI/roberta-base", "roberta-base")
    assert (config.task.name, config.method.name, config.dem.eta) == ("cola", "dora", 0.1)
    assert (config.budget.target, config.budget.initial) == (2, 3)
    assert (config.budget.warmup, config.budget.final, config.budget.interval) == (0.15, 0.5, 100)
    assert (config.lr, config.epochs, config.batch_size) == (1.48e-4, 15, 16)
    paper = {"name": "dora", "alpha": 8.0, "dropout": 0.1, "beta": 0.9}
    assert dataclasses.asdict(config.method) == {
        **paper,
        "lr_scale": 1.0,
        "score": "relative",
        "init": "paper",
        "c_lr_ratio": 1.0,
        "alpha_over": "init",
        "b_lr_ratio": 1.0,
        "rank_pattern_from": None,
        "score_seed": 0,
        "train_c": True,
    }
    assert (config.budget.schedule, config.budget.unit, config.budget.min_rank) == (
        "cubic",
        "components",
        0,
    )
    assert (config.optimizer.weight_decay, config.optimizer.warmup, config.trainer.clip) == (
        0.01,
        0.06,
        1.0,
    )


@pytest.mark.parametrize(
    ("typed", "rate"),
    [
        (["method=dynarank"], 5 * 1.48e-4),  # on RoBERTa-base
        (["method=dynarank", "model=minilm"], 1e-2),
        (["method=dynarank_orthogonal", "model=minilm"], 5e-3),
        (["method=lora", "model=minilm"], 2e-3),
        (["method=dynarank", "experiment=quickstart"], 7.5e-3),
        (["method=dynarank", "optimizer.lr=1e-3"], 1e-3),
        (["method=dynarank", "method.lr_scale=1"], 1.48e-4),
    ],
)
def test_a_method_has_its_own_multiple_of_the_tasks_rate(typed: list[str], rate: float) -> None:
    assert to_config(compose([*typed, OUT])).lr == pytest.approx(rate, rel=2e-3)


@pytest.mark.parametrize(("budget", "initial"), [("r2", 3), ("r4", 6), ("r8", 12), ("r16", 24)])
def test_a_budget_starts_at_one_and_a_half_times_its_target(budget: str, initial: int) -> None:
    config = to_config(compose([OUT, f"budget={budget}"]))
    assert config.budget.initial == initial == -(-3 * config.budget.target // 2)


BAD_VALUES = [
    ("budget.init=1", ["budget.init = 1", "budget.target = 2"]),
    ("budget.target=0", ["budget.target = 0"]),
    ("budget.warmup=0.6", ["budget.warmup + budget.final = 0.6 + 0.5", "below 1"]),
    ("budget.final=1", ["budget.final = 1"]),
    ("budget.interval=0", ["budget.interval = 0"]),
    ("dem.eta=-1", ["dem.eta = -1"]),
    ("dem.eta=nan", ["dem.eta = nan"]),
    ("trainer.clip=nan", ["trainer.clip = nan", "finite"]),
    ("optimizer.weight_decay=nan", ["optimizer.weight_decay = nan", "finite"]),
    ("optimizer.lr=inf", ["optimizer.lr = inf", "finite"]),
    ("method.alpha=inf", ["method.alpha = inf", "finite"]),
    ("method.c_lr_ratio=inf", ["method.c_lr_ratio = inf", "finite"]),
    ("model.lr_scale=inf", ["model.lr_scale = inf", "finite"]),
    ("task.lr=nan", ["task.lr = nan", "finite"]),
    ("checkpoint.every_minutes=inf", ["checkpoint.every_minutes = inf", "finite"]),
    ("method.alpha=0", ["method.alpha = 0"]),
    ("method.score=norm", ["method.score = 'norm'", "absolute"]),
    ("method.init=zero", ["method.init = 'zero'", "lora"]),
    ("method.c_lr_ratio=0", ["method.c_lr_ratio = 0"]),
    ("budget.schedule=cosine", ["budget.schedule = 'cosine'", "cubic_adalora"]),
    ("budget.unit=bytes", ["budget.unit = 'bytes'", "parameters"]),
    ("budget.min_rank=3", ["budget.min_rank = 3", "budget.target = 2"]),
    ("method.beta=1", ["method.beta = 1"]),
    ("optimizer.lr=0", ["optimizer.lr = 0"]),
    ("optimizer.lr=nan", ["optimizer.lr = nan"]),
    ("optimizer.warmup=2", ["optimizer.warmup = 2"]),
    ("trainer.epochs=0", ["trainer.epochs = 0"]),
    ("trainer.accumulate=0", ["trainer.accumulate = 0"]),
    ("trainer.precision=fp8", ["trainer.precision = 'fp8'", "bf16-mixed"]),
    ("trainer.max_time=3h", ["trainer.max_time = '3h'", "DD:HH:MM:SS"]),
    ("trainer.accelerator=tpuu", ["trainer.accelerator = 'tpuu'"]),
    ("logger.mode=of", ["logger.mode = 'of'", "offline"]),
    ("seed=-1", ["seed = -1"]),
    ("task.metrics=[pearson]", ["task.metrics", "pearson", "matthews"]),
    ("task.select=f1", ["task.select = 'f1'", "of those in task.metrics = ['matthews']: matt"]),
    ("task.target=label", ["task.target = 'label'", "class"]),
    ("task.batch_size=0", ["task.batch_size = 0"]),
    ("task.validation_splits=[x,x]", ["task.validation_splits = ['x', 'x']", "twice"]),
    ("model.targets=[]", ["model.targets = []"]),
]


@pytest.mark.parametrize(
    ("override", "said"), BAD_VALUES, ids=[override for override, _ in BAD_VALUES]
)
def test_a_value_out_of_range_is_named(override: str, said: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        to_config(compose([OUT, override]))
    for part in said:
        assert part in str(caught.value)


MISTYPED = [
    "budget.target=two",
    "optimizer.lr=fast",
    "budget.regrow=perhaps",
    "trainer.epochs=1.5",
    "seed=abc",
]
UNKNOWN = ["dem.etaa=0.1", "lrr=1", "task=colaa", "trainer.epoch=3", "method=dorra"]


def test_no_text_must_be_longer_than_it_may_be() -> None:
    """transformers only warns, and cuts every text at its most tokens without an end."""
    settings = ["task=xsum", "task.max_target=32", "task.generate.min_length=32", OUT]
    with pytest.raises(UserError, match=r"min_length = 32: must be below task\.max_target"):
        to_config(compose(settings))
    to_config(compose([*settings, "task.generate.max_length=33"]))


@pytest.mark.parametrize("override", [*MISTYPED, *UNKNOWN])
def test_a_wrong_type_or_name_fails_when_composed(override: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)):
        compose([OUT, override])


@pytest.mark.parametrize(
    ("override", "guess"),
    [
        ("dem.etaa=0.1", "'dem.eta'"),
        ("+optimizer.lrr=1", "'lr'"),
        ("+sead=1", "'seed'"),
        ("task=colaa", "'cola'"),
        ("method=dorra", "'dora'"),
        ("budget=r3", "'r2'"),
        ("trainer.epoch=3", "'trainer.epochs'"),
    ],
)
def test_the_command_guesses_what_was_meant(
    override: str, guess: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", override])
    with pytest.raises(SystemExit) as stopped, user_errors(CONF):
        to_config(compose([OUT, override]))
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("error: ")
    assert guess in said
    assert "Traceback" not in said


def test_a_file_that_is_no_yaml_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    with pytest.raises(SystemExit), user_errors(CONF):
        yaml.safe_load("a: [")
    assert capsys.readouterr().err.startswith(
        "error: a configuration file is no YAML: while parsing"
    )


def test_a_bug_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), user_errors(CONF):
        _ = 1 / 0


def test_setting_names_are_those_of_the_composed_configuration() -> None:
    def leaves(node: Any, prefix: str = "") -> list[str]:
        if dataclasses.is_dataclass(node):
            return [
                n
                for f in dataclasses.fields(node)
                for n in leaves(getattr(node, f.name), f"{prefix}{f.name}.")
            ]
        return [prefix.rstrip(".")]

    for task in ("cola", "squad", "xsum"):
        assert set(leaves(to_config(compose([OUT, f"task={task}"])))) <= set(setting_names())
    assert len(setting_names()) == len(set(setting_names()))


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        (["method=eva", "budget=r0_25"], "EVA redistributes whole components, not budget.target="),
        (["method=eva", "budget.unit=parameters"], "EVA redistributes whole components"),
        (["method=eva", "budget.min_rank=1"], "budget.min_rank = 1: EVA has no such limit"),
        (["method=adalora", "budget.max_rank=4"], "budget.max_rank = 4: AdaLoRA has no such limit"),
    ],
)
def test_a_budget_that_the_method_cannot_keep_is_refused_before_rows_are_read(
    overrides: list[str], answer: str
) -> None:
    with pytest.raises(UserError, match=answer):
        to_config(compose([*overrides, OUT]))


def test_a_folder_of_ranks_that_is_not_there_is_told_before_rows_are_read(tmp_path: Path) -> None:
    place = tmp_path / "nowhere"
    config = to_config(compose(["method=lora", f"method.rank_pattern_from={place}", OUT]))
    with pytest.raises(UserError, match=r"rank_pattern_from = .*nowhere: there is no such folder"):
        check_named_places(config)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (["method.train_c=true", "method.init=lora"], "method.orthogonality=0"),
        (["method.init=orthogonal"], "method.train_c=true"),
    ],
)
def test_a_start_that_does_not_go_with_the_recipe_is_told_what_does(
    given: list[str], remedy: str
) -> None:
    with pytest.raises(UserError, match=f"Set {remedy}"):
        to_config(compose(["method=dynarank", *given, OUT]))
    to_config(compose(["method=dynarank", *given, remedy, OUT]))


def test_a_rate_of_coefficients_that_are_not_trained_is_refused() -> None:
    with pytest.raises(UserError, match="c_lr_ratio = 4: c is not trained") as refused:
        to_config(compose(["method=dynarank", "method.c_lr_ratio=4", OUT]))
    assert "train_c=true" not in str(refused.value)  # which is refused with this start
    fixed = ["method=dora", "method.init=lora", "method.train_c=false", "method.c_lr_ratio=4"]
    with pytest.raises(UserError, match=r"Set method.c_lr_ratio=1, or method.train_c=true"):
        to_config(compose([*fixed, OUT]))
    trained = ["method=dynarank", "method.c_lr_ratio=4", "method.train_c=true"]
    trained += ["method.init=orthogonal", OUT]
    assert to_config(compose(trained)).method.name == "dynarank"
