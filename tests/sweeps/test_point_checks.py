"""What would end a sweep's runs at their start is told before the first of them, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import open_dict
from tiny import CONF

from dynarank.config.schema import register_schemas
from dynarank.errors import UserError
from dynarank.sweeps import point_checks
from dynarank.sweeps.point_checks import check_points, warn_of_unused


def points(*varying: str, shared: tuple[str, ...] = ()) -> list[Any]:
    """Hydra's composed configuration of a point for each varying override."""
    register_schemas()
    composed = []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for number, override in enumerate(varying):
            one = hydra.compose("train", [*shared, override], return_hydra_config=True)
            with open_dict(one):
                one.hydra.job.num = number
                one.hydra.job.override_dirname = override
            composed.append(one)
    return composed


def test_settings_that_do_not_go_together_are_told_before_anything_runs() -> None:
    composed = points("budget.init=8", "budget.init=3", "budget.init=2", shared=("budget=r4",))
    with pytest.raises(
        UserError,
        match=r"2 of 3 runs of this sweep could not start, the first being #1 \(budget.init=3\): "
        r"budget.init = 3 is below budget.target = 4",
    ):
        check_points(composed)


def test_a_search_may_draw_settings_that_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        point_checks, "check_sources", lambda configs: seen.extend(c.budget.init for c in configs)
    )
    composed = points("budget.init=8", "budget.init=3", shared=("budget=r4",))
    check_points(composed, sampled=True)
    assert seen == [8]


def test_a_model_that_cannot_do_the_task_is_told_once(hub_root: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"source": "a", "target": "b"}\n')
    shared = ("task=seq2seq", f"task.train_file={rows}", f"hub.root={hub_root}")
    with pytest.raises(UserError, match="seq2seq fits encoder-decoder models, and roberta is an"):
        check_points(points("seed=1", "seed=2", shared=shared))
    rows.unlink()
    with pytest.raises(UserError, match=r"task.train_file = .*rows.jsonl"):
        check_points(points("seed=1", "seed=2", shared=shared))


@pytest.mark.parametrize(
    ("varying", "typed", "told"),
    [
        (("method=eva", "method=lora"), ["budget.warmup=0.3"], "method=eva places its components"),
        (("budget.warmup=0.1", "budget.warmup=0.2"), ["method=eva", "budget.warmup=0.1,0.2"], "="),
        (("method=eva", "method=dora"), ["budget.warmup=0.3"], ""),  # the other reads it
        (("method=full", "method=bitfit"), ["budget=r2"], ""),  # in place of what a file sweeps
        (("method=eva", "method=lora"), ["experiment=does_it_pay"], ""),
    ],
)
def test_a_sweep_tells_once_of_what_changes_nothing_in_any_run(
    varying: tuple[str, ...],
    typed: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(point_checks, "check_sources", lambda configs: None)
    shared = tuple(entry for entry in typed if "," not in entry)
    warn_of_unused(check_points(points(*varying, shared=shared)), typed)
    assert len(caplog.records) == (1 if told else 0)
    if told:
        assert caplog.messages[0].startswith(f"{typed[-1]}: ")
        assert told in caplog.messages[0]
