"""What every run imports, for a server that forks runs: see `preloaded`. Nothing else is here."""

import datasets  # noqa: F401
import hydra.compose
import hydra.core.plugins
import hydra.utils  # noqa: F401
import lightning.pytorch  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.backends.backend_pdf
import matplotlib.backends.backend_svg
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import scipy.io  # noqa: F401
import torch  # noqa: F401

# Its parts are imported when they are first asked for, so those that every run asks for are named.
import transformers
import transformers.data.data_collator
import transformers.optimization  # noqa: F401

import dynarank.config.guard
import dynarank.config.named_places
import dynarank.methods.dora
import dynarank.runs.run
import dynarank.tasks.text_classification  # noqa: F401
