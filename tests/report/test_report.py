"""The report on folders written as runs leave them, with scores that are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import configure

from dynarank.report.__main__ import main, report
from dynarank.report.plots import rank_agreement, undominated
from dynarank.report.runs import read_runs, varied
from dynarank.report.tables import build_table, differences, find_setting, latex, markdown


def write_run(folder: Path, task: str, method: str, seed: int, score: float, **more: Any) -> Path:
    """What the report reads of a run."""
    (folder / ".hydra").mkdir(parents=True)
    alpha = f"  alpha: {more.get('alpha', 8)}\n" if method == "dora" else ""
    lines = f"seed: {seed}\nmethod:\n  name: {method}\n{alpha}model:\n  name: tiny\n"
    lines += f"task:\n  name: {task}\n  labels: [a, b]\noutput_dir: {folder}\n"
    (folder / ".hydra" / "config.yaml").write_text(lines)
    results = {"task": task, "method": method, "model": "tiny", "seed": seed, "metrics": {"accuracy": score},
               "last": {"accuracy": score - 0.1}, "selected": {"metric": "accuracy"}, "adapter_parameters": 100,
               "at_budget": more.get("at_budget", True)}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(results))
    (folder / "metrics.csv").write_text(f"step,val/accuracy\n1,0.4\n2,{score}\n")
    (folder / "ranks.json").write_text(json.dumps(more.get("ranks", {"layer.0.a": 1, "layer.0.b": 2, "layer.0.c": 3})))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """dora above lora by 0.1 on cola on every seed, and by nothing that is told on rte."""
    noise = [0.00, 0.02, -0.01, 0.01]
    for seed, shift in enumerate(noise):
        for method, base in (("lora", 0.5), ("dora", 0.6)):
            wobble = 0.001 * seed if method == "dora" else 0
            write_run(tmp_path / f"cola-{method}-{seed}", "cola", method, seed, base + shift + wobble)
        write_run(tmp_path / f"rte-lora-{seed}", "rte", "lora", seed, 0.5 + shift)
        write_run(tmp_path / f"rte-dora-{seed}", "rte", "dora", seed, 0.5 - shift)
    return tmp_path


def test_a_table_has_mean_spread_and_seeds(sweep: Path) -> None:
    table = build_table(read_runs([sweep])[0])
    assert (table.keys, table.tasks) == (["method.name"], ["cola", "rte"])
    summary = table.summary(("lora",), "cola")
    assert summary is not None
    assert (summary.mean, summary.n) == (pytest.approx(0.505), 4)
    assert "| lora | 0.5050 ± 0.0129 (n=4) | 0.5050 ± 0.0129 (n=4) |" in markdown(table)
    assert r"\textbf{0.6065}" in latex(table)


def test_only_what_is_more_than_chance_is_called_higher(sweep: Path) -> None:
    table = build_table(read_runs([sweep])[0])
    found = {one.task: one for one in differences(table, find_setting(table, "method=lora"))}
    assert found["cola"].found.difference == pytest.approx(0.1015)
    assert (found["cola"].verdict, found["rte"].verdict) == ("higher", "not told apart")
    assert found["cola"].found.p_permutation == pytest.approx(2 / 2**4)
    back = {one.task: one.verdict for one in differences(table, find_setting(table, "method=dora"))}
    assert back["cola"] == "lower"


def test_the_last_epoch_can_be_scored_instead(sweep: Path) -> None:
    summary = build_table(read_runs([sweep])[0], last=True).summary(("lora",), "cola")
    assert summary is not None
    assert summary.mean == pytest.approx(0.405)


def test_settings_that_follow_from_others_do_not_name_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "cola", "dora", 0, 0.5)
    write_run(tmp_path / "b", "cola", "head", 0, 0.5)
    assert varied(read_runs([tmp_path])[0]) == ["method.name"]
    write_run(tmp_path / "c", "cola", "dora", 0, 0.5, alpha=1)
    assert varied(read_runs([tmp_path])[0]) == ["method.name", "method.alpha"]


def test_what_is_not_finished_or_over_budget_is_listed_and_left_out(sweep: Path) -> None:
    write_run(sweep / "over", "cola", "dora", 9, 0.99, at_budget=False)
    (sweep / "dead" / ".hydra").mkdir(parents=True)
    (sweep / "dead" / ".hydra" / "config.yaml").write_text("seed: 3\n")
    runs, unfinished = read_runs([sweep])
    assert len(runs) == 16
    assert [line.split(": ")[0].rpartition("/")[2] for line in unfinished] == ["dead", "over"]


def test_files_and_pictures_are_written(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(sweep), "--against", "method=lora"])
    folder = sweep / "report"
    wanted = {"report.md", "table.csv", "table.tex", "curves_cola.png", "curves_cola.svg", "budget_quality_rte.png"}
    assert wanted <= {path.name for path in folder.iterdir()}
    with (folder / "table.csv").open(newline="") as file:
        rows = {(row["method.name"], row["task"]): row for row in csv.DictReader(file)}
    assert [float(score) for score in rows["lora", "rte"]["scores"].split()] == pytest.approx([0.5, 0.52, 0.49, 0.51])
    assert "| method=dora | cola | +0.1015 |" in capsys.readouterr().out
    main([str(sweep)])  # its own folder is not taken for a run
    assert len(read_runs([sweep])[0]) == 16


MISTAKES = [
    (["nowhere"], "nowhere: there is no such folder"),
    (["SWEEP", "--against", "budget=r2"], "--against budget=r2: budget does not vary here"),
    (["SWEEP", "--against", "method=lorra"], "--against method=lorra: there is dora, lora"),
    (["EMPTY"], "no finished run in"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES)
def test_mistakes_are_named(
    arguments: list[str],
    said: str,
    sweep: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"SWEEP": str(sweep), "EMPTY": str(tmp_path_factory.mktemp("empty"))}
    with pytest.raises(SystemExit) as stopped:
        main([places.get(part, part) for part in arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_same_run_twice_and_a_damaged_one_are_refused(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(sweep / "again", "cola", "dora", 0, 0.7)
    with pytest.raises(SystemExit):
        main([str(sweep)])
    assert "are the same run" in capsys.readouterr().err
    (sweep / "again" / "metrics.json").write_text('{"task": ')
    with pytest.raises(SystemExit):
        main([str(sweep)])
    assert "again/metrics.json: is damaged" in capsys.readouterr().err


def test_none_beats_an_undominated_point() -> None:
    points = [(1.0, 0.5, "a"), (1.0, 0.6, "b"), (2.0, 0.6, "c"), (3.0, 0.7, "d"), (4.0, 0.1, "e")]
    assert [label for _, _, label in undominated(points)] == ["b", "d"]


def test_ranks_agree_as_spearman_says(tmp_path: Path) -> None:
    ranks = [{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}]
    for seed, one in enumerate(ranks):
        write_run(tmp_path / str(seed), "cola", "dora", seed, 0.5, ranks=one)
    runs = read_runs([tmp_path])[0]
    assert rank_agreement(runs) == pytest.approx((1 - 1 - 1) / 3)
    assert rank_agreement(runs[:2]) == pytest.approx(1)


def test_a_real_runs_folder_is_read(hub_root: Path, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from dynarank.training.run import run

    config = configure(tmp_path, hub_root, "budget.interval=1", "trainer.epochs=3")
    run(config)
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.structured(config), tmp_path / ".hydra" / "config.yaml")
    text, folder = report([tmp_path])
    assert "cola (matthews)" in text
    assert (folder / "allocation.png").is_file()
