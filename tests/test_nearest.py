"""Minimum-norm attacks: closed forms of affine networks, foolbox's distances, goals, and odd networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robgrad import attacks, networks

KEY, SHAPE = jax.random.key(0), (4, 4, 1)
WEIGHTS = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(-0.3, 0.3, (6, *SHAPE)).astype(np.float32)
SEARCHES = {
    "deepfool-l2": attacks.deepfool("l2"),
    "deepfool-linf": attacks.deepfool("linf"),
    "carlini-wagner": attacks.carlini_wagner(steps=300, searches=9, weight=0.05),
    "fab-l2": attacks.fab("l2"),
    "fab-linf": attacks.fab("linf"),
}


def affine(image):
    return jnp.asarray(WEIGHTS, image.dtype) @ image.ravel()


def found_by(search, network, images, labels):
    find = attacks.nearest(search)
    return jax.jit(jax.vmap(lambda image, label: find(KEY, network, image, label)))(images, labels)


@pytest.mark.parametrize("name", SEARCHES)
def test_distances_of_an_affine_network_are_the_hyperplanes(name):
    """(w_y - w_j) . x over the dual norm, the least over classes; DeepFool goes 2% beyond.

    Carlini and Wagner's margin is that to the runner-up, so that it finds the way to that class.
    """
    labels = (IMAGES.reshape(6, -1) @ WEIGHTS.T).argmax(1)
    order = 1 if name.endswith("linf") else 2
    expected = []
    for image, label in zip(IMAGES.reshape(6, -1).astype(float), labels, strict=True):
        second = np.argsort(WEIGHTS @ image)[-2]
        gaps = [
            (WEIGHTS[label] - WEIGHTS[other]) @ image / np.linalg.norm(WEIGHTS[label] - WEIGHTS[other], order)
            for other in range(3)
            if other != label and (other == second or name != "carlini-wagner")
        ]
        expected.append(min(gaps))
    found = found_by(SEARCHES[name], affine, IMAGES, labels)
    beyond = {"deepfool": 1.02, "carlini": 1.0, "fab": 1.0}[name.split("-")[0]]
    np.testing.assert_allclose(found.distance, beyond * np.array(expected), rtol=0.02, atol=2e-3)
    assert np.all(np.asarray(jax.vmap(affine)(found.image)).argmax(1) != labels)


def test_distances_are_those_of_foolbox():
    """On a small network, away from the ends of the pixel range, which the original DeepFool does not know."""
    foolbox = pytest.importorskip("foolbox")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 20), torch.nn.Tanh(), torch.nn.Linear(20, 4)
    ).eval()
    own = networks.of_torch(module, SHAPE, input_range=(-1, 1))
    labels = np.asarray(jax.vmap(own)(IMAGES)).argmax(1)
    model = foolbox.PyTorchModel(module, bounds=(-1, 1))
    pixels, wanted = torch.tensor(IMAGES).permute(0, 3, 1, 2), torch.tensor(labels)
    theirs = {
        "deepfool": foolbox.attacks.L2DeepFoolAttack(steps=50, overshoot=0.02),
        "carlini-wagner": foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=200, abort_early=False),
    }
    ours = {"deepfool": attacks.deepfool("l2"), "carlini-wagner": attacks.carlini_wagner(steps=200, searches=6)}
    for name, attack in theirs.items():
        _, moved, success = attack(model, pixels, wanted, epsilons=None)
        assert success.all()
        expected = (moved - pixels).flatten(1).norm(dim=1).numpy()
        found = found_by(ours[name], own, IMAGES, labels)
        np.testing.assert_allclose(found.distance, expected, rtol=0.03, err_msg=name)


@pytest.mark.parametrize("name", SEARCHES)
def test_goals_images_that_are_wrong_and_networks_without_an_answer(name):
    """A target is reached, what is wrong already is 0 away, and where nothing is found the distance is infinite."""
    search = SEARCHES[name]
    labels = jnp.argmax(jax.vmap(affine)(IMAGES), 1)
    aims = (labels + 1) % 3
    find = attacks.nearest(search)
    found = jax.vmap(lambda image, label, aim: find(KEY, affine, image, (label, aim)))(IMAGES, labels, aims)
    np.testing.assert_array_equal(jnp.argmax(jax.vmap(affine)(found.image), 1), aims)
    wrong = found_by(search, affine, IMAGES, aims)
    np.testing.assert_array_equal(wrong.distance, 0)
    np.testing.assert_array_equal(wrong.image, IMAGES)
    constant = lambda image: jnp.array([1.0, 0.0]) + 0 * image.sum()  # noqa: E731
    nothing = found_by(search, constant, IMAGES, np.zeros(6, int))
    assert np.all(np.isinf(nothing.distance))
    np.testing.assert_array_equal(nothing.image, IMAGES)
    # NaN away from the image: of no class, so that the least step there counts.
    edge = lambda image: jnp.where(image.sum() > IMAGES[0].sum() + 0.1, jnp.nan, affine(image))  # noqa: E731
    one = find(KEY, edge, IMAGES[0], labels[0])
    assert jnp.isfinite(one.image).all()
    with jax.enable_x64(True):
        double = attacks.nearest(search)(KEY, affine, jnp.asarray(IMAGES[0], jnp.float64), int(labels[0]))
        assert double.distance.dtype == jnp.float64


def test_they_are_parts_of_an_evaluation():
    labels = np.asarray(jnp.argmax(jax.vmap(affine)(IMAGES), 1))
    options = {"norm": "l2", "epsilon": 0.3}
    exact = found_by(SEARCHES["fab-l2"], affine, IMAGES, labels).distance > 0.3
    for part in ("deepfool", "carlini-wagner"):
        found = attacks.robust_accuracy(affine, IMAGES, labels, version=(part,), **options)
        np.testing.assert_array_equal(found.robust, exact)
    with pytest.raises(ValueError, match="expected the norm l2 for carlini-wagner"):
        attacks.robust_accuracy(affine, IMAGES, labels, version=("carlini-wagner",), norm="linf", epsilon=0.1)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: attacks.deepfool("l3"), "expected a norm"),
        (lambda: attacks.deepfool("l2", 0), "expected at least 1 attack step"),
        (lambda: attacks.deepfool("l2", overshoot=-1.0), "expected an overshoot"),
        (lambda: attacks.carlini_wagner(0), "expected at least 1 attack step"),
        (lambda: attacks.carlini_wagner(searches=0), "expected at least 1 search"),
        (lambda: attacks.carlini_wagner(learning_rate=0.0), "expected learning_rate > 0"),
        (lambda: attacks.carlini_wagner(weight=-1.0), "expected weight > 0"),
        (lambda: attacks.carlini_wagner(confidence=-1.0), "expected a confidence"),
    ],
)
def test_bad_numbers_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()
