"""Reading any PEFT LoRA adapter and writing one with other ranks, against PEFT itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dynarank.adapters.compress import compress
from dynarank.adapters.lora_files import read_lora, write_lora
from dynarank.errors import UserError


class Small(nn.Module):
    """Two blocks of two linear layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(8, 12), "down": nn.Linear(12, 8)}) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](x)))
        return self.head(x)


def base_model() -> Small:
    torch.manual_seed(0)
    return Small()


def saved_adapter(folder: Path, **settings: Any) -> Any:
    """Save a PEFT adapter with random factors; return the model that it belongs to."""
    config = peft.LoraConfig(target_modules=["up", "down"], **settings)
    model = peft.get_peft_model(base_model(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(str(folder))
    return model.eval()


def loaded(folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(base_model(), str(folder)).eval()


PATTERNS = {"rank_pattern": {"blocks.1.up": 2, "down": 3}, "alpha_pattern": {"down": 5}}


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 16, "use_rslora": True},
        {"r": 4, "lora_alpha": 6, **PATTERNS},
        {"r": 4, "lora_alpha": 6, "modules_to_save": ["head"]},
    ],
)
def test_written_whole_it_gives_the_same_outputs(settings: dict[str, Any], tmp_path: Path) -> None:
    model = saved_adapter(tmp_path / "a", **settings)
    adapter = read_lora(tmp_path / "a")
    write_lora(adapter, compress(adapter.factors, energy=1.0).factors, tmp_path / "b")
    x = torch.randn(5, 8)
    torch.testing.assert_close(loaded(tmp_path / "b")(x), model(x), atol=1e-5, rtol=1e-5)


def test_smaller_it_is_the_adapter_of_the_truncated_updates(tmp_path: Path) -> None:
    saved_adapter(tmp_path / "a", r=4, lora_alpha=6, **PATTERNS)
    adapter = read_lora(tmp_path / "a")
    smaller = compress(adapter.factors, target=1.25)
    ranks = write_lora(adapter, smaller.factors, tmp_path / "b")
    assert sum(ranks.values()) == 5
    merged = loaded(tmp_path / "b").merge_and_unload()
    for name, (lora_A, lora_B) in smaller.factors.items():
        expected = base_model().get_submodule(name).weight + lora_B @ lora_A
        torch.testing.assert_close(
            merged.get_submodule(name).weight, expected, atol=1e-5, rtol=1e-5
        )


def test_other_files_and_the_numbers_type_stay(tmp_path: Path) -> None:
    saved_adapter(tmp_path / "a", r=4, lora_alpha=6)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    narrow = {key: value.bfloat16() for key, value in load_file(weights).items()}
    save_file(narrow, weights)
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    adapter = read_lora(tmp_path / "a")
    write_lora(adapter, compress(adapter.factors, target=2).factors, tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "{}"
    written = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


def change_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_config(peft_type="IA3"), "peft_type = 'IA3'"),
        (change_config(use_dora=True), "use_dora"),
        (change_config(init_lora_weights="pissa_niter_4"), "changed the base weights"),
        (change_config(init_lora_weights="lora_ga"), "changed the base weights"),
        (change_config(target_parameters=["experts.w"]), "only the factors of linear layers are"),
        (change_config(use_bdlora={"nblocks": 2}), "only the factors of linear layers are read"),
        (change_config(lora_alpha="high"), "lora_alpha = 'high'"),
        (change_config(alpha_pattern={"(a+)+b": 3}), "could take for ever"),
        (change_config(alpha_pattern={".*.*.*.*x": 3}), "could take for ever"),
        (change_config(alpha_pattern={"[": 3}), "is not valid"),
        (change_config(alpha_pattern=["query"]), "must be a map of names to numbers"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "adapter_model.safetensors").write_text("x"), "cannot be read"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("[]"),
            "must hold a JSON object",
        ),
    ],
)
def test_what_cannot_be_read_is_named(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    saved_adapter(tmp_path, r=2, lora_alpha=2)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        read_lora(tmp_path)


def test_a_layer_without_components_has_no_scale_to_fail(tmp_path: Path) -> None:
    saved_adapter(tmp_path, r=2, lora_alpha=2, use_rslora=True)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key_A = next(key for key in tensors if "lora_A" in key)
    key_B = key_A.replace("lora_A", "lora_B")
    tensors[key_A], tensors[key_B] = tensors[key_A][:0], tensors[key_B][:, :0].contiguous()
    save_file(tensors, path)
    ranks = [len(lora_A) for lora_A, _ in read_lora(tmp_path).factors.values()]
    assert sorted(ranks)[:2] == [0, 2]


def test_a_layer_without_components_is_not_adapted_for_the_end_of_its_name(tmp_path: Path) -> None:
    source = tmp_path / "a"
    saved_adapter(source, r=2)
    adapter = read_lora(source)
    factors = {"up": adapter.factors["blocks.0.up"]}
    factors["blocks.0.up"] = (torch.zeros(0, 8), torch.zeros(12, 0))
    write_lora(adapter, factors, tmp_path / "b", form="peft")
    config = json.loads((tmp_path / "b/adapter_config.json").read_text())
    assert config["target_modules"] == ["up"]
    assert config["exclude_modules"] == ["blocks.0.up"]


def test_no_layer_left_is_refused(tmp_path: Path) -> None:
    saved_adapter(tmp_path / "a", r=2, lora_alpha=2)
    adapter = read_lora(tmp_path / "a")
    nothing = {name: (A[:0], B[:, :0]) for name, (A, B) in adapter.factors.items()}
    with pytest.raises(UserError, match="every layer would have rank 0"):
        write_lora(adapter, nothing, tmp_path / "b")
    assert not (tmp_path / "b").exists()
