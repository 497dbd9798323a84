"""Turn a layer's components onto the singular vectors of its update, and its moments with them.

Legend: A (r, d_in), B (d_out, r), s the scale, D = s B A the layer's update, which is never formed.
By QR, A^T = Q_A T_A and B = Q_B T_B; s T_B T_A^T = U diag(S) V^T is (r, r). With
w_j = sqrt(S_j / s), the new factors are linear in the old ones:

    A' = P A,   P_j = U_j^T T_B / w_j              B' = B N,   N_j = T_A^T V_j / w_j

so that s B'_j A'_j is the j-th singular component of D, rows and columns of one length, and the
sum over the best of them is the best approximation of D of that rank (Eckart and Young, 1936).

Moments. N P = 1 where D has full rank. So the loss has the gradients dL/dA' = N^T dL/dA and
dL/dB' = dL/dB P^T. Adam's first moment is a mean of gradients, and is mapped alike, exactly. Its
second moment is a mean of squared gradients. It is mapped by the squared entries of N and P: this
is exact where the gradients of two components are uncorrelated, and never negative. The step count
stays, for the means are as old as before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SMALL = 1e-7
"""Singular values below that share of the largest are rounding of float32 factors."""


@dataclass(frozen=True)
class Rotation:
    """The maps of one layer, and what its new components are worth."""

    P: Tensor
    """A' = P A, (r, r) float64; the rows of components without size are zero."""
    N: Tensor
    """B' = B N, (r, r) float64; the columns of components without size are zero."""
    squares: Tensor
    """S^2 (r) float64, from high to low: what the squared update loses with each component."""

    def of_A(self, A: Tensor) -> Tensor:
        """Return A' (r, d_in)."""
        return _like(self.P @ A.cpu().double(), A)

    def of_B(self, B: Tensor) -> Tensor:
        """Return B' (d_out, r)."""
        return _like(B.cpu().double() @ self.N, B)

    def moment_of_A(self, moment: Tensor, squared: bool) -> Tensor:
        """Return a first or a second (`squared`) moment of A for A', (r, d_in)."""
        change = self.N.square() if squared else self.N
        return _like(change.T @ moment.cpu().double(), moment)

    def moment_of_B(self, moment: Tensor, squared: bool) -> Tensor:
        """Return a first or a second (`squared`) moment of B for B', (d_out, r)."""
        change = self.P.square() if squared else self.P
        return _like(moment.cpu().double() @ change.T, moment)


def _like(value: Tensor, old: Tensor) -> Tensor:
    return value.to(old.device, old.dtype)


@torch.no_grad()
def rotation(A: Tensor, B: Tensor, s: float) -> Rotation:
    """Return the rotation of a layer's components onto the singular vectors of s B A.

    It is computed in float64 on the CPU, once a run.

    Args:
        A: (r, d_in).
        B: (d_out, r).
        s: the layer's scale.
    """
    # The letters are those of the file's legend.
    T_A = torch.linalg.qr(A.cpu().double().T).R  # (min(r, d_in), r)
    T_B = torch.linalg.qr(B.cpu().double()).R  # (min(r, d_out), r)
    U, S, Vh = torch.linalg.svd(s * T_B @ T_A.T, full_matrices=False)
    r = len(A)
    squares = torch.zeros(r, dtype=torch.float64)
    P = torch.zeros(r, r, dtype=torch.float64)
    N = torch.zeros(r, r, dtype=torch.float64)
    # Strictly: an update that is zero throughout has no component with a size.
    sized = (_SMALL * S.max() < S).nonzero().flatten()
    w = (S[sized] / s).sqrt()
    squares[sized] = S[sized].square()
    P[sized] = (U[:, sized].T @ T_B) / w[:, None]
    N[:, sized] = (T_A.T @ Vh[sized].T) / w
    return Rotation(P=P, N=N, squares=squares)
