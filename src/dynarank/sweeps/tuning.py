"""Searching settings by Optuna: each trial is a run, or a run for every seed.

The sweep's launcher runs them. The study lies in the sweep's folder, beside the runs, so that a
search that was stopped can go on.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarank.config.command_line import command_to_print, program_to_print
from dynarank.errors import UserError
from dynarank.sweeps.naming import resume_hint
from dynarank.sweeps.search_space import Space, import_optuna, without_housekeeping

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

STUDY = "study.journal"
BEST = "best.json"


class Tuning:
    """A search and its study.

    Args:
        space: what is searched.
        context: Hydra's, which composes configurations.
        config: Hydra's composed configuration of the search.
        launcher: runs overrides, as Hydra's launchers do.
    """

    def __init__(self, space: Space, context: Any, config: Any, launcher: Any) -> None:
        self.space, self.context, self.config, self.launcher = space, context, config, launcher
        self.folder = Path(str(config.hydra.sweep.dir))

    def run(self, n_trials: int, n_jobs: int, n_startup_trials: int, seed: int) -> None:
        """Try settings until `n_trials` have a score or have failed.

        Trials that failed in an earlier command do not count.

        Args:
            n_trials: how many trials the search takes in all.
            n_jobs: how many runs the launcher has at work at once.
            n_startup_trials: how many trials are drawn at random before the model guides them.
            seed: of the draws.

        Raises:
            UserError: a value out of range, a study that is another search's, or no trial with a
                score.
            KeyboardInterrupt: with the way to go on, after Ctrl-C.
        """
        counts = {"n_trials": n_trials, "n_jobs": n_jobs, "n_startup_trials": n_startup_trials}
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"hydra.sweeper.{name} = {value}: must be at least 1")
        self.check_values()
        study = self.open_study()
        unfinished = [trial for trial in study.trials if not trial.state.is_finished()]
        left = n_trials - len(_scored(study))
        at_once = max(1, n_jobs // self.space.runs)
        log.info("%d of %d trials to go in %s", max(0, left), n_trials, self.folder)
        try:
            while left > 0:
                batch = []
                for _ in range(min(at_once, left)):
                    trial = self.next_unfinished(study, unfinished)
                    batch.append(trial or self.draw(study, n_startup_trials, seed))
                self.run_trials(study, batch)
                left -= len(batch)
        except KeyboardInterrupt:
            scored = len(_scored(study))
            raise KeyboardInterrupt(
                f"{scored} of {n_trials} trials have a score. {self.how_to_resume()}"
            ) from None
        self.report(study)

    def check_values(self) -> None:
        """Check each end of a range and each choice now, and not trial by trial.

        Raises:
            UserError: a value that no run could have.
        """
        from hydra.errors import ConfigCompositionException

        from dynarank.config.before_start import typed_run

        for name, value, overrides in self.space.extremes():
            try:
                composed = self.context.config_loader.load_sweep_config(self.config, overrides)
            except ConfigCompositionException as error:
                if "could not be converted to Integer" not in str(error.__cause__):
                    raise
                setting = self._named_in(str(error)) or name
                raise UserError(
                    f"{setting} takes whole numbers: '{setting}=int(interval(LOW,HIGH))'"
                ) from None
            try:
                typed_run(composed)
            except UserError as error:
                raise UserError(
                    f"{name} = {value} would be tried, and is out of range: {error}"
                ) from None

    def _named_in(self, message: str) -> str | None:
        """Return the searched setting that one of Hydra's messages names, if any."""
        for setting in self.space.distributions:
            if f" {setting}=" in message:
                return setting
        return None

    def open_study(self) -> Study:
        """Return the folder's study, or a new one.

        Raises:
            UserError: the study is another search's, or has trials and sweep.resume is not set.
        """
        study = self._load_study()
        if not self.config.sweep.resume and study.trials:
            if any(trial.state.is_finished() for trial in study.trials):
                raise UserError(
                    f"{self.folder} holds a search already. "
                    f"{self.how_to_resume()}, or choose another folder"
                )
            # The study is of a command that ended before its first trial did.
            (self.folder / STUDY).unlink()
            study = self._load_study()
        record = self.space.record()
        known = study.user_attrs.get("space", record)  # a new study has none
        for key, value in record.items():
            if value != known[key]:
                raise UserError(
                    f"{self.folder}: its search was another: {key} was {known[key]}, is {value}. "
                    "Give the same settings, or another hydra.sweep.dir"
                )
        study.set_user_attr("space", record)
        return study

    def _load_study(self) -> Study:
        optuna = import_optuna()
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        self.folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(self.folder / STUDY)))
        return optuna.create_study(
            storage=storage, study_name="tune", direction="maximize", load_if_exists=True
        )

    def next_unfinished(self, study: Study, unfinished: list[FrozenTrial]) -> FrozenTrial | None:
        """Return the next trial that an earlier command began, or None when there is none left.

        A trial whose command ended while it was drawn lacks settings, and has failed.
        """
        while unfinished:
            trial = unfinished.pop(0)
            if trial.params.keys() == self.space.distributions.keys():
                return trial
            study.tell(trial.number, state=import_optuna().trial.TrialState.FAIL)
        return None

    def draw(self, study: Study, n_startup_trials: int, seed: int) -> FrozenTrial:
        """Return a new trial.

        It depends on the trials before it and on `seed` alone, so that a search that was stopped
        goes on as it would have.
        """
        optuna = import_optuna()
        # Made anew for each trial: a resume could not repeat the draws of one that went on.
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=n_startup_trials,
            multivariate=True,
            constant_liar=True,  # keeps the trials of a batch apart
            seed=seed + len(study.trials),
        )
        number = study.ask(self.space.distributions).number
        return study.trials[number]

    def run_trials(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        """Run trials and record their scores in the study.

        A trial fails where one of its runs failed, or its score is not a number.
        """
        for trial in trials:
            log.info("trial %d: %s", trial.number, _format_settings(trial.params))
        for group in _consecutive(trials):
            jobs = []
            for trial in group:
                jobs += self.space.overrides(trial.params)
            first = group[0].number * self.space.runs
            results = self.launcher.launch(jobs, first, resume=True)  # some may be begun already
            for index, trial in enumerate(group):
                start = index * self.space.runs
                self._record_score(study, trial, results[start : start + self.space.runs])
        if _scored(study):
            best = study.best_trial
            log.info("best so far: %.4f by %s", best.value, _format_settings(best.params))
            self.write_best(study)

    @staticmethod
    def _record_score(study: Study, trial: FrozenTrial, results: Sequence[Any]) -> None:
        score = _mean_score(results)
        if score is None:
            study.tell(trial.number, state=import_optuna().trial.TrialState.FAIL)
            log.info("trial %d has no score", trial.number)
        else:
            study.tell(trial.number, score)

    def write_best(self, study: Study) -> None:
        """Write best.json: the best trial, its settings, and the command that runs them."""
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
        """Return the command line that runs these settings alone."""
        words = command_to_print()
        fixed = without_housekeeping(self.space.fixed)
        # That experiment would search again.
        words += [override for override in fixed if override != "experiment=tune"]
        words += [f"{name}={value}" for name, value in parameters.items()]
        if any(word.startswith("experiment=") for word in words):
            words.append("hydra.mode=RUN")  # the experiment may sweep by itself
        return shlex.join(words)

    def report(self, study: Study) -> None:
        """Log what was best. Raises `UserError` where nothing has a score."""
        scored = _scored(study)
        if not scored:
            raise UserError(
                f"none of {len(study.trials)} trials has a score: "
                f"{self.folder}/*/error.txt say why. {self.how_to_resume()}"
            )
        failed = sum(trial.state.name == "FAIL" for trial in study.trials)
        failures = f" ({failed} failed)" if failed else ""
        best = study.best_trial
        log.info(
            f"best of {len(scored)}{failures}: {best.value:.4f} by trial {best.number}; "
            f"to run it: {self.command(best.params)}\n"
            f"written: {self.folder / BEST}; all of them: "
            f"{program_to_print()} report {shlex.quote(str(self.folder))}"
        )

    def how_to_resume(self) -> str:
        """Return a sentence that names the command by which the search goes on."""
        return f"Go on: {resume_hint(self.folder)}"


def _consecutive(trials: Sequence[FrozenTrial]) -> list[list[FrozenTrial]]:
    """Group trials whose numbers follow one another: launchers number a batch's points in a row."""
    groups: list[list[FrozenTrial]] = []
    for trial in trials:
        if groups and groups[-1][-1].number + 1 == trial.number:
            groups[-1].append(trial)
        else:
            groups.append([trial])
    return groups


def _scored(study: Study) -> list[FrozenTrial]:
    """Return the trials that have a score."""
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def _mean_score(results: Sequence[Any]) -> float | None:
    """Return the mean of the runs' scores, or None where a run failed or the mean is no number."""
    from hydra.core.utils import JobStatus

    total = 0.0
    for result in results:
        if result.status != JobStatus.COMPLETED:
            return None
        total += float(result.return_value)
    mean = total / len(results)
    return mean if math.isfinite(mean) else None


def _format_settings(parameters: dict[str, Any]) -> str:
    """Return settings as overrides, for people: numbers are rounded."""
    words = []
    for name, value in parameters.items():
        rounded = f"{value:.3g}" if isinstance(value, float) else value
        words.append(f"{name}={rounded}")
    return " ".join(words)
