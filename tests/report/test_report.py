"""The report on folders written as runs leave them, with scores that are known."""

from __future__ import annotations

import csv
import math
import shlex
from pathlib import Path

import pytest
from run_folders import write_overrides, write_run
from tiny import configure

from dynarank.commands.report import main
from dynarank.errors import UserError
from dynarank.report.agreement import agreement_matrix, rank_agreement
from dynarank.report.comparisons import differences
from dynarank.report.markdown import report_text, scores_table
from dynarank.report.run_settings import varied_settings
from dynarank.report.runs import read_runs
from dynarank.report.tables import build_table, find_setting
from dynarank.report.write_report import write_report


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """dora above lora by 0.1 on cola on every seed, and by nothing that is told on rte."""
    noise = [0.00, 0.02, -0.01, 0.01]
    for seed, shift in enumerate(noise):
        for method, base in (("lora", 0.5), ("dora", 0.6)):
            wobble = 0.001 * seed if method == "dora" else 0
            write_run(
                tmp_path / f"cola-{method}-{seed}", "cola", method, seed, base + shift + wobble
            )
        write_run(tmp_path / f"rte-lora-{seed}", "rte", "lora", seed, 0.5 + shift)
        write_run(tmp_path / f"rte-dora-{seed}", "rte", "dora", seed, 0.5 - shift)
    return tmp_path


def test_a_table_has_mean_spread_and_seeds(sweep: Path) -> None:
    table = build_table(read_runs([sweep])[0])
    assert (table.keys, table.tasks) == (["method.name"], ["cola", "rte"])
    summary = table.summary(("lora",), "cola")
    assert summary is not None
    assert (summary.mean, summary.n) == (pytest.approx(0.505), 4)
    assert "| lora | 0.5050 ± 0.0129 (n=4) | 0.5050 ± 0.0129 (n=4) | 100 |" in scores_table(table)


def test_only_what_is_more_than_chance_is_called_higher(sweep: Path) -> None:
    table = build_table(read_runs([sweep])[0])
    found = {one.task: one for one in differences(table, find_setting(table, "method=lora"))}
    assert found["cola"].comparison.difference == pytest.approx(0.1015)
    assert (found["cola"].verdict, found["rte"].verdict) == (
        "significantly higher",
        "no significant difference",
    )
    assert found["cola"].comparison.p_flips == pytest.approx(2 / 2**4)
    back = {one.task: one.verdict for one in differences(table, find_setting(table, "method=dora"))}
    assert back["cola"] == "significantly lower"


def test_the_last_epoch_can_be_scored_instead(sweep: Path) -> None:
    summary = build_table(read_runs([sweep])[0], last=True).summary(("lora",), "cola")
    assert summary is not None
    assert summary.mean == pytest.approx(0.405)


def test_settings_that_follow_from_others_do_not_name_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "cola", "dora", 0, 0.5)
    write_run(tmp_path / "b", "cola", "head", 0, 0.5)
    assert varied_settings(read_runs([tmp_path])[0]) == ["method.name"]
    write_run(tmp_path / "c", "cola", "dora", 0, 0.5, alpha=1)
    assert varied_settings(read_runs([tmp_path])[0]) == ["method.name", "method.alpha"]


def test_a_tasks_own_setting_names_rows_where_it_alone_differs(tmp_path: Path) -> None:
    """As in a sweep over task.max_train_rows: such runs were called the same one."""
    for seed in (0, 1):
        for rows in (100, 200):
            settings = {"max_train_rows": rows, "labels": ["b", "a"]}
            name = f"{rows}-{seed}"
            write_run(tmp_path / name, "cola", "dora", seed, rows / 1000, settings=settings)
        write_run(tmp_path / f"rte-{seed}", "rte", "dora", seed, 0.5)
    runs = read_runs([tmp_path])[0]
    assert varied_settings(runs) == ["task.max_train_rows"]
    table = build_table(runs)
    assert table.implied == []  # a task's options follow from the task
    means = {setting: table.summary(setting, "cola") for setting in table.settings}
    assert [one and one.mean for one in means.values()] == [0.1, 0.2, None]


def test_a_model_that_its_path_names_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "cola", "dora", 0, 0.5)
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("name: tiny", "name: ${basename:${.path}}"))
    assert read_runs([tmp_path])[0][0].settings["model.name"] == "tiny"


def test_what_is_not_finished_or_over_budget_is_listed_and_left_out(sweep: Path) -> None:
    write_run(sweep / "over", "cola", "dora", 9, 0.99, at_budget=False)
    (sweep / "dead" / ".hydra").mkdir(parents=True)
    (sweep / "dead" / ".hydra" / "config.yaml").write_text("seed: 3\n")
    runs, unfinished = read_runs([sweep])
    assert len(runs) == 16
    assert [one.folder.name for one in unfinished] == ["dead", "over"]
    (sweep / "dead" / "error.txt").write_text(
        "exit code 2\nTraceback\nerror: budget.init = 1 is below budget.target = 2\n"
    )
    failed = read_runs([sweep])[1][0]
    assert str(failed) == f"{sweep / 'dead'}: failed: budget.init = 1 is below budget.target = 2"
    assert "Traceback" in failed.output


def test_a_file_that_lies_elsewhere_for_each_seed_names_no_rows(tmp_path: Path) -> None:
    for seed in (0, 1):
        settings = {"train_file": f"/scratch/job{seed}/rows.csv"}
        write_run(tmp_path / str(seed), "cola", "dora", seed, 0.5, settings=settings)
    assert varied_settings(read_runs([tmp_path])[0]) == []


def test_a_run_without_its_configuration_is_said_to_lack_it(tmp_path: Path) -> None:
    """As output_dir=DIR leaves it: Hydra's files are then in another folder."""
    folder = write_run(tmp_path / "a", "cola", "dora", 0, 0.5)
    (folder / ".hydra/config.yaml").unlink()
    with pytest.raises(UserError, match=r"no finished run .*\n  .*/a: has no \.hydra/config\.yaml"):
        read_runs([folder])


def test_files_and_pictures_are_written(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(sweep), "--against", "method=lora"])
    folder = sweep / "report"
    wanted = {
        "report.md",
        "table.csv",
        "table.tex",
        "curves_cola.png",
        "curves_cola.svg",
        "budget_quality_rte.png",
        "report.html",
        "rank_agreement_cola.png",
        "rank_maps_cola.svg",
    }
    assert wanted <= {path.name for path in folder.iterdir()}
    with (folder / "table.csv").open(newline="") as file:
        rows = {(row["method.name"], row["task"]): row for row in csv.DictReader(file)}
    assert [float(score) for score in rows["lora", "rte"]["scores"].split()] == pytest.approx(
        [0.5, 0.52, 0.49, 0.51]
    )
    assert "| method=dora | cola | +0.1015 |" in capsys.readouterr().out
    assert len(read_runs([sweep])[0]) == 16  # its own folder is not taken for a run


MISTAKES = [
    (["nowhere"], "nowhere: there is no such folder"),
    (["SWEEP", "--against", "budget=r2"], "--against budget=r2: budget does not vary here"),
    (["SWEEP", "--under", "-1"], "--under -1: a number of adapter parameters"),
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


def test_the_same_run_twice_is_refused_and_a_damaged_one_is_left_out(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(sweep / "again", "cola", "dora", 0, 0.7)
    with pytest.raises(SystemExit):
        main([str(sweep)])
    assert "are the same run" in capsys.readouterr().err
    (sweep / "again" / "metrics.json").write_text('{"task": ')
    main([str(sweep)])
    assert "again: metrics.json is damaged" in capsys.readouterr().out


def test_ranks_agree_as_spearman_says(tmp_path: Path) -> None:
    ranks = [{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}]
    for seed, one in enumerate(ranks):
        write_run(tmp_path / str(seed), "cola", "dora", seed, 0.5, ranks=one)
    runs = read_runs([tmp_path])[0]
    assert rank_agreement(runs) == pytest.approx((1 - 1 - 1) / 3)
    assert rank_agreement(runs[:2]) == pytest.approx(1)
    matrix = agreement_matrix(
        [runs[:2], runs[1:]]
    )  # of seeds 0, 1 and 1, 2: only different ones are compared
    assert matrix[0, 0] == pytest.approx(1)
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx((1 - 1 - 1) / 3)
    assert math.isnan(agreement_matrix([runs[:1]])[0, 0])


def test_the_command_repeats_the_run_alone(tmp_path: Path) -> None:
    given = [
        "task=cola",
        "task.train_file=my file's.csv",
        "experiment=table5_dem",
        "sweep.resume=True",
    ]
    write_run(tmp_path / "a", "cola", "dora", 0, 0.5)
    write_run(tmp_path / "b", "cola", "dora", 1, 0.5)
    write_overrides(tmp_path / "b", *given)
    first, second = read_runs([tmp_path])[0]
    assert first.command is None
    assert second.command is not None
    assert shlex.split(second.command) == ["dynarank", "train", *given[:3], "hydra.mode=RUN"]


def test_the_best_of_a_size_is_named(tmp_path: Path) -> None:
    for method, size, score in (("dora", 100, 0.7), ("lora", 200, 0.6), ("head", 0, 0.4)):
        write_run(tmp_path / method, "cola", method, 0, score, parameters=size)
    runs, left_out = read_runs([tmp_path])
    text = report_text(build_table(runs), ("dora",), left_out)
    assert "- cola, 0: method=head, 0.4000\n- cola, 100: method=dora, 0.7000\n" in text
    assert "lora, 0.6000" not in text.split("no more adapter parameters")[1]
    text, folder = write_report([tmp_path], under=99)
    assert "at most 99 adapter parameters:\n\n- cola, 0: method=head" in text
    assert 'value="99"' in (folder / "report.html").read_text()


def test_a_setting_that_lacks_a_score_is_named_and_never_averaged_over_the_rest(
    tmp_path: Path,
) -> None:
    for seed in range(3):
        write_run(tmp_path / f"dora-{seed}", "stsb", "dora", seed, 0.5 + seed / 100)
        write_run(tmp_path / f"lora-{seed}", "stsb", "lora", seed, math.nan if seed == 1 else 0.9)
    (tmp_path / "lora-1" / "metrics.csv").write_text("step,val/accuracy\n1,nan\n2,nan\n")
    table = build_table(read_runs([tmp_path])[0])
    summary = table.summary(("lora",), "stsb")
    assert summary is not None
    assert math.isnan(summary.mean)
    assert (summary.n, summary.undefined) == (3, 1)
    assert "| lora | - (1 of 3 seeds without a score) |" in scores_table(table)
    text, folder = write_report(sorted(tmp_path.iterdir()), output=tmp_path / "report")
    said = "Not ranked, because seeds have no score: method=lora (1 of 3 seeds)."
    assert f"stsb: {said}" in text
    html = (folder / "report.html").read_text()
    assert f"<p>{said}</p>" in html
    assert "<title>dora-0 and 5 more folders: dynarank report</title>" in html
    assert "method=lora (2 of 3 seeds)" in (folder / "curves_stsb.svg").read_text()


def test_a_real_runs_folder_is_read(hub_root: Path, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from dynarank.runs.run import run

    config = configure(tmp_path, hub_root, "budget.interval=1", "trainer.epochs=3")
    run(config)
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.structured(config), tmp_path / ".hydra" / "config.yaml")
    text, folder = write_report([tmp_path])
    assert "cola (matthews)" in text
    assert (folder / "allocation.png").is_file()
