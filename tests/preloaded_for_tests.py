"""What every forked run of the tests needs, made once: its server imports this module and no more.

A run on a tiny model would spend a third of its time on this.
"""

import gc
import tempfile
from pathlib import Path

import killing  # noqa: F401
import torchmetrics  # noqa: F401
import transformers.models.roberta.modeling_roberta  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import dynarank.sweeps.preloaded_modules  # noqa: F401
from dynarank.config.schema import register_schemas
from dynarank.training.rank_map import save_rank_map

register_schemas()
# transformers compiles a thousand patterns for its first model, and keeps them.
get_checkpoint_conversion_mapping("roberta")
# The first picture imports what fonts need, and reads them.
with tempfile.TemporaryDirectory() as folder:
    save_rank_map(Path(folder), {"layer.0.a": 1}, largest=1)
gc.collect()
gc.freeze()  # no run's collections of garbage look through all of this again
