"""The table for a paper, on folders written as runs leave them, with scores that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import write_run

from dynarank.report.latex import latex, registered_title
from dynarank.report.runs import read_runs
from dynarank.report.tables import build_table

DORA, LORA = registered_title("dora"), registered_title("lora")


def read(folder: Path) -> str:
    return latex(build_table(read_runs([folder])[0]))


def point(
    folder: Path,
    task: str,
    method: str,
    target: int,
    seed: int,
    more: dict[str, Any],
    family: str = "",
) -> None:
    """A run at a budget, with measures beside the one that selects; its size is 50,000 a
    component."""
    name = folder / f"{task}-{method}-{target}-{seed}"
    write_run(name, task, method, seed, more["accuracy"] or 0.0, parameters=50_000 * target)
    path = name / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["budget"] = {"target": target}
    config["task"]["family"] = family
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    results = json.loads((name / "metrics.json").read_text())
    results["metrics"] = more
    (name / "metrics.json").write_text(json.dumps(results))


def test_methods_stand_in_blocks_of_one_budget_with_their_size_and_average(tmp_path: Path) -> None:
    for target in (2, 8):
        for seed, shift in enumerate((-0.01, 0.01)):
            for method, gain in (("lora", 0.0), ("dora", 0.02)):
                score = 0.8 + gain + shift + target / 100
                point(tmp_path, "qqp", method, target, seed, {"accuracy": score, "f1": score - 0.1})
                point(tmp_path, "cola", method, target, seed, {"accuracy": 0.5 - gain / 2})
    spread = r"$_{\pm 1.41}$"
    assert read(tmp_path).splitlines() == [
        r"\begin{tabular}{llrccc}",
        r"\toprule",
        r"Method & Budget & \# Params & CoLA & QQP & Avg. \\",
        r" &  &  & Acc & Acc/F1 &  \\",
        r"\midrule",
        rf"{DORA} & 2 & 0.10M & 49.00$_{{\pm 0.00}}$ & \textbf{{84.00{spread}/74.00{spread}}} & \textbf{{66.50}} \\",  # noqa: E501
        rf"{LORA} & 2 & 0.10M & \textbf{{50.00$_{{\pm 0.00}}$}} & 82.00{spread}/72.00{spread} & 66.00 \\",  # noqa: E501
        r"\midrule",
        rf"{DORA} & 8 & 0.40M & 49.00$_{{\pm 0.00}}$ & \textbf{{90.00{spread}/80.00{spread}}} & \textbf{{69.50}} \\",  # noqa: E501
        rf"{LORA} & 8 & 0.40M & \textbf{{50.00$_{{\pm 0.00}}$}} & 88.00{spread}/78.00{spread} & 69.00 \\",  # noqa: E501
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_settings_of_one_method_stand_in_one_block_without_sizes(tmp_path: Path) -> None:
    for alpha, score in ((1, 0.5), (2, 0.75)):
        write_run(tmp_path / f"{alpha}", "rte", "dora", 0, score, alpha=alpha)
    assert read(tmp_path) == (
        "\\begin{tabular}{lc}\n\\toprule\nmethod.alpha & RTE \\\\\n & Acc \\\\\n\\midrule\n1 & 50.00 \\\\\n"  # noqa: E501
        "2 & \\textbf{75.00} \\\\\n\\bottomrule\n\\end{tabular}\n"
    )


def test_scores_that_count_to_100_stay_and_missing_ones_are_dashes(tmp_path: Path) -> None:
    measures = {"accuracy": 17.5, "rouge1": 30.25, "rouge2": 8.5, "rougeL": 25.0}
    point(tmp_path, "xsum", "dora", 2, 0, measures, family="seq2seq")
    point(tmp_path, "cola", "dora", 2, 0, {"accuracy": 0.5})
    point(tmp_path, "cola", "lora", 2, 0, {"accuracy": 0.25})
    text = read(tmp_path)
    assert (
        rf"{DORA} & 0.10M & \textbf{{50.00}} & \textbf{{30.25/8.50/25.00}} & \textbf{{33.75}} \\"
        in text
    )
    assert rf"{LORA} & 0.10M & 25.00 & -- & -- \\" in text


def test_what_is_no_share_has_no_percent(tmp_path: Path) -> None:
    for target in (2, 8):
        scores = {"accuracy": 0.5, "log_likelihood": -3.41, "rmse": 0.25}
        point(tmp_path, "notes", "dora", target, 1, scores)
    for config in tmp_path.glob("*/.hydra/config.yaml"):
        settings = yaml.safe_load(config.read_text())
        settings["task"]["shown"] = ["accuracy", "log_likelihood", "rmse"]
        config.write_text(yaml.safe_dump(settings))
    assert "50.00/-3.41/0.25" in read(tmp_path)


def test_a_score_that_is_undefined_on_one_seed_is_a_dash(tmp_path: Path) -> None:
    point(tmp_path, "cola", "lora", 2, 0, {"accuracy": 0.25})
    point(tmp_path, "cola", "lora", 2, 1, {"accuracy": 0.5})
    point(tmp_path, "cola", "dora", 2, 0, {"accuracy": 0.75})
    point(tmp_path, "cola", "dora", 2, 1, {"accuracy": None})
    text = read(tmp_path)
    assert rf"{DORA} & 0.10M & -- \\" in text
    assert rf"{LORA} & 0.10M & \textbf{{37.50$_{{\pm 17.68}}$}} \\" in text


def test_names_are_escaped(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "my_task", "dora", 0, 0.5)
    write_run(tmp_path / "b", "my_task", "my_method", 0, 0.4)
    assert r"my\_task" in read(tmp_path)
    assert r"my\_method & " in read(tmp_path)


SIGNS = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


@pytest.mark.parametrize("sign", SIGNS)
def test_every_special_sign_is_escaped_in_every_name(sign: str, tmp_path: Path) -> None:
    for method in ("dora", f"m{sign}x"):
        write_run(tmp_path / method.replace("/", "_"), f"t{sign}y", method, 0, 0.5)
    text = read(tmp_path)
    assert f"m{SIGNS[sign]}x & " in text
    assert f"t{SIGNS[sign]}y" in text


def test_a_line_break_in_a_name_ends_no_comment_and_no_row(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "one\n\ntwo", "dora", 0, 0.5)
    assert "one two" in read(tmp_path)


def test_rows_that_are_alike_are_not_bold(tmp_path: Path) -> None:
    for method in ("dora", "lora"):
        write_run(tmp_path / method, "cola", method, 0, 0.5)
    assert "textbf" not in read(tmp_path)
