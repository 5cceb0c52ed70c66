"""Library calls refuse in one clear line what would be silent nonsense, or take it where it means something."""

import doctest

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import robgrad.networks.nnx as nnx_module
from robgrad import attacks, faithfulness, gradients, manifolds, networks, stacking, training
from robgrad import data as data_sets

KEY = jax.random.key(0)
WEIGHTS = jax.random.normal(KEY, (16, 3))
IMAGE = jnp.zeros((4, 4, 1))
ATTACK = attacks.pgd("l2", attacks.cross_entropy, 2)
PLANE = manifolds.autoencoder(lambda x: x.ravel()[:2], lambda z: jnp.concatenate([z, jnp.zeros(14)]).reshape(4, 4, 1))


def linear(image):
    return image.ravel() @ WEIGHTS


def on_batches(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def attack(build=ATTACK, logits_fn=linear, image=IMAGE, label=1, epsilon=0.5, step_size=0.1):
    return build(KEY, logits_fn, image, label, epsilon, step_size)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": IMAGE.astype(int)}, "expected a floating-point image, got int32; map bytes by data.scale"),
        ({"image": IMAGE > 0}, "got bool"),
        ({"image": jnp.zeros((5, 4, 4, 1))}, "does not take"),
        ({"logits_fn": on_batches, "image": jnp.zeros((5, 4, 4, 1))}, r"got \[5, 3\].*mapped over a batch by jax.vmap"),
        ({"logits_fn": lambda x: on_batches(x[None])}, r"got \[1, 3\]; if it maps batches, give lambda image"),
        ({"logits_fn": lambda x: x.sum()[None]}, "a vector of two logits or more"),
        ({"label": 3}, r"expected a label in 0..2, as many as the network has logits, got 3"),
        ({"label": -1}, "got -1"),
        ({"label": 1.0}, "expected an integer label, got float32"),
        ({"epsilon": -1.0}, "expected epsilon >= 0 in pixel units, got -1"),
        ({"epsilon": np.nan}, "got nan"),
        ({"epsilon": np.ones(5)}, r"expected epsilon as a number, got shape \[5\].*jax.vmap"),
        ({"step_size": -0.1}, "expected step_size >= 0"),
    ],
)
def test_attacks_on_one_image(changed, message):
    with pytest.raises(ValueError, match=message):
        attack(**changed)
    if "step_size" not in changed:
        with pytest.raises(ValueError, match=message):
            attack(attacks.ATTACKS["apgd"]("l2", attacks.cross_entropy, 2), **changed)


def test_what_attacks_take():
    """Other precisions, a norm's name, a radius an image by vmap, one pixel."""
    for kind in (jnp.float16, jnp.bfloat16):
        assert attack(image=IMAGE.astype(kind)).dtype == jnp.float32
    each = jax.vmap(lambda epsilon: attack(epsilon=epsilon))(jnp.array([0.1, 0.3]))
    np.testing.assert_allclose(jnp.linalg.norm(each.reshape(2, -1), axis=1), [0.1, 0.2], rtol=1e-4)
    one = ATTACK(KEY, lambda x: jnp.array([1.0, -1.0]) * x.sum(), jnp.zeros((1, 1, 1)), 0, 0.5, 1.0)
    np.testing.assert_allclose(one.ravel(), [-0.5])


@pytest.mark.parametrize("name", gradients.LAYERED)
def test_attributions_that_must_know_the_layers(name):
    with pytest.raises(ValueError, match=r"expected one of the package's own networks CNN or MLP, .* got function"):
        gradients.ATTRIBUTIONS[name](KEY, linear, IMAGE)


@pytest.mark.parametrize("name", [name for name in gradients.ATTRIBUTIONS if name not in gradients.LAYERED])
def test_attributions(name):
    attribution = gradients.ATTRIBUTIONS[name]
    with pytest.raises(ValueError, match=r"expected one image \[H, W, C\], got \[4, 4\]; map a batch by jax.vmap"):
        attribution(KEY, linear, IMAGE[..., 0])
    with pytest.raises(ValueError, match="does not take"):
        attribution(KEY, linear, jnp.zeros((5, 4, 4, 1)))
    with pytest.raises(ValueError, match="expected a floating-point image"):
        attribution(KEY, linear, IMAGE.astype(int))


def test_alignment_and_manifolds():
    with pytest.raises(ValueError, match=r"expected an attacked image of shape \[4, 4, 1\], got \[16\]"):
        gradients.align(linear, PLANE, IMAGE, jnp.zeros(16))
    flat = PLANE._replace(project=lambda image: image.ravel())
    with pytest.raises(ValueError, match=r"expected a projection of the image's shape \[4, 4, 1\], got \[16\]"):
        manifolds.distance(flat, IMAGE)
    with pytest.raises(ValueError, match=r"expected a decoder to images of shape \[5, 4, 4, 1\]"):
        manifolds.distance(PLANE, jnp.zeros((5, 4, 4, 1)))
    with pytest.raises(ValueError, match=r"expected a label in 0\.\.2"):
        gradients.align(linear, PLANE, IMAGE, IMAGE, 7)


SPLIT = data_sets.Split(np.zeros((6, 4, 4, 1), np.float32), np.arange(6) % 3)
NETWORK = networks.CNN(stages=((4,),), window=3, dense=8, classes=3)


def fit(split, **changed):
    step = training.classifier_step(NETWORK, attacks.no_attack)
    start = stacking.stack([training.init_classifier(NETWORK, (4, 4, 1), KEY)])
    options = {"mesh": stacking.device_mesh(1, 2), "batch_size": 2, "epochs": 1} | changed
    return training.fit(step, start, training.StepSizes(), split, **options)


def of(images=SPLIT.images, labels=SPLIT.labels):
    return data_sets.Split(images, labels)


@pytest.mark.parametrize(
    ("split", "changed", "message"),
    [
        (
            of(images=SPLIT.images + np.nan),
            {},
            r"data: expected floating-point images in \[-1.0, 1.0\], got values from nan",
        ),
        (of(images=SPLIT.images + 200), {}, "got values from 200 to 200; rescale them"),
        (of(images=SPLIT.images.astype(int)), {}, "expected uint8 or floating-point images, got int64"),
        (of(images=SPLIT.images[:0], labels=SPLIT.labels[:0]), {}, "expected at least one image"),
        (of(labels=SPLIT.labels[:4]), {}, "expected one integer label for each of 6 images"),
        (of(labels=SPLIT.labels - 1), {}, "expected labels of 0 and above, got -1"),
        (of(labels=SPLIT.labels * 1.0), {}, "got float64 labels"),
        (SPLIT, {"batch_size": 7}, r"expected a batch size in 1..6 \(the training examples\), got 7"),
        (SPLIT, {"batch_size": 0}, "got 0"),
        (SPLIT, {"epochs": 0}, "expected at least 1 epoch, got 0"),
    ],
)
def test_training(split, changed, message):
    with pytest.raises(ValueError, match=message):
        fit(split, **changed)


def test_labels_beyond_the_networks_classes_end_training():
    with pytest.raises(training.DivergedError, match="labels below the network's number of logits"):
        fit(of(labels=SPLIT.labels + 1))


@pytest.mark.parametrize("benchmark", [faithfulness.roar, faithfulness.kar])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train": of(images=SPLIT.images[..., 0])},
            r"train: expected images of shape .*, got \[6, 4, 4\]",
        ),
        ({"test": of(labels=np.eye(3, dtype=int)[SPLIT.labels])}, r"test: expected one integer label.*\[6, 3\]"),
        ({"classes": 2}, "train: expected labels in 0..1, got 0..2"),
        ({"network": lambda image: image.sum()}, "expected a network of one image"),
        ({"percentiles": (0.0, 50.0)}, r"expected percentiles between 0 and 100, got 0.0"),
        ({"seeds": 0}, "expected at least 1 seed, got 0"),
        ({"epochs": 0}, "expected at least 1 epoch, got 0"),
        ({"batch_size": 9}, r"expected a batch size in 1..6"),
    ],
)
def test_retraining(benchmark, changed, message):
    given = {"network": linear, "attribution": gradients.gradient, "train": SPLIT, "test": SPLIT, "classes": 3}
    given |= {"model": NETWORK, "percentiles": (50.0,), "seeds": 1, "epochs": 1, "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        benchmark(**given | changed)


def test_networks_of_batches_are_taken():
    """By the calls that take batches of images, with the results of the same network of one image."""
    images, labels = jax.random.uniform(KEY, (6, 4, 4, 1)), np.arange(6) % 3
    one, batch = (
        attacks.robust_accuracy(network, images, labels, epsilon=0.05, pixel_range=(0.0, 1.0), version="short")
        for network in (linear, on_batches)
    )
    np.testing.assert_array_equal(one.robust, batch.robust)
    one, batch = (
        gradients.analyser(network, PLANE, attack=ATTACK)(images, labels, epsilon=0.1, step_size=0.1)
        for network in (linear, on_batches)
    )
    np.testing.assert_allclose(one.attacked_distance, batch.attacked_distance, rtol=1e-5)
    options = {"classes": 3, "model": NETWORK, "percentiles": (50.0,), "seeds": 1, "epochs": 1, "batch_size": 2}
    module = equinox.nn.Sequential([equinox.nn.Lambda(jnp.ravel), equinox.nn.Linear(16, 3, key=KEY)])
    found = attacks.robust_accuracy(module, images, labels, epsilon=0.05, pixel_range=(0.0, 1.0), version="short")
    assert found.robust.shape == (6,)
    said: list = []
    curve = faithfulness.roar(on_batches, gradients.gradient, SPLIT, SPLIT, progress=said.append, **options)
    assert curve.mean.shape == (1,)
    assert str(said[0]).startswith("retraining 2 networks, each anew: CNN(")
    assert str(said[-1]).startswith("epoch 1.0 of 1, ")
    first = lambda images: jax.lax.conv(images, jnp.ones((3, 1, 4, 4)), (1, 1), "VALID")[:, :, 0, 0]  # noqa: E731
    with pytest.raises(ValueError, match=r"channels last, got one of batches \[N, C, H, W\]; give lambda image"):
        attacks.robust_accuracy(lambda x: first(x[:, :1]), jnp.zeros((2, 4, 4, 3)), [0, 1], epsilon=0.1)


class Net(nnx.Module):
    """With what makes NNX differ: batch statistics, dropout's random streams."""

    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.drop, self.out = nnx.Dropout(0.2, rngs=rngs), nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, images):
        features = nnx.relu(self.norm(self.conv(images)))
        return self.out(self.drop(features.reshape(len(images), -1)))


def test_a_network_in_nnx_trains_and_is_retrained():
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = generator.normal(0, 0.1, (120, 4, 4, 1)).clip(-0.4, 0.4) + 0.5 * np.eye(4)[labels][:, :, None, None]
    split = data_sets.Split(images, labels)
    network = networks.of_nnx(lambda rngs: Net(rngs))
    start = stacking.stack([training.init_classifier(network, (4, 4, 1), KEY)])
    step = training.classifier_step(network, attacks.pgd("l2", attacks.cross_entropy, 2))
    options = {"mesh": stacking.device_mesh(1, 20), "batch_size": 20, "epochs": 20}
    trained = training.fit(step, start, training.StepSizes(0.1, 0.1, 1e-2), split, **options)
    variables = stacking.replica(trained.variables, 0)
    assert float(jnp.abs(variables["rest"]["norm"]["mean"]).max()) > 0
    one = networks.logits_fn(network, variables)
    assert np.mean(jax.vmap(one)(jnp.asarray(images, jnp.float32)).argmax(1) == labels) > 0.95
    curve = faithfulness.roar(
        one, gradients.gradient, split, split, classes=3, model=network, percentiles=(50.0,), seeds=1, epochs=1
    )
    assert curve.mean.shape == (1,)
    assert doctest.testmod(nnx_module).failed == 0
    with pytest.raises(ValueError, match=r"got the NNX module Net.* give networks\.of_nnx"):
        networks.of_module(Net(nnx.Rngs(0)))
