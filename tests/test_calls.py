"""Calls in which something was forgotten or does not fit: one clear line, or the right value, never a plausible one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from robgrad import attacks, data, faithfulness, gradients, intervals, manifolds, networks, stacking, training
from robgrad.data import corruptions, marks
from robgrad.gradients import controls
from robgrad.manifolds import densities
from robgrad.manifolds.renderer import Bank, nearest_code

GENERATOR, KEY = np.random.default_rng(0), jax.random.key(0)
BYTES = GENERATOR.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
SOME = GENERATOR.uniform(-0.9, 0.9, (20, 4, 4, 1)).astype(np.float32)
WEIGHTS = GENERATOR.normal(size=(16, 3)).astype(np.float32)
LABELS = (SOME.reshape(20, -1) @ WEIGHTS).argmax(1)
SPLIT, IMAGE, NAN = data.Split(SOME, LABELS), jnp.asarray(SOME[0]), float("nan")
PGD = attacks.pgd("linf", attacks.cross_entropy, 2)
UNIT = attacks.pgd("linf", attacks.cross_entropy, 2, pixel_range=(0.0, 1.0))
MESH = stacking.device_mesh(1, 20)


class Small(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(images.reshape(len(images), -1))


NETWORK = Small()
VARIABLES = stacking.stack([networks.init(NETWORK, KEY, (4, 4, 1))])
STACK = stacking.stack([jnp.zeros(2), jnp.ones(2)])


def linear(image):
    return jnp.ravel(image) @ WEIGHTS


def fresh():
    return stacking.stack([training.init_classifier(NETWORK, (4, 4, 1), KEY)])


def fitted(numbers=training.StepSizes(0.1, 0.05), states=None, step=None, **options):  # noqa: B008
    step = training.classifier_step(NETWORK, PGD) if step is None else step
    given = {"data": SPLIT, "batch_size": 10, "epochs": 2} | options
    return training.fit(step, fresh() if states is None else states, numbers, **given)


def scored(score):
    return fitted(states=training.with_best(fresh(), 2), score=lambda variables: score)


def right(*sizes, attack=PGD):
    return training.accuracies(NETWORK, attack, MESH)(VARIABLES, SPLIT, KEY, *sizes)


def held(attack=PGD, split=SPLIT, epsilon=0.1, step_size=0.05):
    return training.held_out(NETWORK, attack, split, training.StepSizes(epsilon, step_size), MESH)(VARIABLES)


def numbers_of(benchmarks=("kar",), percentile=50.0, methods=("g",)):
    return faithfulness.numbers_of(faithfulness.grid(["g"], [percentile], 1, benchmarks), methods, 16)


def curve(benchmark="kar", percentiles=(10, 50, 90), count=3):
    return faithfulness.curve(benchmark, percentiles, np.ones((count, 1, 5)), np.zeros((count, 1, 5)))


def file_of(tmp_path, **arrays):
    parts = {"train_images": BYTES, "train_labels": np.arange(6) % 2}
    parts |= {"test_images": BYTES, "test_labels": np.arange(6) % 2}
    np.savez(tmp_path / "set.npz", **parts | arrays)
    return data.load(tmp_path / "set.npz")


MAP = np.arange(16.0).reshape(4, 4)
BANK = Bank(jnp.zeros(6, jnp.int32), jnp.zeros((6, 2)), jnp.asarray(SOME[:6]))
REFUSED = {
    "an attack whose radius is forgotten": (lambda: right(), "got no epsilon"),
    "an attack whose step is forgotten": (lambda: right(0.3), "got no step_size"),
    "an attack that does not move": (lambda: right(0.3, 0.0), "would not move"),
    "training whose attack does not move": (lambda: fitted(training.StepSizes(0.1)), "would not move"),
    "training whose attack has another range": (lambda: training.classifier_step(NETWORK, UNIT), "leave pixel_range"),
    "an analyser of two ranges": (
        lambda: gradients.analyser(linear, manifolds.pca(manifolds.fit_pca(SOME, 3)), attack=UNIT),
        "expected an attack of pixels in",
    ),
    "scores that are none": (lambda: scored(None), "expected a finite score for each"),
    "scores that are not finite": (lambda: scored(np.array([NAN])), "expected a finite score for each"),
    "scores of images": (lambda: scored(np.zeros((1, 20))), "expected a finite score for each"),
    "labels held out beyond the logits": (lambda: held(split=data.Split(SOME, LABELS + 5)), "expected labels in 0..2"),
    "an attack on images held out of another range": (lambda: held(UNIT), "leave pixel_range"),
    "a negative radius on images held out": (lambda: held(epsilon=-0.1), "0 or more"),
    "labels that would wrap": (lambda: fitted(data=data.Split(SOME, LABELS.astype(np.int64) + 2**32)), "0..2147483647"),
    "a data set in place of a split": (
        lambda: fitted(data=data.Dataset("d", ("a", "b", "c"), SPLIT, SPLIT)), "give dataset.train",
    ),
    "a benchmark as a word": (lambda: numbers_of("kar"), "benchmarks as a list"),
    "a benchmark that is none": (lambda: numbers_of(("KAR",)), "expected a benchmark of roar, kar"),
    "a percentile beyond 100": (lambda: numbers_of(percentile=120.0), "percentiles between 0 and 100"),
    "a method that is none": (lambda: numbers_of(methods=("x",)), "expected a method of x, random, got 'g'"),
    "percentiles that do not fit": (lambda: curve(percentiles=(10, 50)), "expected accuracies at 2 percentiles"),
    "shares for percentiles": (lambda: curve(percentiles=(0.1, 0.5, 0.9)), "got shares"),
    "a rank map that is not there": (
        lambda: faithfulness.occlude(IMAGE, jnp.zeros((1, 4, 4)), faithfulness.Occlusion(2, 3, False)),
        "expected one of 1 rank maps",
    ),
    "a place beyond a stack": (lambda: stacking.replica(STACK, 2), "places in a stack of 2"),
    "places beyond a stack": (lambda: stacking.replicas(STACK, [0, 9]), "places in a stack of 2"),
    "no states": (lambda: stacking.stack([]), "one state or more"),
    "ROAD without a label": (lambda: faithfulness.road(KEY, linear, IMAGE, None, MAP), "an integer, got none"),
    "ROAD of a soft label": (lambda: faithfulness.road(KEY, linear, IMAGE, jnp.eye(3)[0], MAP), "an integer"),
    "known maps of bytes": (
        lambda: controls.known_maps(BYTES, np.zeros((6, 4, 4)))(KEY, linear, jnp.asarray(BYTES[0])), "map bytes",
    ),
    "noise that is no number": (lambda: gradients.smoothgrad(3, NAN), "a standard deviation of noise"),
    "noise of a background that is none": (lambda: gradients.gradient_shap(SOME, noise=None), "a standard deviation"),
    "a negative radius of noise": (lambda: faithfulness.moved_images(KEY, IMAGE, -0.05), "a radius in pixel units"),
    "a map without samples": (lambda: faithfulness.largest_change(MAP, MAP), "expected maps"),
    "a mask of NaN": (lambda: faithfulness.agreement(KEY, MAP, np.full((4, 4), NAN)), "a mask of numbers, got NaN"),
    "a one-hot label of integers": (lambda: attacks.cross_entropy(jnp.zeros(3), jnp.array([0, 1, 0])), "a class"),
    "a true label": (lambda: attacks.cross_entropy(jnp.zeros(3), True), "a class as an integer"),
    "places that are not there": (lambda: SPLIT.take([99]), "places below 20"),
    "no rows": (lambda: SPLIT.take(None), "expected a number, a slice"),
    "a corruption of [0, 255]": (lambda: corruptions.brightness(KEY, IMAGE * 127 + 128, 1), "expected pixels in"),
    "a corruption of a batch": (lambda: corruptions.contrast(KEY, jnp.asarray(SOME), 1), "expected one image"),
    "a bank of unequal parts": (
        lambda: nearest_code(lambda label, code: IMAGE, BANK._replace(codes=BANK.codes[:2]), IMAGE), "a label, a code",
    ),
    "a plane of one image": (lambda: manifolds.fit_pca(SOME[0], 2), "which looks like one image"),
    "a plane at an image of another shape": (
        lambda: manifolds.local_pca(SOME, 8, 3).project(IMAGE.reshape(2, 8, 1)), "expected an image of shape",
    ),
    "a mode of NaN": (lambda: densities.mode(np.array([1.0, 2.0, NAN])), "expected finite values"),
    "the nearest image without a label": (
        lambda: attacks.nearest(attacks.fab("l2"))(KEY, linear, IMAGE, None), "expected the image's class",
    ),
    "half a goal": (lambda: PGD(KEY, linear, IMAGE, (0, None), 0.1, 0.1), "of two classes"),
    "marks of classes that are not there": (lambda: marks.marked(SPLIT, 3, LABELS + 5), "expected keys in 0..2"),
    "a share of nothing": (lambda: intervals.wilson(0.5, 0), "trials above 0"),
    "a recipe without steps": (lambda: training.Recipe("l2", attack_steps=0), "attack step"),
    "augmentations as a word": (lambda: training.Recipe(augmentation="flip"), "as a list of names"),
    "a PyTorch module": (
        lambda: attacks.robust_accuracy(torch.nn.Linear(16, 3), SOME, LABELS, epsilon=0.1), "networks.of_torch",
    ),
    "a linen module without variables": (
        lambda: attacks.robust_accuracy(NETWORK, SOME, LABELS, epsilon=0.1), "networks.logits_fn",
    ),
    "a set whose name is none": (lambda: data.load(None), "the name or path of a data set"),
    "a set that a run makes": (lambda: data.load("generated:runs/one"), "runs.load_data"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_a_line(name, in_a_line):
    in_a_line(*REFUSED[name])


FILES = {
    "one-hot labels": ({"train_labels": np.eye(2, dtype=int)[np.arange(6) % 2]}, "give classes, not one-hot"),
    "a label without end": ({"train_labels": np.array([0, 1, 0, 1, 0, 10**9])}, "got none of class 2"),
    "labels that would wrap": ({"train_labels": np.arange(6) % 2 + 2**32, "classes": ["a", "b"]}, "of 32 bits"),
    "a name for all classes": ({"classes": np.array("ab")}, "a list of names"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_do_not_fit_are_refused_in_a_line(name, tmp_path):
    arrays, message = FILES[name]
    with pytest.raises(data.DataError, match=message):
        file_of(tmp_path, **arrays)


def test_what_is_stored_class_by_class_is_loaded_in_an_order_that_mixes_them(tmp_path):
    labels, masks = np.repeat([0, 1], 3), np.arange(6)[:, None, None] % 2 * np.ones((6, 4, 4))
    made = file_of(tmp_path, train_labels=labels, test_labels=labels, test_masks=masks)
    assert {*made.test.take(3).labels.tolist()} == {0, 1}
    for image, label, mask in zip(made.test.images, made.test.labels, made.test_masks, strict=True):
        place = int(np.flatnonzero((image == BYTES).all((1, 2, 3)))[0])
        assert (label, mask.all()) == (labels[place], place % 2)
    again = data.load(tmp_path / "set.npz")
    np.testing.assert_array_equal(again.train.images, made.train.images)


def test_a_best_epoch_is_kept_whatever_the_scores_are():
    best = scored(np.array([-2.3]))
    first = fitted(states=training.with_best(fresh(), 1), score=lambda _: np.array([0.5]), epochs=1)
    assert int(best.best.epoch[0]) == 1
    jax.tree.map(np.testing.assert_array_equal, training.kept(best, "best"), training.kept(first, "last"))


VALUES = {
    "KAR keeps": (lambda: numbers_of().occlusion.keep[0], 1.0),
    "a search has no use for a step": (lambda: right(0.0, attack=attacks.as_attack(attacks.fab("linf", 1))), None),
    "images all alike have no plane": (
        lambda: manifolds.local_pca(np.repeat(SOME[:1], 20, 0), 8, 3).tangent_space(IMAGE).rank, 0.0,
    ),
    "probabilities with a negative one": (lambda: attacks.cross_entropy(jnp.zeros(3), jnp.array([-5, 0.5, 0.5])), NAN),
    "a number of JAX's": (lambda: np.abs(faithfulness.infidelity(KEY, linear, IMAGE, MAP, noise=jnp.float32(0.2)) - (
        faithfulness.infidelity(KEY, linear, IMAGE, MAP, noise=0.2))), 0.0),
    "a number of NumPy's takes so many": (lambda: len(SPLIT.take(np.int64(5)).labels), 5.0),
    "values close beside one another have a mode": (lambda: densities.mode(np.float32([3, 3.00001, 3.00001])), 3.00001),
    "bytes of a map do not wrap": (lambda: faithfulness.largest_change(np.uint8([[2]]), np.uint8([[[1]]])), 0.5),
    "the median of no rows": (lambda: intervals.median(np.zeros((0,))), NAN),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_what_is_odd_and_meant_has_its_value(name):
    compute, value = VALUES[name]
    value = right(0.0, 0.0, attack=attacks.no_attack)[0] if value is None else value
    assert float(np.squeeze(compute())) == pytest.approx(value, abs=1e-5, nan_ok=True)


def test_an_analyser_doubts_probabilities():
    analyse = gradients.analyser(lambda image: jax.nn.softmax(linear(image)), manifolds.pca(manifolds.fit_pca(SOME, 3)))
    with pytest.warns(UserWarning, match="look like probabilities"):
        analyse(SOME, LABELS)


def test_a_rank_map_that_is_not_there_is_no_image_where_the_place_is_traced():
    ranks = jnp.zeros((1, 4, 4))
    occluded = jax.jit(lambda place: faithfulness.occlude(IMAGE, ranks, faithfulness.Occlusion(place, 3, False)))
    assert np.isnan(occluded(2)).all()
    assert np.isfinite(occluded(0)).all()
