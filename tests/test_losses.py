"""Losses against optax, NumPy in double precision, and the paper's quirk."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from robgrad import attacks

LOGITS = np.random.default_rng(0).normal(0, 3, (20, 7)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 7, 20)


def test_cross_entropy_equals_optax():
    ours = jax.vmap(attacks.cross_entropy)(LOGITS, LABELS)
    np.testing.assert_allclose(
        ours, optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("certainty", [0.0, 10.0, 30.0, 60.0])
def test_cross_entropy_gradient_keeps_the_true_logit_where_certain(certainty):
    logits = np.array([certainty, 0.0, -1.0, 0.5], np.float32)
    expected = softmax(logits.astype(np.float64))
    expected[0] = -expected[1:].sum()
    np.testing.assert_allclose(jax.grad(attacks.cross_entropy)(jnp.asarray(logits), 0), expected, rtol=1e-5)


def test_margin_leaves_the_true_logit_out():
    others = np.where(np.arange(7) == LABELS[:, None], -np.inf, LOGITS)
    expected = others.max(1) - LOGITS[np.arange(20), LABELS]
    np.testing.assert_allclose(jax.vmap(attacks.cw_margin)(LOGITS, LABELS), expected, rtol=1e-6)


def test_bounded_margin_stops_gaining():
    logits = jnp.array([0.0, 499.0, -3.0])
    bounded = lambda z: attacks.cw_margin(z, 0, bound=500.0)  # noqa: E731
    assert bounded(logits) == 499.0
    assert jnp.any(jax.grad(bounded)(logits) != 0)
    assert bounded(2 * logits) == 500.0
    np.testing.assert_array_equal(jax.grad(bounded)(2 * logits), 0.0)


def test_zero_mask_differs_only_where_all_others_are_negative():
    mixed, negative = jnp.array([5.0, 1.0, -2.0]), jnp.array([5.0, -1.0, -2.0])
    masked = lambda z: attacks.cw_margin(z, 0, zero_mask=True)  # noqa: E731
    assert masked(mixed) == attacks.cw_margin(mixed, 0) == -4.0
    assert (masked(negative), attacks.cw_margin(negative, 0)) == (-5.0, -6.0)
