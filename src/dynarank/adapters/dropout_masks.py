"""Draw the dropout mask of an adapter's input, for `fast_path`.

The fast path keeps the mask for its backward pass, with one byte an element. `F.dropout` gives away
no mask, and autograd would keep it as floats. Legend: N input vectors, x (N, d_in) the input.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COARSEST = 1 / 32
"""Where p and 1 - p are at least this, one random byte an element decides; else two bytes do."""
_INT64_MIN = -(2**63)


def draws_cheap_bits(x: Tensor) -> bool:
    """Return whether `draw_keep_mask` draws the mask: on CPUs, where torch's dropout is slowest."""
    return x.device.type == "cpu"


def draw_keep_mask(x: Tensor, p: float) -> tuple[Tensor, float]:
    """Draw which elements of x dropout keeps, on a CPU.

    The mask is a function of torch's generator alone. Random integers are compared with a
    threshold, which is p in steps of 1/256 (of 1/65536 where one step would be much of p). The
    threshold is rounded up or down at random, so that an element is dropped with probability p
    over many draws.

    Args:
        x: the input, (..., d_in), of N vectors.
        p: the probability that an element is dropped, in (0, 1).

    Returns:
        the mask, (N, d_in) int8, 1 for what is kept; and the share that this threshold keeps, by
        which the kept elements are to be divided.
    """
    dtype = torch.int8 if _COARSEST <= p <= 1 - _COARSEST else torch.int16
    levels = 256**dtype.itemsize
    count = x.numel()
    width = x.shape[-1]

    # Drawn as words of 64 bits: torch draws element by element, however small an element is.
    # One word is for what remains after the division, and one more for the threshold.
    number_of_words = count * dtype.itemsize // 8 + 2
    words = torch.empty(number_of_words, dtype=torch.int64)
    # From the lowest number on: without it, torch never draws the sign's bit.
    words.random_(_INT64_MIN, None)

    threshold = int(p * levels + _uniform(words[-1]))
    # Never all levels: the share that is kept is a divisor.
    threshold = min(threshold, levels - 1)
    # One view that leaves out the spare words.
    keep = words.view(dtype).as_strided((count // width, width), (width, 1))
    # In place, since only a result of the same type is compared by vector instructions.
    # The integers are signed: the lowest of them is -levels / 2.
    keep.ge_(threshold - levels // 2)
    return keep.to(torch.int8), 1 - threshold / levels


def _uniform(word: Tensor) -> float:
    """Return a number from 0 to 1 of 64 random bits; the middle, where a tensor has no content."""
    if type(word) is not Tensor:
        return 0.5
    return int(word) / 2**64 + 0.5


# Autograd has no part in it: the fast path makes the gradient from the mask.
@torch.no_grad()
def drop_in_one_kernel(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return torch's own dropout of x, scaled by 1 / (1 - p), and its mask; both (N, d_in).

    The mask has one byte an element.
    """
    # It gives the mask, which `F.dropout` keeps to itself.
    dropped, keep = torch.native_dropout(x, p, True)
    width = x.shape[-1]
    return dropped.reshape(-1, width), keep.view(torch.int8).reshape(-1, width)
