from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import compose

from dynarank.commands import budget
from dynarank.config.schema import to_config
from dynarank.errors import UserError
from dynarank.methods import METHODS


@pytest.fixture(scope="module")
def base_hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RoBERTa-base's configuration, without weights."""
    from transformers import RobertaConfig

    root = tmp_path_factory.mktemp("hub")
    RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1).save_pretrained(
        root / "models/FacebookAI/roberta-base"
    )
    return root


@pytest.mark.parametrize(("group", "millions"), [("r2", 0.33), ("r8", 1.33)])
def test_the_papers_budgets_without_weights(group: str, millions: float, base_hub: Path) -> None:
    config = to_config(compose(["output_dir=x", f"hub.root={base_hub}", f"budget={group}"]))
    found = {one.method: one for one in budget.costs(config)}
    for name in ("dora", "lora", "adalora"):
        assert found[name].size.parameters / 1e6 == pytest.approx(millions, abs=0.005)
        assert (found[name].size.matrices, found[name].size.components) == (
            72,
            72 * config.budget.target,
        )
    assert found["dora"].megabytes == pytest.approx(4 * found["dora"].size.parameters / 1e6)
    assert (
        found["bitfit"].size.parameters == 102_144
    )  # of BERT-base's shape, the head's and pooler's left out
    assert found["full"].percent == pytest.approx(100, abs=0.6)
    assert found["head"].size.parameters == 0


def test_the_command_prints_every_method(
    base_hub: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    budget.main([f"hub.root={base_hub}", "budget=r4"])
    said = capsys.readouterr().out
    assert all(name in said for name in METHODS)
    assert "663,552" in said
    assert "than a tuned method=lora, up to" in said


def test_below_half_a_component_a_matrix_it_names_what_was_measured_there(
    base_hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget.main([f"hub.root={base_hub}", "budget=r0_25"])
    said = capsys.readouterr().out
    assert "Below half a component a matrix method=dynarank" in said
    assert "method.placement=last_layers" in said
    assert "dynarank compress" not in said
    budget.main([f"hub.root={base_hub}", "budget=r0_5"])
    assert "at half a component a matrix and more" in capsys.readouterr().out


def test_what_does_not_fit_says_why(base_hub: Path) -> None:
    config = to_config(compose(["output_dir=x", f"hub.root={base_hub}", "task=squad"]))
    found = {one.method: one for one in budget.costs(config)}
    assert "does not fit a RobertaForQuestionAnswering" in found["prompt"].size.note


def test_a_target_that_matches_nothing_is_a_users_mistake(base_hub: Path) -> None:
    config = to_config(compose(["output_dir=x", f"hub.root={base_hub}", "model.targets=[foo]"]))
    with pytest.raises(UserError, match=r"model\.targets: target 'foo' matches no linear layer"):
        budget.costs(config)


def test_a_method_that_does_not_fit_has_no_memory(base_hub: Path) -> None:
    more = ["method=lora", "method.placement=feed_forward", "model.targets=[query]"]
    config = to_config(compose(["output_dir=x", f"hub.root={base_hub}", *more]))
    with pytest.raises(UserError, match=r"^--memory, method=lora: method\.placement = feed_forw"):
        budget.memory_lines(config)


@pytest.mark.parametrize("word", ["--memry", "-m"])
def test_an_unknown_option_is_named(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        budget.main([word, "budget=r2"])
    said = capsys.readouterr().err
    assert f"error: {word}: is no option of this command." in said
    assert "--memory" in said
