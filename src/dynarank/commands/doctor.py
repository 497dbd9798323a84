"""Check whether this machine can train, and what can be trained on it now, on one screen.

dynarank doctor           # exit code 1 if something will end a run
dynarank doctor --json
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from dynarank.commands import machine_checks, source_checks
from dynarank.commands.checks import FAIL, OK, Check, install_command
from dynarank.commands.command_line import CommandParser
from dynarank.commands.source_checks import FIRST_TASK, QUICK_START
from dynarank.commands.versions import known_bad
from dynarank.config.redaction import redact
from dynarank.errors import kind_and_first_line

SECONDS = 30.0
"""For a check, after which it counts as failed: a dead network drive, or a driver that hangs."""

CheckFunction = Callable[[], Iterator[Check]]

CHECKS: tuple[CheckFunction, ...] = (
    machine_checks.python,
    machine_checks.system,
    source_checks.packages,
    machine_checks.devices,
    machine_checks.memory,
    machine_checks.precisions,
    source_checks.sources,
    source_checks.tracker,
    machine_checks.disk,
    machine_checks.threads,
    machine_checks.shared_memory,
    machine_checks.ignored,
)
WITHOUT_IMPORTS: tuple[CheckFunction, ...] = (machine_checks.python, source_checks.packages)
"""Checks that import none of the packages they are about."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the findings. It exits with 1 if something will end a run."""
    parser = CommandParser("doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args(arguments)
    findings = examine()
    failed = any(check.status == FAIL for check in findings)
    if options.json:
        content = {
            "ok": not failed,
            "conclusion": conclusion(findings),
            "checks": [asdict(check) for check in findings],
        }
        print(json.dumps(content, indent=2))
    else:
        print(report(findings))
    sys.exit(int(failed))


def examine(checks: Sequence[CheckFunction] = CHECKS, seconds: float = SECONDS) -> list[Check]:
    """Return the findings of all checks, without secrets.

    A check that raises or takes too long is a finding of its own. Where a release that is known to
    be bad is installed, nothing is imported.
    """
    if known_bad():
        checks = WITHOUT_IMPORTS
    findings = []
    for check in checks:
        findings += _within(seconds, check)
    for finding in findings:
        finding.found = redact(finding.found)
        finding.remedy = redact(finding.remedy)
    return findings


def _within(seconds: float, check: CheckFunction) -> list[Check]:
    """Return what a check finds in the given time, and a failure where it does not end well."""
    findings: list[Check] = []
    name = check.__name__.replace("_", " ")

    def work() -> None:
        try:
            findings.extend(check())
        except ImportError as error:
            reason = f"not looked at, for {error.name or error} is missing"
            findings.append(Check(name, FAIL, reason, install_command()))
        except Exception as error:  # whatever broke here would break a run too
            findings.append(Check(name, FAIL, kind_and_first_line(error)))

    # A daemon thread that hangs does not keep the process alive.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [*findings, Check(name, FAIL, f"no answer within {seconds:g} s")]
    return findings


def report(findings: Sequence[Check]) -> str:
    """Return a line for each finding, its remedy below, and at the end what can be trained."""
    lines = []
    for check in findings:
        lines.append(f"{check.status:<5} {check.name:<11} {check.found}")
        if check.remedy:
            lines.append(f"{'':<17} -> {check.remedy}")
    return "\n".join([*lines, conclusion(findings)])


def conclusion(findings: Sequence[Check]) -> str:
    """Return what this machine can do now, in one sentence or two."""
    failed = sum(check.status == FAIL for check in findings)
    if failed == 1:
        return "1 check failed, and will end a run. Mend that first."
    if failed:
        return f"{failed} checks failed, and will end a run. Mend these first."
    status = {check.name: check.status for check in findings}
    quick_start = status.get(QUICK_START) == OK
    first_task = status.get(FIRST_TASK) == OK
    own = "models and files of your own (model.path=DIR, task.train_file=FILE)"
    if quick_start and first_task:
        commands = "dynarank train experiment=quickstart and dynarank train task=cola"
        return f"Ready: {commands} will run here."
    if first_task:
        return "Ready: dynarank train task=cola will run here. The quick start will not."
    if status.get("local hub") == OK:
        quick = "the quick start, " if quick_start else ""
        return (
            f"Without the hub, {quick}what lies under DYNARANK_HUB, and {own} can be trained here."
        )
    if quick_start:
        return (
            "No hub, no local model: only the quick starts (dynarank train experiment=quickstart) "
            f"and {own} will run here."
        )
    return f"Only {own} can be trained here."
