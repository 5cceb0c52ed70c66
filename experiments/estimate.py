"""What a reproduction will take on this machine, from a few steps of each kind of its stages."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import boundary_tilting, launch, manifold_distance, presets, roar_kar, settings, stages
from robgrad import datasets, models, report, retraining, stacking, training
from robgrad.attributions import ATTRIBUTIONS

FLAGS = flags.FLAGS
ENOUGH = 2.0
COLUMNS = ("dataset", "stage", "networks", "retrainings", "steps", "ms_per_step", "compile_seconds", "minutes")


class Cost(NamedTuple):
    """Seconds of a step, of a whole stack, and of compiling the program of its loop."""

    step: float
    compilation: float


def cost_of(plan: stages.Plan, data) -> Cost:
    """Trains a few steps of a stage, in the program that the run itself will use, and throws them away."""
    marks: list[tuple[float, int]] = [(time.perf_counter(), 0)]

    def enough() -> bool:
        return len(marks) > 2 and marks[-1][0] - marks[1][0] > ENOUGH

    def note(done: training.Progress) -> None:
        marks.append((time.perf_counter(), done.step))

    with contextlib.suppress(training.StoppedError):
        training.fit(plan.step, plan.states, plan.numbers, data, stop=enough, report=note, **plan.options)
    (start, _), (first, one), (last, steps) = marks[0], marks[1], marks[-1]
    step = (last - first) / (steps - one) if steps > one else (first - start) / one
    return Cost(step, max(0.0, first - start - one * step))


def row_of_toy() -> report.Row:
    """Section 2.2, from one of its repeats."""
    step = training.classifier_step(boundary_tilting.MODEL, boundary_tilting.ATTACK)
    data = datasets.two_gaussians(jax.random.key(0), FLAGS.points)
    train = partial(boundary_tilting.train, step, data, jax.random.key(1))
    warm, cold = _warm_and_cold(lambda: boundary_tilting.analyse(stacking.replica(train(), 0), data))
    named = {"networks": len(boundary_tilting.RADII) * FLAGS.repeats, "compile_seconds": cold}
    return _empty("toy", boundary_tilting.NAME) | named | {"minutes": (warm * FLAGS.repeats + cold) / 60}


def rows_of_manifold(config: presets.ManifoldConfig, dataset: datasets.Dataset) -> Iterator[report.Row]:
    """Section 2.1's stages: stacks of networks, the VAE-GAN, the analysis of all test images."""
    train, test = settings.subsets(config, dataset)
    networks = stages.networks_of(config)
    yield from _classifiers(config, networks, dataset, train)
    generator, plan = stages.manifold_plan(config, train.images.shape[1:])
    # Copied, since measuring the plan gives its buffers away.
    variables = jax.tree.map(jnp.copy, stacking.replica(plan.states.params, 0))
    yield _row(dataset.name, plan, train, 1)
    tangents, analysis, compilation = _analysis_of_a_chunk(config, dataset, test, generator, variables)
    chunks = len(test.labels) / min(config.chunk, len(test.labels))
    seconds = chunks * (tangents + analysis * len(networks) * len(config.analysis_losses))
    yield {
        **_empty(dataset.name, f"analysis of {len(test.labels)} images"),
        "networks": len(networks),
        "compile_seconds": compilation,
        "minutes": (seconds + compilation) / 60,
    }


def rows_of_retraining(
    config: presets.RetrainingConfig, dataset: datasets.Dataset, other: presets.ManifoldConfig | None
) -> Iterator[report.Row]:
    """Sections 3.2's and 3.3's stages: the networks that the other run does not have, and the retrainings of all."""
    train, _ = settings.subsets(config, dataset)
    networks = stages.networks_of(config)
    there = stages.networks_of(other) if other else []
    missing = [
        one
        for one in networks
        if not other
        or one not in there
        or stages.training_settings(config, one) != stages.training_settings(other, one)
    ]
    yield from _classifiers(config, missing, dataset, train)
    image_shape = train.images.shape[1:]
    model = models.classifier_for(image_shape, len(dataset.classes))
    size = FLAGS.stack_size or roar_kar.stack_size(model, image_shape, config.retraining_batch_size)
    grid = retraining.grid(tuple(ATTRIBUTIONS), config.percentiles, config.seeds)[:size]
    tools = roar_kar.tools_of(config, model, train, len(grid))
    plan = roar_kar.retraining_plan(config, "retraining", grid, tools, image_shape)
    kind = np.uint8 if math.prod(image_shape[:2]) <= 256 else np.uint16
    ranks = np.zeros((len(train.labels), len(roar_kar.METHODS), *image_shape[:2]), kind)
    row = _row(dataset.name, plan, retraining.Examples(train.images, train.labels, ranks), len(networks))
    count = roar_kar.retrainings_of(config, networks)
    working = row["steps"] * row["ms_per_step"] / 60_000 * count / len(grid)
    yield row | {"retrainings": count, "minutes": working + row["compile_seconds"] / 60}


def _classifiers(config, networks: list[stages.Network], dataset, train) -> Iterator[report.Row]:
    """A row for each stack; of the robust ones the first is measured, the others take as long a network."""
    measured: report.Row = {}
    for members in stages.stacks_of(networks):
        plan = stages.classifiers_plan(config, members, dataset)
        if not measured or not measured["robust"]:
            measured = _row(dataset.name, plan, train, len(members)) | {"robust": members[0].norm is not None}
            yield measured
        else:
            step = measured["ms_per_step"] * len(members) / measured["networks"]
            minutes = (measured["steps"] * step / 1000 + measured["compile_seconds"]) / 60
            yield measured | {"stage": plan.name, "networks": len(members), "ms_per_step": step, "minutes": minutes}


def _row(name: str, plan: stages.Plan, data, networks: int) -> report.Row:
    steps = plan.epochs * (stacking.size(data) // plan.batch_size)
    step, compilation = cost_of(plan, data)
    return {
        **_empty(name, plan.name),
        "networks": networks,
        "steps": steps,
        "ms_per_step": 1000 * step,
        "compile_seconds": compilation,
        "minutes": (steps * step + compilation) / 60,
    }


def _empty(dataset: str, stage: str) -> report.Row:
    return dict.fromkeys(COLUMNS) | {"dataset": dataset, "stage": stage}


def _analysis_of_a_chunk(
    config: presets.ManifoldConfig, dataset, test, generator, variables
) -> tuple[float, float, float]:
    """Seconds of one chunk of images: their tangent spaces, their analysis on one network; and of compiling both."""
    model = models.classifier_for(test.images.shape[1:], len(dataset.classes))
    params = stacking.stack([models.init(model, jax.random.key(0), test.images.shape[1:])])
    loss = next(iter(manifold_distance.analysis_losses(config).values()))
    mesh = stacking.device_mesh(1, config.chunk)
    tangents = manifold_distance.tangent_spaces(config, generator)
    run = manifold_distance.analyser(config, model, generator, loss, mesh)
    images = datasets.Split(*(leaf[: config.chunk] for leaf in test))
    keys = jax.random.split(jax.random.key(0), len(images.labels))
    shared = (variables, stacking.replica(params, 0), config.analysis_epsilon, config.analysis_step_size)

    spaces, compiling_spaces = _warm_and_cold(lambda: tangents(variables, images.images))
    tangent = tangents(variables, images.images)
    analysis, compiling = _warm_and_cold(lambda: run(shared, params, ((keys, images), tangent)))
    return spaces, analysis, compiling_spaces + compiling


def _warm_and_cold(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call once compiled, and what the first took beyond it."""
    marks = [time.perf_counter()]
    for _ in range(2):
        jax.block_until_ready(function())
        marks.append(time.perf_counter())
    cold, warm = np.diff(marks)
    return warm, max(0.0, cold - warm)


def memory() -> str:
    """The most memory that the measured steps took."""
    usage = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in usage:
        limit = usage.get("bytes_limit", math.nan) / 2**30
        return f"{usage['peak_bytes_in_use'] / 2**30:.1f} of {limit:.0f} GiB on each device"
    return f"{launch.peak_memory() / 2**30:.1f} GiB"
