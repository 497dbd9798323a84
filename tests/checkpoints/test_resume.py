"""A run that is killed and goes on ends as one that was not, to the bit."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import start
from tiny import newest_checkpoint

from dynarank.config.command_line import expand_resume
from dynarank.runs.library_internals import cpu_computes_bf16

LONG = [
    "task=stsb",
    "trainer.epochs=4",
    "trainer.batch_size=4",
    "budget.interval=2",
    "optimizer.lr=0.01",
    "checkpoint.every_steps=3",
]
"""Ten steps an epoch, dropout in base and adapters, batches grouped by length; T = 40, frozen after
step 20."""


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for its times and the record of resumptions."""
    record = json.loads((folder / "metrics.json").read_text())
    for name in ("seconds", "output_dir", "resumed_at"):
        record.pop(name)
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(("checkpoints/", "run.lock", "metrics.json")):
            found[name] = path.read_bytes()
    own = json.loads(found.pop("run_files.json"))["files"]
    own.pop("metrics.json")  # it holds times
    found["run_files.json"] = sorted(own.items())
    manifest = json.loads(max((folder / "checkpoints").glob("step-*.json")).read_text())
    # What a killed first save left is kept under another name.
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert {"metrics.csv", "adapter/dynarank.json", "adapter/tokenizer.json"} <= found.keys()
    return {
        "record": record,
        "files": found,
        "best": manifest["best"],
        "kept": kept,
        "last": newest_checkpoint(folder),
    }


def same(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested values differ, tensors compared bit by bit."""
    if type(a) is not type(b):
        return [f"{where}: {type(a)} {type(b)}"]
    if isinstance(a, dict):
        if list(a) != list(b):
            return [f"{where}: keys {set(a) ^ set(b)}"]
        return [found for key in a for found in same(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: lengths {len(a)} {len(b)}"]
        return [
            found
            for index, (x, y) in enumerate(zip(a, b, strict=True))
            for found in same(x, y, f"{where}/{index}")
        ]
    if isinstance(a, torch.Tensor):
        return (
            []
            if torch.equal(torch.nan_to_num(a.float()), torch.nan_to_num(b.float()))
            else [f"{where}: tensors"]
        )
    return [] if a == b or (a != a and b != b) else [f"{where}: {str(a)[:60]} {str(b)[:60]}"]


@pytest.fixture(scope="module")
def unbroken(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Outcomes of unbroken runs, by their settings."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}

    def find(settings: list[str], world: int) -> dict[str, Any]:
        key = (*settings, str(world))
        if key not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            assert start(folder, hub_root, [*LONG, *settings], world=world) == [0] * world
            known[key] = outcome(folder)
        return known[key]

    return find


SETTINGS: dict[str, list[str]] = {
    "plain": [],
    # With the Fisher score, and validations that are unevenly far apart.
    "accumulation": [
        "trainer.accumulate=3",
        "method=dynarank",
        "trainer.validations_per_epoch=3",
    ],
    "workers, half epochs": ["trainer.workers=2", "trainer.validations_per_epoch=2"],
    "max_steps": ["trainer.max_steps=33"],
    "no regrowth": ["budget.regrow=false", "budget.unit=parameters"],
    "sensitivity": ["method.score=sensitivity"],
    "adalora": ["method=adalora"],
    "houlsby": ["method=houlsby"],
    "averaged": ["trainer.ema=0.9"],
    "bf16": ["trainer.precision=bf16-mixed"],
}
STRATEGIES: dict[str, list[str]] = {"one": [], "ddp": ["trainer=ddp"], "fsdp": ["trainer=fsdp"]}
CASES: list[tuple[str, str, list[tuple[str, int]]]] = [
    ("one", "plain", [("a step", 14)]),
    ("one", "plain", [("a step", 14), ("a step", 9), ("a step", 12)]),
    ("one", "plain", [("validation", 12)]),
    ("one", "plain", [("writing a checkpoint", 5)]),
    ("one", "plain", [("before a manifest", 1), ("before a manifest", 4)]),
    ("one", "plain", [("the end", 1)]),
    ("one", "plain", [("the history", 2), ("the history", 1)]),
    ("one", "plain", [("appending to the history", 6)]),
    ("one", "plain", [("moving the export", 3), ("exporting", 1)]),
    ("one", "accumulation", [("a step", 13)]),
    ("one", "workers, half epochs", [("a step", 7)]),
    ("one", "averaged", [("the cut of the optimizer", 1)]),
    ("ddp", "plain", [("a step", 25)]),
    ("fsdp", "plain", [("a step", 14)]),
]
MOMENTS = [
    ("a step", 7),
    ("a step", 13),
    ("validation", 13),
    ("writing a checkpoint", 9),
    ("before a manifest", 6),
]


def check(
    strategy: str, kind: str, deaths: list[tuple[str, int]], unbroken: Any, hub: Path, folder: Path
) -> None:
    world, settings = (1 if strategy == "one" else 2), [*STRATEGIES[strategy], *SETTINGS[kind]]
    again = [*LONG, *settings, "resume.path=auto"]
    for death in deaths:
        assert -9 in start(folder, hub, again, death, world)
    assert start(folder, hub, again, world=world) == [0] * world
    assert json.loads((folder / "metrics.json").read_text())["resumed_at"]
    assert same(unbroken(settings, world), outcome(folder)) == []


@pytest.mark.parametrize(("strategy", "kind", "deaths"), CASES, ids=lambda value: str(value))
def test_a_killed_run_ends_like_an_unbroken_one(
    strategy: str,
    kind: str,
    deaths: list[tuple[str, int]],
    unbroken: Any,
    hub_root: Path,
    tmp_path: Path,
) -> None:
    check(strategy, kind, deaths, unbroken, hub_root, tmp_path)


def test_kills_around_the_freeze_end_like_an_unbroken_run(
    unbroken: Any, hub_root: Path, tmp_path: Path
) -> None:
    """Ranks are final after step 20: killed there before the cut, then in the two steps behind."""
    deaths = [("the cut", 1), ("a step", 3), ("a step", 2)]
    check("one", "plain", deaths, unbroken, hub_root, tmp_path)
    # It went on before the freeze, exactly at it, and behind it.
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["resumed_at"] == [18, 20, 21]


@pytest.mark.large
@pytest.mark.parametrize("death", MOMENTS, ids=lambda value: str(value))
@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_large_matrix(
    strategy: str, kind: str, death: tuple[str, int], unbroken: Any, hub_root: Path, tmp_path: Path
) -> None:
    if kind == "bf16" and not cpu_computes_bf16():
        pytest.skip("this CPU computes no bfloat16 in hardware")
    check(strategy, kind, [death], unbroken, hub_root, tmp_path)


TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
SIGNALS: list[tuple[str, tuple[Any, ...], int, str]] = [
    ("plain", ("reading data", 1, INT), 130, "stopped by SIGINT"),
    ("plain", ("a step", 14, TERM), 143, "stopped by SIGTERM; saved: step 14"),
    ("plain", ("a step", 14, USR1, USR1), 143, "stopped by SIGUSR1"),
    ("plain", ("writing a checkpoint", 5, INT), 130, "stopped by SIGINT; saved: step "),
    ("plain", ("validation", 18, USR1), 143, "stopped by SIGUSR1; saved: step 40"),
    ("plain", ("the end", 1, TERM), 143, "stopped by SIGTERM"),
    ("workers, half epochs", ("a step", 17, TERM), 143, "stopped by SIGTERM; saved: step 17"),
]


@pytest.mark.parametrize(
    ("kind", "death", "code", "message"), SIGNALS, ids=lambda value: str(value)
)
def test_after_a_signal_the_printed_command_ends_the_run_like_an_unbroken_one(
    kind: str,
    death: tuple[Any, ...],
    code: int,
    message: str,
    unbroken: Any,
    hub_root: Path,
    tmp_path: Path,
) -> None:
    said, folder, settings = tmp_path / "said.txt", tmp_path / "run", [*LONG, *SETTINGS[kind]]
    assert start(folder, hub_root, settings, death, said=said) == [code]
    lines = said.read_text().splitlines()
    assert lines[-2].startswith(f"error: {message}")
    assert lines[-2].endswith(". Go on with:")
    assert "Traceback" not in said.read_text()
    python, script, *arguments = shlex.split(lines[-1])
    assert (python, script) == ("python", "train.py")
    placed = f"hydra.run.dir={folder}"
    assert placed in arguments
    assert start(
        folder, hub_root, [one for one in expand_resume(arguments) if one != placed], said=said
    ) == [0]
    assert same(unbroken(SETTINGS[kind], 1), outcome(folder)) == []
