"""`python -m dynarank.export`: what it writes is used by PEFT or transformers alone, and answers as the run did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from tiny import configure

from dynarank.commands.export import main
from dynarank.runs.run import run


@pytest.fixture(scope="module")
def finished(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(configure(folder, hub_root, "optimizer.lr=0.01", "budget.interval=1"))
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([[1, 5, 6, 7, 2], [1, 9, 8, 4, 2]])).logits
    return found


def adapted(hub_root: Path, adapter: Path) -> torch.Tensor:
    import peft
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(
        hub_root / "models/FacebookAI/roberta-base", num_labels=2
    )
    return logits(peft.PeftModel.from_pretrained(base, str(adapter)))


def test_the_adapter_and_the_merged_model_answer_alike(
    finished: Path, hub_root: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    main([str(finished), str(tmp_path / "adapter")])
    main([str(finished), str(tmp_path / "merged"), "--merged", "--hub-root", str(hub_root)])
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(
        logits(merged), adapted(hub_root, tmp_path / "adapter"), atol=1e-6, rtol=1e-5
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("the cat").input_ids[0] == 1


def test_a_run_over_budget_is_exported_only_when_asked(
    hub_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    calls = iter(range(1000))
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: 0.0 if next(calls) < 2 else 3601.0)
    run(configure(folder, hub_root, "trainer.max_time=00:01:00:00"))
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), str(out)])
    assert "the budget was not reached" in capsys.readouterr().err
    assert not out.exists()
    main([str(folder), str(out), "--over-budget"])
    kept = json.loads((folder / "ranks.json").read_text())
    assert (
        sum(json.loads((out / "adapter_config.json").read_text())["rank_pattern"].values())
        == sum(kept.values())
        > 24
    )


def test_a_folder_in_use_is_left_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(SystemExit, match="2"):
        main([str(finished), str(tmp_path)])
    assert f"{tmp_path}: is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_without_a_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none"), str(tmp_path / "out")])
    assert "holds no adapter" in capsys.readouterr().err


def test_methods_without_a_form_of_their_own_are_refused(
    hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(configure(tmp_path / "run", hub_root, "method=houlsby", "trainer.epochs=1"))
    for flags in ([], ["--merged", "--hub-root", str(hub_root)]):
        with pytest.raises(SystemExit, match="2"):
            main([str(tmp_path / "run"), str(tmp_path / "out"), *flags])
        assert "method=houlsby" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (
        json.loads((tmp_path / "run" / "adapter" / "dynarank.json").read_text())["method"]["name"]
        == "houlsby"
    )
