"""Searching settings by Optuna: each trial is a run, or one for every seed, by the sweep's launcher.

The study lies in the sweep's folder, beside the runs, so that a search that was stopped can go on.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.errors import UserError
from dynarank.sweeps.search_space import Space, import_optuna, kept

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

STUDY = "study.journal"
BEST = "best.json"


class Tuning:
    """A search and its study. `launcher` runs overrides, as Hydra's launchers do."""

    def __init__(self, space: Space, context: Any, config: Any, launcher: Any) -> None:
        self.space, self.context, self.config, self.launcher = space, context, config, launcher
        self.folder = Path(str(config.hydra.sweep.dir))

    def run(self, n_trials: int, n_jobs: int, n_startup_trials: int, seed: int) -> None:
        """Try until `n_trials` have a score or have failed; those that failed in an earlier command do not count.

        Raises:
            UserError: a value out of range, a study that is another search's, or no trial has a score.
            KeyboardInterrupt: with the remedy, after Ctrl-C.
        """
        for name, value in (
            ("n_trials", n_trials),
            ("n_jobs", n_jobs),
            ("n_startup_trials", n_startup_trials),
        ):
            if value < 1:
                raise UserError(f"hydra.sweeper.{name} = {value}: at least 1")
        self.check_values()
        study = self.open_study()
        unfinished = [one for one in study.trials if not one.state.is_finished()]
        left = n_trials - len(_scored(study))
        at_once = max(1, n_jobs // self.space.runs)
        log.info("%d of %d trials to go in %s", max(0, left), n_trials, self.folder)
        try:
            while left > 0:
                batch = [
                    self.take_up(study, unfinished) or self.ask(study, n_startup_trials, seed)
                    for _ in range(min(at_once, left))
                ]
                self.try_out(study, batch)
                left -= len(batch)
        except KeyboardInterrupt:
            scored = len(_scored(study))
            raise KeyboardInterrupt(
                f"{scored} of {n_trials} trials have a score. {self.how_to_go_on()}"
            ) from None
        self.report(study)

    def check_values(self) -> None:
        """Raise `UserError` for an end of a range, or a choice, that no run could have: now, and not trial by trial."""
        from hydra.errors import ConfigCompositionException
        from omegaconf import open_dict

        from dynarank.config.schema import to_config

        for name, value, overrides in self.space.extremes():
            try:
                composed = self.context.config_loader.load_sweep_config(self.config, overrides)
            except ConfigCompositionException as error:
                if "could not be converted to Integer" not in str(error.__cause__):
                    raise
                whole = next(
                    (one for one in self.space.distributions if f" {one}=" in str(error)), name
                )
                raise UserError(
                    f"{whole} takes whole numbers: '{whole}=int(interval(LOW,HIGH))'"
                ) from None
            with open_dict(composed):
                del composed["hydra"]
            composed.output_dir = str(self.folder)
            try:
                to_config(composed)
            except UserError as error:
                raise UserError(
                    f"{name} = {value} would be tried, and is out of range: {error}"
                ) from None

    def open_study(self) -> Study:
        """The folder's study, or a new one. Raises `UserError` where it is another search's, or sweep.resume is not set."""
        optuna = import_optuna()
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        path = self.folder / STUDY
        self.folder.mkdir(parents=True, exist_ok=True)

        def load() -> Study:
            storage = JournalStorage(JournalFileBackend(str(path)))
            return optuna.create_study(
                storage=storage, study_name="tune", direction="maximize", load_if_exists=True
            )

        study = load()
        if not self.config.sweep.resume and study.trials:
            if any(one.state.is_finished() for one in study.trials):
                raise UserError(
                    f"{self.folder} holds a search already. {self.how_to_go_on()}, or choose another folder"
                )
            path.unlink()  # of a command that came to nothing
            study = load()
        record = self.space.record()
        known = study.user_attrs.get("space", record)
        if known != record:
            differ = [key for key in record if record[key] != known[key]]
            raise UserError(
                f"{self.folder}: its search was another: {differ[0]} was {known[differ[0]]}, is {record[differ[0]]}. "
                "Give the same settings, or another hydra.sweep.dir"
            )
        study.set_user_attr("space", record)
        return study

    def take_up(self, study: Study, unfinished: list[FrozenTrial]) -> FrozenTrial | None:
        """The next trial that an earlier command began; None when there is none left."""
        while unfinished:
            trial = unfinished.pop(0)
            if trial.params.keys() == self.space.distributions.keys():
                return trial
            study.tell(
                trial.number, state=import_optuna().trial.TrialState.FAIL
            )  # ended while it was drawn
        return None

    def ask(self, study: Study, n_startup_trials: int, seed: int) -> FrozenTrial:
        """A new trial. It depends on those before it and on `seed` alone: a search that was stopped goes on alike."""
        optuna = import_optuna()
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=n_startup_trials,
            multivariate=True,
            constant_liar=True,
            seed=seed + len(study.trials),
        )
        number = study.ask(self.space.distributions).number
        return study.trials[number]

    def try_out(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        """Run trials and tell how they scored; one with a run that failed, or whose score is no number, has failed."""
        state = import_optuna().trial.TrialState
        groups: list[list[FrozenTrial]] = []
        for trial in trials:
            log.info("trial %d: %s", trial.number, _shown(trial.params))
        for trial in trials:  # launchers number a batch's points in a row
            if groups and groups[-1][-1].number + 1 == trial.number:
                groups[-1].append(trial)
            else:
                groups.append([trial])
        for group in groups:
            jobs = [one for trial in group for one in self.space.overrides(trial.params)]
            found = self.launcher.launch(jobs, group[0].number * self.space.runs, resume=True)
            for index, trial in enumerate(group):
                score = _mean(found[index * self.space.runs : (index + 1) * self.space.runs])
                if score is None:
                    study.tell(trial.number, state=state.FAIL)
                    log.info("trial %d has no score", trial.number)
                else:
                    study.tell(trial.number, score)
        if _scored(study):
            best = study.best_trial
            log.info("best so far: %.4f by %s", best.value, _shown(best.params))
            self.write_best(study)

    def write_best(self, study: Study) -> None:
        best = study.best_trial
        content = {
            "trial": best.number,
            "score": best.value,
            "settings": best.params,
            "seeds": self.space.seeds,
            "command": self.command(best.params),
        }
        (self.folder / BEST).write_text(json.dumps(content, indent=2) + "\n")

    def command(self, parameters: dict[str, Any]) -> str:
        """What runs these settings alone."""
        fixed = [one for one in kept(self.space.fixed) if one != "experiment=tune"]
        alone = ["hydra.mode=RUN"] if any(one.startswith("experiment=") for one in fixed) else []
        chosen = [f"{name}={value}" for name, value in parameters.items()]
        return shlex.join(["python", sys.argv[0], *fixed, *chosen, *alone])

    def report(self, study: Study) -> None:
        """Say what was best. Raises `UserError` where nothing has a score."""
        scored = _scored(study)
        if not scored:
            raise UserError(
                f"none of {len(study.trials)} trials has a score: {self.folder}/*/error.txt say why. {self.how_to_go_on()}"
            )
        failed = sum(one.state.name == "FAIL" for one in study.trials)
        best = study.best_trial
        log.info(
            "best of %d%s: %.4f by trial %d; to run it: %s\nwritten: %s; all of them: python -m dynarank.report %s",
            *(
                len(scored),
                f" ({failed} failed)" if failed else "",
                best.value,
                best.number,
                self.command(best.params),
            ),
            *(self.folder / BEST, self.folder),
        )

    def how_to_go_on(self) -> str:
        return f"Go on: the same command with sweep.resume=true hydra.sweep.dir={self.folder}"


def _scored(study: Study) -> list[FrozenTrial]:
    return [one for one in study.trials if one.state.name == "COMPLETE"]


def _mean(found: Sequence[Any]) -> float | None:
    """Of the runs' scores; None where one failed or is not a number."""
    from hydra.core.utils import JobStatus

    scores = [
        float(one.return_value) if one.status == JobStatus.COMPLETED else math.nan for one in found
    ]
    mean = sum(scores) / len(scores)
    return mean if math.isfinite(mean) else None


def _shown(parameters: dict[str, Any]) -> str:
    rounded = {
        name: f"{value:.3g}" if isinstance(value, float) else value
        for name, value in parameters.items()
    }
    return " ".join(f"{name}={value}" for name, value in rounded.items())
