"""The largest eigenvalue of a Hessian of which only gradients are known."""

from collections.abc import Callable

import numpy as np

Array = np.ndarray

DISTANCE = 1e-4
"""Between a point and those where its gradients are taken: above float32's rounding, and so short
that few ReLUs change sign, which on small maps makes the difference many times the derivative."""

ITERATIONS = 12


def largest_eigenvalue(
    gradient: Callable[[Array], Array], point: Array, *, iterations: int = ITERATIONS
) -> float:
    """The largest eigenvalue, with its sign, of a function's Hessian at a point (Lanczos).

    Products with the Hessian are central differences of the gradient. Apart from their error the
    answer is never above the eigenvalue, grows with the iterations, and is exact when they are as
    many as the point has entries.

    Args:
        gradient: the function's gradient at a point, in the point's shape.
        point: floats of any shape, not empty.
        iterations: the most products, of two gradients each.
    """
    point = np.asarray(point, np.float64)
    # Always the same direction, so that the values of one search can be compared.
    vector = np.random.default_rng(0).normal(size=point.size)
    vector /= np.linalg.norm(vector)
    basis: list[Array] = []
    images: list[Array] = []
    for _ in range(min(iterations, point.size)):
        change = DISTANCE * vector.reshape(point.shape)
        difference = gradient(point + change) - gradient(point - change)
        basis.append(vector)
        images.append(np.asarray(difference, np.float64).ravel() / (2 * DISTANCE))
        span = np.array(basis)
        vector = images[-1] - span.T @ (span @ images[-1])
        vector -= span.T @ (span @ vector)  # once more: what is left is short
        length = np.linalg.norm(vector)
        if length <= 1e-6 * np.linalg.norm(images[-1]):
            break  # the products stay within the basis
        vector /= length
    projected = np.array(basis) @ np.array(images).T
    return float(np.linalg.eigvalsh((projected + projected.T) / 2)[-1])
