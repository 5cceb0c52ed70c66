"""The two-Gaussian toy of the paper's section 2.2."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad.data.images import Split


def two_gaussians(key: Array, points: int = 3000) -> Split:
    """The toy of the paper's section 2.2: two elongated Gaussians in the plane, one a class.

    Draws `points` from N((1.2, 0.1), S) (class 0) and as many from N((-1.2, -0.1), S) (class 1), with
    S = [[0.1, -0.01], [-0.01, 0.002]], then maps all jointly to [-1, 1] by their global minimum and
    maximum. Returns float32 points `[2 * points, 2]`.
    """
    means = jnp.array([[1.2, 0.1], [-1.2, -0.1]])
    covariance = jnp.array([[0.1, -0.01], [-0.01, 0.002]])
    draws = jax.random.multivariate_normal(key, means[:, None], covariance, (2, points)).reshape(-1, 2)
    low, high = draws.min(), draws.max()
    scaled = 2.0 * (draws - low) / (high - low) - 1.0
    return Split(np.asarray(scaled), np.repeat(np.arange(2, dtype=np.int32), points))
