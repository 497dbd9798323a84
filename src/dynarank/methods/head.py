"""The task head alone on the frozen model: what any adapter has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from dynarank.adapters.inject import mark_trainable
from dynarank.methods.base import Method
from dynarank.methods.config import MethodConfig


class HeadOnly(Method[MethodConfig]):
    """No adapter. Exports `head.safetensors`, keyed by the model's own parameter names."""

    def adapt(self, model: nn.Module, targets: Sequence[str], head: Sequence[str]) -> None:
        if not head:
            raise ValueError("the model has no task head, so that method=head would train nothing")
        mark_trainable(model, head)

    def ranks(self) -> dict[str, int]:
        return {}

    def adapter_parameters(self) -> int:
        return 0

    def export(self, model: nn.Module, folder: Path, base: str, task_type: str, head: Sequence[str]) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {
            key: value.detach().cpu().contiguous()
            for module in head
            for key, value in model.get_submodule(module).state_dict(prefix=f"{module}.").items()
        }
        save_file(state, folder / "head.safetensors", metadata={"format": "pt"})
