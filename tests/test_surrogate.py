"""LIME: its fit against scikit-learn, its regions, and what it says of networks whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from robgrad import gradients


@pytest.mark.parametrize("ridge", [1.0, 0.01])
def test_the_fit_is_scikit_learns(ridge):
    generator = np.random.default_rng(0)
    kept = (generator.random((200, 16)) < 0.5).astype(np.float32)
    kept[0] = 1
    values = kept @ generator.normal(size=16) + 0.3 * generator.normal(size=200)
    weights = np.sqrt(np.exp(-((1 - np.sqrt(kept.mean(1))) ** 2) / 0.25**2))
    expected = Ridge(alpha=ridge).fit(kept, values, sample_weight=weights).coef_
    got = gradients.surrogate(jnp.asarray(kept), jnp.asarray(values, jnp.float32), ridge=ridge)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_network_that_sees_one_corner_has_that_corner():
    logits_fn = lambda image: jnp.stack([jnp.sum(image[:2, :2]), jnp.zeros(())])  # noqa: E731
    images = jnp.ones((3, 8, 8, 1)).at[:, 4:, 4:].set(-1.0)
    keys = jax.random.split(jax.random.key(0), 3)
    maps = jax.jit(jax.vmap(lambda key, image: gradients.lime(fill=-1.0, ridge=0.01)(key, logits_fn, image)))(
        keys, images
    )
    assert maps.shape == (3, 8, 8)
    assert jnp.all(maps[:, :2, :2] > 0.5)
    np.testing.assert_allclose(maps.at[:, :2, :2].set(0.0), 0.0, atol=0.05)
    with pytest.raises(ValueError, match="expected at least 2 samples"):
        gradients.lime(samples=1)


def test_a_grid_has_its_cells_and_no_more_than_there_are_pixels():
    regions = gradients.grid_regions(4)
    cells = regions.of(jnp.zeros((10, 8, 3)))
    assert regions.count((10, 8, 3)) == 16 == len(np.unique(cells))
    assert cells[0, 0] == 0
    assert cells[-1, -1] == 15
    small = gradients.grid_regions(4)
    assert small.count((2, 3, 1)) == 6 == len(np.unique(small.of(jnp.zeros((2, 3, 1)))))


def test_superpixels_keep_to_an_edge():
    """Two flat halves: no region lies on both sides."""
    image = jnp.full((16, 16, 1), -1.0).at[:, 7:].set(1.0)
    regions = gradients.superpixels(16)
    cells = jax.jit(regions.of)(image)
    assert regions.count(image.shape) == 16 > int(cells.max())
    assert not {*np.unique(cells[:, :7])} & {*np.unique(cells[:, 7:])}
    by_place = jax.jit(gradients.superpixels(16, compactness=100.0).of)(image)
    assert {*np.unique(by_place[:, :7])} & {*np.unique(by_place[:, 7:])}
