r"""Section 3.2: adversarial training makes gradients faithful, measured by ROAR and KAR.

Trains a standard and many robust networks, ranks the pixels of every image by each attribution of each
network, and retrains fresh networks on the occluded images, a whole benchmark of a network as one stack.

    python -m experiments.roar_kar                                   # digits, eight minutes on 2 cores
    python -m experiments.roar_kar --dataset=cifar10 --preset=paper  # 81 networks, 4,890 retrainings
    python -m experiments.roar_kar --dataset=cifar10 --preset=paper --epsilons=5 --losses=xent --seeds=1

Expected: ROAR scores rise with the training epsilon (published rank correlations 0.89 to 0.99 on CIFAR-10); KAR
scores rise for Gradient * Input (0.56 to 0.88), for Gradient only with l-inf training.
"""

import dataclasses
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import claims, correlations, launch, pages, presets, settings, stages
from robgrad import datasets, models, page, report, retraining, runs, stacking, training
from robgrad.attributions import ATTRIBUTIONS
from robgrad.retraining import KAR, RANDOM, ROAR

FLAGS = flags.FLAGS
NAME = "roar_kar"
METHODS = (*ATTRIBUTIONS, RANDOM)
TITLE = "3.2 How faithful gradients are: ROAR and KAR"
QUESTION = (
    "Do gradients become more faithful attributions with adversarial training? ROAR removes the pixels ranked highest "
    "and retrains, KAR keeps only them; the score is the area against pixels drawn at random, above zero where an "
    "attribution knows more than chance."
)
CAPTIONS = {
    "roar_strength_*.png": "ROAR scores against training strength ({} training); in the paper all lines rise.",
    "kar_strength_*.png": "KAR scores against training strength ({} training); in the paper lines rise but for "
    "Gradient with l2 training.",
    "roar_curves.png": "Accuracy after removing pixels: the faster it falls below Random's curve, the more faithful "
    "the attribution.",
    "kar_curves.png": "Accuracy after keeping pixels only: the farther above Random's curve, the more faithful.",
}
STACK_SIZE = "stack_size.txt"
settings.define(presets.RetrainingConfig)
flags.DEFINE_alias("losses", "train_losses")
flags.DEFINE_integer("stack_size", None, "Retrainings in one stack. Default: as many as memory allows.", lower_bound=1)

COLUMNS = (
    "network",
    "test_accuracy",
    "robust_accuracy",
    "benchmark",
    "attribution",
    "score",
    "score_low",
    "score_high",
)


def thinned(epsilons: Sequence[float], count: int) -> tuple[float, ...]:
    """Some of the radii, evenly spread down from the largest."""
    ordered = sorted(epsilons)
    count = min(count, len(ordered))
    return tuple(ordered[round(len(ordered) * (index + 1) / count) - 1] for index in range(count))


def stack_size(model, image_shape: Sequence[int], batch: int) -> int:
    """How many networks' training fits into half of the free memory of all devices.

    A network needs its parameters five times (itself, Adam's two moments, its gradients and a copy on the
    way); where replicas are batched, as on accelerators, its activations too.
    """
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0), image_shape))
    needed = 5 * sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
        loss = lambda params, images: jnp.sum(models.logits(model, params, images))  # noqa: E731
        equations = jax.make_jaxpr(jax.grad(loss))(shapes, images).eqns
        needed += sum(variable.aval.size * 4 for equation in equations for variable in equation.outvars)
        usage = device.memory_stats() or {}
        free = usage.get("bytes_limit", 2**33) - usage.get("bytes_in_use", 0)
        free *= jax.device_count()
    return max(1, int(free / 2 / needed))


def kept_size(run: Path) -> int | None:
    """The size of this run's stacks so far: memory that is free today must not change what is finished."""
    path = run / STACK_SIZE
    return int(path.read_text()) if path.exists() else None


class Tools(NamedTuple):
    """What is compiled once for all networks: rank maps, the retraining step, and the test of retrained networks."""

    model: nn.Module
    maps: Callable
    step: training.Step
    hits: Callable
    stack: int


def tools_of(config: presets.RetrainingConfig, model: nn.Module, train: datasets.Split, count: int) -> Tools:
    """Builds them; source networks and retrained ones are of one architecture."""
    fill = None if config.own_mean else retraining.mean_colour(train.images)
    maps = retraining.rank_maps(
        lambda params: models.logits_fn(model, params),
        ATTRIBUTIONS,
        stacking.device_mesh(1, config.chunk),
        coin=not config.random_ranking,
        chunk=config.chunk,
    )
    hits = retraining.evaluate(model, fill, stacking.device_mesh(count, config.chunk), config.chunk)
    return Tools(model, maps, retraining.retraining_step(model, fill), hits, count)


def retraining_plan(config: presets.RetrainingConfig, name: str, part, tools: Tools, image_shape) -> stages.Plan:
    """How one stack of retrainings is trained, on `retraining.Examples` with rank maps of all methods."""
    numbers = retraining.numbers_of(part, METHODS, math.prod(image_shape[:2]), config.learning_rate)
    states = retraining.initial_states(tools.model, image_shape, part, stages.key_of(config.seed, "retraining"))
    names = [f"{one.benchmark} {one.method} {one.percentile:g}% seed {one.seed}" for one in part]
    batch, epochs = config.retraining_batch_size, config.retraining_epochs
    return stages.Plan(name, tools.step, states, numbers, names, batch, epochs, config.shuffle)


def hits_of(config: presets.RetrainingConfig, network: stages.Network, params, tools: Tools, train, test, run: Path):
    """Whether each retrained network of a source network is right on each test image, `[retraining, image]`."""
    own = tuple(ATTRIBUTIONS) if network.norm else METHODS
    retrainings = retraining.grid(own, config.percentiles, config.seeds)
    parts = [retrainings[first : first + tools.stack] for first in range(0, len(retrainings), tools.stack)]
    names = [f"retraining-{network.name}-{index * tools.stack}-{len(part)}" for index, part in enumerate(parts)]
    paths = [run / "retraining" / f"{name}.npz" for name in names]
    hits = [report.read_arrays(path) for path in paths]
    if all(hits):
        return retrainings, np.concatenate([part["hits"] for part in hits if part])
    keys = jax.random.split(stages.key_of(config.seed, f"ranks of {network.name}"))
    examples = [
        retraining.Examples(split.images, split.labels, tools.maps(params, split.images, key))
        for split, key in zip((train, test), keys, strict=True)
    ]
    image_shape = train.images.shape[1:]
    for index, (name, part) in enumerate(zip(names, parts, strict=True)):
        if hits[index]:
            continue
        plan = retraining_plan(config, name, part, tools, image_shape)
        states = stages.fit(run, plan, examples[0])
        hits[index] = right = {"hits": np.asarray(tools.hits(states.params, plan.numbers, examples[1]))}
        report.write_arrays(paths[index], right)
        shutil.rmtree(run / "checkpoints" / name, ignore_errors=True)
    return retrainings, np.concatenate([part["hits"] for part in hits if part])


def rows_of(config, networks, accuracy, robust_accuracy, hits) -> Iterator[report.Row]:
    """A row for each network, benchmark and attribution; Random's are the standard network's."""
    by_name: dict[tuple, list] = {}
    for network, (retrainings, right) in zip(networks, hits, strict=True):
        for one, row in zip(retrainings, right, strict=True):
            by_name.setdefault((network.name, one.benchmark, one.method), []).append(row)
    shape = (len(config.percentiles), config.seeds, -1)
    for place, network in enumerate(networks):
        for benchmark, method in itertools.product((ROAR, KAR), (*ATTRIBUTIONS, RANDOM)):
            right = by_name.get((network.name, benchmark, method))
            if right is None:
                continue
            random = np.reshape(by_name[networks[0].name, benchmark, RANDOM], shape)
            curve = retraining.curve(benchmark, config.percentiles, np.reshape(right, shape), random)
            yield {
                **network.row,
                "test_accuracy": accuracy[place],
                "robust_accuracy": robust_accuracy[place],
                "benchmark": benchmark,
                "attribution": method,
                "percentiles": list(config.percentiles),
                "curve": curve.mean.tolist(),
                "curve_std": curve.std.tolist(),
                "score": curve.score,
                "score_low": curve.low,
                "score_high": curve.high,
            }


def draw_curves(workdir: Path, config, networks, rows) -> None:
    """Accuracy against percentile: Random, and each attribution for the standard and the strongest networks."""
    strongest = {(n.norm, n.loss): n.name for n in networks}
    for benchmark in (ROAR, KAR):
        panels: dict[str, Any] = {}
        for attribution in ATTRIBUTIONS:
            curves = {}
            for row in rows:
                kind = row["attribution"]
                if (
                    row["benchmark"] == benchmark
                    and kind in (attribution, RANDOM)
                    and row["network"] in strongest.values()
                ):
                    name = "random" if kind == RANDOM else row["network"]
                    curves[name] = (row["percentiles"], row["curve"], row["curve_std"])
            panels[attribution.replace("_", " ")] = curves
        verb = "kept" if benchmark == KAR else "removed"
        report.curve_figure(workdir / f"{benchmark}_curves.png", panels, f"% of pixels {verb}", "test accuracy")


def run(
    workdir: Path, dataset: datasets.Dataset, config: presets.RetrainingConfig, source: stages.Source | None = None
) -> tuple[Path, dict[str, Any]]:
    """Runs, continues or reads the experiment; returns its directory and results."""

    def compute(workdir: Path, place: Mapping[str, str]) -> dict[str, Any]:
        return _run(workdir, dataset, config, place, source)

    return pages.once(workdir, NAME, TITLE, dataclasses.asdict(config), part_of, compute)


def _run(workdir: Path, dataset: datasets.Dataset, config: presets.RetrainingConfig, place, source) -> dict[str, Any]:
    began = time.monotonic()
    train, test = settings.subsets(config, dataset)
    networks = stages.networks_of(config)
    model, params = stages.train_networks(config, networks, dataset, train, workdir, source)
    key = stages.key_of(config.seed, NAME)
    accuracy, robust_accuracy = stages.accuracies_of(config, model, params, test, key)
    image_shape = train.images.shape[1:]
    size = FLAGS.stack_size or kept_size(workdir) or stack_size(model, image_shape, config.retraining_batch_size)
    size = int(stacking.agree(size).min())
    runs.write(workdir / STACK_SIZE, str(size))
    pixels = math.prod(image_shape[:2])
    maps = (len(ATTRIBUTIONS) + 1) * pixels * (1 if pixels <= 256 else 2) * (len(train.labels) + len(test.labels))
    launch.show(
        f"{retrainings_of(config, networks)} retrainings of {len(networks)} networks, at most {size} in a stack; "
        f"rank maps of a network: {maps / 2**20:.0f} MiB"
    )
    tools = tools_of(config, model, train, size)
    hits = [
        hits_of(config, network, stacking.replica(params, index), tools, train, test, workdir)
        for index, network in enumerate(networks)
    ]
    rows = list(rows_of(config, networks, accuracy, robust_accuracy, hits))
    table = correlations.table_of(config, rows)
    draw_curves(workdir, config, networks, rows)
    correlations.draw(workdir, config, rows, table, "strength", "training epsilon over the largest")
    asked = dataclasses.asdict(config)
    return report.write_results(workdir, NAME, asked, place, rows, time.monotonic() - began, correlations=table)


def retrainings_of(config: presets.RetrainingConfig, networks: Sequence[stages.Network]) -> int:
    """How many retrainings the benchmarks of the networks are; Random's are the standard network's alone."""
    return 2 * len(config.percentiles) * config.seeds * (len(ATTRIBUTIONS) * len(networks) + 1)


def part_of(results: Mapping[str, Any]) -> pages.Part:
    """What the experiment puts on a page."""
    chosen = [row for row in results["correlations"] if row["against"] == "strength"]
    tables = [
        page.Table("Scores, the area against Random", results["rows"], COLUMNS),
        page.Table("Correlations with training strength", chosen, correlations.COLUMNS),
    ]
    found = claims.of_correlations(results["correlations"], "strength")
    return pages.Part(f"{TITLE}: {results['config']['dataset']}", QUESTION, CAPTIONS, tables, found)


def config_of_flags(dataset: datasets.Dataset) -> presets.RetrainingConfig:
    """The configuration of the flags, radii thinned."""
    config = settings.from_flags(presets.RetrainingConfig, presets.RETRAINING, dataset)
    # Radii that were asked for stay, unless thinning them was asked for too.
    l2, linf = (
        thinned(radii, config.epsilons) if FLAGS["epsilons"].present or not FLAGS[name].present else radii
        for name, radii in (("l2_epsilons", config.l2_epsilons), ("linf_epsilons", config.linf_epsilons))
    )
    return dataclasses.replace(config, l2_epsilons=l2, linf_epsilons=linf)


def main() -> None:
    """Runs the experiment of the flags."""
    dataset = datasets.load(FLAGS.dataset, FLAGS.data_dir)
    workdir, results = run(settings.workdir(NAME), dataset, config_of_flags(dataset), stages.source_of_flags())
    correlations.show(results, "strength")
    pages.show(workdir, results, COLUMNS)


if __name__ == "__main__":
    launch.run(main)
