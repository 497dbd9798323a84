"""Each setting's meaning is written once, and the help and the page are made from it."""

from __future__ import annotations

from pathlib import Path

from tiny import REPOSITORY

from dynarank.config.describe import as_markdown, as_text, describe_settings


def test_the_page_of_settings_is_current() -> None:
    page = Path(REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "run `make docs`"


def test_every_setting_says_what_it_means() -> None:
    assert [setting.name for setting in describe_settings() if not setting.meaning] == []


def test_types_ranges_and_defaults_are_in_words() -> None:
    settings = {(setting.name, setting.variant): setting for setting in describe_settings()}
    warmup = settings["optimizer.warmup", ""]
    assert (warmup.type, warmup.default) == ("float, at least 0 and below 1", "0.06")
    assert warmup.meaning == "The share of the optimizer steps in which the rate rises."
    assert settings["trainer.strategy", ""].type == "text, one of ddp, fsdp"
    assert settings["trainer.epochs", ""].type == "int or null, above 0"
    assert settings["trainer.compile", ""].default == "false"
    assert settings["model.path", ""].default == "???"


def test_what_all_variants_have_alike_stands_once() -> None:
    settings = describe_settings()
    assert [setting.variant for setting in settings if setting.name == "task.lr"] == [""]
    alphas = [setting for setting in settings if setting.name == "method.alpha"]
    assert {(setting.variant, setting.default) for setting in alphas} == {
        ("dora", "8.0"),
        ("dynarank", "1.0"),
        ("dynarank_orthogonal", "8.0"),
        ("lora", "16.0"),
        ("adalora", "32.0"),
        ("global_svd", "16.0"),
        ("eva", "16.0"),
        ("gora", "16.0"),
        ("sora", "16.0"),
    }


def test_the_list_names_each_setting_with_its_meaning() -> None:
    lines = as_text().splitlines()
    at = lines.index("trainer.clip: float, at least 0, default 1.0")
    assert lines[at + 1] == "    The largest norm of the gradient; 0: no clipping."
