"""transformers still keeps, under names that are not public, what we rely on."""

from __future__ import annotations

from pathlib import Path

import peft
from tiny import tiny_bart, tiny_roberta, tiny_t5, write_model
from transformers import AutoModel, AutoModelForSequenceClassification

from dynarank.pretrained.internals import has_model_class, was_adapter


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
