"""ROAR and KAR: how faithful an attribution is, by retraining on images that it has occluded.

Remove and retrain (ROAR, Hooker et al., 2019) replaces the pixels that an attribution ranks highest and
trains a fresh network on what is left; keep and retrain (KAR) replaces the others. A good attribution
costs ROAR's networks much of their accuracy, and KAR's little, against the same share of pixels chosen at
random. All retrainings of a benchmark are one stack in one compiled program: each image carries one rank
map a method, and each replica its method, its threshold and whether it keeps or removes, so that occluded
images exist only inside the step, and memory does not grow with the percentiles.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from robgrad import attacks, models, stacking, training
from robgrad.attributions import Attribution, coin_map, rank_map
from robgrad.datasets import Split, scale

PERCENTILES = (10.0, 30.0, 50.0, 70.0, 90.0)
RANDOM = "random"
ROAR, KAR = "roar", "kar"


class Occlusion(NamedTuple):
    """Which pixels a replica loses; scalars, or `[S]` for a stack.

    Attributes:
      method: index of the rank map it goes by.
      threshold: pixels ranked below it are the chosen ones.
      keep: whether the chosen pixels are kept (KAR) or removed (ROAR).
    """

    method: Array
    threshold: Array
    keep: Array


class Numbers(NamedTuple):
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


class Curve(NamedTuple):
    """A method's accuracy against the percentile, and its score against Random's.

    Attributes:
      percentiles: `[Q]`, of pixels removed (ROAR) or kept (KAR).
      mean, std: of the retrained networks' test accuracy over seeds, `[Q]`.
      random: Random's mean accuracies, `[Q]`.
      score: see `score`; `low` and `high` bound its 95% bootstrap interval.
    """

    percentiles: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    random: np.ndarray
    score: float
    low: float
    high: float


def grid(
    methods: Sequence[str], percentiles: Sequence[float] = PERCENTILES, seeds: int = 3, benchmarks=(ROAR, KAR)
) -> list[Retraining]:
    """All retrainings of a benchmark: benchmarks x methods x percentiles x seeds."""
    return [
        Retraining(b, m, q, seed) for b in benchmarks for m in methods for q in percentiles for seed in range(seeds)
    ]


def occlude(image: Array, ranks: Array, occlusion: Occlusion, fill: Array | None = None) -> Array:
    """Replaces pixels of one image `[H, W, C]` by a colour.

    Args:
      image: in [-1, 1].
      ranks: `[methods, H, W]`, 0 for the pixel of highest attribution.
      occlusion: of one replica.
      fill: colour `[C]` in [-1, 1]; the image's own mean colour where None.
    """
    chosen = ranks[occlusion.method] < occlusion.threshold
    removed = jnp.where(occlusion.keep, ~chosen, chosen)
    return jnp.where(removed[..., None], image.mean((0, 1)) if fill is None else fill, image)


def mean_colour(images: np.ndarray) -> Array:
    """The data set's mean colour `[C]` in [-1, 1], the paper's fill."""
    mean = jnp.asarray(np.mean(images, axis=(0, 1, 2), dtype=np.float64), jnp.float32)
    if np.issubdtype(images.dtype, np.floating):
        return mean
    low, high = scale(jnp.array([0, 255], jnp.uint8))
    return low + (high - low) * mean / 255


def rank_maps(
    logits_fn: Callable[[Any], models.LogitsFn],
    methods: dict[str, Attribution],
    mesh: Mesh,
    *,
    coin: bool = True,
    chunk=100,
) -> Callable[[Any, Any, Array], Array]:
    """Compiles rank maps of a set of images, by each method and by Random.

    Args:
      logits_fn: parameters to the network as a function of one image.
      methods: attributions by name.
      mesh: from `stacking.device_mesh(1, chunk)`.
      coin: Random tosses a coin for each pixel, as the paper; else it ranks at random.
      chunk: images at a time.

    Returns:
      `run(params, images, key)` to `[N, methods + 1, H, W]`, Random last.
    """

    def of_image(_, params, example):
        key, pixels = example
        image = scale(pixels)
        keys = jax.random.split(key, 2 * len(methods) + 1)
        maps = [
            rank_map(one, attribution(two, logits_fn(params), image))
            for one, two, attribution in zip(keys[1::2], keys[2::2], methods.values(), strict=True)
        ]
        noise = coin_map(keys[0], image) if coin else rank_map(keys[0], jnp.zeros(image.shape[:2]))
        return jnp.stack([*maps, noise])

    spread = stacking.per_example(of_image, mesh, chunk)

    def run(params, images, key):
        one = stacking.stack([params])
        return stacking.replica(spread((), one, (jax.random.split(key, len(images)), images)), 0)

    return run


def numbers_of(
    retrainings: Sequence[Retraining], methods: Sequence[str], pixels: int, learning_rate: float = 1e-3
) -> Numbers:
    """The stack's numbers; thresholds are percentile * pixels / 100, rounded; `methods` in the maps' order."""
    occlusion = Occlusion(
        jnp.array([list(methods).index(one.method) for one in retrainings], jnp.int32),
        jnp.array([round(one.percentile * pixels / 100) for one in retrainings], jnp.int32),
        jnp.array([one.benchmark == KAR for one in retrainings]),
    )
    return Numbers(occlusion, jnp.full(len(retrainings), learning_rate))


def retraining_step(model: nn.Module, fill: Array | None) -> training.Step:
    """Standard training on images that the replica's occlusion has changed; examples as in `Examples`."""
    standard = training.classifier_step(model, attacks.no_attack)

    def step(state: training.TrainState, numbers: Numbers, batch: training.Batch):
        images, labels, ranks = batch.examples
        occluded = jax.vmap(lambda image, rank: occlude(image, rank, numbers.occlusion, fill))(scale(images), ranks)
        batch = batch._replace(examples=Split(occluded, labels))  # type: ignore[arg-type]
        return standard(state, training.Numbers(learning_rate=numbers.learning_rate), batch)

    return step


def evaluate(model: nn.Module, fill: Array | None, mesh: Mesh, chunk: int = 100) -> Callable:
    """Compiles `run(params, numbers, examples)` to whether each replica is right on each occluded image `[S, N]`."""

    def hit(_, replica, example):
        params, occlusion = replica
        image, label, ranks = example
        return jnp.argmax(models.logits_fn(model, params)(occlude(scale(image), ranks, occlusion, fill))) == label

    run = stacking.per_example(hit, mesh, chunk)
    return lambda params, numbers, examples: run((), (params, numbers.occlusion), tuple(examples))


def initial_states(model: nn.Module, image_shape: Sequence[int], retrainings: Sequence[Retraining], key: Array):
    """A stack of fresh networks; those of one seed start alike and see the data in the same order."""
    one = jax.jit(jax.vmap(lambda seed: training.init_classifier(model, image_shape, jax.random.fold_in(key, seed))))
    return one(jnp.array([retraining.seed for retraining in retrainings]))


def score(benchmark: str, percentiles: Sequence[float], attribution: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Area between Random's curve and the attribution's, `[..., Q]` to `[...]`; higher is better.

    Over the share of pixels from 0 to 1 by the trapezoid rule: Random minus the attribution for ROAR, the
    reverse for KAR. At both ends the curves meet (nothing removed: the untouched network's accuracy; all
    removed: chance), so that the area does not depend on either.
    """
    order = np.argsort(percentiles)
    gain = (attribution - random if benchmark == KAR else random - attribution)[..., order]
    gain = np.concatenate([np.zeros_like(gain[..., :1]), gain, np.zeros_like(gain[..., :1])], axis=-1)
    return np.trapezoid(gain, np.array([0.0, *np.asarray(percentiles)[order], 100.0]) / 100, axis=-1)


def curve(benchmark: str, percentiles: Sequence[float], hits: np.ndarray, random_hits: np.ndarray) -> Curve:
    """Curve and score of a method from its networks' hits and Random's, each `[Q, seeds, N]` (bool).

    The interval is a percentile bootstrap of 1,000 draws that resamples seeds and test images, the images
    alike for both.
    """
    generator = np.random.default_rng(0)
    draws, images = 1000, hits.shape[-1]
    weights = generator.multinomial(images, np.full(images, 1 / images), draws).T / images
    curves = []
    for each in (hits, random_hits):
        accuracy = each.astype(np.float32) @ weights.astype(np.float32)
        seeds = generator.integers(0, each.shape[1], accuracy.shape)
        curves.append(np.take_along_axis(accuracy, seeds, axis=1).mean(1).T)
    low, high = np.percentile(score(benchmark, percentiles, *curves), [2.5, 97.5])
    accuracy, random = hits.mean(-1), random_hits.mean((-2, -1))
    value = score(benchmark, percentiles, accuracy.mean(-1), random)
    return Curve(
        np.array(percentiles), accuracy.mean(-1), accuracy.std(-1), random, float(value), float(low), float(high)
    )


def roar(
    logits_fn: models.LogitsFn,
    attribution: Attribution,
    train: Split,
    test: Split,
    *,
    classes: int,
    model: nn.Module | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    seeds: int = 3,
    epochs: int = 20,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    fill: Array | str | None = "mean",
    key: Array | None = None,
    benchmark: str = ROAR,
) -> Curve:
    """Remove and retrain on a network, images and an attribution of one's own.

    Args:
      logits_fn: the network attributed; `[H, W, C]` in [-1, 1] to logits.
      attribution: `(key, logits_fn, image) -> [H, W]`, for instance `attributions.gradient`.
      train, test: images (bytes, or in [-1, 1]) and labels.
      classes: number of classes.
      model: the network retrained; the paper's for this size of image where None.
      percentiles: shares of pixels removed, in percent.
      seeds: retrainings of each.
      epochs, batch_size, learning_rate: of the retrainings, by Adam.
      fill: colour `[C]` in [-1, 1] of removed pixels, `"mean"` for the data set's, None for each image's own.
      key: random key.
      benchmark: `"roar"`, or `"kar"` to keep what is removed otherwise.

    Example:
      >>> from robgrad import attributions, datasets, models, retraining
      >>> digits = datasets.load("digits")
      >>> some = [datasets.Split(*(leaf[:200] for leaf in split)) for split in (digits.train, digits.test)]
      >>> logits_fn = lambda image: image[:5, :2].ravel()
      >>> curve = retraining.roar(
      ...     logits_fn, attributions.gradient, *some, classes=10, percentiles=[50.0], seeds=1, epochs=1)
      >>> curve.mean.shape
      (1,)
    """
    key = jax.random.key(0) if key is None else key
    shape = train.images.shape[1:]
    model = models.classifier_for(shape, classes) if model is None else model
    colour = mean_colour(train.images) if isinstance(fill, str) else fill
    retrainings = grid(("own", RANDOM), percentiles, seeds, (benchmark,))
    mesh = stacking.device_mesh(len(retrainings), batch_size)
    maps = rank_maps(lambda _: logits_fn, {"own": attribution}, stacking.device_mesh(1, 100))
    start_key, *keys = jax.random.split(key, 3)
    examples = [
        Examples(split.images, split.labels, maps(jnp.zeros(()), split.images, one))
        for split, one in zip((train, test), keys, strict=True)
    ]
    numbers = numbers_of(retrainings, ("own", RANDOM), shape[0] * shape[1], learning_rate)
    states = training.fit(
        retraining_step(model, colour),
        initial_states(model, shape, retrainings, start_key),
        numbers,
        examples[0],
        mesh=mesh,
        batch_size=batch_size,
        epochs=epochs,
        names=[f"{one.benchmark} {one.method} {one.percentile:g}%" for one in retrainings],
    )
    hits = np.asarray(evaluate(model, colour, mesh)(states.params, numbers, examples[1]))
    own, random = hits.reshape(2, len(percentiles), seeds, -1)
    return curve(benchmark, percentiles, own, random)


kar = partial(roar, benchmark=KAR)
