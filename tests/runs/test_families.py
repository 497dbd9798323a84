"""A whole run of every task family on tiny models: its files, its scores, and that PEFT alone gives
them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny import configure, newest_checkpoint, write_dataset

from dynarank.errors import UserError
from dynarank.pretrained.hub import HubConfig
from dynarank.runs.predictor import load_predictor
from dynarank.runs.results import Results
from dynarank.runs.run import run

SHORT = ["trainer.epochs=2", "budget.interval=1", "optimizer.lr=0.01"]


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def answering(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(configure(tmp_path_factory.mktemp("qa"), hub_root, "task=squad_v2", *SHORT))


def test_a_run_that_lost_its_end_writes_the_tasks_files_again(
    hub_root: Path, tmp_path: Path
) -> None:
    """Its last weights are the selected ones, and were scored by the process that is gone."""
    settings = ("task=squad", "trainer.epochs=1", "budget.interval=1", "optimizer.lr=0.01")
    before = run(configure(tmp_path, hub_root, *settings))
    predictions = (tmp_path / "predictions.json").read_text()
    for name in ("metrics.json", "predictions.json"):
        (tmp_path / name).unlink()
    again = run(configure(tmp_path, hub_root, *settings, "resume.path=auto"))
    assert again.metrics == before.metrics
    assert (tmp_path / "predictions.json").read_text() == predictions


def test_question_answering_leaves_squads_files(answering: Results, hub_root: Path) -> None:
    from datasets import load_dataset

    folder = Path(answering.output_dir)
    ids = load_dataset(str(hub_root / "datasets/rajpurkar/squad_v2"), "squad_v2")["validation"][
        "id"
    ][:]
    predictions, nbest, odds = (
        read(folder, f"{name}.json") for name in ("predictions", "nbest_predictions", "null_odds")
    )
    assert list(predictions) == list(nbest) == list(odds) == ids
    assert {
        "exact_match",
        "f1",
        "HasAns_f1",
        "NoAns_f1",
        "best_f1",
        "best_f1_thresh",
    } <= answering.metrics.keys()
    assert answering.metrics["best_f1"] >= answering.metrics["f1"] - 1e-9
    for one in ids:
        assert sum(entry["probability"] for entry in nbest[one]) == pytest.approx(1)
        assert (predictions[one] == "") == (odds[one] > 0)


def test_question_answering_by_another_architecture(hub_root: Path, tmp_path: Path) -> None:
    results = run(configure(tmp_path, hub_root, "task=squad", "model=bart_base", *SHORT))
    assert results.components_kept == results.components_target
    assert set(results.metrics) == {"exact_match", "f1"}
    assert results.head_parameters == 16 * 2 + 2


def test_long_contexts_are_answered_once(hub_root: Path, tmp_path: Path) -> None:
    windows = ["task.max_length=16", "task.max_question=6", "task.stride=4"]
    results = run(
        configure(tmp_path, hub_root, "task=squad", *SHORT, *windows, "task.max_answer=4")
    )
    assert len(read(tmp_path, "predictions.json")) == 18
    assert 0 <= results.metrics["f1"] <= 100


@pytest.fixture(scope="module")
def summarizing(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    sample = ["task.validation_sample=5", "task.generate.max_length=8", "task.max_source=40"]
    return run(
        configure(
            tmp_path_factory.mktemp("sum"),
            hub_root,
            "task=xsum",
            "model=bart_base",
            *SHORT,
            *sample,
        )
    )


def test_summaries_are_sampled_in_training_and_whole_at_the_end(summarizing: Results) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    folder = Path(summarizing.output_dir)
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [str(index) for index in range(12)]
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    scores = [scorer.score(line["reference"], line["text"]) for line in lines]
    for name in ("rouge1", "rougeL"):
        assert summarizing.metrics[name] == pytest.approx(
            100 * sum(s[name].fmeasure for s in scores) / 12, abs=1e-4
        )


def test_the_output_layer_of_a_generator_is_not_trained(summarizing: Results) -> None:
    checkpoint = newest_checkpoint(Path(summarizing.output_dir))
    assert all(".lora_" in key or ".mask" in key for key in checkpoint["state_dict"])
    assert summarizing.head_parameters == 0


def test_translation_by_t5(hub_root: Path, tmp_path: Path) -> None:
    few = ["task.generate.max_length=8", "task.validation_sample=null"]
    results = run(configure(tmp_path, hub_root, "task=wmt16_en_ro", "model=t5_base", *SHORT, *few))
    assert set(results.metrics) == {"bleu", "chrf"}
    assert results.components_kept == results.components_target


def test_the_adapter_predicts_what_was_scored(
    answering: Results, summarizing: Results, hub_root: Path
) -> None:
    """Through PEFT's own loading, on the CPU, in other batches than in validation."""
    for results, split in ((answering, "answer"), (summarizing, "text")):
        predictor = load_predictor(Path(results.output_dir), HubConfig(str(hub_root)), device="cpu")
        predictor.task.read(HubConfig(str(hub_root)))
        records = predictor(predictor.task.validation["validation"], batch_size=5)
        if split == "answer":
            assert [r["answer"] for r in records] == list(
                read(Path(results.output_dir), "predictions.json").values()
            )
        else:
            lines = (Path(results.output_dir) / "predictions.jsonl").read_text().splitlines()
            assert [r["text"] for r in records] == [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_the_users_own_files(ending: str, hub_root: Path, tmp_path: Path) -> None:
    from dynarank.tasks.files import write_file

    rows = [
        {"words": f"the cat sat {'not ' * (i % 2)}on it", "mood": ["good", "bad"][i % 2], "key": i}
        for i in range(30)
    ]
    write_file(tmp_path / f"rows.{ending}", rows)
    write_file(tmp_path / f"new.{ending}", [*rows[:8], {**rows[1], "mood": "good", "key": 30}])
    names = ["task.columns.text=words", "task.columns.label=mood", "task.columns.id=key"]
    given = ["task=text_classification", f"task.train_file={tmp_path / f'rows.{ending}'}"]
    given.append(f"task.test_file={tmp_path / f'new.{ending}'}")
    results = run(
        configure(
            tmp_path / "run", hub_root, *given, *names, "trainer.epochs=30", "optimizer.lr=0.03"
        )
    )
    assert set(results.metrics) == {"accuracy", "f1"}
    assert results.metrics["accuracy"] == 1  # one word decides
    assert results.collapsed is None
    assert results.test_rows == 9
    assert results.test_metrics is not None  # one of its labels is wrong
    assert results.test_metrics == pytest.approx({"accuracy": 8 / 9, "f1": 8 / 9})
    assert results.test_baseline is not None
    assert results.test_baseline["metrics"]["accuracy"] == pytest.approx(5 / 9)
    recorded = read(tmp_path / "run", "metrics.json")
    assert recorded["test_metrics"] == results.test_metrics
    history = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert history["test/accuracy"].notna().sum() == 1
    assert history["epoch"].max() == 30 == recorded["epochs"]
    assert read(tmp_path / "run", "adapter/dynarank.json")["task"]["labels"] == ["bad", "good"]


MISFITS = [
    (
        ["task=xsum"],
        r"xsum fits encoder-decoder models, and roberta is an encoder\. Ones that fit: model=bart_base",  # noqa: E501
    ),
    (
        ["task=squad", "model.path=gpt"],
        r"squad fits encoder and encoder-decoder models, and gpt2 is a decoder",
    ),
]


@pytest.mark.parametrize(("overrides", "said"), MISFITS)
def test_a_model_that_does_not_fit_is_refused_before_it_loads(
    overrides: list[str], said: str, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2Config

    import dynarank.runs.prepare as module

    GPT2Config(vocab_size=32, n_positions=64, n_embd=16, n_layer=1, n_head=2).save_pretrained(
        tmp_path / "gpt"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "load_pretrained", lambda *args: pytest.fail("loaded the model"))
    with pytest.raises(UserError, match=said):
        run(configure(tmp_path / "run", hub_root, *overrides))


@pytest.mark.parametrize("setting", ["task.max_target", "task.generate.max_length"])
def test_a_text_to_generate_that_has_no_positions_is_refused(
    setting: str, hub_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError,
        match=rf"{setting}: a text has 65 tokens, and the model 64 positions\. Set {setting}=64",
    ):
        run(configure(tmp_path, hub_root, "task=xsum", "model=bart_base", f"{setting}=65"))


def test_any_hub_data_set_by_path_and_name(hub_root: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "mine", "first", {"train": {"text": ["a", "b"], "label": [0, 1]}})
    rows = {"text": ["the cat", "a dog"] * 10, "label": [0, 1] * 10}
    write_dataset(tmp_path / "mine", "second", {"train": rows, "validation": rows})
    own = ["task=text_classification", f"task.path={tmp_path / 'mine'}", "task.name=second"]
    results = run(configure(tmp_path / "run", hub_root, *own, "trainer.epochs=1"))
    assert results.task == "second"
