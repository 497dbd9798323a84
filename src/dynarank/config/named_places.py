"""Files and folders that a configuration names: are they there?

What reads them asks again. This asks first, before torch and Lightning are imported, so that a
mistyped path is answered at once.
"""

from __future__ import annotations

from pathlib import Path

from dynarank.config.schema import TrainConfig
from dynarank.errors import UserError
from dynarank.pretrained.hub import PACKAGE, check_present
from dynarank.settings import expand_user
from dynarank.tasks.files import no_such_file

TASK_FILES = ("train_file", "validation_file", "test_file")


def check_named_places(config: TrainConfig) -> None:
    """Raise `UserError` for a named file or folder that can only be on this machine, and is not."""
    for setting in TASK_FILES:
        name = getattr(config.task, setting)
        # Some tasks take a folder of files.
        if name is not None and not Path(expand_user(name)).exists():
            raise no_such_file(f"task.{setting}", name)
    pattern = getattr(config.method, "rank_pattern_from", None)
    if pattern is not None and not Path(expand_user(pattern)).is_dir():
        raise UserError(
            f"method.rank_pattern_from = {pattern}: there is no such folder. Name that of a "
            "finished run, or of a PEFT LoRA adapter"
        )
    path, root = config.model.path, config.hub.root
    is_in_root = root is not None and (Path(expand_user(root)) / "models" / path).is_dir()
    if not path.startswith(PACKAGE) and not is_in_root:
        check_present("model.path", path)
