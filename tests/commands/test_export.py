"""export: what it writes is used by PEFT or transformers alone, and answers as the run did."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from huggingface_hub import HfApi
from lightning.pytorch.callbacks import Timer
from safetensors.torch import load_file, save_file
from tiny import configure

from dynarank.commands.export import main, stored_note
from dynarank.commands.merged import rounded_away
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


@pytest.mark.parametrize("form", ["peft", "gguf", "padded"])
def test_a_form_answers_as_the_run_did_and_its_readers_are_named(
    form: str, finished: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(finished), str(tmp_path / form), "--format", form])
    said = capsys.readouterr().out
    assert f"in the form '{form}', which is read rightly by: PEFT" in said or form == "gguf"
    assert ("llama.cpp's convert_lora_to_gguf.py" in said) == (form == "gguf")
    assert ("of its" in said and "components are zeros" in said) == (form == "padded")
    torch.testing.assert_close(
        adapted(hub_root, tmp_path / form), adapted(hub_root, finished / "adapter")
    )


def test_any_peft_adapter_is_written_in_another_form(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(finished / "adapter", foreign)
    (foreign / "dynarank.json").unlink()
    main([str(foreign), str(tmp_path / "padded"), "--format", "padded"])
    main([str(tmp_path / "padded"), str(tmp_path / "peft"), "--format", "peft"])
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        again, first = (json_or_bytes(folder / name) for folder in (tmp_path / "peft", foreign))
        assert again == first
    with pytest.raises(SystemExit, match="2"):
        main([str(foreign), str(tmp_path / "merged"), "--merged"])  # its base is not known
    assert "Give --format, one of peft, gguf, padded, mlx" in capsys.readouterr().err


def json_or_bytes(path: Path) -> object:
    """Return a file's content; of JSON, whatever the order of its keys."""
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


def test_the_ranks_are_printed_for_others(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(finished), "--rank-pattern"])
    said = capsys.readouterr().out
    ranks = json.loads((finished / "ranks.json").read_text())
    pattern = json.loads(said.split("lora_rank_pattern: ")[1].splitlines()[0])
    kept = {"^" + re.escape(name): rank for name, rank in ranks.items() if rank}
    assert pattern == kept
    wrong_ones = [["out", "--rank-pattern"], [], ["out", "--merged", "--format", "gguf"]]
    wrong_ones += [["out", "--dry-run"], ["out", "--push-to-hub", "me/x"]]
    for wrong in wrong_ones:
        with pytest.raises(SystemExit, match="2"):
            main([str(finished), *wrong])


def test_an_adapter_that_learned_nothing_has_no_ranks_to_print(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "untrained"
    shutil.copytree(finished / "adapter", adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    zeroed = {key: value * ("lora_B" not in key) for key, value in tensors.items()}
    save_file(zeroed, adapter / "adapter_model.safetensors")
    with pytest.raises(SystemExit, match="2"):
        main([str(adapter), "--rank-pattern"])
    assert "every component is zero" in capsys.readouterr().err


def test_what_is_no_lora_is_not_said_to_be_read_by_others(tmp_path: Path) -> None:
    peft.PromptTuningConfig(num_virtual_tokens=4).save_pretrained(str(tmp_path))
    assert stored_note(tmp_path) == (
        "an adapter of PEFT's type PROMPT_TUNING, which is read by PEFT alone"
    )


def test_a_dry_run_names_what_would_be_sent_and_sends_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    main([str(finished), "--push-to-hub", "me/my-adapter", "--format", "padded", "--dry-run"])
    said = capsys.readouterr().out
    assert "to me/my-adapter (public" in said
    for name in ("README.md", "adapter_config.json", "adapter_model.safetensors"):
        assert f"  {name}  " in said


def test_a_push_sends_the_folder_in_one_commit_and_a_refusal_is_one_error(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, object] = {}

    def create(self: HfApi, name: str, **options: object) -> None:
        sent.update(name=name, **options)

    def upload(self: HfApi, **options: object) -> SimpleNamespace:
        folder = Path(str(options["folder_path"]))
        sent["files"] = sorted(path.name for path in folder.iterdir())
        return SimpleNamespace(repo_url="https://hub/me/x")

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    main([str(finished), "--push-to-hub", "me/x", "--private"])
    assert "sent: https://hub/me/x" in capsys.readouterr().out
    assert sent["files"] == sorted(path.name for path in (finished / "adapter").iterdir())
    assert (sent["name"], sent["private"], sent["exist_ok"]) == ("me/x", True, True)
    monkeypatch.undo()
    wrong = {"no name": "must be OWNER/NAME", "x": "it names no owner", "me/a--b": "OWNER/NAME"}
    for name, reason in ({"me/x": "HF_TOKEN"} | wrong).items():
        with pytest.raises(SystemExit, match="2"):
            main([str(finished), "--push-to-hub", name])  # the tests are offline
        assert reason in capsys.readouterr().err

    def unreachable(self: HfApi, name: str, **options: object) -> None:
        raise RuntimeError("no route")  # each client's errors are of its own kind

    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    with pytest.raises(SystemExit, match="2"):
        main([str(finished), "--push-to-hub", "me/x"])
    assert "error: --push-to-hub me/x: RuntimeError: no route." in capsys.readouterr().err


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


def test_a_folder_that_cannot_be_written_is_one_message(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(finished), "/proc/out"])
    assert "/proc/out cannot be written (" in capsys.readouterr().err


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


@pytest.fixture(scope="module")
def narrow(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base is bfloat16."""
    folder = tmp_path_factory.mktemp("narrow")
    short = ["optimizer.lr=0.01", "budget.interval=1", "trainer.epochs=1"]
    run(configure(folder, hub_root, "model.dtype=bfloat16", *short))
    return folder


def test_a_run_on_a_narrow_base_is_merged_in_float32(
    narrow: Path, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each merged weight is the rounded base and the whole update, by PEFT's own account."""
    from transformers import AutoModelForSequenceClassification

    main([str(narrow), str(tmp_path / "merged"), "--merged", "--hub-root", str(hub_root)])
    assert "merged in float32, so that nothing of the update is lost" in capsys.readouterr().out
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    base = AutoModelForSequenceClassification.from_pretrained(
        hub_root / "models/FacebookAI/roberta-base", num_labels=2, dtype=torch.bfloat16
    ).float()
    adapted = peft.PeftModel.from_pretrained(base, str(narrow / "adapter"))
    wanted = adapted.merge_and_unload().state_dict()
    found = merged.state_dict()
    assert all(weight.dtype == torch.float32 for weight in found.values())
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name], atol=0, rtol=0)


@pytest.mark.parametrize("folder", ["narrow", "finished"])
def test_what_rounding_a_merged_model_loses_is_said(
    folder: str,
    hub_root: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModelForSequenceClassification

    run_folder: Path = request.getfixturevalue(folder)
    options = ["--merged", "--dtype", "bfloat16", "--hub-root", str(hub_root)]
    main([str(run_folder), str(tmp_path / "merged"), *options])
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "rounded to" in line]
    share = float(note.removeprefix("rounded to bfloat16, ").partition("%")[0])
    assert 0 < share < 100
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16


def test_how_much_rounding_loses_is_the_norm_of_what_is_gone() -> None:
    """One matrix of eights, an update that bfloat16 cannot see there, and one that it can."""

    class Layer(torch.nn.Linear):
        active_adapters = ("default",)

        def get_base_layer(self) -> torch.nn.Linear:
            return self

        def get_delta_weight(self, name: str) -> torch.Tensor:
            return update

    layer = Layer(2, 1, bias=False)
    layer.weight.data.fill_(8.0)
    update = torch.tensor([[0.001, 0.0]])  # bfloat16 steps by 1/16 from 8 to 16
    assert rounded_away(layer, torch.bfloat16) == pytest.approx(1.0)
    update = torch.tensor([[0.0625, 0.0]])
    assert rounded_away(layer, torch.bfloat16) == 0.0
    update = torch.tensor([[0.0625, 0.001]])
    assert rounded_away(layer, torch.bfloat16) == pytest.approx(0.001 / 0.0625, rel=1e-3)
    update = torch.zeros(1, 2)
    assert rounded_away(layer, torch.bfloat16) == 0.0


@pytest.mark.parametrize("method", ["prompt method.reserved=20", "head"])
def test_what_is_no_update_of_weights_is_not_merged(
    method: str,
    hub_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = [f"method={method.split()[0]}", *method.split()[1:], "trainer.epochs=1"]
    run(configure(tmp_path / "run", hub_root, *settings))
    monkeypatch.setattr(
        "dynarank.pretrained.models.load_pretrained", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(SystemExit, match="2"):
        main(
            [str(tmp_path / "run"), str(tmp_path / "out"), "--merged", "--hub-root", str(hub_root)]
        )
    assert "is not an update of the model's weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
