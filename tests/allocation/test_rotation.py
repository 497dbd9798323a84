"""Rotation onto singular vectors, against dense decompositions and autograd."""

from __future__ import annotations

import torch

from dynarank.allocation.rotation import rotation


def test_rotated_factors_are_the_singular_components_of_the_dense_update() -> None:
    torch.manual_seed(0)
    A, B, s = torch.randn(4, 9).double(), torch.randn(7, 4).double(), 0.3
    turned = rotation(A, B, s)
    U, S, Vh = torch.linalg.svd(s * B @ A)
    torch.testing.assert_close(turned.squares, S[:4].square())
    for k in range(1, 5):
        kept = s * turned.of_B(B)[:, :k] @ turned.of_A(A)[:k]
        torch.testing.assert_close(kept, U[:, :k] @ torch.diag(S[:k]) @ Vh[:k])


def test_first_moments_follow_as_autograd_has_the_gradients() -> None:
    torch.manual_seed(1)
    A, B, s = torch.randn(3, 8).double(), torch.randn(6, 3).double(), 2.0
    turned = rotation(A, B, s)
    target = torch.randn(6, 8).double()

    def gradients(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, ...]:
        A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
        return torch.autograd.grad((s * B @ A - target).pow(3).sum(), (A, B))

    old_A, old_B = gradients(A, B)
    new_A, new_B = gradients(turned.of_A(A), turned.of_B(B))
    torch.testing.assert_close(turned.moment_of_A(old_A, squared=False), new_A)
    torch.testing.assert_close(turned.moment_of_B(old_B, squared=False), new_B)


def test_second_moments_are_the_variances_of_mapped_independent_gradients() -> None:
    draw = torch.Generator().manual_seed(2)
    A, B = torch.randn(3, 5, generator=draw), torch.randn(4, 3, generator=draw)
    turned = rotation(A, B, 1.0)
    sizes = torch.rand(3, 5, generator=draw) + 0.1
    samples = torch.randn(20000, 3, 5, generator=draw) * sizes
    mapped = torch.einsum("ij,nid->njd", turned.N.float(), samples)
    torch.testing.assert_close(
        turned.moment_of_A(sizes.square(), squared=True),
        mapped.square().mean(0),
        rtol=0.06,
        atol=1e-4,
    )


def test_an_update_of_low_rank_has_no_components_beyond_it() -> None:
    torch.manual_seed(3)
    A, B = torch.randn(4, 9), torch.zeros(7, 4)
    B[:, 1] = 1.0
    turned = rotation(A, B, 1.0)
    assert (turned.squares > 0).tolist() == [True, False, False, False]
    torch.testing.assert_close(turned.of_B(B) @ turned.of_A(A), B @ A, atol=1e-5, rtol=1e-5)
    assert not rotation(A, torch.zeros(7, 4), 1.0).squares.any()
