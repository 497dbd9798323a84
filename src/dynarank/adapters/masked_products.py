"""The three thin products of the training pass that meet the dropout mask.

Legend: N input vectors, x (N, d_in), m (N, d_in) the mask with one byte an element, A (r, d_in),
t^T (r, N), * elementwise.

The product m * x is as large as the input. On CPUs it is formed for a block of rows at a time, in
memory that every layer uses again and that stays in the core's cache: a new matrix would be written
to memory and read again, in pages that the system must first fill with zeros.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from dynarank.rounding import divide_up

# Blocks of 2**14 took two to three times as long.
BLOCK = 3 * 2**16
"""Elements of a block for each thread, at most: 768 KiB in float32, which stay in the cache."""
SMALL = 2**12
"""Elements of an input that is not worth the trouble."""

_local = threading.local()
"""Holds each thread's memory for blocks, by type and number of elements."""


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in a type; `to` takes six times as long to find that nothing is to be done."""
    return x if x.dtype == dtype else x.to(dtype)


def thin_product(lora_A: Tensor, x: Tensor, keep: Tensor | None) -> Tensor:
    """Return h^T = A (m * x)^T, (r, N), in A's dtype, which is not narrower than x's.

    `keep` is m; None stands for ones.
    """
    if keep is None:
        return lora_A.mm(cast(x, lora_A.dtype).T)
    if not _is_for_blocks(x):
        return lora_A.mm(cast(x * keep, lora_A.dtype).T)
    h_t = lora_A.new_empty(len(lora_A), len(x))
    for rows, mask in _blocks(keep, lora_A.dtype):
        dropped = mask.mul_(x[rows])  # in the block's memory: nothing new is allocated
        torch.mm(lora_A, dropped.T, out=h_t[:, rows])
    return h_t


def factor_gradient(t_t: Tensor, x: Tensor, keep: Tensor | None) -> Tensor:
    """Return dA = t^T (m * x), (r, d_in), in t's dtype, which is not narrower than x's.

    `keep` is m; None stands for ones.
    """
    if keep is None:
        return t_t.mm(cast(x, t_t.dtype))
    if not _is_for_blocks(x):
        return t_t.mm(cast(x * keep, t_t.dtype))
    dA = t_t.new_empty(len(t_t), x.shape[1])
    for rows, mask in _blocks(keep, t_t.dtype):
        dropped = mask.mul_(x[rows])
        # The first block is not added to dA, whose memory holds anything: beta = 0 ignores it.
        is_first = rows.start == 0
        dA.addmm_(t_t[:, rows], dropped, beta=0 if is_first else 1)
    return dA


def add_input_gradient(dx: Tensor, t_t: Tensor, lora_A: Tensor, keep: Tensor | None) -> Tensor:
    """Return dx + m * (t A), (N, d_in), in the memory of `dx`.

    `keep` is m; None stands for ones.
    """
    if keep is None:
        return dx.addmm_(t_t.T, lora_A)
    if not _is_for_blocks(dx):
        return dx.addcmul_(t_t.T.mm(lora_A), keep)
    # Apart from the mask's memory, since both are in use at a time.
    products = _memory("products", keep, dx.dtype)
    for rows, mask in _blocks(keep, dx.dtype):
        product = products[: len(mask)]
        dx[rows].addcmul_(torch.mm(t_t[:, rows].T, lora_A, out=product), mask)
    return dx


def _is_for_blocks(x: Tensor) -> bool:
    return x.numel() > SMALL and x.device.type == "cpu"


def _block_rows(keep: Tensor) -> int:
    """Return the rows of a block. All are of one size, since a small one takes as long."""
    most_elements = BLOCK * torch.get_num_threads()
    blocks = divide_up(keep.numel(), most_elements)
    return divide_up(len(keep), blocks)


def _blocks(keep: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of each block, and their mask in `dtype`, which may be overwritten."""
    step = _block_rows(keep)
    memory = _memory("mask", keep, dtype)
    for start in range(0, len(keep), step):
        rows = slice(start, min(start + step, len(keep)))
        # As numbers: a product with bools took three times as long, and `torch.where` five times.
        yield rows, memory[: rows.stop - start].copy_(keep[rows])


def _memory(use: str, keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return this thread's memory for a block of the mask's rows, with anything in it."""
    rows, width = _block_rows(keep), keep.shape[1]
    # torch's tensors without content, which `runs/memory.py` measures memory by.
    if type(keep) is not Tensor:
        return keep.new_empty(rows, width, dtype=dtype)
    key = f"{use} {dtype}"
    size = rows * width
    # The attributes of a `threading.local` are this thread's alone.
    memory: dict[str, Tensor] = vars(_local)
    # It only grows: a smaller layer takes the first part of a larger one's memory.
    if key not in memory or memory[key].numel() < size:
        memory[key] = torch.empty(size, dtype=dtype)
    return memory[key][:size].view(rows, width)
