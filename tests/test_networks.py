"""Networks layer by layer as parameter shapes, the choice among them, and the role that every one plays."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import networks, stacking

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
    "mlp": networks.MLP(),
    "digits": networks.digits_cnn(),
    "mnist": networks.mnist_cnn(),
    "cifar": networks.cifar_cnn(),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_layers_are_the_papers(name):
    shape, kernels = EXPECTED[name]
    variables = networks.init(MODELS[name], jax.random.key(0), shape)
    leaves = jax.tree.leaves(variables)
    assert sorted(leaf.shape for leaf in leaves if leaf.ndim > 1) == sorted(kernels)
    assert all(jnp.all(leaf == 0) for leaf in leaves if leaf.ndim == 1)
    for kernel in (leaf for leaf in leaves if leaf.ndim > 1):
        field = kernel.size // kernel.shape[-1] // kernel.shape[-2]
        limit = (6 / (field * (kernel.shape[-2] + kernel.shape[-1]))) ** 0.5
        assert 0.8 * limit < jnp.max(jnp.abs(kernel)) <= limit


@pytest.mark.parametrize("name", EXPECTED)
def test_one_image_equals_the_batch(name):
    shape, _ = EXPECTED[name]
    variables = networks.init(MODELS[name], jax.random.key(0), shape)
    images = jax.random.uniform(jax.random.key(1), (3, *shape))
    together = MODELS[name].apply(variables, images)
    alone = jax.vmap(networks.logits_fn(MODELS[name], variables))(images)
    assert together.shape == (3, MODELS[name].classes)
    assert jnp.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(("shape", "expected"), [((8, 8, 1), "digits"), ((28, 28, 1), "mnist"), ((32, 32, 3), "cifar")])
def test_classifier_for_picks_by_size(shape, expected):
    assert networks.classifier_for(shape, 10) == MODELS[expected]
    assert networks.classifier_for(shape, 7).classes == 7


def parameters(network, shape=(32, 32, 3)):
    shapes = jax.eval_shape(lambda: networks.init(network, jax.random.key(0), shape)["params"])
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_residual_networks_have_the_published_sizes():
    # PreActResNet-18 with its last batch norm; WRN-28-10 and WRN-16-4: 36.5 and 2.7 million (Zagoruyko, table 5).
    assert parameters(networks.preact_resnet_18()) == 11_172_170
    assert parameters(networks.wide_resnet(28, 10)) == 36_479_194
    assert parameters(networks.wide_resnet(16, 4)) == 2_748_890
    with pytest.raises(ValueError, match="expected a depth of 10, 16"):
        networks.wide_resnet(12, 1)


def train(network, variables, images, weights):
    """One call in training mode, the batch's axis of one device bound."""
    mapped = jax.vmap(networks.of_module(network).train, (None, 0, 0), axis_name=stacking.DATA)
    logits, moved = mapped(variables, images[None], weights[None])
    return logits[0], jax.tree.map(lambda leaf: leaf[0] if leaf.ndim else leaf, moved)


SMALL = {
    **{name: networks.network_named(name, (8, 8, 1), 3) for name in ("paper", "wide-resnet-10-1")},
    "preact-resnet": networks.PreActResNet(8, (8, 16, 16, 16), 2, 3),
    "flax's own layers": nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(8), nn.Dense(3)]),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_network_plays_its_role(name):
    """One image alone equals the batch in evaluation; training moves what is not a parameter, and nothing else."""
    network, images = SMALL[name], jax.random.uniform(jax.random.key(1), (6, 8, 8, 1), minval=-1.0)
    variables = networks.init(network, jax.random.key(0), (8, 8, 1))
    together = networks.logits(network, variables, images)
    alone = jax.vmap(networks.logits_fn(network, variables))(images)
    np.testing.assert_allclose(together, alone, atol=1e-4)
    logits, moved = train(network, variables, images, jnp.ones(6))
    assert logits.shape == (6, 3)
    assert moved.keys() == variables.keys()
    for collection in variables:
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), variables[collection], moved[collection])
        assert all(jax.tree.leaves(same)) == (collection == "params")


def test_padding_moves_no_statistics():
    network, images = SMALL["wide-resnet-10-1"], jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = networks.init(network, jax.random.key(0), (8, 8, 1))
    whole, moved = train(network, variables, images, jnp.ones(4))
    padded, again = train(
        network, variables, jnp.concatenate([images, 9 + images[:2]]), jnp.array([1.0] * 4 + [0.0] * 2)
    )
    np.testing.assert_allclose(padded[:4], whole, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved["batch_stats"], again["batch_stats"])


def test_modules_with_a_train_argument_are_understood():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            flat = images.reshape(len(images), -1)
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(flat))

    network = Module()
    variables = networks.init(network, jax.random.key(0), (4, 4, 1))
    images = jax.random.normal(jax.random.key(1), (5, 4, 4, 1))
    assert networks.logits(network, variables, images).shape == (5, 3)
    moved = train(network, variables, images, jnp.ones(5))[1]
    assert not jnp.allclose(moved["batch_stats"]["BatchNorm_0"]["mean"], 0)
