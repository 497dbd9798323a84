"""Sweeps of a small script in place of train.py, for the tests of what runs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynarank.sweeps import sweep
from dynarank.sweeps.executors import Executor, Processes

SCRIPT = """
import json, os, sys, time
from pathlib import Path
given = dict(one.split("=", 1) for one in sys.argv[1:])
assert given.pop("hydra.mode") == "RUN"
resumed = given["resume.path"]
folder = Path(given.pop("hydra.run.dir").strip("'"))
if given.get("x") == "2":
    print("error: x = 2: no such thing"); sys.exit(2)
(folder / ".hydra").mkdir(exist_ok=True)
lines = [f"- {k}={v}\\n" for k, v in given.items()]
(folder / ".hydra" / "overrides.yaml").write_text("".join(lines))
if given.get("x") == "0":  # runs until it is told to save, and once more is done
    import signal
    def save(*_):
        (folder / "saved").write_text("x")
        sys.exit(143)
    signal.signal(signal.SIGUSR1, save)
    if not (folder / "saved").exists():
        (folder / "ready").write_text("x")
        time.sleep(120)
names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_NAME")
seen = {name: os.environ.get(name) for name in names}
seen.update(resume=resumed, pid=os.getpid(), parent=os.getppid())
(folder / "seen.json").write_text(json.dumps(seen))
record = {"metrics": {"m": float(given["x"])}, "selected": {"metric": "m"}}
(folder / "metrics.json").write_text(json.dumps(record))
"""


class Composed(dict):  # type: ignore[type-arg]
    """Hydra's composed configuration, as far as a sweep looks at it."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def node(**values: Any) -> Composed:
    return Composed(values)


def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return launch(x values, resume, executor), which runs the small script into `tmp_path`/s.

    It returns Hydra's job returns.
    """
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    monkeypatch.setattr(sweep, "_name_by", lambda composed, varying: None)
    monkeypatch.setattr(sweep, "check_points", lambda composed, sampled: [])
    monkeypatch.setattr(
        sweep,
        "_point",
        lambda number, overrides: sweep.Point(
            number, tmp_path / "s" / f"p{number}", list(overrides)
        ),
    )
    monkeypatch.setattr(sweep, "_compose", lambda context, config, overrides, number: number)

    def launch(
        values: list[int], resume: bool = False, executor: Executor | None = None
    ) -> list[Any]:
        hydra = node(
            sweep=node(dir=str(tmp_path / "s")),
            overrides=node(hydra=["hydra.sweep.dir=x"], task=["fixed=1"]),
            runtime=node(choices={"experiment": "table5_dem"}),
        )
        config = node(hydra=hydra, sweep=node(resume=resume))
        points = [[f"x={value}", "fixed=1"] for value in values]
        return sweep.launch(None, config, points, 0, executor or Processes(preload=False))

    return launch


def seen_by_run(folder: Path) -> Any:
    """Return what the small script saw of its command and environment."""
    return json.loads((folder / "seen.json").read_text())
