"""Steps that are not finite, where the host does not wait to read it: nothing is lost or harmed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tiny import configure, newest_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from dynarank.allocation import importance
from dynarank.checkpoints.callback import Checkpoints
from dynarank.checkpoints.signals import Signals
from dynarank.errors import UserError
from dynarank.runs import trainer as trainers
from dynarank.runs.prepare import prepare
from dynarank.runs.run import run
from dynarank.training import nonfinite
from dynarank.training.late_flag import LateFlag
from dynarank.training.module import FineTuning

PLAIN = ["method.dropout=0", "dem=off", "optimizer.lr=0.01", "trainer.batch_size=8"]
"""Forty rows: five batches an epoch."""


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU as a device behind the host."""
    monkeypatch.setattr(nonfinite, "BEHIND_THE_HOST", ("cpu",))


def test_a_run_without_trouble_is_the_same_to_the_bit(
    late: None, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(configure(tmp_path / "late", hub_root, *PLAIN))
    monkeypatch.undo()
    run(configure(tmp_path / "at_once", hub_root, *PLAIN))
    late_state, state = (
        newest_checkpoint(tmp_path / "late"),
        newest_checkpoint(tmp_path / "at_once"),
    )
    assert state["state_dict"].keys() == late_state["state_dict"].keys()
    for name, value in state["state_dict"].items():
        assert torch.equal(value, late_state["state_dict"][name]), name


def test_a_gradient_that_is_not_finite_stops_the_run_and_harms_no_weight(
    late: None, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step before is the last that is kept, though the host learns of it later."""
    modules: list[FineTuning] = []
    weights: dict[str, torch.Tensor] = {}

    def spoil(module: FineTuning) -> None:
        if module.trainer.global_step == 3:
            modules.append(module)
            weights.update({n: p.detach().clone() for n, p in module.model.named_parameters()})
            module.get_parameter("model.classifier.out_proj.bias").grad[0] = torch.nan

    monkeypatch.setattr(FineTuning, "on_after_backward", spoil)
    config = configure(tmp_path, hub_root, *PLAIN, "checkpoint.every_steps=1")
    with pytest.raises(UserError, match="step 4: the gradient is not finite"):
        run(config)
    # The optimizer has been called for that step, and has skipped it.
    for name, parameter in modules[0].model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    saved = newest_checkpoint(tmp_path)
    assert saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_the_place_of_a_loss_is_found_in_the_batch_that_had_it(
    late: None, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Spoiled(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            found: torch.Tensor = super().forward(ids)
            return found / 0 if len(calls) >= 3 else found

    config = configure(tmp_path, hub_root, *PLAIN)
    prepared = prepare(config, tmp_path)
    prepared.pretrained.model.roberta.embeddings.word_embeddings.__class__ = Spoiled
    with Signals() as signals:
        checkpoints = Checkpoints(
            tmp_path / "checkpoints", config.checkpoint, {}, signals, None, 0.0
        )
        with pytest.raises(
            nonfinite.NonFiniteError, match=r"step 3: the loss is nan; first at roberta\.embeddings"
        ):
            trainers.fit(trainers.build_trainer(config, tmp_path, prepared, checkpoints), prepared)


class Readings(TorchDispatchMode):
    """Counts the values that are read from a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.count += name in ("_local_scalar_dense", "equal", "nonzero")
        return func(*args, **(kwargs or {}))


def test_an_ordinary_step_of_a_run_reads_no_more_than_the_model_alone(
    late: None, hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base reads one value itself: transformers asks whether the batch is padded."""
    # A CPU looks for sums that cancel.
    monkeypatch.setattr(importance, "_may_cancel", lambda *_: False)
    read: list[int] = []
    batches: list[Any] = []

    class Between(Callback):
        """Counts from one batch's start to the next one's."""

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
            read.append(mode.count)
            batches.append(batch)

    config = configure(tmp_path, hub_root, *PLAIN, "trainer.log_every=1000", "budget.interval=100")
    prepared = prepare(config, tmp_path)
    assert prepared.module.allocation is not None
    prepared.module.allocation.allocator.check_every_step = False
    with Signals() as signals:
        folder = tmp_path / "checkpoints"
        checkpoints = Checkpoints(folder, config.checkpoint, {}, signals, None, 0.0)
        trainer = trainers.build_trainer(config, tmp_path, prepared, checkpoints)
        trainer.callbacks.append(Between())
        with Readings() as mode:
            trainers.fit(trainer, prepared)
    with Readings() as alone:
        prepared.module.model(**prepared.module.task.inputs(batches[2]))
    steps = [after - before for before, after in pairwise(read[1:5])]
    assert steps == [alone.count] * 3
    assert alone.count <= 1


def test_a_flag_stays_up_and_says_how_much_it_covers() -> None:
    flag = LateFlag(torch.device("cpu"))
    flag.add(torch.tensor(False))
    assert flag.read() is None  # the copy has just begun
    flag.add(torch.tensor(True))
    assert flag.read() == (1, False)  # what was added before the copy
    flag.add(torch.tensor(False))
    assert flag.wait() == (2, True)
