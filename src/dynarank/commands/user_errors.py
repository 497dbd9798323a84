"""What a command line says to its user when something is wrong: one clear error, never a bare stack trace."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynarank.config.guard import guarded, refuse_pickle
from dynarank.config.redaction import redact
from dynarank.errors import Interrupted, UserError, nearest

SHORT = "DYNARANK_SHORT_ERRORS"
"""Tells a sweep's processes that HYDRA_FULL_ERROR was set here, not by the user."""


@contextmanager
def user_errors(conf: Path) -> Iterator[None]:
    """Turn users' mistakes into one message and exit code 2; let everything else through with its trace.

    Hydra's own handler would cut every trace short, our bugs' too, so it is switched off, and its messages are
    printed here, with the nearest known names. HYDRA_FULL_ERROR=1, set by the user, shows all traces.
    """
    full = os.environ.get("HYDRA_FULL_ERROR") == "1" and SHORT not in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not full:
        os.environ[SHORT] = "1"
    try:
        refuse_pickle(sys.argv[1:])
        with guarded():
            yield
    except KeyboardInterrupt as error:
        print(f"stopped. {error}".strip(), file=sys.stderr)
        sys.exit(getattr(error, "code", 130))  # a sweep that had SIGTERM has a code of its own
    except Interrupted as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(
                f"error: {error}. Go on with:\n  {go_on(sys.argv, error.folder)}", file=sys.stderr
            )
        sys.exit(error.code)
    except Exception as error:
        message = _message(error, conf)
        if message is None or full:
            raise
        print(f"error: {redact(message)}", file=sys.stderr)
        sys.exit(2)
    finally:
        if not full:
            os.environ.pop("HYDRA_FULL_ERROR", None)
            os.environ.pop(SHORT, None)


def expand_resume(arguments: list[str]) -> list[str]:
    """Spell `resume=X` out as `resume.path=X`; where X is a run's folder, or in one, the run goes on there.

    Raises:
        UserError: `resume=auto` without a folder, in which nothing could ever be found.
    """
    expanded = [
        f"resume.path={one.partition('=')[2]}" if one.startswith("resume=") else one
        for one in arguments
    ]
    named = [
        one.partition("=")[2].strip("'\"") for one in expanded if one.startswith("resume.path=")
    ]
    placed = any(
        one.startswith(("hydra.run.dir=", "hydra.sweep.dir=", "experiment=")) for one in expanded
    )
    if not named or placed or {"-m", "--multirun"} & set(expanded):
        return expanded
    if named[-1] == "auto":
        raise UserError(
            "resume=auto goes on in the run's folder, and by default that is a new one: name it, hydra.run.dir=DIR"
        )
    path = Path(named[-1])
    folder = (
        path.parent.parent if path.suffix == ".ckpt" and path.parent.name == "checkpoints" else path
    )
    if (folder / "checkpoints").is_dir():
        expanded.append(f"hydra.run.dir={_quoted(folder)}")
    return expanded


def _quoted(folder: Path) -> str:
    """A path as Hydra's grammar takes it."""
    inside = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return str(folder) if re.fullmatch(r"[\w./-]+", str(folder)) else f"'{inside}'"


def go_on(command: list[str], folder: Path | None) -> str:
    """The command line that continues what `command` began in `folder`."""
    kept = [
        one
        for one in command[1:]
        if not one.startswith(("resume=", "resume.path=", "hydra.run.dir="))
    ]
    where = [f"hydra.run.dir={_quoted(folder)}"] if folder else []
    return shlex.join(["python", command[0], *kept, *where, "resume=auto"])


def _message(error: Exception, conf: Path) -> str | None:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, UserError):
        return str(error)
    if (full := _full_disk(error)) is not None:
        where = f" ({full.filename})" if full.filename else ""
        return f"{full.strerror}{where}. Checkpoints that were written are whole: make room, and go on with resume=auto"
    if isinstance(error, YAMLError):
        return f"a configuration file is no YAML: {error}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        cause = error.__cause__
        reason = f" {cause}" if isinstance(cause, OmegaConfBaseException) else ""
        lines = [line.strip() for line in f"{error}{reason}".splitlines()]
        internal = ("object_type=", "reference_type=", "full_key:")
        return "\n  ".join(
            [
                *(line for line in lines if line and not line.startswith(internal)),
                *_hints(sys.argv[1:], conf),
            ]
        )
    if isinstance(error, OSError) and error.filename is not None and _in_hydra(error):
        return f"the output folder {error.filename} cannot be written ({error.strerror}). Choose another: hydra.run.dir=DIR"
    return None


def _full_disk(error: BaseException | None) -> OSError | None:
    """The full disk that an error comes from, if any."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None


def _in_hydra(error: Exception) -> bool:
    """Whether Hydra raised it while it made the run's folder, rather than our code."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        last = module if module.startswith(("hydra", "dynarank")) else last
        trace = trace.tb_next
    return last.startswith("hydra")


def _hints(overrides: list[str], conf: Path) -> Iterator[str]:
    """For each override whose name or group value is unknown, the nearest known ones."""
    from dynarank.config.schema import setting_names

    groups = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in conf.iterdir()
        if folder.is_dir()
    }
    settings = setting_names()
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        if name.startswith(("hydra", "-")) or not value:
            continue
        if name in groups:
            unknown = [v for v in value.split(",") if v not in groups[name]]
            yield from (f"{name}={v}: {nearest(v, groups[name])}" for v in unknown)
        elif name not in settings:
            yield f"{name}: {nearest(name, [*settings, *groups])}"
