"""How often networks are right: on clean images, under the paper's attack, and under AutoAttack."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.pages.tables import Row, with_interval
from experiments.harness.progress import counted, counted_networks
from experiments.harness.settings.config import AutoAttackConfig, EvaluatedConfig
from experiments.harness.training import stages
from experiments.harness.training.meter import Meter
from experiments.harness.training.stages import Run
from robgrad import attacks, data, intervals, networks, runs, training

Arrays = dict[str, np.ndarray]
ROBUST = ("robust", "broken_by")
# Accuracy below which a network is said not to have trained.
UNTRAINED = 0.3


class Named(Protocol):
    """A network that has a name of its own."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


def attacked_of(config: AutoAttackConfig, test: data.Split) -> data.Split:
    """The test images that AutoAttack is run on: the first ones."""
    return test.take(config.attacked_examples)


def auto_attacked(run: Run, trained: runs.Classifiers, test: data.Split, norm: str, radii: Sequence[float]) -> Arrays:
    """AutoAttack on each network: `robust` and `broken_by` `[network, radius, image]`, and notes by network.

    A network that has been evaluated is kept in the run and read from there.
    """
    config, some = run.config, attacked_of(run.config, test)
    if run.meter:
        metered(run, run.meter, test, norm, len(trained.names), partial(_logits, trained.network), trained.at(0))
        return dict.fromkeys(ROBUST, np.zeros((len(trained.names), len(radii), len(some.labels)), bool))
    # One function for all, so that networks share what is compiled.
    apply = partial(_logits, trained.network)
    kept: list[Arrays] = []
    of = counted_networks(len(trained.names))
    what = f"AutoAttack ({config.auto_attack}) on {len(some.labels)} images in {norm}, {of}"
    for index, name in counted(trained.names, what):
        path = run.workdir / "analysis" / f"auto_attack-{norm}-{name}.npz"
        part = runs.read_arrays(path)
        if part is None:
            found = attacks.robust_accuracy(
                apply,
                *some,
                variables=jax.device_get(trained.at(index)),
                epsilon=radii,
                norm=norm,
                version=config.auto_attack,
                seed=config.seed,
            )
            part = {field: np.stack([getattr(one, field) for one in found]) for field in ROBUST}
            part["notes"] = np.array(sorted({note for one in found for note in one.notes}))
            runs.write_arrays(path, part)
        kept.append(part)
    notes = {f"notes/{name}": one["notes"] for name, one in zip(trained.names, kept, strict=True)}
    return notes | {field: np.stack([one[field] for one in kept]) for field in ROBUST}


def _logits(network: nn.Module | networks.Network, variables: Any, image: jax.Array) -> jax.Array:
    return networks.logits_fn(network, variables)(image)


def hits(
    run: Run,
    trained: runs.Classifiers,
    test: data.Split,
    key: jax.Array,
    attack: attacks.Attack = attacks.no_attack,
    epsilon: float = 0.0,
    step_size: float = 0.0,
) -> np.ndarray:
    """Whether each network is right on each image, under an attack, `[network, image]`."""

    def of(trained: runs.Classifiers) -> Callable[[data.Split], np.ndarray]:
        mesh = stages.mesh_of(run.config, trained, run.image_shape)
        predict = training.evaluate(trained.network, attack, mesh, chunk=run.config.chunk)
        return lambda test: np.asarray(predict(trained.variables, test, key, epsilon, step_size)) == test.labels

    return stages.of_networks(run, "accuracies", trained, of, test)


def hits_of(run: Run, trained: runs.Classifiers, test: data.Split, key: jax.Array) -> Arrays:
    """Whether each network is right on each test image `[network, image]`.

    `clean_hits`; `pgd_hits` under the paper's attack, l2 on the cross-entropy; `robust_hits` under AutoAttack at the
    same radius, on the first images alone, and what it noted.
    """
    config = run.config
    pgd = attacks.pgd("l2", attacks.cross_entropy, config.pgd_steps)
    found = auto_attacked(run, trained, test, "l2", (config.robust_epsilon,))
    return {
        "clean_hits": hits(run, trained, test, key),
        "pgd_hits": hits(run, trained, test, key, pgd, config.robust_epsilon, config.pgd_step_size),
        "robust_hits": found["robust"][:, 0],
        **{name: values for name, values in found.items() if name not in ROBUST},
    }


def untrained(arrays: Arrays, members: Sequence[int]) -> int:
    """How many of some networks are right on so few test images that they have not trained."""
    return int(np.sum(arrays["clean_hits"][members].mean(1) < UNTRAINED))


def accuracies(config: EvaluatedConfig, arrays: Arrays, members: Sequence[int]) -> Row:
    """What a row says of networks of one kind: their accuracies, that under AutoAttack with its interval."""
    robust = arrays["robust_hits"][members]
    return {
        "test_accuracy": np.mean(arrays["clean_hits"][members]),
        "untrained": untrained(arrays, members),
        "pgd_accuracy": np.mean(arrays["pgd_hits"][members]),
        **with_interval("robust_accuracy", intervals.of_share(robust)),
        "auto_attack": f"{config.auto_attack}, {robust.shape[1]} images",
    }


COLUMNS = {
    "test_accuracy": "test accuracy",
    "pgd_accuracy": "under PGD, the paper's attack, all test images",
    "robust_accuracy": "robust accuracy",
    "auto_attack": "under AutoAttack",
}


def notes_of(specs: Sequence[Named], norm: str, arrays: Arrays, prefix: str = "") -> list[Row]:
    """What AutoAttack noted against its own numbers, a row a line."""
    return [
        {"network": spec.name, "norm": norm, "note": str(note)}
        for spec in specs
        for note in arrays[f"{prefix}notes/{spec.name}"]
    ]


NOTES = ("What speaks against the robust accuracies", ("network", "norm", "note"))


def metered(
    run: Run,
    meter: Meter,
    test: data.Split,
    norm: str,
    count: int,
    apply: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    right: float = 1.0,
) -> None:
    """Adds what AutoAttack of so many networks would take at most: its steps, times a pass.

    A step of Square is a pass forward; one of the others a pass forward and a gradient. What falls is attacked no more,
    so that networks that are not robust take far less; `right` is the share of images that they are right on.
    """
    some = attacked_of(run.config, test)
    images, title = some.images[:50], f"AutoAttack of {len(some.labels)} images in {norm}, at most"
    parts, _ = attacks.ensemble(run.config.auto_attack, norm, len(run.dataset.classes))
    gradient = jax.value_and_grad(lambda image, variables: attacks.cross_entropy(apply(variables, image), 0))
    passes = {
        apply: sum(part.search.steps for part in parts),
        lambda variables, image: gradient(image, variables): sum(
            part.search.steps for part in parts if part.name != "square"
        ),
    }
    for one, steps in passes.items():
        mapped = partial(jax.jit(jax.vmap(one, (None, 0))), variables, data.scale(jnp.asarray(images)))
        meter.timed(title, mapped, right * steps * count * len(some.labels) / len(images), count)
