"""What a training step takes of memory, found by a step on tensors without content.

The model, its adapters and a batch of the longest rows are made as fake tensors, which have sizes
and no memory. One forward and one backward pass go over them, and every tensor that is made and
let go is counted: the peak of that count is what torch's allocator would hold. It is neither a
formula for some architectures nor a guess, but it knows nothing of what kernels take inside, nor
of what the allocator loses between tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dynarank.adapters import fast_path
from dynarank.adapters.inject import adapter_layers
from dynarank.errors import UserError, kind_and_first_line

if TYPE_CHECKING:
    from dynarank.config.schema import TrainConfig

FLOAT_BYTES = 4
ADAM_MOMENTS = 2
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in nf4: 4 bits, and a byte a block of 64, whose own scales are a float a 256."""
KEPT_BY_GLIBC = 1.7
"""What the memory of a batch grows to in a process on Linux, measured: glibc gives freed tensors of
some sizes not back to the system, and batches of other lengths do not fit into their places."""
LENGTHS = ("max_length", "max_source")
"""Settings of a task that bound the tokens of its inputs."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that training holds, by what holds them."""

    base: int
    """The frozen weights, and the buffers of the model."""
    trained: int
    """The adapters and the task head."""
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    activations: int
    """The peak of what a forward and a backward pass make beside these."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.trained + self.gradients + self.optimizer + self.activations

    @property
    def of_process(self) -> int:
        """What a process on Linux grows to by a run on the CPU, with what its allocator keeps."""
        return round(self.total + (KEPT_BY_GLIBC - 1) * self.activations)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while these are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def ignore(self, tensors: Iterator[Tensor]) -> None:
        """Leave tensors that are counted elsewhere out, and all views of them."""
        for tensor in tensors:
            # The storage's address, which its views share. torch has no public name for it.
            self._known.add(tensor.untyped_storage()._cdata)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        # torch keeps one Python object a storage, which ends with it.
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        # The next storage may lie at the same address.
        self._known.discard(key)
        self.live -= size


def estimate_memory(config: TrainConfig, model: nn.Module, adapted: nn.Module, task: Any) -> Memory:
    """Return what a training step of the longest rows takes.

    Args:
        config: of the run.
        model: the base model with its head, on the meta device.
        adapted: the same as the method adapted it: what is trained.
        task: of the run.

    Raises:
        UserError: the family is none of those whose batches are known, or the model's code cannot
            run on tensors without content.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    if config.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    # What trains is float32 in every precision.
    trained_bytes = sum(parameter.numel() for parameter in trained) * FLOAT_BYTES
    base_bytes = _base_bytes(adapted, config)
    with FakeTensorMode(allow_non_fake_inputs=True), _as_in_training(adapted):
        # Off the meta device. In this mode the new tensors are fake, and take no memory.
        adapted.to_empty(device="cpu")
        for layer in adapter_layers(adapted).values():
            # As if it had been read: a layer reads a changed mask, and fake tensors have no values.
            layer._mask_read, layer._mask_version = layer.mask, layer.mask._version
        batch = example_batch(config, model, task)
        try:
            activations = _pass_peak(adapted, batch, config.trainer.precision)
        except Exception as error:  # a model's own code, which looks at values
            raise UserError(
                f"--memory: {type(model).__name__} cannot run on tensors without content: "
                f"{kind_and_first_line(error)}"
            ) from error
    return Memory(
        base=base_bytes,
        trained=trained_bytes,
        gradients=trained_bytes,
        optimizer=ADAM_MOMENTS * trained_bytes,
        activations=activations,
    )


def _base_bytes(model: nn.Module, config: TrainConfig) -> int:
    """Return the bytes of what is frozen, in the type that it is loaded in."""
    width = getattr(torch, config.model.dtype).itemsize
    narrow = {"nf4": NF4_BYTES, "int8": 1.0}.get(config.model.quantization or "")
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        # The weights of the linear layers in the numbered blocks are quantized, and no others.
        is_quantized = narrow is not None and parameter.ndim == 2 and _is_in_block(name)
        total += parameter.numel() * (narrow if is_quantized and narrow else width)
    for buffer in model.buffers():
        total += buffer.nbytes
    return round(total)


def _is_in_block(name: str) -> bool:
    from dynarank.pretrained.quantization import NUMBERED

    return NUMBERED.search(name) is not None


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Take the adapters' fast form, as training does, though the tensors are not plain ones."""
    before = fast_path.fits
    fast_path.fits = lambda layer, x: torch.is_grad_enabled()
    model.train()
    try:
        yield
    finally:
        fast_path.fits = before


def _pass_peak(model: nn.Module, batch: dict[str, Tensor], precision: str) -> int:
    """Return the peak of the bytes that a forward and a backward pass make."""
    narrow = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    counter = LiveBytes()
    counter.ignore(iter([*model.parameters(), *model.buffers()]))
    with counter:
        autocast = nullcontext() if narrow is None else torch.autocast("cpu", narrow)
        with autocast:
            loss = model(**batch).loss
        loss.backward()
    # Every step but the first finds the gradients there, and `Memory` counts them apart.
    gradients = 0
    for parameter in model.parameters():
        if parameter.grad is not None:
            gradients += parameter.grad.nbytes
    return max(0, counter.peak - gradients)


def example_batch(config: TrainConfig, model: Any, task: Any) -> dict[str, Tensor]:
    """Return a batch of the longest rows that a task may have.

    Raises:
        UserError: the family's batches are not known here.
    """
    rows = config.batch_size
    if task.auto_class == "AutoModelForImageClassification":
        vision = getattr(model.config, "vision_config", model.config)
        size = vision.image_size
        height, width = (size, size) if isinstance(size, int) else size
        pixels = torch.zeros(rows, vision.num_channels, height, width)
        return {"pixel_values": pixels, "labels": torch.zeros(rows, dtype=torch.long)}
    length = _longest(config)
    batch = {
        "input_ids": torch.ones(rows, length, dtype=torch.long),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
    }
    of_row = torch.zeros(rows, dtype=torch.long)
    of_tokens = torch.zeros(rows, length, dtype=torch.long)
    targets: dict[str, dict[str, Tensor]] = {
        "AutoModelForSequenceClassification": {"labels": of_row},
        "AutoModelForTokenClassification": {"labels": of_tokens},
        "AutoModelForCausalLM": {"labels": of_tokens},
        "AutoModelForQuestionAnswering": {"start_positions": of_row, "end_positions": of_row},
        "AutoModelForSeq2SeqLM": {
            "labels": torch.zeros(rows, getattr(config.task, "max_target", 1), dtype=torch.long)
        },
    }
    if task.auto_class not in targets:
        raise UserError(f"--memory: is not known for task.family = {config.task.family}")
    if getattr(config.task, "target", "class") == "number":
        targets["AutoModelForSequenceClassification"]["labels"] = of_row.float()
    return batch | targets[task.auto_class]


def _longest(config: TrainConfig) -> int:
    for name in LENGTHS:
        value = getattr(config.task, name, None)
        if value is not None:
            return int(value)
    raise UserError(f"--memory: task.family = {config.task.family} bounds no length")
