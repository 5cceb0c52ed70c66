"""The benchmark's tasks in JAX, by robgrad and by foolbox, for `experiments.benchmark`.

    python -m experiments.benchmark.contenders FILE VARIANT

`FILE` is an `.npz` of work. Variants: `robgrad`, over all devices; `one_device`, the same where the caller has
made one; `bfloat16`, its networks in that type; and, on one device, `python_loop`, which calls a compiled step from
Python, `plain_lax`, with `lax`'s own convolution and pooling, `one_after_another`, the replicas of a stack in turn,
and `foolbox_jax`.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmark import alternatives, contest
from robgrad import attacks, compiling, faithfulness, gradients, manifolds, networks, stacking, training
from robgrad.data import Split

Arrays = Mapping[str, np.ndarray]


class Work:
    """What a file of work holds, in JAX: network, stack of parameters, images and labels."""

    def __init__(self, arrays: Arrays, spec: Mapping[str, Any], variant: str):
        """Reads it for a variant."""
        self.arrays, self.spec, self.variant = arrays, spec, variant
        network = networks.CNN(**{name: spec[name] for name in ("stages", "window", "dense")}, classes=10)
        self.network = network
        self.model: Any = alternatives.half(network) if variant == "bfloat16" else network
        shape = spec["image_shape"]
        shapes = jax.eval_shape(lambda: networks.init(network, jax.random.key(0), shape)["params"])
        leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
        named = [arrays[jax.tree_util.keystr(path, simple=True, separator="/")] for path, _ in leaves]
        self.stack = {"params": jax.tree.unflatten(structure, map(jnp.asarray, named))}
        self.variables = stacking.replica(self.stack, 0)
        self.images, self.labels = jnp.asarray(arrays["images"]), jnp.asarray(arrays["labels"])
        alone = ("python_loop", "plain_lax", "foolbox_jax", "one_after_another")
        self.devices = jax.devices()[:1] if variant in alone else jax.devices()

    def mesh(self, replicas: int, attack_steps: int | None = None):
        """The variant's devices, as the mesh's rule has it; with steps of an attack, for training."""
        work = networks.intensity(self.network, tuple(self.spec["image_shape"]), attack_steps)
        return stacking.device_mesh(replicas, len(self.images), self.devices, intensity=work)

    @property
    def alone(self):
        """The first replica as a stack of one, in its place."""
        return self.placed(stacking.stack([self.variables]))

    def placed(self, stack, mesh=None):
        """A stack where programs want it, so that no run has to copy it there."""
        mesh = mesh or self.mesh(stacking.size(stack))
        return stacking.kept(stacking.everywhere(stack, mesh), mesh)

    def radii(self, norm: str) -> tuple[float, float]:
        """Epsilon and step size."""
        epsilon, step_size = self.spec["radii"][norm]
        return epsilon, step_size


def attack_task(work: Work, norm_name: str, steps: int) -> contest.Task:
    """PGD on the images; gives the mean cross-entropy of what comes out."""
    norm, (epsilon, step_size) = attacks.NORMS[norm_name], work.radii(norm_name)

    def of_network(variables, images):
        return jax.vmap(attacks.cross_entropy)(networks.logits(work.model, variables, images), work.labels).mean()

    mean_loss = partial(compiling.compiled(of_network, None), work.variables)

    if work.variant == "foolbox_jax":
        attack = foolbox_attack(work, norm_name, steps)
    elif work.variant == "python_loop":
        step = compiled_step(work, norm, epsilon, step_size)

        def attack() -> jax.Array:
            attacked = work.images
            for _ in range(steps):
                attacked = step(attacked)
            return attacked
    else:
        perturb = attacks.pgd(norm, attacks.cross_entropy, steps)

        def of_example(numbers, params, example):
            image, label = example
            return perturb(jax.random.key(0), networks.logits_fn(work.model, params), image, label, *numbers)

        run = stacking.per_example(of_example, work.mesh(1), len(work.images))
        numbers, one = (jnp.float32(epsilon), jnp.float32(step_size)), work.alone
        attack = lambda: run(numbers, one, (work.images, work.labels))[0]  # noqa: E731
    return lambda: [float(mean_loss(attack()))]


def compiled_step(work: Work, norm: attacks.Norm, epsilon: float, step_size: float) -> Callable:
    """One step of PGD on the whole batch."""

    def step(params, image, label, attacked):
        logits_fn = networks.logits_fn(work.model, params)
        gradient = jax.grad(lambda x: attacks.cross_entropy(logits_fn(x), label))(attacked)
        moved = attacked + step_size * norm.ascent(gradient)
        return jnp.clip(image + norm.project(moved - image, jnp.float32(epsilon)), -1.0, 1.0)

    # The parameters are an argument, as they are in the loop: constants would be folded.
    run = compiling.compiled(jax.vmap(step, in_axes=(None, 0, 0, 0)), None)
    given = (work.variables, work.images, work.labels)
    return partial(run.lower(*given, work.images).compile(), *given)


def foolbox_attack(work: Work, norm: str, steps: int) -> Callable[[], jax.Array]:
    """The same by foolbox."""
    import eagerpy
    import foolbox

    kinds = {"l2": foolbox.attacks.L2PGD, "linf": foolbox.attacks.LinfPGD}
    epsilon, step_size = work.radii(norm)
    logits = jax.jit(lambda images: networks.logits(work.model, work.variables, images))
    model = foolbox.JAXModel(logits, bounds=(-1, 1))
    attack = kinds[norm](abs_stepsize=step_size, steps=steps, random_start=False)
    criterion = foolbox.Misclassification(eagerpy.astensor(work.labels))
    return lambda: attack.run(model, work.images, criterion, epsilon=epsilon)


def looped(
    work: Work, step: training.Step, stack, batch: training.Batch, steps: int, metric: str, attack_steps: int = 0
):
    """Compiles steps of a stack, `(states, numbers)`, on one batch, split over the devices.

    Returns a function of such a stack, by default the one given, to each replica's metric in the last step.
    """
    examples = len(batch.weights)
    mesh, pixels = work.mesh(stacking.size(stack), attack_steps), math.prod(work.images.shape[1:3])
    stack = work.placed(stack, mesh)
    given = (stack, stacking.everywhere(batch, mesh))

    def part(batch: training.Batch) -> training.Batch:
        share = -(-examples // lax.axis_size(stacking.DATA))
        rows = lax.axis_index(stacking.DATA) * share + jnp.arange(share)
        mine = jax.tree.map(lambda leaf: leaf[jnp.minimum(rows, examples - 1)], batch)
        return mine._replace(weights=jnp.where(rows < examples, mine.weights, 0.0))

    def one_step(replica, batch):
        state, numbers = replica
        state, metrics = step(state, numbers, part(batch))
        return state, metrics[metric]

    def all_steps(replica, batch):
        state, numbers = replica

        def body(_, carry):
            return one_step((carry[0], numbers), batch)

        return lax.fori_loop(0, steps, body, (state, jnp.zeros(())))[1]

    if work.variant == "python_loop":
        run = compiling.compiled(stacking.per_replica(one_step, mesh), mesh, pixels=pixels).lower(*given).compile()

        def from_python(stack=stack):
            (states, numbers), last = stack, np.nan
            for _ in range(steps):
                states, last = run((states, numbers), given[1])
            return np.asarray(last)

        return from_python
    whole = compiling.compiled(stacking.per_replica(all_steps, mesh), mesh, pixels=pixels).lower(*given).compile()
    return lambda stack=stack: np.asarray(whole(stack, given[1]))


def batch_of(work: Work, examples) -> training.Batch:
    """The images as one batch."""
    count = len(work.images)
    return training.Batch(examples, jnp.ones(count), jax.random.split(jax.random.key(1), count))


def train_task(work: Work, attack_steps: int, steps: int) -> contest.Task:
    """Training steps on one batch, adversarial where there are attack steps; gives the last step's loss."""
    attack = attacks.pgd(attacks.L2, attacks.cross_entropy, attack_steps) if attack_steps else attacks.no_attack
    moments = training.plain_adam().init(work.variables["params"])
    states = stacking.stack([training.TrainState(work.variables, moments, jax.random.key(0), jnp.int32(0))])
    numbers = training.StepSizes(*(jnp.array([one]) for one in (*work.radii("l2"), 1e-3, 0.0)))
    batch = batch_of(work, Split(work.images, work.labels))  # type: ignore[arg-type]
    step = training.classifier_step(work.model, attack)
    return looped(work, step, (states, numbers), batch, steps, "loss", attack_steps)


def retrain_task(work: Work, replicas: int, steps: int) -> contest.Task:
    """A stack of ROAR retrainings on one batch; gives each one's last loss."""
    shape = work.spec["image_shape"]
    plan = [faithfulness.Retraining(faithfulness.ROAR, "own", 0.0, seed) for seed in range(replicas)]
    states = faithfulness.initial_states(work.network, shape, plan, jax.random.key(0))._replace(variables=work.stack)
    thresholds = jnp.asarray(work.arrays["thresholds"], jnp.int32)
    occlusion = faithfulness.Occlusion(jnp.zeros(replicas, jnp.int32), thresholds, jnp.zeros(replicas, bool))
    numbers = faithfulness.RetrainingSizes(occlusion, jnp.full(replicas, 1e-3))
    images, labels = np.asarray(work.images), np.asarray(work.labels)
    batch = batch_of(work, faithfulness.Examples(images, labels, work.arrays["ranks"][:, None]))
    step = faithfulness.retraining_step(work.model, jnp.zeros(shape[-1]))
    if work.variant != "one_after_another":
        return looped(work, step, (states, numbers), batch, steps, "loss")
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (states, numbers)) for i in range(replicas)]
    run = looped(work, step, parts[0], batch, steps, "loss")
    return lambda: [run(part)[0] for part in parts]


def gradient_task(work: Work) -> contest.Task:
    """Input gradients of the loss at the label; gives their mean l2 norm."""

    def of_example(_, params, example):
        image, label = example
        return gradients.loss_gradient(networks.logits_fn(work.model, params), image, label)

    run = stacking.per_example(of_example, work.mesh(1), len(work.images))
    one = work.alone
    mean_norm = jax.jit(lambda slopes: jnp.linalg.norm(slopes.reshape(len(slopes), -1), axis=1).mean())
    return lambda: [mean_norm(run((), one, (work.images, work.labels))[0])]


def alignment_task(work: Work) -> contest.Task:
    """Alignment of the images with a VAE-GAN's manifold; gives the mean tangent fraction."""
    generator = manifolds.vae_gan_for(work.spec["image_shape"])
    variables = manifolds.init_vae_gan(generator, work.spec["image_shape"], jax.random.key(0)).variables
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    given = [jnp.asarray(work.arrays.get(f"manifold/{name}", leaf)) for name, leaf in names.items()]
    variables = jax.tree.unflatten(jax.tree.structure(variables), given)

    def of_example(variables, params, image):
        surface = manifolds.from_vae_gan(generator, variables)
        return gradients.align(networks.logits_fn(work.model, params), surface, image, image).tangent_fraction

    run = stacking.per_example(of_example, work.mesh(1), 100)
    one, images = work.alone, jnp.asarray(work.arrays["many_images"])
    return lambda: [run(variables, one, images)[0].mean()]


def vae_gan_task(work: Work, steps: int) -> contest.Task:
    """Steps of the VAE-GAN on one batch; gives the last reconstruction error."""
    shape = work.spec["image_shape"]
    generator = manifolds.vae_gan_for(shape)
    states = stacking.stack([manifolds.init_vae_gan(generator, shape, jax.random.key(0))])
    numbers = manifolds.VaeGanSizes(jnp.array([5e-3]), jnp.array([5e-4]))
    batch = batch_of(work, Split(work.images, work.labels))  # type: ignore[arg-type]
    return looped(work, manifolds.vae_gan_step(generator), (states, numbers), batch, steps, "reconstruction")


def product_task(side: int) -> contest.Task:
    """One large matrix product; gives its sum over the side."""
    matrix = jnp.full((side, side), 1 / side)
    run = jax.jit(lambda matrix: matrix @ matrix).lower(matrix).compile()
    return lambda: [run(matrix)[0, 0]]


def builders_of(work: Work) -> dict[str, Callable[[], contest.Task]]:
    """Builders of the tasks that a file of work names."""
    makers: dict[str, Callable[..., contest.Task]] = {
        "attack": partial(attack_task, work),
        "train": partial(train_task, work),
        "retrain": partial(retrain_task, work),
        "input gradients": partial(gradient_task, work),
        "alignment": partial(alignment_task, work),
        "vae_gan": partial(vae_gan_task, work),
        "product": product_task,
    }
    return {name: partial(makers[kind], *arguments) for name, (kind, *arguments) in work.spec["tasks"].items()}


def main(file: str, variant: str, *joined: str) -> None:
    """Serves one variant of a file's tasks; `joined` are the address and numbers of several processes."""
    arrays, spec = contest.read(file)
    jax.config.update("jax_default_matmul_precision", spec["matmul_precision"])
    jax.config.update("jax_enable_compilation_cache", False)
    if joined:
        contest.join(*joined)
    with alternatives.plain_lax() if variant == "plain_lax" else contextlib.nullcontext():
        contest.serve(builders_of(Work(arrays, spec, variant)))


if __name__ == "__main__":
    main(*sys.argv[1:])
