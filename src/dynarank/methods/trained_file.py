"""Methods that PEFT has no form for: what they trained is written into one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from dynarank.methods.base import TRAINED, ConfigT, Method


class TrainedFileMethod(Method[ConfigT]):
    """A method whose export is a file of the trained parameters."""

    def export(self, folder: Path, base: str, task_type: str | None) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        trained = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        save_file(trained, folder / TRAINED, metadata={"format": "pt"})

    def restore(
        self, model: nn.Module, head: Sequence[str], trained: Mapping[str, Tensor]
    ) -> nn.Module:
        self.take_sizes(model, head, trained)
        adapted = self.adapt(model, targets=(), head=head)
        wanted = {name for name, p in adapted.named_parameters() if p.requires_grad}
        for name in sorted(wanted ^ trained.keys()):
            problem = "lacks" if name in wanted else "holds, but the model does not train,"
            raise ValueError(f"{TRAINED} {problem} {name}")
        # The file holds no base weights. What it must hold was compared above.
        adapted.load_state_dict(trained, strict=False)
        return adapted

    def take_sizes(
        self, model: nn.Module, head: Sequence[str], trained: Mapping[str, Tensor]
    ) -> None:
        """Take the sizes of what `change` puts in from trained weights, not from the budget.

        Raises:
            ValueError: the weights have no such sizes.
        """
