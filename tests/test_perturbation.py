"""Faithfulness without retraining: imputation against a sparse direct solve, measures against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import spsolve

from robgrad import faithfulness, gradients
from robgrad.gradients import controls, outputs

KEY = jax.random.key(0)


def directly(image, removed):
    """The linear system of ROAD, pixel by pixel, solved by a sparse factorisation."""
    height, width, channels = image.shape
    number = -np.ones((height, width), int)
    number[removed] = np.arange(removed.sum())
    system, right = sparse.lil_matrix((removed.sum(),) * 2), np.zeros((removed.sum(), channels))
    for i, j in np.argwhere(removed):
        row = number[i, j]
        for down in (-1, 0, 1):
            for along in (-1, 0, 1):
                a, b = i + down, j + along
                if (down, along) == (0, 0) or not (0 <= a < height and 0 <= b < width):
                    continue
                weight = 1 / 12 if down and along else 1 / 6
                system[row, row] += weight
                if removed[a, b]:
                    system[row, number[a, b]] -= weight
                else:
                    right[row] += weight * image[a, b]
    filled = image.copy()
    filled[removed] = spsolve(system.tocsc(), right).reshape(-1, channels)
    return filled


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (12, 17, 3)])
def test_imputation_equals_a_direct_solve(share, shape):
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (3, *shape))
    removed = generator.uniform(size=(3, *shape[:2])) < share
    got = jax.jit(jax.vmap(faithfulness.impute))(jnp.asarray(images, jnp.float32), removed)
    for one, image, mask in zip(got, images, removed, strict=True):
        np.testing.assert_allclose(one, directly(image, mask), atol=1e-4)


def test_imputation_of_all_of_nothing_and_with_noise():
    image = jnp.linspace(-1, 1, 75).reshape(5, 5, 3)
    np.testing.assert_array_equal(faithfulness.impute(image, jnp.zeros((5, 5), bool)), image)
    everything = faithfulness.impute(image, jnp.ones((5, 5), bool))
    np.testing.assert_allclose(everything, jnp.broadcast_to(image.mean((0, 1)), image.shape), atol=1e-5)
    removed = jnp.zeros((5, 5), bool).at[1:4, 1:4].set(True)
    noisy, calm = faithfulness.impute(image, removed, KEY, 0.01), faithfulness.impute(image, removed)
    away = (noisy - calm)[1:4, 1:4]
    assert 0.005 < float(jnp.std(away)) < 0.02
    np.testing.assert_array_equal(noisy[0], image[0])


WEIGHTS = jnp.array([[4.0, -1.0], [0.5, 2.0]])


def linear(image):
    return jnp.stack([jnp.sum(WEIGHTS * image[..., 0]), 0.0])


def test_deletion_and_insertion_in_closed_form():
    """Of four pixels of one image, in the order of what they give to the logit."""
    image, values = jnp.ones((2, 2, 1)), WEIGHTS
    got = faithfulness.deletion_and_insertion(KEY, linear, image, values, steps=4)
    order = np.array([4.0, 2.0, 0.5, -1.0])
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    left = sigmoid(order.sum() - np.concatenate([[0], np.cumsum(order)]))
    put = sigmoid(np.concatenate([[0], np.cumsum(order)]))
    assert got.deletion == pytest.approx(np.trapezoid(left, dx=0.25), rel=1e-5)
    assert got.insertion == pytest.approx(np.trapezoid(put, dx=0.25), rel=1e-5)
    worse = faithfulness.deletion_and_insertion(KEY, linear, image, -values, steps=4)
    assert worse.deletion > got.deletion
    assert worse.insertion < got.insertion


def test_infidelity_of_a_linear_function_is_zero_for_its_gradient_at_any_scale():
    image = jnp.full((2, 2, 1), 0.3)
    for scale in (1.0, 7.0):
        assert faithfulness.infidelity(KEY, linear, image, scale * WEIGHTS) == pytest.approx(0, abs=1e-6)
    flat = faithfulness.infidelity(KEY, linear, image, jnp.zeros((2, 2)), samples=4000)
    assert flat == pytest.approx(0.04 * float(jnp.sum(WEIGHTS**2)), rel=0.1)


def test_sensitivity_and_randomisation():
    image = jnp.full((2, 2, 1), 0.3)
    slope = gradients.of_gradient(outputs.logit_of_prediction, outputs.signed)
    assert faithfulness.max_sensitivity(KEY, linear, image, slope) == 0
    times = gradients.of_gradient(outputs.logit_of_prediction, outputs.signed, times_input=True)
    found = faithfulness.max_sensitivity(KEY, linear, image, times, radius=0.03, samples=200)
    # At most by a tenth, of all pixels at once.
    assert 0.06 < found <= 0.1
    other = lambda x: linear(x[::-1])  # noqa: E731
    assert faithfulness.randomisation(KEY, linear, linear, image, slope) == pytest.approx(1)
    assert faithfulness.randomisation(KEY, linear, other, image, slope) < 0.5
    assert jnp.isnan(faithfulness.randomisation(KEY, linear, lambda x: 0 * linear(x), image, slope))
    shape = (8, 8, 1)
    picture = jax.random.normal(KEY, shape)
    wide = lambda x: jnp.stack([x.sum(), 0.0])  # noqa: E731
    assert faithfulness.randomisation(KEY, wide, lambda x: -wide(x), picture, controls.edges) == pytest.approx(1)


def test_rank_correlation_equals_scipys():
    from scipy.stats import spearmanr

    one, two = np.random.default_rng(0).normal(size=(2, 6, 7))
    expected = spearmanr(one.ravel(), two.ravel()).statistic
    assert faithfulness.rank_correlation(jnp.asarray(one), jnp.asarray(two)) == pytest.approx(expected, abs=1e-5)


def test_agreement_with_a_mask():
    mask = jnp.zeros((4, 4), bool).at[:2, :2].set(True)
    inside = jnp.where(mask, 1.0, 0.0).at[3, 3].set(0.5)
    got = faithfulness.agreement(KEY, inside, mask)
    np.testing.assert_allclose(got, [1, 4 / 4.5, 1, 0.25], rtol=1e-6)
    outside = faithfulness.agreement(KEY, -inside, mask)
    assert not outside.pointing
    assert outside.mass == 0.25
    assert outside.overlap == 0
    noise = jax.random.uniform(KEY, (500, 4, 4))
    found = jax.vmap(lambda key, values: faithfulness.agreement(key, values, mask))(jax.random.split(KEY, 500), noise)
    assert found.pointing.mean() == pytest.approx(0.25, abs=0.06)
    assert found.mass.mean() == pytest.approx(0.25, abs=0.02)


def test_road_knows_a_planted_pixel():
    """A network that looks at one pixel: removed among the first it is wrong, removed last it is right."""
    image = -jnp.ones((6, 6, 1)).at[3, 3].set(-1.0)
    logits_fn = lambda x: jnp.stack([0.0, x[3, 3, 0]])  # noqa: E731
    values = jnp.zeros((6, 6)).at[3, 3].set(1.0)
    got = faithfulness.road(KEY, logits_fn, image, jnp.int32(1), values)
    np.testing.assert_array_equal(got.most, [False] * 5)
    np.testing.assert_array_equal(got.least, [True] * 5)
    assert got.score == 1
    assert faithfulness.road(KEY, logits_fn, image, jnp.int32(1), -values).score == -1


def test_diff_roar_from_the_grid():
    percentiles = (10.0, 50.0, 90.0)
    kar = np.array([[[1, 0]], [[1, 1]], [[1, 1]]], bool)
    roar = np.array([[[0, 1]], [[0, 1]], [[0, 0]]], bool)
    got = faithfulness.diff_roar(percentiles, kar, roar)
    # KAR(10) - ROAR(90), KAR(50) - ROAR(50), KAR(90) - ROAR(10), averaged.
    np.testing.assert_allclose(got, [[1.0, (0 - 0 + 1 - 1 + 1 - 1) / 3]])
    with pytest.raises(ValueError, match="got 10 without 90"):
        faithfulness.diff_roar((10.0, 50.0), kar[:2], roar[:2])
