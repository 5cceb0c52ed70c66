"""Variants of adversarial training against their formulas, in double precision by NumPy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, networks, stacking, training
from robgrad.data import Split, scale

PIXELS, CLASSES, COUNT = 6, 3, 4
_generator = np.random.default_rng(0)
WEIGHTS = _generator.normal(size=(PIXELS, CLASSES))
IMAGES = _generator.uniform(-0.8, 0.8, size=(COUNT, PIXELS, 1, 1))
MOVED = IMAGES + 0.05 * _generator.normal(size=IMAGES.shape)
LABELS = np.arange(COUNT) % CLASSES
BETA = 2.5


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def flat(images):
    return images.reshape(len(images), -1)


def ours(objective, weights, perturb=lambda images, labels: jnp.asarray(MOVED, jnp.float32), epsilon=0.1):
    """Mean loss of a linear network under an objective."""
    images, labels = jnp.asarray(IMAGES, jnp.float32), jnp.asarray(LABELS)
    logits = lambda variables, x: x.reshape(len(x), -1) @ variables["params"]["kernel"]  # noqa: E731
    batch = training.Batch(None, jnp.ones(COUNT), jax.random.split(jax.random.key(0), COUNT))
    held = {"params": {"kernel": jnp.asarray(WEIGHTS, jnp.float32)}}
    passes = training.Passes(lambda v, x: (logits(v, x), v), lambda x: logits(held, x), perturb, batch)
    numbers = training.StepSizes(epsilon=epsilon, weight=BETA)

    def mean(weights):
        return objective({"params": {"kernel": weights}}, passes, images, labels, numbers).losses.mean()

    # A mapped axis of one device, over which sums are taken.
    return jax.vmap(mean, axis_name=stacking.DATA)(weights[None])[0]


def by_differences(function, weights):
    slope = np.zeros_like(weights)
    for place in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[place] = 1e-6
        slope[place] = (function(weights + step) - function(weights - step)) / 2e-6
    return slope


def cross_entropy(weights, images=MOVED):
    return np.mean(-np.log(softmax(flat(images) @ weights)[np.arange(COUNT), LABELS]))


def test_mart_is_its_formula():
    def expected(weights):
        clean, attacked = (softmax(flat(images) @ weights) for images in (IMAGES, MOVED))
        rows = np.arange(COUNT)
        others = np.where(np.eye(CLASSES)[LABELS] > 0, 0, attacked).max(1)
        boosted = -np.log(attacked[rows, LABELS]) - np.log(1 - others)
        divergence = np.sum(clean * np.log(clean / attacked), axis=1)
        return np.mean(boosted + BETA * divergence * (1 - clean[rows, LABELS]))

    got, slope = jax.value_and_grad(lambda w: ours(training.mart(), w))(jnp.asarray(WEIGHTS, jnp.float32))
    assert got == pytest.approx(expected(WEIGHTS), rel=1e-5)
    np.testing.assert_allclose(slope, by_differences(expected, WEIGHTS), rtol=1e-3, atol=1e-5)


def test_weight_perturbation_is_its_formula():
    """The gradient is that at the moved weights, the move held fixed."""
    size = 0.3
    slope = by_differences(cross_entropy, WEIGHTS)
    move = size * np.linalg.norm(WEIGHTS) * slope / np.linalg.norm(slope)
    objective = training.weight_perturbed(training.adversarial(), size)
    got, found = jax.value_and_grad(lambda w: ours(objective, w))(jnp.asarray(WEIGHTS, jnp.float32))
    assert got == pytest.approx(cross_entropy(WEIGHTS + move), rel=1e-5)
    np.testing.assert_allclose(found, by_differences(cross_entropy, WEIGHTS + move), rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="expected a size above 0"):
        training.weight_perturbed(training.adversarial(), 0.0)


def test_weight_perturbation_attacks_once_and_leaves_biases():
    calls = []

    def perturb(images, labels):
        calls.append(1)
        return images

    ours(training.weight_perturbed(training.trades()), jnp.asarray(WEIGHTS, jnp.float32), perturb)
    assert len(calls) == 1
    # A bias alone has nothing that moves: plain training.
    objective = training.weight_perturbed(training.adversarial(), 10.0)
    images, bias = jnp.zeros((COUNT, 1)), jnp.array([0.5, 0.0, -0.5])
    passes = training.Passes(
        lambda v, x: (jnp.broadcast_to(v["params"]["bias"], (COUNT, 3)), v),
        lambda x: x,
        lambda x, y: x,
        training.Batch(None, jnp.ones(COUNT), jax.random.split(jax.random.key(0), COUNT)),
    )
    of = lambda one, b: jax.vmap(  # noqa: E731
        lambda b: one({"params": {"bias": b}}, passes, images, jnp.asarray(LABELS), training.StepSizes()).losses,
        axis_name=stacking.DATA,
    )(b[None])
    np.testing.assert_array_equal(of(objective, bias), of(training.adversarial(), bias))


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_noisy_starts_lie_where_they_should(norm):
    """Within `noise` radii of the image and the pixel range; none of them is brought back by the step."""
    seen = []

    def perturb(images, labels):
        seen.append(np.asarray(images) - IMAGES)
        return images

    weights = jnp.asarray(WEIGHTS, jnp.float32)
    with jax.disable_jit():
        images = jnp.asarray(IMAGES, jnp.float32)
        keys = jax.random.split(jax.random.key(0), COUNT)
        logits = lambda x: x.reshape(len(x), -1) @ weights  # noqa: E731
        passes = training.Passes(
            lambda v, x: (logits(x), v), logits, perturb, training.Batch(None, jnp.ones(COUNT), keys)
        )
        training.noisy_start(norm, 2.0)({}, passes, images, jnp.asarray(LABELS), training.StepSizes(0.15))
    lengths = [float(attacks.NORMS[norm].length(jnp.asarray(one))) for one in seen[0]]
    assert 0.15 < max(lengths) <= 0.3 + 1e-6
    assert np.abs(seen[0] + IMAGES).max() <= 1
    with pytest.raises(ValueError, match="expected a noise of 0 or more"):
        training.noisy_start(norm, -1.0)


def test_targeted_training_leads_to_other_classes():
    """Each goal is another class than the label, every one of them in turn; the attack goes there."""
    goals = []

    def perturb(images, labels):
        goals.append(labels)
        return images

    ours(training.towards_another(), jnp.asarray(WEIGHTS, jnp.float32), perturb)
    (labels, targets), *_ = goals
    assert targets.shape == labels.shape
    logits_fn = lambda x: jnp.ravel(x) @ jnp.asarray(WEIGHTS, jnp.float32)  # noqa: E731
    attack = attacks.pgd("l2", attacks.cross_entropy, 20)
    image = jnp.asarray(IMAGES[0], jnp.float32)
    for target in (1, 2):
        moved = attack(jax.random.key(0), logits_fn, image, (0, target), 0.5, 0.1)
        assert jax.nn.softmax(logits_fn(moved))[target] > jax.nn.softmax(logits_fn(image))[target]


def test_free_training_is_its_loop():
    """Weights and images by one gradient each replay, in double precision by closed forms."""
    network = networks.Network(
        lambda key, shape: {"params": jnp.asarray(WEIGHTS, jnp.float32)},
        lambda variables, images: images.reshape(len(images), -1) @ variables["params"],
        lambda variables, images, weights: (images.reshape(len(images), -1) @ variables["params"], variables),
    )
    bytes_ = np.random.default_rng(1).integers(0, 256, (COUNT, PIXELS, 1, 1), dtype=np.uint8)
    epsilon, rate, replays = 0.1, 0.5, 3
    optimizer = training.optimizer_named("sgd", momentum=0.0)
    step = training.free_step(network, "linf", replays, optimizer=optimizer)
    start = stacking.stack([training.init_classifier(network, (PIXELS, 1, 1), jax.random.key(0), optimizer)])
    options = {"mesh": stacking.device_mesh(1, COUNT, jax.devices()[:1]), "batch_size": COUNT, "epochs": 2}
    numbers = training.StepSizes(epsilon, learning_rate=rate)
    done = training.fit(step, start, numbers, Split(bytes_, LABELS), shuffle=False, **options)
    weights, images = WEIGHTS.copy(), flat(np.asarray(scale(jnp.asarray(bytes_)), np.float64))
    for _ in range(2):
        moves = np.zeros_like(images)
        for _ in range(replays):
            wrong = softmax((images + moves) @ weights) - np.eye(CLASSES)[LABELS]
            slope, uphill = (images + moves).T @ wrong / COUNT, wrong @ weights.T
            weights = weights - rate * slope
            moves = np.clip(images + np.clip(moves + epsilon * np.sign(uphill), -epsilon, epsilon), -1, 1) - images
    np.testing.assert_allclose(done.variables["params"][0], weights, rtol=1e-4, atol=1e-5)
    assert int(done.step[0]) == 2
    with pytest.raises(ValueError, match="expected at least 1 replay"):
        training.free_step(network, "linf", 0)


def test_a_normal_start_is_that_of_trades_authors():
    """Zero steps away it is noise of the deviation given, inside the ball; PGD goes on from there."""
    image, flat_fn = jnp.zeros((40, 40, 1)), lambda x: jnp.zeros(3)
    attack = attacks.pgd("linf", attacks.cross_entropy, 1, random_start=0.01)
    moved = np.asarray(attack(jax.random.key(0), flat_fn, image, 0, 0.5, 0.0))
    assert moved.std() == pytest.approx(0.01, rel=0.1)
    assert np.abs(attack(jax.random.key(0), flat_fn, image, 0, 0.005, 0.0)).max() <= 0.005
    with pytest.raises(ValueError, match="a deviation of 0 or more"):
        attacks.pgd("linf", attacks.cross_entropy, 1, random_start=-0.1)
