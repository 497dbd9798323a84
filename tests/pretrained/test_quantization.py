from __future__ import annotations

import torch
from tiny import tiny_roberta
from torch import nn
from transformers import AutoModel

from dynarank.pretrained.quantization import is_quantized


def test_plain_weights_of_any_width_are_not_quantized() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert not is_quantized(nn.Linear(3, 3, dtype=dtype))
    assert not is_quantized(AutoModel.from_config(tiny_roberta()))


def test_a_model_is_quantized_where_its_configuration_says_so() -> None:
    model = AutoModel.from_config(tiny_roberta())
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert is_quantized(model)


def test_integers_eight_bit_floats_and_marked_weights_are_quantized() -> None:
    layer = nn.Linear(3, 3)
    for narrow in (torch.int8, torch.uint8, torch.float8_e4m3fn):
        layer.weight = nn.Parameter(torch.zeros(3, 3).to(narrow), requires_grad=False)
        assert is_quantized(layer)
    layer.weight = nn.Parameter(torch.zeros(3, 3))
    layer.weight.quant_state = object()  # type: ignore[attr-defined]
    assert is_quantized(layer)
