"""Jacobians, tangent spaces and alignments against closed forms, forward mode and NumPy's SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from robgrad import attacks, gradients, manifolds, stacking, training
from robgrad import data as data_sets
from robgrad.manifolds import generators
from robgrad.networks import layers

KEY = jax.random.key(0)
MIX = jax.random.normal(KEY, (4, 12))


def curved(code):
    return jnp.sin(code @ MIX).reshape(3, 4)


def test_jacobian_equals_forward_mode():
    code = jnp.array([0.3, -0.2, 0.5, 0.1])
    expected = jax.jacfwd(curved)(code).reshape(12, 4)
    np.testing.assert_allclose(manifolds.decoder_jacobian(curved, code), expected, rtol=1e-5, atol=1e-6)


def test_jacobian_passes_through_custom_derivatives():
    kernel = jax.random.normal(KEY, (3, 3, 1, 1))
    decode = lambda code: jnp.tanh(layers.conv_transpose(code.reshape(1, 2, 2, 1), kernel, 2))  # noqa: E731
    code, step = jnp.array([0.1, 0.2, -0.3, 0.4]), 1e-2
    got = manifolds.decoder_jacobian(decode, code)
    differences = [(decode(code + step * e) - decode(code - step * e)).ravel() / (2 * step) for e in jnp.eye(4)]
    np.testing.assert_allclose(got, jnp.stack(differences, 1), atol=1e-3)


@pytest.mark.parametrize("rank", [0, 1, 3, 4])
def test_tangent_space_spans_the_column_space(rank):
    """Of a Jacobian of any rank, projections equal those by NumPy's SVD."""
    left, _, right = np.linalg.svd(np.asarray(MIX).T, full_matrices=False)
    jacobian = (left[:, :rank] * np.array([100.0, 3.0, 1.0, 0.1])[:rank]) @ right[:rank]
    linear = manifolds.autoencoder(lambda x: x[:4], lambda code: jnp.asarray(jacobian, jnp.float32) @ code)
    basis, found = jax.jit(lambda image: linear.tangent_space(image))(jnp.ones(12))
    assert found == rank
    assert basis.shape == (12, 4)
    np.testing.assert_allclose(basis.T @ basis, np.diag([1.0] * rank + [0.0] * (4 - rank)), atol=1e-5)
    np.testing.assert_allclose(basis @ basis.T, left[:, :rank] @ left[:, :rank].T, atol=1e-4)


def test_nearly_dependent_columns_stay_orthonormal():
    columns = jnp.stack([jnp.ones(6), jnp.ones(6).at[0].add(3e-3), jnp.arange(6.0)], axis=1)
    basis, rank = manifolds.autoencoder(lambda x: x[:3], lambda c: columns @ c).tangent_space(jnp.zeros(6))
    assert rank == 3
    np.testing.assert_allclose(basis.T @ basis, jnp.eye(3), atol=1e-4)


PLANE = manifolds.autoencoder(lambda x: x[:2], lambda code: jnp.concatenate([code, jnp.zeros(6)]))


def test_distance_to_a_plane():
    image = jnp.array([5.0, 6, 3, 4, 0, 0, 0, 0])
    np.testing.assert_allclose(PLANE.project(image), [5, 6, 0, 0, 0, 0, 0, 0])
    assert manifolds.distance(PLANE, image) == 5.0


def test_alignment_in_closed_form():
    """A linear margin has one gradient everywhere: here (3, 0, 4, 0, ...), of which the plane holds (3, 0)."""
    weights = jnp.zeros((2, 8)).at[1, 0].set(3.0).at[1, 2].set(4.0)
    logits_fn = lambda x: weights @ x + jnp.array([1.0, 0.0])  # noqa: E731
    got = gradients.align(logits_fn, PLANE, jnp.zeros(8), jnp.full(8, 0.5), loss=attacks.cw_margin)
    expected = gradients.Alignment(5.0, 9 / 25, 2 / 8, 3 / 5, 0.0, 0.5 * 6**0.5)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_label_is_the_prediction_unless_given():
    logits_fn = lambda x: jnp.stack([x[0] + 1, 2 * x[1], x[2]])  # noqa: E731
    image = jnp.zeros(8).at[1].set(0.1)
    predicted = gradients.loss_gradient(logits_fn, image, loss=attacks.cw_margin)
    given = gradients.loss_gradient(logits_fn, image, 1, attacks.cw_margin)
    np.testing.assert_array_equal(predicted[:3], [-1.0, 2.0, 0.0])
    np.testing.assert_array_equal(given[:3], [1.0, -2.0, 0.0])


def test_zero_gradient_has_no_fraction():
    got = gradients.align(lambda x: jnp.zeros(3), PLANE, jnp.zeros(8), jnp.zeros(8))
    assert got.gradient_norm == 0
    assert jnp.isnan(got.tangent_fraction)
    assert jnp.isnan(got.cosine)


def test_random_directions_get_their_chance():
    """The mean fraction of random linear networks' gradients is rank over pixels."""
    weights = jax.random.normal(KEY, (2000, 2, 8))
    fractions = jax.vmap(
        lambda w: gradients.align(lambda x: w @ x, PLANE, jnp.zeros(8), jnp.zeros(8), 0).tangent_fraction
    )(weights)
    assert abs(float(fractions.mean()) - 0.25) < 0.02


def test_analyser_equals_one_image_at_a_time():
    """Batches, remainders of chunks and the attack before, on a network and a manifold that are plain functions."""
    weights = jax.random.normal(KEY, (12, 16)), jax.random.normal(jax.random.key(1), (16, 5))
    logits_fn = lambda x: jnp.tanh(x.ravel() @ weights[0]) @ weights[1]  # noqa: E731
    surface = manifolds.autoencoder(lambda x: x.ravel()[:4], curved)
    attack = attacks.pgd(attacks.LINF, attacks.cross_entropy, 3)
    images = jax.random.uniform(KEY, (7, 3, 4), minval=-1.0)
    labels, said = jnp.arange(7) % 5, []
    analyse = gradients.analyser(logits_fn, surface, attack=attack, true_label=True, chunk=3, progress=said.append)
    got = analyse(images, labels, epsilon=0.2, step_size=0.1)
    for index in range(7):
        attacked = attack(None, logits_fn, images[index], labels[index], 0.2, 0.1)
        expected = gradients.align(logits_fn, surface, images[index], attacked, labels[index])
        np.testing.assert_allclose([leaf[index] for leaf in got], expected, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(got.cosine**2, got.tangent_fraction, rtol=1e-5)
    assert got.cosine.shape == (7,)
    assert said == ["3 of 7 images", "6 of 7 images", "7 of 7 images"]
    with pytest.raises(ValueError, match="expected at least 1 image in a chunk"):
        gradients.analyser(logits_fn, surface, chunk=0)


def test_vae_gan_manifold_takes_the_mean_or_a_sample(digits):
    model = generators.digits_vae_gan()
    variables = manifolds.init_vae_gan(model, (8, 8, 1), KEY).variables
    image = jnp.zeros((8, 8, 1))
    mean, log_variance = model.encoder.apply(variables["encoder"], image[None])
    decode = lambda code: model.decoder.apply(variables["decoder"], code[None])[0]  # noqa: E731
    np.testing.assert_allclose(manifolds.from_vae_gan(model, variables).project(image), decode(mean[0]), atol=1e-6)
    for key in jax.random.split(KEY, 3):
        code = mean[0] + jnp.exp(0.5 * log_variance[0]) * jax.random.normal(key, mean[0].shape)
        sampled = manifolds.from_vae_gan(model, variables, key).project(image)
        np.testing.assert_allclose(sampled, decode(code), atol=1e-5)


def test_a_decoder_to_another_shape_is_refused():
    flat = manifolds.autoencoder(lambda x: x.ravel()[:2], lambda code: jnp.zeros(12) + code.sum())
    with pytest.raises(ValueError, match=r"expected a decoder to images of shape \[3, 4\], got \[12\]"):
        manifolds.distance(flat, jnp.zeros((3, 4)))


def test_pca_equals_scikit_learns(digits):
    theirs = PCA(10, svd_solver="full").fit(np.asarray(data_sets.scale(digits.train.images)).reshape(1437, -1))
    images = np.asarray(data_sets.scale(digits.test.images[:5]))
    expected = theirs.inverse_transform(theirs.transform(images.reshape(5, -1))).reshape(images.shape)
    plane = manifolds.pca(manifolds.fit_pca(digits.train.images, 10))
    np.testing.assert_allclose(jax.vmap(plane.project)(images), expected, atol=1e-4)
    basis, rank = plane.tangent_space(images[0])
    assert rank == 10
    np.testing.assert_allclose(basis @ basis.T, theirs.components_.T @ theirs.components_, atol=1e-4)
    with pytest.raises(ValueError, match="expected 1 to 63 dimensions for 1437 images of 64 pixels, got 64"):
        manifolds.fit_pca(digits.train.images, 64)


@pytest.fixture(scope="module")
def rendered():
    """Shapes as small as digits, whose manifold is known."""
    whole = data_sets.load("shapes-16")
    return whole._replace(train=data_sets.Split(*(leaf[:40] for leaf in whole.train)), test=whole.test)


@pytest.mark.parametrize("kind", manifolds.KINDS)
def test_every_kind_of_manifold_plays_its_role(kind, rendered):
    """Fitted or started, of the shapes it says, projecting to images and spanning orthonormal tangents there."""
    shape, kind = (16, 16, 1), manifolds.KINDS[kind]
    settings = {name: 1 for name in kind.settings} | {"pca_dimensions": 3, "neighbours": 5, "dataset": "shapes-16"}
    settings |= {"train_examples": 40, "test_examples": 1000, "denoiser_noise": 0.3, "denoiser_dimensions": 6}
    if kind.fit:
        arrays = kind.fit(rendered, settings)
    else:
        fitting = kind.fitting(shape, KEY, settings)
        arrays = stacking.replica(fitting.states.variables, 0)
    shapes = kind.shapes(shape, settings)
    assert jax.tree.map(lambda leaf: leaf.shape, arrays) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    surface = kind.manifold(shape, arrays, None, settings)
    image = jnp.asarray(rendered.test.images[0])
    assert surface.project(image).shape == shape
    basis, rank = surface.tangent_space(image)
    kept = basis[:, : int(rank)]
    np.testing.assert_allclose(kept.T @ kept, np.eye(int(rank)), atol=1e-4)
    if kind.sample:
        assert kind.sample(shape, arrays, jax.random.split(KEY, 2)).shape == (2, *shape)


def test_leading_directions_are_eigenvectors():
    """Of a symmetric matrix with a gap: the space that NumPy's eigenvectors span, and their eigenvalues."""
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    values = np.concatenate([[5.0, 4.0, 3.5, 2.0], np.linspace(0.3, -0.3, 26)])
    matrix = jnp.asarray(vectors * values @ vectors.T, jnp.float32)
    found, quotients = manifolds.leading_directions(lambda block: matrix @ block, 30, 4, 15)
    np.testing.assert_allclose(quotients, values[:4], rtol=1e-3)
    np.testing.assert_allclose(found @ found.T, vectors[:, :4] @ vectors[:, :4].T, atol=1e-4)


def test_neighbours_planes_follow_a_sphere():
    """On a sphere in a space of 3 of 20 dimensions: planes that touch it, where one plane for all is of no use."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(4000, 3))
    frame = np.linalg.qr(generator.normal(size=(20, 3)))[0]
    points = 0.9 * points / np.linalg.norm(points, axis=1, keepdims=True)
    images = (points @ frame.T).astype(np.float32).reshape(-1, 4, 5, 1)
    surface = manifolds.local_pca(images, neighbours=30, dimensions=2)
    for index in range(3):
        basis, rank = surface.tangent_space(jnp.asarray(images[index]))
        assert rank == 2
        normal = frame @ points[index] / 0.9
        np.testing.assert_allclose(basis.T @ normal, 0, atol=0.1)
        np.testing.assert_allclose(basis.T @ frame @ frame.T, basis.T, atol=1e-4)
    outside = 1.2 * images[0]
    assert manifolds.distance(surface, outside) == pytest.approx(0.18, abs=0.03)
    with pytest.raises(ValueError, match="expected 1 <= dimensions < neighbours <= 4000 images, got 30 and 30"):
        manifolds.local_pca(images, neighbours=30, dimensions=30)


def test_a_denoiser_finds_the_plane_that_the_data_lie_in():
    """Trained on a plane of 3 dimensions: tangent spaces are the plane, and projection goes to it."""
    generator = np.random.default_rng(0)
    frame = np.linalg.qr(generator.normal(size=(64, 3)))[0]
    images = np.clip(generator.uniform(-2.5, 2.5, (2000, 3)) @ frame.T, -1, 1).astype(np.float32).reshape(-1, 8, 8, 1)
    network = manifolds.Denoiser()
    states = stacking.stack([manifolds.init_denoiser(network, (8, 8, 1), KEY)])
    data = data_sets.Split(images, np.zeros(2000, np.int32))
    options = {"mesh": stacking.device_mesh(1, 50), "batch_size": 50, "epochs": 16}
    sizes = manifolds.DenoiserSizes(jnp.array([2e-3]))
    trained = training.fit(manifolds.denoiser_step(network), states, sizes, data, **options)
    surface = manifolds.from_denoiser(network, stacking.replica(trained.variables, 0), dimensions=8)
    shared = []
    for image in jnp.asarray(images[:10]):
        basis, rank = surface.tangent_space(image)
        assert 2 <= rank <= 4
        shared.append(np.sum((np.asarray(basis).T @ frame) ** 2) / 3)
    assert np.mean(shared) > 0.9
    noisy = images[:20] + 0.2 * generator.normal(size=(20, 8, 8, 1)).astype(np.float32)
    off = lambda x: np.linalg.norm(x.reshape(20, -1) @ (np.eye(64) - frame @ frame.T), axis=1)  # noqa: E731
    assert np.median(off(np.asarray(jax.vmap(surface.project)(noisy)))) < 0.35 * np.median(off(noisy))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": np.full((2, 8), 200.0)}, r"expected pixels in \[-1, 1\], got 200 to 200"),
        ({"images": np.full((2, 8), np.nan)}, "got NaN or infinity in 2 of 2"),
        ({"images": np.zeros((2, 8), int)}, "expected uint8 or floating-point images, got int64"),
        ({"images": np.zeros(8)}, r"expected examples of shape \[N, ...\]"),
        ({"labels": [0, 3]}, "expected labels in 0..2"),
        ({"labels": [0]}, "expected one label for each of 2 images"),
        ({"epsilon": None}, "expected epsilon and step_size"),
        ({"epsilon": -1.0}, "expected epsilon >= 0"),
        ({"epsilon": [0.1, 0.2, 0.3]}, r"expected epsilon as a number or one for each of 2 images, got shape \[3\]"),
        ({"images": np.zeros((2, 5))}, "which this one does not take"),
    ],
)
def test_the_analyser_refuses_what_would_be_silent_nonsense(changed, message):
    weights = jnp.ones((3, 8))
    analyse = gradients.analyser(lambda x: weights @ x, PLANE, attack=attacks.pgd("l2", attacks.cross_entropy, 1))
    given = {"images": np.zeros((2, 8)), "labels": [0, 1], "epsilon": 0.5, "step_size": 0.1} | changed
    with pytest.raises(ValueError, match=message):
        analyse(**given)


def test_the_analyser_takes_a_radius_for_each_image():
    weights = jax.random.normal(KEY, (3, 8))
    analyse = gradients.analyser(lambda x: weights @ x, PLANE, attack=attacks.pgd("l2", attacks.cross_entropy, 3))
    images = np.zeros((2, 8), np.float16)
    both = analyse(images, [[0], [1]], epsilon=[0.1, 0.4], step_size=1.0)
    for index, epsilon in enumerate((0.1, 0.4)):
        one = analyse(images[:1], [index], epsilon=epsilon, step_size=1.0)
        np.testing.assert_allclose(both.attacked_distance[index], one.attacked_distance[0], rtol=1e-5)
