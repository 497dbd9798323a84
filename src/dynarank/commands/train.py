"""Fine-tune a model: compose a run's configuration, check it, and train.

dynarank train task=cola budget=r8
dynarank train -m dem.eta=0,0.1 budget.init=2,4,8
dynarank train experiment=quickstart
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynarank.commands.train_help import help_text
from dynarank.config.folders import conf_folder
from dynarank.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

BEGAN = time.time()
"""When this process began, as file systems count time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, on the process's own arguments unless others are given.

    A user's mistake ends the process with code 2 and one message.
    """
    if arguments is not None:
        sys.argv[1:] = arguments  # where Hydra reads them
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(sys.argv[1:]))
        return

    import hydra

    from dynarank.commands.user_errors import user_errors
    from dynarank.config.command_line import expand_arguments
    from dynarank.config.schema import register_schemas

    register_schemas()
    start = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="train")
    with user_errors(conf_folder()):
        sys.argv[1:] = expand_arguments(sys.argv[1:])
        start(train)()


def train(composed: DictConfig) -> float:
    """Check the configuration, run it, and return the selected score, which sweepers read."""
    from dynarank.config.named_places import check_named_places
    from dynarank.config.schema import to_config
    from dynarank.runs.refused_folder import remove_refused_folder

    folder = Path(str(composed.output_dir))
    try:
        config = to_config(composed)
        check_named_places(config)
        # Torch and Lightning take seconds to import. A mistake in the configuration need not wait.
        from dynarank.runs.run import run

        return run(config).score
    except UserError:
        remove_refused_folder(folder, since=BEGAN)
        raise


if __name__ == "__main__":
    # A sweep's runs start here (`command_to_start`).
    main()
