"""One table of norms and losses through every property of an attack; foolbox as witness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, networks

LOSSES = {
    "xent": attacks.cross_entropy,
    "cw": attacks.cw_margin,
    "bounded cw": lambda logits, label: attacks.cw_margin(logits, label, bound=500.0),
    "zero-masked cw": lambda logits, label: attacks.cw_margin(logits, label, zero_mask=True),
}
LENGTHS = {
    "l1": lambda v: jnp.sum(jnp.abs(v)),
    "l2": lambda v: jnp.linalg.norm(v.ravel()),
    "linf": lambda v: jnp.max(jnp.abs(v)),
}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def network():
    model = networks.digits_cnn()
    return networks.logits_fn(model, networks.init(model, jax.random.key(1), (8, 8, 1)))


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(2), (6, 8, 8, 1), minval=-1.0, maxval=1.0)


def on_batch(attack, logits_fn):
    """The attack over a batch, with an epsilon and a step size for each image."""

    def run(images, labels, epsilon, step_size):
        keys = jax.random.split(KEY, len(images))
        return jax.vmap(lambda k, x, y, e, s: attack(k, logits_fn, x, y, e, s))(
            keys, images, labels, epsilon, step_size
        )

    return jax.jit(run)


@pytest.mark.parametrize("norm", attacks.NORMS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("random_start", [False, True])
def test_stays_in_ball_and_pixel_range_and_gains(network, images, norm, loss, random_start):
    attack = on_batch(attacks.pgd(attacks.NORMS[norm], LOSSES[loss], 5, random_start=random_start), network)
    labels = jax.vmap(lambda x: network(x).argmax())(images)
    epsilon = jnp.array([0.0, 0.01, 0.1, 0.3, 1.0, 3.0])
    attacked = attack(images, labels, epsilon, jnp.full(6, 2.0))
    lengths = jax.vmap(LENGTHS[norm])(attacked - images)
    assert jnp.all(lengths <= epsilon * (1 + 1e-5) + 1e-6)
    assert jnp.all(lengths[1:4] > 0.3 * epsilon[1:4])
    assert jnp.all(jnp.abs(attacked) <= 1)
    np.testing.assert_allclose(attacked[0], images[0], atol=1e-7)
    gain = jax.vmap(lambda x, a, y: attacks.cw_margin(network(a), y) - attacks.cw_margin(network(x), y))
    assert jnp.all(gain(images, attacked, labels)[4:] > 0)


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_finds_the_optimum_of_a_linear_network(norm):
    """On logits W x the margin of two classes is linear, so the optimum is one step of steepest ascent."""
    weights = jax.random.normal(jax.random.key(3), (2, 5))
    direction = weights[1] - weights[0]
    largest = jnp.abs(direction) == jnp.abs(direction).max()
    steepest = {
        "l1": jnp.sign(direction) * largest,
        "l2": direction / jnp.linalg.norm(direction),
        "linf": jnp.sign(direction),
    }[norm]
    attack = attacks.pgd(attacks.NORMS[norm], attacks.cross_entropy, 200, random_start=True, pixel_range=(-9, 9))
    attacked = attack(KEY, lambda x: weights @ x, jnp.zeros(5), 0, 0.7, 0.1)
    np.testing.assert_allclose(attacked, 0.7 * steepest, atol=1e-5)


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_zero_gradient_returns_the_image(norm, images):
    attack = attacks.pgd(attacks.NORMS[norm], attacks.cross_entropy, 3)
    attacked = attack(KEY, lambda x: jnp.zeros(10), images[0], 3, 1.0, 2.0)
    np.testing.assert_array_equal(attacked, images[0])


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_certain_networks_are_attacked_all_the_same(norm):
    """A gradient of 1e-25, whose squares underflow, moves the image as far as any other."""
    attack = attacks.pgd(attacks.NORMS[norm], attacks.cross_entropy, 2)
    attacked = attack(KEY, lambda x: jnp.array([57.0, 0.0]) - 0.01 * x[:2].sum(), jnp.zeros(3), 0, 0.0, 1.0)
    np.testing.assert_array_equal(attacked, 0.0)
    attacked = attack(KEY, lambda x: jnp.array([57.0 + 0.01 * x[0], 0.0]), jnp.zeros(3), 0, 0.5, 1.0)
    np.testing.assert_allclose(attacked, [-0.5, 0.0, 0.0], atol=1e-6)


def test_other_pixel_ranges():
    attack = attacks.pgd(attacks.LINF, attacks.cw_margin, 3, pixel_range=(0.0, 255.0))
    attacked = attack(KEY, lambda x: jnp.stack([x.sum(), -x.sum()]), jnp.array([3.0, 250.0]), 0, 8.0, 4.0)
    np.testing.assert_array_equal(attacked, [0.0, 242.0])


# Foolbox's l1 steps along the gradient itself, which is not the steepest ascent in l1.
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_equals_foolbox(network, images, norm):
    foolbox = pytest.importorskip("foolbox")
    batched = jax.vmap(network)
    labels = batched(images).argmax(1)
    theirs = {"l2": foolbox.attacks.L2PGD, "linf": foolbox.attacks.LinfPGD}[norm]
    peer = theirs(abs_stepsize=0.05, steps=10, random_start=False)
    expected, _, _ = peer(foolbox.JAXModel(batched, bounds=(-1, 1)), images, labels, epsilons=0.2)
    attack = on_batch(attacks.pgd(attacks.NORMS[norm], attacks.cross_entropy, 10), network)
    ours = attack(images, labels, jnp.full(6, 0.2), jnp.full(6, 0.05))
    assert jnp.max(jnp.abs(ours - images)) > 0.01
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_numbers_never_recompile(network, images):
    attack = attacks.pgd(attacks.L2, attacks.cross_entropy, 2)
    traces = []

    @jax.jit
    def run(image, epsilon, step_size):
        traces.append(None)
        return attack(KEY, network, image, 0, epsilon, step_size)

    for epsilon, step_size in ((0.1, 2.0), (0.2, 0.5), (0.0, 1.0)):
        run(images[0], epsilon, step_size)
    assert len(traces) == 1


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_random_starts_fill_the_ball(norm):
    keys = jax.random.split(KEY, 500)
    starts = jax.vmap(lambda key: attacks.NORMS[norm].random_start(key, jnp.zeros((3,)), 2.0))(keys)
    lengths = jax.vmap(LENGTHS[norm])(starts)
    assert jnp.all(lengths <= 2.0 + 1e-5)
    # Uniform in three dimensions: (length / radius)^3 is uniform on [0, 1].
    assert abs(float(jnp.mean((lengths / 2.0) ** 3)) - 0.5) < 0.05
    assert jnp.all(jnp.abs(starts.mean(0)) < 0.2)


@pytest.mark.parametrize(("steps", "pixel_range"), [(0, (-1, 1)), (3, (1, 1))])
def test_refuses_what_cannot_be(steps, pixel_range):
    with pytest.raises(ValueError, match="expected"):
        attacks.pgd(attacks.L2, attacks.cross_entropy, steps, pixel_range=pixel_range)
