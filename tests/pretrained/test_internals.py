"""transformers still keeps, under names that are not public, what we rely on."""

from __future__ import annotations

from pathlib import Path

import peft
from tiny import tiny_bart, tiny_roberta, tiny_t5, write_model
from transformers import AutoModel, AutoModelForSequenceClassification

from dynarank.pretrained.internals import forget_quantizer, has_model_class, was_adapter


def test_an_auto_class_knows_its_configurations() -> None:
    assert has_model_class("AutoModelForSequenceClassification", tiny_roberta())
    assert has_model_class("AutoModelForSeq2SeqLM", tiny_bart())
    assert not has_model_class("AutoModelForSeq2SeqLM", tiny_roberta())
    assert not has_model_class("AutoModelForMaskedLM", tiny_t5())


def test_transformers_tells_an_adapter_that_it_followed(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", tiny_roberta())
    plain = AutoModelForSequenceClassification.from_pretrained(base)
    assert not was_adapter(plain)
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    peft.get_peft_model(plain, config).save_pretrained(str(tmp_path / "adapter"))
    followed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert was_adapter(followed)
    assert not was_adapter(AutoModel.from_config(tiny_roberta()))


def test_transformers_keeps_what_was_done_to_weights_at_loading(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", tiny_roberta())
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert hasattr(model, "_weight_conversions")
    model.config.quantization_config = {"quant_method": "torchao"}
    forget_quantizer(model)
    model.save_pretrained(tmp_path / "plain")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert getattr(again.config, "quantization_config", None) is None
    for name, weight in model.state_dict().items():
        assert weight.equal(again.state_dict()[name]), name
