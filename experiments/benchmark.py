r"""What attack and training steps cost, as ratios within one run.

    python -m experiments.benchmark                    # a few minutes on 2 cores
    python -m experiments.benchmark --networks=digits --repeats=5

Suite `loops`, for each of the three classifiers: a PGD-40 attack and PGD-10 training steps, in a compiled loop,
by the same step called from a Python loop, and in a compiled loop over plain `lax` convolutions and pooling.
Expected on a CPU: the compiled loop is no slower than the Python loop, and many times faster than `lax`.

Suite `retrain`: steps of a stack of ROAR retrainings as one program, against the same retrainings one after
another by our own step and by PyTorch (eager, channels-last, and as a `torch.func` stack), each framework in
its own process, at equal work: equal parameters, images and occlusions, and equal losses in the end.
"""

import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from experiments import launch, peers
from robgrad import attacks, datasets, layers, losses, models, report, retraining, runs, stacking, training

FLAGS = flags.FLAGS
NETWORKS: dict[str, tuple[Callable, tuple[int, int, int], int]] = {
    "digits": (models.digits_cnn, (8, 8, 1), 200),
    "mnist": (models.mnist_cnn, (28, 28, 1), 20),
    "cifar": (models.cifar_cnn, (32, 32, 3), 20),
}
EPSILON, STEP_SIZE = 1.0, 2.0
COLUMNS = ("network", "task", "variant", "ms_per_step", "spread", "images_per_second", "compile_seconds", "ratio")
SUITES = ("loops", "retrain")
# Replicas in a stack and steps of each.
STACKS = {"digits": (16, 20), "mnist": (2, 2), "cifar": (4, 3)}
RETRAINING_BATCH = 100

flags.DEFINE_list("networks", list(NETWORKS), f"Classifiers to time, of {', '.join(NETWORKS)}.")
flags.DEFINE_integer("repeats", 5, "Timed runs, after one to warm up; medians are shown.", lower_bound=1)
flags.DEFINE_integer("pgd_steps", 40, "Steps of the timed attack.", lower_bound=1)
flags.DEFINE_integer("train_steps", 4, "Training steps in a timed run.", lower_bound=1)
flags.DEFINE_list("suites", list(SUITES), f"What to time, of {', '.join(SUITES)}.")
flags.DEFINE_bool("peers", True, "Compare with PyTorch where it is installed.")
flags.register_validator("suites", lambda names: {*names} <= {*SUITES}, f"expected some of {', '.join(SUITES)}")
flags.register_validator("networks", lambda names: {*names} <= {*NETWORKS}, f"expected some of {', '.join(NETWORKS)}")


class Task(NamedTuple):
    """A step and where it starts; a run takes `steps` of them, each over `images` images."""

    step: Callable[[Any], Any]
    start: Any
    steps: int
    images: int


def attack_task(model, shape, batch: int) -> Task:
    """Steps of an l2 attack on a batch."""
    images = jax.random.uniform(jax.random.key(0), (batch, *shape), minval=-1.0)
    logits_fn = models.logits_fn(model, models.init(model, jax.random.key(1), shape))
    gradient = jax.grad(lambda image: losses.cross_entropy(logits_fn(image), jnp.array(0)))

    def step_from(image, attacked):
        moved = attacked + STEP_SIZE * attacks.L2.ascent(gradient(attacked))
        return jnp.clip(image + attacks.L2.project(moved - image, jnp.array(EPSILON)), -1.0, 1.0)

    step = partial(jax.vmap(step_from), images)
    return Task(step, images, FLAGS.pgd_steps, batch)


def training_task(model, shape, batch: int) -> Task:
    """Adversarial training steps on one batch."""
    attack = attacks.pgd(attacks.L2, losses.cross_entropy, 10)
    images = jax.random.randint(jax.random.key(0), (batch, *shape), 0, 256).astype(jnp.uint8)
    examples = datasets.Split(images, jnp.arange(batch) % 10)  # type: ignore[arg-type]
    data = training.Batch(examples, jnp.ones(batch), jax.random.split(jax.random.key(1), batch))
    numbers = training.Numbers(EPSILON, STEP_SIZE)
    one = jax.vmap(training.classifier_step(model, attack), in_axes=(0, None, None), axis_name=stacking.DATA)
    start = stacking.stack([training.init_classifier(model, shape, jax.random.key(2))])
    return Task(lambda states: one(states, numbers, data)[0], start, FLAGS.train_steps, batch)


def compiled_loop(task: Task) -> tuple[Callable[[], Any], float]:
    """All steps as one program; returns a run and the seconds it took to compile."""
    return _compiled(lambda start: lax.fori_loop(0, task.steps, lambda _, carry: task.step(carry), start), task.start)


def python_loop(task: Task) -> tuple[Callable[[], Any], float]:
    """One compiled step called in turn."""
    step, seconds = _compiled(task.step, task.start, bind=False)

    def run():
        carry = task.start
        for _ in range(task.steps):
            carry = step(carry)
        return carry

    return run, seconds


def _compiled(function: Callable, start, bind: bool = True) -> tuple[Callable, float]:
    began = time.perf_counter()
    compiled = jax.jit(function).lower(start).compile()
    return (partial(compiled, start) if bind else compiled), time.perf_counter() - began


@contextlib.contextmanager
def plain_lax():
    """Networks built and traced within use `lax`'s own convolution and pooling."""

    def conv(images, kernel, stride=1, padding="SAME"):
        strides = (stride, stride)
        return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def max_pool(images, window=2):
        size = (1, window, window, 1)
        return lax.reduce_window(images, -jnp.inf, lax.max, size, size, "VALID")

    with mock.patch.object(layers, "conv", conv), mock.patch.object(layers, "max_pool", max_pool):
        yield


def alternated(runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of warm runs, the variants taking turns, so that the machine's moods meet all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(FLAGS.repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return seconds


def row_of(network: str, task: str, variant: str, per_step: list[float], images: float, compile_seconds: float):
    """A row of the table, but for its ratio."""
    median = statistics.median(per_step)
    return {
        "network": network,
        "task": task,
        "variant": variant,
        "ms_per_step": 1000 * median,
        "spread": f"{1000 * min(per_step):.3g}..{1000 * max(per_step):.3g}",
        "images_per_second": images / median,
        "compile_seconds": compile_seconds,
    }


def with_ratios(rows: list[report.Row]) -> list[report.Row]:
    """Rows with each one's time over the first one's."""
    return [row | {"ratio": row["ms_per_step"] / rows[0]["ms_per_step"]} for row in rows]


def compare(network: str, task_name: str, build: Callable[..., Task]) -> list[report.Row]:
    """Times the three variants of one task; `ratio` is a variant's time over the compiled loop's."""
    make, shape, batch = NETWORKS[network]
    task = build(make(), shape, batch)
    # Plain lax is so slow in loops that two steps tell enough.
    short = task._replace(steps=min(task.steps, 2))
    built = {"compiled loop": compiled_loop(task), "Python loop": python_loop(task)}
    with plain_lax():
        built["compiled loop, plain lax"] = compiled_loop(short)
    times = alternated({name: run for name, (run, _) in built.items()})
    rows = []
    for name, seconds in times.items():
        steps = short.steps if "lax" in name else task.steps
        images = batch if task_name == "train" else batch / task.steps
        rows.append(row_of(network, task_name, name, [one / steps for one in seconds], images, built[name][1]))
    return with_ratios(rows)


def retraining_rows(network: str) -> list[report.Row]:
    """Times a stack of retrainings against them one after another; `ratio` is a variant's time over the stack's."""
    make, shape, _ = NETWORKS[network]
    model, (replicas, steps) = make(), STACKS[network]
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (RETRAINING_BATCH, *shape)).astype(np.float32)
    labels = np.arange(RETRAINING_BATCH) % 10
    pixels = shape[0] * shape[1]
    ranks = np.stack([generator.permutation(pixels).reshape(shape[:2]) for _ in images]).astype(np.int32)
    thresholds = np.linspace(0.1, 0.9, replicas) * pixels // 1
    retrainings = [retraining.Retraining(retraining.ROAR, "own", 0.0, seed) for seed in range(replicas)]
    states = retraining.initial_states(model, shape, retrainings, jax.random.key(0))
    occlusion = retraining.Occlusion(
        jnp.zeros(replicas, jnp.int32), jnp.asarray(thresholds, jnp.int32), jnp.zeros(replicas, bool)
    )
    numbers = retraining.Numbers(occlusion, jnp.full(replicas, 1e-3))
    examples = retraining.Examples(images, labels, ranks[:, None])
    batch = training.Batch(examples, jnp.ones(len(images)), jax.random.split(jax.random.key(1), len(images)))
    step = retraining.retraining_step(model, jnp.zeros(shape[-1]))

    def of_replica(replica, batch):
        def body(_, carry):
            state, metrics = step(carry[0], replica[1], batch)
            return state, metrics["loss"]

        return lax.fori_loop(0, steps, body, (replica[0], jnp.zeros(())))[1]

    def program(count: int, devices=None):
        mesh = stacking.device_mesh(count, 1, devices)
        some = jax.tree.map(lambda leaf: leaf[:count], (states, numbers))
        began = time.perf_counter()
        compiled = jax.jit(stacking.per_replica(of_replica, mesh)).lower(some, batch).compile()
        return compiled, time.perf_counter() - began, some

    stacked, stacked_compile, every = program(replicas)
    single, single_compile, one = program(1, jax.devices()[:1])
    runs = {
        "one program, stacked": lambda: stacked(every, batch),
        "one after another": lambda: [single(one, batch) for _ in range(replicas)],
    }
    compile_seconds = dict(zip(runs, (stacked_compile, single_compile), strict=True))
    times = alternated(runs)
    if FLAGS.peers:
        losses = np.asarray(stacked(every, batch))
        times |= torch_times(model, shape, states.params, examples, thresholds, steps, losses)
    rows = []
    for name, seconds in times.items():
        per_step = [one / steps / replicas for one in seconds]
        rows.append(
            row_of(network, f"retrain {replicas}", name, per_step, RETRAINING_BATCH, compile_seconds.get(name, 0.0))
        )
    return with_ratios(rows)


def torch_times(model, shape, params, examples, thresholds, steps: int, losses) -> dict[str, list[float]]:
    """PyTorch's times, each variant in a process of its own while this one rests; its losses must equal ours."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch: not installed, skipped (pip install 'robgrad[benchmark]')")
        return {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    spec = {"stages": model.stages, "window": model.window, "dense": model.dense, "image_shape": shape}
    work = {"images": examples.images, "labels": examples.labels, "ranks": examples.ranks[:, 0]}
    work |= {"thresholds": thresholds, "steps": steps, "repeats": FLAGS.repeats, "spec": json.dumps(spec)}
    times = {}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "work.npz"
        np.savez(file, allow_pickle=False, **named, **work)
        for variant in peers.VARIANTS:
            command = [sys.executable, "-m", "experiments.peers", str(file), variant]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                print(f"PyTorch, {variant}: failed ({result.stderr.strip().splitlines()[-1]}), skipped")
                continue
            measured = json.loads(result.stdout)
            np.testing.assert_allclose(measured["losses"], losses, rtol=0.02)
            times[f"PyTorch, {variant.replace('_', ' ')}"] = measured["seconds"]
    return times


def main() -> None:
    """Runs the chosen comparisons, prints their table and writes it."""
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for network in FLAGS.networks if "loops" in FLAGS.suites else ():
        for task_name, build in ((f"pgd-{FLAGS.pgd_steps}", attack_task), ("train", training_task)):
            part = compare(network, task_name, build)
            print(report.table(part, COLUMNS), flush=True)
            rows += part
    for network in FLAGS.networks if "retrain" in FLAGS.suites else ():
        part = retraining_rows(network)
        print(report.table(part, COLUMNS), flush=True)
        rows += part
    workdir = Path(FLAGS.workdir or "runs/benchmark")
    workdir.mkdir(parents=True, exist_ok=True)
    results = {"experiment": "benchmark", "environment": launch.environment(), "rows": rows}
    runs.write(workdir / "results.json", json.dumps(results, indent=2))
    print(f"\nresults: {workdir}")


if __name__ == "__main__":
    launch.run(main)
