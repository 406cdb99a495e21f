"""LSMR: damped least squares by Golub-Kahan bidiagonalization, stopped early where the data allow no more."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Solution(NamedTuple):
    """The result of :func:`lsmr`.

    Attributes:
        x: float64 [unknowns].
        converged: Whether one of the two tolerances ended the iteration, not its length or the condition of
            the matrix.
    """

    x: Tensor
    converged: bool


def lsmr(
    matrix: Tensor, target: Tensor, damping: float, *, tolerance: float = 1e-6, limit: float = 1e8
) -> Solution:
    """Minimise norm(A x - b)^2 + damping^2 norm(x)^2.

    Fong and Saunders 2011, "LSMR: An Iterative Algorithm for Sparse Least-Squares Problems", sections 2 to 5,
    with the stopping rules and the limit of 5 min(rows, unknowns) iterations of
    ``cupyx.scipy.sparse.linalg.lsmr``.

    Args:
        matrix: A, float64 [rows, unknowns].
        target: b, float64 [rows].
        damping: At least 0.
        tolerance: Relative error of A and of b.
        limit: The condition number of A, as estimated, at which to stop.
    """
    u, beta = _normalised(target)
    v, alpha = _normalised(matrix.t() @ u)
    x, norm_b = torch.zeros_like(v), beta
    if alpha * beta == 0:
        return Solution(x, True)
    h, h_bar = v.clone(), torch.zeros_like(v)
    zeta_bar, alpha_bar = alpha * beta, alpha
    rho, rho_bar, c_bar, s_bar = 1.0, 1.0, 1.0, 0.0
    # Of the residual's norm (section 3.3).
    beta_dd, beta_d, rho_d_old, tau_old, theta, zeta, d = beta, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0
    # Of the matrix' norm and condition.
    squares, largest, smallest = alpha**2, 0.0, math.inf
    for iteration in range(1, 5 * min(matrix.shape) + 1):
        u, beta = _normalised(matrix @ v - alpha * u)
        if beta > 0:
            v, alpha = _normalised(matrix.t() @ u - beta * v)
        c_hat, s_hat, alpha_hat = _rotation(alpha_bar, damping)
        rho_old = rho
        c, s, rho = _rotation(alpha_hat, beta)
        theta_new, alpha_bar = s * alpha, c * alpha
        rho_bar_old, zeta_old = rho_bar, zeta
        theta_bar, rho_temp = s_bar * rho, c_bar * rho
        c_bar, s_bar, rho_bar = _rotation(c_bar * rho, theta_new)
        zeta, zeta_bar = c_bar * zeta_bar, -s_bar * zeta_bar
        h_bar = h - (theta_bar * rho / (rho_old * rho_bar_old)) * h_bar
        x = x + (zeta / (rho * rho_bar)) * h_bar
        h = v - (theta_new / rho) * h

        beta_acute, beta_check = c_hat * beta_dd, -s_hat * beta_dd
        beta_hat, beta_dd = c * beta_acute, -s * beta_acute
        theta_old = theta
        c_tilde, s_tilde, rho_tilde = _rotation(rho_d_old, theta_bar)
        theta, rho_d_old = s_tilde * rho_bar, c_tilde * rho_bar
        beta_d = -s_tilde * beta_d + c_tilde * beta_hat
        tau_old = (zeta_old - theta_old * tau_old) / rho_tilde
        tau = (zeta - theta * tau_old) / rho_d_old
        d += beta_check**2
        norm_r = math.sqrt(d + (beta_d - tau) ** 2 + beta_dd**2)

        squares += beta**2
        norm_a = math.sqrt(squares)
        squares += alpha**2
        largest = max(largest, rho_bar_old)
        if iteration > 1:
            smallest = min(smallest, rho_bar_old)
        condition = max(largest, rho_temp) / min(smallest, rho_temp)

        of_normal = abs(zeta_bar) / (norm_a * norm_r) if norm_a * norm_r else math.inf
        allowed = tolerance + tolerance * norm_a * float(x.norm()) / norm_b
        if of_normal <= tolerance or norm_r / norm_b <= allowed:
            return Solution(x, True)
        if condition >= limit:
            break
    return Solution(x, False)


def _normalised(vector: Tensor) -> tuple[Tensor, float]:
    """Return a vector of norm 1 and the norm; a vector of zeros as it is."""
    norm = float(vector.norm())
    return (vector / norm if norm > 0 else vector), norm


def _rotation(a: float, b: float) -> tuple[float, float, float]:
    """Return c, s and r of the Givens rotation with c a + s b = r and c b - s a = 0."""
    r = math.hypot(a, b)
    return (a / r, b / r, r) if r else (1.0, 0.0, 0.0)
