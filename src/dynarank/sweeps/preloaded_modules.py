"""What every run imports, for a server that forks runs: see `preloaded`. Nothing else is here."""

import datasets  # noqa: F401
import lightning.pytorch  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import dynarank.runs.run  # noqa: F401
