"""How a command ends when something is wrong: with one clear error, never a bare stack trace."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dynarank.config.command_line import command_to_resume
from dynarank.config.guard import guarded, refuse_pickle
from dynarank.config.hints import hints, quoting_hint, refuse_mistakes, variant_hint
from dynarank.config.redaction import redact
from dynarank.errors import Interrupted, UserError

SHORT = "DYNARANK_SHORT_ERRORS"
"""Tells a sweep's processes that HYDRA_FULL_ERROR was set here, not by the user."""
INTERNAL = ("object_type=", "reference_type=", "full_key:", "To append to your config use")
"""How lines of messages begin that name OmegaConf's own classes, or advise what cannot help."""


@contextmanager
def user_errors(conf: Path) -> Iterator[None]:
    """Turn users' mistakes into one message and exit code 2; keep the trace of everything else.

    Hydra's own handler would cut every trace short, our bugs' too, so it is switched off, and its
    messages are printed here, with the nearest known names. HYDRA_FULL_ERROR=1, set by the user,
    shows all traces.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1" and SHORT not in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not full:
        os.environ[SHORT] = "1"
    try:
        refuse_pickle(sys.argv[1:])
        refuse_mistakes(sys.argv[1:], conf)
        # A sweep's points are checked together once all are composed (`point_checks`).
        is_sweep = bool({"-m", "--multirun"} & set(sys.argv[1:]))
        with guarded(check_values=not is_sweep):
            yield
    except KeyboardInterrupt as error:
        print(f"stopped. {error}".strip(), file=sys.stderr)
        sys.exit(getattr(error, "code", 130))  # a sweep that had SIGTERM has a code of its own
    except Interrupted as error:
        # All processes of a run end here, and one of them speaks.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            again = command_to_resume(sys.argv[1:], error.folder)
            print(f"error: {error}. Go on with:\n  {again}", file=sys.stderr)
        sys.exit(error.code)
    except Exception as error:
        message = user_message(error, sys.argv[1:], conf)
        if message is None or full:
            raise
        print(f"error: {redact(message)}", file=sys.stderr)
        sys.exit(2)
    finally:
        if not full:
            os.environ.pop("HYDRA_FULL_ERROR", None)
            os.environ.pop(SHORT, None)


def user_message(error: Exception, arguments: Sequence[str], conf: Path) -> str | None:
    """Return what to print for an error that a user can mend, or None for a bug."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, UserError):
        return str(error)
    full_disk = find_full_disk(error)
    if full_disk is not None:
        where = f" ({full_disk.filename})" if full_disk.filename else ""
        return (
            f"{full_disk.strerror}{where}. Checkpoints that were written are whole: make room, "
            "and go on with resume=auto"
        )
    if isinstance(error, YAMLError):
        return f"a configuration file is no YAML: {error}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        if isinstance(error, OverrideParseException):
            return quoting_hint(error.override, str(error).splitlines()[0])
        known = variant_hint(str(error))
        return known or "\n  ".join([*hints(arguments, conf), *_hydra_lines(error)])
    if isinstance(error, OSError) and error.filename is not None and _is_raised_by_hydra(error):
        return (
            f"the output folder {error.filename} cannot be written ({error.strerror}). "
            "Choose another: hydra.run.dir=DIR"
        )
    return None


def _hydra_lines(error: Exception) -> list[str]:
    """Return the lines of a message of Hydra's that say something to a user."""
    from omegaconf.errors import OmegaConfBaseException

    # Hydra's own message leaves out what OmegaConf found.
    cause = error.__cause__
    reason = f" {cause}" if isinstance(cause, OmegaConfBaseException) else ""
    lines = [line.strip() for line in f"{error}{reason}".splitlines()]
    return [line for line in lines if line and not line.startswith(INTERNAL)]


def find_full_disk(error: BaseException | None) -> OSError | None:
    """Return the full disk that an error comes from, if any."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        # Libraries wrap it in errors of their own, or fail again while they clean up after it.
        error = error.__cause__ or error.__context__
    return None


def _is_raised_by_hydra(error: Exception) -> bool:
    """Return whether Hydra raised it while it made the run's folder, rather than our code."""
    trace, last = error.__traceback__, ""
    # The innermost frames are Python's own, which make the folder: the last of Hydra's or of ours
    # says whose call it was.
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith(("hydra", "dynarank")):
            last = module
        trace = trace.tb_next
    return last.startswith("hydra")
