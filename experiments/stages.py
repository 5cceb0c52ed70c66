"""The stages that experiments share: stacks of classifiers and the VAE-GAN, each trained once and kept in the run.

A stage that has finished lies in the run directory's `networks` and is loaded; one under way goes on from
its last checkpoint; with `--networks_from`, what another run has trained in the same way is taken from there.
"""

import shutil
import zlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from experiments import launch, presets, settings
from robgrad import attacks, checkpoints, datasets, generative, models, runs, stacking, training, vae_gan

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "networks_from", None, "Directory of another run, trained alike, whose networks and manifold are used."
)
flags.DEFINE_bool("shard_data", False, "Split the training data over devices instead of copying it to each.")

MANIFOLD = "vae-gan"


class Network(NamedTuple):
    """How one network is trained; a standard one has no norm, no loss and epsilon 0."""

    norm: str | None = None
    loss: str | None = None
    epsilon: float = 0.0

    @property
    def name(self) -> str:
        """For instance `l2-xent-4`, or `standard`."""
        return f"{self.stage}-{self.epsilon:g}" if self.norm else self.stage

    @property
    def stage(self) -> str:
        """The stack it is trained in: networks of one norm and loss are one."""
        return f"{self.norm}-{self.loss}" if self.norm else "standard"

    @property
    def row(self) -> dict[str, Any]:
        """What tables say of it."""
        return {
            "network": self.name,
            "train_norm": self.norm,
            "train_loss": self.loss,
            "train_epsilon": self.epsilon,
        }


def networks_of(config: presets.Config) -> list[Network]:
    """The networks of an experiment: the standard one, then those of each norm and training loss."""
    epsilons = {"l2": config.l2_epsilons, "linf": config.linf_epsilons}
    pairs = [(norm, loss) for norm in config.norms for loss in config.train_losses]
    return [Network(), *(Network(norm, loss, epsilon) for norm, loss in pairs for epsilon in sorted(epsilons[norm]))]


def key_of(seed: int, name: str) -> jax.Array:
    """A random key that depends on the seed and a name alone, not on what else a run does."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def train_networks(
    config: presets.Config, networks: Sequence[Network], dataset: datasets.Dataset, train: datasets.Split, run: Path
) -> checkpoints.Networks:
    """Trains, continues or loads the networks, a stack for each norm and loss, in the order given."""
    stacks = []
    for name, group in groupby(networks, lambda network: network.stage):
        path, members = run / "networks" / name, list(group)
        stack = checkpoints.finished(path, checkpoints.load_networks)
        if stack is None:
            stack = _taken(config, members) or _trained(config, members, dataset, train, run)
            checkpoints.save_stack(path, stack.params, stack.about)
            shutil.rmtree(run / "checkpoints" / name, ignore_errors=True)
        stacks.append(stack)
    names = tuple(name for stack in stacks for name in stack.names)
    params = stacking.concatenate([stack.params for stack in stacks])
    return checkpoints.Networks(stacks[0].model, params, names, stacks[0].about)


def _trained(config, networks: list[Network], dataset, train, run: Path) -> checkpoints.Networks:
    image_shape, classes, first = train.images.shape[1:], len(dataset.classes), networks[0]
    model = models.classifier_for(image_shape, classes)
    attack = attacks.no_attack
    if first.norm and first.loss:
        loss = settings.losses_of(config, bound=500.0)[first.loss]
        attack = attacks.pgd(attacks.NORMS[first.norm], loss, config.attack_steps)
    # All start alike and see the data in one order, so that they differ by what they were trained against alone.
    start = training.init_classifier(model, image_shape, key_of(config.seed, "classifiers"))
    count = len(networks)
    numbers = training.Numbers(
        jnp.array([network.epsilon for network in networks]),
        jnp.full(count, config.l2_step_size if first.norm == "l2" else config.linf_step_size),
        jnp.full(count, config.learning_rate),
    )
    names = [network.name for network in networks]
    states = fit(
        run,
        first.stage,
        training.classifier_step(model, attack),
        stacking.stack([start] * count),
        numbers,
        train,
        mesh=stacking.device_mesh(count, config.batch_size),
        batch_size=config.batch_size,
        epochs=config.epochs if first.norm else config.standard_epochs,
        shuffle=config.shuffle,
        names=names,
    )
    about = {
        "kind": "classifier",
        "image_shape": list(image_shape),
        "classes": classes,
        "networks": [network.row for network in networks],
        "training": _settings(config, first),
    }
    return checkpoints.Networks(model, states.params, tuple(names), about)


def train_manifold(config: presets.ManifoldConfig, train: datasets.Split, run: Path) -> tuple[generative.VaeGan, Any]:
    """Trains, continues or loads the VAE-GAN; returns its networks and its variables."""
    path, image_shape = run / "networks" / MANIFOLD, train.images.shape[1:]
    done = checkpoints.finished(path, checkpoints.load_vae_gan)
    if done:
        return done
    settings = _settings(config, None)
    about = {"kind": "vae_gan", "image_shape": list(image_shape), "training": settings}
    other = _other_run(MANIFOLD)
    if other and _equal(checkpoints.read_about(other), settings, other):
        model, variables = checkpoints.load_vae_gan(other)
        checkpoints.save_stack(path, stacking.stack([variables]), about)
        return model, variables
    model = generative.vae_gan_for(image_shape)._replace(discriminator_steps=config.discriminator_steps)
    states = fit(
        run,
        MANIFOLD,
        vae_gan.train_step(model),
        stacking.stack([vae_gan.init(model, image_shape, key_of(config.seed, MANIFOLD))]),
        vae_gan.Numbers(jnp.array([config.reconstruction_weight]), jnp.array([config.vae_gan_learning_rate])),
        train,
        mesh=stacking.device_mesh(1, config.vae_gan_batch_size),
        batch_size=config.vae_gan_batch_size,
        epochs=config.vae_gan_epochs,
        shuffle=config.shuffle,
        names=["VAE-GAN"],
    )
    checkpoints.save_stack(path, states.params, about)
    shutil.rmtree(run / "checkpoints" / MANIFOLD, ignore_errors=True)
    return model, stacking.replica(states.params, 0)


def fit(run: Path, name: str, step: training.Step, start: training.TrainState, numbers, data, **options):
    """`training.fit` that goes on from the stage's last checkpoint, saves as the flags say, and stops when asked to."""
    count = stacking.size(numbers)
    label = f"training {name}" + (f", {count} networks" if count > 1 else "")
    with checkpoints.states_of(run / "checkpoints" / name, start) as (states, save), launch.patiently() as stop:
        options |= {"shard_data": FLAGS.shard_data, "stop": stop, "report": launch.progress(label)}
        saving = training.Checkpoints(save, *launch.checkpoint_interval())
        return training.fit(step, states, numbers, data, checkpoints=saving, **options)


def _settings(config: presets.Config, network: Network | None) -> dict[str, Any]:
    """What a network depends on beside its name: of the configuration, what its training reads."""
    names = ["dataset", "seed", "held_out", "train_examples", "shuffle", "matmul_precision"]
    if network is None:
        names += ["vae_gan_epochs", "vae_gan_batch_size", "vae_gan_learning_rate"]
        names += ["reconstruction_weight", "discriminator_steps"]
    else:
        names += ["batch_size", "learning_rate", "epochs" if network.norm else "standard_epochs"]
        names += ["attack_steps", f"{network.norm}_step_size", "zero_mask"] if network.norm else []
    return {name: getattr(config, name) for name in names}


def _other_run(stage: str) -> Path | None:
    """Where the run of `--networks_from` keeps a stage; None without that flag, or where that run has none such."""
    if FLAGS.networks_from is None:
        return None
    return next((path for path in checkpoints.stages(FLAGS.networks_from) if path.name == stage), None)


def _equal(about: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> bool:
    different = [name for name, value in settings.items() if about["training"].get(name) != value]
    if different:
        name, found = different[0], about["training"].get(different[0])
        raise runs.RunError(
            f"--networks_from: {path} was trained with {name} = {found}, this run wants {settings[name]}; give the "
            "same settings, or leave --networks_from out"
        )
    return True


def _taken(config, networks: list[Network]) -> checkpoints.Networks | None:
    """The networks from another run, if it has all of them."""
    path = _other_run(networks[0].stage)
    if path is None:
        return None
    found = checkpoints.load_networks(path)
    names = tuple(network.name for network in networks)
    if not _equal(found.about, _settings(config, networks[0]), path) or not {*names} <= {*found.names}:
        return None
    chosen = jnp.array([found.names.index(name) for name in names])
    about = {**found.about, "networks": [network.row for network in networks]}
    return checkpoints.Networks(found.model, jax.tree.map(lambda leaf: leaf[chosen], found.params), names, about)
