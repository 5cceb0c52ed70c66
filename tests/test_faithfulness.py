"""Attributions, rank maps, occlusion, stacked retraining and scores, against NumPy, scikit-learn and planted truths."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import auc

from robgrad import data as data_sets
from robgrad import faithfulness, gradients, networks, stacking, training
from robgrad.faithfulness import retraining

MODEL = networks.CNN(((4,),), 3, 16, 2)


@pytest.fixture(scope="module")
def planted():
    """Noise images 8x8 whose class, of two, shows in a 3x3 patch alone: bright or dark."""
    generator = np.random.default_rng(0)
    images = generator.integers(64, 192, (600, 8, 8, 1))
    labels = generator.integers(0, 2, 600).astype(np.int32)
    images[:, 2:5, 3:6, 0] = np.where(labels, 255, 0)[:, None, None]
    images = images.astype(np.uint8)
    return data_sets.Split(images[:400], labels[:400]), data_sets.Split(images[400:], labels[400:])


def patch(key, logits_fn, image):
    """Points at the patch, and beyond it in a random order."""
    return jnp.zeros((8, 8)).at[2:5, 3:6].set(1.0)


def away(key, logits_fn, image):
    return -patch(key, logits_fn, image)


def test_attributions_of_a_linear_network_are_in_closed_form():
    """dL/dx = W (softmax - onehot of the prediction), summed over two channels."""
    weights = np.random.default_rng(0).normal(size=(32, 3))
    image = np.random.default_rng(1).uniform(-1, 1, (4, 4, 2))
    logits = image.ravel() @ weights
    shares = np.exp(logits) / np.exp(logits).sum() - (logits == logits.max())
    gradient = (weights @ shares).reshape(image.shape)
    logits_fn = lambda x: x.ravel() @ jnp.asarray(weights, jnp.float32)  # noqa: E731
    ours = lambda name: gradients.ATTRIBUTIONS[name](jax.random.key(0), logits_fn, jnp.asarray(image, jnp.float32))  # noqa: E731
    np.testing.assert_allclose(ours("gradient"), np.abs(gradient).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(ours("gradient_times_input"), np.abs(image * gradient).sum(-1), rtol=1e-4, atol=1e-6)


def test_rank_maps_are_permutations_with_ties_at_random():
    values = jnp.array([[0.5, 2.0, 0.5], [0.5, -1.0, jnp.inf]])
    maps = jax.vmap(lambda key: gradients.rank_map(key, values))(jax.random.split(jax.random.key(0), 300))
    assert maps.dtype == jnp.uint8
    np.testing.assert_array_equal(np.sort(maps.reshape(300, -1)), np.tile(np.arange(6), (300, 1)))
    assert (np.asarray(maps)[:, [1, 0, 1], [2, 1, 1]] == [0, 1, 5]).all()
    first = np.mean(np.asarray(maps)[:, [0, 0, 1], [0, 2, 0]] == 2, axis=0)
    np.testing.assert_allclose(first, 1 / 3, atol=0.09)
    assert gradients.rank_map(jax.random.key(0), jnp.zeros((28, 28))).dtype == jnp.uint16


def test_coins_fall_for_each_pixel_alone():
    image = jnp.zeros((8, 8, 3))
    maps = np.asarray(jax.vmap(lambda key: gradients.coin_map(key, image))(jax.random.split(jax.random.key(0), 500)))
    removed = maps < 16
    assert abs(removed.mean() - 0.25) < 0.01
    assert removed.sum((1, 2)).std() == pytest.approx(np.sqrt(64 * 0.25 * 0.75), rel=0.1)


@pytest.mark.parametrize("fill", ["own", "colour"])
@pytest.mark.parametrize("keep", [False, True])
def test_occlusion_equals_numpys(fill, keep):
    generator = np.random.default_rng(0)
    image = generator.uniform(-1, 1, (6, 5, 3)).astype(np.float32)
    ranks = np.stack([generator.permutation(30).reshape(6, 5) for _ in range(2)]).astype(np.uint8)
    colour = None if fill == "own" else np.array([0.1, -0.2, 0.3], np.float32)
    expected = image.copy()
    for i in range(6):
        for j in range(5):
            if (ranks[1, i, j] < 9) != keep:
                expected[i, j] = image.mean((0, 1)) if colour is None else colour
    given = faithfulness.occlude(jnp.asarray(image), ranks, faithfulness.Occlusion(1, 9, keep), colour)
    np.testing.assert_allclose(given, expected, atol=1e-6)


def test_the_mean_colour_is_that_of_the_scaled_images():
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)
    scaled = np.asarray(data_sets.scale(jnp.asarray(images)))
    np.testing.assert_allclose(faithfulness.mean_colour(images), scaled.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(faithfulness.mean_colour(scaled), scaled.mean((0, 1, 2)), atol=1e-6)


def test_a_replica_of_the_stack_equals_the_replica_alone(planted):
    train, _ = planted
    retrainings = faithfulness.grid(("patch", faithfulness.RANDOM), (20.0, 60.0), 1)
    numbers = faithfulness.numbers_of(retrainings, ("patch",), 64)
    maps = faithfulness.rank_maps(lambda _: None, {"patch": patch}, stacking.device_mesh(1, 100))
    ranks = np.asarray(maps(jnp.zeros(()), train.images, jax.random.key(0)))
    assert ranks.nbytes == 400 * 2 * 64
    examples = faithfulness.Examples(*train, ranks)
    step = faithfulness.retraining_step(MODEL, jnp.zeros(1))
    start = lambda some: faithfulness.initial_states(MODEL, (8, 8, 1), some, jax.random.key(1))  # noqa: E731
    options = {"batch_size": 50, "epochs": 1, "mesh": stacking.device_mesh(1, 50, jax.devices()[:1])}
    together = training.fit(step, start(retrainings), numbers, examples, **options)
    for index in (0, 3, 6):
        mine = jax.tree.map(lambda leaf, index=index: leaf[index : index + 1], numbers)
        alone = training.fit(step, start(retrainings[index : index + 1]), mine, examples, **options)
        jax.tree.map(
            lambda one, two, index=index: np.testing.assert_allclose(one[0], two[index], atol=1e-5),
            *(alone.variables, together.variables),
        )


def test_scores_agree_with_scikit_learn():
    generator = np.random.default_rng(0)
    own, random, ends = generator.uniform(size=5), generator.uniform(size=5), [0.9, 0.1]
    shares = [0.0, *np.array(faithfulness.PERCENTILES) / 100, 1.0]
    area = lambda curve, ends: auc(shares, [ends[0], *curve, ends[1]])  # noqa: E731
    roar = area(random, ends) - area(own, ends)
    kar = area(own, ends[::-1]) - area(random, ends[::-1])
    assert faithfulness.score("roar", faithfulness.PERCENTILES, own, random) == pytest.approx(roar)
    assert faithfulness.score("kar", faithfulness.PERCENTILES, own, random) == pytest.approx(kar)


def test_intervals_cover_what_seeds_and_images_leave_open():
    """Of equal methods the interval holds zero; with more images it is narrower."""
    hits = lambda images, seed: np.random.default_rng(seed).uniform(size=(5, 3, images)) < 0.7  # noqa: E731
    widths = []
    for images in (100, 1600):
        curve = faithfulness.curve("roar", faithfulness.PERCENTILES, hits(images, 1), hits(images, 2))
        assert curve.low < 0 < curve.high
        widths.append(curve.high - curve.low)
    assert widths[1] < 0.5 * widths[0]


@pytest.mark.parametrize(
    ("benchmark", "percentiles"), [(faithfulness.roar, (15.0, 60.0)), (faithfulness.kar, (5.0, 15.0))]
)
def test_a_planted_truth_is_found(planted, benchmark, percentiles):
    """What points at the patch scores high, what points away low, Random zero; alone as beside others."""
    options = {"classes": 2, "model": MODEL, "percentiles": percentiles, "seeds": 2, "epochs": 5, "batch_size": 50}
    score = lambda attribution: benchmark(lambda x: x[:2, 0, 0], attribution, *planted, **options)  # noqa: E731
    good = score(patch)
    beside = score({"patch": patch, "away": away, "nothing": gradients.random})
    bad, none = beside["away"], beside["nothing"]
    np.testing.assert_allclose(good.mean, beside["patch"].mean, atol=0.1)  # Larger stacks round otherwise.
    assert good.score > 0.05
    assert bad.score < min(good.score - 0.05, 0.02)
    assert abs(none.score) < 0.1
    assert good.mean.shape == (2,)


def test_roar_refuses_what_would_be_silent_nonsense(planted):
    train, test = planted
    given = {"network": lambda x: x[:2, 0, 0], "attribution": patch, "train": train, "test": test, "classes": 2}
    call = lambda **changed: faithfulness.roar(**{**given, **changed})  # noqa: E731
    with pytest.raises(data_sets.DataError, match=r"train: expected labels in 0..0, got 0..1"):
        call(classes=1)
    for several in ({}, {"random": patch}):
        with pytest.raises(ValueError, match="expected attributions by names other than 'random'"):
            call(attribution=several)
    with pytest.raises(ValueError, match="expected a fill of 'mean', None or a colour"):
        call(fill="black")
    with pytest.raises(ValueError, match=r"expected a fill of 1 numbers in \[-1, 1\]"):
        call(fill=[0.0, 2.0])


def test_examples_in_docstrings_hold():
    failed, tried = doctest.testmod(retraining)
    assert tried
    assert not failed
