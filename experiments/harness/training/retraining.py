"""Retrainings of a run: a network's images occluded by its attributions, fresh networks trained on them, their hits."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import psutil

from experiments.harness.training import stages
from experiments.harness.training.stages import Run
from robgrad import data, faithfulness, gradients, networks, runs, stacking, training
from robgrad.faithfulness import Retraining

STACK_SIZE = "stack_size.txt"
TITLE = "retraining"


def stack_size(network: nn.Module | networks.Network, image_shape: Sequence[int], batch: int) -> int:
    """How many networks' training fits into half of the free memory of all devices.

    A network needs its variables five times (itself, Adam's two moments, its gradients and a copy on the
    way); where replicas are batched, as on accelerators, its activations too.
    """
    shapes = jax.eval_shape(lambda: networks.init(network, jax.random.key(0), image_shape))
    needed = 5 * sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        free = psutil.virtual_memory().available
    else:
        images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
        loss = lambda variables, images: jnp.sum(networks.logits(network, variables, images))  # noqa: E731
        equations = jax.make_jaxpr(jax.grad(loss))(shapes, images).eqns
        needed += sum(variable.aval.size * 4 for equation in equations for variable in equation.outvars)
        usage = device.memory_stats() or {}
        free = usage.get("bytes_limit", 2**33) - usage.get("bytes_in_use", 0)
        free *= jax.device_count()
    return max(1, int(free / 2 / needed))


def kept_stack_size(run: Run, network: nn.Module | networks.Network) -> int:
    """The size of this run's stacks: memory that is free today must not change what is under way."""
    path, wanted = run.workdir / STACK_SIZE, run.options.stack_size
    kept = int(path.read_text()) if runs.exists(path) else None
    size = wanted or kept or stack_size(network, run.image_shape, run.config.retraining_batch_size)
    size = int(stacking.agree(size).min())
    runs.write(path, str(size))
    return size


class Tools(NamedTuple):
    """What is compiled once for all networks: rank maps, with Random's and without; the retraining step; the test."""

    network: nn.Module | networks.Network
    maps: Mapping[bool, Callable]
    step: training.Step
    hits: Callable
    stack: int


def tools_of(
    config: Any,
    network: nn.Module | networks.Network,
    train: data.Split,
    count: int,
    methods: Mapping[str, gradients.Attribution],
) -> Tools:
    """Builds them for stacks of `count`; networks attributed and retrained are of one architecture."""
    work = networks.intensity(network, train.images.shape[1:])
    fill = None if config.own_mean else faithfulness.mean_colour(train.images)
    maps = partial(
        faithfulness.rank_maps,
        lambda variables: networks.logits_fn(network, variables),
        methods,
        stacking.device_mesh(1, config.chunk, intensity=work),
        coin=not config.random_ranking,
        chunk=config.chunk,
    )
    mesh = stacking.device_mesh(count, config.chunk, intensity=work)
    hits = faithfulness.evaluate(network, fill, mesh, config.chunk)
    return Tools(
        network,
        {True: maps(randoms=config.retraining_seeds), False: maps(randoms=0)},
        faithfulness.retraining_step(network, fill),
        hits,
        count,
    )


def named(one: Retraining) -> str:
    """What a retraining is called, and known by when a run goes on."""
    return f"{one.benchmark} {one.method} {one.percentile:g}% seed {one.seed}"


def plan_of(
    config: Any, name: str, part: Sequence[Retraining], tools: Tools, image_shape: Sequence[int], seed: int = 0
) -> stages.Plan:
    """How one stack of retrainings is trained, on `faithfulness.Examples` with rank maps of all methods.

    Retrainings of networks of one seed start alike, those of another seed anew, so that seeds share no luck.
    """
    pixels = math.prod(image_shape[:2])
    sizes = faithfulness.numbers_of(part, config.attributions, pixels, config.learning_rate)
    key = stages.key_of(config.seed, "retraining")
    key = jax.random.fold_in(key, seed) if seed else key
    states = faithfulness.initial_states(tools.network, image_shape, part, key)
    names, batch = [named(one) for one in part], config.retraining_batch_size
    epochs, work = config.retraining_epochs, networks.intensity(tools.network, tuple(image_shape), 0)
    return stages.Plan(
        name, tools.step, states, sizes, names, batch, epochs, config.shuffle, work, title=TITLE, retrains=True
    )


def hits_of(
    run: Run,
    name: str,
    grid: Sequence[Retraining],
    tools: Tools,
    occluded: Callable[[], Sequence[faithfulness.Examples]],
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Whether each retrained network of a source network, of a seed, is right on each test image, by retraining's name.

    A stack that has finished is kept with the names of its retrainings, and so is its file; the occluded examples,
    training and test, are asked for where one has not.
    """
    config = run.config
    hits: dict[str, np.ndarray] = {}
    parts = [grid[first : first + tools.stack] for first in range(0, len(grid), tools.stack)]
    examples: Sequence[faithfulness.Examples] = ()
    for part in parts:
        names = [named(one) for one in part]
        if run.meter and run.meter.retrained(TITLE, len(part)):
            hits |= dict.fromkeys(names, np.zeros(1, bool))
            continue
        stage = f"retraining-{name}-{zlib.crc32('/'.join(names).encode()):08x}"
        path = run.workdir / "retraining" / f"{stage}.npz"
        kept = runs.read_arrays(path)
        if kept is None or kept["names"].tolist() != names:
            examples = examples or occluded()
            plan = plan_of(config, stage, part, tools, run.image_shape, seed)
            states = stages.fit(run, plan, examples[0])
            if run.meter:
                hits |= dict.fromkeys(names, np.zeros(1, bool))
                continue
            right = np.asarray(tools.hits(states.variables, plan.numbers, examples[1]))
            kept = {"names": np.array(names), "hits": right}
            runs.write_arrays(path, kept)
            runs.remove(run.workdir / "checkpoints" / stage)
        hits |= dict(zip(names, kept["hits"], strict=True))
    return hits


def occluded_examples(
    run: Run, name: str, variables, tools: Tools, grid: Sequence[Retraining], splits: Sequence[data.Split]
) -> list[faithfulness.Examples]:
    """The training and the test images with a network's rank maps, Random's among them where the grid has it."""
    maps = tools.maps[any(one.method == faithfulness.RANDOM for one in grid)]
    keys = jax.random.split(stages.key_of(run.config.seed, f"ranks of {name}"))

    def ranked(images: np.ndarray, key: jax.Array) -> np.ndarray:
        if run.meter is None:
            return maps(variables, images, key)
        few = run.meter.few("rank maps", lambda some: maps(variables, some, key), images, run.config.chunk)
        return np.zeros((len(images), *few.shape[1:]), few.dtype)

    return [
        faithfulness.Examples(split.images, split.labels, ranked(split.images, key))
        for split, key in zip(splits, keys, strict=True)
    ]
