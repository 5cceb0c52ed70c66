"""Objectives that flatten the loss, against closed forms on linear networks; what they cost in loops."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, networks, stacking, training
from robgrad import data as data_sets
from robgrad.training import Batch, Passes, StepSizes

EPSILON, WEIGHT = 0.3, 0.7
PIXELS, CLASSES = 6, 3
_generator = np.random.default_rng(0)
WEIGHTS = _generator.normal(size=(PIXELS, CLASSES))
IMAGES = _generator.normal(size=(4, PIXELS, 1, 1))
LABELS = np.arange(4) % CLASSES


def ours(objective, weights, examples=None, epsilon=EPSILON, images=IMAGES):
    """Mean loss of a linear network under an objective."""
    images, labels = jnp.asarray(images, jnp.float32), jnp.asarray(LABELS[: len(images)])
    logits = lambda variables, x: x.reshape(len(x), -1) @ variables  # noqa: E731
    keys = jax.random.split(jax.random.key(0), len(images))
    passes = Passes(
        lambda variables, x: (logits(variables, x), variables),
        lambda x: logits(weights, x),
        lambda x, y: x,
        Batch(examples, jnp.ones(len(images)), keys),
    )
    numbers = StepSizes(epsilon=epsilon, step_size=0.2, weight=WEIGHT)
    return objective(weights, passes, images, labels, numbers).losses.mean()


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def parts(weights, images=IMAGES):
    """Loss, gradient `[N, pixels]` and Hessian `[N, pixels, pixels]` of each image, in closed form."""
    p = softmax(images.reshape(len(images), -1) @ weights)
    losses = -np.log(p[np.arange(len(p)), LABELS[: len(p)]])
    slopes = (p - np.eye(CLASSES)[LABELS[: len(p)]]) @ weights.T
    curves = np.stack([weights @ (np.diag(one) - np.outer(one, one)) @ weights.T for one in p])
    return losses, slopes, curves


def ascent(norm, slopes):
    return np.sign(slopes) if norm == "linf" else slopes / np.linalg.norm(slopes, axis=1, keepdims=True)


def penalised(norm, weights):
    losses, slopes, _ = parts(weights)
    dual = np.abs(slopes).sum(1) if norm == "linf" else np.linalg.norm(slopes, axis=1)
    return np.mean(losses + WEIGHT * EPSILON * dual)


def curved(norm, weights):
    losses, slopes, _ = parts(weights)
    _, moved, _ = parts(weights, IMAGES + EPSILON * held(ascent, norm, slopes).reshape(IMAGES.shape))
    return np.mean(losses + WEIGHT * np.sum((moved - slopes) ** 2, axis=1))


def quadratic(norm, weights, iterations=1):
    losses, slopes, curves = parts(weights)
    move = EPSILON * ascent(norm, slopes)
    for _ in range(iterations):
        move = EPSILON * ascent(norm, slopes + np.einsum("nij,nj->ni", curves, move))
    move = held(lambda: move)
    rise = np.sum(slopes * move, axis=1) + np.einsum("ni,nij,nj->n", move, curves, move) / 2
    return np.mean(losses + WEIGHT * rise)


_held: dict = {}


def held(function, *arguments):
    """What a search finds, computed once for a test and then held fixed, as the objectives hold it."""
    if "value" not in _held:
        _held["value"] = function(*arguments)
    return _held["value"]


CASES = {
    "gradient penalty": (training.gradient_penalty, penalised),
    "curvature": (training.curvature_penalty, curved),
    "second order": (training.second_order, quadratic),
    "second order, three iterations": (
        lambda norm: training.second_order(norm, 3),
        lambda norm, weights: quadratic(norm, weights, 3),
    ),
}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_their_gradients_are_the_closed_forms(name, norm):
    build, expected = CASES[name]
    _held.clear()
    got, slope = jax.value_and_grad(lambda weights: ours(build(norm), weights))(jnp.asarray(WEIGHTS, jnp.float32))
    assert got == pytest.approx(expected(norm, WEIGHTS), rel=1e-5)
    for place in ((0, 0), (3, 1), (5, 2)):
        step = np.zeros_like(WEIGHTS)
        step[place] = 1e-5
        difference = (expected(norm, WEIGHTS + step) - expected(norm, WEIGHTS - step)) / 2e-5
        assert slope[place] == pytest.approx(difference, rel=2e-3, abs=2e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_more_iterations_never_lower_the_quadratic(norm):
    found = []
    for iterations in (1, 2, 5, 10):
        _held.clear()
        found.append(quadratic(norm, WEIGHTS, iterations))
        assert ours(training.second_order(norm, iterations), jnp.asarray(WEIGHTS, jnp.float32)) == pytest.approx(
            found[-1], rel=1e-5
        )
    assert np.all(np.diff(found) >= -1e-9)


def test_differences_near_the_image_are_the_exact_quadratic():
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    exact, near = (ours(training.second_order("l2", 2, step), weights) for step in (0.0, 0.05))
    assert near == pytest.approx(float(exact), rel=1e-3)
    for wrong in ({"iterations": 0}, {"difference": 2.0}):
        with pytest.raises(ValueError, match="expected"):
            training.second_order("l2", **wrong)


def test_aligned_gradients_cost_nothing():
    """With two classes a linear network's gradients point one way everywhere."""
    two, images = jnp.asarray(WEIGHTS[:, :2], jnp.float32), IMAGES[:2]
    p = softmax(images.reshape(2, -1) @ WEIGHTS[:, :2])
    clean = -np.log(p[np.arange(2), LABELS[:2]]).mean()
    assert ours(training.gradient_alignment("linf"), two, images=images) == pytest.approx(clean, abs=1e-5)


def test_misaligned_gradients_cost_their_cosine():
    """At the noise that the step's keys give, in closed form."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(jax.random.split(jax.random.key(0), len(IMAGES)))
    draw = lambda key: jax.random.uniform(key, (PIXELS, 1, 1), minval=-2.0, maxval=2.0)  # noqa: E731
    noise = np.asarray(jax.vmap(draw)(keys), np.float64)
    losses, here, _ = parts(WEIGHTS)
    _, there, _ = parts(WEIGHTS, IMAGES + noise)
    cosines = np.sum(here * there, axis=1) / np.linalg.norm(here, axis=1) / np.linalg.norm(there, axis=1)
    expected = np.mean(losses + WEIGHT * (1 - cosines))
    got = ours(training.gradient_alignment("linf"), jnp.asarray(WEIGHTS, jnp.float32), epsilon=2.0)
    assert got == pytest.approx(expected, rel=1e-5)


def test_local_linearity_finds_an_end_of_the_ball():
    """In one pixel the loss departs most from linear at an end; which one depends on the random start."""
    weights = np.array([[1.0, -0.5, 0.2]])
    image = np.full((1, 1, 1, 1), 0.3)
    losses, slopes, _ = parts(weights, image)
    expected = []
    for end in (-EPSILON, EPSILON):
        there, _, _ = parts(weights, image + end)
        linear = end * slopes[0, 0]
        expected.append(losses[0] + WEIGHT * (abs(there[0] - losses[0] - linear) + 0.75 * abs(linear)))
    got = ours(training.local_linearity("linf", steps=5), jnp.asarray(weights, jnp.float32), images=image)
    assert min(abs(float(got) - value) for value in expected) < 1e-5
    at_zero = ours(training.local_linearity("linf"), jnp.asarray(weights, jnp.float32), epsilon=0.0, images=image)
    assert at_zero == pytest.approx(losses[0], abs=1e-6)


def test_flagged_pixels_are_what_the_penalty_feels():
    class Examples:
        masks = jnp.asarray(np.arange(4 * PIXELS).reshape(4, PIXELS, 1) % 2, bool)

    losses, slopes, _ = parts(WEIGHTS)
    flagged = np.asarray(Examples.masks).reshape(4, PIXELS)
    expected = np.mean(losses + WEIGHT * np.sum((flagged * slopes) ** 2, axis=1))
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    assert ours(training.masked_gradient_penalty(0.0), weights, Examples) == pytest.approx(expected, rel=1e-5)
    hidden = np.where(flagged.reshape(IMAGES.shape), IMAGES.mean((1, 2), keepdims=True), IMAGES)
    seen, _, _ = parts(WEIGHTS, hidden)
    expected += np.mean(seen - losses)
    assert ours(training.masked_gradient_penalty(1.0), weights, Examples) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", ["scorpio-1", "cure"])
def test_differentiating_twice_costs_the_same_in_a_compiled_loop(objective):
    """Per step, against the same step called from Python; the best of some, since machines are shared."""
    network, digits = networks.digits_cnn(), data_sets.load("digits")
    step = training.classifier_step(network, attacks.no_attack, training.OBJECTIVES[objective].build(attacks.LINF))
    state = training.init_classifier(network, (8, 8, 1), jax.random.key(0))
    batch = Batch(
        data_sets.Split(jnp.asarray(digits.train.images[:50]), jnp.asarray(digits.train.labels[:50])),
        jnp.ones(50),
        jax.random.split(jax.random.key(1), 50),
    )
    numbers = StepSizes(epsilon=0.1, weight=1.0)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (stacking.DATA,))
    spread = lambda function: jax.jit(  # noqa: E731
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=jax.sharding.PartitionSpec(),
            out_specs=jax.sharding.PartitionSpec(),
            check_vma=False,
        )
    )
    count = 20
    one = spread(lambda state: step(state, numbers, batch)[0])
    loop = spread(lambda state: jax.lax.fori_loop(0, count, lambda _, now: step(now, numbers, batch)[0], state))

    def calls(state):
        for _ in range(count):
            state = one(state)
        return state

    def seconds(function):
        jax.block_until_ready(function(state))
        best = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready(function(state))
            best.append(time.perf_counter() - began)
        return min(best)

    assert seconds(loop) < 1.5 * seconds(calls)
