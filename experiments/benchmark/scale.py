"""The benchmark's suite of growth: what time, memory and compiling are against the size of what is asked.

    python -m experiments.benchmark.scale AXIS SIZE

Each size is measured in processes of its own, so that its memory and its compiling are its own. Along the first four
axes work grows with the size; devices and processes share work that stays the same.
"""

import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import contest
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row
from robgrad import attacks, data, gradients, manifolds, networks, stacking, training

SIDE, BATCH, STEPS = 8, 50, 10
DEVICES, PROCESSES = "host devices", "processes"
_HOST_DEVICES = "--xla_force_host_platform_device_count"
# Exponents up to this one are linear growth, measured with the noise of a shared machine.
LINEAR = 1.1


class Axis(NamedTuple):
    """A builder of the task of a size, the sizes, those of a quick look, and whether work grows with them."""

    build: Callable[[int], contest.Task]
    sizes: Sequence[int]
    few: Sequence[int]
    grows: bool = True


def images_of(count: int, side: int = SIDE) -> data.Split:
    """Random images and labels of ten classes."""
    generator = np.random.default_rng(0)
    return data.Split(
        generator.integers(0, 256, (count, side, side, 1), np.uint8), np.arange(count, dtype=np.int32) % 10
    )


def trained_stack(replicas: int) -> contest.Task:
    """Ten steps of PGD-2 training of that many networks for digits, over all devices; gives a kernel's mean size."""
    network, images = networks.digits_cnn(), images_of(BATCH * STEPS)
    step = training.classifier_step(network, attacks.pgd("l2", attacks.cross_entropy, 2))
    start = training.init_classifier(network, (SIDE, SIDE, 1), jax.random.key(0))
    radii = jnp.linspace(0.1, 1.0, replicas)
    work = networks.intensity(network, (SIDE, SIDE, 1), 2)
    mesh = stacking.device_mesh(replicas, BATCH, intensity=work)

    def task() -> list[float]:
        stack, sizes = stacking.stack([start] * replicas), training.StepSizes(radii, radii / 2)
        states = training.fit(step, stack, sizes, images, mesh=mesh, batch_size=BATCH, epochs=1)
        return [float(jnp.abs(jax.tree.leaves(states.variables)[0]).mean())]

    return task


def untrained(side: int = SIDE) -> networks.LogitsFn:
    """The network for digits on images of a size, as it starts."""
    network = networks.digits_cnn()
    return networks.logits_fn(network, training.init_classifier(network, (side, side, 1), jax.random.key(0)).variables)


def analysed(count: int) -> contest.Task:
    """The analysis of section 2.1 of that many images: PGD-5 and alignment with a plane of ten dimensions."""
    images = images_of(count)
    plane = manifolds.pca(manifolds.fit_pca(images.images[:1000], dimensions=10))
    attack = attacks.pgd("l2", attacks.cross_entropy, 5)
    analyse = gradients.analyser(untrained(), plane, attack=attack)
    return lambda: [float(analyse(*images, epsilon=0.5, step_size=0.2).tangent_fraction.mean())]


def attacked(count: int) -> contest.Task:
    """Short AutoAttack of that many images; an untrained network, so that most fall at once."""
    images, own = images_of(count), untrained()
    # Predictions for labels: each image is right before the attack.
    predict = jax.jit(jax.vmap(lambda image: jnp.argmax(own(data.scale(image)))))
    labels = np.concatenate([np.asarray(predict(part)) for part in np.split(images.images, range(500, count, 500))])
    of = partial(attacks.auto_attack, own, images.images, labels, norm="linf", version="short")
    return lambda: [float(of(epsilon=0.1).robust.mean())]


def differentiated(pixels: int) -> contest.Task:
    """Gradients of the loss by 200 square images of that many pixels."""
    side = math.isqrt(pixels)
    own, images = untrained(side), images_of(200, side)
    of = lambda image, label: gradients.loss_gradient(own, data.scale(image), label)  # noqa: E731
    run = jax.jit(jax.vmap(of))
    return lambda: [float(jnp.abs(run(*images)).mean())]


AXES = {
    "networks in a stack": Axis(trained_stack, (1, 4, 16, 64, 256), (1, 2)),
    "images analysed": Axis(analysed, (1000, 4000, 16000, 60000), (100, 200)),
    "images under AutoAttack": Axis(attacked, (1000, 4000, 16000), (100, 200)),
    "pixels": Axis(differentiated, (64, 256, 1024, 4096), (64, 256)),
    DEVICES: Axis(lambda _: trained_stack(16), (1, 2, 4, 8), (1, 2), grows=False),
    PROCESSES: Axis(lambda _: trained_stack(16), (1, 2), (1, 2), grows=False),
}


def with_devices(flags: str, count: int) -> str:
    """XLA's flags with that many host devices."""
    return re.sub(rf"{_HOST_DEVICES}=\d+", f"{_HOST_DEVICES}={count}", flags)


def contender(axis: str, size: int) -> contest.Contender:
    """Starts the processes of one size."""
    devices, given = {DEVICES: size, PROCESSES: 1}.get(axis), os.environ["XLA_FLAGS"]
    flags = given if devices is None else with_devices(given, devices)
    command = [sys.executable, "-m", "experiments.benchmark.scale", axis, str(size)]
    several = [[*command, *one] for one in contest.joined(size)] if axis == PROCESSES and size > 1 else [command]
    return contest.Contender(several, {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"})


def points(rounds: int, few: bool) -> Iterator[Row]:
    """The rows of all axes; of two small sizes each where few are wanted."""
    for axis in AXES:
        yield from compare(axis, rounds, few)


def compare(axis: str, rounds: int, few: bool) -> Iterator[Row]:
    """A row for each size along an axis: medians of warm runs, compiling apart, and the most memory."""
    first = None
    for size in AXES[axis].few if few else AXES[axis].sizes:
        one = contender(axis, size)
        times = [one.take("work") for _ in range(1 if few else rounds)]
        median = statistics.median(times)
        first = median if first is None else first
        yield {
            **{"suite": "scale", "network": "digits", "task": axis, "variant": str(size), "ms": 1000 * median},
            "spread": f"{1000 * min(times):.3g}..{1000 * max(times):.3g}",
            "per_second": size / median if AXES[axis].grows else None,
            "compile_seconds": one.compilation["work"],
            "memory_mib": one.end() / 2**20,
            "ratio": median / first,
        }


def growth(rows: Sequence[Row]) -> list[Row]:
    """For each axis the exponent of time, compiling and memory: the slope of a least-squares line through logarithms.

    Time is fitted to the larger half of the sizes, where what a call costs at any size no longer hides the growth.
    """
    found = []
    for axis in dict.fromkeys(row["task"] for row in rows if row["suite"] == "scale"):
        mine = [row for row in rows if row["suite"] == "scale" and row["task"] == axis]
        sizes = np.log([float(row["variant"]) for row in mine])
        half = len(mine) // 2 if len(mine) > 2 else 0

        def exponent(column: str, start: int, mine=mine, sizes=sizes) -> float:
            values = np.log([max(row[column], 1e-3) for row in mine])
            return float(np.polyfit(sizes[start:], values[start:], 1)[0])

        time = exponent("ms", half)
        fits = time <= (LINEAR if AXES[axis].grows else 0.1)
        row: Row = {"axis": axis, "from": mine[0]["variant"], "to": mine[-1]["variant"]}
        row |= {"time_exponent": time, "compile_exponent": exponent("compile_seconds", 0)}
        row |= {"memory_exponent": exponent("memory_mib", 0), "memory_first": mine[0]["memory_mib"]}
        row |= {"memory_last": mine[-1]["memory_mib"], "as_wanted": "met" if fits else "**missed**"}
        found.append(row)
    return found


def figure(path: Path, rows: Sequence[Row]) -> None:
    """Time and memory against the size, a panel for each axis, both scales logarithmic."""
    panels: dict[str, dict[str, tuple]] = {}
    for row in rows:
        panel = panels.setdefault(row["task"], {"seconds": ([], [], None), "GiB": ([], [], None)})
        for name, value in (("seconds", row["ms"] / 1000), ("GiB", row["memory_mib"] / 1024)):
            panel[name][0].append(float(row["variant"]))
            panel[name][1].append(value)
    colours = figures.distinct(["seconds", "GiB"])
    figures.curve_figure(path, panels, "size", "seconds, GiB", colours, scale="log")


def main(axis: str, size: str, *joined: str) -> None:
    """Serves the task of one size; `joined` are the address and numbers of several processes."""
    jax.config.update("jax_enable_compilation_cache", False)
    if joined:
        contest.join(*joined)
    contest.serve({"work": lambda: AXES[axis].build(int(size))})


if __name__ == "__main__":
    main(*sys.argv[1:])
