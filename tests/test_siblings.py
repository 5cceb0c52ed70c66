"""More odd inputs, the siblings of those in `test_edges`: a right value with its source, or one clear line."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from robgrad import attacks, data, faithfulness, gradients, intervals, manifolds, networks, stacking, training
from robgrad.data import corruptions
from robgrad.gradients import controls, outputs
from robgrad.manifolds.renderer import Bank, nearest_code

KEY = jax.random.key(0)
GENERATOR = np.random.default_rng(0)
SOME = GENERATOR.uniform(-0.9, 0.9, (20, 4, 4, 1)).astype(np.float32)
WEIGHTS = GENERATOR.normal(size=(16, 3)).astype(np.float32)
LABELS = (SOME.reshape(20, -1) @ WEIGHTS).argmax(1)
BYTES = GENERATOR.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
NAN = float("nan")


def linear(image):
    return image.ravel() @ WEIGHTS


def two(image):
    return jnp.stack([image.sum(), 0 * image.sum()])


def twins(image):
    """Classes 0 and 1 are always alike; the third wins where the sum is below 2."""
    return jnp.stack([image.sum(), image.sum(), 4 - image.sum()])


def masked(image):
    """A class that is masked beside two whose margin is the sum."""
    return jnp.stack([image.sum(), 0 * image.sum(), -jnp.inf * jnp.ones(())])


def dark(image):
    """Predicts nothing but of images darker than there are."""
    return jnp.where(image.max() < -2, linear(image), jnp.nan)


def whole(image):
    return jnp.round(10 * linear(image)).astype(jnp.int32)


def moved_by(epsilon):
    attack = attacks.pgd("linf", attacks.cross_entropy, 3)
    end = jax.jit(lambda radius: attack(KEY, linear, jnp.asarray(SOME[0]), 0, radius, 0.05))(epsilon)
    return float(jnp.abs(end - SOME[0]).max())


def coverage(share, rows):
    """How often the interval of two seeds' share holds the truth, of independent rows."""
    generator = np.random.default_rng(1)
    bounds = [intervals.of_share(generator.random((2, rows)) < share)[1:] for _ in range(400)]
    return float(np.mean([low <= share <= high for low, high in bounds]) >= 0.93)


def nearest(build, logits_fn, image):
    return float(attacks.nearest(build("l2"))(KEY, logits_fn, image, 0).distance)


def fallen(loss_part):
    images = np.full((4, 2, 2, 1), 0.1, np.float32)
    return attacks.robust_accuracy(masked, images, [0] * 4, epsilon=0.2, version=(loss_part,)).accuracy


def slope(attribution):
    return float(jnp.abs(gradients.ATTRIBUTIONS[attribution](KEY, dark, jnp.asarray(SOME[0]))).max())


def rank_of(images):
    plane = manifolds.pca(manifolds.fit_pca(images, 5))
    return float(plane.tangent_space(jnp.asarray(images[0])).rank)


FLAT = np.outer(np.linspace(-1, 1, 30), np.linspace(-0.5, 0.5, 36)).reshape(30, 6, 6, 1).astype(np.float32)
ROUGH = GENERATOR.normal(size=(8, 8)).astype(np.float32)

EDGES = [
    ("two seeds of equal share, coverage of 20 rows", lambda: coverage(0.93, 20), 1.0, "simulated, at least 93%"),
    ("two seeds of equal share, coverage of 100 rows", lambda: coverage(0.93, 100), 1.0, "simulated, at least 93%"),
    (
        "one seed's share",
        lambda: intervals.of_share(np.array([[1] * 9 + [0]]))[1],
        stats.binomtest(9, 10).proportion_ci(method="wilson").low,
        "SciPy's Wilson interval",
    ),
    ("DLR of one live class beside the label", lambda: fallen("apgd-dlr"), 0.0, "the sum is 0.4, its reach 0.8"),
    ("targeted DLR of one live class", lambda: fallen("apgd-t"), 0.0, "the sum is 0.4, its reach 0.8"),
    (
        "divergence of a masked class",
        lambda: attacks.losses.kl_divergence(jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([0.5, 0.5, 0.0])),
        0.0,
        "0 log 0 is 0",
    ),
    (
        "cross-entropy of probabilities with a masked class",
        lambda: attacks.cross_entropy(jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([0.5, 0.5, 0.0])),
        np.log(2),
        "0 log 0 is 0",
    ),
    ("DeepFool on a tie", lambda: round(nearest(attacks.deepfool, two, jnp.zeros((2, 2, 1))), 3), 0.0, "infimum"),
    ("FAB on a tie", lambda: round(nearest(attacks.fab, two, jnp.zeros((2, 2, 1))), 3), 0.0, "infimum"),
    (
        "FAB beside a class that is always alike",
        lambda: round(nearest(attacks.fab, twins, jnp.full((2, 2, 1), 0.7)), 2),
        0.4,
        "from a sum of 2.8 to 2, over the root of four pixels",
    ),
    *(
        (
            f"{name} beside a masked class",
            lambda build=build: round(nearest(build, masked, jnp.full((2, 2, 1), 0.1)), 2),
            0.2,
            "from a sum of 0.4 to 0, over the root of four pixels",
        )
        for name, build in (("FAB", attacks.fab), ("DeepFool", attacks.deepfool))
    ),
    (
        "targeted FAB on a tie",
        lambda: round(
            nearest(lambda norm: attacks.fab(norm, targeted=True), two, jnp.zeros((2, 2, 1))), 3
        ),
        0.0,
        "infimum",
    ),
    ("smoothness of a constant map", lambda: controls.smoothness(jnp.full((6, 6), 0.1)), NAN, "undefined"),
    (
        "smoothness of a tiny map",
        lambda: controls.smoothness(jnp.asarray(ROUGH * 1e-25)) - controls.smoothness(jnp.asarray(ROUGH)),
        0.0,
        "the same at any scale",
    ),
    (
        "covariance's chance of tiny images",
        lambda: gradients.covariance_chance(jnp.eye(16)[:, :4], jnp.asarray(SOME.reshape(20, -1) * 1e-25))
        - gradients.covariance_chance(jnp.eye(16)[:, :4], jnp.asarray(SOME.reshape(20, -1))),
        0.0,
        "the same at any scale",
    ),
    (
        "LIME of a network that is a constant NaN around the image",
        lambda: gradients.lime(samples=50)(
            KEY, lambda x: jnp.where(jnp.all(x == SOME[0]), linear(x), jnp.nan), jnp.asarray(SOME[0])
        ).sum(),
        NAN,
        "nothing is known around it",
    ),
    (
        "noise to where a network is a constant NaN",
        lambda: jax.jit(jax.vmap(lambda key: gradients.sensitivity(
            key, lambda x: jnp.where(jnp.all(jnp.abs(x) <= 0.95), linear(x), jnp.nan), jnp.asarray(SOME[0]),
            manifolds.TangentSpace(jnp.eye(16)[:, :4], jnp.int32(4)), 8.0,
        ).on))(jax.random.split(KEY, 5)).sum(),
        NAN,
        "all of it is beyond the box",
    ),
    ("PCA of images along a line", lambda: rank_of(FLAT), 1.0, "by construction"),
    ("PCA of images all alike", lambda: rank_of(np.zeros((30, 6, 6, 1), np.float32)), 0.0, "they do not vary"),
    ("cross-entropy beyond the logits", lambda: attacks.cross_entropy(jnp.array([1.0, 2.0]), 3), NAN, "no class"),
    ("margin of label -1", lambda: attacks.cw_margin(jnp.array([1.0, 2.0]), -1), NAN, "no class"),
    (
        "loss gradient at a traced label beyond the logits",
        lambda: jax.jit(lambda y: gradients.loss_gradient(linear, jnp.asarray(SOME[0]), y))(7).sum(),
        NAN,
        "no class",
    ),
    ("a traced radius below 0", lambda: moved_by(-0.1), NAN, "no ball"),
    ("a traced infinite radius", lambda: moved_by(np.inf), NAN, "no ball"),
    ("a traced radius", lambda: round(moved_by(0.1), 6), 0.1, "the ball's"),
    *((f"{name} where nothing is predicted", lambda name=name: slope(name), NAN, "no class") for name in
      ("gradient", "gradient_times_input", "integrated_gradients", "smoothgrad", "smoothgrad_variance")),
    (
        "maps known beforehand, of bytes",
        lambda: np.abs(
            [
                float(controls.known_maps(BYTES, jnp.arange(6.0)[:, None, None] * jnp.ones((4, 4)))(
                    KEY, linear, data.scale(jnp.asarray(one)))[0, 0]) - place
                for place, one in enumerate(BYTES)
            ]
        ).max(),
        0.0,
        "each has its own",
    ),
    (
        "an attribution at another image, of bytes",
        lambda: float(jnp.abs(controls.of_another_image(lambda key, f, x: x[..., 0], BYTES)(
            KEY, linear, jnp.zeros((4, 4, 1)))).max() <= 1),
        1.0,
        "pixels in [-1, 1]",
    ),
    (
        "DiffROAR of percentiles that add up but for rounding",
        lambda: faithfulness.diff_roar([30, 70, 12.1, 87.9], np.ones((4, 1, 5)), np.zeros((4, 1, 5))).mean(),
        1.0,
        "kept always right, removed never",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "compute", "right", "source"), EDGES, ids=[one[0] for one in EDGES])
def test_siblings_have_their_right_value(name, compute, right, source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert float(compute()) == pytest.approx(right, abs=1e-4, nan_ok=True), f"{name}: {source}"


IMAGE = jnp.asarray(SOME[0])
SPLIT = data.Split(SOME, LABELS)
PGD = attacks.pgd("linf", attacks.cross_entropy, 2)


class Small(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(images.reshape(len(images), -1))


def fitted(numbers, **options):
    network = options.pop("network", Small())
    step = training.classifier_step(network, PGD)
    states = stacking.stack([training.init_classifier(network, (4, 4, 1), KEY)])
    given = {"data": SPLIT, "batch_size": 4, "epochs": 1} | options
    return training.fit(step, states, numbers, **given)


def roared(**options):
    given = {"classes": 3, "model": networks.MLP((8,), 3), "percentiles": [50.0], "seeds": 1, "epochs": 1}
    attribution = options.pop("attribution", gradients.gradient)
    return faithfulness.roar(linear, attribution, SPLIT, SPLIT, **given | {"batch_size": 4} | options)


REFUSED = {
    "integer logits": (lambda: PGD(KEY, whole, IMAGE, 0, 0.1, 0.1), "expected floating-point logits"),
    "integer logits, robust accuracy": (
        lambda: attacks.robust_accuracy(whole, SOME, LABELS, epsilon=0.1),
        "expected floating-point logits",
    ),
    "a goal equal to its label, mapped": (
        lambda: jax.vmap(lambda y, t: PGD(KEY, linear, IMAGE, (y, t), 0.1, 0.1))(jnp.array([1, 0]), jnp.array([1, 1])),
        "expected a target other than the label",
    ),
    "a label that is a word": (lambda: PGD(KEY, linear, IMAGE, "cat", 0.1, 0.1), "expected an integer label"),
    "no label": (lambda: PGD(KEY, linear, IMAGE, None, 0.1, 0.1), "expected the image's label"),
    "a radius that is a word": (lambda: PGD(KEY, linear, IMAGE, 0, "8/255", 0.1), "expected epsilon as a number"),
    "no radius": (lambda: PGD(KEY, linear, IMAGE, 0, None, 0.1), "expected epsilon as a number"),
    "a margin of soft labels": (
        lambda: attacks.cw_margin(jnp.zeros(3), jnp.ones(3) / 3),
        "a margin has no soft labels",
    ),
    "DLR of soft labels": (lambda: attacks.dlr(jnp.zeros(3), jnp.ones(3) / 3), "a margin has no soft labels"),
    "squares of a flat image": (
        lambda: attacks.as_attack(attacks.square("linf", 3))(
            KEY, lambda x: x @ WEIGHTS, jnp.zeros(16), 0, 0.1, 0.1
        ),
        "which has squares",
    ),
    "an attack of one's own to nothing": (
        lambda: attacks.robust_accuracy(linear, SOME, LABELS, epsilon=0.1, version=(lambda *_: None,)),
        "expected an attack to a floating-point image",
    ),
    "an attack of one's own to another shape": (
        lambda: attacks.robust_accuracy(
            linear, SOME, LABELS, epsilon=0.1, version=(lambda key, f, x, *_: x.ravel(),)
        ),
        "expected an attack to a floating-point image",
    ),
    "a colour by its name": (
        lambda: faithfulness.deletion_and_insertion(KEY, linear, IMAGE, jnp.ones((4, 4)), fill="mean"),
        "expected fill as a number",
    ),
    "a correlation of no pixels": (
        lambda: faithfulness.rank_correlation(jnp.zeros(0), jnp.zeros(0)),
        "expected two maps of a pixel or more",
    ),
    "a module for its builder": (
        lambda: networks.of_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0))),
        "expected a function of random streams",
    ),
    "a loss by its name": (lambda: attacks.pgd("linf", "xent", 3), "expected a loss"),
    "a search as an attack": (
        lambda: attacks.fab("l2")(KEY, linear, IMAGE, 0, 0.1, 0.1),
        "expected an attack, got a search",
    ),
    "an attack as a search": (lambda: attacks.nearest(PGD), "expected a search"),
    "an attack made an attack": (lambda: attacks.as_attack(PGD), "expected a search"),
    "Square in l2 without a range": (
        lambda: attacks.square("l2", 5, pixel_range=(-np.inf, np.inf)),
        "expected a finite pixel range",
    ),
    "Carlini and Wagner without a range": (
        lambda: attacks.carlini_wagner(pixel_range=(-1, np.inf)),
        "expected a finite pixel range",
    ),
    "a logit beyond the network's": (
        lambda: gradients.of_gradient(outputs.logit_of(7))(KEY, linear, IMAGE),
        "expected a class in 0..2",
    ),
    "the loss of no class": (
        lambda: gradients.of_gradient(outputs.loss_of(-1))(KEY, linear, IMAGE),
        "expected a class in 0..2",
    ),
    "probabilities of another shape": (
        lambda: attacks.losses.kl_divergence(jnp.zeros(3), jnp.ones((3, 1)) / 3),
        "expected probabilities of shape",
    ),
    "integers as images": (lambda: data.scale(jnp.zeros((2, 4, 4, 1), jnp.int32)), "expected uint8 or floating"),
    "truth values as a background": (
        lambda: gradients.expected_gradients(jnp.ones((2, 4, 4, 1), bool)),
        "expected uint8 or floating",
    ),
    "bytes to a manifold": (
        lambda: manifolds.distance(manifolds.pca(manifolds.fit_pca(SOME, 3)), jnp.asarray(BYTES[0])),
        "expected a floating-point image",
    ),
    "bytes in a bank": (
        lambda: nearest_code(
            lambda y, z: IMAGE, Bank(jnp.zeros(6, int), jnp.zeros((6, 1)), jnp.asarray(BYTES)), IMAGE
        ),
        "expected floating-point images",
    ),
    "an image of another shape to a plane": (
        lambda: manifolds.pca(manifolds.fit_pca(SOME, 3)).project(jnp.zeros((4, 4))),
        "expected an image of shape",
    ),
    "too few known maps": (lambda: controls.known_maps(BYTES, jnp.zeros((3, 4, 4))), "expected a map for each image"),
    "other images of another shape": (
        lambda: controls.of_another_image(gradients.gradient, np.zeros((5, 1, 4, 4), np.float32))(KEY, linear, IMAGE),
        "expected images of shape",
    ),
    "bytes to a corruption": (
        lambda: corruptions.brightness(KEY, jnp.asarray(BYTES[0]), 1),
        "expected a floating-point image",
    ),
    "no severity": (lambda: corruptions.contrast(KEY, IMAGE, -1), "expected a severity of 1 to 5"),
    "a chunk below 0": (
        lambda: gradients.smoothgrad(4, chunk=-3)(KEY, linear, IMAGE),
        "expected at least 1 evaluation in a chunk",
    ),
    "a chunk of a half": (
        lambda: gradients.sliding_occlusion(chunk=2.5)(KEY, linear, IMAGE),
        "expected a whole number",
    ),
    "infidelity without noise": (
        lambda: faithfulness.infidelity(KEY, linear, IMAGE, IMAGE, noise=0.0),
        "expected a standard deviation of noise above 0",
    ),
    "LIME without a width": (lambda: gradients.lime(width=0.0), "expected a kernel's width above 0"),
    "LIME with a ridge below 0": (lambda: gradients.lime(ridge=-50), "expected a ridge of 0 or more"),
    "a grid of no cells": (lambda: gradients.grid_regions(-1), "expected at least 1 cell"),
    "a blur of no width": (
        lambda: controls.blurred(gradients.gradient, 0.0)(KEY, linear, IMAGE),
        "expected a deviation in pixels above 0",
    ),
    "no random directions": (
        lambda: gradients.gradient_random_projection(KEY, linear, IMAGE, directions=0),
        "expected at least 1 direction",
    ),
    "a denoiser without noise": (
        lambda: manifolds.from_denoiser(manifolds.Denoiser(), {}, noise=0),
        "expected a standard deviation of noise above 0",
    ),
    "half a dimension": (lambda: manifolds.fit_pca(SOME, 2.5), "expected a whole number"),
    "a share above 1": (
        lambda: faithfulness.perturbation.removed_of(jnp.arange(16).reshape(4, 4), 50),
        "expected a share of pixels in",
    ),
    "a correlation above 1": (lambda: intervals.of_correlation(1.5, 10, True), "expected a correlation in"),
    "hits that are none": (lambda: intervals.of_share(np.full((1, 5), np.nan)), "expected hits"),
    "hits of one axis": (lambda: intervals.of_share(np.ones(5)), "expected hits"),
    "an unknown benchmark": (
        lambda: faithfulness.curve("KAR", [50.0], np.ones((1, 1, 5)), np.ones((1, 1, 5))),
        "expected a benchmark of roar, kar",
    ),
    "ROAR by another word": (lambda: roared(benchmark="keep"), "expected a benchmark of roar, kar"),
    "ROAR with a rate below 0": (lambda: roared(learning_rate=-1.0), "expected a learning rate of 0 or more"),
    "ROAR of a batch that is no count": (lambda: roared(batch_size=4.0), "expected a whole number"),
    "ROAR of maps with NaN": (
        lambda: roared(attribution=lambda key, f, x: jnp.full(x.shape[:2], jnp.nan)),
        "expected a map with an order of pixels",
    ),
    "training at a radius below 0": (
        lambda: fitted(training.StepSizes(-0.1, 0.05, 1e-2)),
        r"expected a radius \(epsilon\) of 0 or more",
    ),
    "training at no end of a radius": (lambda: fitted(training.StepSizes(np.inf, 0.05, 1e-2)), "expected a radius"),
    "training with a weight below 0": (
        lambda: fitted(training.StepSizes(0.1, 0.05, 1e-2, -5.0)),
        "expected a weight of the objective",
    ),
    "training with half a batch": (
        lambda: fitted(training.StepSizes(0.1, 0.05), batch_size=4.0),
        "expected a whole number",
    ),
    "training on labels of -1": (
        lambda: fitted(training.StepSizes(0.1, 0.05), data=data.Split(SOME, LABELS - 5)),
        "expected labels of 0 and above",
    ),
    "training without names": (
        lambda: fitted(training.StepSizes(0.1, 0.05), data=(SOME, LABELS)),
        "expected data with images and labels",
    ),
    "numbers of another stack": (
        lambda: fitted(training.StepSizes(jnp.zeros(3), 0.05)),
        "expected numbers, or one for each of 1 networks",
    ),
    "a state that is no stack": (
        lambda: training.fit(training.classifier_step(Small(), PGD), training.init_classifier(Small(), (4, 4, 1), KEY),
                             training.StepSizes(), SPLIT, batch_size=4, epochs=1),
        "expected a stack of states",
    ),
    "a network of one logit": (
        lambda: fitted(training.StepSizes(0.1, 0.05), network=nn.Dense(1)),
        "expected a network of batches",
    ),
    "ROAR of images of one class": (
        lambda: faithfulness.roar(linear, gradients.gradient, *[data.Split(SOME, np.zeros(20, int))] * 2, classes=3),
        "expected training images of two classes",
    ),
    "an average that extrapolates": (lambda: training.Averaging(-1.0).checked(), "expected a decay in"),
    "a network of the package on another size": (
        lambda: PGD(KEY, networks.logits_fn(Small(), training.init_classifier(Small(), (4, 4, 1), KEY).variables),
                    jnp.zeros((5, 5, 1)), 0, 0.1, 0.1),
        "expected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_siblings_are_refused_in_a_line(name, in_a_line):
    in_a_line(*REFUSED[name])


def test_a_state_file_is_of_one_network_and_one_choice_of_attacks(tmp_path):
    apply, options = lambda weights, image: image.ravel() @ weights, {"epsilon": 0.01, "version": "short"}
    path = tmp_path / "state.npz"
    first = attacks.robust_accuracy(apply, SOME, LABELS, variables=WEIGHTS, state=path, **options)
    again = attacks.robust_accuracy(apply, SOME, LABELS, variables=WEIGHTS, state=path, **options)
    assert first.accuracy == again.accuracy > 0
    with pytest.raises(ValueError, match="a network with other logits"):
        attacks.robust_accuracy(apply, SOME, LABELS, variables=-WEIGHTS, state=path, **options)
    own = tmp_path / "own.npz"
    stay = lambda key, f, image, *_: image  # noqa: E731
    attacks.robust_accuracy(linear, SOME, LABELS, epsilon=0.3, version=(stay,), state=own)
    for other in (PGD, attacks.pgd("linf", attacks.cross_entropy, 3)):
        with pytest.raises(ValueError, match="expected a restored evaluation with version own attack"):
            attacks.robust_accuracy(linear, SOME, LABELS, epsilon=0.3, version=(other,), state=own)


def test_attacks_of_one_builder_are_told_apart_and_the_same_one_is_known_again():
    build = lambda steps, loss=attacks.cross_entropy: attacks.pgd("linf", loss, steps)  # noqa: E731
    assert attacks.states.named(build(3)) == attacks.states.named(build(3))
    others = {attacks.states.named(one) for one in (build(3), build(4), build(3, attacks.cw_margin))}
    assert len(others) == 3


def test_a_radius_given_twice_is_evaluated_once(tmp_path):
    found = attacks.robust_accuracy(
        linear, SOME, LABELS, epsilon=[0.05, 0.05], version="short", state=tmp_path / "twice.npz"
    )
    assert found[0].robust.tolist() == found[1].robust.tolist()


def test_the_papers_network_takes_images_of_one_pixel():
    network = networks.classifier_for((1, 1, 1), 3)
    variables = networks.init(network, KEY, (1, 1, 1))
    assert networks.logits(network, variables, jnp.zeros((5, 1, 1, 1))).shape == (5, 3)


def test_a_network_in_a_line_holds_no_numbers():
    own = networks.logits_fn(Small(), training.init_classifier(Small(), (4, 4, 1), KEY).variables)
    assert repr(own) == "OfOne(Small of 51 numbers)"
