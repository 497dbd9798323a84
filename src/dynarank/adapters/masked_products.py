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
    """Return h^T = A (m * x)^T, (r, N), in A's dtype, which is not narrower than x's."""
    if keep is None or not _is_for_blocks(x):
        return lora_A.mm(cast(x if keep is None else x * keep, lora_A.dtype).T)
    h_t = lora_A.new_empty(len(lora_A), len(x))
    for rows, dropped in _blocks(keep, lora_A.dtype):
        torch.mm(lora_A, dropped.mul_(x[rows]).T, out=h_t[:, rows])
    return h_t


def factor_gradient(t_t: Tensor, x: Tensor, keep: Tensor | None) -> Tensor:
    """Return dA = t^T (m * x), (r, d_in), in t's dtype, which is not narrower than x's."""
    if keep is None or not _is_for_blocks(x):
        return t_t.mm(cast(x if keep is None else x * keep, t_t.dtype))
    dA = t_t.new_empty(len(t_t), x.shape[1])
    for rows, dropped in _blocks(keep, t_t.dtype):
        # With beta = 0, what stands in dA is not read.
        dA.addmm_(t_t[:, rows], dropped.mul_(x[rows]), beta=1 if rows.start else 0)
    return dA


def add_input_gradient(dx: Tensor, t_t: Tensor, lora_A: Tensor, keep: Tensor | None) -> Tensor:
    """Return dx + m * (t A), (N, d_in). `dx` is overwritten."""
    if keep is None:
        return dx.addmm_(t_t.T, lora_A)
    if not _is_for_blocks(dx):
        return dx.addcmul_(t_t.T.mm(lora_A), keep)
    products = _memory("products", keep, dx.dtype)
    for rows, mask in _blocks(keep, dx.dtype):
        product = products[: len(mask)]
        dx[rows].addcmul_(torch.mm(t_t[:, rows].T, lora_A, out=product), mask)
    return dx


def _is_for_blocks(x: Tensor) -> bool:
    return x.numel() > SMALL and x.device.type == "cpu"


def _block_rows(keep: Tensor) -> int:
    """Return the rows of a block. All are of one size, since a small one takes as long."""
    # Both divisions round up, which // alone does not.
    count = -(-keep.numel() // (BLOCK * torch.get_num_threads()))
    return -(-len(keep) // count)


def _blocks(keep: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield which rows a block has, and their mask as numbers, which may be overwritten."""
    step = _block_rows(keep)
    memory = _memory("mask", keep, dtype)
    for start in range(0, len(keep), step):
        rows = slice(start, min(start + step, len(keep)))
        yield rows, memory[: rows.stop - start].copy_(keep[rows])


def _memory(use: str, keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return this thread's memory for a block of the mask's rows, with anything in it."""
    rows, width = _block_rows(keep), keep.shape[1]
    if type(keep) is not Tensor:  # without content, to measure memory by
        return keep.new_empty(rows, width, dtype=dtype)
    key, size = f"{use} {dtype}", rows * width
    # The attributes of a `threading.local` are this thread's alone.
    memory: dict[str, Tensor] = vars(_local)
    # It only grows: a smaller layer takes the first part of a larger one's memory.
    if key not in memory or memory[key].numel() < size:
        memory[key] = torch.empty(size, dtype=dtype)
    return memory[key][:size].view(rows, width)
