"""Batch normalisation over the whole batch, wherever its parts lie."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from robgrad import stacking


class BatchNorm(nn.Module):
    """Batch normalisation whose statistics are those of the whole batch, over all devices, less its padding.

    In training it normalises by the batch, weighted by `weights`, and moves the running statistics;
    without weights it uses those. Weights are 1 for an example and 0 for padding
    (Ioffe and Szegedy, 2015). (`nn.BatchNorm` averages the devices' statistics whatever their counts.)
    """

    momentum: float = 0.99
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, activations: Array, weights: Array | None = None) -> Array:
        """Normalises `[B, ..., features]` over all axes but the last."""
        shape = activations.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_variance = self.variable("batch_stats", "variance", jnp.ones, shape, jnp.float32)
        mean, variance = running_mean.value, running_variance.value
        if weights is not None:

            def total(values: Array) -> Array:
                return values if self.is_initializing() else stacking.summed(values)

            share = weights / total(weights.sum())

            def average(values: Array) -> Array:
                places = values.reshape(len(values), -1, *shape).mean(1)
                return total(jnp.tensordot(share, places, axes=1))

            mean = average(activations)
            variance = average((activations - mean) ** 2)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_variance.value = keep * running_variance.value + (1 - keep) * variance
        return (activations - mean) * lax.rsqrt(variance + self.epsilon) * scale + bias
