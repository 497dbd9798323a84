"""The three thin products of the training pass that meet the dropout mask.

Legend: N input vectors, x (N, d_in), m (N, d_in) the mask with one byte an element, A (r, d_in),
t^T (r, N), * elementwise.

The product m * x is as large as the input. On CPUs it is formed for a block of rows at a time,
which stays in the core's cache: a matrix of some megabytes would be written to memory and read
again, in new pages that the system must first fill with zeros. Everywhere else, and where the input
is small, a block is all of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 3 * 2**16
"""Elements of a block for each thread, at most: 768 KiB in float32, which stay in the cache."""


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in a type; `to` takes six times as long to find that nothing is to be done."""
    return x if x.dtype == dtype else x.to(dtype)


def thin_product(lora_A: Tensor, x: Tensor, keep: Tensor | None) -> Tensor:
    """Return h^T = A (m * x)^T, (r, N), in A's dtype, which is not narrower than x's."""
    if keep is None or _is_one_block(x):
        return lora_A.mm(cast(_drop(x, keep), lora_A.dtype).T)
    h_t = lora_A.new_empty(len(lora_A), len(x))
    for rows, x_rows, keep_rows in _blocks(x, keep):
        torch.mm(lora_A, cast(x_rows * keep_rows, lora_A.dtype).T, out=h_t[:, rows])
    return h_t


def factor_gradient(t_t: Tensor, x: Tensor, keep: Tensor | None) -> Tensor:
    """Return dA = t^T (m * x), (r, d_in), in t's dtype, which is not narrower than x's."""
    if keep is None or _is_one_block(x):
        return t_t.mm(cast(_drop(x, keep), t_t.dtype))
    dA = t_t.new_zeros(len(t_t), x.shape[1])
    for rows, x_rows, keep_rows in _blocks(x, keep):
        dA.addmm_(t_t[:, rows], cast(x_rows * keep_rows, t_t.dtype))
    return dA


def add_input_gradient(dx: Tensor, t_t: Tensor, lora_A: Tensor, keep: Tensor | None) -> Tensor:
    """Return dx + m * (t A), (N, d_in). `dx` is overwritten."""
    if keep is None:
        return dx.addmm_(t_t.T, lora_A)
    if _is_one_block(dx):
        return dx.addcmul_(t_t.T.mm(lora_A), keep)
    for rows, dx_rows, keep_rows in _blocks(dx, keep):
        dx_rows.addcmul_(t_t[:, rows].T.mm(lora_A), keep_rows)
    return dx


def _drop(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep


def _is_one_block(x: Tensor) -> bool:
    return x.device.type != "cpu" or x.numel() <= BLOCK * torch.get_num_threads()


def _blocks(x: Tensor, keep: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield which rows a block has, and these rows of the input and of the mask."""
    count = -(-x.numel() // (BLOCK * torch.get_num_threads()))
    step = -(-len(x) // count)  # blocks of one size, since a small one takes as long
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        yield rows, x[rows], keep[rows]
