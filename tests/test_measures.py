"""Measures of one image on and off a manifold, against closed forms on planes and linear networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, gradients, manifolds

KEY = jax.random.key(0)
PIXELS, RANK = 48, 6
BASIS = jnp.linalg.qr(jax.random.normal(KEY, (PIXELS, RANK)))[0]
PLANE = manifolds.pca(manifolds.Plane(jnp.zeros((4, 4, 3)), BASIS))
IMAGE = 0.3 * jax.random.normal(jax.random.key(1), (4, 4, 3))
WEIGHTS = jax.random.normal(jax.random.key(2), (PIXELS, 5))


def linear(image):
    return image.ravel() @ WEIGHTS


def test_fractions_of_a_direction():
    along, across = BASIS[:, 0], jnp.eye(PIXELS)[0] - BASIS @ BASIS[0]
    mixed = 3 * along + 4 * across / jnp.linalg.norm(across)
    found = [gradients.tangent_fraction(one.reshape(4, 4, 3), BASIS) for one in (along, across, mixed, 1e-30 * mixed)]
    np.testing.assert_allclose(found, [1, 0, 9 / 25, 9 / 25], atol=1e-6)
    assert np.isnan(gradients.tangent_fraction(jnp.zeros(PIXELS), BASIS))


def test_the_datas_covariance_as_a_baseline():
    """Against its definition; isotropic data give rank / pixels."""
    generator = np.random.default_rng(0)
    spread = generator.normal(size=(4000, PIXELS)) * np.linspace(0.1, 2, PIXELS)
    covariance = spread.T @ spread / len(spread)
    expected = np.trace(BASIS.T @ covariance @ BASIS) / np.trace(covariance)
    assert gradients.covariance_chance(BASIS, jnp.asarray(spread)) == pytest.approx(expected, rel=1e-4)
    even = generator.normal(size=(20000, PIXELS))
    assert gradients.covariance_chance(BASIS, jnp.asarray(even)) == pytest.approx(RANK / PIXELS, rel=0.02)


def test_alignment_of_image_and_gradient():
    predicted = int(linear(IMAGE).argmax())
    weights = np.asarray(WEIGHTS[:, predicted])
    expected = abs(np.asarray(IMAGE).ravel() @ weights) / np.linalg.norm(weights)
    assert gradients.image_alignment(linear, IMAGE) == pytest.approx(expected, rel=1e-5)
    assert np.isnan(gradients.image_alignment(lambda x: jnp.zeros(5), IMAGE))


def test_sensitivities_of_a_linear_network_are_its_fraction():
    """E_on = r^2 |g|^2 t / k and E_off = r^2 |g|^2 (1 - t) / (d - k), within sampling error."""
    network, tangent = lambda image: image.ravel() @ WEIGHTS[:, :1], PLANE.tangent_space(IMAGE)
    found = gradients.sensitivity(KEY, network, IMAGE, tangent, 0.2, samples=20000, output=lambda logits: logits)
    square, share = float(jnp.sum(WEIGHTS[:, 0] ** 2)), float(gradients.tangent_fraction(WEIGHTS[:, 0], BASIS))
    assert found.on == pytest.approx(0.04 * square * share / RANK, rel=0.05)
    assert found.off == pytest.approx(0.04 * square * (1 - share) / (PIXELS - RANK), rel=0.05)


def test_a_projected_attribution_is_that_of_the_projected_gradient():
    projected = gradients.tangent_projected(gradients.gradient, PLANE)(KEY, linear, IMAGE)
    slope = gradients.loss_gradient(linear, IMAGE).ravel()
    expected = jnp.abs((BASIS @ (BASIS.T @ slope)).reshape(4, 4, 3)).sum(-1)
    np.testing.assert_allclose(projected, expected, rtol=1e-4, atol=1e-6)


def test_attacks_on_the_manifold_and_off_it():
    decode = lambda code: (BASIS @ code).reshape(4, 4, 3)  # noqa: E731
    in_codes = attacks.pgd("l2", attacks.cross_entropy, 20, pixel_range=(-10.0, 10.0))
    code = BASIS.T @ IMAGE.ravel()
    on = manifolds.on_manifold(in_codes, decode)(KEY, linear, code, 1, 0.5, 0.1)
    assert manifolds.distance(PLANE, on) < 1e-5
    assert jnp.linalg.norm(on - decode(code)) == pytest.approx(0.5, rel=1e-3)
    attack = attacks.pgd("l2", attacks.cross_entropy, 20, pixel_range=(-10.0, 10.0))
    off = manifolds.off_manifold(attack, PLANE)(KEY, linear, IMAGE, 1, 0.5, 0.1)
    moved = (off - IMAGE).ravel()
    assert jnp.linalg.norm(moved) == pytest.approx(0.5, rel=1e-3)
    np.testing.assert_allclose(BASIS.T @ moved, 0, atol=1e-5)
    # Each finds what its space allows: less than the attack that is free.
    loss = lambda image: attacks.cross_entropy(linear(image), 1)  # noqa: E731
    assert loss(IMAGE) < loss(off) < loss(attack(KEY, linear, IMAGE, 1, 0.5, 0.1))
    assert loss(on) > loss(decode(code))
