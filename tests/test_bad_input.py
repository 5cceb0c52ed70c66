"""Library calls refuse in one clear line what would be silent nonsense, or take it where it means something."""

import doctest
import inspect

import equinox
import flax.linen as nn
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


# GradCAM wants a network with convolutions, which is said first.
@pytest.mark.parametrize("name", [name for name in gradients.ATTRIBUTIONS if name != "grad_cam"])
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
        ({"percentiles": (0.0, 50.0)}, r"percentiles between 0 and 100, got \(0.0"),
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


def accuracies(images=SPLIT.images, labels=SPLIT.labels, epsilon=0.1, step_size=0.1, pixel_range=None):
    options = {} if pixel_range is None else {"pixel_range": pixel_range}
    attack = attacks.pgd("linf", attacks.cross_entropy, 2, **options)
    stack = stacking.stack([networks.init(NETWORK, KEY, (4, 4, 1))])
    return training.accuracies(NETWORK, attack, stacking.device_mesh(1, 6))(
        stack, data_sets.Split(images, labels), KEY, epsilon, step_size
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": SPLIT.labels + 1}, r"expected labels in 0..2, as many as the network has logits, got 1..3"),
        ({"labels": np.eye(3, dtype=int)[SPLIT.labels]}, "expected one integer label for each of 6 images"),
        ({"images": SPLIT.images + 200}, "got values from 200 to 200; rescale them"),
        ({"images": np.full((6, 4, 4, 1), 200.0), "pixel_range": (0.0, 1.0)}, r"expected pixels in \[0, 1\], got 200"),
        ({"images": np.zeros((6, 3, 8, 8), np.float32)}, r"looks like \[N, C, H, W\]; use images.transpose"),
        ({"epsilon": np.ones(5)}, r"expected epsilon as a number or one for each of 6 images, got shape \[5\]"),
        ({"epsilon": [0.1]}, r"got shape \[1\]"),
        ({"epsilon": np.uint8(1)}, "expected epsilon as a floating-point number in pixel units, got uint8"),
        ({"step_size": -1.0}, "expected step_size >= 0"),
    ],
)
def test_accuracies(changed, message):
    with pytest.raises(ValueError, match=message):
        accuracies(**changed)


def test_what_accuracies_take():
    """Labels of one column, radii one an image; images in [0, 1] where [-1, 1] is meant are said."""
    np.testing.assert_array_equal(accuracies(), accuracies(labels=SPLIT.labels[:, None]))
    np.testing.assert_array_equal(accuracies(), accuracies(epsilon=np.full(6, 0.1)))
    with pytest.warns(UserWarning, match=r"all pixels lie in \[0, 1\]"):
        accuracies(images=np.linspace(0, 1, 96, dtype=np.float32).reshape(6, 4, 4, 1))
    found = attacks.robust_accuracy(
        linear, np.linspace(0, 1, 96).reshape(6, 4, 4, 1), SPLIT.labels, epsilon=0.01, version="short"
    )
    assert any("all pixels lie in [0, 1]" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": IMAGE + 200}, r"expected pixels in \[-1, 1\], got 200 to 200; rescale them"),
        ({"image": IMAGE + jnp.nan}, "expected finite pixels"),
        ({"epsilon": np.uint8(1)}, "got uint8; give a float"),
        ({"label": (1, 3)}, r"expected a label in 0..2"),
        ({"epsilon": np.ones(1)}, r"got shape \[1\]"),
    ],
)
def test_attacks_mapped_over_images(changed, message):
    """Values are known within vmap, too."""
    given = {"image": IMAGE, "label": 1, "epsilon": 0.5} | changed
    for build in (ATTACK, attacks.ATTACKS["apgd"]("l2", attacks.cross_entropy, 2)):
        with pytest.raises(ValueError, match=message):
            jax.vmap(lambda image, b=build: attack(b, image=image, label=given["label"], epsilon=given["epsilon"]))(
                given["image"][None]
            )
    # Within jit they are not: an image beyond the range is of no class from then on.
    if "200" in message:
        assert jnp.isnan(jax.jit(lambda image: attack(image=image))(given["image"])).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": 0}, "expected at least 1 image in a batch, got 0"),
        ({"epsilon": np.ones(1)}, r"one for each of 2 images, got shape \[1\]"),
        ({"epsilon": []}, "expected a radius or several, got none"),
        ({"pixel_range": (1.0, 0.0)}, "with low < high"),
        ({"pixel_range": ((0.0, 0.0), (1.0, 1.0))}, r"of an image of shape \[4, 4, 1\]"),
        ({"target": [0, 3]}, r"expected targets in 0..2"),
        ({"target": [0, 1]}, "expected targets other than the labels, got 2 that are equal"),
    ],
)
def test_robust_accuracy(changed, message):
    given = {"epsilon": 0.1, "version": "short", "pixel_range": (0.0, 1.0)} | changed
    with pytest.raises(ValueError, match=message):
        attacks.robust_accuracy(linear, jnp.zeros((2, 4, 4, 1)), [0, 1], **given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"percentiles": ()}, "expected a list of percentiles"),
        ({"percentiles": 50.0}, "expected a list of percentiles"),
        ({"percentiles": (1.0,)}, "expected a share that removes some of 16 pixels and leaves some, got 0.01"),
        ({"attribution": lambda key, f, image: image}, r"expected a map of one value a pixel, of shape \[4, 4\]"),
        (
            {"test": of(images=np.zeros((6, 5, 5, 1), np.float32))},
            r"training images' size, got \[4, 4, 1\] and \[5, 5, 1\]",
        ),
        ({"train": of(images=np.zeros((6, 3, 8, 8), np.float32))}, r"train: .* looks like \[N, C, H, W\]"),
        (
            {"classes": 1, "train": of(labels=SPLIT.labels * 0), "test": of(labels=SPLIT.labels * 0)},
            "at least 2 classes",
        ),
    ],
)
def test_retraining_of_odd_maps_and_sets(changed, message):
    given = {"network": linear, "attribution": lambda key, f, image: image[..., 0], "train": SPLIT, "test": SPLIT}
    if message.startswith("expected a map"):
        given["train"] = given["test"] = of(images=np.zeros((6, 4, 4, 3), np.float32))
        given["network"] = lambda image: linear(image[..., :1])
    given |= {"model": NETWORK, "percentiles": (50.0,), "seeds": 1, "epochs": 1, "batch_size": 2, "classes": 3}
    with pytest.raises(ValueError, match=message):
        faithfulness.roar(**given | changed)


def test_measures_of_odd_maps():
    with pytest.raises(ValueError, match=r"expected a map of one value a pixel, of shape \[4, 4\], got \[4, 4, 3\]"):
        faithfulness.road(KEY, linear, IMAGE, 0, jnp.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="expected a share that removes some of 16 pixels"):
        faithfulness.road(KEY, linear, IMAGE, 0, jnp.zeros((4, 4)), shares=(0.01,))
    with pytest.raises(ValueError, match="expected a list of shares of pixels between 0 and 1"):
        faithfulness.road(KEY, linear, IMAGE, 0, jnp.zeros((4, 4)), shares=())
    with pytest.raises(ValueError, match=r"expected a mask of shape \[4, 4\], got \[4, 5\]"):
        faithfulness.agreement(KEY, jnp.zeros((4, 4)), jnp.zeros((4, 5)))
    with pytest.raises(ValueError, match="expected baseline as a number, a colour"):
        gradients.integrated_gradients(jnp.zeros((4, 5)))(KEY, linear, IMAGE)
    with pytest.raises(ValueError, match="expected two maps of one shape"):
        faithfulness.rank_correlation(jnp.zeros((4, 4)), jnp.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"looks like \[N, C, H, W\]"):
        manifolds.fit_pca(np.zeros((9, 3, 8, 8), np.float32), 2)
    with pytest.raises(ValueError, match="which says its norm, got function"):
        manifolds.off_manifold(attacks.no_attack, PLANE)


def habits(name, sense):
    """A linen network whose switch between training and evaluation has a name and a sense, without a default."""

    def call(self, images, **given):
        training_now = given[name] is sense
        images = nn.BatchNorm(use_running_average=not training_now, momentum=0.5)(images)
        hidden = nn.Dropout(0.5, deterministic=not training_now)(images.reshape(len(images), -1))
        return nn.Dense(3)(hidden)

    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
    own = [inspect.Parameter(one, inspect.Parameter.POSITIONAL_OR_KEYWORD) for one in ("self", "images")]
    call.__signature__ = inspect.Signature([*own, parameter])
    return type("Net", (nn.Module,), {"__call__": nn.compact(call)})()


@pytest.mark.parametrize(("name", "sense"), networks.network.FLAGS.items())
def test_linen_networks_of_other_habits_train(name, sense):
    """Statistics move, dropout draws anew each step, and evaluation draws nothing."""
    network = habits(name, sense)
    step = training.classifier_step(network, attacks.no_attack)
    start = stacking.stack([training.init_classifier(network, (4, 4, 1), KEY)])
    begun = jax.device_get(start.variables)
    options = {"mesh": stacking.device_mesh(1, 2), "batch_size": 2, "epochs": 1}
    images = GENERATOR.uniform(-1, 1, (6, 4, 4, 1))
    trained = jax.device_get(training.fit(step, start, training.StepSizes(), of(images=images), **options).variables)
    assert not np.array_equal(
        trained["batch_stats"]["BatchNorm_0"]["mean"], begun["batch_stats"]["BatchNorm_0"]["mean"]
    )
    assert not np.array_equal(trained["streams"], begun["streams"])
    one = networks.logits_fn(network, stacking.replica(trained, 0))
    np.testing.assert_array_equal(one(IMAGE), one(IMAGE))


GENERATOR = np.random.default_rng(0)


class Odd(nn.Module):
    @nn.compact
    def __call__(self, images, mode):
        return nn.Dense(3)(images.reshape(len(images), -1))


class Silent(nn.Module):
    @nn.compact
    def __call__(self, images, *, training=False):
        images = nn.BatchNorm(use_running_average=True)(images)
        return nn.Dense(3)(images.reshape(len(images), -1))


class Restless(nn.Module):
    @nn.compact
    def __call__(self, images):
        images = nn.BatchNorm(use_running_average=False)(images)
        return nn.Dense(3)(images.reshape(len(images), -1))


def test_linen_networks_that_cannot_be_meant():
    with pytest.raises(ValueError, match=r"Odd: expected a call of images .* got the parameter 'mode'"):
        networks.of_module(Odd())
    with pytest.raises(ValueError, match="Restless: expected a module that changes nothing"):
        networks.init(Restless(), KEY, (4, 4, 1))
    step = training.classifier_step(Silent(), attacks.no_attack)
    start = stacking.stack([training.init_classifier(Silent(), (4, 4, 1), KEY)])
    with pytest.warns(UserWarning, match="batch_stats have not moved in training"):
        training.fit(step, start, training.StepSizes(), SPLIT, mesh=stacking.device_mesh(1, 2), batch_size=2, epochs=1)


def test_an_nnx_module_in_training_mode_is_told_what_to_do():
    module = Net(nnx.Rngs(0))
    one = lambda image: module(image[None])[0]  # noqa: E731
    calls = [
        lambda: attack(logits_fn=one),
        lambda: gradients.gradient(KEY, one, IMAGE),
        lambda: attacks.robust_accuracy(module, SPLIT.images, SPLIT.labels, epsilon=0.1),
        lambda: gradients.analyser(one, PLANE)(SPLIT.images, SPLIT.labels),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"call module\.eval\(\) first"):
            call()
    module.eval()
    assert attack(logits_fn=one).shape == IMAGE.shape


def test_losses_that_so_few_classes_leave_undefined_say_so():
    with pytest.warns(UserWarning, match="the loss dlr is undefined for 2 classes"):
        attacks.dlr(jnp.zeros(2), 0)
    with pytest.warns(UserWarning, match="the loss targeted_dlr is undefined for 3 classes"):
        attacks.targeted_dlr(jnp.zeros(3), (0, 1))
