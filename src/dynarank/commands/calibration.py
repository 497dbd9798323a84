"""What an adapter's layers see of a sample of rows, for compressing it by its outputs' error.

Legend: A (k, d_in) of a layer, its inputs x (d_in), h = A x (k), G (k, k) the mean of h h^T.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynarank.errors import UserError

if TYPE_CHECKING:
    from dynarank.adapters.folding import Factors
    from dynarank.pretrained.hub import HubConfig

ROWS = 256
"""Rows of the sample that are looked at."""


class Moments:
    """The running mean of h h^T of each layer, over all tokens that it sees.

    Args:
        factors: A (k, d_in) and B (d_out, k) by module name.
    """

    def __init__(self, factors: Mapping[str, Factors]) -> None:
        self._factors = factors
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def see(self, name: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        """Take in what reaches a layer's A: x, (..., d_in). It is a forward pre-hook."""
        lora_A = self._factors[name][0].double()
        x = inputs[0].detach().cpu().double().flatten(0, -2)  # (tokens, d_in)
        h = x @ lora_A.T  # (tokens, k)
        if name not in self._sums:
            self._sums[name] = torch.zeros(len(lora_A), len(lora_A), dtype=torch.float64)
            self._tokens[name] = 0
        self._sums[name] += h.T @ h
        self._tokens[name] += len(h)

    def means(self) -> dict[str, Tensor]:
        """Return G (k, k) by module name. Raises `UserError` where a layer saw nothing."""
        for name in self._factors:
            if name not in self._sums:
                raise UserError(f"--calibrate: no row of the sample reached {name}")
        return {name: total / self._tokens[name] for name, total in self._sums.items()}


def measure_moments(
    adapter: Path,
    factors: Mapping[str, Factors],
    rows_file: str,
    hub: HubConfig,
    base: str | None = None,
) -> dict[str, Tensor]:
    """Return G (k, k) of each layer over the first rows of a file, run through the adapted model.

    Rows go one at a time, so that no layer sees padding. They are read before a model is loaded.

    Args:
        adapter: the folder of a run, or of an adapter with the record of its run.
        factors: A (k, d_in) and B (d_out, k) by module name.
        rows_file: rows with the columns of the run's task; labels are not needed.
        base: the base model's hub id or folder, where it has moved.

    Raises:
        UserError: the folder holds no such record, or a row is broken.
    """
    from dynarank.commands.run_options import settings_as_options
    from dynarank.runs.predictor import Predictor, load_run, load_task
    from dynarank.tasks.sources import used_columns

    task = load_task(adapter, over_budget=True)
    with settings_as_options(column=r"renaming it in the file"):
        rows = task.read_file("--calibrate", rows_file, used_columns(task.config))
        sample = rows.select(range(min(ROWS, len(rows))))
        checked = task.check(sample, f"--calibrate {rows_file}", labelled=False)
    loaded = load_run(adapter, hub, base, over_budget=True, task=task)
    moments = Moments(factors)
    for name, module in loaded.model.named_modules():
        # PEFT's names begin so, and `factors` has the plain model's.
        key = name.removeprefix("base_model.model.")
        if key in factors and hasattr(module, "lora_A"):
            (lora_A,) = module.lora_A.values()  # PEFT has one for each adapter
            lora_A.register_forward_pre_hook(partial(moments.see, key))
    predictor = Predictor(task, loaded.model.eval(), loaded.tokenizer)
    predictor(checked, batch_size=1)
    return moments.means()
