"""Fine-tune a model with dynamic rank distribution.

python train.py task=cola budget=r8
python train.py -m dem.eta=0,0.1 budget.init=2,4,8
python train.py experiment=quickstart
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from dynarank.commands.user_errors import expand_resume, user_errors
from dynarank.config.schema import register_schemas, to_config

CONF = Path(__file__).parent / "conf"
register_schemas()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(composed: DictConfig) -> float:
    """Check the configuration, run it, and return the selected score (for sweepers)."""
    config = to_config(composed)
    from dynarank.runs.run import (
        run,  # imports torch and Lightning: seconds that a mistake need not wait for
    )

    return run(config).score


if __name__ == "__main__":
    with user_errors(CONF):
        sys.argv[1:] = expand_resume(sys.argv[1:])
        main()
