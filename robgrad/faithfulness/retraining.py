"""ROAR and KAR: how faithful an attribution is, by retraining on images that it has occluded.

Remove and retrain (ROAR, Hooker et al., 2019) replaces the pixels that an attribution ranks highest and
trains a fresh network on what is left; keep and retrain (KAR) replaces the others. A good attribution
costs ROAR's networks much of their accuracy, and KAR's little, against the same share of pixels chosen at
random. All retrainings of a benchmark are one stack in one compiled program: each image carries one rank
map a method, and each replica its method, its threshold and whether it keeps or removes, so that occluded
images exist only inside the step, and memory does not grow with the percentiles.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from robgrad import attacks, stacking, training
from robgrad.data import Split, scale
from robgrad.data.calls import of_one_image
from robgrad.data.checks import checked_count, checked_split
from robgrad.data.images import DataError
from robgrad.faithfulness.occlusion import Occlusion, fill_of, occlude, rank_maps
from robgrad.faithfulness.perturbation import checked_share
from robgrad.faithfulness.scores import (
    KAR,
    PERCENTILES,
    RANDOM,
    ROAR,
    checked_benchmark,
    checked_percentiles,
    curve,
)
from robgrad.gradients import Attribution
from robgrad.networks import LogitsFn, Network, classifier_for, intensity, logits_fn, predicted
from robgrad.training.optimizers import checked_rates


class RetrainingSizes(NamedTuple):
    """Numbers of a retraining step: the replica's occlusion and its learning rate."""

    occlusion: Occlusion
    learning_rate: Array | float = 1e-3


class Examples(NamedTuple):
    """Images `[N, H, W, C]`, labels `[N]` and rank maps `[N, methods, H, W]`."""

    images: Any
    labels: Any
    ranks: Any


class Retraining(NamedTuple):
    """One retraining of a benchmark: `benchmark` is `"roar"` or `"kar"`, `percentile` in 0..100."""

    benchmark: str
    method: str
    percentile: float
    seed: int


def grid(
    methods: Sequence[str], percentiles: Sequence[float] = PERCENTILES, seeds: int = 3, benchmarks=(ROAR, KAR)
) -> list[Retraining]:
    """All retrainings of a benchmark: benchmarks x methods x percentiles x seeds.

    Raises:
      ValueError: if benchmarks or methods are no lists of names, or a percentile is not between 0 and 100.
    """
    for what, names in (("benchmarks", benchmarks), ("methods", methods)):
        if isinstance(names, str) or not list(names):
            raise ValueError(f"expected {what} as a list of names, got {names!r}")
    benchmarks = [checked_benchmark(one) for one in benchmarks]
    checked_percentiles(percentiles)
    checked_count("seed", seeds)
    return [
        Retraining(b, m, q, seed) for b in benchmarks for m in methods for q in percentiles for seed in range(seeds)
    ]


def numbers_of(
    retrainings: Sequence[Retraining], methods: Sequence[str], pixels: int, learning_rate: float = 1e-3
) -> RetrainingSizes:
    """The stack's numbers; thresholds are percentile * pixels / 100, rounded, and refused where that is none or all.

    `methods` are those of the rank maps in their order, without Random, whose draws follow them, one a seed.

    Raises:
      ValueError: for that, for no retrainings, or one whose benchmark, percentile or method is not known.
    """
    if not len(retrainings):
        raise ValueError("expected one retraining or more, got none")
    checked_percentiles(sorted({one.percentile for one in retrainings}))
    for one in retrainings:
        checked_benchmark(one.benchmark)
        checked_share(one.percentile / 100, pixels)
        if one.method not in (RANDOM, *methods):
            raise ValueError(f"expected a method of {', '.join((*methods, RANDOM))}, got '{one.method}'")

    def place(one: Retraining) -> int:
        return len(methods) + one.seed if one.method == RANDOM else list(methods).index(one.method)

    occlusion = Occlusion(
        jnp.array([place(one) for one in retrainings], jnp.int32),
        jnp.array([round(one.percentile * pixels / 100) for one in retrainings], jnp.int32),
        jnp.array([one.benchmark == KAR for one in retrainings]),
    )
    return RetrainingSizes(occlusion, jnp.full(len(retrainings), learning_rate, jnp.float32))


def retraining_step(network: nn.Module | Network, fill: Array | None) -> training.Step:
    """Standard training on images that the replica's occlusion has changed; examples as in `Examples`."""
    standard = training.classifier_step(network, attacks.no_attack)

    def step(state: training.TrainState, numbers: RetrainingSizes, batch: training.Batch):
        images, labels, ranks = batch.examples
        occluded = jax.vmap(lambda image, rank: occlude(image, rank, numbers.occlusion, fill))(scale(images), ranks)
        batch = batch._replace(examples=Split(occluded, labels))  # type: ignore[arg-type]
        return standard(state, training.StepSizes(learning_rate=numbers.learning_rate), batch)

    return step


def evaluate(network: nn.Module | Network, fill: Array | None, mesh: Mesh, chunk: int = 100) -> Callable:
    """Compiles `run(variables, numbers, examples)` to whether each replica is right on each occluded image `[S, N]`.

    It raises `ValueError` if a replica goes by a rank map that the examples do not have.
    """

    def hit(_, replica, example):
        variables, occlusion = replica
        image, label, ranks = example
        return predicted(logits_fn(network, variables)(occlude(scale(image), ranks, occlusion, fill))) == label

    run = stacking.per_example(hit, mesh, chunk)

    def on_examples(variables, numbers: RetrainingSizes, examples: Examples) -> Array:
        there, last = examples.ranks.shape[1], int(np.max(numbers.occlusion.method))
        if last >= there:
            raise ValueError(
                f"expected {last + 1} rank maps of each image, as many as the retrainings go by, got {there}; give "
                "rank_maps as many randoms as there are seeds"
            )
        return run((), (variables, numbers.occlusion), tuple(examples))

    return on_examples


def initial_states(
    network: nn.Module | Network, image_shape: Sequence[int], retrainings: Sequence[Retraining], key: Array
):
    """A stack of fresh networks; those of one seed start alike and see the data in the same order."""
    one = jax.jit(jax.vmap(lambda seed: training.init_classifier(network, image_shape, jax.random.fold_in(key, seed))))
    return one(jnp.array([retraining.seed for retraining in retrainings]))


def roar(
    network: LogitsFn,
    attribution: Attribution | Mapping[str, Attribution],
    train: Split,
    test: Split,
    *,
    classes: int,
    model: nn.Module | Network | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    seeds: int = 3,
    epochs: int = 20,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    fill: Array | str | None = "mean",
    key: Array | None = None,
    progress: Callable[[Any], None] = lambda said: None,
    benchmark: str = ROAR,
) -> Any:
    """Remove and retrain on a network, images and an attribution of one's own, or several by name.

    Args:
      network: the network attributed, a function of one image `[H, W, C]` in [-1, 1] to logits, or of a batch.
      attribution: `(key, logits_fn, image) -> [H, W]`, for instance `gradients.gradient`; or several by name, which
        share the retrainings on pixels drawn at random.
      train, test: images (bytes, or in [-1, 1]) and labels.
      classes: number of classes.
      model: the network retrained, of batches of images; where None the paper's for this size of image, which need
        not be of the architecture of the network attributed.
      percentiles: shares of pixels removed, in percent.
      seeds: retrainings of each; Random draws its pixels anew for each.
      epochs, batch_size, learning_rate: of the retrainings, by Adam.
      fill: colour `[C]` in [-1, 1] of removed pixels, `"mean"` for the data set's, None for each image's own.
      key: random key.
      progress: called with a line that says which network is retrained, and every 20 seconds or so with the
        `training.Progress` of the retrainings; `print` shows both.
      benchmark: `"roar"`, or `"kar"` to keep what is removed otherwise.

    Returns:
      A `Curve`; of several attributions a dict of them by name.

    Raises:
      DataError: if images or labels are not what `data.check` wants, for instance labels beyond `classes`; if the
        attribution is NaN at an image.
      ValueError: if `fill` is neither a colour nor a known word, or the network takes neither one image nor a batch;
        for another benchmark, or a negative rate;
        or for percentiles not between 0 and 100, and seeds, epochs or a batch below 1.

    Example:
      >>> from robgrad import data, faithfulness, gradients
      >>> digits = data.load("digits")
      >>> some = [split.take(200) for split in (digits.train, digits.test)]
      >>> network = lambda image: image[:5, :2].ravel()
      >>> curve = faithfulness.roar(
      ...     network, gradients.gradient, *some, classes=10, percentiles=[50.0], seeds=1, epochs=1)
      >>> curve.mean.shape
      (1,)
    """
    checked_percentiles(percentiles)
    methods = dict(attribution) if isinstance(attribution, Mapping) else {"own": attribution}
    if not methods or RANDOM in methods:
        raise ValueError(f"expected attributions by names other than '{RANDOM}', got {', '.join(methods) or 'none'}")
    checked_benchmark(benchmark)
    checked_rates(learning_rate, None)
    for name, count in (("seed", seeds), ("epoch", epochs), ("example in a batch", batch_size)):
        checked_count(name, count)
    train, test = checked_split(train, classes, "train"), checked_split(test, classes, "test")
    if len(np.unique(train.labels)) < 2:
        raise DataError("expected training images of two classes or more, got those of one: nothing is to be learnt")
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = f"{list(train.images.shape[1:])} and {list(test.images.shape[1:])}"
        raise DataError(f"expected test images of the training images' size, got {sizes}")
    if not 1 <= batch_size <= len(train.images):
        raise ValueError(f"expected a batch size in 1..{len(train.images)} (the training examples), got {batch_size}")
    for share in percentiles:
        checked_share(share / 100, math.prod(train.images.shape[1:3]))
    if not all(map(callable, methods.values())) or not all(isinstance(name, str) for name in methods):
        raise ValueError(
            f"expected an attribution (key, logits_fn, image) -> map, or several by name, got {attribution}"
        )
    if isinstance(model, type):
        raise ValueError(f"expected a network of batches, got the class {model.__name__}; give {model.__name__}(...)")
    network = of_one_image(network, train.images.shape[1:])
    key = jax.random.key(0) if key is None else key
    shape = train.images.shape[1:]
    model = classifier_for(shape, classes) if model is None else model
    colour = fill_of(fill, train.images)
    retrainings = grid((*methods, RANDOM), percentiles, seeds, (benchmark,))
    mesh = stacking.device_mesh(len(retrainings), batch_size, intensity=intensity(model, shape, 0))
    heavy = stacking.intensity(network, jax.ShapeDtypeStruct(shape, jnp.float32))
    on = stacking.device_mesh(1, 100, intensity=heavy)
    maps = rank_maps(lambda _: network, methods, on, randoms=seeds)
    start_key, *keys = jax.random.split(key, 3)
    examples = [
        Examples(split.images, split.labels, maps(jnp.zeros(()), split.images, one))
        for split, one in zip((train, test), keys, strict=True)
    ]
    numbers = numbers_of(retrainings, tuple(methods), shape[0] * shape[1], learning_rate)
    progress(f"retraining {len(retrainings)} networks, each anew: {_said(model)}")
    states = training.fit(
        retraining_step(model, colour),
        initial_states(model, shape, retrainings, start_key),
        numbers,
        examples[0],
        mesh=mesh,
        batch_size=batch_size,
        epochs=epochs,
        names=[f"{one.benchmark} {one.method} {one.percentile:g}%" for one in retrainings],
        progress=progress,
    )
    hits = np.asarray(evaluate(model, colour, mesh)(states.variables, numbers, examples[1]))
    *own, random = hits.reshape(len(methods) + 1, len(percentiles), seeds, -1)
    curves = {name: curve(benchmark, percentiles, one, random) for name, one in zip(methods, own, strict=True)}
    return curves if isinstance(attribution, Mapping) else curves["own"]


def _said(model: nn.Module | Network) -> str:
    """What a network is called in a line."""
    return " ".join(str(model).split()) if isinstance(model, nn.Module) else "the network given as model"


kar = partial(roar, benchmark=KAR)
