"""The paper's networks, layer by layer as parameter shapes, and the choice among them."""

import jax
import jax.numpy as jnp
import pytest

from robgrad import models

EXPECTED = {
    "mlp": ((2,), [(2, 128), (128, 2)]),
    "digits": ((8, 8, 1), [(3, 3, 1, 16), (3, 3, 16, 32), (4 * 4 * 32, 64), (64, 10)]),
    "mnist": ((28, 28, 1), [(5, 5, 1, 32), (5, 5, 32, 64), (14 * 14 * 64, 1024), (1024, 10)]),
    "cifar": (
        (32, 32, 3),
        [(3, 3, 3, 32), (3, 3, 32, 32), (3, 3, 32, 64), (3, 3, 64, 64), (8 * 8 * 64, 512), (512, 10)],
    ),
}
MODELS = {
    "mlp": models.MLP(),
    "digits": models.digits_cnn(),
    "mnist": models.mnist_cnn(),
    "cifar": models.cifar_cnn(),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_layers_are_the_papers(name):
    shape, kernels = EXPECTED[name]
    params = models.init(MODELS[name], jax.random.key(0), shape)
    leaves = jax.tree.leaves(params)
    assert sorted(leaf.shape for leaf in leaves if leaf.ndim > 1) == sorted(kernels)
    assert all(jnp.all(leaf == 0) for leaf in leaves if leaf.ndim == 1)
    for kernel in (leaf for leaf in leaves if leaf.ndim > 1):
        field = kernel.size // kernel.shape[-1] // kernel.shape[-2]
        limit = (6 / (field * (kernel.shape[-2] + kernel.shape[-1]))) ** 0.5
        assert 0.8 * limit < jnp.max(jnp.abs(kernel)) <= limit


@pytest.mark.parametrize("name", EXPECTED)
def test_one_image_equals_the_batch(name):
    shape, _ = EXPECTED[name]
    params = models.init(MODELS[name], jax.random.key(0), shape)
    images = jax.random.uniform(jax.random.key(1), (3, *shape))
    together = MODELS[name].apply({"params": params}, images)
    alone = jax.vmap(models.logits_fn(MODELS[name], params))(images)
    assert together.shape == (3, MODELS[name].classes)
    assert jnp.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(("shape", "expected"), [((8, 8, 1), "digits"), ((28, 28, 1), "mnist"), ((32, 32, 3), "cifar")])
def test_classifier_for_picks_by_size(shape, expected):
    assert models.classifier_for(shape, 10) == MODELS[expected]
    assert models.classifier_for(shape, 7).classes == 7
