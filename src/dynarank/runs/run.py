"""One run from configuration to results: prepare, train, and finish."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from dynarank.checkpoints.callback import Checkpoints
from dynarank.checkpoints.lock import locked
from dynarank.checkpoints.resume import Resumption, copy_run
from dynarank.checkpoints.signals import Signals
from dynarank.config.schema import TrainConfig
from dynarank.errors import Interrupted, UserError
from dynarank.run_folder import CHECKPOINTS, METRICS, is_finished
from dynarank.runs.finish import Trained, finish
from dynarank.runs.known_failures import explain_failures
from dynarank.runs.own_files import (
    check_folder,
    claim_folder,
    damaged_files,
    remove_earlier_run,
    restore_settings,
)
from dynarank.runs.preflight import check_output_dir
from dynarank.runs.prepare import Prepared, prepare
from dynarank.runs.results import Results, read_results
from dynarank.runs.trainer import build_trainer, fit, quiet_libraries
from dynarank.training.distributed import is_first

log = logging.getLogger(__name__)


def run(config: TrainConfig) -> Results:
    """Train one configuration and leave its folder complete (docs/runs.md).

    Raises:
        UserError: anything that the user can mend, before training starts; in training, what
            `explain_failures` knows.
        Interrupted: a signal came. What was trained is saved, once training had begun.
    """
    start = time.monotonic()
    quiet_libraries()
    if not is_first():
        logging.getLogger("dynarank").setLevel(logging.ERROR)  # one rank speaks for all
    folder = check_output_dir(config.output_dir)
    with locked(folder), Signals() as signals:
        try:
            return train(config, folder, signals, start)
        except Interrupted as error:
            error.folder = folder  # for the command that goes on, which is printed
            raise


def train(config: TrainConfig, folder: Path, signals: Signals, start: float) -> Results:
    """Train in a folder that is held, or return the results that it holds already.

    Args:
        config: the run's.
        folder: the run's.
        signals: what came to this process.
        start: when work began, on `time.monotonic`'s clock.
    """
    # Of a finished run too, because only this tells whether it is the very run.
    prepared = _prepare(config, folder)
    goes_on_here = prepared.resumption is not None and prepared.resumption.is_in(folder)
    if goes_on_here and is_finished(folder):
        results = _whole_results(folder)
        if results is not None and not _asks_for_more(config, prepared, results):
            log.info("the run is finished already")
            return results
        if is_first():
            (folder / METRICS).unlink()  # until the run is finished again
    if is_first():
        # First, so that a kill in `start_over` leaves a folder that is known to be a run's.
        claim_folder(folder)
        if not goes_on_here:
            start_over(folder, prepared.resumption)
    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        config.checkpoint,
        prepared.identity,
        signals,
        prepared.resumption,
        start,
    )
    trainer = build_trainer(config, folder, prepared, checkpoints)
    with explain_failures(config, folder):
        fit(trainer, prepared)
        return finish(
            Trained(
                config=config,
                folder=folder,
                prepared=prepared,
                trainer=trainer,
                checkpoints=checkpoints,
            )
        )


def _prepare(config: TrainConfig, folder: Path) -> Prepared:
    """Prepare the run, where its folder may be used.

    Raises:
        UserError: anything that the user can mend. A run that the folder holds keeps its own
            configuration, which Hydra has overwritten with this command's by then.
    """
    try:
        if is_first():
            check_folder(folder, config)
        return prepare(config, folder)
    except UserError:
        if is_first():
            restore_settings(folder)
        raise


def _whole_results(folder: Path) -> Results | None:
    """Return a finished run's results; None where a file of it is missing or damaged."""
    damaged = damaged_files(folder)
    if damaged:
        log.warning("%s is missing or damaged: restored from the checkpoint", ", ".join(damaged))
        return None
    try:
        return read_results(folder)
    except (UserError, TypeError) as error:
        log.warning("restored from the checkpoint: %s", error)
        return None


def _asks_for_more(config: TrainConfig, prepared: Prepared, results: Results) -> bool:
    """Return whether a finished run lacks what this command asks for, and say what that is."""
    assert prepared.resumption is not None
    reached, total = prepared.resumption.manifest, prepared.module.total_steps
    limit = config.trainer.max_time
    has_time = limit is None or _seconds(limit) > reached.seconds
    if reached.finished and reached.step < total and has_time:
        log.info("trainer.max_time ended the run at step %d of %d: it goes on", reached.step, total)
        return True
    if prepared.task.test and results.test_metrics is None:
        log.info("the run is finished; its test rows are scored now")
        return True
    return False


def _seconds(span: str) -> int:
    """Return the seconds of DD:HH:MM:SS."""
    days, hours, minutes, seconds = map(int, span.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def start_over(folder: Path, resumption: Resumption | None) -> None:
    """Remove what an earlier run left that would be taken for this one's.

    Args:
        folder: the run's.
        resumption: a checkpoint of another folder's run, which goes on here; None for a new run.
    """
    remove_earlier_run(folder)
    if resumption is not None:
        copy_run(resumption, folder)
