"""What methods without a PEFT format export comes back, in the sizes of the weights themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_roberta
from torch import nn
from transformers import AutoModelForSequenceClassification

from dynarank.allocation.config import BudgetConfig, DemConfig
from dynarank.methods import build_method
from dynarank.methods.base import TRAINED
from dynarank.methods.config import MethodConfig
from dynarank.methods.dora_config import DoRAConfig
from dynarank.pretrained.architectures import ARCHITECTURES

HEAD = ["classifier"]
HUGE = 10**12
"""A budget that no machine has the memory for."""


def roberta() -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(tiny_roberta()).eval()


def built(name: str, target: int = 4) -> Any:
    return build_method(MethodConfig(name=name), BudgetConfig(target=target), DemConfig())


def exported(name: str, folder: Path) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """An adapted model with trained values of its own, and what it exports."""
    method = built(name)
    model = method.adapt(roberta(), ARCHITECTURES["roberta"].targets, HEAD)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    method.export(folder, "base", "SEQ_CLS")
    return model, load_file(folder / TRAINED)


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "bitfit", "head"])
def test_the_restored_model_computes_the_same_whatever_budget_is_recorded(
    name: str, tmp_path: Path
) -> None:
    model, trained = exported(name, tmp_path)
    restored = built(name, target=HUGE).restore(roberta(), HEAD, trained)
    ids = torch.tensor([[1, 5, 6, 2]])
    with torch.no_grad():
        torch.testing.assert_close(restored(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "bitfit", "head"])
def test_weights_that_are_too_many_or_too_few_are_refused(name: str, tmp_path: Path) -> None:
    _, trained = exported(name, tmp_path)
    word_embeddings = {"roberta.embeddings.word_embeddings.weight": torch.zeros(32, 16)}
    with pytest.raises(ValueError, match=r"holds, but the model does not train, roberta\.emb"):
        built(name).restore(roberta(), HEAD, trained | word_embeddings)
    key = next(key for key in trained if "classifier" in key)
    with pytest.raises(ValueError, match=f"lacks {key}"):
        built(name).restore(roberta(), HEAD, {k: v for k, v in trained.items() if k != key})


def test_an_empty_matrix_gives_no_width(tmp_path: Path) -> None:
    _, trained = exported("houlsby", tmp_path)
    key = next(key for key in trained if key.endswith("down.weight"))
    with pytest.raises(ValueError, match="must be a matrix of 16 columns"):
        built("houlsby").restore(roberta(), HEAD, trained | {key: torch.empty(2**40, 0)})


@pytest.mark.parametrize("name", ["dora", "full"])
def test_a_method_with_another_export_restores_nothing_from_such_a_file(name: str) -> None:
    schema = DoRAConfig if name == "dora" else MethodConfig
    method = build_method(schema(name=name), BudgetConfig(target=HUGE), DemConfig())
    with pytest.raises(ValueError, match=f"method={name} exports no weights of that form"):
        method.restore(roberta(), HEAD, {})
