"""The VAE-GAN's layers, its losses, who moves when, its spectral norm, and its step on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import data as data_sets
from robgrad import manifolds, stacking, training
from robgrad.manifolds import generators

SHAPES = {
    (8, 8, 1): (10, [], [], []),
    (28, 28, 1): (
        10,
        [(4, 4, 1, 64), (4, 4, 64, 128), (4, 4, 128, 256), (4 * 4 * 256, 20)],
        [(10, 1024), (4, 4, 256, 256), (4, 4, 256, 128), (4, 4, 128, 32), (4, 4, 32, 1)],
        [(4, 4, 1, 32), (4, 4, 32, 128), (4, 4, 128, 256), (4, 4, 256, 256), (1024, 512), (512, 1)],
    ),
    (32, 32, 3): (
        128,
        [(5, 5, 3, 64), (5, 5, 64, 128), (5, 5, 128, 256), (4 * 4 * 256, 256)],
        [(128, 8192), (4, 4, 512, 256), (4, 4, 256, 128), (4, 4, 128, 64), (3, 3, 64, 3)],
        [
            *[(3, 3, 3, 64), (4, 4, 64, 64), (3, 3, 64, 128), (4, 4, 128, 128), (3, 3, 128, 256), (4, 4, 256, 256)],
            *[(3, 3, 256, 512), (4 * 4 * 512, 1)],
        ],
    ),
}


def kernels(variables):
    return sorted(leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_layers_and_ranges(shape):
    latent, *expected = SHAPES[shape]
    model = manifolds.vae_gan_for(shape)
    variables = manifolds.init_vae_gan(model, shape, jax.random.key(0)).variables
    for network, wanted in zip(("encoder", "decoder", "discriminator"), expected, strict=True):
        assert not wanted or kernels(variables[network]) == sorted(wanted)
    images = jax.random.uniform(jax.random.key(1), (2, *shape), minval=-1.0)
    mean, log_variance = model.encoder.apply(variables["encoder"], images)
    assert mean.shape == log_variance.shape == (2, latent)
    decoded = model.decoder.apply(variables["decoder"], mean)
    assert decoded.shape == images.shape
    assert jnp.all(jnp.abs(decoded) <= 1)


@pytest.mark.parametrize("shape", [(9, 9, 1), (16, 16, 3), (20, 33, 1), (64, 64, 3)])
def test_other_sizes_have_networks_of_their_own(shape):
    model = manifolds.vae_gan_for(shape)
    shapes = jax.eval_shape(lambda: manifolds.init_vae_gan(model, shape, jax.random.key(0)).variables)
    decoded = jax.eval_shape(model.decoder.apply, shapes["decoder"], jax.ShapeDtypeStruct((2, 10), jnp.float32))
    assert decoded.shape == (2, *shape)


def test_the_smallest_are_refused():
    with pytest.raises(ValueError, match="expected images of at least 8x8 pixels, got 6x9"):
        manifolds.vae_gan_for((6, 9, 1))


SMALL = generators.VaeGan(
    generators.Encoder((4,), 4, 3),
    generators.Decoder((4, 4, 4), (), generators.Layer(1, 4, 2)),
    generators.Discriminator((generators.Layer(4, 4, 2),), 8),
    3,
)
STEP = manifolds.vae_gan_step(SMALL)


def fit(data, mesh, epochs=1, batch_size=10, learning_rate=1e-3):
    states = stacking.stack([manifolds.init_vae_gan(SMALL, (8, 8, 1), jax.random.key(0))])
    numbers = manifolds.VaeGanSizes(jnp.array([0.1]), jnp.array([learning_rate]))
    progress = []
    states = training.fit(
        STEP, states, numbers, data, mesh=mesh, batch_size=batch_size, epochs=epochs, progress=progress.append
    )
    return stacking.replica(states.variables, 0), progress


def epoch_sums(progress):
    """Metrics summed over all steps: the lengths of segments depend on the clock."""
    lengths = np.diff([0, *(part.step for part in progress)])
    return jax.tree.map(lambda *means: np.dot(lengths, np.stack(means)), *(part.metrics for part in progress))


@pytest.fixture(scope="module")
def data(digits):
    return data_sets.Split(*(leaf[:60] for leaf in digits.train))


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize("batch_size", [10, 7])
def test_a_split_batch_gives_the_numbers_of_one_device(data, batch_size):
    """Batch statistics, losses and noise are those of the whole batch, without its padding."""
    one, two = (
        fit(
            data,
            jax.sharding.Mesh(np.array(jax.devices()[:n]).reshape(1, n), (stacking.REPLICA, stacking.DATA)),
            1,
            batch_size,
        )
        for n in (1, 2)
    )
    # Losses and statistics, not parameters: Adam makes whole steps of gradients that are zero but for rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3), epoch_sums(one[1]), epoch_sums(two[1]))
    statistics = [variables["encoder"]["batch_stats"] for variables, _ in (one, two)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), *statistics)


def test_losses_are_the_formulas(data):
    """At learning rate zero, the metrics of one step against NumPy on the same batch, noise and variables."""
    mesh = stacking.device_mesh(1, 10, jax.devices()[:1])
    split = data_sets.Split(*(leaf[:10] for leaf in data))
    _, (progress,) = fit(split, mesh, learning_rate=0.0)
    state = manifolds.init_vae_gan(SMALL, (8, 8, 1), jax.random.key(0))
    order = jax.random.permutation(jax.random.fold_in(state.key, 0), 10)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(state.key, ~jnp.int32(0)), i))(jnp.arange(10))
    noise = lambda stage: jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, stage), (3,)))(keys)  # noqa: E731
    images, weights = np.asarray(data_sets.scale(jnp.asarray(split.images)))[order], jnp.ones(10)

    def run(name, inputs):
        """Batch statistics by a mapped axis of one."""
        network = getattr(SMALL, name)
        apply = lambda x: network.apply(state.variables[name], x, weights, mutable=["batch_stats"])[0]  # noqa: E731
        return jax.tree.map(
            lambda leaf: np.asarray(leaf[0], np.float64), jax.vmap(apply, axis_name="data")(inputs[None])
        )

    mean, log_variance = run("encoder", images)
    fake, sample = (
        run("decoder", jnp.asarray(code, jnp.float32))
        for code in (mean + np.exp(log_variance / 2) * noise(0), np.asarray(noise(1)))
    )
    reconstruction = np.abs(images - fake).sum((1, 2, 3)).mean()
    divergence = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(1).mean()
    chance = lambda images: 1 / (1 + np.exp(-run("discriminator", jnp.asarray(images, jnp.float32))))  # noqa: E731
    fooled = -np.log(chance(fake)).mean() - np.log(chance(sample)).mean()
    fresh_fake, fresh_sample = (
        run("decoder", jnp.asarray(code, jnp.float32))
        for code in (mean + np.exp(log_variance / 2) * noise(2), np.asarray(noise(3)))
    )
    judged = -np.mean(np.log(chance(images)) + np.log(1 - chance(fresh_fake)) + np.log(1 - chance(fresh_sample)))
    got = {name: float(value[0]) for name, value in progress.metrics.items()}
    expected = {
        "reconstruction": reconstruction,
        "divergence": divergence,
        "decoder": 0.1 * reconstruction + fooled,
        "discriminator": judged,
    }
    assert got == pytest.approx(expected, rel=1e-4)


def test_learns_to_reconstruct(data):
    _, progress = fit(data, stacking.device_mesh(1, 10), epochs=40, learning_rate=3e-3)
    assert progress[-1].metrics["reconstruction"][0] < 0.7 * progress[0].metrics["reconstruction"][0]


@pytest.mark.parametrize("gain", [0.05, 3.0])
def test_spectral_norm_is_that_of_the_convolution(gain):
    """Against the singular values of the convolution written out as a matrix."""
    layer = generators.SpectralConv(generators.Layer(3, 4, 2))
    images = jax.random.normal(jax.random.key(0), (5, 6, 6, 2))
    variables = layer.init(jax.random.key(1), images)
    variables["params"]["kernel"] *= gain / jnp.abs(variables["params"]["kernel"]).max()
    plain = generators.Conv(3, 4, 2)
    matrix = jax.vmap(lambda x: plain.apply({"params": variables["params"]}, x.reshape(1, 6, 6, 2)).ravel())(
        jnp.eye(72)
    )
    sigma = np.linalg.svd(matrix, compute_uv=False)[0]
    for _ in range(100):
        result, moved = layer.apply(variables, images, mutable=["spectral"])
        variables = variables | moved
    expected = plain.apply({"params": variables["params"]}, images) / max(sigma, 1.0)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
    frozen, same = layer.apply(variables, images), variables["spectral"]["left"]
    np.testing.assert_allclose(frozen, result, rtol=1e-3, atol=1e-4)
    assert same is variables["spectral"]["left"]
