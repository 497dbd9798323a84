"""The dropout mask that is drawn on CPUs, and the products with it in blocks of rows."""

from __future__ import annotations

import pytest
import torch

from dynarank.adapters import fast_path, masked_products

WIDTH = 6


@pytest.mark.parametrize("rows", [1, 5, 64, 131])
def test_blocks_of_rows_give_what_one_block_gives(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, keep = torch.randn(131, WIDTH).double(), torch.rand(131, WIDTH) < 0.7
    lora_A, t_t, dx = (torch.randn(*size).double() for size in ((3, WIDTH), (3, 131), (131, WIDTH)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(masked_products, "SMALL", 0)
    monkeypatch.setattr(masked_products, "BLOCK", rows * WIDTH)
    torch.testing.assert_close(masked_products.thin_product(lora_A, x, keep), lora_A @ (x * keep).T)
    torch.testing.assert_close(masked_products.factor_gradient(t_t, x, keep), t_t @ (x * keep))
    expected = dx + keep * (t_t.T @ lora_A)
    result = masked_products.add_input_gradient(dx, t_t, lora_A, keep)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.999])
def test_dropout_keeps_its_share_and_follows_the_generator(p: float) -> None:
    x = torch.zeros(200, 1001)
    torch.manual_seed(3)
    keep, share = fast_path.draw_keep_mask(x, p)
    after = torch.rand(1)
    step = 2**-16 if p in (0.001, 0.999) else 2**-8
    assert share == pytest.approx(1 - p, abs=step)
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert float(keep.float().mean()) == pytest.approx(share, abs=5 * deviation)
    for lag in (1, 2, 3, 4, 7, 8, 1001):  # neighbours that share a draw are independent, too
        flat = keep.flatten().float() - share
        product = float((flat[lag:] * flat[:-lag]).mean())
        assert abs(product) < 5 * p * (1 - p) / x.numel() ** 0.5
    torch.manual_seed(3)
    assert torch.equal(fast_path.draw_keep_mask(x, p)[0], keep)
    assert torch.equal(torch.rand(1), after)


def test_a_threshold_between_two_bytes_is_rounded_so_that_its_mean_is_right() -> None:
    shares = [fast_path.draw_keep_mask(torch.zeros(1, 1), 0.1)[1] for _ in range(2000)]
    assert set(shares) == {1 - 25 / 256, 1 - 26 / 256}
    assert sum(shares) / len(shares) == pytest.approx(0.9, abs=5 * 0.5 / 256 / 2000**0.5)
