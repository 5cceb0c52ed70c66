"""Rendered shapes, whose manifold is known: the set, its tangent spaces, and the search for an image's code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, gradients, manifolds, networks, stacking, training
from robgrad import data as data_sets
from robgrad.data import shapes

NAME = "shapes-16"


@pytest.fixture(scope="module")
def drawn():
    return data_sets.load(NAME)


@pytest.fixture(scope="module")
def surface(drawn):
    bank = manifolds.Bank(drawn.test.labels, drawn.truth.test_codes, drawn.test.images)
    return manifolds.renderer(drawn.truth.decode, manifolds.Bank(*map(jnp.asarray, bank)), drawn.truth.box)


def test_the_set_is_the_same_each_time_and_balanced(drawn):
    assert drawn.train.images.shape == (6000, 16, 16, 1)
    assert drawn.test.images.shape == (1000, 16, 16, 1)
    assert np.ptp(np.bincount(drawn.train.labels)) <= 1
    assert -1 <= drawn.train.images.min() < -0.5 < 0.5 < drawn.train.images.max() <= 1
    shapes.shapes.cache_clear()
    np.testing.assert_array_equal(data_sets.load(NAME).test.images, drawn.test.images)


@pytest.mark.parametrize(("name", "shape"), [("shapes", (28, 28, 1)), ("shapes-24x3", (24, 24, 3))])
def test_sizes_and_colours(name, shape):
    canvas = shapes.canvas_of(name)
    image = shapes.render(canvas, 3, jnp.zeros(canvas.dimensions))
    assert image.shape == shape
    assert shapes.canvas_of("digits") is None
    for refused in ("shapes-8", "shapes-65x3"):
        with pytest.raises(data_sets.DataError, match="expected a side of 16 to 64 pixels"):
            data_sets.load(refused)


def test_shapes_cover_what_their_areas_say():
    """In closed form: a disc, a ring, a square and a cross at the middle of the box, hard-edged."""
    canvas = shapes.Canvas(64)
    code = jnp.zeros(canvas.dimensions)
    areas = {"disc": np.pi * 0.45**2, "ring": np.pi * (0.475**2 - 0.275**2), "square": 0.8**2}
    areas["cross"] = 2 * 0.32 - 0.32**2
    for name, area in areas.items():
        covered = 4 * float(shapes.mask(canvas, shapes.CLASSES.index(name), code).mean())
        assert covered == pytest.approx(area, rel=0.06), name


def in_float64(label, code):
    """The renderer's Jacobian by central differences in double precision."""
    with jax.enable_x64(True):
        decode = jax.jit(lambda code: shapes.render(shapes.Canvas(16), label, code).ravel())
        code = np.asarray(code, np.float64)
        steps = 1e-5 * np.eye(code.size)
        return np.stack([(np.asarray(decode(code + h)) - np.asarray(decode(code - h))) / 2e-5 for h in steps], axis=1)


def test_the_analysers_fraction_is_that_of_finite_differences(drawn, surface):
    """On a network with gradients everywhere, at images whose codes are known."""
    weights = jax.random.normal(jax.random.key(0), (256, 7))
    network = lambda image: jnp.tanh(image.ravel() / 4) @ weights  # noqa: E731
    images, labels = drawn.test.images[:14], drawn.test.labels[:14]
    found = gradients.analyser(network, surface, true_label=True)(images, labels)
    codes = drawn.truth.test_codes
    for index in range(14):
        slope = np.asarray(gradients.loss_gradient(network, jnp.asarray(images[index]), labels[index]), np.float64)
        basis, _ = np.linalg.qr(in_float64(int(labels[index]), codes[index]))
        expected = np.sum((basis.T @ slope.ravel()) ** 2) / np.sum(slope**2)
        assert found.tangent_fraction[index] == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(found.chance, 12 / 256, rtol=1e-6)
    np.testing.assert_allclose(found.distance, 0, atol=1e-3)


def test_a_gradient_inside_the_tangent_space_has_fraction_one_and_outside_zero(drawn, surface):
    image = jnp.asarray(drawn.test.images[3])
    basis, _ = surface.tangent_space(image)
    noise = jax.random.normal(jax.random.key(1), (256,))
    along = basis @ (basis.T @ noise)
    for direction, expected in ((along, 1.0), (noise - along, 0.0)):
        # Two classes whose logits differ by a linear function: its weights are the gradient's direction.
        network = lambda x, w=direction: jnp.stack([x.ravel() @ w, 0.0])  # noqa: E731
        found = gradients.align(network, surface, image, image)
        assert found.tangent_fraction == pytest.approx(expected, abs=1e-3)


def test_the_code_of_an_image_off_the_manifold_is_found(drawn, surface):
    """From the nearest other image: what a code near by has made is found again; noise stays off."""
    truth = drawn.truth
    generator = np.random.default_rng(0)
    codes = np.clip(truth.test_codes[:20] + generator.normal(0, 0.1, (20, 12)), -1, 1).astype(np.float32)
    images = jax.vmap(truth.decode)(drawn.test.labels[:20], codes)
    near = jax.vmap(lambda image: manifolds.distance(surface, image))(images)
    assert np.median(near) < 0.02
    noisy = jnp.clip(images + 0.3 * generator.normal(size=images.shape), -1, 1)
    far = jax.vmap(lambda image: manifolds.distance(surface, image))(noisy)
    moved = jnp.linalg.norm((noisy - images).reshape(20, -1), axis=1)
    # The code it was made of is one that may be found; all but the manifold's 12 of 256 dimensions are noise.
    assert np.all(far < 1.01 * moved)
    assert np.all(far > 0.8 * moved)


def test_a_standard_network_tells_the_shapes(drawn):
    network = networks.classifier_for((16, 16, 1), 7)
    start = stacking.stack([training.init_classifier(network, (16, 16, 1), jax.random.key(0))])
    step = training.classifier_step(network, attacks.no_attack)
    mesh = stacking.device_mesh(1, 50)
    trained = training.fit(step, start, training.StepSizes(), drawn.train, mesh=mesh, batch_size=50, epochs=5)
    predict = training.evaluate(network, attacks.no_attack, mesh)
    found = np.asarray(predict(trained.variables, drawn.test, jax.random.key(0)))
    assert np.mean(found == drawn.test.labels) >= 0.97
