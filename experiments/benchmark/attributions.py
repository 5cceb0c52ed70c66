"""The benchmark's suite of attributions: by robgrad, by Captum, and ROAD's imputation against a sparse solver.

    python -m experiments.benchmark.attributions FILE VARIANT

`FILE` is an `.npz` of work as for the other contenders, with `many_images` and `removed` pixels.
"""

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import contest
from experiments.benchmark.contenders import Work
from robgrad import faithfulness, gradients, networks, stacking
from robgrad.faithfulness import imputation

Arrays = Mapping[str, np.ndarray]
STEPS = 50
# Gradients at a time, of robgrad and of Captum.
AT_ONCE = 500
INTEGRATED, GRADIENTS, LIFT, LRP, ROAD = (
    *(f"integrated gradients, {STEPS} steps", f"{STEPS} gradients", "DeepLIFT", "LRP, epsilon", "ROAD's imputation"),
)
MADE = {
    INTEGRATED: (gradients.integrated_gradients(nodes=STEPS, tolerance=math.inf), STEPS),
    LIFT: (gradients.deep_lift(), 1),
    LRP: (gradients.lrp("epsilon"), 1),
}


def by_robgrad(arrays: Arrays, spec: Mapping[str, Any]) -> dict[str, Callable[[], contest.Task]]:
    """Each attribution of the images, mapped and compiled; gives the mean size of its values."""
    work = Work(arrays, spec, "robgrad")
    images, one = jnp.asarray(arrays["many_images"]), work.alone

    def spread(function: Callable, at_once: int) -> Callable:
        run = stacking.per_example(function, work.mesh(1), max(1, AT_ONCE // at_once))
        return lambda: run((), one, images)[0]

    def attribution(name: str) -> contest.Task:
        made, at_once = MADE[name]
        of = lambda _, params, image: made(jax.random.key(0), networks.logits_fn(work.model, params), image)  # noqa: E731
        run = spread(of, at_once)
        return lambda: [float(jnp.abs(run()).mean())]

    def repeated() -> contest.Task:
        of = lambda _, params, image: gradients.loss_gradient(networks.logits_fn(work.model, params), image)  # noqa: E731
        run = spread(of, 1)
        return lambda: [float(jnp.abs([run() for _ in range(STEPS)][-1]).mean())]

    def imputed() -> contest.Task:
        removed = jnp.asarray(arrays["removed"])
        run = stacking.per_example(lambda _, params, pair: faithfulness.impute(*pair), work.mesh(1), 100)
        return lambda: [float(jnp.abs(run((), one, (images, removed))[0]).mean())]

    return {name: partial(attribution, name) for name in MADE} | {GRADIENTS: repeated, ROAD: imputed}


def by_captum(arrays: Arrays, spec: Mapping[str, Any]) -> dict[str, Callable[[], contest.Task]]:
    """The same by Captum."""
    import torch
    from captum import attr
    from captum.attr._utils.lrp_rules import EpsilonRule

    from experiments.benchmark import peers
    from experiments.harness.settings.options import cores

    torch.set_num_threads(cores())
    work = peers.Work(arrays, spec, "captum")
    flat = next(layer for layer in work.model if isinstance(layer, torch.nn.Flatten))
    images = torch.tensor(arrays["many_images"]).permute(0, 3, 1, 2).contiguous().to(work.device)
    with torch.no_grad():
        target = work.model(images).argmax(1)
    known: dict[str, Any] = {
        INTEGRATED: (attr.IntegratedGradients, {"n_steps": STEPS, "internal_batch_size": AT_ONCE}),
        LIFT: (attr.DeepLift, {}),
        LRP: (attr.LRP, {}),
    }

    def attribution(name: str) -> contest.Task:
        kind, options = known[name]
        made = kind(work.model)

        def run():
            # It has no rule there, and Captum takes rules away after each call; this is the identity but for rounding.
            flat.rule = EpsilonRule()
            return made.attribute(images.clone().requires_grad_(True), target=target, **options)

        signed = name == LRP
        size = lambda values: (values.sum(1) if signed else values.abs().sum(1)).abs().mean()  # noqa: E731
        return lambda: [float(size(run().detach()))]

    return {name: partial(attribution, name) for name in known}


def by_sparse(arrays: Arrays, spec: Mapping[str, Any]) -> dict[str, Callable[[], contest.Task]]:
    """ROAD's imputation by SciPy's sparse direct solver, one image after another."""
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    del spec
    height, width = arrays["removed"].shape[1:]
    shape = (height, width)
    places = np.arange(height * width).reshape(shape)
    rows, columns, weights = [], [], []
    for down, line in enumerate(imputation.WEIGHTS):
        for right, weight in enumerate(line):
            here = places[max(0, 1 - down) : height - max(0, down - 1), max(0, 1 - right) : width - max(0, right - 1)]
            there = places[max(0, down - 1) : height - max(0, 1 - down), max(0, right - 1) : width - max(0, 1 - right)]
            if weight:
                rows += here.ravel().tolist()
                columns += there.ravel().tolist()
                weights += [weight] * here.size
    neighbours = sparse.csr_matrix((weights, (rows, columns)), shape=(places.size, places.size))
    whole = sparse.diags(np.asarray(neighbours.sum(1)).ravel()) - neighbours

    def impute(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
        values, gone = image.reshape(places.size, -1).astype(np.float64), removed.ravel()
        system = whole[gone][:, gone].tocsc()
        values[gone] = spsolve(system, neighbours[gone][:, ~gone] @ values[~gone]).reshape(int(gone.sum()), -1)
        return values.reshape(image.shape)

    def task() -> list[float]:
        pairs = zip(arrays["many_images"], arrays["removed"], strict=True)
        return [float(np.mean([np.abs(impute(image, removed)).mean() for image, removed in pairs]))]

    return {ROAD: lambda: task}


VARIANTS = {"robgrad": by_robgrad, "captum": by_captum, "sparse": by_sparse}


def main(file: str, variant: str) -> None:
    """Serves one variant of a file's tasks."""
    arrays, spec = contest.read(file)
    jax.config.update("jax_default_matmul_precision", spec["matmul_precision"])
    jax.config.update("jax_enable_compilation_cache", False)
    builders = VARIANTS[variant](arrays, spec)
    contest.serve({name: build for name, build in builders.items() if name in spec["tasks"]})


if __name__ == "__main__":
    main(*sys.argv[1:])
