"""`dynarank bench`: its answers to mistakes, and what it hands on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynarank.commands.bench import main
from dynarank.sweeps import bench_runs
from dynarank.sweeps.bench import COLUMNS, Cell, append_cell

HEAD = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("option", "value", "answer"),
    [
        ("--arms", "dynarnk", "--arms: 'dynarnk' is no arm. Did you mean 'dynarank'"),
        ("--tasks", "sst2,colla", "--tasks: 'colla' is no task. Did you mean 'cola'"),
        ("--scale", "smal", "--scale: 'smal' is no scale. Did you mean 'small'"),
        ("--budgets", "0.25,r8", "--budgets: 'r8' is no budget. Give mean components"),
        ("--budgets", "nan", "--budgets: 'nan' is no budget"),
        ("--budgets", "0", "--budgets: '0' is no budget"),
        ("--tasks", "cola:huge", "--tasks: 'huge' is no scale"),
        ("--seeds", "100", "seed 100 tunes, and compares nothing"),
        ("--seeds", "98-101", "seed 100 tunes, and compares nothing"),
        ("--seeds", "10-6", "'10-6': wants the lower seed first, as 6-10"),
        ("--seeds", "6-", "must be a whole number from 1, not ''"),
        ("--workers", "0", "must be a whole number from 1, not '0'"),
        ("--scale", "small,whole", "--scale: 'small,whole' is no scale"),
        ("--report", "page.html", "holds no cells yet"),
        ("--repeat", "3", "holds no cells yet"),
        ("--tasks", "sst2,text_classification", "text_classification has no data of its own"),
        ("--tasks", "xsum:whole", "xsum fits encoder-decoder models, and the bench adapts an enc"),
        (
            "--arms",
            "replayed,lora_even",
            "--arms: replayed takes its rate or its ranks from dynarank",
        ),
    ],
)
def test_a_mistake_is_answered_before_anything_runs(
    option: str, value: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "cells.csv"), option, value])
    assert ended.value.code == 2
    assert answer in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("", "its first line is not that of a bench's file"),
        ("text,label\na,b\n", "its first line is not that of a bench's file"),
        ("arm,task\n", "its first line is not that of a bench's file"),
        (f"{HEAD}\ndynarank,sst2,0.25,1\n", "line 2 has 4 of 13 values. Remove it"),
        (f"{HEAD}\na,b,c,d,e,f,g,h,i,j,k,l,m\n", "cannot be read as a bench's file (ValueError"),
        (b"\xff\xfe", "cannot be read as a bench's file (UnicodeDecodeError"),
    ],
)
def test_a_file_that_is_not_the_benchs_is_left_as_it_is(
    content: str | bytes, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cells.csv"
    before = content.encode() if isinstance(content, str) else content
    file.write_bytes(before)
    for options in ([], ["--report", str(tmp_path / "page.html")], ["--repeat", "1"]):
        with pytest.raises(SystemExit) as ended:
            main([str(file), *options])
        assert ended.value.code == 2
        assert answer in capsys.readouterr().err
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_cannot_be_written_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cells.csv"
    append_cell(file, Cell("dynarank", "sst2", 0.25, 1, 4e-3, "accuracy", 0.5, 0.5))
    (tmp_path / "image.md").write_bytes(b"\x89PNG")
    mistakes = [
        ([str(tmp_path)], "is a folder. Name a csv file"),
        ([str(file / "cells.csv")], "cannot be made ("),
        ([str(file), "--report", str(tmp_path)], "is a folder. Name a file"),
        ([str(file), "--report", str(tmp_path / "page.md")], "there is no such file. Name a page"),
        ([str(file), "--report", str(tmp_path / "image.md")], "cannot be read as text"),
        ([str(file), "--report", str(file / "page.html")], "cannot be made ("),
    ]
    for arguments, answer in mistakes:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert answer in capsys.readouterr().err


@pytest.mark.parametrize(("seeds", "meant"), [("3", range(1, 4)), ("6-8", range(6, 9))])
def test_the_plan_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: str, meant: range
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(bench_runs, "run_bench", lambda *plan: asked.append(plan))
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--tasks", "cola:longer,rte", "--budgets", "0.25,8", "--arms", "adalora"]
    options += ["--scale", "whole", "--workers", "2", "--seeds", seeds]
    main(["~/cells.csv", *options])
    tasks = ["cola:longer", "rte:whole"]
    plan = (tmp_path / "cells.csv", tasks, [0.25, 8.0], ["adalora"], None, 2, meant)
    assert asked == [plan]


def test_an_arm_runs_alone_where_the_file_holds_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_runs, "run_bench", lambda *plan: None)
    file = tmp_path / "cells.csv"
    append_cell(file, Cell("dynarank_alpha_8", "sst2", 0.25, 1, 4e-3, "accuracy", 0.5, 0.5))
    main([str(file), "--arms", "shuffled", "--tasks", "sst2"])
    with pytest.raises(SystemExit):
        main([str(file), "--arms", "shuffled", "--tasks", "rte"])


def test_a_cell_that_differs_fails_the_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cells.csv"
    cell = Cell("dynarank", "sst2", 0.25, 1, 4e-3, "accuracy", 0.5, 0.5)
    append_cell(file, cell)
    monkeypatch.setattr(bench_runs, "start_server", lambda _: False)
    monkeypatch.setattr(bench_runs, "run_cell", lambda *_: cell)
    main([str(file), "--repeat", "3"])
    assert "1 of 1 cells found the same again." in capsys.readouterr().out
    append_cell(file, Cell("dynarank", "sst2", 0.25, 2, 4e-3, "accuracy", 0.6, 0.4))
    with pytest.raises(SystemExit) as ended:
        main([str(file), "--repeat", "3"])
    assert ended.value.code == 1
