"""A damaged run's folder is listed as left out with a reason, and the report goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_history, write_run

from dynarank.errors import UserError
from dynarank.report.latex import latex
from dynarank.report.markdown import report_text
from dynarank.report.page import Report, page
from dynarank.report.run_reader import UnreadableFile, read_settings
from dynarank.report.runs import LeftOut, read_runs
from dynarank.report.tables import build_table
from dynarank.report.write_report import _write, write_report

FILES = ["metrics.json", "metrics.csv", "ranks.json", "rank_history.json", ".hydra/config.yaml"]


def truncate(path: Path) -> None:
    # A quarter is left: half of a configuration could hold all that a report reads of it.
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def null_bytes(path: Path) -> None:
    path.write_bytes(b"\x00" * 4096)


def a_list(path: Path) -> None:
    path.write_text("[1, 2, 3]")


def a_number(path: Path) -> None:
    path.write_text("7")


def a_text(path: Path) -> None:
    path.write_text('"words"')


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def long_number(path: Path) -> None:
    path.write_text(f'{{"step": {"9" * 10_000}}}')


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


WHOLE_FILES = [
    truncate,
    empty,
    binary,
    null_bytes,
    a_list,
    a_number,
    a_text,
    deep,
    long_number,
    folder,
    dangling_link,
    link_to_itself,
]
HARMLESS = {("metrics.csv", "truncate")}
"""A history that ends early is a history."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, of which the last will be damaged."""
    root = tmp_path_factory.mktemp("sweep")
    for seed in range(3):
        one = write_run(root / f"run{seed}", "cola", "dora", seed, 0.5 + seed / 100)
        write_history(one, 3, seed)
    return root


@pytest.fixture
def copied(sweep: Path, tmp_path: Path) -> Path:
    shutil.copytree(sweep, tmp_path / "sweep")
    return tmp_path / "sweep"


def texts(place: Path) -> tuple[list[LeftOut], str]:
    """Return what is left out, and all that is written but for the pictures."""
    runs, left_out = read_runs([place])
    table = build_table(runs)
    other = build_table(runs, last=True)
    content = Report(
        title="sweep",
        places=[place],
        tables=(table, other),
        reference=table.settings[0],
        runs=table.runs(),
        left_out=left_out,
        pictures=[],
    )
    return left_out, report_text(table, table.settings[0], left_out) + page(content) + latex(table)


@pytest.mark.parametrize("damage", WHOLE_FILES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_leaves_its_run_out(
    name: str, damage: Callable[[Path], None], copied: Path
) -> None:
    path = copied / "run2" / name
    damage(path)
    if name == ".hydra/config.yaml" and damage in (dangling_link, link_to_itself):
        return  # What has no configuration is no run's folder. That nothing fails is shown above.
    left_out, text = texts(copied)
    if (name, damage.__name__) in HARMLESS:
        assert left_out == []
        return
    assert [one.folder.name for one in left_out] == ["run2"]
    assert path.name in left_out[0].reason or "not finished" in left_out[0].reason
    assert len(left_out[0].reason) < 300
    assert left_out[0].reason.split("(")[0].strip() in text


def set_field(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def drop_field(*path: str | int) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


HUGE = 10**300
FIELDS = [
    *[
        ("metrics.json", drop_field(name))
        for name in (
            "task",
            "method",
            "model",
            "seed",
            "metrics",
            "last",
            "selected",
            "at_budget",
            "adapter_parameters",
        )
    ],
    *[
        ("metrics.json", set_field(name, value=value))
        for name in ("task", "method", "model")
        for value in (None, 3, "", [], {}, "x" * 1000)
    ],
    *[
        ("metrics.json", set_field(name, value=value))
        for name in ("seed", "adapter_parameters", "total_steps")
        for value in ("3", 1.5, float("nan"), float("inf"), -1, HUGE, [], True)
    ],
    *[("metrics.json", set_field("at_budget", value=value)) for value in (None, "yes", 1)],
    *[("metrics.json", set_field("metrics", value=value)) for value in (None, [], {}, 3, "x")],
    *[("metrics.json", set_field("selected", value=value)) for value in (None, [], {}, 3, "x")],
    *[
        ("metrics.json", set_field("metrics", "accuracy", value=value))
        for value in ("0.5", [], {}, True, float("inf"), -float("inf"), HUGE, 1e300)
    ],
    ("metrics.json", set_field("selected", "metric", value="absent")),
    ("metrics.json", set_field("selected", "metric", value=7)),
    ("metrics.json", drop_field("last", "accuracy")),
    ("metrics.json", set_field("seconds", value="long")),
    *[
        ("ranks.json", set_field("bert.encoder.layer.0.query", value=value))
        for value in (None, "1", 1.5, -1, HUGE, [], float("nan"), True)
    ],
    *[("rank_history.json", set_field(0, value=value)) for value in (None, 3, [], {}, "x")],
    *[
        ("rank_history.json", set_field(0, "step", value=value))
        for value in (None, "1", 1.5, -1, HUGE, float("nan"))
    ],
    *[("rank_history.json", set_field(0, "ranks", value=value)) for value in (None, 3, [], "x")],
    ("rank_history.json", drop_field(1, "ranks")),
    ("rank_history.json", drop_field(1, "step")),
    ("rank_history.json", set_field(0, "ranks", "bert.encoder.layer.0.query", value=HUGE)),
]


@pytest.mark.parametrize(("name", "change"), FIELDS)
def test_a_wrong_value_leaves_its_run_out(
    name: str, change: Callable[[Any], None], copied: Path
) -> None:
    path = copied / "run2" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    left_out = read_runs([copied])[1]
    assert [one.folder.name for one in left_out] == ["run2"]
    assert left_out[0].reason.startswith(f"{name} is damaged")
    assert len(left_out[0].reason) < 300


@pytest.mark.parametrize(
    "rows",
    [
        "epoch,val/accuracy\n1,0.4\n",
        "step,val/accuracy\none,0.4\n",
        "step,val/accuracy\n1,high\n",
        "step,val/accuracy\n,0.4\n",
        "step,val/accuracy\n-3,0.4\n",
        "step,val/accuracy\ninf,0.4\n",
        'step,val/accuracy\n1,"0.4\n',
        "step,val/accuracy\n1,0.4,5,6\n2,0.4\n",
        f"step,val/accuracy\n{'9' * 5000},0.4\n",
    ],
)
def test_a_wrong_history_leaves_its_run_out(rows: str, copied: Path) -> None:
    (copied / "run2" / "metrics.csv").write_text(rows)
    left_out = read_runs([copied])[1]
    assert [one.folder.name for one in left_out] == ["run2"]
    assert left_out[0].reason.startswith("metrics.csv is damaged")


def test_what_diverged_and_what_is_odd_is_drawn_as_far_as_it_can_be(copied: Path) -> None:
    rows = "1,nan,nan\n2,inf,0.5\n3,1e300,-inf\n4,0.5,0.6\n"
    (copied / "run2" / "metrics.csv").write_text(f"step,train/loss,val/accuracy\n{rows}")
    ranks = {"a..b": 0, "": 1, "layer.99999999999.x": 2, "$\\frac": 3}
    (copied / "run1" / "ranks.json").write_text(json.dumps(ranks))
    (copied / "run1" / "rank_history.json").write_text("[]")
    results = json.loads((copied / "run0" / "metrics.json").read_text())
    results["metrics"]["accuracy"] = None
    results["more"] = {"deep": [{"nan": float("nan")}, 10**40]}
    (copied / "run0" / "metrics.json").write_text(json.dumps(results))
    _, folder = write_report([copied])
    assert (folder / "curves_cola.png").is_file()
    assert read_runs([copied])[1] == []


def test_a_damaged_failure_and_a_folder_that_may_not_be_read_are_left_out(copied: Path) -> None:
    failed = copied / "failed"
    (failed / ".hydra").mkdir(parents=True)
    (failed / ".hydra" / "config.yaml").write_text("seed: 0\n")
    (failed / "error.txt").write_bytes(bytes(range(256)))
    left_out, _ = texts(copied)
    assert [str(one.folder.name) for one in left_out] == ["failed"]


def test_aliases_of_yaml_do_not_multiply_without_an_end(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, 40):
        lines.append(f"a{level}: &a{level} {{x: *a{level - 1}, y: *a{level - 1}}}")
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UnreadableFile, match="more than 10,000 settings"):
        read_settings(path)
    path.write_text("a: &a\n  b: *a\n")
    with pytest.raises(UnreadableFile, match="damaged"):
        read_settings(path)


def test_settings_are_read_as_hydra_reads_them(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    text = (
        "a: 1e-3\nb: 1.5e+3\nc: 3\nd: 0.1\ne: 2026-11-25\nf: 'yes'\ng: null\nh: [1, 2]\n"
        "i: ${a}\nj: true\nk: -1e5\nl: .5\nm: 1_000\nn: inf\no: .nan\np: ''\nq: {r: {s: 08}}\n"
        "t: 1e3x\nu: e5\nv: +1.\nw: 1E4\n"
    )
    path = tmp_path / "config.yaml"
    path.write_text(text)
    loaded = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(loaded, dict)
    for name, value in read_settings(path).items():
        expected: Any = loaded
        for key in name.split("."):
            expected = expected[key]
        expected = "(none)" if expected is None else expected
        expected = str(expected) if isinstance(expected, list) else expected
        assert repr(value) == repr(expected), name


def test_half_a_surrogate_pair_ends_no_report(copied: Path) -> None:
    """JSON and names of folders can hold one; UTF-8 and a picture cannot."""
    results = json.loads((copied / "run2" / "metrics.json").read_text())
    results |= {"task": "odd\ud800\U0001f600", "collapsed": "\udfff"}
    results["metrics"]["\udbc4"] = 0.5
    (copied / "run2" / "metrics.json").write_text(json.dumps(results))
    (copied / "run1").rename(copied / "run\udcff1")
    runs, left_out = read_runs([copied])
    assert left_out == []
    assert {run.task for run in runs} == {"cola", "odd?\U0001f600"}
    written = _write(copied / "page.html", texts(copied)[1])
    assert (copied / "page.html").read_text(encoding="utf-8") == written


def test_a_report_over_a_folder_is_one_message(copied: Path) -> None:
    (copied / "report" / "report.md").mkdir(parents=True)
    with pytest.raises(UserError, match="the report cannot be written here"):
        write_report([copied])


def test_a_huge_number_in_a_configuration_leaves_its_run_out(copied: Path) -> None:
    """YAML reads hexadecimal digits without the limit that Python has for decimal ones."""
    with (copied / "run2" / ".hydra" / "config.yaml").open("a") as file:
        file.write(f"huge: 0x{'f' * 5000}\n")
    left_out, text = texts(copied)
    assert [one.folder.name for one in left_out] == ["run2"]
    assert "huge is a huge number" in text
