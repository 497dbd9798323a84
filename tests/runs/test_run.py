"""Whole runs on a tiny model: what they leave, at which budget, selected how."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny import configure, newest_checkpoint

from dynarank.errors import UserError
from dynarank.runs.results import Results
from dynarank.runs.run import run


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> None:
    """Let rank maps be drawn to the end here."""


@pytest.fixture(scope="module")
def finished(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """CoLA, five epochs of 3 steps: T = 15, freeze after step 8, inside the third epoch."""
    folder = tmp_path_factory.mktemp("run")
    return run(
        configure(folder, hub_root, "trainer.epochs=5", "budget.interval=1", "optimizer.lr=0.01")
    )


def read(results: Results, name: str) -> Any:
    return json.loads((Path(results.output_dir) / name).read_text())


def test_it_ends_exactly_at_budget(finished: Results) -> None:
    ranks = read(finished, "ranks.json")
    assert sum(ranks.values()) == 2 * 12 == finished.components_kept == finished.components_target
    assert finished.at_budget
    assert len(set(ranks.values())) > 1


def test_ranks_are_in_model_order(finished: Results) -> None:
    ranks = list(read(finished, "ranks.json"))
    assert ranks[0] == "roberta.encoder.layer.0.attention.self.query"
    assert ranks[-1] == "roberta.encoder.layer.1.output.dense"


def test_the_folder_is_complete(finished: Results) -> None:
    folder = Path(finished.output_dir)
    wanted = [
        "metrics.json",
        "metrics.csv",
        "ranks.json",
        "rank_history.json",
        "rank_map.png",
        "checkpoints/step-00000015.ckpt",
        "checkpoints/step-00000015.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/tokenizer.json",
    ]
    assert [name for name in wanted if not (folder / name).is_file()] == []


def test_metrics_json_says_what_the_run_was(finished: Results) -> None:
    record = read(finished, "metrics.json")
    assert record["metrics"]["matthews"] == finished.score
    assert (record["task"], record["method"], record["seed"], record["total_steps"]) == (
        "cola",
        "dora",
        1,
        15,
    )
    ranks = read(finished, "ranks.json")
    sizes = {
        name: 48
        if "intermediate" in name or name.endswith(("r.0.output.dense", "r.1.output.dense"))
        else 32
        for name in ranks
    }
    assert record["adapter_parameters"] == sum(rank * sizes[name] for name, rank in ranks.items())
    assert record["head_parameters"] == 16 * 16 + 16 + 16 * 2 + 2
    assert record["versions"]["torch"] == torch.__version__


def test_only_epochs_at_budget_are_selected(finished: Results) -> None:
    history = pd.read_csv(Path(finished.output_dir) / "metrics.csv")
    validated = history[history["val/matthews"].notna()]
    assert len(validated) == 5
    assert validated["selection"].isna().tolist() == [True, True, False, False, False]
    assert validated["epoch"].tolist() == [1, 2, 3, 4, 5]  # as metrics.json counts them
    chosen = validated[validated["step"] == finished.selected["step"]]
    assert chosen["epoch"].tolist() == [finished.selected["epoch"]]
    assert finished.selected["step"] >= 8
    assert finished.score == pytest.approx(validated["selection"].max())


def test_budget_and_penalty_are_logged_over_time(finished: Results) -> None:
    history = pd.read_csv(Path(finished.output_dir) / "metrics.csv")
    steps = history[history["budget/scheduled"].notna()]
    assert steps["budget/scheduled"].tolist()[:2] == [3.0, 3.0]
    assert (steps["budget/scheduled"].diff().dropna() <= 0).all()
    assert (steps["budget/nonzero"].tolist()[8:]) == [24.0] * 7
    penalty = history["train/dem"].dropna()
    assert (penalty[:8] > 0).all()
    assert (penalty[8:] == 0).all()
    assert len(penalty) == 15
    assert history["train/lr"].notna().sum() == history["train/loss"].notna().sum() == 15
    assert history["score/q50"].notna().any()


def test_every_pruning_is_exact(finished: Results) -> None:
    from dynarank.allocation.schedule import BudgetSchedule

    schedule = BudgetSchedule(3, 2, 15, interval=1)
    history = read(finished, "rank_history.json")
    assert [entry["step"] for entry in history] == list(range(2, 9))
    for entry in history:
        assert sum(entry["ranks"].values()) == schedule.keep(entry["step"], 12)


def test_peft_alone_loads_the_adapter_to_the_scores_reported(
    finished: Results, hub_root: Path
) -> None:
    import peft
    from datasets import load_dataset
    from torchmetrics.functional import matthews_corrcoef
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(
        hub_root / "models/FacebookAI/roberta-base", num_labels=2
    )
    adapter = Path(finished.output_dir) / "adapter"
    model = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    rows = load_dataset(str(hub_root / "datasets/nyu-mll/glue"), "cola")["validation"]
    with torch.no_grad():
        logits = model(
            **tokenizer(list(rows["sentence"]), padding=True, return_tensors="pt")
        ).logits
    score = matthews_corrcoef(
        logits.argmax(-1), torch.tensor(list(rows["label"])), "multiclass", num_classes=2
    )
    assert float(score) == pytest.approx(finished.score, abs=1e-6)


def test_checkpoints_hold_the_trained_part_only(finished: Results) -> None:
    checkpoint = newest_checkpoint(Path(finished.output_dir))
    assert all(
        ".lora_" in key or ".mask" in key or ".classifier." in key
        for key in checkpoint["state_dict"]
    )
    allocation = next(state for state in checkpoint["callbacks"].values() if "allocator" in state)
    assert allocation["allocator"]["frozen"]
    assert allocation["allocator"]["t"] == 15


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_optimizer_step_counts_once(accumulate: int, hub_root: Path, tmp_path: Path) -> None:
    results = run(configure(tmp_path, hub_root, f"trainer.accumulate={accumulate}"))
    checkpoint = newest_checkpoint(tmp_path)
    allocation = next(state for state in checkpoint["callbacks"].values() if "allocator" in state)
    assert (
        results.total_steps == {1: 6, 2: 4}[accumulate]
    )  # an epoch of 3 batches ends with a partial window
    assert allocation["allocator"]["t"] == results.total_steps == checkpoint["global_step"]


def test_the_same_seed_gives_the_same_run(hub_root: Path, tmp_path: Path) -> None:
    def weights(folder: Path, seed: int) -> dict[str, torch.Tensor]:
        run(configure(folder, hub_root, f"seed={seed}"))
        return dict(newest_checkpoint(folder)["state_dict"])

    first, again, other = (
        weights(tmp_path / name, seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_init_equal_to_target_never_prunes(hub_root: Path, tmp_path: Path) -> None:
    results = run(configure(tmp_path, hub_root, "budget.init=2"))
    assert set(results.ranks.values()) == {2}


def test_layers_of_rank_zero_pass_through_everything(hub_root: Path, tmp_path: Path) -> None:
    results = run(
        configure(tmp_path, hub_root, "budget.target=1", "budget.init=6", "budget.interval=1")
    )
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert min(results.ranks.values()) == 0
    assert sum(results.ranks.values()) == 12
    assert len(config["rank_pattern"]) == sum(rank > 0 for rank in results.ranks.values())


def test_max_steps_inside_an_epoch_is_scored_and_exported(hub_root: Path, tmp_path: Path) -> None:
    results = run(configure(tmp_path, hub_root, "trainer.epochs=9", "trainer.max_steps=4"))
    assert (results.total_steps, results.at_budget) == (4, True)
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
    assert set(results.metrics) == {"matthews"}


@pytest.mark.parametrize("task", ["mrpc", "stsb", "mnli"])
def test_other_shapes_of_task(task: str, hub_root: Path, tmp_path: Path) -> None:
    results = run(configure(tmp_path, hub_root, f"task={task}", "dem=off"))
    names = {
        "mrpc": {"accuracy", "f1"},
        "stsb": {"pearson", "spearman"},
        "mnli": {"matched/accuracy", "mismatched/accuracy"},
    }
    assert set(results.metrics) == names[task]
    assert results.components_kept == 24


def test_head_alone_trains_no_adapter(hub_root: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    results = run(configure(tmp_path, hub_root, "method=head"))
    assert (results.adapter_parameters, results.ranks, results.components_target) == (0, {}, None)
    assert results.at_budget
    assert set(load_file(tmp_path / "adapter/trained.safetensors")) == {
        f"classifier.{layer}.{kind}"
        for layer in ("dense", "out_proj")
        for kind in ("weight", "bias")
    }
    assert not (tmp_path / "ranks.json").exists()


def test_a_loss_that_is_not_finite_stops_with_step_and_place(
    hub_root: Path, tmp_path: Path
) -> None:
    config = configure(
        tmp_path,
        hub_root,
        "optimizer.lr=1e20",
        "optimizer.warmup=0",
        "trainer.epochs=4",
        "trainer.clip=0",
    )
    with pytest.raises(
        UserError, match=r"step \d+.*(roberta\.|classifier).*optimizer\.lr = 1e\+20"
    ):
        run(config)
    assert not (tmp_path / "metrics.json").exists()


def test_wandb_offline_needs_no_account_and_gets_the_rank_map(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    run(configure(tmp_path, hub_root, "logger=wandb", "trainer.epochs=1"))
    offline = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(offline) == 1
    assert list(offline[0].glob("files/media/images/rank_map*.png"))
    assert (tmp_path / "metrics.csv").is_file()
    (tmp_path / "metrics.json").unlink()  # as if it had been killed at the end
    time.sleep(1)  # W&B names its folders by the second
    run(configure(tmp_path, hub_root, "logger=wandb", "trainer.epochs=1", "resume.path=auto"))
    ids = [folder.name.rpartition("-")[2] for folder in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(ids) == 2
    assert len(set(ids)) == 1


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (
            "cat " * 90,
            [],
            r"task\.max_length: a text has 92 tokens, and the model 63 positions\. Set task\.max_length=63",  # noqa: E501
        ),
        (
            "cat " * 50,
            ["method=prompt", "method.reserved=20"],
            r"prompt vectors take 43\. Set .*=20, or method\.reserved=52",
        ),
    ],
)
def test_texts_too_long_for_the_model_are_refused_before_training(
    text: str, overrides: list[str], said: str, hub_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "".join(f"{text},{'ab'[i % 2]}\n" for i in range(8))
    )
    given = ["task=text_classification", f"task.train_file={tmp_path / 'rows.csv'}"]
    with pytest.raises(UserError, match=said):
        run(configure(tmp_path / "run", hub_root, *given, *overrides))


def test_a_folder_used_again_holds_the_last_runs_adapter_alone(
    hub_root: Path, tmp_path: Path
) -> None:
    for method in ("full", "dora", "head"):
        again = ["resume.path=never", "trainer.epochs=1"]
        run(configure(tmp_path, hub_root, f"method={method}", *again))
    found = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "trained.safetensors" in found
    assert not {"config.json", "adapter_config.json"} & found
