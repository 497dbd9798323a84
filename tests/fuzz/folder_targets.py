"""What the fuzzer does to the folders of runs: one that goes on, and those of a report."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import atheris
import torch
from damage import damaged

with atheris.instrument_imports(include=["dynarank"]):
    from dynarank.checkpoints import resume, storage
    from dynarank.errors import UserError
    from dynarank.report import csv_table, latex, markdown, page, runs, tables
    from dynarank.run_folder import CHECKPOINTS, read_failure, read_ranks, read_record
    from dynarank.runs import own_files, results
    from dynarank.training.history_file import HistoryFile

sys.path.insert(0, str(Path(__file__).parents[1]))
from run_folders import write_history, write_run

STEPS = (3, 6)
HISTORY_TEXT = "epoch,step,train/loss,val/accuracy\r\n,1,0.5,\r\n1,3,,0.6\r\n"


def folder_target() -> Callable[[bytes], None]:
    """Damage a file of a run's folder, and do all that a resume does before the model loads.

    A manifest is sealed again half of the time, as one would be that another version wrote.
    """
    pristine, folder = Path(tempfile.mkdtemp()) / "run", Path(tempfile.mkdtemp()) / "run"
    write_whole_run(pristine)
    names = sorted(path.relative_to(pristine) for path in pristine.rglob("*") if path.is_file())

    def one(data: bytes) -> None:
        give = atheris.FuzzedDataProvider(data)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine, folder)
        stays = folder.parent / "others.txt"
        stays.write_text("somebody's")
        path = folder / give.PickValueInList(names)
        content = damaged(give, path.read_bytes(), path.suffix == ".json")
        path.write_bytes(content)
        if path.parent.name == CHECKPOINTS and path.suffix == ".json" and give.ConsumeBool():
            seal_again(path)
        for step in (go_on, read_finished, start_over):
            with suppress(UserError):
                step(folder)
        assert stays.read_text() == "somebody's"

    return one


def write_whole_run(folder: Path) -> None:
    """Write a finished run with two checkpoints."""
    write_run(folder, "cola", "dora", 0, 0.5)
    write_history(folder, 2, 0)
    (folder / "metrics.csv").write_text(HISTORY_TEXT, newline="")
    record = {"seed": 0, "metrics": {"accuracy": 0.5}, "last": {"accuracy": 0.5}}
    record["selected"] = {"metric": "accuracy", "epoch": 1, "step": 3}  # type: ignore[assignment]
    (folder / "metrics.json").write_text(json.dumps(record))
    (folder / "error.txt").write_text("a run that failed\n")
    own_files.claim_folder(folder)
    own_files.announce_files(folder, ["metrics.csv", "ranks.json", "adapter/a.json"])
    own_files.record_digests(folder, {})
    for step in STEPS:
        path = storage.checkpoint_path(folder / CHECKPOINTS, step)
        storage.DurableIO().save_checkpoint({"values": torch.zeros(3)}, path)
        best = {"score": 0.5, "step": STEPS[0], "epoch": 1}
        storage.seal(path, storage.Manifest(step, 1, False, 9, 1.5, best, {"seed": 0}, [3], []))


def seal_again(path: Path) -> None:
    """Give a changed manifest the digest that fits, where it still is one."""
    try:
        manifest = storage.Manifest(**json.loads(path.read_text()))
        manifest.own_sha256 = manifest.digest()
        path.write_text(json.dumps(asdict(manifest)))
    except (ValueError, TypeError, RecursionError):
        pass


def go_on(folder: Path) -> None:
    """Find what to go on from, and take the history back."""
    found = resume.find_resumption("auto", folder)
    if found is not None:
        storage.read_checkpoint(found.path)
    HistoryFile(folder).restore(HISTORY_TEXT)


def read_finished(folder: Path) -> None:
    """Read what a finished run left."""
    own_files.damaged_files(folder)
    read_ranks(folder)
    read_failure(folder)
    read_record(folder)
    with suppress(TypeError):  # which `runs.run` answers by restoring
        results.read_results(folder)


def start_over(folder: Path) -> None:
    """Give a refused command's run its settings back, and replace the run."""
    own_files.restore_settings(folder)
    own_files.remove_earlier_run(folder)


def report_target() -> Callable[[bytes], None]:
    """Damage a file of one run of two, and write all texts of a report.

    The honest run must be in it.
    """
    root = Path(tempfile.mkdtemp()) / "sweep"
    for seed in range(2):
        write_history(write_run(root / f"run{seed}", "cola", "dora", seed, 0.5), 2, seed)
    files = ("metrics.json", "metrics.csv", "ranks.json", "rank_history.json", ".hydra/config.yaml")
    honest = {name: (root / "run1" / name).read_bytes() for name in files}

    def one(data: bytes) -> None:
        give = atheris.FuzzedDataProvider(data)
        name = give.PickValueInList(list(files))
        content = damaged(give, honest[name], name.endswith(".json"))
        (root / "run1" / name).write_bytes(content)
        try:
            write_texts(root)
        finally:
            (root / "run1" / name).write_bytes(honest[name])

    return one


def write_texts(root: Path) -> None:
    """Write what a report consists of, but for the pictures."""
    found, left_out = runs.read_runs([root])
    assert "run0" in [run.folder.name for run in found]
    table, last = tables.build_table(found), tables.build_table(found, last=True)
    content = page.Report(
        title="sweep",
        places=[root],
        tables=(table, last),
        reference=table.settings[0],
        runs=table.runs(),
        left_out=left_out,
        pictures=[],
    )
    texts: list[Any] = [
        markdown.report_text(table, table.settings[0], left_out),
        page.page(content),
        latex.latex(table),
        csv_table.as_csv(table),
    ]
    for text in texts:
        text.encode("utf-8")
